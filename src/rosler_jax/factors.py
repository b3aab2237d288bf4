"""Sketch factors: the pytrees that stand for a weight matrix, and what one can do with them.

Notation: ``W`` is ``(m, n)`` and acts as ``y = x W``; ``s`` is the rank, ``l >= s`` the oversampled
co-range dimension. ``W`` is represented by ``C U R`` (generalised Nystroem; CUR when the sketches
select columns and rows).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import chex
import jax.numpy as jnp

import rosler_kernels as rk

if TYPE_CHECKING:
    from jaxtyping import Array, Float

RIDGE = 1e-6
"""Default ridge of the core solve, relative to the core's mean squared column norm."""


@chex.dataclass(frozen=True)
class SketchFactors:
    """A matrix ``W ~ C U R`` held as its three factors.

    Attributes:
      c: column factor ``C``, shape ``(m, s)``.
      u: core ``U``, shape ``(s, l)``; ``l == s`` outside the parallel stage of aRes-BP.
      r: row factor ``R``, shape ``(l, n)``.

    Example:
      >>> import jax.numpy as jnp
      >>> f = SketchFactors(c=jnp.ones((6, 2)), u=jnp.eye(2), r=jnp.ones((2, 5)))
      >>> reconstruct(f).shape, fold(f).r.shape
      ((6, 5), (2, 5))
    """

    c: Float[Array, "m s"]
    u: Float[Array, "s l"]
    r: Float[Array, "l n"]


@chex.dataclass(frozen=True)
class TwoFactors:
    """A matrix ``W = C R`` held as two factors, the smallest form of a learnt low-rank layer.

    Attributes:
      c: column factor, shape ``(m, s)``.
      r: row factor, shape ``(s, n)``.

    Example:
      >>> import jax.numpy as jnp
      >>> float(reconstruct(TwoFactors(c=jnp.ones((6, 2)), r=jnp.ones((2, 5))))[0, 0])
      2.0
    """

    c: Float[Array, "m s"]
    r: Float[Array, "s n"]


@chex.dataclass(frozen=True)
class SeededFactors:
    r"""A matrix ``W = a Psi U Omega^T`` of which only the core ``U`` is stored.

    ``a = sqrt(s_in / m)`` makes ``a x Psi`` have entries of the size of those of ``x``, so that
    ``U`` can be initialised and trained like a dense ``(s_in, s_out)`` layer.

    Attributes:
      u: core, shape ``(s_in, s_out)``.
      psi: input sketch, ``m -> s_in``.
      omega: output sketch, ``n -> s_out``.

    Example:
      >>> import jax.numpy as jnp, rosler_kernels as rk
      >>> f = SeededFactors(u=jnp.eye(4), psi=rk.srht(0, 16, 4), omega=rk.srht(1, 8, 4))
      >>> apply(f, jnp.ones((3, 16))).shape
      (3, 8)
    """

    u: Float[Array, "s_in s_out"]
    psi: rk.Sketch
    omega: rk.Sketch


def check_rank(rank: int, m: int, n: int) -> None:
    """Refuses a rank that no ``(m, n)`` matrix has.

    Raises:
      ValueError: if ``rank`` is not in ``1 .. min(m, n)``.
    """
    if not 1 <= rank <= min(m, n):
        raise ValueError(
            f"rank {rank} is outside 1..min(in={m}, out={n})={min(m, n)}; pass 1<=rank<={min(m, n)}"
        )


