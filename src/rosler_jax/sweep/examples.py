"""The data of a sweep: read once, on the device once, shared by all members."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rosler_jax import data as datasets
from rosler_jax.config import TrainConfig
from rosler_jax.data._dataset import (
    DataError,
    Dataset,
    Raw,
    checked,
    held_out,
    make_dataset,
    standardization,
)
from rosler_jax.data._moments import feature_moments
from rosler_jax.fit import task_of
from rosler_jax.run import source_options
from rosler_jax.tasks import Task
from rosler_jax.units import Units, is_tokens, units_of

if TYPE_CHECKING:
    from rosler_jax.data._moments import Moment

SHARED = (
    "data", "target", "image_size", "data_options", "manual_dir", "stream", "task", "metric",
)  # fmt: skip
"""Fields in which the members of a sweep do not differ: what they are trained on, and for."""


class Part(NamedTuple):
    """A member's split, and what its data are standardised by.

    Attributes:
      train, validation: indices of examples.
      units: as data: moments of vectors are one for each feature, so that members can be stacked.
      filed: the same as the model file has them.
    """

    train: np.ndarray
    validation: np.ndarray
    units: Units
    filed: Units


@dataclasses.dataclass
class Examples:
    """The examples of a data set.

    Attributes:
      dataset: what there is to know of it; its training split is the whole of training and
        validation.
      task: what its members are trained for.
      fixed: indices of both, where the source has a validation split of its own.
      parts: those that were asked for before, by :func:`batches_key`.
    """

    dataset: Dataset
    task: Task
    fixed: tuple[np.ndarray, np.ndarray] | None
    parts: dict[tuple[Any, ...], Part] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the data."""
        return self.dataset.name

    @property
    def digest(self) -> str:
        """Of all splits."""
        return self.dataset.digest

    @property
    def x(self) -> Any:
        """Inputs of training and validation."""
        return self.dataset.train_x

    @property
    def y(self) -> Any:
        """Their targets, or None."""
        return self.dataset.train_y

    def part(self, config: TrainConfig) -> Part:
        """A member's split and units."""
        key = batches_key(config)
        if key not in self.parts:
            self.parts[key] = _part(self, config)
        return self.parts[key]


def batches_key(config: TrainConfig) -> tuple[Any, ...]:
    """What decides a training's examples, their order and units: members of one share batches."""
    return config.validation, config.seed, config.standardize, config.class_weights or ""


class _Moments(NamedTuple):
    """What :func:`rosler_jax.units.units_of` asks of a data set, of a member's training split."""

    train_x: Any
    train_y: Any
    num_classes: int | None
    mean: Moment | None
    std: Moment | None
    target_mean: Any
    target_std: Any


def _part(examples: Examples, config: TrainConfig) -> Part:
    name, x, y, targets = examples.name, examples.x, examples.y, examples.task.targets
    rows = examples.fixed
    if rows is None:
        given = x if y is None else y
        rows = held_out(name, given, config.validation, config.seed, targets)
    train, validation = (np.asarray(i, np.int32) for i in rows)
    x, y = x[train], None if y is None else y[train]
    mean, std = (None, None) if is_tokens(x) else standardization(name, x, config.standardize)
    center, unit = feature_moments(y) if targets == "values" else (None, None)
    if unit is not None:
        unit = np.where(unit > 0, unit, 1.0)
    moments = _Moments(x, y, examples.dataset.num_classes, mean, std, center, unit)
    filed = units_of(
        moments, scaled=examples.task.scaled, weights=config.class_weights, targets=targets
    )
    return Part(train, validation, _spread(filed, x.shape[1:], targets), filed)


def _spread(units: Units, shape: tuple[int, ...], targets: str) -> Units:
    """Moments of vectors one for each feature, also where they are all the same."""
    names = ("mean", "std", *(("target_mean", "target_std") if targets == "none" else ()))
    if len(shape) != 1:
        return units
    return units._replace(**{name: np.broadcast_to(getattr(units, name), shape) for name in names})


def read_examples(name: str, raw: Raw, config: TrainConfig) -> Examples:
    """Checks the splits of a source and puts them in order.

    Args:
      name: of the data.
      raw: the splits.
      config: of a member: its task says what targets are.

    Raises:
      DataError: for shapes, labels or values that cannot be used, or data beyond the device.
    """
    task = task_of(config)
    dataset = make_dataset(
        name, raw, validation=config.validation, seed=config.seed, standardize=config.standardize,
        targets=task.targets, tokens=task.tokens,
    )  # fmt: skip
    if dataset.streams:
        raise DataError(
            f"{name}: the examples do not fit the device, and a sweep has them there; train one "
            "model at a time, or sweep over fewer of them"
        )
    splits = checked(name, raw, task.targets, task.tokens)
    pairs = [splits[split] for split in ("train", "validation") if split in splits]
    x = np.concatenate([np.asarray(x) for x, _ in pairs])
    y = None if task.targets == "none" else np.concatenate([y for _, y in pairs])
    whole, cut = np.arange(len(x)), len(pairs[0][0])
    fixed = (whole[:cut], whole[cut:]) if len(pairs) > 1 else None
    dataset = dataclasses.replace(dataset, train_x=x, train_y=y, validation_x=x, validation_y=y)
    return Examples(dataset, task, fixed)


def load_examples(config: TrainConfig, data: Any = None) -> Examples:
    """The data that all members share; or given arrays, as :func:`rosler_jax.data.load` takes them.

    Raises:
      DataError, OSError: if they cannot be had or used.

    Example:
      >>> config = TrainConfig(validation=0.25)
      >>> examples = load_examples(config, (np.eye(20), np.arange(20) % 2))
      >>> examples.x.shape, len(examples.part(config).train)
      ((16, 20), 12)
    """
    task = task_of(config)
    source = config.data if data is None else data
    options: dict[str, Any] = {**source_options(config)}
    raw = datasets.read(source, targets=task.targets, tokens=task.tokens, **options)
    return read_examples(config.data, raw, config)
