"""A graph computed in JAX: what float exports are compared with, and calibrated by.

What is not finite: one rule for all targets. In floats (C, and C that trains; ONNX, StableHLO) NaN
goes through every operation, relu and max pooling among them, to all that depends on it, so that a
dead sensor shows in the outputs; ``rosler_argmax`` gives the first NaN's index, as NumPy does. An
infinity becomes what IEEE 754 says: infinite, NaN, or finite again behind a tanh or a relu; where
sums are in another order, as in a Walsh-Hadamard transform, infinite here may be NaN there.
The kernels of a runtime are its own: LiteRT's pooling and the max pooling of TFLite Micro and
onnxruntime drop NaN. Integers know no NaN: where they are made of real numbers
(``rosler_quantize``, ``quantize_input``) it becomes 0 and infinities the type's limits, and
``rosler_quantize`` returns how many there were.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import rosler_kernels as rk
from rosler_jax.export.graph import (
    Activate,
    Affine,
    Conv,
    Dense,
    Flatten,
    Graph,
    Op,
    Pad,
    PatchProject,
    Pool,
    Project,
    Window,
)
from rosler_jax.export.inputs import examples

if TYPE_CHECKING:
    from jaxtyping import Array, Float

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
}
"""Elementwise functions by name."""


def _add(y: Array, bias: Any) -> Array:
    return y if bias is None else y + bias


def convolve(x: Array, kernel: Any, window: Window, **options: Any) -> Array:
    """A channels-last convolution of ``(batch, *spatial, c_in)``."""
    n = len(window.size)
    numbers = jax.lax.ConvDimensionNumbers(
        (0, n + 1, *range(1, n + 1)), (n + 1, n, *range(n)), (0, n + 1, *range(1, n + 1))
    )
    return jax.lax.conv_general_dilated(
        x, kernel, window.strides, window.padding, window.input_dilation, window.dilation,
        numbers, window.groups, **options,
    )  # fmt: skip


def group_filters(op: Any, entries: Any) -> Any:
    """Entries of a sketch ``(window c_in / g, inner)`` as the filters of all groups of a window."""
    filters = entries.reshape(*op.window.size, -1, op.sketch.cols)
    return jnp.tile(filters, (1,) * (filters.ndim - 1) + (op.window.groups,))


def pool(x: Array, op: Pool) -> Array:
    """Max or sum over windows of ``(batch, *spatial, channels)``."""
    shape = (1, *op.window, 1)
    # Constants, not traced: so XLA's reductions of windows are known to JAX, and have gradients.
    zero = np.zeros((), x.dtype)
    if op.kind == "max":
        low = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
        return jax.lax.reduce_window(
            x, np.asarray(low, x.dtype), jax.lax.max, shape, shape, "VALID"
        )
    return jax.lax.reduce_window(x, zero, jax.lax.add, shape, shape, "VALID")


def pad(x: Array, op: Pad) -> Array:
    """Pads the spatial axes."""
    return jnp.pad(x, [(0, 0), *op.widths, (0, 0)], mode=op.mode)


def _project(op: Project, x: Array) -> Array:
    apply = rk.project_transpose if op.transpose else rk.project
    inner = op.sketch.cols if op.transpose else op.sketch.rows
    y = apply(x.reshape(x.shape[0], op.vectors, inner), op.sketch) * jnp.float32(op.scale)
    return _add(y.reshape(x.shape[0], *op.out_shape), op.bias)


def _pool(op: Pool, x: Array) -> Array:
    y = pool(x, op)
    return y if op.kind == "max" else y / math.prod(op.window)


COMPUTE: dict[type[Op], Callable[[Any, Array], Array]] = {
    Affine: lambda op, x: (x - op.center) * op.factor,
    Dense: lambda op, x: _add(x @ op.weight.values, op.bias),
    Conv: lambda op, x: _add(convolve(x, op.weight.values, op.window), op.bias),
    Project: _project,
    PatchProject: lambda op, x: convolve(
        x, group_filters(op, rk.materialize(op.sketch) * jnp.float32(op.scale)), op.window
    ),
    Activate: lambda op, x: ACTIVATIONS[op.kind](x),
    Pool: _pool,
    Pad: lambda op, x: pad(x, op),
    Flatten: lambda op, x: x.reshape(x.shape[0], *op.out_shape),
}
"""What each operation computes on a batch, float32."""


def run_all(graph: Graph, x: Float[Array, "batch *features"]) -> list[Array]:
    """The input as float32, and the output of every operation.

    Args:
      graph: the network.
      x: examples, shape ``(batch, *graph.in_shape)`` or of as many numbers.
    """
    out = [examples(jnp.asarray(x, jnp.float32), graph.in_shape)]
    for op in graph.ops:
        out.append(COMPUTE[type(op)](op, out[-1]))
    return out


def run(graph: Graph, x: Float[Array, "batch *features"]) -> Float[Array, "batch *out"]:
    """The outputs of a graph; pure, so that it can be jitted.

    Example:
      >>> from rosler_jax.export.build import build_graph
      >>> specs = [{"kind": "linear", "in_features": 2, "out_features": 1}]
      >>> run(build_graph(specs, {"0/kernel": jnp.ones((2, 1))}), jnp.ones((3, 2))).tolist()
      [[2.0], [2.0], [2.0]]
    """
    return run_all(graph, x)[-1]
