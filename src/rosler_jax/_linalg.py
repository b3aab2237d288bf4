"""Randomised range finder and singular value decomposition of a dense matrix.

Source: Halko, Martinsson, Tropp, "Finding structure with randomness: probabilistic algorithms for
constructing approximate matrix decompositions", SIAM Review 53, 217-288, 2011 (HMT below).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

import rosler_kernels as rk

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

# Float32 products may run in TF32 on GPUs and bfloat16 on TPUs, whose rounding would put rank back.
_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def _gaussian_sketch(w: Float[Array, "m n"], cols: int, key: Key[Array, ""]) -> Float[Array, "m k"]:
    """``W Omega`` with ``Omega`` Gaussian, ``(n, cols)``, never stored whole when it is large."""
    return rk.project(w, rk.gaussian(key, w.shape[1], cols))


def _orthonormal(y: Float[Array, "m k"]) -> Float[Array, "m k"]:
    return rk.qr(y)[0]


def _as_wide(w: Float[Array, "m n"]) -> Float[Array, "m n"]:
    if w.ndim != 2:
        raise ValueError(f"expected a matrix, got shape {w.shape}; reshape it to two dimensions")
    return w.astype(rk.accumulator(w.dtype))


def _check_size(name: str, size: int, w: Float[Array, "m n"], power_iterations: int) -> None:
    m, n = w.shape
    if not 1 <= size <= min(m, n):
        raise ValueError(
            f"{name} {size} is outside 1..min(in={m}, out={n})={min(m, n)}; "
            f"pass 1<={name}<={min(m, n)}"
        )
    if power_iterations < 0:
        raise ValueError(f"power_iterations {power_iterations} is negative; pass 0 or more")


def randomized_range_finder(
    w: Float[Array, "m n"], size: int, key: Key[Array, ""], *, power_iterations: int = 1
) -> Float[Array, "m k"]:
    r"""Finds an orthonormal basis of the dominant range of a matrix by sketching it.

    ``Q = orth((W W^T)^q W Omega)`` with ``Omega`` Gaussian ``(n, k)``; the basis is orthonormalised
    after every product, without which small singular directions drown in rounding. In expectation
    ``||W - Q Q^T W||_F <= (1 + s/(p-1))^{1/2} (sum_{j>s} sigma_j^2)^{1/2}`` for every split
    ``k = s + p`` with ``p >= 2``, already at ``q = 0``.

    Args:
      w: dense matrix, shape ``(m, n)``; computed in float32 or wider.
      size: ``k``, number of basis vectors (target rank plus oversampling).
      key: typed PRNG key of the sketch.
      power_iterations: ``q``.

    Returns:
      ``Q``, shape ``(m, k)``, float32 or wider.

    Raises:
      ValueError: if ``w`` is no matrix, or ``size`` or ``power_iterations`` is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w = jnp.outer(jnp.arange(1.0, 6.0), jnp.arange(1.0, 4.0))
      >>> q = randomized_range_finder(w, 1, jax.random.key(0))
      >>> q.shape, bool(jnp.allclose(q @ (q.T @ w), w, atol=1e-4))
      ((5, 1), True)

    Source: HMT algorithm 4.4; the bound is theorem 10.5.
    """
    w = _as_wide(w)
    _check_size("size", size, w, power_iterations)
    q = _orthonormal(_gaussian_sketch(w, size, key))
    for _ in range(power_iterations):
        q = _orthonormal(_matmul(w, _orthonormal(_matmul(w.T, q))))
    return q


def randomized_svd(
    w: Float[Array, "m n"],
    rank: int,
    key: Key[Array, ""],
    *,
    power_iterations: int = 1,
    oversampling: int = 8,
) -> tuple[Float[Array, "m s"], Float[Array, "s"], Float[Array, "s n"]]:
    r"""Approximates the leading singular triplets of a matrix by sketching its range.

    With ``Q`` from :func:`randomized_range_finder` of size ``k = min(s + p, m, n)`` and the small
    SVD ``Q^T W = P S V^T``, the triplets are ``(Q P)_s, S_s, V^T_s``. Exact when ``rank(W) <= s``.
    In expectation ``||W - W_s||_F^2 <= (2 + s/(p-1)) sum_{j>s} sigma_j^2``, and close to the
    optimum ``sum_{j>s} sigma_j^2`` after one or two power iterations.

    Args:
      w: dense matrix, shape ``(m, n)``; computed in float32 or wider.
      rank: ``s``, number of triplets.
      key: typed PRNG key of the sketch.
      power_iterations: ``q``.
      oversampling: ``p``, extra basis vectors, cut off again after the small SVD.

    Returns:
      ``(left, sigma, right)`` of shapes ``(m, s)``, ``(s,)`` (descending) and ``(s, n)``, float32
      or wider, so that ``W ~ left diag(sigma) right``.

    Raises:
      ValueError: if ``w`` is no matrix or an option is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
      >>> left, sigma, right = randomized_svd(w, 2, jax.random.key(0))
      >>> left.shape, [round(v, 3) for v in sigma.tolist()], right.shape
      ((3, 2), [3.0, 2.0], (2, 3))

    Source: HMT algorithms 4.4 and 5.1.
    """
    w = _as_wide(w)
    _check_size("rank", rank, w, power_iterations)
    if oversampling < 0:
        raise ValueError(f"oversampling {oversampling} is negative; pass 0 or more")
    size = min(rank + oversampling, *w.shape)
    q = randomized_range_finder(w, size, key, power_iterations=power_iterations)
    left, sigma, right = rk.svd(_matmul(q.T, w))
    return _matmul(q, left[:, :rank]), sigma[:rank], right[:rank]


def low_rank_product(
    left: Float[Array, "m s"], sigma: Float[Array, "s"], right: Float[Array, "s n"]
) -> Float[Array, "m n"]:
    """Forms ``left diag(sigma) right`` in full float precision, whatever the device's default.

    Example:
      >>> import jax.numpy as jnp
      >>> low_rank_product(jnp.ones((2, 1)), jnp.array([3.0]), jnp.ones((1, 2))).tolist()
      [[3.0, 3.0], [3.0, 3.0]]
    """
    return _matmul(left * sigma[None, :], right)
