"""Starting points for sketch factors: virtual random matrices, and existing dense ones.

A *virtual* matrix is a seed and a shape. Its entries are regenerated tile by tile inside
:func:`rosler_kernels.project`, so sketching one costs O((m + n) s) memory and the ``m x n`` array
never exists.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, Literal

import chex
import jax
import jax.numpy as jnp

import rosler_kernels as rk
from rosler_jax._linalg import randomized_svd
from rosler_jax.factors import (
    SeededFactors,
    SketchFactors,
    balance,
    check_rank,
    core_from_sketch,
    input_scale,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

RANGE_FINDER_GAIN = 0.5
"""Scale of the range-finder initialisation, found best in our feasibility study."""


@chex.dataclass(frozen=True)
class VirtualMatrix:
    """A random ``(m, n)`` matrix known by its seed alone: ``W0 = scale * gaussian(seed)``.

    Attributes:
      sketch: the Gaussian sketch whose (unit variance / n) entries are the matrix.
      scale: multiplier, so that entries have standard deviation ``scale / sqrt(n)``.
    """

    sketch: rk.Sketch
    scale: float


def virtual_normal(key: Key[Array, ""], m: int, n: int, stddev: float) -> VirtualMatrix:
    """Makes a virtual ``(m, n)`` matrix with independent N(0, stddev^2) entries.

    Example:
      >>> import jax
      >>> virtual_matmul(virtual_normal(jax.random.key(0), 6, 4, 1.0), jnp.eye(4)).shape
      (6, 4)
    """
    return VirtualMatrix(sketch=rk.gaussian(key, m, n), scale=stddev * math.sqrt(n))


def glorot_stddev(m: int, n: int) -> float:
    """Standard deviation of Glorot and Bengio (2010): ``sqrt(2 / (m + n))``."""
    return math.sqrt(2.0 / (m + n))


def he_stddev(m: int, n: int) -> float:
    """Standard deviation of He et al. (2015): ``sqrt(2 / m)``."""
    del n
    return math.sqrt(2.0 / m)


STDDEVS = {"glorot": glorot_stddev, "he": he_stddev}


def virtual_matmul(w0: VirtualMatrix, x: Float[Array, "n k"]) -> Float[Array, "m k"]:
    """Computes ``W0 X``, streamed tile by tile."""
    return w0.scale * rk.project_transpose(x.T, w0.sketch).T


def virtual_rmatmul(w0: VirtualMatrix, y: Float[Array, "m k"]) -> Float[Array, "k n"]:
    """Computes ``Y^T W0``, streamed tile by tile."""
    return w0.scale * rk.project(y.T, w0.sketch)


def nystrom_sketches(
    c: Float[Array, "m k"],
    r: Float[Array, "k n"],
    psi: rk.Sketch,
    omega: rk.Sketch,
) -> SketchFactors:
    """Sketches the matrix ``W = c r``, given as thin factors, for the parallel stage of aRes-BP.

    Returns:
      ``C = W Omega (m, s)``, the core *transposed* ``A^T = (Psi^T W Omega)^T (s, l)`` in the place
      of ``u``, and ``R = Psi^T W (l, n)``.
    """
    r_omega = rk.project(r, omega)
    psi_c = rk.project(c.T, psi).T
    return SketchFactors(c=c @ r_omega, u=(psi_c @ r_omega).T, r=psi_c @ r)


# Compiled as one: the operations by themselves would be compiled one by one, for every shape.
@functools.partial(jax.jit, static_argnames=("m", "n", "rank", "stddev", "gain"))
def _balanced_pair(key: Any, m: int, n: int, rank: int, stddev: float, gain: float) -> Any:
    q, b = _range_finder_pair(key, m, n, rank, stddev, gain)
    return balance(SketchFactors(c=q, u=jnp.eye(rank, dtype=q.dtype), r=b))


@functools.partial(jax.jit, static_argnames=("stddev", "gain"))
def _sketched_pair(key: Any, psi: Any, omega: Any, stddev: float, gain: float) -> Any:
    q, b = _range_finder_pair(key, psi.rows, omega.rows, omega.cols, stddev, gain)
    return nystrom_sketches(q, b, psi, omega)


def _range_finder_pair(
    key: Key[Array, ""], m: int, n: int, rank: int, stddev: float, gain: float
) -> tuple[Float[Array, "m s"], Float[Array, "s n"]]:
    """Thin factors of ``gain sqrt(m/s) Q Q^T W0`` with ``Q = orth(W0 Omega)``, W0 virtual."""
    key_w, key_omega = jax.random.split(key)
    w0 = virtual_normal(key_w, m, n, stddev)
    omega = jax.random.normal(key_omega, (n, rank), jnp.float32)
    q, _ = rk.qr(virtual_matmul(w0, omega))
    return q, gain * math.sqrt(m / rank) * virtual_rmatmul(w0, q)


def range_finder(
    key: Key[Array, ""],
    m: int,
    n: int,
    rank: int,
    *,
    init: Literal["glorot", "he"] = "glorot",
    gain: float = RANGE_FINDER_GAIN,
) -> SketchFactors:
    r"""Initialises factors from the range of a virtual random matrix, balanced.

    ``W0 <- gain sqrt(m / s) Q Q^T W0`` with ``Q = orth(W0 Omega)`` and ``W0`` virtual; the factor
    ``sqrt(m / s)`` gives back the size that projecting on ``s`` of ``m`` directions takes away.

    Args:
      key: typed PRNG key.
      m: input dimension.
      n: output dimension.
      rank: ``s``.
      init: which variance the virtual matrix has.
      gain: multiplier; 0.5 trained best in our study.

    Returns:
      Balanced factors ``C (m, s)``, ``U (s, s)``, ``R (s, n)``, float32.

    Raises:
      ValueError: if the rank does not fit.

    Example:
      >>> import jax
      >>> f = range_finder(jax.random.key(0), 20, 30, 4)
      >>> f.c.shape, f.u.shape, f.r.shape
      ((20, 4), (4, 4), (4, 30))

    Source: Halko, Martinsson, Tropp (2011), algorithm 4.1; the scaling is ours.
    """
    check_rank(rank, m, n)
    factors: SketchFactors = _balanced_pair(key, m, n, rank, STDDEVS[init](m, n), gain)
    return factors


def ares_sketches(
    key: Key[Array, ""],
    psi: rk.Sketch,
    omega: rk.Sketch,
    *,
    init: Literal["glorot", "he"] = "glorot",
    gain: float = RANGE_FINDER_GAIN,
) -> SketchFactors:
    """Stage one of aRes-BP: the three sketches of a range-found virtual matrix, never formed.

    Args:
      key: typed PRNG key of the virtual matrix.
      psi: co-range sketch, ``m -> l``.
      omega: range sketch, ``n -> s``.
      init: which variance the virtual matrix has.
      gain: as in :func:`range_finder`.

    Returns:
      ``C (m, s)``, ``A^T (s, l)`` in the place of ``u``, ``R (l, n)``, float32.

    Example:
      >>> import jax, rosler_kernels as rk
      >>> f = ares_sketches(jax.random.key(0), rk.gaussian(1, 20, 8), rk.gaussian(2, 30, 4))
      >>> f.c.shape, f.u.shape, f.r.shape
      ((20, 4), (4, 8), (8, 30))

    Source: our reading of Li et al. (2021), doi 10.1038/s43588-021-00039-6, "initialisation".
    """
    m, n, rank = psi.rows, omega.rows, omega.cols
    check_rank(rank, m, n)
    factors: SketchFactors = _sketched_pair(key, psi, omega, STDDEVS[init](m, n), gain)
    return factors


def seeded(
    key: Key[Array, ""],
    psi: rk.Sketch,
    omega: rk.Sketch,
    *,
    init: Literal["glorot", "he"] = "he",
) -> SeededFactors:
    """Initialises a seeded (core-only) layer: ``U`` as a dense ``(s_in, s_out)`` layer would be.

    Example:
      >>> import jax, rosler_kernels as rk
      >>> seeded(jax.random.key(0), rk.srht(1, 20, 8), rk.srht(2, 30, 4)).u.shape
      (8, 4)
    """
    shape = (psi.cols, omega.cols)
    u = STDDEVS[init](*shape) * jax.random.normal(key, shape, jnp.float32)
    return SeededFactors(u=u, psi=psi, omega=omega)


def from_dense(
    w: Float[Array, "m n"],
    rank: int,
    key: Key[Array, ""],
    *,
    method: Literal["svd", "nystrom", "cur"] = "svd",
) -> SketchFactors:
    r"""Factors of an existing matrix.

    ``svd``: randomised SVD with two power iterations. ``nystrom``: generalised Nystroem,
    ``C = W Omega``, ``R = Psi^T W``, ``U = (Psi^T W Omega)^+`` with ``l = 2 s``. ``cur``: the same
    with columns and rows of W, drawn with probability proportional to their squared norms.

    Args:
      w: dense matrix, shape ``(m, n)``.
      rank: ``s``.
      key: typed PRNG key.
      method: ``"svd"`` is the most accurate, ``"cur"`` keeps real rows and columns until balanced.

    Returns:
      Balanced factors of rank ``s``.

    Raises:
      ValueError: for an unknown method, or a rank that does not fit.

    Example:
      >>> import jax
      >>> w = jnp.outer(jnp.arange(1.0, 7.0), jnp.arange(1.0, 5.0))
      >>> from rosler_jax.factors import reconstruct
      >>> bool(jnp.allclose(reconstruct(from_dense(w, 1, jax.random.key(0))), w, rtol=1e-4))
      True

    Source: Halko et al. (2011), algorithm 5.1; Nakatsukasa (2020); Drineas et al. (2008).
    """
    check_rank(rank, *w.shape)
    if method not in ("svd", "nystrom", "cur"):
        raise ValueError(f"unknown method {method!r}; pass 'svd', 'nystrom' or 'cur'")
    factors: SketchFactors = _approximation(w, rank, key, method)
    return factors


@functools.partial(jax.jit, static_argnames=("rank", "method"))
def _approximation(w: Any, rank: int, key: Any, method: str) -> Any:
    m, n = w.shape
    w = w.astype(rk.accumulator(w.dtype))
    key_omega, key_psi = jax.random.split(key)
    if method == "svd":
        left, sigma, right = randomized_svd(w, rank, key, power_iterations=2)
        return balance(SketchFactors(c=left, u=jnp.diag(sigma), r=right))
    co_range = min(2 * rank, m, n)
    if method == "nystrom":
        omega, psi = rk.gaussian(key_omega, n, rank), rk.gaussian(key_psi, m, co_range)
    else:
        omega, psi = rk.rows_norm(key_omega, w.T, rank), rk.rows_norm(key_psi, w, co_range)
    c = rk.project(w, omega)
    r = rk.project(w.T, psi).T
    u = core_from_sketch(rk.project(r, omega))
    even = balance(SketchFactors(c=c, u=u, r=r))
    return SketchFactors(c=even.c, u=even.u[:, :rank], r=even.r[:rank])


def ares_from_dense(
    w: Float[Array, "m n"], psi: rk.Sketch, omega: rk.Sketch, key: Key[Array, ""]
) -> SketchFactors:
    """Starts aRes-BP's parallel stage from an existing matrix: sketches of its best rank-s part.

    Args:
      w: dense matrix, shape ``(m, n)``.
      psi: co-range sketch, ``m -> l``.
      omega: range sketch, ``n -> s``.
      key: typed PRNG key of the randomised SVD that cuts ``w`` to rank ``s``.

    Returns:
      ``C (m, s)``, ``A^T (s, l)`` in the place of ``u``, ``R (l, n)``, float32 or wider.

    Example:
      >>> import jax, rosler_kernels as rk
      >>> w = jnp.ones((20, 30))
      >>> f = ares_from_dense(w, rk.gaussian(1, 20, 8), rk.gaussian(2, 30, 4), jax.random.key(0))
      >>> f.c.shape, f.u.shape, f.r.shape
      ((20, 4), (4, 8), (8, 30))

    Source: our reading of Li et al. (2021), doi 10.1038/s43588-021-00039-6, "initialisation".
    """
    check_rank(omega.cols, psi.rows, omega.rows)
    factors: SketchFactors = _sketched_approximation(w, psi, omega, key)
    return factors


@jax.jit
def _sketched_approximation(w: Any, psi: Any, omega: Any, key: Any) -> Any:
    left, sigma, right = randomized_svd(w, omega.cols, key, power_iterations=2)
    return nystrom_sketches(left * sigma[None, :], right, psi, omega)


def seeded_from_dense(w: Float[Array, "m n"], psi: rk.Sketch, omega: rk.Sketch) -> SeededFactors:
    r"""Finds the core that brings a seeded layer closest to an existing matrix.

    ``U = argmin_U ||a Psi U Omega^T - W||_F = a^{-1} Psi^+ W (Omega^T)^+`` with
    ``a = sqrt(s_in / m)``; of several minimisers the one of least norm.

    Args:
      w: dense matrix, shape ``(m, n)``.
      psi: input sketch, ``m -> s_in``.
      omega: output sketch, ``n -> s_out``.

    Returns:
      Factors with ``U (s_in, s_out)``, float32 or wider.

    Example:
      >>> import rosler_kernels as rk
      >>> seeded_from_dense(jnp.ones((20, 30)), rk.srht(1, 20, 8), rk.srht(2, 30, 4)).u.shape
      (8, 4)
    """
    return SeededFactors(u=_core(w, psi, omega), psi=psi, omega=omega)


@jax.jit
def _core(w: Any, psi: Any, omega: Any) -> Any:
    w = w.astype(rk.accumulator(w.dtype))
    left = rk.lstsq(rk.materialize(psi, w.dtype), w)
    u = rk.lstsq(rk.materialize(omega, w.dtype), left.T).T
    return u / input_scale(psi)
