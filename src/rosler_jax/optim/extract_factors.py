"""From trained low-rank dense weights to the thin factors that replace them, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from rosler_jax._linalg import low_rank_product, randomized_svd
from rosler_jax.optim._checks import static_int
from rosler_jax.optim._matrices import as_matrix, select_matrices

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

    from rosler_jax.optim._matrices import Where


class LowRank(NamedTuple):
    """Two thin factors in the place of a weight ``W = c r``; the last axis of ``c`` meets ``r``.

    For a convolution kernel ``(kh, kw, c_in, c_out)``, ``c`` is the kernel of a convolution with
    ``s`` filters and ``r`` that of a 1x1 convolution.
    """

    c: jax.typing.ArrayLike  # shape=(*w.shape[:-1], s), dtype of the weight
    r: jax.typing.ArrayLike  # shape=(s, n), dtype of the weight


def _is_low_rank(x: Any) -> bool:
    return isinstance(x, LowRank)


def _factor(
    w: Float[Array, "*lead n"],
    rank: int,
    key: Key[Array, ""],
    power_iterations: int,
    oversampling: int,
) -> tuple[LowRank, Float[Array, ""]]:
    """Balanced factors of one weight and their relative error, measured after rounding them."""
    wide = jnp.promote_types(w.dtype, jnp.float32)
    matrix = as_matrix(w).astype(wide)
    left, sigma, right = randomized_svd(
        matrix, rank, key, power_iterations=power_iterations, oversampling=oversampling
    )
    root = jnp.sqrt(sigma)
    c, r = (left * root[None, :]).astype(w.dtype), (root[:, None] * right).astype(w.dtype)
    product = low_rank_product(c.astype(wide), jnp.ones(rank, wide), r.astype(wide))
    norm = jnp.linalg.norm(matrix)
    error = jnp.linalg.norm(matrix - product) / jnp.where(norm > 0, norm, 1)  # 0 for W = 0
    return LowRank(c=c.reshape(*w.shape[:-1], rank), r=r), error


def extract_factors(
    params: Any,
    rank: int,
    where: Where | None = None,
    *,
    power_iterations: int = 2,
    oversampling: int = 8,
    seed: int = 0,
) -> tuple[Any, dict[str, Float[Array, ""]]]:
    r"""Replaces each chosen weight by two thin factors: ``W = c r``, singular values split evenly.

    From the randomised SVD ``W ~ P S V^T`` of rank ``s``: ``c = P S^{1/2}``, ``r = S^{1/2} V^T``.
    The factors are exact, up to rounding, where ``rank(W) <= s``, which is so right after a
    restriction by :func:`~rosler_jax.optim.restrict_rank.restrict_rank` with the same ``rank`` and
    ``where``; the errors returned tell.

    Args:
      params: parameter tree: Linen dicts, ``nnx.State``, and so on.
      rank: ``s``.
      where: as in ``restrict_rank``.
      power_iterations: ``q``, of consequence only where ``rank(W) > s``.
      oversampling: extra range directions, cut off again; likewise.
      seed: seed of the sketches.

    Returns:
      ``(factored, errors)``. ``factored`` has the structure of ``params``, with a :class:`LowRank`
      in the place of each chosen leaf: ``c (m, s)`` (``(kh, kw, c_in, s)`` for a convolution) and
      ``r (s, n)``. ``errors`` maps a leaf's name to ``||W - c r||_F / ||W||_F``, a scalar,
      float32 or wider.

    Raises:
      TypeError: if ``rank`` is no int.
      ValueError: if an option is out of range, or ``where`` picks nothing or a weight that has no
        rank ``s``.

    Example:
      >>> import jax.numpy as jnp
      >>> w = jnp.outer(jnp.arange(1.0, 6.0), jnp.arange(1.0, 4.0))
      >>> factored, errors = extract_factors({"kernel": w, "bias": jnp.zeros(3)}, rank=1)
      >>> factored["kernel"].c.shape, factored["kernel"].r.shape, bool(errors["kernel"] < 1e-6)
      ((5, 1), (1, 3), True)

    Source: Halko, Martinsson, Tropp (2011), algorithm 5.1.
    """
    rank = static_int("rank", rank, 1)
    leaves, treedef = jax.tree.flatten(params)
    key = jax.random.key(seed)
    errors = {}
    for name, index in select_matrices(params, rank, where):
        leaf_key = jax.random.fold_in(key, index)
        leaves[index], errors[name] = _factor(
            leaves[index], rank, leaf_key, power_iterations, oversampling
        )
    return jax.tree.unflatten(treedef, leaves), errors


def merge_factors(factored: Any) -> Any:
    """Multiplies factors out again: the inverse of :func:`extract_factors` on rank-s weights.

    Args:
      factored: tree with :class:`LowRank` nodes.

    Returns:
      The tree with each node replaced by the dense ``c r``, of the shape and dtype it had.

    Example:
      >>> import jax.numpy as jnp
      >>> factored = {"kernel": LowRank(c=jnp.ones((3, 3, 2, 1)), r=jnp.ones((1, 8)))}
      >>> merge_factors(factored)["kernel"].shape
      (3, 3, 2, 8)
    """

    def merge(leaf: Any) -> Any:
        if not _is_low_rank(leaf):
            return leaf
        return jnp.matmul(leaf.c, leaf.r, precision=jax.lax.Precision.HIGHEST)

    return jax.tree.map(merge, factored, is_leaf=_is_low_rank)
