"""From trained low-rank dense weights to the thin factors that replace them, and back."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

import rosler_kernels as rk
from rosler_jax._linalg import low_rank_product
from rosler_jax.optim._checks import static_int
from rosler_jax.optim._matrices import select_matrices, stacked_svd
from rosler_jax.views import MatrixView

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

    from rosler_jax.optim._matrices import Where
    from rosler_jax.views import View


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
    """Two thin factors in the place of a weight ``W = c r``; a pytree of ``c`` and ``r``.

    With the weight's axes in the order of its view, ``(*stack, *inputs, *outputs)``, they are
    ``c (*stack, *inputs, s)`` and ``r (*stack, s, *outputs)``. For a convolution kernel
    ``(kh, kw, c_in, c_out)``, ``c`` is so the kernel of a convolution with ``s`` filters and ``r``
    the matrix of a 1x1 convolution. Of a convolution in ``g`` groups they are
    ``c (*stack, kh, kw, c_in / g, g s)``, the kernel of a convolution in ``g`` groups with ``s``
    filters each, and ``r (*stack, g, s, c_out / g)``.

    Attributes:
      c: column factor, dtype of the weight.
      r: row factor, dtype of the weight.
      view: which axes of the weight are which; static.
      shape: shape of the weight; static.

    Example:
      >>> thin = LowRank(jnp.ones((4, 1)), jnp.ones((1, 3)), MatrixView((0,), (1,)), (4, 3))
      >>> [leaf.size for leaf in jax.tree.leaves(thin)], thin.merge().shape
      ([4, 3], (4, 3))
    """

    c: Array
    r: Array
    view: MatrixView = dataclasses.field(metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def merge(self) -> Float[Array, "*shape"]:
        """The weight, ``c r``."""
        k, m, n = self.view.matrix_shape(self.shape)
        g = self.view.groups
        c = self.c.reshape(k // g, m, g, -1).swapaxes(1, 2).reshape(k, m, -1)
        product = jnp.matmul(c, self.r.reshape(k, -1, n), precision=jax.lax.Precision.HIGHEST)
        return self.view.from_matrices(product, self.shape)


def _lay_out(
    c: Float[Array, "k m s"], r: Float[Array, "k s n"], view: MatrixView, shape: tuple[int, ...]
) -> LowRank:
    """Factors of each matrix, as the factors of the weight that holds them."""
    k, m, s = c.shape
    g = view.groups
    stack, inputs, outputs = (
        tuple(shape[axis] for axis in part) for part in (view.stack, view.inputs, view.outputs)
    )
    columns = c.reshape(k // g, g, m, s).swapaxes(1, 2).reshape(*stack, *inputs, g * s)
    ends = (s, *outputs) if g == 1 else (g, s, math.prod(outputs) // g)
    return LowRank(c=columns, r=r.reshape(*stack, *ends), view=view, shape=shape)


@partial(jax.jit, static_argnames=("view", "rank", "power_iterations", "oversampling"))
def _factor(
    w: Float[Array, "*shape"],
    view: MatrixView,
    rank: int,
    key: Key[Array, ""],
    power_iterations: int,
    oversampling: int,
) -> tuple[LowRank, Float[Array, ""]]:
    """Balanced factors of one weight and their relative error, measured after rounding them."""
    wide = rk.accumulator(w.dtype)
    matrices = view.to_matrices(w).astype(wide)
    left, sigma, right = stacked_svd(matrices, rank, key, power_iterations, oversampling)
    root = jnp.sqrt(sigma)
    c, r = (left * root[:, None]).astype(w.dtype), (root[..., None] * right).astype(w.dtype)
    product = jax.vmap(low_rank_product)(c.astype(wide), jnp.ones_like(sigma), r.astype(wide))
    norm = jnp.linalg.norm(matrices)
    error = jnp.linalg.norm(matrices - product) / jnp.where(norm > 0, norm, 1)  # 0 for W = 0
    return _lay_out(c, r, view, tuple(w.shape)), error


def extract_factors(
    params: Any,
    rank: int,
    where: Where | None = None,
    *,
    view: View = None,
    power_iterations: int = 2,
    oversampling: int = 8,
    seed: int = 0,
) -> tuple[Any, dict[str, Float[Array, ""]]]:
    r"""Replaces each chosen weight by two thin factors: ``W = c r``, singular values split evenly.

    From the randomised SVD ``W ~ P S V^T`` of rank ``s``: ``c = P S^{1/2}``, ``r = S^{1/2} V^T``.
    The factors are exact, up to rounding, where ``rank(W) <= s``, which is so right after a
    restriction by :func:`~rosler_jax.optim.restrict_rank.restrict_rank` with the same ``rank``,
    ``view`` and ``where``; the errors returned tell.

    Args:
      params: parameter tree: Linen dicts, ``nnx.State``, and so on.
      rank: ``s``.
      where: as in ``restrict_rank``.
      view: as in ``restrict_rank``.
      power_iterations: ``q``, of consequence only where ``rank(W) > s``.
      oversampling: extra range directions, cut off again; likewise.
      seed: seed of the sketches.

    Returns:
      ``(factored, errors)``. ``factored`` has the structure of ``params``, with a :class:`LowRank`
      in the place of each chosen leaf: ``c (m, s)`` and ``r (s, n)`` for a matrix, its layouts
      for others. ``errors`` maps a leaf's name to ``||W - c r||_F / ||W||_F``, a scalar, float32 or
      wider.

    Raises:
      TypeError: if ``rank`` is no int.
      ValueError: if an option is out of range, nothing is known to be a matrix, or ``where`` picks
        nothing, a leaf of more axes without a view, or a weight that has no rank ``s``.

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
    for name, index, seen in select_matrices(params, rank, view, where):
        leaf_key = jax.random.fold_in(key, index)
        leaves[index], errors[name] = _factor(
            leaves[index], seen, rank, leaf_key, power_iterations, oversampling
        )
    return jax.tree.unflatten(treedef, leaves), errors


def merge_factors(factored: Any) -> Any:
    """Multiplies factors out again: the inverse of :func:`extract_factors` on rank-s weights.

    Args:
      factored: tree with :class:`LowRank` nodes.

    Returns:
      The tree with each node replaced by the dense ``c r``, of the shape and dtype it had.

    Example:
      >>> kernel = jnp.ones((3, 3, 2, 8))
      >>> view = {"kernel": MatrixView((0, 1, 2), (3,))}
      >>> factored, _ = extract_factors({"kernel": kernel}, rank=1, view=view)
      >>> factored["kernel"].c.shape, merge_factors(factored)["kernel"].shape
      ((3, 3, 2, 1), (3, 3, 2, 8))
    """

    def is_low_rank(x: Any) -> bool:
        return isinstance(x, LowRank)

    return jax.tree.map(lambda x: x.merge() if is_low_rank(x) else x, factored, is_leaf=is_low_rank)
