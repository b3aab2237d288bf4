"""The numbers of a run that may be traced, as a pytree of their own."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import numpy as np


class Numbered(Protocol):
    """What has the numbers of a run: :class:`rosler_jax.config.TrainConfig`."""

    @property
    def peak_learning_rate(self) -> float: ...  # noqa: D102
    @property
    def budget_bytes(self) -> int | None: ...  # noqa: D102
    @property
    def min_metric(self) -> float | None: ...  # noqa: D102


class Hyper(NamedTuple):
    """What changes no program: members of a sweep may differ in it, within one compiled program.

    Attributes:
      learning_rate: peak of the schedule.
      weight_decay: decoupled, of AdamW.
      parallel_learning_rate, momentum, clip_norm: of aRes-BP's parallel stage.
      label_smoothing: in [0, 1).
      noise: augmentation, in deviations of the data.
      teacher_weight, temperature: of a distillation.
      rate_lambda: of rate-coded training, nats of loss a kilobit.
      budget_bits: of its coded tensors; infinite without a budget.
      min_metric: the least metric where the smallest file is wanted.
    """

    learning_rate: Any
    weight_decay: Any
    parallel_learning_rate: Any
    momentum: Any
    clip_norm: Any
    label_smoothing: Any
    noise: Any
    teacher_weight: Any
    temperature: Any
    rate_lambda: Any
    budget_bits: Any
    min_metric: Any


def hyper_of(config: Numbered) -> Hyper:
    """Those of a run, float32.

    Example:
      >>> from rosler_jax.config import TrainConfig
      >>> float(hyper_of(TrainConfig(method="chain")).learning_rate)
      0.003...
    """
    named = {name: getattr(config, name, None) for name in Hyper._fields}
    named["learning_rate"] = config.peak_learning_rate
    budget, least = config.budget_bytes, config.min_metric
    named["budget_bits"] = math.inf if budget is None else 8 * budget
    named["min_metric"] = 0.0 if least is None else least
    return Hyper(**{name: np.float32(value) for name, value in named.items()})
