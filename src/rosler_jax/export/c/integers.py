"""Integer operations as C."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rosler_jax.export.c.layout import pack_rows
from rosler_jax.export.c.sketches import FILL, Call, filled_bytes, project_step
from rosler_jax.export.c.unit import INTEGER, Step, Unit
from rosler_jax.export.c.windows import pad_step, pool_step, window_step
from rosler_jax.export.integer import (
    IntOp,
    Lookup,
    Padded,
    PatchSigns,
    Pooled,
    Product,
    Relu,
    Requant,
    Reshaped,
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
        entries.append(
            f"{{{add if add == '0' else f'{add} + {offset}'}, "
            f"{multiplier}{f' + {offset}' if each else ''}, {int(each)}, {r.shift}, {r.low}}}"
        )
    name = f"{label}_finish"
    unit.data.append(
        f"static const rosler_finish_{kind} {name}[{groups}] = {{{', '.join(entries)}}};"
    )
    return f"{name} + g" if groups > 1 else name


def _dense_kernel(unit: Unit, bits: int, wide: bool) -> str:
    """Adds the product with weights of so many bits; gives its name."""
    kind = f"w{bits}_wide" if wide else f"w{bits}"
    start = "rosler_start_w4(x, whole * 8)" if bits == 4 else "0"
    names = {
        "BITS": f"w{bits}", "KIND": kind, "FINISH": "i64" if wide else "i32",
        "ACC": "int64_t" if wide else "int32_t", "UNIT": str({16: 2, 8: 4, 4: 8}[bits]),
        "START": start,
    }  # fmt: skip
    unit.use("dense", names)
    return f"rosler_dense_{kind}"


def _product(op: Product, unit: Unit, label: str) -> Step:
    # There is no 64-bit sum of nibbles: such sums are rare, and bytes serve.
    bits = 8 if op.wide and op.bits == 4 else op.bits
    m, n = math.prod(op.weight.shape[:-1]), op.weight.shape[-1]
    groups = 1 if op.window is None else op.window.groups
    rows = op.weight.reshape(m, n).T.reshape(groups, n // groups, m)
    words = [pack_rows(group, bits) for group in rows]
    w = unit.array("uint32_t", f"{label}_weights", np.concatenate(words), "weights")
    finish = _finish(unit, label, op.requant, op.bias, wide=op.wide, groups=groups)
    kernel = _dense_kernel(unit, bits, op.wide)
    offset = f" + g * {words[0].size}" if groups > 1 else ""

    def multiply(x: str, y: str, _: str) -> str:
        return f"{kernel}({x}, {m}, {n // groups}, {w}{offset}, {finish}, {y});"

    if op.window is None:
        return Step(lambda x, y, _: multiply(x, y, ""), 2 * n)
    shapes = (op.in_shape, op.out_shape)
    return window_step(unit, INTEGER, label, op.name, shapes, op.window, multiply)


def _signs(op: Signs, unit: Unit, label: str) -> Step:
    # Several vectors one behind the other, as the groups of a convolution, have their own biases.
    groups = op.bias.size // (op.sketch.rows if op.transpose else op.sketch.cols)
    finish = _finish(unit, label, op.requant, op.bias, groups=groups)
    call = Call(unit, INTEGER, label, op.sketch, finish.replace("+ g", f"+ v % {groups}"))
    return project_step(call, op.transpose, op.vectors)


def _patch_signs(op: PatchSigns, unit: Unit, label: str) -> Step:
    finish = _finish(unit, label, op.requant)
    kernel = _dense_kernel(unit, 8, False)
    rows, cols = op.sketch.rows, op.sketch.cols
    begin = FILL[op.sketch.kind](Call(unit, INTEGER, label, op.sketch, finish))
    return window_step(
        unit, INTEGER, label, op.name, (op.in_shape, op.out_shape), op.window,
        lambda x, y, _: f"{kernel}({x}, {rows}, {cols}, w, {finish}, {y});",
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


def _relu(op: Relu, unit: Unit, label: str) -> Step:
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
    mean = op.kind == "mean"
    finish = _finish(unit, label, op.requant) if mean else "0"
    return pool_step(unit, INTEGER, op.name, (op.in_shape, op.out_shape), op.window, mean, finish)


def _padded(op: Padded, unit: Unit, label: str) -> Step:
    shapes = (op.in_shape, op.out_shape)
    return pad_step(unit, INTEGER, label, op.name, shapes, op.widths, op.mode)


EMIT: dict[type[IntOp], Callable[[Any, Unit, str], Step | None]] = {
    Product: _product,
    Signs: _signs,
    PatchSigns: _patch_signs,
    Shifted: _shifted,
    Relu: _relu,
    Lookup: _lookup,
    Pooled: _pooled,
    Padded: _padded,
    Reshaped: lambda op, unit, label: None,
}
"""Each integer operation as a step: a new one is one line here."""


def bytes_step(unit: Unit, count: int) -> Step:
    """Takes inputs of one byte to 16 bits."""
    unit.use("bytes")
    return Step(lambda x, y, _: f"rosler_bytes({x}, {count}, {y});", 2 * count)
