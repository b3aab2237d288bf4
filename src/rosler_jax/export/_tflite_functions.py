"""Elementwise functions in TFLite: operators where it has them, else built of simpler ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rosler_jax.export._errors import ExportError
from rosler_jax.export._tflite_builder import (
    Builder,
    Operand,
    Value,
    apply,
    elementwise,
    quantized,
    sampled,
    steps_of,
    value,
)
from rosler_jax.export._tflite_file import Tensor
from rosler_jax.graph.functions import FUNCTIONS as REFERENCE
from rosler_jax.graph.kinds import Map

Emit = Callable[..., Value]
"""From the builder, the operands and the operation's numbers to the result."""


def _of(*kinds: str) -> Emit:
    """Operators of one operand, one after the other, or one operator of several."""

    def emit(b: Builder, *xs: Any) -> Value:
        for kind in kinds:
            xs = (elementwise(b, kind, *xs),)
        return xs[0]

    return emit


def _is(x: Operand, dtype: str) -> bool:
    return (x.dtype if isinstance(x, Value) else x.dtype.name) == dtype


def _whole(x: Operand) -> bool:
    return _is(x, "int32")


def cast(b: Builder, x: Value, dtype: str) -> Value:
    """The numbers in another type, cut off to whole ones; true where they are not 0."""
    if x.dtype == dtype:
        return x
    if dtype == "bool":
        return elementwise(b, "NOT_EQUAL", x, np.zeros((), x.dtype))
    out = value(b, x.shape, sampled(lambda s: s.astype(dtype), x), real=True, dtype=dtype)
    return apply(b, "CAST", [x.tensor], out, ("CastOptions", {}))


def _relu(b: Builder, x: Value) -> Value:
    return elementwise(b, "MAXIMUM", x, np.int32(0)) if _whole(x) else elementwise(b, "RELU", x)


def _clamp(b: Builder, x: Value, low: float, high: float) -> Value:
    kind = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}.get((low, high))
    if kind and not _whole(x) and not (b.integer and kind == "RELU_N1_TO_1"):
        return elementwise(b, kind, x)
    for name, end in (("MAXIMUM", low), ("MINIMUM", high)):
        if np.isfinite(end):
            x = elementwise(b, name, x, np.asarray(end, x.dtype))
    return x


def _gelu(b: Builder, x: Value) -> Value:
    """``x sigmoid(2 z)``, ``z = sqrt(2 / pi) (x + 0.044715 x^3)``: the tanh form in fewer steps."""
    factor = 2.0 * math.sqrt(2.0 / math.pi)
    inside = elementwise(b, "MUL", elementwise(b, "MUL", x, x), np.float32(0.044715 * factor))
    z = elementwise(b, "MUL", x, elementwise(b, "ADD", inside, np.float32(factor)))
    return elementwise(b, "MUL", x, elementwise(b, "LOGISTIC", z))


def _negative(b: Builder, x: Value) -> Value:
    return elementwise(b, "SUB", np.int32(0), x) if _whole(x) else elementwise(b, "NEG", x)


def _abs(b: Builder, x: Value) -> Value:
    return elementwise(b, "MAXIMUM", x, _negative(b, x)) if _whole(x) else elementwise(b, "ABS", x)


def _with_sign(b: Builder, x: Value, y: Value) -> Value:
    """``y`` where ``x >= 0``, else ``-y``."""
    below = elementwise(b, "LESS", x, np.zeros((), x.dtype))
    return _select(b, below, _negative(b, y), y)


