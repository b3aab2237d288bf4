"""Means and standard deviations of training data, and what inputs are standardised by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rosler_jax.data._lazy import CHUNK, chunks
from rosler_jax.data._raw import DataError

if TYPE_CHECKING:
    from jaxtyping import Float64

    Moment = float | Float64[np.ndarray, " features"]
    """One number for all values, or one for each feature."""

ALIKE = 5.0
"""Features whose deviations lie within this factor share one mean and deviation: a signal's do."""


def moments(x: Any, chunk: int = CHUNK) -> tuple[float, float]:
    """Mean and standard deviation of all values, in float64 but never of a float64 copy of all.

    Example:
      >>> moments(np.array([[1, 3], [1, 3]], np.uint8))
      (2.0, 1.0)
    """
    mean = sum(float(part.sum(dtype=np.float64)) for _, part in chunks(x, chunk)) / x.size
    squares = sum(float(np.square(part - np.float64(mean)).sum()) for _, part in chunks(x, chunk))
    return mean, (squares / x.size) ** 0.5


def feature_moments(x: Any, chunk: int = CHUNK) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column, in float64; 0 exactly where it is constant.

    Example:
      >>> feature_moments(np.array([[1, 3], [1, 5]], np.float32))
      (array([1., 4.]), array([0., 1.]))
    """
    mean = sum(part.sum(0, dtype=np.float64) for _, part in chunks(x, chunk)) / len(x)
    first, squares, varies = x[0], 0.0, np.zeros(x.shape[1], bool)
    for _, part in chunks(x, chunk):
        squares = squares + np.square(part - mean).sum(0)
        varies |= (part != first).any(0)
    return np.asarray(mean), np.where(varies, np.sqrt(squares / len(x)), 0.0)


def standardization(name: str, x: Any, how: str = "auto") -> tuple[Moment, Moment]:
    """What training inputs are standardised by, ``(x - mean) / std``.

    Tables, that is vectors of floats, have a mean and a deviation for each feature: units differ.
    Images, bytes and features that are alike (:data:`ALIKE`), as the samples of a signal, share one
    of each, which takes no room in a model file. A constant feature is divided by 1.

    Args:
      name: of the data, for messages.
      x: training inputs, ``(examples, *features)``.
      how: ``"auto"``; or ``"features"`` and ``"all"``, to have it one way or the other.

    Raises:
      DataError: if all inputs are the same, or a number is too small for float32.

    Example:
      >>> standardization("toy", np.array([[1, 300, 5], [3, 700, 5]], np.float32))
      (array([  2., 500.,   5.]), array([  1., 200.,   1.]))
    """
    first = x[0]
    if all(np.array_equal(row, first) for row in x):  # ends at the first that differs
        raise DataError(
            f"{name}: all {len(x)} training inputs are the same; there is nothing to learn from"
        )
    if how == "features" and x.ndim > 2:
        raise DataError(
            f"{name}: standardize=features is for vectors, not inputs of shape {x.shape[1:]}"
        )
    mean, std = moments(x)
    found: tuple[Moment, Moment] = mean, std
    least = std
    if how == "features" or (how == "auto" and x.ndim == 2 and x.dtype != np.uint8):
        means, stds = feature_moments(x)
        least = float(stds[stds > 0].min())
        alike = (
            stds.min() > 0
            and stds.max() <= ALIKE * least
            and abs(means - mean).max() <= ALIKE * least
        )
        if how == "features" or not alike:
            found = means, np.where(stds > 0, stds, 1.0)
    if least < np.finfo(np.float32).tiny:
        raise DataError(
            f"{name}: training inputs vary by {least:.3g} only, less than float32 can tell; give "
            "them in a smaller unit"
        )
    return found
