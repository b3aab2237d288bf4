"""Float operations as C that trains: forward and backward statements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import rosler_kernels as rk
from rosler_jax.export.c.floats import EMIT as inference
from rosler_jax.export.c.loops import over, row
from rosler_jax.export.c.maps import Fused, fuse, fused_step
from rosler_jax.export.c.sketches import PROJECT, Call, entry_scale, project_step
from rosler_jax.export.c.train.memory import Node, Wires, aligned
from rosler_jax.export.c.train.parallel import Parallel
from rosler_jax.export.c.train.parameters import Parameters, Place
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
from rosler_jax.export.c.windows import is_disjoint
from rosler_jax.factors import RIDGE
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.kinds import Affine, Conv, Dense, Map, Op, Pool, Project, count


def _dense(op: Dense, parameters: Parameters, label: str) -> Node:
    unit, (rows, m) = parameters.unit, op.in_shape
    n = op.out_shape[-1]
    weight = parameters.add_any(f"{label}_weights", op.weight.name, op.weight.values)
    bias = add_bias(op, parameters, label)
    unit.use("dense_f32")

    def forward(w: Wires) -> str:
        one = f"{row(w.x, rows, m)}, {m}, {n}, {weight.value}, &f, {row(w.y, rows, n)}"
        return f"{{ {finish(bias)} {over(rows, f'rosler_dense_f32({one});')} }}"

    def backward(w: Wires) -> str:
        # The error goes down before the weights change: without momentum they do at once.
        x, dy, dx = row(w.x, rows, m), row(w.dy, rows, n), row(w.dx, rows, m)
        gradients = outer(unit, weight, dy, n, x, m)
        gradients += bias_gradient(unit, bias, n, dy)
        down = error_below(unit, dy, m, n, weight.value, dx)
        return over(rows, down) + over(rows, gradients)

    return Node(
        forward=forward,
        backward=backward,
        out_bytes=4 * rows * n,
        error_bytes=4 * rows * n,
        keeps_input=weight.trains,
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
        return over(vectors, one(row(x, vectors, inner), row(y, vectors, outer_size)))

    return Step(call, 4 * vectors * outer_size)


def _entry(sketch: rk.Sketch) -> float:
    return entry_scale(sketch) if sketch.kind in PROJECT else 1.0


def _project(op: Project, parameters: Parameters, label: str) -> Node:
    unit, vectors = parameters.unit, op.vectors
    scale, below = op.scale * _entry(op.sketch), parameters.below
    bias = add_bias(op, parameters, label)
    n, each = count(op.out_shape), op.out_shape[-1]
    groups = 1 if op.bias is None else op.bias.values.size // each
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
            down = f"{{ {finish(scale=scale)} {call} }}"
        at = bias if groups == 1 else bias.plus(f"(v % {groups}) * {each}")
        dy = row(w.dy, vectors, each)
        return down + over(vectors, bias_gradient(unit, at, each, dy))

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


class _Sketches(NamedTuple):
    """The places and the projections of a layer in the parallel stage."""

    c: Place
    u: Place
    r: Place
    bias: Place
    psi: Step
    omega: Step


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
    here = _Sketches(c, u, r, bias, psi, omega)

    def forward(w: Wires) -> str:
        h, k = _inner(op, w.saved)
        return (
            f"{{ {finish()} rosler_dense_f32({w.x}, {m}, {s}, {c.value}, &f, {h}); "
            f"rosler_dense_f32({h}, {s}, {l}, (float *)({w.pinned}), &f, {k}); }}\n    "
            f"{{ {finish(bias)} rosler_dense_f32({k}, {l}, {n}, {r.value}, &f, {w.y}); }}"
        )

    def solve(w: Wires) -> str:
        scratch = f"(float *)({w.pinned} + {aligned(4 * s * l)})"
        return (
            f"if (s->weights[0] > 0.5f) {{\n        rosler_core_f32({u.value}, {l}, {s}, "
            f"{float32_literal(RIDGE)}, {scratch}, (float *)({w.pinned}));\n    }} else {{\n"
            f"        memcpy({w.pinned}, {u.value}, {4 * s * l});\n    }}"
        )

    return Node(
        forward=forward,
        backward=lambda w: _parallel_backward(op, unit, here, w),
        out_bytes=4 * n,
        error_bytes=4 * n,
        keeps_input=True,
        saved_bytes=aligned(4 * s) + 4 * l,
        backward_scratch=aligned(4 * l) + aligned(4 * s)
        + max(psi.scratch_bytes, omega.scratch_bytes),
        begin=solve,
        pinned_bytes=aligned(4 * s * l) + 4 * (s * (s + 1) + l),
    )  # fmt: skip


def _inner(op: Parallel, saved: str) -> tuple[str, str]:
    """What lies between the factors: ``x C`` and ``x C U``."""
    return f"(float *)({saved})", f"(float *)({saved} + {aligned(4 * op.c.shape[1])})"


def _parallel_backward(op: Parallel, unit: Unit, here: _Sketches, w: Wires) -> str:
    """In the parallel stage the errors within the chain are only for what lies below."""
    (m, s), (l, n) = op.c.shape, op.r.shape
    c, u, r, bias, psi, omega = here
    h, k = _inner(op, w.saved)
    memory = w.back_scratch
    d_k, d_h = f"(float *)({memory})", f"(float *)({memory} + {aligned(4 * l)})"
    x_psi, d_omega, rest = d_k, d_h, f"({memory} + {aligned(4 * l) + aligned(4 * s)})"
    lines = [
        error_below(unit, w.dy, l, n, r.value, d_k),
        error_below(unit, d_k, s, l, f"(float *)({w.pinned})", d_h),
        error_below(unit, d_h, m, s, c.value, w.dx),
        "if (s->weights[0] > 0.5f) {",
        f"    {{ {finish(scale=_entry(op.psi))} {psi.call(w.x, x_psi, rest)} }}",
        f"    {{ {finish(scale=_entry(op.omega))} {omega.call(w.dy, d_omega, rest)} }}",
        f"   {outer(unit, c, d_omega, s, w.x, m)}",
        f"   {outer(unit, u, x_psi, l, d_omega, s)}",
        f"   {outer(unit, r, w.dy, n, x_psi, l)}",
        "} else {",
        f"   {outer(unit, c, d_h, s, w.x, m)}",
        f"   {outer(unit, u, d_k, l, h, s)}",
        f"   {outer(unit, r, w.dy, n, k, l)}",
        "}" + bias_gradient(unit, bias, n, w.dy),
    ]
    return "\n    ".join(line for line in lines if line)


def step_of(op: Op, unit: Unit, label: str) -> Step:
    """One operation of one input as it is in inference."""
    (known,) = fuse(Graph((), (op,), ()))
    if isinstance(known, Fused):
        return fused_step(known, unit, label, ["float"])
    return inference[type(op)](op, unit, label, ["float"])


def _map(op: Map, parameters: Parameters, label: str) -> Node:
    unit, size, gelu = parameters.unit, count(op.in_shape), op.function == "gelu"
    step = step_of(op, unit, label)

    def backward(w: Wires) -> str:
        unit.use(f"{op.function}_back_f32")
        return f"rosler_{op.function}_back_f32({w.x if gelu else w.y}, {size}, {w.dy});"

    return Node(
        forward=lambda w: step.call(w.x, w.y, w.scratch),
        backward=backward,
        out_bytes=4 * size,
        error_bytes=4 * size,
        keeps_input=gelu,
        keeps_output=not gelu,
        in_place=True,
    )


def _affine(op: Affine, parameters: Parameters, label: str) -> Node:
    unit, size = parameters.unit, count(op.in_shape)
    channels = max(op.center.size, op.factor.size)
    step = step_of(op, unit, label)

    def backward(w: Wires) -> str:
        unit.use("affine_back_f32")
        values = np.broadcast_to(op.factor, (channels,))
        factor = unit.array("float", f"{label}_factor", values, "scales")
        return f"rosler_affine_back_f32({size}, {channels}, {factor}, {w.dy});"

    return Node(
        forward=lambda w: step.call(w.x, w.y, w.scratch),
        backward=backward,
        out_bytes=4 * size,
        error_bytes=4 * size,
        in_place=True,
    )


def _pool(op: Pool, parameters: Parameters, label: str) -> Node:
    return pool(op, step_of(op, parameters.unit, label), parameters, label)


EMIT: dict[type[Op], Callable[[Any, Parameters, str], Node]] = {
    Dense: _dense,
    Conv: conv,
    Pool: _pool,
    Project: _project,
    Parallel: _parallel,
    Map: _map,
    Affine: _affine,
}
"""Each operation that trains in place, in float: a new one is one line here."""


def serves(op: Op) -> bool:
    """Whether an operation trains by statements written for it, not by the gradient's graph."""
    if isinstance(op, Map):
        return op.function in ("relu", "gelu", "tanh")
    return type(op) in EMIT and (not isinstance(op, Pool) or is_disjoint(op.window))
