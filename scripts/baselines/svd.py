"""A trained dense net with truncated singular value decompositions, and training that goes on."""

from __future__ import annotations

from typing import Any

import numpy as np

from baselines.training import Trained, plain, train
from rosler_jax.run import Prepared


def factors(weights: Any, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The best two factors of a matrix of that rank (Eckart, Young), equally large."""
    u, sizes, vt = np.linalg.svd(np.asarray(weights), full_matrices=False)
    roots = np.sqrt(sizes[:rank])
    return u[:, :rank] * roots, roots[:, None] * vt[:rank]


def factored(dense: Any, like: Any) -> Any:
    """The parameters of a dense net as those of one with two factors in some layers' places."""
    if "c" in like:
        c, r = factors(dense["kernel"], like["c"].shape[1])
        return {**like, "c": c, "r": r, "bias": dense["bias"]}
    parts = {name: part for name, part in like.items() if isinstance(part, dict)}
    return {**dense, **{name: factored(dense[name], part) for name, part in parts.items()}}


def decomposed(problem: Prepared, dense: Trained, like: Any) -> Trained:
    """The net of factors, trained on: two trainings with the dense one.

    Args:
      problem: data and a model with two factors in the place of each large layer.
      dense: the dense net, trained.
      like: parameters of the model of factors.
    """
    return train(problem, plain, factored(dense.params, like))
