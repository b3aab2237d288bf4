"""Float operations as C."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import rosler_kernels as rk
from rosler_jax.export.c.sketches import (
    FILL,
    PROJECT,
    Call,
    entry_scale,
    filled_bytes,
    project_step,
)
from rosler_jax.export.c.unit import FLOAT, Step, Unit, float32_literal
from rosler_jax.export.c.windows import pad_step, pool_step, window_step
from rosler_jax.export.graph import (
    Activate,
    Affine,
    Conv,
    Dense,
    Flatten,
    Op,
    Pad,
    PatchProject,
    Pool,
    Project,
)


def _finish(unit: Unit, label: str, bias: Any = None, scale: float = 1.0, groups: int = 1) -> str:
    unit.use("finish_f32")
    add = "0"
    if bias is not None and np.any(bias):
        add = unit.array("float", f"{label}_bias", bias, "biases")
    entries = []
    for g in range(groups):
        offset = "" if add == "0" else f" + {g * (np.size(bias) // groups)}"
        entries.append(f"{{{add}{offset}, {float32_literal(scale)}}}")
    name = f"{label}_finish"
    unit.data.append(f"static const rosler_finish_f32 {name}[{groups}] = {{{', '.join(entries)}}};")
    return f"{name} + g" if groups > 1 else name


def _matrix(unit: Unit, label: str, weight: np.ndarray, groups: int) -> tuple[str, int, int, str]:
    """Adds a weight, group by group; gives its name, sizes, and the offset of group ``g``."""
    m, n = math.prod(weight.shape[:-1]), weight.shape[-1]
    rows = weight.reshape(m, n).T
    name = unit.array("float", f"{label}_weights", rows, "weights")
    return name, m, n // groups, f" + g * {m * n // groups}" if groups > 1 else ""


def _dense(op: Dense, unit: Unit, label: str) -> Step:
    w, m, n, _ = _matrix(unit, label, op.weight.values, 1)
    unit.use("dense_f32")
    finish = _finish(unit, label, op.bias)
    return Step(lambda x, y, _: f"rosler_dense_f32({x}, {m}, {n}, {w}, {finish}, {y});", 4 * n)


def _conv(op: Conv, unit: Unit, label: str) -> Step:
    groups = op.window.groups
    w, _, n, offset = _matrix(unit, label, op.weight.values, groups)
    unit.use("dense_f32")
    finish = _finish(unit, label, op.bias, groups=groups)
    return window_step(
        unit, FLOAT, label, (op.in_shape, op.out_shape), op.window,
        lambda x, y, m: f"rosler_dense_f32({x}, {m}, {n}, {w}{offset}, {finish}, {y});",
    )  # fmt: skip


def _project(op: Project, unit: Unit, label: str) -> Step:
    if op.sketch.kind not in PROJECT:
        return _stored_project(op, unit, label)
    finish = _project_finish(op, unit, label, op.scale * entry_scale(op.sketch))
    call = Call(unit, FLOAT, label, op.sketch, finish)
    return project_step(call, op.transpose, op.vectors)


def _project_finish(op: Project, unit: Unit, label: str, scale: float) -> str:
    """The end of a projection: vectors one behind the other, as groups, have their own biases."""
    outer = op.sketch.rows if op.transpose else op.sketch.cols
    groups = 1 if op.bias is None else op.bias.size // outer
    finish = _finish(unit, label, op.bias, scale, groups)
    return finish.replace("+ g", f"+ v % {groups}")


def _stored_project(op: Project, unit: Unit, label: str) -> Step:
    """A sketch whose entries take more than integers: its matrix is stored."""
    entries = np.asarray(rk.materialize(op.sketch))
    matrix = (entries.T if op.transpose else entries) * np.float32(op.scale)
    w, m, n, _ = _matrix(unit, label, matrix, 1)
    unit.use("dense_f32")
    finish = _project_finish(op, unit, label, 1.0)

    def call(x: str, y: str, _: str) -> str:
        if op.vectors == 1:
            return f"rosler_dense_f32({x}, {m}, {n}, {w}, {finish}, {y});"
        one = f"rosler_dense_f32(({x}) + v * {m}, {m}, {n}, {w}, {finish}, ({y}) + v * {n});"
        return f"{{ int v; for (v = 0; v < {op.vectors}; ++v) {{ {one} }} }}"

    return Step(call, 4 * math.prod(op.out_shape))


def _patch_project(op: PatchProject, unit: Unit, label: str) -> Step:
    cols = op.sketch.cols
    unit.use("dense_f32")
    shapes = (op.in_shape, op.out_shape)
    if op.sketch.kind not in FILL:
        matrix = np.asarray(rk.materialize(op.sketch)) * np.float32(op.scale)
        w, *_ = _matrix(unit, label, matrix, 1)
        finish = _finish(unit, label)
        return window_step(
            unit, FLOAT, label, shapes, op.window,
            lambda x, y, rows: f"rosler_dense_f32({x}, {rows}, {cols}, {w}, {finish}, {y});",
        )  # fmt: skip
    finish = _finish(unit, label, scale=op.scale * entry_scale(op.sketch))
    return window_step(
        unit, FLOAT, label, shapes, op.window,
        lambda x, y, rows: f"rosler_dense_f32({x}, {rows}, {cols}, w, {finish}, {y});",
        begin=FILL[op.sketch.kind](Call(unit, FLOAT, label, op.sketch, finish)),
        begin_bytes=filled_bytes(op.sketch, FLOAT),
    )  # fmt: skip


def _affine(op: Affine, unit: Unit, label: str) -> Step:
    unit.use("affine_f32")
    count = math.prod(op.in_shape)
    channels = max(op.center.size, op.factor.size)
    center, factor = (
        unit.array("float", f"{label}_{name}", np.broadcast_to(v, (channels,)), "scales")
        for name, v in (("center", op.center), ("factor", op.factor))
    )
    sizes = f"{count}, {channels}, {center}, {factor}"
    return Step(lambda x, y, _: f"rosler_affine_f32({x}, {sizes}, {y});", 4 * count, in_place=True)


def _activate(op: Activate, unit: Unit, label: str) -> Step:
    unit.use(f"{op.kind}_f32")
    count = math.prod(op.in_shape)
    name = f"rosler_{op.kind}_f32"
    return Step(lambda x, y, _: f"{name}({x}, {count}, {y});", 4 * count, in_place=True)


def _pool(op: Pool, unit: Unit, label: str) -> Step:
    count = math.prod(op.window)
    finish = _finish(unit, label, scale=1.0 / count) if op.kind == "mean" else "0"
    shapes = (op.in_shape, op.out_shape)
    return pool_step(unit, FLOAT, label, shapes, op.window, op.kind == "mean", finish)


def _pad(op: Pad, unit: Unit, label: str) -> Step:
    shapes = (op.in_shape, op.out_shape)
    return pad_step(unit, FLOAT, label, shapes, op.widths, op.mode)


EMIT: dict[type[Op], Callable[[Any, Unit, str], Step | None]] = {
    Dense: _dense,
    Conv: _conv,
    Project: _project,
    PatchProject: _patch_project,
    Affine: _affine,
    Activate: _activate,
    Pool: _pool,
    Pad: _pad,
    Flatten: lambda op, unit, label: None,
}
"""Each operation as a step in float: a new one is one line here."""
