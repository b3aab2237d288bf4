"""QR, SVD and triangular solves of one matrix, which ``vmap`` maps one after another on CPUs.

LAPACK's batched calls of jaxlib (0.10) hand their matrices to the pool of threads that they run on,
and wait: where as many run at once as there are threads, as a few layers under ``vmap`` on two
cores, they wait for ever. Of one matrix a call runs where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = ["lstsq", "one_by_one", "qr", "solve_triangular", "svd"]


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which ``vmap`` calls again and again on CPUs; elsewhere with a batch.

    Args:
      function: of arrays, differentiable.

    Returns:
      The same function; derivatives of both modes are the function's own.

    Example:
      >>> double = one_by_one(lambda x: 2 * x)
      >>> jax.vmap(double)(jnp.arange(3.0)).tolist(), float(jax.grad(double)(1.0))
      ([0.0, 2.0, 4.0], 2.0)
    """
    single = jax.custom_batching.custom_vmap(function)

    @single.def_vmap
    def _(size: int, batched: Any, *args: Any) -> tuple[Any, Any]:
        del size
        if jax.default_backend() != "cpu":
            out = jax.vmap(function, [0 if b else None for b in batched])(*args)
        else:
            moving = [a for a, b in zip(args, batched, strict=True) if b]

            def one(parts: list[Any]) -> Any:
                rest = iter(parts)
                return single(*(next(rest) if b else a for a, b in zip(args, batched, strict=True)))

            out = jax.lax.map(one, moving)
        return out, jax.tree.map(lambda _: True, out)

    @jax.custom_jvp
    def whole(*args: Any) -> Any:
        return single(*args)

    @whole.defjvp
    def _(args: Any, tangents: Any) -> tuple[Any, Any]:
        return single(*args), jax.jvp(function, args, tangents)[1]

    return whole


def qr(a: Float[Array, "m n"]) -> tuple[Float[Array, "m k"], Float[Array, "k n"]]:
    """The reduced QR decomposition ``A = Q T``.

    Args:
      a: a matrix, ``(m, n)``.

    Returns:
      ``(Q, T)`` of shapes ``(m, k)`` and ``(k, n)``, ``k = min(m, n)``.

    Example:
      >>> q, t = qr(jnp.array([[3.0], [4.0]]))
      >>> round(abs(float(t[0, 0])), 3)
      5.0
    """
    return _qr(a)


def svd(a: Float[Array, "m n"]) -> tuple[Any, Any, Any]:
    """The reduced singular value decomposition ``A = P diag(s) V^T``.

    Args:
      a: a matrix, ``(m, n)``.

    Returns:
      ``(P, s, V^T)`` of shapes ``(m, k)``, ``(k,)`` (descending) and ``(k, n)``, ``k = min(m, n)``.

    Example:
      >>> svd(jnp.diag(jnp.array([1.0, 3.0])))[1].tolist()
      [3.0, 1.0]
    """
    return _svd(a)


def solve_triangular(t: Float[Array, "n n"], b: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """``X`` with ``T X = B`` for an upper triangle T.

    Args:
      t: ``(n, n)``; what is below its diagonal is not read.
      b: ``(n, k)``.

    Returns:
      ``X``, ``(n, k)``.

    Example:
      >>> solve_triangular(jnp.array([[2.0, 0.0], [0.0, 4.0]]), jnp.ones((2, 1))).tolist()
      [[0.5], [0.25]]
    """
    return _solve_triangular(t, b)


def lstsq(a: Float[Array, "m n"], b: Float[Array, "m k"]) -> Float[Array, "n k"]:
    """The ``X`` of least norm that minimises ``||A X - B||``.

    Args:
      a: ``(m, n)``.
      b: ``(m, k)``.

    Returns:
      ``X``, ``(n, k)``.

    Example:
      >>> lstsq(jnp.eye(2), jnp.ones((2, 1))).round(3).tolist()
      [[1.0], [1.0]]
    """
    return _lstsq(a, b)


_qr = one_by_one(lambda a: tuple(jnp.linalg.qr(a)))
_svd = one_by_one(lambda a: tuple(jnp.linalg.svd(a, full_matrices=False)))
_solve_triangular = one_by_one(lambda t, b: jax.scipy.linalg.solve_triangular(t, b, lower=False))
_lstsq = one_by_one(lambda a, b: jnp.linalg.lstsq(a, b)[0])
