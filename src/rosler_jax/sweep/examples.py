"""The data of a sweep: read once, on the device once, shared by all members."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np

from rosler_jax import data as datasets
from rosler_jax.config import TrainConfig
from rosler_jax.data._dataset import Raw, checked, digest, held_out

if TYPE_CHECKING:
    from jaxtyping import Array


class Examples(NamedTuple):
    """The examples of a data set, training and validation together, and its test split."""

    name: str
    x: Array
    y: Array
    fixed: tuple[np.ndarray, np.ndarray] | None  # indices, where the source has its own validation
    test_x: np.ndarray
    test_y: np.ndarray
    num_classes: int
    digest: str

    @property
    def in_features(self) -> int:
        """Numbers in an example."""
        return math.prod(self.x.shape[1:])

    def split(self, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
        """Indices of a member's training and validation examples."""
        if self.fixed is not None:
            return self.fixed
        return held_out(self.name, np.asarray(self.y), config.validation, config.seed)


def read_examples(name: str, raw: Raw) -> Examples:
    """Checks the splits of a source and puts them in order.

    Raises:
      DataError: for shapes, labels or values that cannot be used.
    """
    splits = checked(name, raw)
    parts = [splits[split] for split in ("train", "validation") if split in splits]
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    fixed = None
    if len(parts) > 1:
        whole, cut = np.arange(len(x)), len(parts[0][0])
        fixed = whole[:cut], whole[cut:]
    test_x, test_y = splits["test"]
    classes = int(max(y.max(), test_y.max())) + 1
    return Examples(
        name, jnp.asarray(x), jnp.asarray(y), fixed, test_x, test_y, classes, digest(raw)
    )


def load_examples(config: TrainConfig) -> Examples:
    """The data that all members share."""
    options = {} if config.manual_dir is None else {"manual_dir": config.manual_dir}
    return read_examples(config.data, datasets.read(config.data, **options))
