"""Ranks as masks: a training of one rank in the program of a larger one, by its arrays alone.

The factors of a small rank, zeros behind them, train as they do without: what is zero on both sides
of a core has no gradient. The sketches of a layer are told by a third word of their seeds how many
of their columns are live (see :func:`rosler_kernels.make`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rosler_jax._paths import path_names
from rosler_jax.linen.finish import layers_of
from rosler_jax.nn._module import SketchModule
from rosler_jax.optim._landing import Landing

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from rosler_jax.nn._variables import WeightPlan

Names = tuple[str, ...]
Shape = tuple[int, ...]


def mask_key(model: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """What models must have in common for their ranks to be masks of one: hashable.

    Args:
      model: an NNX model, or a pair of a Linen module and its variables; abstract ones will do.
      args, kwargs: of a call of the Linen module, where it has sketch layers of your own.

    Example:
      >>> from rosler_jax import SketchLinear
      >>> model = lambda rank: SketchLinear(90, 80, rank, mode="ares", rngs=nnx.Rngs(0))
      >>> mask_key(model(2)) == mask_key(model(4)), mask_key(model(4)) == mask_key(model(40))
      (True, False)
    """

    def row(name: str, plan: WeightPlan) -> tuple[Any, ...]:
        common = (name, plan.mode, plan.m, plan.n)
        if not plan.sketched:
            return common
        nested = all(kind.nested for kind in plan.kinds)
        return (*common, plan.sketch, *(() if nested else (plan.rank, plan.inner)))

    return tuple(sorted(row(name, plan) for name, plan in plans(model, *args, **kwargs)))


def plans(model: Any, *args: Any, **kwargs: Any) -> Iterator[tuple[str, WeightPlan]]:
    """The plan of every sketch layer's weight, by path; arguments as of :func:`mask_key`."""
    if isinstance(model, tuple):
        module, variables = model
        for path, layer in layers_of(module, variables, args, kwargs):
            yield "/".join(path), layer.plan
        return
    for keys, layer in nnx.iter_modules(model):
        if isinstance(layer, SketchModule):
            yield "/".join(map(str, keys)), layer.plan


def live(params: PyTree, buffers: PyTree) -> PyTree:
    """The buffers with seeds that say how many columns of their sketches are live.

    Args:
      params, buffers: of a model at its own rank; of NNX the pure dicts of parameters and of all
        other state, of Linen ``variables["params"]`` and the other collections. Arrays of NumPy or
        JAX, traced ones, too.

    Example:
      >>> from rosler_jax import SketchLinear
      >>> layer = SketchLinear(20, 30, rank=4, mode="seeded", rngs=nnx.Rngs(0))
      >>> _, params, buffers = nnx.split(layer, nnx.Param, ...)
      >>> seeds = live(nnx.to_pure_dict(params), nnx.to_pure_dict(buffers))
      >>> int(seeds["psi_seed"][2]), int(seeds["omega_seed"][2])
      (20, 4)
    """
    sizes = {names: leaf.shape[-2:] for names, leaf in _named(params) if names[-1:] == ("u",)}
    learnt = {names[:-1] for names, _ in _named(params) if names[-1:] == ("c",)}

    def with_count(path: Any, leaf: Any) -> Any:
        *layer, name = path_names(path)
        if name not in ("psi_seed", "omega_seed"):
            return leaf
        # Seeds of Linen lie in a collection.
        at = next(p for p in (tuple(layer), tuple(layer[1:])) if (*p, "u") in sizes)
        rows, cols = sizes[(*at, "u")]
        inner, rank = (cols, rows) if at in learnt else (rows, cols)
        count = np.full((*leaf.shape[:-1], 1), inner if name == "psi_seed" else rank, np.uint32)
        return _module(leaf).concatenate([leaf[..., :2], count], axis=-1)

    return jax.tree_util.tree_map_with_path(with_count, buffers)


def padded(state: PyTree, like: PyTree) -> PyTree:
    """A state of a small rank with zeros behind its factors, in the shapes of a larger one.

    Args:
      state: parameters, and all that has their structure: moments of optimisers, averages. Arrays
        of NumPy or JAX, traced ones, too. Seeds must say what is :func:`live` already.
      like: the same tree at the larger rank; shapes will do.

    Example:
      >>> small, big = {"c": np.ones((5, 2))}, {"c": np.zeros((5, 3))}
      >>> padded(small, big)["c"][0].tolist()
      [1.0, 1.0, 0.0]
    """

    def pad(leaf: Any, shape: Shape) -> Any:
        missing = [(0, b - a) for a, b in zip(leaf.shape, shape, strict=True)]
        return _module(leaf).pad(leaf, missing)

    return _resized(state, like, pad)


def cropped(state: PyTree, like: PyTree) -> PyTree:
    """A state at its own rank again: the inverse of :func:`padded`.

    Args:
      state: at a larger rank.
      like: the same tree at the rank that it is to have; shapes will do. Seeds of two words lose
        the third.
    """
    return _resized(state, like, lambda leaf, shape: leaf[tuple(map(slice, shape))])


def _resized(state: PyTree, like: PyTree, resize: Any) -> PyTree:
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    named = {path_names(path): leaf for path, leaf in leaves}
    shapes = [tuple(x.shape) for x in jax.tree.leaves(like)]
    new = []
    for (path, leaf), shape in zip(leaves, shapes, strict=True):
        if leaf.shape == shape:
            new.append(leaf)
            continue
        g = _groups(path_names(path), named)
        split, wanted = ((*s[:-1], g, s[-1] // g) if g > 1 else s for s in (leaf.shape, shape))
        new.append(resize(leaf.reshape(split), wanted).reshape(shape))
    out = jax.tree.unflatten(treedef, new)
    if all(leaf.shape == shape for (_, leaf), shape in zip(leaves, shapes, strict=True)):
        return out
    return jax.tree.map(_forgotten, out, is_leaf=lambda x: isinstance(x, Landing))


def _groups(names: Names, named: Mapping[Names, Any]) -> int:
    """Groups of a convolution, whose columns lie side by side in the last axis of ``c``."""
    if names[-1:] != ("c",):
        return 1
    beside = next((named[(*names[:-1], k)] for k in ("u", "r") if (*names[:-1], k) in named), None)
    return 1 if beside is None else named[names].shape[-1] // beside.shape[-2]


def _forgotten(node: Any) -> Any:
    """Nothing is known any more of where the update of a switch took the weights."""
    if not isinstance(node, Landing):
        return node
    return Landing(*(_module(a).full_like(a, np.inf) for a in node))


def _named(tree: PyTree) -> Iterator[tuple[Names, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return ((path_names(path), leaf) for path, leaf in leaves)


def _module(leaf: Any) -> Any:
    """NumPy for its arrays, so that nothing is compiled for each shape; else JAX's."""
    return np if isinstance(leaf, np.ndarray | np.generic) else jnp
