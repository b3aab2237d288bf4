"""What becomes of an optimiser's moments when the subspace changes that they live in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Turn = Callable[[Array, Array], Array]

MOMENTUM = ("keep", "project", "restart")


def _linear(moment: Float[Array, "g k r"], turn: Float[Array, "... r r"]) -> Array:
    """A mean of gradients, in the new basis: what the old one held of it."""
    return moment @ turn


def _squares(moment: Float[Array, "g k r"], turn: Float[Array, "... r r"]) -> Array:
    """A mean of squares, in the new basis.

    A new direction that lies in the old subspace has the squares there, as if they were
    uncorrelated; of the rest nothing is known but that it was like the others: their mean.
    """
    inside = turn**2
    beside = jnp.maximum(0.0, 1.0 - inside.sum(-2, keepdims=True))
    return moment @ inside + moment.mean(-1, keepdims=True) * beside


TURNS: dict[str, Turn] = {"mu": _linear, "trace": _linear, "nu": _squares}
"""By the name of a field of an optax state: a new moment is one line here."""


def check(state: Any, names: Mapping[str, Any]) -> None:
    """Refuses a state with moments that the table does not know.

    Raises:
      ValueError: naming them.
    """
    for path, _ in jax.tree_util.tree_leaves_with_path(state):
        field = _field(path, names)
        if field is not None and field not in TURNS:
            raise ValueError(
                f"momentum='project' knows the moments {', '.join(TURNS)}; the inner optimiser "
                f"has {field!r}: pass momentum='keep' or 'restart'"
            )


def turned(state: Any, turns: Mapping[str, Float[Array, "... r r"]]) -> Any:
    """A state whose moments of each weight are taken to its new basis.

    Args:
      state: of the inner optimiser, over a dict of sketches by weights' names.
      turns: by weight's name, ``T = B_old^T B_new / lost``.
    """

    def one(path: Any, leaf: Array) -> Array:
        field = _field(path, turns)
        if field is None:
            return leaf
        wide = leaf.astype(jnp.float32)
        return TURNS[field](wide, turns[path[-1].key]).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, state)


def _field(path: Any, names: Mapping[str, Any]) -> str | None:
    """The field of a state that holds a weight's moment, or None for other leaves."""
    if not path or not isinstance(path[-1], jax.tree_util.DictKey) or path[-1].key not in names:
        return None
    return next(
        (key.name for key in reversed(path) if isinstance(key, jax.tree_util.GetAttrKey)), ""
    )
