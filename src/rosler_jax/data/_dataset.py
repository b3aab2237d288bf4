"""Data sets as NumPy splits, with a validation split that is never taken from the test data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rosler_jax.data._check import checked, class_names
from rosler_jax.data._lazy import Lazy, chunks, select
from rosler_jax.data._moments import feature_moments, standardization
from rosler_jax.data._raw import DataError, Raw, digest
from rosler_jax.data._split import held_out

if TYPE_CHECKING:
    from jaxtyping import Float64, Int32, Num

    from rosler_jax.data._moments import Moment

__all__ = [
    "DataError",
    "Dataset",
    "Raw",
    "checked",
    "digest",
    "held_out",
    "make_dataset",
    "standardization",
]


@dataclass(frozen=True)
class Dataset:
    """Splits of a data set.

    Attributes:
      name: what was loaded.
      train_x, validation_x, test_x: inputs as stored (uint8 stays uint8, tokens are int32, all else
        is float32), shape ``(examples, *features)``; :class:`rosler_jax.data._lazy.Lazy` where the
        source is lazy and the data streams.
      train_y, validation_y, test_y: what ``targets`` says: ``"classes"``, int32
        ``0 .. num_classes - 1`` of shape ``(examples,)``; ``"values"`` or ``"flags"`` (0 and 1),
        float32 ``(examples, k)``; ``"none"``, None: the inputs are the targets.
      num_classes: number of classes; None where targets are none.
      mean, std: of the training inputs, in their own units: see
        :func:`rosler_jax.data._moments.standardization`; None of tokens.
      digest: of all splits as the source has them: the same data, the same digest.
      targets: what y is.
      classes: their names, where the source has names.
      vocabulary: number of tokens, largest plus one; None where inputs are no tokens.
      target_mean, target_std: of each column of the training values, ``(k,)``; a constant column's
        deviation is 1. None unless targets are values.
      streams: whether training and validation inputs are too large for the device.
      groups: by name, the number of what each training example belongs to, int32 ``(train,)``;
        where the source has groups, as the ``recording`` and the ``load`` of bearings.

    Example:
      >>> from rosler_jax.data import load
      >>> toy = load((255 * np.eye(20, dtype=np.uint8), np.array(["cat", "dog"] * 10)))
      >>> toy.classes, toy.num_classes, toy.train_x.dtype.name, toy.train_y[:4].tolist()
      (('cat', 'dog'), 2, 'uint8', [0, 1, 1, 0])
      >>> toy.mean, toy.std
      (12.75, 55.576)
    """

    name: str
    train_x: Num[np.ndarray, "train *features"] | Lazy
    train_y: Num[np.ndarray, "train *k"] | None
    validation_x: Num[np.ndarray, "validation *features"] | Lazy
    validation_y: Num[np.ndarray, "validation *k"] | None
    test_x: Num[np.ndarray, "test *features"] | Lazy
    test_y: Num[np.ndarray, "test *k"] | None
    num_classes: int | None
    mean: Moment | None
    std: Moment | None
    digest: str
    targets: str = "classes"
    classes: tuple[str, ...] | None = None
    vocabulary: int | None = None
    target_mean: Float64[np.ndarray, " k"] | None = None
    target_std: Float64[np.ndarray, " k"] | None = None
    streams: bool = False
    groups: Mapping[str, Int32[np.ndarray, " train"]] = field(default_factory=dict)


def make_dataset(
    name: str,
    raw: Raw,
    *,
    validation: float,
    seed: int,
    standardize: str = "auto",
    targets: str = "classes",
    tokens: bool | None = None,
    stream: bool | None = None,
) -> Dataset:
    """Checks the splits of a source and holds out a validation split if it has none.

    Args:
      name: of the data, for messages.
      raw: what the source read.
      validation, seed, standardize, targets, tokens, stream: as of :func:`rosler_jax.data.load`.

    Raises:
      DataError: for shapes, labels or values that cannot be used.
    """
    splits = checked(name, raw, targets, tokens)
    streams = _streams(splits, stream)
    groups = _groups(name, raw, len(splits["train"][0]))
    if not streams:
        splits = {split: (np.asarray(x), y) for split, (x, y) in splits.items()}
    if "validation" not in splits:
        x, y = splits["train"]
        rows = held_out(name, x if y is None else y, validation, seed, targets)
        for split, index in zip(("train", "validation"), rows, strict=True):
            splits[split] = (select(x, index), None if y is None else y[index])
        groups = {group: found[rows[0]] for group, found in groups.items()}
    (train_x, train_y), (validation_x, validation_y) = splits["train"], splits["validation"]
    test_x, test_y = splits["test"]
    is_tokens = train_x.dtype == np.int32
    mean, std = (None, None) if is_tokens else standardization(name, train_x, standardize)
    names = class_names(raw) if targets == "classes" else None
    center, unit = _target_moments(train_y) if targets == "values" else (None, None)
    return Dataset(
        name=name,
        train_x=train_x,
        train_y=train_y,
        validation_x=validation_x,
        validation_y=validation_y,
        test_x=test_x,
        test_y=test_y,
        num_classes=_classes(splits, names) if targets == "classes" else None,
        mean=mean,
        std=std,
        digest=digest(raw),
        targets=targets,
        classes=names,
        vocabulary=1 + max(_largest(x) for x, _ in splits.values()) if is_tokens else None,
        target_mean=center,
        target_std=unit,
        streams=streams,
        groups=groups,
    )


def _streams(splits: dict[str, tuple[Any, Any]], stream: bool | None) -> bool:
    from rosler_jax.data.stream import fits

    if stream is not None:
        return stream
    trained_on = (x for split, (x, _) in splits.items() if split != "test")
    return not fits(sum(x.nbytes for x in trained_on))


def _groups(name: str, raw: Raw, examples: int) -> dict[str, np.ndarray]:
    """The groups of the training examples, numbered from 0."""
    found = {}
    for group, values in (raw.groups or {}).items():
        values = np.asarray(values)
        if values.shape != (examples,):
            raise DataError(
                f"{name}: groups {group!r} of shape {values.shape}; expected ({examples},): one "
                "for each training example"
            )
        found[group] = np.unique(values, return_inverse=True)[1].astype(np.int32)
    return found


def _classes(splits: dict[str, tuple[Any, Any]], names: tuple[str, ...] | None) -> int:
    return len(names) if names else int(max(y.max() for _, y in splits.values())) + 1


def _largest(x: Any) -> int:
    return max(int(part.max()) for _, part in chunks(x))


def _target_moments(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, std = feature_moments(y)
    return mean, np.where(std > 0, std, 1.0)
