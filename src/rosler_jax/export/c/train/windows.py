"""Convolutions and pooling in float as C that trains."""

from __future__ import annotations

import math

from rosler_jax.export.c.train.memory import Node, Wires
from rosler_jax.export.c.train.parameters import Parameters
from rosler_jax.export.c.train.statements import (
    add_bias,
    bias_gradient,
    error_below,
    finishes,
    outer,
)
from rosler_jax.export.c.unit import FLOAT, Step, float32_literal
from rosler_jax.export.c.windows import axes_table
from rosler_jax.graph.kinds import Conv, Pool


def conv(op: Conv, parameters: Parameters, label: str) -> Node:
    """A convolution: at every position the product of a dense layer with the pixels gathered there.

    The kernel trains as its matrix ``(window c_in / g, c_out)``.
    """
    unit, groups = parameters.unit, op.window.groups
    positions, channels = math.prod(op.out_shape[:-1]), op.in_shape[-1]
    values = op.weight.values.reshape(-1, op.out_shape[-1])
    m, n, count = values.shape[0], values.shape[1] // groups, channels // groups
    weight = parameters.add_any(f"{label}_weights", op.weight.name, values)
    bias = add_bias(op, parameters, label)
    table = axes_table(unit, label, (op.in_shape, op.out_shape), op.window)
    for kernel in ("dense_f32", "patch_axes"):
        unit.use(kernel, FLOAT.names())
    where = f"{table}, {len(op.window.size)}, {channels}, k * {count}, {count}, j"
    w_g, b_g = weight.plus(f"k * {m * n}"), bias.plus(f"k * {n}")

    def gathered(x: str, patch: str) -> str:
        return f"rosler_patch_axes_f32({x}, {where}, {patch});"

    def every(body: str) -> str:
        """For every position and group."""
        return (
            f"for (j = 0; j < {positions}; ++j) {{ for (k = 0; k < {groups}; ++k) {{ {body} }} }}"
        )

    def at(y: str) -> str:
        return f"{y} + (j * {groups} + k) * {n}"

    def forward(w: Wires) -> str:
        patch, end = f"(float *)({w.scratch})", "&f" if groups == 1 else "f + k"
        product = f"rosler_dense_f32({patch}, {m}, {n}, {w_g.value}, {end}, {at(w.y)});"
        body = every(f"{gathered(w.x, patch)} {product}")
        return f"{{ {finishes(bias, n, groups)} int j, k; {body} }}"

    def backward(w: Wires) -> str:
        patch = f"(float *)({w.back_scratch})"
        lines = []
        if w.dx:  # before the weights change: without momentum they do at once
            unit.use("spread_axes_f32")
            down = error_below(unit, at(w.dy), m, n, w_g.value, patch)
            spread = f"rosler_spread_axes_f32({patch}, {where}, {w.dx});"
            lines += [
                f"memset({w.dx}, 0, {4 * math.prod(op.in_shape)});", every(f"{down} {spread}")
            ]  # fmt: skip
        step = outer(unit, w_g, at(w.dy), n, patch, m)
        gradients = f"{gathered(w.x, patch)}{step}" if step else ""
        gradients += bias_gradient(unit, b_g, n, at(w.dy))
        lines += [every(gradients)] if gradients else []
        return f"{{ int j, k; {' '.join(lines)} }}" if lines else ""

    return Node(
        forward=forward,
        backward=backward,
        out_bytes=4 * math.prod(op.out_shape),
        error_bytes=4 * math.prod(op.out_shape),
        keeps_input=weight.trains,
        forward_scratch=4 * m,
        backward_scratch=4 * m,
    )


def pool(op: Pool, step: Step, parameters: Parameters, label: str) -> Node:
    """Pooling: the error goes to the first of the largest, or to all alike."""
    unit, shapes = parameters.unit, (op.in_shape, op.out_shape)
    axes, mean = len(op.in_shape) - 1, op.function == "sum"
    table = axes_table(unit, f"{label}_back", shapes, op.window)
    outputs = math.prod(op.out_shape[:-1])

    def backward(w: Wires) -> str:
        if not w.dx:
            return ""
        unit.use("pool_back_f32")
        each = float32_literal(op.scale if mean else 0.0)
        sizes = f"{table}, {axes}, {op.in_shape[-1]}, {outputs}, {each}"
        return (
            f"memset({w.dx}, 0, {4 * math.prod(op.in_shape)}); "
            f"rosler_pool_back_f32({w.x}, {sizes}, {w.dy}, {w.dx});"
        )

    return Node(
        forward=lambda w: step.call(w.x, w.y, w.scratch),
        backward=backward,
        out_bytes=4 * math.prod(op.out_shape),
        error_bytes=4 * math.prod(op.out_shape),
        keeps_input=not mean,
        forward_scratch=step.scratch_bytes,
    )
