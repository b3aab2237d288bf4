"""Elementwise functions in ONNX's operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rosler_jax.export._onnx_builder import Builder

_LOGIC = {"and": "And", "or": "Or", "xor": "Xor", "not": "Not"}
_COMPARE = {
    "eq": "Equal",
    "ne": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}
_WHOLE = (
    "relu", "neg", "abs", "sign", "clamp", "power", "add", "sub", "mul", "div", "rem", "max",
    "min", "pow",
)  # fmt: skip


def operand_dtypes(function: str, dtypes: Sequence[str]) -> tuple[str, ...]:
    """The types in which ONNX computes a function of operands of these.

    Example:
      >>> operand_dtypes("tanh", ("int32",)), operand_dtypes("add", ("int32", "bool"))
      (('float32',), ('int32', 'int32'))
    """
    if function in ("float32", "int32", "bool"):
        return tuple(dtypes)
    if function in _LOGIC:
        return ("bool",) * len(dtypes)
    if function == "select":
        return ("bool", *operand_dtypes("max", dtypes[1:]))
    if function in _WHOLE or function in _COMPARE:
        return ("float32" if "float32" in dtypes else "int32",) * len(dtypes)
    return ("float32",) * len(dtypes)


def result_dtype(function: str, computed: Sequence[str]) -> str:
    """The type of the result in ONNX, of operands of these types."""
    if function in ("float32", "int32", "bool"):
        return function
    return "bool" if function in _LOGIC or function in (*_COMPARE, "isfinite") else computed[-1]


def emit(
    b: Builder, function: str, numbers: Sequence[float], dtype: str, *xs: str, safe: bool = False
) -> str:
    """Adds the nodes of a function of tensors of a type; ``safe`` if no divisor is 0 or -1."""
    if function in ("div", "rem") and dtype == "int32" and not safe:
        return _guarded(b, function, *xs)
    if function in _LOGIC or function in _COMPARE:
        y = b.add((_LOGIC | _COMPARE)[function], *xs)
        return b.add("Not", y) if function == "ne" else y
    if function in ("float32", "int32", "bool"):
        return b.cast(xs[0], function)
    kind = FUNCTIONS[function]
    operands = (*xs, *(b.number(value, dtype) for value in numbers))
    return b.add(kind, *operands) if isinstance(kind, str) else kind(b, *operands)


def _guarded(b: Builder, function: str, x: str, y: str) -> str:
    """Whole numbers as XLA has them: x / 0 is -1, x remains; where -1 divides nothing overflows."""
    one, minus_one = b.number(1, "int32"), b.number(-1, "int32")
    zero, minus = b.add("Equal", y, b.number(0, "int32")), b.add("Equal", y, minus_one)
    divisor = b.add("Where", b.add("Or", zero, minus), one, y)
    if function == "rem":
        return b.add("Where", zero, x, b.add("Mod", x, divisor, fmod=1))
    ratio = b.add("Div", x, divisor)
    return b.add("Where", zero, minus_one, b.add("Where", minus, b.add("Neg", ratio), ratio))


def gelu(b: Builder, x: str) -> str:
    """``x sigmoid(2 z)``, ``z = sqrt(2 / pi) (x + 0.044715 x^3)``: the tanh form in fewer nodes."""
    factor = 2.0 * math.sqrt(2.0 / math.pi)
    square = b.add("Mul", b.add("Mul", x, x), b.number(0.044715 * factor))
    inside = b.add("Mul", x, b.add("Add", square, b.number(factor)))
    return b.add("Mul", x, b.add("Sigmoid", inside))


def _gelu_exact(b: Builder, x: str) -> str:
    erf = b.add("Erf", b.add("Div", x, b.number(math.sqrt(2.0))))
    return b.add("Mul", b.add("Mul", x, b.add("Add", erf, b.number(1.0))), b.number(0.5))


def _expm1(b: Builder, x: str) -> str:
    """``(e^x + 1) tanh(x / 2)``: without the difference of two numbers near 1."""
    half = b.add("Tanh", b.add("Mul", x, b.number(0.5)))
    return b.add("Mul", b.add("Add", b.add("Exp", x), b.number(1.0)), half)


def _log1p(b: Builder, x: str) -> str:
    """``2 artanh(x / (2 + x))`` near 0, where ``1 + x`` would round."""
    ratio = b.add("Div", x, b.add("Add", x, b.number(2.0)))
    near = b.add("Mul", b.add("Atanh", ratio), b.number(2.0))
    far = b.add("Log", b.add("Add", x, b.number(1.0)))
    return b.add("Where", b.add("Less", b.add("Abs", x), b.number(0.5)), near, far)


def _cbrt(b: Builder, x: str) -> str:
    root = b.add("Pow", b.add("Abs", x), b.number(1.0 / 3.0))
    return b.add("Mul", b.add("Sign", x), root)


def _atan2(b: Builder, y: str, x: str) -> str:
    zero, pi = b.number(0.0), b.number(math.pi)
    left = b.add("Where", b.add("Less", y, zero), b.number(-math.pi), pi)
    turn = b.add("Where", b.add("Less", x, zero), left, zero)
    angle = b.add("Add", b.add("Atan", b.add("Div", y, x)), turn)
    # 0 / 0 is no number, and the angle there is 0.
    origin = b.add("And", b.add("Equal", x, zero), b.add("Equal", y, zero))
    return b.add("Where", origin, zero, angle)


def _isfinite(b: Builder, x: str) -> str:
    return b.add("Equal", b.add("Sub", x, x), b.number(0.0))


FUNCTIONS: dict[str, str | Callable[..., str]] = {
    "relu": "Relu",
    "gelu": gelu,
    "gelu_exact": _gelu_exact,
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "silu": lambda b, x: b.add("Mul", x, b.add("Sigmoid", x)),
    "hard_sigmoid": lambda b, x: b.add("HardSigmoid", x, alpha=1 / 6, beta=0.5),
    "hard_swish": "HardSwish",
    "softplus": "Softplus",
    "elu": "Elu",
    "clamp": "Clip",
    "neg": "Neg",
    "abs": "Abs",
    "sign": "Sign",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "exp": "Exp",
    "expm1": _expm1,
    "log": "Log",
    "log1p": _log1p,
    "sqrt": "Sqrt",
    "rsqrt": lambda b, x: b.add("Reciprocal", b.add("Sqrt", x)),
    "cbrt": _cbrt,
    "sin": "Sin",
    "cos": "Cos",
    "erf": "Erf",
    "erfc": lambda b, x: b.add("Sub", b.number(1.0), b.add("Erf", x)),
    "power": "Pow",
    "isfinite": _isfinite,
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "rem": lambda b, x, y: b.add("Mod", x, y, fmod=1),
    "pow": "Pow",
    "max": "Max",
    "min": "Min",
    "atan2": _atan2,
    "select": "Where",
}
"""ONNX's operator, or what adds the nodes: a new function is one line here."""
