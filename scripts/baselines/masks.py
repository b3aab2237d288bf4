"""Weights under a mask: what pruning methods choose, and how the survivors are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from baselines.training import Rule, descent
from rosler_jax._paths import path_name
from rosler_jax.run import Prepared


def map_kernels(function: Callable[..., Any], params: Any, *others: Any) -> Any:
    """The tree with a function of name and value(s) in the place of each kernel; ones elsewhere."""

    def one(path: Any, leaf: Any, *more: Any) -> Any:
        name = path_name(path)
        return function(name, leaf, *more) if name.endswith("kernel") else np.ones_like(leaf)

    return jax.tree_util.tree_map_with_path(one, params, *others)


def whole(params: Any) -> Any:
    """Masks that leave everything."""
    return jax.tree.map(np.ones_like, params)


def masked(params: Any, masks: Any) -> Any:
    """Parameters with zeros where the mask has them."""
    return jax.tree.map(jnp.multiply, params, masks)


def survivors(problem: Prepared) -> Rule:
    """Descent of what a mask leaves: the pruned weights are zeros in every product."""
    return descent(problem, masked)


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """A mask of exactly so many of the largest scores; of equals, the first."""
    mask = np.zeros(scores.size, np.float32)
    mask[np.argsort(-scores, axis=None, kind="stable")[:count]] = 1
    return mask.reshape(scores.shape)


def kept(masks: Any) -> float:
    """The fraction of the kernels' weights that masks leave."""
    leaves = jax.tree_util.tree_leaves_with_path(masks)
    found = [np.asarray(leaf) for path, leaf in leaves if path_name(path).endswith("kernel")]
    return float(sum(mask.sum() for mask in found) / sum(mask.size for mask in found))