def _erf(b: Builder, x: Value) -> Value:
    """Within 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    a = elementwise(b, "ABS", x)
    slope = elementwise(b, "MUL", a, np.float32(0.3275911))
    t = elementwise(b, "DIV", np.float32(1), elementwise(b, "ADD", slope, np.float32(1)))
    y = elementwise(b, "MUL", t, np.float32(1.061405429))
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        y = elementwise(b, "MUL", elementwise(b, "ADD", y, np.float32(c)), t)
    bell = elementwise(b, "EXP", elementwise(b, "NEG", elementwise(b, "MUL", a, a)))
    tail = elementwise(b, "MUL", y, bell)
    return _with_sign(b, x, elementwise(b, "SUB", np.float32(1), tail))


def _gelu_exact(b: Builder, x: Value) -> Value:
    inside = _erf(b, elementwise(b, "MUL", x, np.float32(math.sqrt(0.5))))
    gate = elementwise(b, "ADD", inside, np.float32(1))
    return elementwise(b, "MUL", elementwise(b, "MUL", x, np.float32(0.5)), gate)


def _hard_sigmoid(b: Builder, x: Value) -> Value:
    y = elementwise(b, "ADD", x, np.float32(3), act="relu6")
    return elementwise(b, "MUL", y, np.float32(1 / 6))


def _hard_swish(b: Builder, x: Value) -> Value:
    if b.activations == 16:  # for which TFLite has no operator
        return elementwise(b, "MUL", x, _hard_sigmoid(b, x))
    return elementwise(b, "HARD_SWISH", x)


def _softplus(b: Builder, x: Value) -> Value:
    small = elementwise(b, "EXP", elementwise(b, "NEG", elementwise(b, "ABS", x)))
    rest = elementwise(b, "LOG", elementwise(b, "ADD", small, np.float32(1)))
    return elementwise(b, "ADD", elementwise(b, "RELU", x), rest)


def _sign(b: Builder, x: Value) -> Value:
    zero = np.zeros((), x.dtype)
    above, below = (cast(b, elementwise(b, k, x, zero), x.dtype) for k in ("GREATER", "LESS"))
    y = elementwise(b, "SUB", above, below)
    if _whole(x):
        return y
    return elementwise(b, "SELECT_V2", elementwise(b, "NOT_EQUAL", x, x), x, y)  # NaN stays


def _power(b: Builder, x: Value, exponent: float) -> Value:
    n = abs(int(exponent))
    y, base = None, x
    while n:
        if n & 1:
            y = base if y is None else elementwise(b, "MUL", y, base)
        n >>= 1
        base = elementwise(b, "MUL", base, base) if n else base
    if y is None:  # to the power of 0
        return cast(b, elementwise(b, "EQUAL", zero_of(b, x), np.zeros((), x.dtype)), x.dtype)
    return elementwise(b, "DIV", np.ones((), x.dtype), y) if exponent < 0 else y


def zero_of(b: Builder, x: Value) -> Value:
    """Zeros in the shape of ``x``, whatever it holds."""
    return cast(b, elementwise(b, "LESS", x, x), x.dtype)


def _cbrt(b: Builder, x: Value) -> Value:
    third = elementwise(b, "MUL", _of("ABS", "LOG")(b, x), np.float32(1 / 3))
    return _with_sign(b, x, elementwise(b, "EXP", third))


def _divided(b: Builder, x: Operand, y: Operand) -> Value:
    """Whole numbers by 0 give -1, as XLA has it; LiteRT would stop."""
    if not _whole(y):
        return elementwise(b, "DIV", x, y)
    safe, nothing = _safe(b, y)
    quotient = elementwise(b, "DIV", x, safe)
    return quotient if nothing is None else _select(b, nothing, np.asarray(-1, np.int32), quotient)


def _safe(b: Builder, y: Operand) -> tuple[Operand, Operand | None]:
    """Whole numbers to divide by, 1 where they are 0, and where that is; None for nowhere."""
    if isinstance(y, np.ndarray):
        return np.where(y == 0, np.int32(1), y), (y == 0 if (y == 0).any() else None)
    nothing = elementwise(b, "EQUAL", y, np.int32(0))
    return elementwise(b, "ADD", y, cast(b, nothing, "int32")), nothing


def _remainder(b: Builder, x: Operand, y: Operand) -> Value:
    """With the sign of ``x``; TFLite's has that of ``y``."""
    if _whole(y):
        whole = elementwise(b, "MUL", elementwise(b, "DIV", x, _safe(b, y)[0]), y)
        return elementwise(b, "SUB", x, whole)
    size = np.abs(y) if isinstance(y, np.ndarray) else _abs(b, y)
    if isinstance(x, np.ndarray):
        rest = elementwise(b, "FLOOR_MOD", np.abs(x), size)
        return _select(b, x < 0, _negative(b, rest), rest)
    return _with_sign(b, x, elementwise(b, "FLOOR_MOD", _abs(b, x), size))


def _atan2(b: Builder, y: Operand, x: Operand) -> Value:
    """TFLite's operator does not broadcast."""
    if y.shape != x.shape:
        zeros = [zero_of(b, a) if isinstance(a, Value) else np.zeros_like(a) for a in (x, y)]
        y, x = (elementwise(b, "ADD", a, z) for a, z in zip((y, x), zeros, strict=True))
    return elementwise(b, "ATAN2", y, x)


def _select(b: Builder, which: Operand, yes: Operand, no: Operand) -> Value:
    """Of whole numbers and bools, which TFLite Micro does not select, by sums and logic."""
    if _is(yes, "bool"):
        taken = elementwise(b, "LOGICAL_AND", which, yes)
        other = elementwise(b, "LOGICAL_AND", _inverted(b, which), no)
        return elementwise(b, "LOGICAL_OR", taken, other)
    if not _is(yes, "int32"):
        return elementwise(b, "SELECT_V2", which, yes, no)
    chosen = cast(b, which, "int32") if isinstance(which, Value) else which.astype(np.int32)
    if isinstance(yes, np.ndarray) and isinstance(no, np.ndarray):
        more: Operand = yes - no
    else:
        more = elementwise(b, "SUB", yes, no)
    return elementwise(b, "ADD", elementwise(b, "MUL", chosen, more), no)


