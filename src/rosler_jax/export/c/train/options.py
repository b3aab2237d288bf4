"""How a network trains on the device: the options, and what they may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rosler_jax.export._errors import ExportError

LOSSES = ("cross_entropy", "mse")
STAGES = ("successive", "parallel")
DTYPES = ("float32", "fixed")


class Training(NamedTuple):
    """How the network goes on learning on the device.

    Attributes:
      dtype: ``"float32"``, or ``"fixed"`` for 16-bit activations and 32-bit weights.
      loss: ``"cross_entropy"`` of integer labels or ``"mse"``.
      stage: ``"successive"`` is back-propagation through the factors; ``"parallel"`` turns each
        layer of two factors into sketches, trains these by sketches of the gradient, and goes on
        successively after ``rosler_train_switch``.
      parts: what trains: ``"all"``, ``"cores"``, ``"head"``, ``"biases"``, or names of parameters;
        see :func:`rosler_jax.export.c.train.parts.trained_names`.
      batch: most examples in a step; they are taken one by one and need no memory each.
      momentum: of SGD, 0 to below 1.
      clip: norm that all gradients together are scaled down to; None for none.

    Example:
      >>> Training(parts="head").momentum
      0.9
    """

    dtype: str = "float32"
    loss: str = "cross_entropy"
    stage: str = "successive"
    parts: str | Sequence[str] = "all"
    batch: int = 16
    momentum: float = 0.9
    clip: float | None = None


DEFAULT = Training()


def check(training: Training) -> None:
    """Refuses what cannot be.

    Raises:
      ExportError: names the alternatives.
    """
    for what, known in (("loss", LOSSES), ("stage", STAGES), ("dtype", DTYPES)):
        if getattr(training, what) not in known:
            value = getattr(training, what)
            raise ExportError(f"{what} {value!r} is not known; use {' or '.join(known)}")
    batch, momentum, clip = training.batch, training.momentum, training.clip
    if not (isinstance(batch, int) and batch >= 1):
        raise ExportError(f"batch {batch!r}; expected a whole number from 1")
    if not (isinstance(momentum, int | float) and 0.0 <= momentum < 1.0):
        raise ExportError(f"momentum {momentum!r}; expected 0 to below 1")
    if clip is not None and not (isinstance(clip, int | float) and 0.0 < clip < math.inf):
        raise ExportError(f"clip {clip!r}; expected a positive number, or None")
