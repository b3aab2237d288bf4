"""Products in the order that a CPU likes, and the dtype that sums are taken in."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

if TYPE_CHECKING:
    from jaxtyping import Array, Float

ABORTS = (2, 3)
"""Numbers of examples at which XLA for CPUs (jaxlib 0.10.2) aborts on a thin product that is
transposed behind a barrier, under ``vmap``. They take the usual order."""


def accumulator(*dtypes: Any) -> jnp.dtype:
    """The dtype that numbers of these dtypes are summed in: the widest, float32 at least.

    Unlike ``jnp.promote_types`` it serves under strict promotion, which lets bfloat16 meet nothing.

    Args:
      dtypes: of the operands.

    Returns:
      a floating dtype.

    >>> accumulator("bfloat16"), accumulator("float32", "float64")
    (dtype('float32'), dtype('float64'))
    """
    floating = [d for d in map(jnp.dtype, dtypes) if jnp.issubdtype(d, jnp.floating)]
    return max([jnp.dtype(jnp.float32), *floating], key=lambda dtype: dtype.itemsize)


def widen(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x in the dtype that its numbers are summed in."""
    return x.astype(accumulator(x.dtype))


def wide_dot(x: Float[Array, "... a"], w: Float[Array, "a b"]) -> Float[Array, "... b"]:
    """x w in the dtype that x's numbers are summed in, exact to its accuracy."""
    return jnp.dot(widen(x), w.astype(accumulator(x.dtype)), precision=jax.lax.Precision.HIGHEST)


def outer(x: Float[Array, "*examples a"], y: Float[Array, "*examples b"]) -> Float[Array, "a b"]:
    """x^T y, summed over all leading axes: the gradient of a factor.

    The thinner operand comes first, and an optimisation barrier keeps it there: with the long axis
    across the rows of both operands, as XLA would have it, the product takes several times as long
    on a CPU where one side has 8 to 64 columns.

    Args:
      x: array (..., a).
      y: array (..., b), of the same leading axes.

    Returns:
      array (a, b).

    >>> outer(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 5))).shape
    (4, 5)
    """
    a, b = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    if a.shape[1] <= b.shape[1] or a.shape[0] in ABORTS:
        return jnp.dot(a.T, b)
    return jax.lax.optimization_barrier(jnp.dot(b.T, a)).T


def dot(x: Float[Array, "*examples a"], w: Float[Array, "a b"]) -> Float[Array, "*examples b"]:
    """x w, whose gradient in w comes in the order of ``outer``.

    >>> jax.grad(lambda w: dot(jnp.ones((2, 3, 4)), w).sum())(jnp.ones((4, 5))).shape
    (4, 5)
    """
    flat = x.reshape(math.prod(x.shape[:-1]), w.shape[0])
    return _dot(flat, w).reshape(*x.shape[:-1], w.shape[1])


@jax.custom_jvp
def _dot(x: Array, w: Array) -> Array:
    return jnp.dot(x, w)


@functools.partial(_dot.defjvp, symbolic_zeros=True)
def _dot_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (x, w), (dx, dw) = primals, tangents
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(jnp.dot(dx, w))
    if not isinstance(dw, SymbolicZero):
        # So written that the transpose of this is `outer`, barrier and all.
        thin = w.shape[0] > w.shape[1] and x.shape[0] not in ABORTS
        terms.append(jnp.dot(jax.lax.optimization_barrier(dw.T), x.T).T if thin else jnp.dot(x, dw))
    return _dot(x, w), sum(terms[1:], terms[0])
