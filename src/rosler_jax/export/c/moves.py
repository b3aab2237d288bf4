"""Operations that only move numbers, as C: of any type, for floats and integers alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rosler_jax.export.c.loops import (
    declared,
    function,
    loops,
    merged,
    nested,
    offset,
    over,
    strides_of,
)
from rosler_jax.export.c.unit import CTYPES, Step, Unit
from rosler_jax.export.c.wiring import copy_step
from rosler_jax.graph.kinds import Concat, Gather, Run, Slice, Take, Transpose, count, elements
from rosler_jax.graph.weight import Shape

_SHORT = 4
"""Numbers that a loop copies; more take memcpy."""
_RUNS = 6
"""Runs along an axis that are written out; more go through a table."""
_LETTERS = "ijklmnopq"


class _Pick(NamedTuple):
    """What the lines of one pick share."""

    unit: Unit
    label: str
    ctype: str
    fill: str


def _step(unit: Unit, label: str, ctype: str, size: int, lines: Sequence[str]) -> Step:
    """A step that calls a function of its own, from x to y."""
    text = function(f"const {ctype} *x, {ctype} *y", *lines)
    name = unit.function(f"rosler_{label}", text)
    return Step(lambda x, y, _: f"{name}({x}, {y});", size * CTYPES[ctype])


def _copied(shape: Shape, strides: Sequence[int], start: str, ctype: str, deep: int) -> list[str]:
    """Lines that copy a block in row-major order to ``y``, which moves on."""
    axes = [axis for axis in merged(shape, [strides]) if axis.size > 1]
    chunk = 1
    if axes and axes[-1].strides[0] == 1 and axes[-1].size > _SHORT:
        chunk = axes.pop().size
    counted = loops(axes, _LETTERS[deep]) if axes else []
    index = offset([name for name, _ in counted], [axis.strides[0] for axis in axes])
    index = start if index == "0" else index if start == "0" else f"{start} + {index}"
    if chunk == 1:
        body = [f"*y++ = x[{index}];"]
    else:
        body = [f"memcpy(y, x + {index}, {chunk * CTYPES[ctype]});", f"y += {chunk};"]
    if not counted:
        return body
    return ["{", *declared(counted), *nested(counted, body), "}"]


def transpose_step(op: Transpose, unit: Unit, label: str, ctype: str) -> Step:
    """Axes in another order; nothing, if only axes of one position move."""
    size = count(op.out_shape)
    strides = [strides_of(op.in_shape)[axis] for axis in op.axes]
    axes = merged(op.out_shape, [strides])
    if len(axes) == 1 and axes[0].strides[0] in (0, 1):
        return copy_step(size * CTYPES[ctype], 0)
    lines = _copied(op.out_shape, strides, "0", ctype, 0)
    return _step(unit, label, ctype, size, [f"    {line}" for line in lines])


def take_step(op: Take, unit: Unit, label: str, ctype: str, fill: str) -> Step:
    """Positions picked along axes.

    Args:
      op: the operation.
      unit: of the file.
      label: for names.
      ctype: of the numbers.
      fill: literal that stands where nothing is picked.
    """
    size = count(op.out_shape)
    index = [
        tuple(run for run in (runs or ((0, 1, n),)) if run[2])
        for runs, n in zip(op.index, op.in_shape, strict=True)
    ]
    start = _contiguous(index, op.in_shape, op.out_shape)
    if start is not None:
        return copy_step(size * CTYPES[ctype], start * CTYPES[ctype])
    pick = _Pick(unit, label, ctype, fill)
    lines = _runs(pick, index, strides_of(op.in_shape), 0, 0, "")
    return _step(unit, label, ctype, size, [f"    {line}" for line in lines])


def _contiguous(index: Sequence[tuple[Run, ...]], shape: Shape, out_shape: Shape) -> int | None:
    """Where the picked numbers begin, if they lie in one piece."""
    if any(len(runs) != 1 or runs[0][0] < 0 for runs in index):
        return None
    firsts = [runs[0] for runs in index]
    strides = [s * step for s, (_, step, _) in zip(strides_of(shape), firsts, strict=True)]
    axes = merged(out_shape, [strides])
    if len(axes) > 1 or axes[0].strides[0] not in (0, 1) or (axes[0].size > 1 > axes[0].strides[0]):
        return None
    return sum(s * a for s, (a, *_) in zip(strides_of(shape), firsts, strict=True))


def _runs(
    pick: _Pick, index: Sequence[tuple[Run, ...]], strides: Sequence[int], start: int, deep: int,
    base: str,
) -> list[str]:  # fmt: skip
    """Lines for every block of runs; what is filled is filled in one piece."""
    cut = next((k for k, runs in enumerate(index) if len(runs) > 1 or runs[0][0] < 0), len(index))
    if cut or not index:
        return _plain(pick, index, strides, start, deep, base, cut)
    inner = math.prod(sum(n for *_, n in runs) for runs in index[1:])
    picked = [run for run in index[0] if run[0] >= 0]
    blocks = math.prod(len(runs) for runs in index[1:])
    if len(index[0]) > _RUNS or (len(picked) > 1 and blocks > 1):
        return _tabled(pick, index, strides, start, deep, base)
    lines: list[str] = []
    for first, step, n in index[0]:
        if first < 0:
            lines += _filled(pick, n * inner, deep)
        else:
            rest = [((first, step, n),), *index[1:]]
            lines += _runs(pick, rest, strides, start, deep, base)
    return lines


def _filled(pick: _Pick, size: int, deep: int) -> list[str]:
    name = _LETTERS[deep]
    body = nested([(name, size)], [f"*y++ = {pick.fill};"])
    return ["{", f"    int {name};", *body, "}"]


def _plain(
    pick: _Pick, index: Sequence[tuple[Run, ...]], strides: Sequence[int], start: int, deep: int,
    base: str, cut: int,
) -> list[str]:  # fmt: skip
    """Loops over axes of one run each, within them the others; if there are none, copies."""
    firsts = [runs[0] for runs in index[:cut]]
    start += sum(s * a for s, (a, *_) in zip(strides, firsts, strict=False))
    steps = [s * step for s, (_, step, _) in zip(strides, firsts, strict=False)]
    shape = tuple(n for *_, n in firsts)
    if cut == len(index):
        where = " + ".join([*([base] if base else []), *([str(start)] if start else [])]) or "0"
        return _copied(shape, steps, where, pick.ctype, deep)
    axes = [axis for axis in merged(shape, [steps]) if axis.size > 1]
    if not axes:
        return _runs(pick, index[cut:], strides[cut:], start, deep, base)
    counted = loops(axes, _LETTERS[deep])
    position = offset([name for name, _ in counted], [axis.strides[0] for axis in axes])
    parts = [part for part in (base, position) if part not in ("", "0")]
    body = _runs(pick, index[cut:], strides[cut:], start, deep + 1, " + ".join(parts))
    return ["{", *declared(counted), *nested(counted, body), "}"]


def _tabled(
    pick: _Pick, index: Sequence[tuple[Run, ...]], strides: Sequence[int], start: int, deep: int,
    base: str,
) -> list[str]:  # fmt: skip
    """A loop over an axis whose positions a table has; -1 for what is filled."""
    picked = np.asarray(elements(index[0], 0))
    offsets = np.where(picked < 0, -1, picked * strides[0])
    ctype = "int16_t" if offsets.max() < 2**15 else "int32_t"
    table = pick.unit.array(ctype, f"{pick.label}_from{deep}", offsets, "tables")
    name = _LETTERS[deep]
    where = " + ".join([*([base] if base else []), f"{table}[{name}]"])
    body = _runs(pick, index[1:], strides[1:], start, deep + 1, where)
    if (picked < 0).any():
        inner = math.prod(sum(n for *_, n in runs) for runs in index[1:])
        filled = [f"    {line}" for line in _filled(pick, inner, deep + 1)]
        body = [
            f"if ({table}[{name}] < 0) {{",
            *filled,
            "} else {",
            *(f"    {s}" for s in body),
            "}",
        ]
    return ["{", f"    int {name};", *nested([(name, len(picked))], body), "}"]


def concat_step(op: Concat, ctype: str) -> Step:
    """Values one behind the other along an axis."""
    outer = math.prod(op.out_shape[: op.axis])
    sizes = [count(shape) // outer * CTYPES[ctype] for shape in op.in_shapes]
    whole = sum(sizes)

    def call(*given: str) -> str:
        *xs, y, _ = given
        lines, start = [], 0
        for x, n in zip(xs, sizes, strict=True):
            to = f"(unsigned char *){y} + {start}" if start else y
            if outer > 1:
                to = f"(unsigned char *){y} + {f'{start} + ' if start else ''}i * {whole}"
                lines.append(f"memcpy({to}, (const unsigned char *){x} + i * {n}, {n});")
            else:
                lines.append(f"memcpy({to}, {x}, {n});")
            start += n
        return over(outer, " ".join(lines), "i")

    return Step(call, count(op.out_shape) * CTYPES[ctype])


def gather_step(op: Gather, unit: Unit, label: str, ctype: str, fill: str) -> Step:
    """Rows of a table; those beyond it are filled."""
    (rows, width), n = op.in_shape, count(op.in_shapes[1])
    body = [
        "const int32_t id = ids[i];",
        f"const int32_t k = id < 0 ? id + {rows} : id;" if op.wrap else "const int32_t k = id;",
        f"if (k >= 0 && k < {rows}) {{",
        f"    memcpy(y, x + k * {width}, {width * CTYPES[ctype]});",
        "} else {",
        f"    for (j = 0; j < {width}; ++j) {{", f"        y[j] = {fill};", "    }",
        "}",
        f"y += {width};",
    ]  # fmt: skip
    text = function(
        f"const {ctype} *x, const int32_t *ids, {ctype} *y",
        "    int i, j;", *nested([("i", n)], body),
    )  # fmt: skip
    name = unit.function(f"rosler_{label}", text)
    return Step(lambda x, ids, y, _: f"{name}({x}, {ids}, {y});", n * width * CTYPES[ctype])


def slice_step(op: Slice, ctype: str) -> Step:
    """Some positions from a start that is a value, kept within the axis."""
    outer, n, inner = op.in_shape
    piece = op.size * inner * CTYPES[ctype]

    def call(x: str, start: str, y: str, _: str) -> str:
        at = f"const int32_t k = *{start};"
        kept = f"const int32_t first = k < 0 ? 0 : k > {n - op.size} ? {n - op.size} : k;"
        one = f"memcpy({y}, {x} + first * {inner}, {piece});"
        if outer > 1:
            one = (
                f"int i; for (i = 0; i < {outer}; ++i) {{ memcpy({y} + i * {op.size * inner}, "
                f"{x} + (i * {n} + first) * {inner}, {piece}); }}"
            )
        return f"{{ {at} {kept} {one} }}"

    return Step(call, outer * piece)