def _inverted(b: Builder, x: Operand) -> Operand:
    return elementwise(b, "LOGICAL_NOT", x) if isinstance(x, Value) else ~x


def _logical(kind: str) -> Emit:
    def emit(b: Builder, *xs: Operand) -> Value:
        if any(_whole(x) for x in xs):
            raise ExportError(
                "TFLite has no bitwise functions of whole numbers that TFLite Micro knows; use "
                "bools, or another target (onnx, stablehlo)"
            )
        return elementwise(b, kind, *xs)

    return emit


FUNCTIONS: dict[str, Emit] = {
    "relu": _relu,
    "gelu": _gelu,
    "gelu_exact": _gelu_exact,
    "tanh": _of("TANH"),
    "sigmoid": _of("LOGISTIC"),
    "silu": lambda b, x: elementwise(b, "MUL", x, elementwise(b, "LOGISTIC", x)),
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": _hard_swish,
    "softplus": _softplus,
    "elu": _of("ELU"),
    "clamp": _clamp,
    "neg": _negative,
    "abs": _abs,
    "sign": _sign,
    "floor": _of("FLOOR"),
    "ceil": _of("CEIL"),
    "round": _of("ROUND"),
    "exp": _of("EXP"),
    "expm1": lambda b, x: elementwise(b, "SUB", elementwise(b, "EXP", x), np.float32(1)),
    "log": _of("LOG"),
    "log1p": lambda b, x: elementwise(b, "LOG", elementwise(b, "ADD", x, np.float32(1))),
    "sqrt": _of("SQRT"),
    "rsqrt": _of("RSQRT"),
    "cbrt": _cbrt,
    "sin": _of("SIN"),
    "cos": _of("COS"),
    "erf": _erf,
    "erfc": lambda b, x: elementwise(b, "SUB", np.float32(1), _erf(b, x)),
    "power": _power,
    "not": _logical("LOGICAL_NOT"),
    "isfinite": lambda b, x: elementwise(b, "LESS", elementwise(b, "ABS", x), np.float32(np.inf)),
    "float32": lambda b, x: cast(b, x, "float32"),
    "int32": lambda b, x: cast(b, x, "int32"),
    "bool": lambda b, x: cast(b, x, "bool"),
    "add": _of("ADD"),
    "sub": _of("SUB"),
    "mul": _of("MUL"),
    "div": _divided,
    "rem": _remainder,
    "pow": _of("POW"),
    "max": _of("MAXIMUM"),
    "min": _of("MINIMUM"),
    "atan2": _atan2,
    "and": _logical("LOGICAL_AND"),
    "or": _logical("LOGICAL_OR"),
    "xor": _logical("NOT_EQUAL"),
    "eq": _of("EQUAL"),
    "ne": _of("NOT_EQUAL"),
    "lt": _of("LESS"),
    "le": _of("LESS_EQUAL"),
    "gt": _of("GREATER"),
    "ge": _of("GREATER_EQUAL"),
    "select": _select,
}
"""Every elementwise function of a graph: a new one is one line here."""

_IN_INTEGERS = {
    "relu", "clamp", "tanh", "sigmoid", "silu", "hard_sigmoid", "hard_swish", "add", "sub", "mul",
    "max", "min", "select",
}  # fmt: skip
IN_INTEGERS = {8: _IN_INTEGERS, 16: _IN_INTEGERS | {"gelu"}}
"""What is computed in integers, by their bits; in 8 bits the others of one operand are tables."""


def looked_up(b: Builder, op: Map, x: Value) -> Value:
    """A function of one operand in 8 bits: a table of what each of the 256 integers gives."""
    x = quantized(b, x)
    assert x.steps is not None

    def f(s: np.ndarray) -> np.ndarray:
        return np.asarray(REFERENCE[op.function].compute(s, *op.numbers), np.float32)

    sample = sampled(f, x)
    assert sample is not None
    steps = steps_of(b, sample)
    codes = np.arange(-128, 128)
    results = np.nan_to_num(f(((codes - x.steps.zero) * x.steps.scale).astype(np.float32)))
    entries = np.clip(np.rint(results / steps.scale) + steps.zero, -128, 127).astype(np.int8)
    table = b.model.tensor(Tensor((256,), "int8", entries, steps.scale, zero=steps.zero))
    whole = cast(b, x._replace(sample=None), "int32")  # the integers themselves
    index = elementwise(b, "ADD", whole, np.int32(128))
    out = value(b, x.shape, sample, steps)
    return apply(b, "GATHER", [table, index.tensor], out, ("GatherOptions", {"Axis": 0}))
