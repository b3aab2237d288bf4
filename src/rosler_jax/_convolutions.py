"""Convolutions with their axes in the order that XLA's fast kernels on CPUs take.

XLA for CPUs brings the axes of a convolution into that order in a program's outermost computation
only. In a loop, as a compiled training is one, gradients of kernels keep the order that
differentiation gave them, and run by a kernel that takes several times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core


def canonical_convolutions(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its convolutions as ones of ``(batch, *spatial, channels)``; same numbers.

    Those in loops of its own, and grouped by batch, stay as they are.

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
    plain = jax.lax.ConvDimensionNumbers(
        (0, n - 1, *range(1, n - 1)), (n - 1, n - 2, *range(n - 2)), (0, n - 1, *range(1, n - 1))
    )
    kernel = rhs.transpose((*right[2:], right[1], right[0]))
    made = jax.lax.conv_general_dilated_p.bind(
        lhs.transpose(last(left)), kernel, dimension_numbers=plain, **params
    )
    order = last(out)
    return made.transpose([order.index(k) for k in range(n)])
