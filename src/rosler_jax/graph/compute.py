"""A graph computed in JAX: the reference of every target, and what a loaded model runs.

What is not finite: one rule for all float targets. NaN goes through every operation, relu and max
pooling among them, to all that depends on it, so that a dead sensor shows in the outputs. An
infinity becomes what IEEE 754 says; where sums are in another order, as in a Walsh-Hadamard
transform, infinite here may be NaN there. The kernels of a runtime are its own: LiteRT's pooling
and the max pooling of TFLite Micro and onnxruntime drop NaN. Integers know no NaN: where they are
made of real numbers it becomes 0 and infinities the type's limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import rosler_kernels as rk
from rosler_jax.graph.functions import FUNCTIONS
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.kinds import (
    Affine,
    Concat,
    Conv,
    Convolve,
    Cumulative,
    Dense,
    Gather,
    KernelGrad,
    Map,
    MatMul,
    Norm,
    Op,
    PatchProject,
    Pool,
    Project,
    Reduce,
    Scan,
    Scatter,
    Slice,
    Softmax,
    Take,
    Transpose,
    Unpool,
    Window,
    elements,
)
from rosler_jax.graph.weight import Weight, lay_out

if TYPE_CHECKING:
    from jaxtyping import Array

Params = Mapping[str, Any]
"""Values of a graph's tensors by name, in place of those that it holds: what training changes."""


def _of(weight: Weight, params: Params | None) -> Any:
    if params is None or weight.name not in params:
        return weight.values
    return lay_out(params[weight.name], weight.layout)


def _add(y: Array, bias: Weight | None, params: Params | None) -> Array:
    return y if bias is None else y + _of(bias, params)


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


def pool(x: Array, function: str, window: Window) -> Array:
    """Max or sum under a window that slides over ``(batch, *spatial, channels)``."""
    shape, strides = (1, *window.size, 1), (1, *window.strides, 1)
    options = {
        "padding": ((0, 0), *window.padding, (0, 0)),
        "base_dilation": (1, *window.input_dilation, 1),
        "window_dilation": (1, *window.dilation, 1),
    }
    # Constants, not traced: so XLA's reductions of windows are known to JAX, and have gradients.
    if function == "max":
        low = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
        start, reduce = np.asarray(low, x.dtype), jax.lax.max
    else:
        start, reduce = np.zeros((), x.dtype), jax.lax.add
    return jax.lax.reduce_window(x, start, reduce, shape, strides, **options)  # type: ignore[arg-type]


def take(x: Array, op: Take) -> Array:
    """Picks positions along each axis; -1 is filled."""
    for axis, runs in enumerate(op.index):
        if runs is None:
            continue
        picked = np.asarray(elements(runs, x.shape[axis]), np.int32)
        if (picked >= 0).all():
            x = jnp.take(x, picked, axis=axis)
            continue
        filler = jnp.full((*x.shape[:axis], 1, *x.shape[axis + 1 :]), op.fill, x.dtype)
        x = jnp.take(
            jnp.concatenate([x, filler], axis), np.where(picked < 0, x.shape[axis], picked), axis
        )
    return x


def _dense(op: Dense, params: Params | None, x: Array) -> Array:
    return _add(x @ _of(op.weight, params), op.bias, params)


def _conv(op: Conv, params: Params | None, x: Array) -> Array:
    return _add(convolve(x[None], _of(op.weight, params), op.window)[0], op.bias, params)


def _project(op: Project, params: Params | None, x: Array) -> Array:
    apply = rk.project_transpose if op.transpose else rk.project
    y = apply(x, op.sketch) * jnp.float32(op.scale)
    if op.bias is None:
        return y
    return (y.reshape(-1, op.bias.values.size) + _of(op.bias, params).ravel()).reshape(y.shape)


def _patch_project(op: PatchProject, params: Params | None, x: Array) -> Array:
    entries = rk.materialize(op.sketch) * jnp.float32(op.scale)
    return convolve(x[None], group_filters(op, entries), op.window)[0]


