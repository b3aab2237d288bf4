"""Float operations as C that trains: forward and backward statements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import rosler_kernels as rk
from rosler_jax.export.c.sketches import PROJECT, Call, entry_scale, project_step
from rosler_jax.export.c.train.memory import Node, Wires, aligned
from rosler_jax.export.c.train.parallel import Parallel
from rosler_jax.export.c.train.parameters import Parameters
from rosler_jax.export.c.train.statements import (
    add_bias,
    bias_gradient,
    error_below,
    finish,
    finishes,
    outer,
)
from rosler_jax.export.c.train.windows import conv, pool
from rosler_jax.export.c.unit import FLOAT, Step, Unit, float32_literal
from rosler_jax.export.graph import Activate, Affine, Conv, Dense, Flatten, Op, Pool, Project
from rosler_jax.factors import RIDGE


def _dense(op: Dense, parameters: Parameters, label: str) -> Node:
    unit = parameters.unit
    m, n = op.weight.values.shape
    weight = parameters.add_any(f"{label}_weights", op.weight.name, op.weight.values)
    bias = add_bias(op, parameters, label)
    unit.use("dense_f32")

    def backward(w: Wires) -> str:
        # The error goes down before the weights change: without momentum they do at once.
        return (
            error_below(unit, w.dy, m, n, weight, w.dx)
            + outer(unit, parameters, weight, w.dy, n, w.x, m)
            + bias_gradient(unit, parameters, bias, n, w.dy)
        )

    return Node(
        forward=lambda w: (
            f"{{ {finish(bias)} rosler_dense_f32({w.x}, {m}, {n}, {weight}, &f, {w.y}); }}"
        ),
        backward=backward,
        out_bytes=4 * n,
        error_bytes=4 * n,
        keeps_input=weight.startswith("s->"),
    )


def _projection(
    unit: Unit, label: str, sketch: rk.Sketch, transpose: bool, vectors: int = 1, end: str = "&f"
) -> Step:
    """A projection by a sketch, ended by a finish ``f`` that scales by :func:`_entry`.

    The entries of a family that is not regenerated in C are stored.
    """
    if sketch.kind in PROJECT:
        return project_step(Call(unit, FLOAT, label, sketch, end), transpose, vectors)
    stored = unit.array(
        "float", f"{label}_entries", np.asarray(rk.materialize(sketch)).T, "weights"
    )
    inner, outer_size = (sketch.rows, sketch.cols)[:: -1 if transpose else 1]
    sizes = f"{sketch.rows}, {sketch.cols}, {stored}"
    unit.use("dense_f32")
    for kernel in ("dense_back_f32", "finish_in_place_f32") if transpose else ():
        unit.use(kernel)

    def one(x: str, y: str) -> str:
        if not transpose:
            return f"rosler_dense_f32({x}, {sizes}, {end}, {y});"
        return (
            f"rosler_dense_back_f32({x}, {sizes}, {y}); "
            f"rosler_finish_in_place_f32({end}, {sketch.rows}, {y});"
        )

    def call(x: str, y: str, _: str) -> str:
        if vectors == 1:
            return one(x, y)
        body = one(f"({x}) + v * {inner}", f"({y}) + v * {outer_size}")
        return f"{{ int v; for (v = 0; v < {vectors}; ++v) {{ {body} }} }}"

    return Step(call, 4 * vectors * outer_size)


def _entry(sketch: rk.Sketch) -> float:
    return entry_scale(sketch) if sketch.kind in PROJECT else 1.0


def _project(op: Project, parameters: Parameters, label: str) -> Node:
    unit, vectors = parameters.unit, op.vectors
    scale, below = op.scale * _entry(op.sketch), parameters.below
    bias = add_bias(op, parameters, label)
    n = math.prod(op.out_shape)
    each = n // vectors
    groups = 1 if op.bias is None else np.size(op.bias) // each
    # Groups of a convolution lie one behind the other, each with its own biases.
    end = "&f" if groups == 1 else f"f + v % {groups}"
    step = _projection(unit, label, op.sketch, op.transpose, vectors, end)
    back = (
        _projection(unit, f"{label}_back", op.sketch, not op.transpose, vectors) if below else None
    )

    def backward(w: Wires) -> str:
        down = ""
        if back and w.dx:
            call = back.call(w.dy, w.dx, w.back_scratch)
            down = f"{{ {finish('0', scale)} {call} }}"
        if vectors == 1:
            return down + bias_gradient(unit, parameters, bias, n, w.dy)
        at = bias if bias == "0" else f"{bias} + (v % {groups}) * {each}"
        add = bias_gradient(unit, parameters, at, each, f"{w.dy} + v * {each}")
        return down + (f"{{ int v; for (v = 0; v < {vectors}; ++v) {{{add} }} }}" if add else "")

    return Node(
        forward=lambda w: (
            f"{{ {finishes(bias, each, groups, scale)} {step.call(w.x, w.y, w.scratch)} }}"
        ),
        backward=backward,
        out_bytes=4 * n,
        error_bytes=4 * n,
        forward_scratch=step.scratch_bytes,
        backward_scratch=back.scratch_bytes if back else 0,
    )


def _parallel(op: Parallel, parameters: Parameters, label: str) -> Node:
    unit = parameters.unit
    (m, s), (l, n) = op.c.shape, op.r.shape
    pieces = zip(op.names, (op.c, op.a.T, op.r), strict=True)
    c, u, r = (parameters.add(name, values) for name, values in pieces)
    bias = add_bias(op, parameters, label)
    for kernel in ("dense_f32", "core_f32", "even_f32"):
        unit.use(kernel)
    psi = _projection(unit, f"{label}_psi", op.psi, False)
    omega = _projection(unit, f"{label}_omega", op.omega, False)
    plain = "{ const rosler_finish_f32 f = {0, 1.0f};"

    def forward(w: Wires) -> str:
        h, k = f"(float *)({w.saved})", f"(float *)({w.saved} + {aligned(4 * s)})"
        return (
            f"{plain} rosler_dense_f32({w.x}, {m}, {s}, {c}, &f, {h}); "
            f"rosler_dense_f32({h}, {s}, {l}, (float *)({w.pinned}), &f, {k}); }}\n    "
            f"{{ {finish(bias)} rosler_dense_f32({k}, {l}, {n}, {r}, &f, {w.y}); }}"
        )

    def backward(w: Wires) -> str:
        h, k = f"(float *)({w.saved})", f"(float *)({w.saved} + {aligned(4 * s)})"
        memory = w.back_scratch
        d_k, d_h = f"(float *)({memory})", f"(float *)({memory} + {aligned(4 * l)})"
        x_psi, d_omega, rest = d_k, d_h, f"({memory} + {aligned(4 * l) + aligned(4 * s)})"
        # In the parallel stage the errors within the chain are only for what lies below.
        lines = [
            error_below(unit, w.dy, l, n, r, d_k),
            error_below(unit, d_k, s, l, f"(float *)({w.pinned})", d_h),
            error_below(unit, d_h, m, s, c, w.dx),
            "if (s->weights[0] > 0.5f) {",
            f"    {{ {finish('0', _entry(op.psi))} {psi.call(w.x, x_psi, rest)} }}",
            f"    {{ {finish('0', _entry(op.omega))} {omega.call(w.dy, d_omega, rest)} }}",
            f"   {outer(unit, parameters, c, d_omega, s, w.x, m)}",
            f"   {outer(unit, parameters, u, x_psi, l, d_omega, s)}",
            f"   {outer(unit, parameters, r, w.dy, n, x_psi, l)}",
            "} else {",
            f"   {outer(unit, parameters, c, d_h, s, w.x, m)}",
            f"   {outer(unit, parameters, u, d_k, l, h, s)}",
            f"   {outer(unit, parameters, r, w.dy, n, k, l)}",
            "}" + bias_gradient(unit, parameters, bias, n, w.dy),
        ]
        return "\n    ".join(line for line in lines if line)

    def solve(w: Wires) -> str:
        scratch = f"(float *)({w.pinned} + {aligned(4 * s * l)})"
        return (
            f"if (s->weights[0] > 0.5f) {{\n        rosler_core_f32({u}, {l}, {s}, "
            f"{float32_literal(RIDGE)}, {scratch}, (float *)({w.pinned}));\n    }} else {{\n"
            f"        memcpy({w.pinned}, {u}, {4 * s * l});\n    }}"
        )

    return Node(
        forward=forward,
        backward=backward,
        out_bytes=4 * n,
        error_bytes=4 * n,
        keeps_input=True,
        saved_bytes=aligned(4 * s) + 4 * l,
        backward_scratch=aligned(4 * l) + aligned(4 * s)
        + max(psi.scratch_bytes, omega.scratch_bytes),
        begin=solve,
        pinned_bytes=aligned(4 * s * l) + 4 * (s * (s + 1) + l),
    )  # fmt: skip


def _activate(op: Activate, parameters: Parameters, label: str) -> Node:
    unit = parameters.unit
    count = math.prod(op.in_shape)
    gelu = op.kind == "gelu"
    unit.use(f"{op.kind}_f32")

    def backward(w: Wires) -> str:
        unit.use(f"{op.kind}_back_f32")
        return f"rosler_{op.kind}_back_f32({w.x if gelu else w.y}, {count}, {w.dy});"

    return Node(
        forward=lambda w: f"rosler_{op.kind}_f32({w.x}, {count}, {w.y});",
        backward=backward,
        out_bytes=4 * count,
        error_bytes=4 * count,
        keeps_input=gelu,
        keeps_output=not gelu,
        in_place=True,
    )


def _affine(op: Affine, parameters: Parameters, label: str) -> Node:
    unit = parameters.unit
    count, channels = math.prod(op.in_shape), max(op.center.size, op.factor.size)
    center, factor = (
        unit.array("float", f"{label}_{name}", np.broadcast_to(v, (channels,)), "scales")
        for name, v in (("center", op.center), ("factor", op.factor))
    )
    unit.use("affine_f32")

    def backward(w: Wires) -> str:
        unit.use("affine_back_f32")
        return f"rosler_affine_back_f32({count}, {channels}, {factor}, {w.dy});"

    return Node(
        forward=lambda w: (
            f"rosler_affine_f32({w.x}, {count}, {channels}, {center}, {factor}, {w.y});"
        ),
        backward=backward,
        out_bytes=4 * count,
        error_bytes=4 * count,
        in_place=True,
    )


EMIT: dict[type[Op], Callable[[Any, Parameters, str], Node | None]] = {
    Dense: _dense,
    Conv: conv,
    Pool: pool,
    Project: _project,
    Parallel: _parallel,
    Activate: _activate,
    Affine: _affine,
    Flatten: lambda op, parameters, label: None,
}
"""Each operation that trains in float: a new one is one line here."""
