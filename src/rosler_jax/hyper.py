"""The numbers of a run that may be traced, as a pytree of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from rosler_jax.config import TrainConfig


class Hyper(NamedTuple):
    """What changes no program: members of a sweep may differ in it, within one compiled program.

    Attributes:
      learning_rate: peak of the schedule.
      weight_decay: decoupled, of AdamW.
      parallel_learning_rate, momentum, clip_norm: of aRes-BP's parallel stage.
      label_smoothing: in [0, 1).
      noise: augmentation, in deviations of the data.
    """

    learning_rate: Any
    weight_decay: Any
    parallel_learning_rate: Any
    momentum: Any
    clip_norm: Any
    label_smoothing: Any
    noise: Any


def hyper_of(config: TrainConfig) -> Hyper:
    """Those of a run, float32.

    Example:
      >>> from rosler_jax.config import TrainConfig
      >>> float(hyper_of(TrainConfig(method="chain")).learning_rate)
      0.003...
    """
    named = {name: getattr(config, name) for name in Hyper._fields}
    named["learning_rate"] = config.peak_learning_rate
    return Hyper(**{name: np.float32(value) for name, value in named.items()})
