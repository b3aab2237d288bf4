"""Convolutions and poolings in the form that XLA's CPU backend runs fast; the same numbers.

XLA for CPUs brings the axes of a convolution into the order of its fast kernels in a program's
outermost computation only. In a loop, as a compiled training is one, gradients of kernels keep the
order that differentiation gave them, and run by a kernel that takes several times as long. And it
has no fast kernel at all for a window that exceeds its map, for the gradient of a kernel of few
channels, and for that of a max-pooling.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

GATHERED = 5
"""A kernel's gradient is one product where the shifts of the thinner side are at most so many times
as many numbers as the other side: 9 s channels to c for 3x3 kernels of c inputs and s outputs."""


def canonical_convolutions(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its convolutions as ones of ``(batch, *spatial, channels)``; same numbers.

    Those whose window exceeds the map, and gradients of kernels with few channels on one side,
    become matrix products; gradients of max-poolings whose windows do not overlap, comparisons.
    What is in loops of the function's own, and convolutions grouped by batch, stay as they are.

    Args:
      function: of pytrees of arrays, traceable; differentiate before.

    Example:
      >>> import jax.numpy as jnp
      >>> def loss(w, x):
      ...     return (jax.lax.conv(x, w, (1, 1), "SAME") ** 2).sum()
      >>> w, x = jnp.ones((2, 3, 3, 3)), jnp.ones((1, 3, 8, 8))
      >>> found = canonical_convolutions(jax.grad(loss))(w, x)
      >>> bool(jnp.allclose(found, jax.grad(loss)(w, x)))
      True
    """

    def canonical(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        out = _evaluated(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return canonical


def _evaluated(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    known |= zip(jaxpr.invars, args, strict=True)

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        values = [read(atom) for atom in eqn.invars]
        if eqn.primitive is jax.lax.conv_general_dilated_p and eqn.params["batch_group_count"] == 1:
            out = [_convolution(*values, **eqn.params)]
        elif eqn.primitive is jax.lax.select_and_scatter_add_p and _apart(**eqn.params):
            out = [_max_pool_gradient(*values, **eqn.params)]
        elif eqn.primitive.name in ("jit", "pjit"):
            inner = eqn.params["jaxpr"]
            out = _evaluated(inner.jaxpr, inner.consts, values)
        else:
            found: Any = eqn.primitive.get_bind_params(
                eqn.params
            )  # before JAX 0.10: functions, too
            functions, params = ((), found) if isinstance(found, dict) else found
            with eqn.ctx.manager:
                made = eqn.primitive.bind(*functions, *values, **params)
            out = made if eqn.primitive.multiple_results else [made]
        known |= zip(eqn.outvars, out, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _convolution(lhs: Any, rhs: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    """A convolution, its axes in order; transposes that change nothing are left out by XLA."""
    left, right, out = dimension_numbers

    def last(spec: Sequence[int]) -> tuple[int, ...]:
        return (spec[0], *spec[2:], spec[1])

    n = lhs.ndim
    x, kernel = lhs.transpose(last(left)), rhs.transpose((*right[2:], right[1], right[0]))
    # Of a kernel's gradient, as differentiation gives it, the examples are what was channels.
    form = _form(x, kernel, left[0] != 0, **params)
    made = form(x, kernel, **params)
    order = last(out)
    return made.transpose([order.index(k) for k in range(n)])


def _form(x: Any, kernel: Any, gradient: bool, **params: Any) -> Callable[..., Any]:
    """How to compute a convolution of ``(batch, *spatial, channels)``, or a kernel's gradient."""
    if params["feature_group_count"] > 1:
        return _in_order
    if gradient:
        taps = math.prod(_out_sizes(x, kernel, **params))
        thin, wide = sorted((x.shape[0], kernel.shape[-1]))
        return _kernel_gradient if taps * thin <= GATHERED * wide else _in_order
    # XLA would swap a map and a window that exceeds it, and has no fast kernel for what comes of it
    exceeds = math.prod(kernel.shape[:-2]) > math.prod(x.shape[1:-1])
    return _by_taps if exceeds else _in_order


def _in_order(x: Any, kernel: Any, **params: Any) -> Any:
    """By XLA's own kernel."""
    n = x.ndim
    plain = jax.lax.ConvDimensionNumbers(
        (0, n - 1, *range(1, n - 1)), (n - 1, n - 2, *range(n - 2)), (0, n - 1, *range(1, n - 1))
    )
    return jax.lax.conv_general_dilated_p.bind(x, kernel, dimension_numbers=plain, **params)


def _by_taps(x: Any, kernel: Any, **params: Any) -> Any:
    """As a product with the values under the window, side by side."""
    views = _views(
        x, kernel.shape[:-2], params["rhs_dilation"],
        _out_sizes(x, kernel, **params), params["window_strides"], **params,
    )  # fmt: skip
    return jax.lax.dot_general(
        jnp.concatenate(views, -1),
        kernel.reshape(-1, kernel.shape[-1]),
        (((x.ndim - 1,), (0,)), ((), ())),
        **_accuracy(**params),
    )


def _kernel_gradient(x: Any, kernel: Any, **params: Any) -> Any:
    """A kernel's gradient as one product: all shifts of the thinner side meet the other at once.

    Args:
      x: the inputs, ``(c_in, *spatial, batch)``.
      kernel: the outputs' gradient, ``(*spatial, batch, c_out)``.
      **params: of the convolution.

    Returns:
      ``(c_in, *window, c_out)``.
    """
    n, taps = x.ndim - 2, _out_sizes(x, kernel, **params)
    inputs = x.transpose(n + 1, *range(1, n + 1), 0)
    outputs = kernel.transpose(n, *range(n), n + 1)
    if x.shape[0] < kernel.shape[-1]:
        views = _views(
            inputs, taps, params["window_strides"],
            kernel.shape[:-2], params["rhs_dilation"], **params,
        )  # fmt: skip
        made = _outer(jnp.concatenate(views, -1), outputs, **params)
        return jnp.moveaxis(made.reshape(*taps, x.shape[0], kernel.shape[-1]), -2, 0)
    met = [_met(outputs, inputs, tap, **params) for tap in itertools.product(*map(range, taps))]
    made = _outer(inputs, jnp.concatenate(met, -1), **params)
    return made.reshape(x.shape[0], *taps, kernel.shape[-1])


def _outer(a: Any, b: Any, **params: Any) -> Any:
    """``a^T b``, summed over all axes but the last."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())), **_accuracy(**params))


def _accuracy(*, precision: Any, preferred_element_type: Any, **_: Any) -> dict[str, Any]:
    """What a product of the same two operands, in the same order, is told of it."""
    return {"precision": precision, "preferred_element_type": preferred_element_type}


def _out_sizes(x: Any, kernel: Any, **params: Any) -> tuple[int, ...]:
    """Spatial sizes of what a convolution of ``(batch, *spatial, channels)`` gives."""
    sizes = zip(x.shape[1:-1], params["padding"], params["lhs_dilation"], strict=True)
    wide = [(size - 1) * d + 1 + low + high for size, (low, high), d in sizes]
    reach = [
        (k - 1) * d + 1 for k, d in zip(kernel.shape[:-2], params["rhs_dilation"], strict=True)
    ]
    strides = params["window_strides"]
    return tuple((a - b) // s + 1 for a, b, s in zip(wide, reach, strides, strict=True))


def _views(
    x: Any, starts: Sequence[int], apart: Sequence[int], sizes: Sequence[int], steps: Sequence[int],
    *, padding: Any, lhs_dilation: Any, **_: Any,
) -> list[Any]:  # fmt: skip
    """Of the padded ``x`` every ``steps``-th entry, ``sizes`` of them, from each of the starts.

    Args:
      x: ``(batch, *spatial, channels)``.
      starts: how many there are along each axis.
      apart: the distance of two of them.
      sizes: of a view.
      steps: between its entries.
      padding: of the convolution.
      lhs_dilation: of the convolution.
    """
    config = [(*pair, d - 1) for pair, d in zip(padding, lhs_dilation, strict=True)]
    wide = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    views = []
    for place in itertools.product(*map(range, starts)):
        first = [k * d for k, d in zip(place, apart, strict=True)]
        last = [a + (k - 1) * s + 1 for a, k, s in zip(first, sizes, steps, strict=True)]
        start, stop = (0, *first, 0), (x.shape[0], *last, x.shape[-1])
        views.append(jax.lax.slice(wide, start, stop, (1, *steps, 1)))
    return views


def _met(outputs: Any, inputs: Any, tap: Sequence[int], **params: Any) -> Any:
    """What each input meets of the outputs' gradient in one tap of the kernel; zero where none."""
    config, steps = [], params["lhs_dilation"]
    for i, (m, k) in enumerate(zip(inputs.shape[1:-1], outputs.shape[1:-1], strict=True)):
        # Input j lies at j * steps + low, output p at tap * stride + p * d.
        low, d = params["padding"][i][0], params["rhs_dilation"][i]
        before = tap[i] * params["window_strides"][i] - low
        config.append((before, (m - 1) * steps[i] - before - (k - 1) * d, d - 1))
    zero = jnp.zeros((), outputs.dtype)
    padded = jax.lax.pad(outputs, zero, [(0, 0, 0), *config, (0, 0, 0)])
    return jax.lax.slice(padded, [0] * padded.ndim, padded.shape, [1, *steps, 1])


def _apart(*, select_prim: Any, window_dimensions: Any, window_strides: Any, **_: Any) -> bool:
    """Whether it is the gradient of a max-pooling whose windows do not overlap."""
    return select_prim is jax.lax.ge_p and tuple(window_dimensions) == tuple(window_strides)


def _max_pool_gradient(
    source: Any, operand: Any, *, window_dimensions: Any, padding: Any, **_: Any
) -> Any:
    """Each window's gradient at the first of its greatest values, as XLA has it."""
    config = [
        (low, m * k - low - size, 0)
        for (low, _), m, k, size in zip(
            padding, source.shape, window_dimensions, operand.shape, strict=True
        )
    ]
    x = jax.lax.pad(operand, jnp.array(-jnp.inf, operand.dtype), config)
    split = [size for pair in zip(source.shape, window_dimensions, strict=True) for size in pair]
    x = x.reshape(split)
    inner = tuple(range(1, 2 * source.ndim, 2))
    place = jnp.arange(math.prod(window_dimensions), dtype=jnp.int32).reshape(
        [size for k in window_dimensions for size in (1, k)]
    )
    greatest = x.max(inner, keepdims=True)
    first = jnp.where(x == greatest, place, place.size).min(inner, keepdims=True)
    made = jnp.where(place == first, jnp.expand_dims(source, inner), 0).reshape(
        [m * k for m, k in zip(source.shape, window_dimensions, strict=True)]
    )
    back = [(-low, -high, 0) for low, high, _ in config]
    return jax.lax.pad(made, jnp.zeros((), made.dtype), back)