def _matmul(op: MatMul, params: Params | None, x: Array, y: Array) -> Array:
    return jnp.einsum("bmk,bnk->bmn" if op.transpose else "bmk,bkn->bmn", x, y)


_REDUCE: dict[str, Callable[..., Any]] = {
    "sum": jnp.sum, "max": jnp.max, "min": jnp.min, "prod": jnp.prod, "all": jnp.all,
    "any": jnp.any, "argmax": jnp.argmax, "argmin": jnp.argmin,
}  # fmt: skip


def _reduce(op: Reduce, params: Params | None, x: Array) -> Array:
    if op.function.startswith("arg"):
        return _REDUCE[op.function](x, axis=op.axes[0])
    y = _REDUCE[op.function](x, axis=op.axes)
    return y if op.scale == 1.0 else y * jnp.float32(op.scale)


def _pool(op: Pool, params: Params | None, x: Array) -> Array:
    y = pool(x[None], op.function, op.window)[0]
    return y if op.scale == 1.0 else y * jnp.float32(op.scale)


def _softmax(op: Softmax, params: Params | None, x: Array) -> Array:
    return jax.nn.log_softmax(x) if op.log else jax.nn.softmax(x)


def _norm(op: Norm, params: Params | None, x: Array) -> Array:
    if op.center:
        x = x - x.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + jnp.float32(op.epsilon))
    y = x * factor if op.scale is None else x * (factor * _of(op.scale, params))
    return _add(y, op.bias, params)


def _gather(op: Gather, params: Params | None, table: Array, ids: Array) -> Array:
    beyond = len(table)
    first = jnp.where(ids < 0, ids + beyond, ids) if op.wrap else ids
    return jnp.take(table, jnp.where(first < 0, beyond, first), axis=0, mode="fill")


def _cumulative(op: Cumulative, params: Params | None, x: Array) -> Array:
    apply = {
        "sum": jax.lax.cumsum,
        "prod": jax.lax.cumprod,
        "max": jax.lax.cummax,
        "min": jax.lax.cummin,
    }
    return apply[op.function](x, axis=1, reverse=op.reverse)


def _scan(op: Scan, params: Params | None, *given: Array) -> list[Array]:
    shared, rest = given[: op.shared], given[op.shared :]
    first, sequences = rest[: op.carries], rest[op.carries :]

    def step(carry: Any, at: Any) -> tuple[Any, Any]:
        out = run(op.body, [*shared, *carry, *at], params)
        return tuple(out[: op.carries]), tuple(out[op.carries :])

    length = None if sequences else op.length
    last, gave = jax.lax.scan(step, tuple(first), tuple(sequences), length, op.reverse)
    return [*last, *gave]


