"""Finding the sketch layers inside any parameter pytree (Linen dicts, NNX states, plain trees)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import jax

from rosler_jax._paths import path_names
from rosler_jax.factors import SketchFactors, balance

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

NAMES = ("c", "u", "r", "parallel")
Path = tuple[str, ...]


def ares_groups(params: PyTree) -> dict[Path, dict[str, int]]:
    """The layers that have a ``parallel`` flag: path to the position of each factor's leaf."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    groups: dict[Path, dict[str, int]] = {}
    for i, (path, _) in enumerate(leaves):
        names = path_names(path)
        if names and names[-1] in NAMES:
            groups.setdefault(names[:-1], {})[names[-1]] = i
    return {path: group for path, group in groups.items() if set(group) == set(NAMES)}


def map_groups(fn: Callable[[Mapping[str, Array]], Mapping[str, Array]], params: PyTree) -> PyTree:
    """Applies ``fn`` to the factors of every aRes layer, and leaves the rest as it is."""
    leaves, treedef = jax.tree.flatten(params)
    for group in ares_groups(params).values():
        new = fn({name: leaves[i] for name, i in group.items()})
        for name, i in group.items():
            leaves[i] = new[name]
    return jax.tree.unflatten(treedef, leaves)


def balance_leaves(c: Array, u: Array, r: Array) -> tuple[Array, Array, Array]:
    """Balances factors in any layer's layout: dense ``(m, s)``, grouped convolution, batched."""
    if u.ndim == 2:
        f = balance(SketchFactors(c=c, u=u, r=r))
        return f.c, f.u, f.r
    g, s, _ = u.shape
    batched = c.ndim == 3 and c.shape[0] == g and c.shape[-1] == s
    matrices = c if batched else c.reshape(-1, g, s).transpose(1, 0, 2)
    f = jax.vmap(balance)(SketchFactors(c=matrices, u=u, r=r))
    return (f.c if batched else f.c.transpose(1, 0, 2).reshape(c.shape)), f.u, f.r
