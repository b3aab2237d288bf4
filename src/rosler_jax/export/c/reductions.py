"""Sums, largest ones and the like over axes, windows and beginnings, as C."""

from __future__ import annotations

import math

from rosler_jax.export._errors import ExportError
from rosler_jax.export.c.loops import (
    declared,
    function,
    inside,
    loops,
    merged,
    nested,
    offset,
    strides_of,
)
from rosler_jax.export.c.maps import use_kernels
from rosler_jax.export.c.unit import CTYPE, CTYPES, Step, Unit, float32_literal
from rosler_jax.graph.kinds import Cumulative, Pool, Reduce, count

_WRAP = "(int32_t)((uint32_t){0} %s (uint32_t){1})"
_FLOAT = {
    "sum": ("0.0f", "{0} + {1}"),
    "prod": ("1.0f", "{0} * {1}"),
    "max": ("-INFINITY", "rosler_larger_f32({0}, {1})"),
    "min": ("INFINITY", "rosler_smaller_f32({0}, {1})"),
}
_WHOLE = {
    "sum": ("0", _WRAP % "+"),
    "prod": ("1", _WRAP % "*"),
    "max": ("(-2147483647 - 1)", "{0} < {1} ? {1} : {0}"),
    "min": ("2147483647", "{1} < {0} ? {1} : {0}"),
}
_TRUTH = {"all": ("1", "(uint8_t)({0} && {1})"), "any": ("0", "(uint8_t)({0} || {1})")}
_TRUTH |= {"min": _TRUTH["all"], "max": _TRUTH["any"]}
"""Of a function the start, and how a number comes to what was before; NaN stays."""


def combine(name: str, function_name: str, ctype: str) -> tuple[str, str]:
    """The start of a running function, and the expression that goes on."""
    table = {"float": _FLOAT, "int32_t": _WHOLE, "uint8_t": _TRUTH}[ctype]
    if function_name not in table:
        raise ExportError(f"{name}: {function_name} of {ctype} has no C code")
    return table[function_name]


def reduce_step(op: Reduce, unit: Unit, label: str, ctype: str) -> Step:
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
        sign = ("<=", ">") if op.function == "argmax" else (">=", "<")
        better = f"!(v {sign[0]} s) && s == s" if ctype == "float" else f"v {sign[1]} s"
        going = [f"const {ctype} v = {value};", f"if ({better}) {{", "    s = v;", "    y[0] = j;"]
        body = [f"{ctype} s = {start};", "y[0] = 0;", *inside(within, [*going, "}"]), "++y;"]
    else:
        start, text = combine(op.name, op.function, "uint8_t" if made == "uint8_t" else ctype)
        end = "" if op.scale == 1.0 else f" * {float32_literal(op.scale)}"
        going = [f"s = {text.format('s', value)};"]
        body = [f"{made} s = {start};", *inside(within, going), f"*y++ = s{end};"]
    signature = f"const {ctype} *x, {made} *y"
    text = function(signature, *declared([*counted, *within]), *nested(counted, body))
    return _step(unit, label, text, count(op.out_shape) * CTYPES[made])


def _step(unit: Unit, label: str, text: str, size: int, in_place: bool = False) -> Step:
    """A step that calls a function of its own, from x to y."""
    use_kernels(unit, text)
    name = unit.function(f"rosler_{label}", text)
    return Step(lambda x, y, _: f"{name}({x}, {y});", size, in_place=in_place)


def cumulative_step(op: Cumulative, unit: Unit, label: str, ctype: str) -> Step:
    """A running function along the middle axis; it may overwrite what it reads."""
    outer, n, inner = op.in_shape
    _, text = combine(op.name, op.function, ctype)
    back = f"k {'+' if op.reverse else '-'} {inner}"
    position = f"({n - 1} - j)" if op.reverse else "j"
    body = [
        f"const int k = (i * {n} + {position}) * {inner} + c;",
        f"y[k] = j == 0 ? x[k] : {text.format(f'y[{back}]', 'x[k]')};",
    ]
    counted = [("i", outer), ("j", n), ("c", inner)]
    signature = f"const {ctype} *x, {ctype} *y"
    lines = function(signature, *declared(counted), *nested(counted, body))
    return _step(unit, label, lines, count(op.out_shape) * CTYPES[ctype], in_place=True)


def pool_step(op: Pool, unit: Unit, label: str, ctype: str) -> Step:
    """The max or the sum under a window of any kind: channels side by side."""
    *sides, channels = op.in_shape
    start, text = combine(op.name, op.function, ctype)
    window, source, outs = op.window, "0", op.out_shape[:-1]
    taps: list[list[str]] = []
    for k, n in enumerate(sides):
        low, gap, dilation = window.padding[k][0], window.input_dilation[k], window.dilation[k]
        last = (outs[k] - 1) * window.strides[k] - low + (window.size[k] - 1) * dilation
        where = offset([f"i{k}", f"k{k}"], [window.strides[k], dilation])
        lines = [f"const int p{k} = {where}{f' - {low}' if low else ''};"]
        tests = [f"p{k} < 0"] if low else []
        tests += [f"p{k} >= {(n - 1) * gap + 1}"] if last > (n - 1) * gap else []
        tests += [f"p{k} % {gap}"] if gap > 1 else []
        if tests:
            lines += [f"if ({' || '.join(tests)}) {{", "    continue;", "}"]
        taps.append(lines)
        at = f"p{k} / {gap}" if gap > 1 else f"p{k}"
        source = at if source == "0" else f"({source}) * {n} + {at}"
    each = [("c", channels)]
    body = [
        f"const {ctype} *v = x + ({source}) * {channels};",
        *inside(each, [f"y[c] = {text.format('y[c]', 'v[c]')};"]),
    ]
    for k in reversed(range(len(sides))):
        body = inside([(f"k{k}", window.size[k])], [*taps[k], *body])
    body = [*inside(each, [f"y[c] = {start};"]), *body]
    if op.scale != 1.0:
        body += inside(each, [f"y[c] *= {float32_literal(op.scale)};"])
    outer = [(f"i{k}", n) for k, n in enumerate(outs)]
    counted = [*outer, *((f"k{k}", n) for k, n in enumerate(window.size)), *each]
    signature = f"const {ctype} *x, {ctype} *y"
    lines = nested(outer, [*body, f"y += {channels};"])
    whole = function(signature, *declared(counted), *lines)
    return _step(unit, label, whole, math.prod(op.out_shape) * CTYPES[ctype])
