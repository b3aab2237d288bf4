"""Which weights are held at a rank, and each of them as a stack of matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from rosler_jax._linalg import randomized_svd
from rosler_jax._paths import path_name
from rosler_jax.views import MatrixView, is_real, select

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

    from rosler_jax.views import View

Where = Callable[[str], bool]
Chosen = list[tuple[str, int, MatrixView]]


def select_matrices(
    params: Any,
    rank: int,
    view: View = None,
    where: Where | None = None,
    *,
    can_be_none: bool = False,
) -> Chosen:
    """Selects the leaves that hold matrices to be held at a rank.

    Args:
      params: any parameter tree: Linen dicts, ``nnx.State``, lists, dataclasses.
      rank: ``s``.
      view: says which leaves are matrices and how, see :func:`rosler_jax.views.select`.
      where: predicate on a leaf's name such as ``"hidden/kernel"``. With a ``view`` it narrows the
        choice; without one it is the choice, and a leaf of two axes is seen as ``(in, out)``.
      can_be_none: whether a tree without matrices is all right.

    Returns:
      Name, position among the leaves of ``params`` and view, in order. Without ``where`` only those
      with ``min(m, n) > rank``.

    Raises:
      ValueError: if nothing in a tree that has leaves is a matrix, or ``where`` picks nothing, or
        a leaf that is none, of more than two axes without a view, or too small for the rank.

    Example:
      >>> params = {"hidden": {"kernel": jnp.ones((8, 9)), "bias": jnp.ones(9)}}
      >>> [(name, index) for name, index, _ in select_matrices(params, 4)]
      [('hidden/kernel', 1)]
    """
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        shapes[path_name(path)] = jnp.shape(leaf)
    seen = _picked(params, where) if view is None and where is not None else select(params, view)
    if shapes and not seen and where is None and not can_be_none:
        raise ValueError(
            f"no matrix is known among the parameters {_some(shapes)}: without view= only leaves "
            "named kernel of two axes are; pass view=rosler_jax.matrix_views(model) or a dict of "
            "patterns to MatrixView, or where= for leaves of two axes"
        )
    if where is None:
        return [(k, i, v) for k, i, v in seen if min(v.matrix_shape(shapes[k])[1:]) > rank]
    chosen = [item for item in seen if where(item[0])]
    if shapes and not chosen:
        raise ValueError(
            f"where selects none of the parameters {_some(shapes)}"
            + ("" if view is None else " that view= takes for matrices")
            + "; expected at least one name to be accepted"
        )
    for name, _, matrices in chosen:
        _, m, n = matrices.matrix_shape(shapes[name])
        if rank > min(m, n):
            raise ValueError(
                f"rank {rank} exceeds min(in={m}, out={n})={min(m, n)} of {name!r}; "
                f"pass rank<={min(m, n)} or exclude it in where"
            )
    return chosen


def _some(names: Any) -> str:
    names = list(names)
    return f"{names}" if len(names) <= 6 else f"{names[:6]} and {len(names) - 6} more"


def _picked(params: Any, where: Where) -> Chosen:
    """What a predicate on names picks where nothing else is known."""
    found = []
    for index, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
        name = path_name(path)
        if not where(name):
            continue
        if not is_real(leaf) or jnp.ndim(leaf) != 2:
            hint = "pass view= to say which axes are inputs" if jnp.ndim(leaf) > 2 else (
                "exclude it in where"
            )  # fmt: skip
            raise ValueError(
                f"where selects {name!r} with shape {jnp.shape(leaf)} and dtype "
                f"{getattr(leaf, 'dtype', type(leaf).__name__)}; expected a real floating array of "
                f"2 axes: {hint}"
            )
        found.append((name, index, MatrixView((0,), (1,))))
    return found


def stacked_svd(
    matrices: Float[Array, "k m n"],
    rank: int,
    key: Key[Array, ""],
    power_iterations: int,
    oversampling: int,
) -> tuple[Float[Array, "k m s"], Float[Array, "k s"], Float[Array, "k s n"]]:
    """:func:`~rosler_jax._linalg.randomized_svd` of each matrix, all with the same sketch."""

    def one(w: Float[Array, "m n"]) -> tuple[Array, Array, Array]:
        return randomized_svd(
            w, rank, key, power_iterations=power_iterations, oversampling=oversampling
        )

    if matrices.shape[0] == 1:
        left, sigma, right = one(matrices[0])
        return left[None], sigma[None], right[None]
    return jax.vmap(one)(matrices)
