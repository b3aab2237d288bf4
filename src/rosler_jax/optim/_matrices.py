"""Weights as matrices: which leaves of a parameter tree are meant, and how each is viewed.

A weight of shape ``(..., n)`` is the matrix ``(m, n)`` with its last axis out and all the others
flattened into ``m``: the layout of dense kernels ``(in, out)`` and of convolution kernels
``(kh, kw, c_in, c_out)`` in Flax.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from rosler_jax._paths import path_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Array, Float

    Where = Callable[[str], bool]


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Shape ``(m, n)`` of a weight viewed as a matrix.

    Example:
      >>> matrix_shape((3, 3, 16, 32))
      (144, 32)
    """
    return math.prod(shape[:-1]), shape[-1]


def as_matrix(w: Float[Array, "*lead n"]) -> Float[Array, "m n"]:
    """Views a weight as a matrix: last axis out, the others flattened."""
    return w.reshape(matrix_shape(w.shape))


def is_matrix(leaf: Any) -> bool:
    """Whether a leaf is a real floating array of at least two dimensions."""
    return (
        jnp.ndim(leaf) >= 2 and hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def _check_fits(name: str, leaf: Any, rank: int) -> None:
    if not is_matrix(leaf):
        raise ValueError(
            f"where selects {name!r} with shape {jnp.shape(leaf)} and dtype "
            f"{getattr(leaf, 'dtype', type(leaf).__name__)}; expected a real floating array of at "
            "least 2 dimensions: exclude it in where"
        )
    m, n = matrix_shape(leaf.shape)
    if rank > min(m, n):
        raise ValueError(
            f"rank {rank} exceeds min(in={m}, out={n})={min(m, n)} of {name!r}; "
            f"pass rank<={min(m, n)} or exclude it in where"
        )


def select_matrices(params: Any, rank: int, where: Where | None = None) -> list[tuple[str, int]]:
    """Selects the leaves that stand for matrices to be held at a rank.

    Args:
      params: any parameter tree: Linen dicts, ``nnx.State``, lists, dataclasses.
      rank: ``s``.
      where: predicate on a leaf's name such as ``"hidden/kernel"``; it may only pick matrices
        with ``min(m, n) >= rank``. Default: every real floating leaf of at least two dimensions
        with ``min(m, n) > rank``.

    Returns:
      Pairs of name and position among the leaves of ``params``, in order.

    Raises:
      ValueError: if ``where`` picks a leaf that is no matrix or too small for the rank, or picks
        nothing from a tree that has leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"hidden": {"kernel": jnp.ones((8, 9)), "bias": jnp.ones(9)}}
      >>> select_matrices(params, 4)
      [('hidden/kernel', 1)]
    """
    named = [
        (path_name(path), index, leaf)
        for index, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(params))
    ]
    if where is None:
        return [
            (name, index)
            for name, index, leaf in named
            if is_matrix(leaf) and min(matrix_shape(leaf.shape)) > rank
        ]
    chosen = [(name, index, leaf) for name, index, leaf in named if where(name)]
    if named and not chosen:
        raise ValueError(
            f"where selects none of the parameters {[name for name, _, _ in named]}; "
            "expected at least one name to be accepted"
        )
    for name, _, leaf in chosen:
        _check_fits(name, leaf, rank)
    return [(name, index) for name, index, _ in chosen]
