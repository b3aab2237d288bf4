"""Finding the sketch layers inside any parameter pytree (Linen dicts, NNX states, plain trees)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from rosler_jax._paths import path_names

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

FACTORS = ("c", "u", "r")
NAMES = (*FACTORS, "parallel")


def is_masked(x: Any) -> bool:
    """Whether optax has put this in the place of a leaf that it keeps from a transformation."""
    return isinstance(x, optax.MaskedNode)


def flatten(params: PyTree) -> tuple[list[Any], Any]:
    """The leaves of a tree, those masked away among them, and its structure."""
    return jax.tree.flatten(params, is_leaf=is_masked)


def ares_groups(params: PyTree) -> dict[str, dict[str, int]]:
    """The layers with a ``parallel`` flag: name to the position of each factor's leaf.

    Raises:
      ValueError: if a layer is there in part only, naming it.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_masked)[0]
    groups: dict[str, dict[str, int]] = {}
    for i, (path, _) in enumerate(leaves):
        names = path_names(path)
        if names and names[-1] in NAMES:
            groups.setdefault("/".join(names[:-1]), {})[names[-1]] = i
    values = [leaf for _, leaf in leaves]
    return {path: group for path, group in groups.items() if _is_ares(path, group, values)}


def _is_ares(path: str, group: Mapping[str, int], leaves: list[Any]) -> bool:
    """Whether all of a layer in its parallel form is here; none of it may be missing."""
    here = [name for name in NAMES if name in group and not is_masked(leaves[group[name]])]
    if set(here) == set(NAMES):
        _check_stack(path, {name: jnp.shape(leaves[group[name]]) for name in NAMES})
        return True
    core = jnp.shape(leaves[group["u"]])[-2:] if "u" in here else ()
    oversampled = here == list(FACTORS) and len({*core}) == 2
    torn = bool(here) and len(group) == len(NAMES)
    if "parallel" in here or oversampled or torn:
        missing = [name for name in NAMES if name not in here]
        raise ValueError(
            f"ares_bp is given {', '.join(here)} of the layer {path!r} without "
            f"{', '.join(missing)}: the factors of a layer and its flag of the stage go together. "
            "Label whole layers in optax.partition and optax.masked (by path, not by ndim), and "
            "freeze whole layers only"
        )
    return False


def _check_stack(path: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    stack = shapes["parallel"]
    if any(shape[: len(stack)] != stack for shape in shapes.values()):
        raise ValueError(
            f"the layers stacked in {path!r} have flags of shape {stack}; all of its leaves must "
            f"have these axes in front, and have shapes {dict(shapes)}: stack along axis 0"
        )


def map_groups(fn: Callable[[Mapping[str, Array]], Mapping[str, Array]], params: PyTree) -> PyTree:
    """Applies ``fn`` to the factors of every aRes layer, and leaves the rest as it is."""
    leaves, treedef = flatten(params)
    for group in ares_groups(params).values():
        new = fn({name: leaves[i] for name, i in group.items()})
        for name, i in group.items():
            leaves[i] = new[name]
    return jax.tree.unflatten(treedef, leaves)
