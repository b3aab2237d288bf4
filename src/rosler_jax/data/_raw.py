"""What a source reads, and a digest of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rosler_jax.data._lazy import Lazy

Pair = tuple[Any, Any]
"""Inputs and targets, arrays or :class:`Lazy`; targets may be None."""


class DataError(ValueError):
    """Data that cannot be used; the message names the file and the reason.

    Example:
      >>> from rosler_jax.data import load
      >>> load((np.eye(3), np.arange(4)))
      Traceback (most recent call last):
      rosler_jax.data._raw.DataError: arrays: 3 inputs but labels of shape (4,); expected (3,)
    """


class Raw(NamedTuple):
    """What a source reads: splits as they are stored; validation is None where there is none.

    Each is a pair ``(x, y)``: inputs, and class labels (whole numbers, or names), values, flags or
    None.

    Attributes:
      groups: of the training examples by name, what each belongs to (numbers or names): what data
        are split by among the clients of a federated training, as ``{"recording": ...}``.

    Example:
      >>> from rosler_jax.data import load
      >>> x, y = np.eye(10), np.arange(10) % 2
      >>> raw = Raw(train=(x, y), test=(x[:4], y[:4]), groups={"day": np.arange(10) // 5})
      >>> toy = load(raw, validation=0.2)
      >>> toy.train_x.shape, toy.test_x.shape, toy.groups["day"].tolist()
      ((8, 10), (4, 10), [0, 0, 0, 0, 1, 1, 1, 1])
    """

    train: Pair
    test: Pair
    validation: Pair | None = None
    groups: Mapping[str, Any] | None = None

    @property
    def pairs(self) -> tuple[Pair | None, ...]:
        """Train, test, validation."""
        return self.train, self.test, self.validation


def digest(raw: Raw) -> str:
    """A digest of all splits (not of groups): shapes, dtypes and bytes.

    Example:
      >>> x, y = np.zeros((2, 3), np.float32), np.array([0, 1])
      >>> digest(Raw((x, y), (x, y))) == digest(Raw((x, y), (x + 1, y)))
      False
    """
    state = hashlib.blake2b(digest_size=16)
    for pair in raw.pairs:
        for rows in () if pair is None else pair:
            if rows is None:
                continue
            array = rows if isinstance(rows, Lazy) else np.asarray(rows)
            state.update(f"{array.dtype.str}{array.shape};".encode())
            if isinstance(array, Lazy):
                array.digest_into(state)
            else:
                state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return state.hexdigest()