def core_from_sketch(a: Float[Array, "l s"], ridge: float = RIDGE) -> Float[Array, "s l"]:
    r"""Solves for the core ``U`` that makes ``C U R`` the generalised Nystroem approximation.

    ``U = argmin_U ||A U - I||_F^2 + lambda ||U||_F^2 = (A^T A + lambda I)^{-1} A^T`` with
    ``lambda = ridge * ||A||_F^2 / s``; the ridge keeps the solve bounded where ``A`` loses rank.
    Columns of zeros, of a rank that was padded, do not count in ``s``.
    Solved by QR of the stacked matrix ``[A; sqrt(lambda) I]``, which does not square the condition
    number as the normal equations would.

    Args:
      a: core matrix ``A = Psi^T W Omega``, shape ``(l, s)``.
      ridge: relative ridge, dimensionless.

    Returns:
      ``U``, shape ``(s, l)``, float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> core_from_sketch(2.0 * jnp.eye(3)).round(3).diagonal().tolist()
      [0.5, 0.5, 0.5]

    Source: Nakatsukasa, "Fast and stable randomized low-rank matrix approximation" (2020).
    """
    a = a.astype(rk.accumulator(a.dtype))
    rows, cols = a.shape
    squares = jnp.sum(a * a, axis=0)
    lam = ridge * jnp.sum(squares) / _nonzero(squares) + jnp.finfo(a.dtype).tiny
    stacked = jnp.concatenate([a, jnp.sqrt(lam) * jnp.eye(cols, dtype=a.dtype)], axis=0)
    q, triangle = rk.qr(stacked)
    return rk.solve_triangular(triangle, q[:rows].T)


def _nonzero(squares: Float[Array, "n"]) -> Float[Array, ""]:
    """How many are not zero, at least 1."""
    return jnp.maximum(jnp.sum((squares > 0).astype(squares.dtype)), 1)


def balance(factors: SketchFactors) -> SketchFactors:
    r"""Rewrites ``C U R`` so that the three factors share its singular values evenly.

    With ``C = Q_c T_c``, ``R^T = Q_r T_r`` and ``T_c U T_r^T = P S V^T`` the balanced factors are
    ``Q_c P S^{1/3}``, ``S^{1/3}`` and ``S^{1/3} V^T Q_r^T``: the same matrix, never formed.
    Shapes are kept; where ``l > s``, or C has columns or R rows of zeros, the surplus rows of R and
    columns of U become zero, and stay zero under gradient descent, since each gets its gradient
    through the other.

    Args:
      factors: ``C (m, s)``, ``U (s, l)``, ``R (l, n)`` with ``m >= s`` and ``n >= l``.

    Returns:
      Factors of the same shapes and dtypes; computed in float32 or wider.

    Raises:
      ValueError: if ``m < s`` or ``n < l``.

    Example:
      >>> import jax.numpy as jnp
      >>> f = SketchFactors(c=8.0 * jnp.ones((4, 1)), u=jnp.ones((1, 1)), r=jnp.ones((1, 4)))
      >>> b = balance(f)
      >>> bool(jnp.allclose(reconstruct(b), 8.0, atol=1e-4)), round(float(b.u[0, 0]), 3)
      (True, 3.175)
    """
    (m, s), (l, n) = factors.c.shape, factors.r.shape
    if m < s or n < l:
        raise ValueError(
            f"cannot balance C {factors.c.shape}, R {factors.r.shape}: needs rank {s}<=in={m} "
            f"and co-range dimension {l}<=out={n}; lower the rank or the oversampling"
        )
    wide = rk.accumulator(factors.c.dtype)
    q_c, t_c = rk.qr(factors.c.astype(wide))
    q_r, t_r = rk.qr(factors.r.astype(wide).T)
    left, sigma, right = rk.svd(t_c @ factors.u.astype(wide) @ t_r.T)
    k = sigma.shape[0]  # min(s, l)
    # A cube root makes much of what rounding leaves of a zero.
    rank = jnp.minimum(_nonzero(jnp.sum(t_c**2, 0)), _nonzero(jnp.sum(t_r**2, 0)))
    root = jnp.cbrt(jnp.where(jnp.arange(k, dtype=rank.dtype) < rank, sigma, 0))
    c = jnp.zeros((m, s), wide).at[:, :k].set(q_c @ (left * root[None, :]))
    u = jnp.zeros((s, l), wide).at[jnp.arange(k), jnp.arange(k)].set(root)
    r = jnp.zeros((l, n), wide).at[:k].set((root[:, None] * right) @ q_r.T)
    return SketchFactors(
        c=c.astype(factors.c.dtype), u=u.astype(factors.u.dtype), r=r.astype(factors.r.dtype)
    )


