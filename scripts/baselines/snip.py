"""Single-shot network pruning: Lee, Ajanthan, Torr, arXiv:1810.02340.

Before training, a connection counts as much as the loss changes with it: ``|w dL/dw|`` on one
batch. The largest over all layers stay, and are trained once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from baselines.masks import largest, map_kernels, survivors
from baselines.training import Trained, initial, loss_of, train
from rosler_jax.run import Prepared

EXAMPLES = 1000
"""Of the batch; the paper's own figure 3 has the error fall with its size."""


def saliency(loss: Callable[[Any], Any], params: Any) -> Any:
    """How fast the loss changes as each weight's connection ``c`` in ``c w`` leaves 1."""
    return jax.tree.map(lambda g, w: np.abs(np.asarray(g * w)), jax.grad(loss)(params), params)


def chosen(scores: Any, keep: float) -> Any:
    """Masks of the largest scores over all kernels together."""
    found: list[np.ndarray] = []
    map_kernels(lambda name, score: found.append(score), scores)
    flat = np.concatenate([score.ravel() for score in found])
    mask = largest(flat, round(keep * flat.size))
    parts = iter(np.split(mask, np.cumsum([score.size for score in found])[:-1]))
    return map_kernels(lambda name, score: next(parts).reshape(score.shape), scores)


def pruned_at_start(problem: Prepared, keep: float) -> tuple[Any, Trained]:
    """The masks, and the net trained under them: one training."""
    start, loss, arrays = initial(problem), loss_of(problem), problem.arrays
    assert arrays is not None and arrays.train_y is not None
    x, y = arrays.train_x[:EXAMPLES], arrays.train_y[:EXAMPLES]
    masks = chosen(saliency(lambda params: loss(params, x, y, problem.units), start), keep)
    return masks, train(problem, survivors, start, masks)
