"""The data of a sweep: read once, on the device once, shared by all members."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np

from rosler_jax import data as datasets
from rosler_jax.config import TrainConfig
from rosler_jax.data._dataset import Raw, as_inputs, as_labels, stratified

if TYPE_CHECKING:
    from jaxtyping import Array


class Examples(NamedTuple):
    """The examples of a data set, training and validation together, and its test split."""

    x: Array
    y: Array
    fixed: tuple[np.ndarray, np.ndarray] | None  # indices, where the source has its own validation
    test_x: np.ndarray
    test_y: np.ndarray
    num_classes: int

    @property
    def in_features(self) -> int:
        """Numbers in an example."""
        return math.prod(self.x.shape[1:])

    def split(self, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
        """Indices of a member's training and validation examples."""
        if self.fixed is not None:
            return self.fixed
        return stratified(np.asarray(self.y), config.validation, config.seed)


def read_examples(name: str, raw: Raw) -> Examples:
    """Checks the splits of a source and puts them in order.

    Raises:
      DataError: for shapes, labels or values that cannot be used.
    """
    parts = [raw.train] if raw.validation is None else [raw.train, raw.validation]
    xs = [as_inputs(np.asarray(x), f"{name}, training") for x, _ in parts]
    ys = [as_labels(np.asarray(y), len(x), name) for x, (_, y) in zip(xs, parts, strict=True)]
    test_x = as_inputs(np.asarray(raw.test[0]), f"{name}, test split")
    test_y = as_labels(np.asarray(raw.test[1]), len(test_x), f"{name}, test split")
    fixed = None
    if raw.validation is not None:
        whole = np.arange(len(xs[0]) + len(xs[1]))
        fixed = whole[: len(xs[0])], whole[len(xs[0]) :]
    y = np.concatenate(ys)
    classes = int(max(y.max(), test_y.max())) + 1
    x = np.concatenate(xs)
    return Examples(jnp.asarray(x), jnp.asarray(y), fixed, test_x, test_y, classes)


def load_examples(config: TrainConfig) -> Examples:
    """The data that all members share."""
    options = {} if config.manual_dir is None else {"manual_dir": config.manual_dir}
    return read_examples(config.data, datasets.read(config.data, **options))