def truncate(factors: SketchFactors, rank: int) -> SketchFactors:
    """Returns the best rank-``rank`` approximation of ``C U R``, as balanced factors of that rank.

    Args:
      factors: any factors.
      rank: new rank, at most the old ``s``.

    Returns:
      ``C (m, rank)``, ``U (rank, rank)``, ``R (rank, n)``.

    Raises:
      ValueError: if ``rank`` is not in ``1 .. s``.

    Example:
      >>> import jax.numpy as jnp
      >>> f = SketchFactors(c=jnp.eye(4, 2), u=jnp.diag(jnp.array([3.0, 1.0])), r=jnp.eye(2, 4))
      >>> [round(v, 4) for v in jnp.diag(reconstruct(truncate(f, 1))).tolist()]
      [3.0, 0.0, 0.0, 0.0]
    """
    s = min(factors.u.shape)
    if not 1 <= rank <= s:
        raise ValueError(f"rank {rank} is outside 1..{s}, the rank of these factors")
    even = balance(factors)  # singular values come out sorted, so truncation is slicing
    return SketchFactors(c=even.c[:, :rank], u=even.u[:rank, :rank], r=even.r[:rank])


def fold(factors: SketchFactors) -> TwoFactors:
    """Folds the core into a neighbour, leaving ``k (m + n)`` numbers, ``k = min(s, l)``.

    Example:
      >>> import jax.numpy as jnp
      >>> f = SketchFactors(c=jnp.ones((5, 2)), u=jnp.ones((2, 3)), r=jnp.ones((3, 7)))
      >>> folded = fold(f)
      >>> folded.c.shape, folded.r.shape
      ((5, 2), (2, 7))
    """
    s, l = factors.u.shape
    if s <= l:
        return TwoFactors(c=factors.c, r=factors.u @ factors.r)
    return TwoFactors(c=factors.c @ factors.u, r=factors.r)


def input_scale(psi: rk.Sketch) -> float | Float[Array, ""]:
    """``sqrt(s_in / m)``: brings a projected input back to the size of the input's entries."""
    if psi.live is None:
        return math.sqrt(psi.cols / psi.rows)
    return jnp.sqrt(psi.live.astype(jnp.float32) / psi.rows)


def reconstruct(factors: SketchFactors | TwoFactors | SeededFactors) -> Float[Array, "m n"]:
    """Forms the full ``(m, n)`` matrix. For tests and export only: training never needs it.

    Example:
      >>> import jax.numpy as jnp
      >>> reconstruct(TwoFactors(c=jnp.ones((3, 1)), r=jnp.ones((1, 2)))).shape
      (3, 2)
    """
    if isinstance(factors, SeededFactors):
        return apply(factors, jnp.eye(factors.psi.rows, dtype=factors.u.dtype))
    if isinstance(factors, TwoFactors):
        return factors.c @ factors.r
    return factors.c @ factors.u @ factors.r


def apply(
    factors: SketchFactors | TwoFactors | SeededFactors, x: Float[Array, "*batch m"]
) -> Float[Array, "*batch n"]:
    r"""Multiplies by the represented matrix through the thin side: ``y = ((x C) U) R``.

    Args:
      factors: learnt, folded or seeded factors.
      x: inputs, shape ``(..., m)``.

    Returns:
      ``x W``, shape ``(..., n)``, dtype of the factors' products.

    Example:
      >>> import jax.numpy as jnp
      >>> apply(TwoFactors(c=jnp.ones((3, 1)), r=jnp.ones((1, 2))), jnp.ones((4, 3))).shape
      (4, 2)
    """
    if isinstance(factors, SeededFactors):
        psi, omega = factors.psi, factors.omega
        z = jnp.asarray(input_scale(psi), x.dtype) * rk.project(x, psi)
        return rk.project_transpose(z @ factors.u, omega)
    if isinstance(factors, TwoFactors):
        return (x @ factors.c) @ factors.r
    return ((x @ factors.c) @ factors.u) @ factors.r