def _kernel_grad(op: KernelGrad, params: Params | None, x: Array, dy: Array) -> Array:
    w = op.window
    shape = (*w.size, x.shape[-1] // w.groups, dy.shape[-1])
    kernel = jnp.zeros(shape, x.dtype)
    _, back = jax.vjp(lambda kernel: convolve(x[None], kernel, w)[0], kernel)
    return back(dy)[0]


def _unpool(op: Unpool, params: Params | None, x: Array, dy: Array) -> Array:
    _, back = jax.vjp(lambda x: pool(x[None], "max", op.window)[0], x)
    return back(dy)[0]


def _scatter(op: Scatter, params: Params | None, ids: Array, rows: Array) -> Array:
    at = jnp.where(ids < 0, op.size, ids)
    return jnp.zeros((op.size, rows.shape[-1]), rows.dtype).at[at].add(rows, mode="drop")


COMPUTE: dict[type[Op], Callable[..., Any]] = {
    Dense: _dense,
    Conv: _conv,
    Project: _project,
    PatchProject: _patch_project,
    MatMul: _matmul,
    Affine: lambda op, params, x: (x - op.center) * op.factor,
    Map: lambda op, params, *xs: FUNCTIONS[op.function].compute(*xs, *op.numbers),
    Reduce: _reduce,
    Pool: _pool,
    Take: lambda op, params, x: take(x, op),
    Transpose: lambda op, params, x: x.transpose(op.axes),
    Concat: lambda op, params, *xs: jnp.concatenate(xs, op.axis),
    Softmax: _softmax,
    Norm: _norm,
    Gather: _gather,
    Cumulative: _cumulative,
    Slice: lambda op, params, x, start: jax.lax.dynamic_slice_in_dim(
        x, start.reshape(()), op.size, axis=1
    ),
    Scan: _scan,
    Convolve: lambda op, params, x, kernel: convolve(x[None], kernel, op.window)[0],
    KernelGrad: _kernel_grad,
    Unpool: _unpool,
    Scatter: _scatter,
}
"""What each kind of operation computes on one example."""


def run_all(graph: Graph, inputs: Sequence[Any], params: Params | None = None) -> dict[int, Array]:
    """All values of one example, by value; what calibration looks at.

    Args:
      graph: the model.
      inputs: one array for each of the graph's inputs, of its shape.
      params: values of tensors in place of the graph's own.

    Example:
      >>> from rosler_jax.graph import trace
      >>> graph = trace(lambda x: jnp.maximum(x, 0).sum(-1), np.ones((1, 3)))
      >>> values = run_all(graph, [np.array([-1.0, 2.0, 3.0])])
      >>> [values[op.output].tolist() for op in graph.ops]
      [[0.0, 2.0, 3.0], 5.0]
    """
    values: dict[int, Any] = {k: _of(weight, params) for k, weight in graph.constants.items()}
    values |= {
        value.id: jnp.asarray(x).reshape(value.shape)
        for value, x in zip(graph.inputs, inputs, strict=True)
    }
    for op in graph.ops:
        given = (values[k].reshape(shape) for k, shape in zip(op.inputs, op.in_shapes, strict=True))
        out = COMPUTE[type(op)](op, params, *given)
        made = out if isinstance(op, Scan) else [out]
        for k, y, shape, dtype in zip(op.outputs, made, op.out_shapes, op.dtypes, strict=True):
            values[k] = jnp.asarray(y).reshape(shape).astype(dtype)
    return values


def run_batch(graph: Graph, *inputs: Any) -> Any:
    """The outputs of a batch: an array, or a list of arrays where the model returns several.

    Inputs may have any shape of as many numbers behind the batch axis.

    Example:
      >>> from rosler_jax.graph import trace
      >>> run_batch(trace(jnp.negative, np.ones((1, 2))), np.ones((3, 2))).shape
      (3, 2)
    """
    given = []
    for x, value in zip(inputs, graph.inputs, strict=True):
        each, wanted = math.prod(np.shape(x)[1:]), math.prod(value.shape)
        if each != wanted:
            raise ValueError(
                f"inputs of shape {np.shape(x)}: each example has {each} numbers, and the model "
                f"takes {wanted} numbers, shape {value.shape}"
            )
        given.append(jnp.asarray(x, value.dtype).reshape(len(x), *value.shape))
    out = jax.vmap(lambda *x: run(graph, x))(*given)
    return out[0] if len(out) == 1 else out


def run(graph: Graph, inputs: Sequence[Any], params: Params | None = None) -> list[Array]:
    """The outputs of one example: pure, to be jitted, vmapped over examples, differentiated.

    Args:
      graph: the model.
      inputs: one array for each of the graph's inputs, of its shape.
      params: values of tensors in place of the graph's own.

    Returns:
      One array for each of the graph's outputs.

    Example:
      >>> from rosler_jax.graph import trace
      >>> model = (lambda params, x: x @ params["w"], {"w": np.ones((3, 1))})
      >>> graph, x = trace(model, np.ones((1, 3))), np.arange(3.0)
      >>> run(graph, [x])[0].tolist(), run(graph, [x], {"w": -np.ones((3, 1))})[0].tolist()
      ([3.0], [-3.0])
    """
    values = run_all(graph, inputs, params)
    return [values[value.id].reshape(value.shape) for value in graph.outputs]
