"""Integer operations as C."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rosler_jax.export.c.layout import PER_WORD, pack_rows
from rosler_jax.export.c.sketches import FILL, Call, filled_bytes, project_step
from rosler_jax.export.c.unit import BYTES, CTYPES, INTEGER, Numbers, Step, Unit
from rosler_jax.export.c.windows import is_pointwise, pool_step, window_step
from rosler_jax.export.intops import (
    IntOp,
    Limited,
    Lookup,
    PatchSigns,
    Pooled,
    Product,
    Requant,
    Shifted,
    Signs,
)


def _finish(
    unit: Unit,
    label: str,
    r: Requant,
    bias: np.ndarray | None = None,
    *,
    wide: bool = False,
    groups: int = 1,
) -> str:
    """Adds the end of a product; gives the expression of a pointer to it (of group ``g``)."""
    kind = "i64" if wide else "i32"
    unit.use(f"finish_{kind}")
    each = r.multiplier.ndim > 0
    multiplier = unit.array("int32_t", f"{label}_multiplier", r.multiplier, "scales")
    add = "0"
    if bias is not None and bias.any():
        ctype = "int64_t" if wide else "int32_t"
        add = unit.array(ctype, f"{label}_bias", bias, "biases")
    entries = []
    for g in range(groups):
        size = (bias.size if bias is not None else r.multiplier.size) // groups
        offset = g * size
        bias_of = add if add == "0" else f"{add} + {offset}"
        multiplier_of = multiplier + (f" + {offset}" if each else "")
        entries.append(f"{{{bias_of}, {multiplier_of}, {int(each)}, {r.shift}, {int(r.low == 0)}}}")
    name = f"{label}_finish"
    unit.data.append(
        f"static const rosler_finish_{kind} {name}[{groups}] = {{{', '.join(entries)}}};"
    )
    return f"{name} + g" if groups > 1 else name


FUSED_SHIFT = 33  # from here on half a unit lies in the upper word of the product


class _Kernel(NamedTuple):
    """A product as C.

    Attributes:
      name: of its function.
      sums: C type of the sums, if these go through memory; None if they stay in registers.
      finish: of the function that then finishes them.
      unit: weights in a word.
    """

    name: str
    sums: str | None
    finish: str
    unit: int

    def call(self, x: str, y: str, sizes: tuple[int, int], w: str, end: str, memory: str) -> str:
        """Statements for ``y = finish(W x)``; sums lie in ``memory``."""
        m, n = sizes
        if self.sums is None:
            return f"{self.name}({x}, {m}, {n}, {w}, {end}, {y});"
        sums = f"({self.sums} *)({memory})"
        product = f"{self.name}({x}, {m}, {n}, {w}, ({end})->bias, {sums});"
        return f"{product} {self.finish}({end}, {sums}, {n}, {y});"

    def sum_bytes(self, n: int) -> int:
        """Memory for the sums of n outputs."""
        size = 0 if self.sums is None else CTYPES[self.sums]
        return -(-n * size // 8) * 8


def _kernel(unit: Unit, bits: int, wide: bool, shift: int) -> _Kernel:
    """Adds the product with weights of so many bits."""
    kind = f"w{bits}_wide" if wide else f"w{bits}"
    names = {
        "BITS": f"w{bits}", "KIND": kind, "ACC": "int64_t" if wide else "int32_t",
        "BLOCK": "block_w16" if kind == "w16" else "block", "UNIT": str(PER_WORD[bits]),
        "START": "rosler_start_w4(x, whole * 8)" if bits == 4 else "0",
    }  # fmt: skip
    if not wide and shift >= FUSED_SHIFT:
        unit.use("fused", names)
        return _Kernel(f"rosler_fused_{kind}", None, "", PER_WORD[bits])
    finish = "i64" if wide else "i32"
    unit.use("dense", names)
    unit.use(f"rows_{finish}")
    return _Kernel(f"rosler_dense_{kind}", names["ACC"], f"rosler_rows_{finish}", PER_WORD[bits])


def _product(op: Product, unit: Unit, label: str, numbers: Numbers = INTEGER) -> Step:
    # There is no 64-bit sum of nibbles: such sums are rare, and bytes serve.
    bits = 8 if op.wide and op.bits == 4 else op.bits
    m, n = math.prod(op.weight.shape[:-1]), op.weight.shape[-1]
    groups = 1 if op.window is None else op.window.groups
    kernel = _kernel(unit, bits, op.wide, op.requant.shift)
    rows = op.weight.reshape(m, n).T.reshape(groups, n // groups, m)
    words = [pack_rows(group, bits) for group in rows]
    w = unit.array("uint32_t", f"{label}_weights", np.concatenate(words), "weights")
    finish = _finish(unit, label, op.requant, op.bias, wide=op.wide, groups=groups)
    offset = f" + g * {words[0].size}" if groups > 1 else ""
    scratch = kernel.sum_bytes(n // groups)
    if op.window is None:
        return Step(
            lambda x, y, memory: kernel.call(x, y, (m, n), w, finish, memory), 2 * n, scratch
        )
    return window_step(
        unit, numbers, label, (op.in_shape, op.out_shape), op.window,
        lambda x, y, pixels: kernel.call(
            x, y, (pixels, n // groups), w + offset, finish, "sums"
        ),
        align=kernel.unit, sum_bytes=scratch,
    )  # fmt: skip


def _signs(op: Signs, unit: Unit, label: str) -> Step:
    # Several vectors one behind the other, as the groups of a convolution, have their own biases.
    groups = op.bias.size // (op.sketch.rows if op.transpose else op.sketch.cols)
    finish = _finish(unit, label, op.requant, op.bias, groups=groups)
    call = Call(unit, INTEGER, label, op.sketch, finish.replace("+ g", f"+ v % {groups}"))
    return project_step(call, op.transpose, op.vectors)


def _patch_signs(op: PatchSigns, unit: Unit, label: str) -> Step:
    finish = _finish(unit, label, op.requant)
    kernel = _kernel(unit, 8, False, op.requant.shift)
    cols = op.sketch.cols
    begin = FILL[op.sketch.kind](Call(unit, INTEGER, label, op.sketch, finish))
    return window_step(
        unit, INTEGER, label, (op.in_shape, op.out_shape), op.window,
        lambda x, y, pixels: kernel.call(x, y, (pixels, cols), "w", finish, "sums"),
        align=kernel.unit, sum_bytes=kernel.sum_bytes(cols),
        begin=begin, begin_bytes=filled_bytes(op.sketch, INTEGER),
    )  # fmt: skip


def _shifted(op: Shifted, unit: Unit, label: str) -> Step:
    unit.use("shifted")
    count, channels = math.prod(op.in_shape), op.in_shape[-1]
    finish = _finish(unit, label, op.requant)
    bias = unit.array("int32_t", f"{label}_bias", op.bias, "biases")
    each = channels if op.bias.size > 1 or op.requant.multiplier.ndim else 1
    if each > 1 and op.bias.size == 1:
        bias = unit.array("int32_t", f"{label}_biases", np.full(channels, op.bias), "biases")
    sizes = f"{count}, {each}, {op.left}, {bias}, {finish}"
    return Step(lambda x, y, _: f"rosler_shifted({x}, {sizes}, {y});", 2 * count, in_place=True)


def _relu(op: Limited, unit: Unit, label: str) -> Step:
    unit.use("relu_i16")
    count = math.prod(op.in_shape)
    return Step(lambda x, y, _: f"rosler_relu_i16({x}, {count}, {y});", 2 * count, in_place=True)


def _lookup(op: Lookup, unit: Unit, label: str) -> Step:
    unit.use("lookup")
    count = math.prod(op.in_shape)
    table = unit.array("int16_t", f"{label}_table", op.table, "tables")
    return Step(
        lambda x, y, _: f"rosler_lookup({x}, {count}, {table}, {y});", 2 * count, in_place=True
    )


def _pooled(op: Pooled, unit: Unit, label: str) -> Step:
    mean = op.function == "sum"
    finish = _finish(unit, label, op.requant) if mean else "0"
    shapes = (op.in_shape, op.out_shape)
    return pool_step(unit, INTEGER, label, shapes, op.window.size, mean, finish)


EMIT: dict[type[IntOp], Callable[[Any, Unit, str], Step | None]] = {
    Product: _product,
    Signs: _signs,
    PatchSigns: _patch_signs,
    Shifted: _shifted,
    Limited: _relu,
    Lookup: _lookup,
    Pooled: _pooled,
}
"""Each integer operation as a step: a new one is one line here."""


def reads_bytes(op: IntOp) -> bool:
    """Whether an operation can read inputs of one byte: one that gathers them anyway."""
    return isinstance(op, Product) and op.window is not None and not is_pointwise(op.window)


def first_steps(op: IntOp, unit: Unit, label: str) -> list[Step]:
    """The first operation on inputs of one byte."""
    if isinstance(op, Product) and reads_bytes(op):
        return [_product(op, unit, label, BYTES)]
    unit.use("bytes")
    count = math.prod(op.in_shape)
    step = EMIT[type(op)](op, unit, label)
    taken = Step(lambda x, y, _: f"rosler_bytes({x}, {count}, {y});", 2 * count)
    return [taken] if step is None else [taken, step]
