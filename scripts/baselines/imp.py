"""Iterative magnitude pruning with rewinding: Frankle, Carbin, arXiv:1803.03635.

Train, prune the smallest weights of every layer (the output layer at half the rate), put the
survivors back to what they were at the start, and again. The paper prunes a fifth in each of many
rounds; here fewer rounds prune more, and what that costs is part of the comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from baselines.masks import largest, map_kernels, survivors, whole
from baselines.training import Trained, initial, train
from rosler_jax.run import Prepared


def pruned_more(params: Any, masks: Any, keep: float) -> Any:
    """Masks of the largest of the weights that are left, layer by layer.

    Args:
      params: trained under the masks.
      masks: of before.
      keep: of what is left in a hidden layer; the output layer loses half as much.
    """

    def one(name: str, weights: Any, mask: Any) -> np.ndarray:
        share = (1 + keep) / 2 if name.startswith("head") else keep
        left = np.asarray(mask)
        scores = np.where(left > 0, np.abs(np.asarray(weights)), -1)
        return largest(scores, round(share * int(left.sum())))

    return map_kernels(one, params, masks)


def rounds(problem: Prepared, dense: Trained, keep: float) -> Iterator[tuple[Any, Trained]]:
    """Masks and trained nets, round after round; the first after two trainings.

    Args:
      problem: data and model.
      dense: the whole net, trained: the first training of the method.
      keep: the fraction of a layer's weights that a round leaves.
    """
    start = initial(problem)
    params, masks = dense.params, whole(dense.params)
    while True:
        masks = pruned_more(params, masks, keep)
        found = train(problem, survivors, start, masks)
        params = found.params
        yield masks, found
