"""Inputs and targets as training takes them; what it cannot take is refused by name and place."""

from __future__ import annotations

from typing import Any

import numpy as np

from rosler_jax.data._lazy import Lazy, chunks, lazy_array
from rosler_jax.data._raw import DataError, Raw

TARGETS = ("classes", "values", "flags", "none")
"""What a task may ask of y: class labels, real numbers, 0 or 1 each, or nothing."""


def is_tokens(x: Any, targets: str, tokens: bool | None) -> bool:
    """Whether inputs are tokens: as said, or whole numbers in rows that have no targets."""
    if tokens is not None:
        return tokens
    return targets == "none" and x.ndim == 2 and x.dtype.kind in "iu" and x.dtype != np.uint8


def as_inputs(x: Any, where: str, tokens: bool = False) -> Any:
    """Inputs as uint8 or finite float32, or tokens as int32; refuses what is neither."""
    if x.ndim < 2 or x.size == 0:
        raise DataError(f"{where}: inputs have shape {x.shape}; expected (examples, *features)")
    if tokens:
        return _as_tokens(x, where)
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind not in "fiu":
        raise DataError(f"{where}: inputs have dtype {x.dtype}; expected numbers")
    return _finite(x, f"{where}: ", "")


def _finite(x: Any, before: str, what: str) -> Any:
    """Numbers as float32, all of them finite."""
    count, first = 0, None
    with np.errstate(over="ignore"):  # refused below
        x = x.astype(np.float32, copy=False)
        for start, part in chunks(x):
            bad = ~np.isfinite(part)
            if bad.any():
                place = np.argwhere(bad)[0].tolist()
                first = first or (start + place[0], *place[1:])
                count += int(bad.sum())
    if first is not None:
        raise DataError(
            f"{before}{count} {what}values are NaN or infinite in float32, the first at {first}"
        )
    return x


def _as_tokens(x: Any, where: str) -> Any:
    if x.dtype.kind not in "iu":
        raise DataError(f"{where}: tokens are whole numbers, but inputs have dtype {x.dtype}")
    ends = [(int(part.min()), int(part.max())) for _, part in chunks(x)]
    least, most = min(low for low, _ in ends), max(high for _, high in ends)
    if least < 0 or most >= 2**31 - 1:
        raise DataError(
            f"{where}: tokens run from {least} to {most}; expected 0..vocabulary-1 in int32. If "
            "these are measurements, pass tokens=False"
        )
    return x.astype(np.int32, copy=False)


def as_labels(y: np.ndarray, examples: int, where: str) -> np.ndarray:
    """Labels as int32, one for each example; names stay names."""
    if y.shape == (examples, 1):
        y = y[:, 0]
    if y.shape != (examples,):
        raise DataError(
            f"{where}: {examples} inputs but labels of shape {y.shape}; expected ({examples},)"
        )
    if y.dtype.kind == "U":
        return y
    if y.dtype.kind not in "biuf" or (y.dtype.kind == "f" and not (y == np.round(y)).all()):
        raise DataError(
            f"{where}: labels have dtype {y.dtype} and are not whole numbers or names of classes; "
            "real numbers are the targets of a regression"
        )
    y = y.astype(np.int64)
    if y.min() < 0 or y.max() > 10**6:
        raise DataError(f"{where}: labels run from {y.min()} to {y.max()}; expected 0..classes-1")
    return y.astype(np.int32)


def as_targets(y: Any, examples: int, where: str, targets: str = "classes") -> np.ndarray | None:
    """Targets as the task asks for them: labels, or float32 of ``(examples, k)``, or None.

    Example:
      >>> as_targets(np.array([1, 2]), 2, "toy", "values")
      array([[1.], [2.]], dtype=float32)
    """
    if targets == "none":
        return None
    if y is None:
        raise DataError(f"{where}: there are no targets, but the task needs {targets}")
    y = np.asarray(y)
    if targets == "classes":
        return as_labels(y, examples, where)
    if y.ndim not in (1, 2) or len(y) != examples or y.size == 0:
        raise DataError(
            f"{where}: {examples} inputs but targets of shape {y.shape}; expected ({examples},) or "
            f"({examples}, k)"
        )
    if y.dtype.kind not in "biuf":
        raise DataError(f"{where}: targets have dtype {y.dtype}; {targets} are numbers")
    y = _finite(y.reshape(examples, -1), f"{where}: ", "targets' ")
    if targets == "flags" and not np.isin(y, (0, 1)).all():
        row, column = np.argwhere(~np.isin(y, (0, 1)))[0].tolist()
        raise DataError(
            f"{where}: flags are 0 or 1, but target {column} of example {row} is {y[row, column]:g}"
        )
    return y


def class_names(raw: Raw) -> tuple[str, ...] | None:
    """The names of classes, sorted, where labels are names."""
    labels = [np.asarray(pair[1]) for pair in raw.pairs if pair is not None and pair[1] is not None]
    if not any(y.dtype.kind == "U" for y in labels):
        return None
    return tuple(np.unique(np.concatenate([y.ravel().astype(str) for y in labels])).tolist())


def checked(
    name: str, raw: Raw, targets: str = "classes", tokens: bool | None = None
) -> dict[str, tuple[Any, Any]]:
    """The splits of a source by name, as inputs and targets that can be used.

    Args:
      name: of the data, for messages.
      raw: the splits.
      targets: one of :data:`TARGETS`.
      tokens: whether inputs are tokens; None for what they look like, see :func:`is_tokens`.

    Raises:
      DataError: for shapes, labels or values that cannot be used.
    """
    splits: dict[str, tuple[Any, Any]] = {}
    for split, pair in (("train", raw.train), ("validation", raw.validation), ("test", raw.test)):
        if pair is not None:
            where = f"{name}, {split} split"
            x, y = as_rows(pair[0]), pair[1]
            tokens = is_tokens(x, targets, tokens)  # as the first split has it
            x = as_inputs(x, where, tokens)
            splits[split] = (x, as_targets(y, len(x), where, targets))
    for part, what in ((0, "inputs"), (1, "targets")):
        shapes = {k: pair[part].shape[1:] for k, pair in splits.items() if pair[part] is not None}
        if len(set(shapes.values())) > 1:
            raise DataError(f"{name}: the splits' {what} differ in shape: {shapes}")
    names = class_names(raw) if targets == "classes" else None
    if names is not None:
        splits = {k: (x, _numbered(name, y, names)) for k, (x, y) in splits.items()}
    return splits


def as_rows(x: Any) -> Any:
    """Inputs as an array; what is lazy, or a memory map, as rows that are not read yet."""
    if isinstance(x, np.memmap):
        return lazy_array(x)
    return x if isinstance(x, Lazy) else np.asarray(x)


def _numbered(name: str, y: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    if y.dtype.kind != "U":
        raise DataError(f"{name}: some splits name their classes and others number them")
    return np.searchsorted(np.asarray(names), y).astype(np.int32)
