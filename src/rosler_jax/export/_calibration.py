"""Which examples calibrate an integer model, and what the others say of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int

STEPS = 4.0
"""A feature that varies by fewer steps of the inputs' scale (its deviation) is as good as lost."""


def draw(y: Int[np.ndarray, " n"], count: int, seed: int) -> Int[np.ndarray, " count"]:
    """Indices of so many examples at random, every class by its share and by at least one.

    Of values, or flags, any examples.

    Example:
      >>> sorted(int(i) // 50 for i in draw(np.repeat([0, 1], 50), 4, seed=0))
      [0, 0, 1, 1]
    """
    rng = np.random.default_rng(seed)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        return rng.permutation(len(y))[:count]
    place = np.empty(len(y))
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        ranks = np.arange(len(members))
        place[members] = np.where(ranks == 0, 0.0, (ranks + rng.random(len(ranks))) / len(ranks))
    return rng.permutation(np.argsort(place, kind="stable")[:count])


def saturation(rest: Any, calibration: Any, scale: float, low: int, high: int) -> dict[str, Any]:
    """How much of other inputs lies beyond the integers that calibration chose, JSON types.

    Args:
      rest: inputs that a model was not calibrated with.
      calibration: those that it was.
      scale: an input x is ``x / scale`` as an integer.
      low, high: the least and the greatest one.

    Returns:
      ``examples``, ``saturated_elements`` and ``saturated_examples`` (shares), and
      ``lost_features``: those that vary by less than a few steps of the inputs' one scale.
    """
    steps = np.rint(_flat(rest) / scale)
    beyond = ~((steps >= low) & (steps <= high))  # NaN, too
    spread = _flat(calibration).std(0) / scale
    lost = (spread > 0) & (spread < STEPS) & (scale != 1.0)  # a scale of 1: whole numbers, exact
    return {
        "examples": len(steps),
        "saturated_elements": float(beyond.mean()),
        "saturated_examples": float(beyond.any(1).mean()),
        "lost_features": int(lost.sum()),
    }


def warnings(found: dict[str, Any]) -> list[str]:
    """What :func:`saturation` found, in words; nothing where all is well.

    Example:
      >>> found = {"examples": 8, "saturated_elements": 0.01, "saturated_examples": 0.25}
      >>> warnings({**found, "lost_features": 0})[0][:56]
      'warning: of 8 more validation inputs 25.00% saturate (1.0'
    """
    lines = []
    if found["saturated_examples"] > 0:
        lines.append(
            f"warning: of {found['examples']} more validation inputs "
            f"{found['saturated_examples']:.2%} saturate ({found['saturated_elements']:.2%} of "
            "their numbers): calibrate with more inputs, or with wider ones"
        )
    if found["lost_features"]:
        lines.append(
            f"warning: {found['lost_features']} features vary by less than {STEPS:g} steps of the "
            "inputs' one scale, others by far more: give them in units alike, or export float32"
        )
    return lines


def _flat(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.reshape(len(x), -1).astype(np.float64)
