"""Data sets as NumPy splits, with a validation split that is never taken from the test data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float64, Int, Num

    Moment = float | Float64[np.ndarray, " features"]
    """One number for all values, or one for each feature."""

ALIKE = 5.0
"""Features whose deviations lie within this factor share one mean and deviation: a signal's do."""


class DataError(ValueError):
    """Data that cannot be used; the message names the file and the reason."""


class Raw(NamedTuple):
    """What a source reads: splits as they are stored; validation is None where there is none."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Dataset:
    """Splits of a classification data set.

    Attributes:
      name: what was loaded.
      train_x, validation_x, test_x: inputs as stored (uint8 stays uint8, else float32), shape
        ``(examples, *features)``.
      train_y, validation_y, test_y: labels, int32, ``0 .. num_classes - 1``.
      num_classes: number of classes.
      mean, std: of the training inputs, in their own units: see :func:`standardization`.
      digest: of all splits as the source has them: the same data, the same digest.
    """

    name: str
    train_x: Num[np.ndarray, "train *features"]
    train_y: Int[np.ndarray, " train"]
    validation_x: Num[np.ndarray, "validation *features"]
    validation_y: Int[np.ndarray, " validation"]
    test_x: Num[np.ndarray, "test *features"]
    test_y: Int[np.ndarray, " test"]
    num_classes: int
    mean: Moment
    std: Moment
    digest: str


def as_inputs(x: np.ndarray, where: str) -> np.ndarray:
    """Inputs as uint8 or finite float32; refuses what is neither."""
    if x.ndim < 2 or x.size == 0:
        raise DataError(f"{where}: inputs have shape {x.shape}; expected (examples, *features)")
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind not in "fiu":
        raise DataError(f"{where}: inputs have dtype {x.dtype}; expected numbers")
    with np.errstate(over="ignore"):  # refused below
        x = x.astype(np.float32, copy=False)
    bad = ~np.isfinite(x)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"{where}: {int(bad.sum())} values are NaN or infinite in float32, the first at {first}"
        )
    return x


def as_labels(y: np.ndarray, examples: int, where: str) -> np.ndarray:
    """Labels as int32, one for each example."""
    if y.shape == (examples, 1):
        y = y[:, 0]
    if y.shape != (examples,):
        raise DataError(
            f"{where}: {examples} inputs but labels of shape {y.shape}; expected ({examples},)"
        )
    if y.dtype.kind not in "biuf" or (y.dtype.kind == "f" and not (y == np.round(y)).all()):
        raise DataError(f"{where}: labels have dtype {y.dtype} and are not whole numbers")
    y = y.astype(np.int64)
    if y.min() < 0 or y.max() > 10**6:
        raise DataError(f"{where}: labels run from {y.min()} to {y.max()}; expected 0..classes-1")
    return y.astype(np.int32)


def stratified(y: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a kept and a held-out part; each class gives the same fraction of its examples.

    That is at least one, and never the last one kept: what is not trained on cannot be learnt.

    Example:
      >>> kept, held = stratified(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
      >>> len(kept), len(held)
      (6, 2)
    """
    rng = np.random.default_rng(seed)
    held = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held[members[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def moments(x: np.ndarray, chunk: int = 2**20) -> tuple[float, float]:
    """Mean and standard deviation of all values, in float64 but never of a float64 copy of all.

    Example:
      >>> moments(np.array([[1, 3], [1, 3]], np.uint8))
      (2.0, 1.0)
    """
    rows = max(1, chunk // x[0].size)
    parts = [x[i : i + rows] for i in range(0, len(x), rows)]
    mean = sum(float(part.sum(dtype=np.float64)) for part in parts) / x.size
    squares = sum(float(np.square(part - np.float64(mean)).sum()) for part in parts)
    return mean, (squares / x.size) ** 0.5


def feature_moments(x: np.ndarray, chunk: int = 2**20) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column, in float64; 0 exactly where it is constant.

    Example:
      >>> feature_moments(np.array([[1, 3], [1, 5]], np.float32))
      (array([1., 4.]), array([0., 1.]))
    """
    rows = max(1, chunk // x.shape[1])
    parts = [x[i : i + rows] for i in range(0, len(x), rows)]
    mean = sum(part.sum(0, dtype=np.float64) for part in parts) / len(x)
    squares = sum(np.square(part - mean).sum(0) for part in parts)
    return mean, np.where(x.min(0) == x.max(0), 0.0, np.sqrt(squares / len(x)))


def standardization(name: str, x: np.ndarray, how: str = "auto") -> tuple[Moment, Moment]:
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
    if all(np.array_equal(row, x[0]) for row in x):  # ends at the first that differs
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


def digest(raw: Raw) -> str:
    """A digest of all splits: shapes, dtypes and bytes.

    Example:
      >>> x, y = np.zeros((2, 3), np.float32), np.array([0, 1])
      >>> digest(Raw((x, y), (x, y))) == digest(Raw((x, y), (x + 1, y)))
      False
    """
    state = hashlib.blake2b(digest_size=16)
    for pair in raw:
        for array in () if pair is None else map(np.asarray, pair):
            state.update(f"{array.dtype.str}{array.shape};".encode())
            state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def checked(name: str, raw: Raw) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The splits of a source by name, as inputs and labels that can be used.

    Raises:
      DataError: for shapes, labels or values that cannot be used.
    """
    splits = {}
    for split, pair in (("train", raw.train), ("validation", raw.validation), ("test", raw.test)):
        if pair is not None:
            x = as_inputs(np.asarray(pair[0]), f"{name}, {split} split")
            splits[split] = (x, as_labels(np.asarray(pair[1]), len(x), f"{name}, {split} split"))
    shapes = {split: x.shape[1:] for split, (x, _) in splits.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"{name}: the splits' inputs differ in shape: {shapes}")
    return splits


def held_out(
    name: str, y: np.ndarray, validation: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and validation examples.

    Raises:
      DataError: if nothing can be held out.
    """
    if not 0 < validation < 1:
        raise DataError(f"validation={validation} is no fraction between 0 and 1")
    kept, held = stratified(y, validation, seed)
    if not len(held):
        raise DataError(f"{name}: no class has two training examples, one to validate on")
    return kept, held


def make_dataset(
    name: str, raw: Raw, *, validation: float, seed: int, standardize: str = "auto"
) -> Dataset:
    """Checks the splits of a source and holds out a validation split if it has none.

    Raises:
      DataError: for shapes, labels or values that cannot be used.
    """
    splits = checked(name, raw)
    if "validation" not in splits:
        x, y = splits["train"]
        kept, held = held_out(name, y, validation, seed)
        splits["train"], splits["validation"] = (x[kept], y[kept]), (x[held], y[held])
    mean, std = standardization(name, splits["train"][0], standardize)
    return Dataset(
        name=name,
        train_x=splits["train"][0],
        train_y=splits["train"][1],
        validation_x=splits["validation"][0],
        validation_y=splits["validation"][1],
        test_x=splits["test"][0],
        test_y=splits["test"][1],
        num_classes=int(max(y.max() for _, y in splits.values())) + 1,
        mean=mean,
        std=std,
        digest=digest(raw),
    )
