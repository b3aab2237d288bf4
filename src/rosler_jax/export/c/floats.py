"""Float operations as C."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import rosler_kernels as rk
from rosler_jax.export.c import gradients, moves, reductions
from rosler_jax.export.c.coded import (
    FLOATS,
    decoded,
    float_matrix,
    formed,
    formed_step,
    vectors_of,
)
from rosler_jax.export.c.loops import over, row
from rosler_jax.export.c.sketches import (
    FILL,
    PROJECT,
    Call,
    entry_scale,
    filled_bytes,
    project_step,
)
from rosler_jax.export.c.tuned import tuned
from rosler_jax.export.c.unit import FLOAT, Step, Unit, float32_literal, literal
from rosler_jax.export.c.windows import (
    is_depthwise,
    is_disjoint,
    is_pointwise,
    pool_step,
    window_sizes,
    window_step,
)
from rosler_jax.graph.kinds import (
    Affine,
    Concat,
    Conv,
    Cumulative,
    Dense,
    Gather,
    MatMul,
    Norm,
    Op,
    PatchProject,
    Pool,
    Project,
    Reduce,
    Slice,
    Softmax,
    Take,
    Transpose,
    count,
)
from rosler_jax.graph.weight import Weight


def _finish(
    unit: Unit, label: str, weight: Weight | None = None, scale: float = 1.0, groups: int = 1,
    group: str = "g",
) -> str:  # fmt: skip
    """The end of a sum: of several groups that of the one whose number ``group`` says."""
    unit.use("finish_f32")
    add, bias = "0", None if weight is None else weight.values
    if bias is not None and np.any(bias):
        add = unit.array("float", f"{label}_bias", bias, "biases")
    entries = []
    for g in range(groups):
        offset = "" if add == "0" else f" + {g * (0 if bias is None else bias.size // groups)}"
        entries.append(f"{{{add}{offset}, {float32_literal(scale)}}}")
    name = f"{label}_finish"
    unit.data.append(f"static const rosler_finish_f32 {name}[{groups}] = {{{', '.join(entries)}}};")
    return f"{name} + {group}" if groups > 1 else name


def _matrix(unit: Unit, label: str, weight: np.ndarray, groups: int) -> tuple[str, int, int, str]:
    """Adds a weight, group by group; gives its name, sizes, and the offset of group ``g``."""
    m, n = math.prod(weight.shape[:-1]), weight.shape[-1]
    rows = weight.reshape(m, n).T
    name = unit.array("float", f"{label}_weights", rows, "weights")
    return name, m, n // groups, f" + g * {m * n // groups}" if groups > 1 else ""


def _weights(unit: Unit, label: str, weight: Weight, groups: int) -> tuple[str, int, int, str]:
    """The same for a stored weight, which may be decoded at the start."""
    name = tuned(unit, label, weight)
    if name is not None:
        m = math.prod(weight.values.shape[:-1])
        return name, m, weight.values.shape[-1], ""
    matrix = float_matrix(weight) if groups == 1 else None
    name = None if matrix is None else decoded(unit, label, matrix, "f32")
    if matrix is None or name is None:
        return _matrix(unit, label, weight.values, groups)
    return name, *matrix.values.shape, ""


_MANY = 2**15
_VERY_MANY = 2**19
"""Multiplications from which two rows at a time are worth the code; and memory to gather two."""


def _product(unit: Unit, rows: int, m: int, n: int, w: str, finish: str) -> Step:
    """A product with every row of the input."""
    name = "dense_rows_f32" if rows > 1 and rows * m * n >= _MANY else "dense_f32"
    unit.use(name)

    def call(x: str, y: str, _: str) -> str:
        if name == "dense_rows_f32":
            return f"rosler_{name}({x}, {rows}, {m}, {n}, {w}, {finish}, {y});"
        if rows == 1:
            return f"rosler_{name}({x}, {m}, {n}, {w}, {finish}, {y});"
        one = f"rosler_{name}({x} + v * {m}, {m}, {n}, {w}, {finish}, {y} + v * {n});"
        return over(rows, one)

    return Step(call, 4 * rows * n)


def _dense(op: Dense, unit: Unit, label: str, ctypes: Sequence[str]) -> Step:
    form = _formed(op, unit, label)
    if form is not None:
        return form
    w, m, n, _ = _weights(unit, label, op.weight, 1)
    return _product(unit, op.in_shape[0], m, n, w, _finish(unit, label, op.bias))


def _formed(op: Dense | Conv, unit: Unit, label: str) -> Step | None:
    """A product that reads weights as they lie in flash, if they are not packed."""
    form = formed(
        unit, label, float_matrix(op.weight), FLOATS, lambda: _finish(unit, label, op.bias),
        vectors_of(op),
    )  # fmt: skip
    return form and formed_step(form, unit, label, op, FLOAT, 4)


def _matmul(op: MatMul, unit: Unit, label: str, ctypes: Sequence[str]) -> Step:
    (b, m, k), n = op.in_shape, op.out_shape[-1]
    name = "matmul_transposed_f32" if op.transpose else "matmul_f32"
    unit.use(name)

    def call(x: str, w: str, y: str, _: str) -> str:
        x, w, y = row(x, b, m * k), row(w, b, k * n), row(y, b, m * n)
        return over(b, f"rosler_{name}({x}, {m}, {k}, {n}, {w}, {y});")

    return Step(call, 4 * count(op.out_shape))


def _conv(op: Conv, unit: Unit, label: str, ctypes: Sequence[str]) -> Step:
    groups = op.window.groups
    if is_depthwise(op.window, op.in_shape, op.out_shape):
        return _depthwise(op, unit, label, _finish(unit, label, op.bias))
    form = _formed(op, unit, label) if groups == 1 else None
    if form is not None:
        return form
    finish = _finish(unit, label, op.bias, groups=groups)
    w, inner, n, offset = _weights(unit, label, op.weight, groups)
    if groups == 1 and is_pointwise(op.window):
        return _product(unit, math.prod(op.out_shape[:-1]), inner, n, w, finish)
    pairs = groups == 1 and math.prod(op.out_shape) * inner >= _VERY_MANY
    name, rows = ("dense_rows_f32", "1 + j % 2, ") if pairs else ("dense_f32", "")
    unit.use(name)
    return window_step(
        unit, FLOAT, label, (op.in_shape, op.out_shape), op.window,
        lambda x, y, m: f"rosler_{name}({x}, {rows}{m}, {n}, {w}{offset}, {finish}, {y});",
        pairs=pairs,
    )  # fmt: skip


def _depthwise(op: Conv, unit: Unit, label: str, finish: str) -> Step:
    unit.use("depthwise_f32")
    w = unit.array("float", f"{label}_weights", op.weight.values, "weights")
    sizes = ", ".join(str(n) for n in window_sizes((op.in_shape, op.out_shape), op.window))
    call = f"{sizes}, {w}, {finish}"
    return Step(lambda x, y, _: f"rosler_depthwise_f32({x}, {call}, {y});", 4 * count(op.out_shape))


def _project(op: Project, unit: Unit, label: str, ctypes: Sequence[str]) -> Step:
    if op.sketch.kind not in PROJECT:
        return _stored_project(op, unit, label)
    finish = _project_finish(op, unit, label, op.scale * entry_scale(op.sketch))
    call = Call(unit, FLOAT, label, op.sketch, finish)
    return project_step(call, op.transpose, op.vectors)


def _project_finish(op: Project, unit: Unit, label: str, scale: float) -> str:
    """The end of a projection: vectors one behind the other, as groups, have their own biases."""
    outer = op.sketch.rows if op.transpose else op.sketch.cols
    groups = 1 if op.bias is None else op.bias.values.size // outer
    return _finish(unit, label, op.bias, scale, groups, f"v % {groups}")


def _stored_project(op: Project, unit: Unit, label: str) -> Step:
    """A sketch whose entries take more than integers: its matrix is stored."""
    entries = np.asarray(rk.materialize(op.sketch))
    matrix = (entries.T if op.transpose else entries) * np.float32(op.scale)
    w, m, n, _ = _matrix(unit, label, matrix, 1)
    finish = _project_finish(op, unit, label, 1.0)
    if op.bias is None or op.bias.values.size == n:
        return _product(unit, op.vectors, m, n, w, finish)
    unit.use("dense_f32")

    def call(x: str, y: str, _: str) -> str:
        one = f"rosler_dense_f32({x} + v * {m}, {m}, {n}, {w}, {finish}, {y} + v * {n});"
        return over(op.vectors, one)

    return Step(call, 4 * count(op.out_shape))


def _patch_project(op: PatchProject, unit: Unit, label: str, ctypes: Sequence[str]) -> Step:
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


def _affine(op: Affine, unit: Unit, label: str, ctypes: Sequence[str]) -> Step:
    unit.use("affine_f32")
    count = math.prod(op.in_shape)
    channels = max(op.center.size, op.factor.size)
    center, factor = (
        unit.array("float", f"{label}_{name}", np.broadcast_to(v, (channels,)), "scales")
        for name, v in (("center", op.center), ("factor", op.factor))
    )
    sizes = f"{count}, {channels}, {center}, {factor}"
    return Step(lambda x, y, _: f"rosler_affine_f32({x}, {sizes}, {y});", 4 * count, in_place=True)


def _pool(op: Pool, unit: Unit, label: str, ctypes: Sequence[str]) -> Step:
    if ctypes[0] != "float" or not is_disjoint(op.window) or len(op.window.size) > 2:
        return reductions.pool_step(op, unit, label, ctypes[0])
    mean = op.function == "sum"
    finish = _finish(unit, label, scale=op.scale) if mean else "0"
    return pool_step(unit, FLOAT, label, (op.in_shape, op.out_shape), op.window.size, mean, finish)


def _softmax(op: Softmax, unit: Unit, label: str, ctypes: Sequence[str]) -> Step:
    unit.use("softmax_rows_f32")
    sizes = f"{op.in_shape[0]}, {op.in_shape[1]}, {int(op.log)}"
    return Step(
        lambda x, y, _: f"rosler_softmax_rows_f32({x}, {sizes}, {y});",
        4 * count(op.out_shape), in_place=True,
    )  # fmt: skip


def _norm(op: Norm, unit: Unit, label: str, ctypes: Sequence[str]) -> Step:
    unit.use("norm_f32")
    scale, bias = (
        unit.array("float", f"{label}_{name}", weight.values, "scales") if weight else "0"
        for name, weight in (("scale", op.scale), ("bias", op.bias))
    )
    rows, n = op.in_shape
    sizes = f"{rows}, {n}, {int(op.center)}, {float32_literal(op.epsilon)}, {scale}, {bias}"
    return Step(lambda x, y, _: f"rosler_norm_f32({x}, {sizes}, {y});", 4 * rows * n, in_place=True)


_BEYOND = {"float": "NAN", "int32_t": "(-2147483647 - 1)", "uint8_t": "1"}
"""What a gather gives beyond its table, as JAX fills."""

EMIT: dict[type[Op], Callable[[Any, Unit, str, Sequence[str]], Step]] = {
    Dense: _dense,
    Conv: _conv,
    Project: _project,
    PatchProject: _patch_project,
    MatMul: _matmul,
    Affine: _affine,
    Reduce: lambda op, unit, label, types: reductions.reduce_step(op, unit, label, types[0]),
    Pool: _pool,
    Take: lambda op, unit, label, types: moves.take_step(
        op, unit, label, types[0], literal(types[0], op.fill)
    ),
    Transpose: lambda op, unit, label, types: moves.transpose_step(op, unit, label, types[0]),
    Concat: lambda op, unit, label, types: moves.concat_step(op, types[0]),
    Softmax: _softmax,
    Norm: _norm,
    Gather: lambda op, unit, label, types: moves.gather_step(
        op, unit, label, types[0], _BEYOND[types[0]]
    ),
    Cumulative: lambda op, unit, label, types: reductions.cumulative_step(
        op, unit, label, types[0]
    ),
    Slice: lambda op, unit, label, types: moves.slice_step(op, types[0]),
    gradients.Accumulate: lambda op, unit, label, types: gradients.accumulate_step(op, unit, label),
    **dict.fromkeys(
        gradients.ADD, lambda op, unit, label, types: gradients.gradient_step(op, unit, label)
    ),
}
"""Each kind as a step in float, given the C types of its inputs: a new one is one line here.

Maps and scans are not among them: :mod:`rosler_jax.export.c.program` has them, as they take the
whole graph.
"""
