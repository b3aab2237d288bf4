"""Integer operations that are loops over numbers, as C that is written for their sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rosler_jax.export.c.loops import (
    declared,
    dense_strides,
    function,
    loops,
    merged,
    nested,
    offset,
    strides_of,
)
from rosler_jax.export.c.maps import WHOLE, use_kernels
from rosler_jax.export.c.unit import CTYPE, CTYPES, Step, Unit
from rosler_jax.export.intops import (
    LIMITS,
    Accumulated,
    Chosen,
    Combined,
    IntOp,
    Joined,
    Limited,
    Pooled,
    Products,
    Reduced,
    Requant,
    Shifted,
    Times,
    Truncated,
    Whole,
)
from rosler_jax.graph.kinds import count


def _number(value: int) -> str:
    """An integer as C; of 64 bits where 32 do not hold it."""
    if value == -(2**31):
        return "(-2147483647 - 1)"
    return str(value) if -(2**31) < value < 2**31 else f"INT64_C({value})"


def _plus(text: str, value: int) -> str:
    """A sum with a constant."""
    return text if value == 0 else f"{text} {'-' if value < 0 else '+'} {_number(abs(value))}"


def _limit(unit: Unit, text: str, low: int, high: int) -> str:
    unit.use("limit")
    return f"rosler_limit({text}, {_number(low)}, {_number(high)})"


def _requant(unit: Unit, text: str, r: Requant, m: str | None = None) -> str:
    """A sum as a value."""
    unit.use("requant")
    m = m or _number(int(r.multiplier))
    return _limit(unit, f"rosler_requant({text}, {m}, {r.shift}, {r.zero})", r.low, r.high)


def _size(op: IntOp) -> int:
    return count(op.out_shape) * CTYPES[CTYPE[op.dtypes[0]]]


def _step(op: IntOp, unit: Unit, label: str, lines: Sequence[str], in_place: bool = False) -> Step:
    """A step that calls a function of its own."""
    names = ["x"] if len(op.inputs) == 1 else [f"x{k}" for k in range(len(op.inputs))]
    given = [f"const {CTYPE[d]} *{x}" for d, x in zip(op.in_dtypes, names, strict=True)]
    text = function(", ".join([*given, f"{CTYPE[op.dtypes[0]]} *y"]), *lines)
    use_kernels(unit, text)
    name = unit.function(f"rosler_{label}", text)
    return Step(lambda *parts: f"{name}({', '.join(parts[:-1])});", _size(op), in_place=in_place)


def _mapped(op: IntOp, unit: Unit, label: str, text: Callable[..., str]) -> Step:
    """An elementwise step: ``text`` is C of the result, given the operands."""
    shape = op.out_shape
    axes = merged(shape, [dense_strides(s, shape) for s in op.in_shapes])
    counted = loops(axes)
    names = [name for name, _ in counted]
    single = len(op.inputs) == 1
    values, lines = [], []
    for k in range(len(op.inputs)):
        index = offset(names, [axis.strides[k] for axis in axes])
        values.append(f"v{k}")
        lines.append(f"const int32_t v{k} = {'x' if single else f'x{k}'}[{index}];")
    target = "y[i]" if len(axes) == 1 else "*y++"
    made = CTYPE[op.dtypes[0]]
    cast = "" if made == "int32_t" else f"({made})"
    body = [*lines, f"{target} = {cast}({text(*values)});"]
    same = all(
        d == op.dtypes[0] for d, s in zip(op.in_dtypes, op.in_shapes, strict=True)
        if count(s) == count(shape)
    )  # fmt: skip
    return _step(op, unit, label, [*declared(counted), *nested(counted, body)], in_place=same)


def limited_step(op: Limited, unit: Unit, label: str) -> Step:
    """Between limits."""
    return _mapped(op, unit, label, lambda x: _limit(unit, x, op.low, op.high))


def shifted_step(op: Shifted, unit: Unit, label: str) -> Step:
    """At another scale; only of another type where the numbers stay."""
    r, size = op.requant, count(op.in_shape)
    if r.multiplier.ndim == 0 and int(r.multiplier) << op.left == 1 << r.shift and r.zero == 0:
        zero = -int(op.bias.ravel()[0]) >> op.left
        small = op.in_dtypes[0] in ("uint8", "int8", "bool") and op.dtypes[0] == "int16"
        if small and op.bias.size == 1 and zero << op.left == -int(op.bias.ravel()[0]):
            names = {"S": op.in_dtypes[0], "X": CTYPE[op.in_dtypes[0]]}
            unit.use("widen", names)
            call = f"{size}, {zero}"
            return Step(lambda x, y, _: f"rosler_widen_{names['S']}({x}, {call}, {y});", 2 * size)
    if op.bias.size == 1 and op.requant.multiplier.ndim == 0:
        bias = int(op.bias.ravel()[0])
        factor = 1 << op.left
        return _mapped(
            op, unit, label,
            lambda x: _requant(unit, _plus(f"{x} * {factor}" if op.left else x, bias), op.requant),
        )  # fmt: skip
    channels = op.in_shape[-1]
    tables = [
        unit.array("int32_t", f"{label}_{name}", np.broadcast_to(v, (channels,)), purpose)
        for name, v, purpose in (
            ("bias", op.bias, "biases"), ("multiplier", op.requant.multiplier, "scales")
        )
    ]  # fmt: skip
    counted = [("i", count(op.in_shape) // channels), ("j", channels)]
    text = _requant(unit, f"*x++ * {1 << op.left} + {tables[0]}[j]", op.requant, f"{tables[1]}[j]")
    lines = nested(counted, [f"*y++ = ({CTYPE[op.dtypes[0]]}){text};"])
    return _step(op, unit, label, [*declared(counted), *lines], in_place=op.in_dtypes == op.dtypes)


def _rounded(unit: Unit, text: str, op: Combined | Chosen) -> str:
    return _limit(unit, f"({_plus(text, 1 << (op.shift - 1))}) >> {op.shift}", op.low, op.high)


def _scaled(op: Combined | Chosen, x: str, y: str) -> list[str]:
    pairs = zip((x, y), op.multipliers, op.offsets, strict=True)
    return [_plus(v if m == 1 else f"{v} * {m}", p) for v, m, p in pairs]


def combined_step(op: Combined, unit: Unit, label: str) -> Step:
    """Two values at one scale, added or compared."""

    def text(x: str, y: str) -> str:
        a, b = _scaled(op, x, y)
        if op.function == "add":
            b = f"- {b[1:]}" if b.startswith("-") else f"+ {b}"
            return _rounded(unit, f"{a} {b}", op)
        both = WHOLE[op.function].format(f"({a})", f"({b})")
        return both if op.dtypes[0] == "bool" else _rounded(unit, f"({both})", op)

    return _mapped(op, unit, label, text)


def chosen_step(op: Chosen, unit: Unit, label: str) -> Step:
    """One of two values, at one scale."""

    def text(c: str, x: str, y: str) -> str:
        a, b = _scaled(op, x, y)
        return _rounded(unit, f"({c} ? {a} : {b})", op)

    return _mapped(op, unit, label, text)


def times_step(op: Times, unit: Unit, label: str) -> Step:
    """A product of two values."""

    def text(x: str, y: str) -> str:
        a, b = (f"({_plus(v, -z)})" for v, z in zip((x, y), op.zeros, strict=True))
        return _requant(unit, f"{a} * {b}", op.requant)

    return _mapped(op, unit, label, text)


def whole_step(op: Whole, unit: Unit, label: str) -> Step:
    """Whole numbers and truth values."""
    numbers = {f"n{k}": _number(int(v)) for k, v in enumerate(op.numbers)}
    return _mapped(op, unit, label, lambda *xs: WHOLE[op.function].format(*xs, **numbers))


def truncated_step(op: Truncated, unit: Unit, label: str) -> Step:
    """Real numbers as whole ones, towards 0."""

    def text(x: str) -> str:
        v = f"({_plus(x, -op.zero)})"
        size = f"({v} < 0 ? -{v} : {v})"
        whole = f"(int32_t)(((int64_t){size} * {op.multiplier}) >> {op.shift})"
        return f"{v} < 0 ? -{whole} : {whole}"

    return _mapped(op, unit, label, text)


def _inside(counted: Sequence[tuple[str, int]], body: Sequence[str]) -> list[str]:
    return [line[4:] for line in nested(counted, body)]


def _running(function_name: str, dtype: str, wraps: bool) -> tuple[str, str]:
    """Where a running function starts, and how it goes on with a number."""
    low, high = LIMITS[dtype]
    more = "(int32_t)((uint32_t){0} + (uint32_t){1})" if wraps else "{0} + {1}"
    return {
        "sum": ("0", more),
        "max": (_number(low), "{1} > {0} ? {1} : {0}"),
        "min": (_number(high), "{1} < {0} ? {1} : {0}"),
    }[function_name]


def reduce_step(op: Reduced, unit: Unit, label: str) -> Step:
    """A function over some axes, for every position on the others."""
    strides, made = strides_of(op.in_shape), CTYPE[op.dtypes[0]]
    kept = [k for k in range(len(op.in_shape)) if k not in op.axes]
    outer, inner = (
        merged(tuple(op.in_shape[k] for k in axes), [[strides[k] for k in axes]])
        for axes in (kept, op.axes)
    )
    counted, within = loops(outer), loops(inner, "j")
    names = [name for name, _ in (*counted, *within)]
    value = f"x[{offset(names, [axis.strides[0] for axis in (*outer, *inner)])}]"
    if op.function.startswith("arg"):
        start = f"x[{offset(names[: len(outer)], [axis.strides[0] for axis in outer])}]"
        sign = ">" if op.function == "argmax" else "<"
        going = [f"if ({value} {sign} s) {{", f"    s = {value};", "    *y = j;", "}"]
        body = [f"int32_t s = {start};", "*y = 0;", *_inside(within, going), "++y;"]
    else:
        wraps = op.requant is None and op.function == "sum"
        start, text = _running(op.function, op.in_dtypes[0], wraps)
        going = [f"s = {text.format('s', value)};"]
        total = math.prod(op.in_shape[k] for k in op.axes) * op.zero
        end = "s" if op.requant is None else _requant(unit, _plus("s", -total), op.requant)
        body = [f"int32_t s = {start};", *_inside(within, going), f"*y++ = ({made})({end});"]
    lines = [*declared([*counted, *within]), *nested(counted, body)]
    return _step(op, unit, label, lines)


def pool_step(op: Pooled, unit: Unit, label: str) -> Step:
    """The max or the sum under a window of any kind, channel by channel."""
    *sides, channels = op.in_shape
    start, text = _running(op.function, op.in_dtypes[0], False)
    window, source, outs = op.window, "0", op.out_shape[:-1]
    taps: list[list[str]] = []
    for k, n in enumerate(sides):
        low, gap = window.padding[k][0], window.input_dilation[k]
        where = offset([f"i{k}", f"k{k}"], [window.strides[k], window.dilation[k]])
        taps.append(
            [
                f"const int p{k} = {_plus(where, -low)};",
                f"if (p{k} < 0 || p{k} >= {(n - 1) * gap + 1}"
                f"{f' || p{k} % {gap}' if gap > 1 else ''}) {{",
                "    continue;",
                "}",
            ]
        )
        at = f"p{k} / {gap}" if gap > 1 else f"p{k}"
        source = at if source == "0" else f"({source}) * {n} + {at}"
    value = f"x[({source}) * {channels} + c]"
    body = [f"s = {text.format('s', _plus(value, -op.zero) if op.requant else value)};"]
    for k in reversed(range(len(sides))):
        body = _inside([(f"k{k}", window.size[k])], [*taps[k], *body])
    end = "s" if op.requant is None else _requant(unit, "s", op.requant)
    body = [f"int32_t s = {start};", *body, f"*y++ = ({CTYPE[op.dtypes[0]]}){end};"]
    outer = [*((f"i{k}", n) for k, n in enumerate(outs)), ("c", channels)]
    variables = [*outer, *((f"k{k}", n) for k, n in enumerate(window.size))]
    return _step(op, unit, label, [*declared(variables), *nested(outer, body)])


def cumulative_step(op: Accumulated, unit: Unit, label: str) -> Step:
    """A running function along the middle axis."""
    outer, n, inner = op.in_shape
    wraps = op.requant is None and op.function == "sum"
    start, text = _running(op.function, op.in_dtypes[0], wraps)
    position = f"({n - 1} - j)" if op.reverse else "j"
    value = _plus("x[k]", -op.zero) if op.requant else "x[k]"
    end = "s" if op.requant is None else _requant(unit, "s", op.requant)
    going = [
        f"const int k = (i * {n} + {position}) * {inner} + c;",
        f"s = {text.format('s', f'({value})')};",
        f"y[k] = ({CTYPE[op.dtypes[0]]}){end};",
    ]
    body = [f"int32_t s = {start};", *_inside([("j", n)], going)]
    counted = [("i", outer), ("c", inner)]
    lines = [*declared([*counted, ("j", n)]), *nested(counted, body)]
    return _step(op, unit, label, lines, in_place=op.in_dtypes == op.dtypes)


def join_step(op: Joined, unit: Unit, label: str) -> Step:
    """Values one behind the other along an axis, each brought to the output's scale."""
    outer = math.prod(op.out_shape[: op.axis])
    body = []
    for k, (shape, zero, r) in enumerate(zip(op.in_shapes, op.zeros, op.requants, strict=True)):
        value = f"*x{k}++"
        text = value if r is None else _requant(unit, _plus(value, -zero), r)
        body += _inside([("j", count(shape) // outer)], [f"*y++ = ({CTYPE[op.dtypes[0]]}){text};"])
    counted = [("i", outer)]
    return _step(op, unit, label, [*declared([*counted, ("j", 0)]), *nested(counted, body)])


def products_step(op: Products, unit: Unit, label: str) -> Step:
    """Matrices times matrices, with sums of 64 bits."""
    (b, m, k), n = op.in_shape, op.out_shape[-1]
    other = f"x1[(b * {n} + j) * {k} + t]" if op.transpose else f"x1[(b * {k} + t) * {n} + j]"
    values = [f"x0[(b * {m} + i) * {k} + t]", other]
    a, c = (f"({_plus(v, -z)})" for v, z in zip(values, op.zeros, strict=True))
    body = [
        "int64_t s = 0;",
        *_inside([("t", k)], [f"s += {a} * {c};"]),
        f"*y++ = ({CTYPE[op.dtypes[0]]}){_requant(unit, 's', op.requant)};",
    ]
    counted = [("b", b), ("i", m), ("j", n)]
    return _step(op, unit, label, [*declared([*counted, ("t", k)]), *nested(counted, body)])


Emit = Callable[[Any, Unit, str], Step]
