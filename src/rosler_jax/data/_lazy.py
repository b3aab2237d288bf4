"""Rows of a data set that are read when they are asked for, and what treats them as an array."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int, Num

CHUNK = 2**20  # values read at a time


@dataclasses.dataclass(frozen=True)
class Lazy:
    """Rows somewhere else, as an array that has shape and dtype, and is read by an index.

    Attributes:
      read: the source's rows at an array of places, ``(k,) -> (k, *item)``; from any thread.
      places: of these rows in the source.
      item: shape of one row.
      dtype: that rows are given in.
      content: what the digest is of, for one place of the source; None for the values themselves.

    Example:
      >>> squares = lazy_array(np.arange(5)[:, None] ** 2)
      >>> squares.shape, squares[1:3].tolist(), select(squares, np.array([4, 0]))[0].tolist()
      ((5, 1), [[1], [4]], [16])
    """

    read: Callable[[Int[np.ndarray, " rows"]], Num[np.ndarray, "rows *item"]]
    places: Int[np.ndarray, " examples"]
    item: tuple[int, ...]
    dtype: np.dtype[Any]
    content: Callable[[int], bytes] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return len(self.places), *self.item

    @property
    def ndim(self) -> int:
        """As of an array."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """As of an array."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """That an array of the same rows takes."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> np.ndarray:
        places = self.places[index]  # an IndexError past the end, which ends an iteration
        rows = self.read(np.atleast_1d(places)).astype(self.dtype, copy=False)
        return rows if np.ndim(places) else rows[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.empty(self.shape, self.dtype)
        for start, part in chunks(self):
            whole[start : start + len(part)] = part
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def astype(self, dtype: Any, copy: bool = False) -> Lazy:
        """The same rows, given in another dtype; nothing is read."""
        del copy
        return dataclasses.replace(self, dtype=np.dtype(dtype))

    def digest_into(self, state: Any) -> None:
        """Updates a hash with the content of all rows."""
        if self.content is None:
            for _, part in chunks(self):
                state.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            for place in self.places:
                state.update(self.content(int(place)))


def lazy_array(array: np.ndarray) -> Lazy:
    """The rows of an array that lies on disk, a memory map."""

    def read(places: np.ndarray) -> np.ndarray:
        return np.asarray(array[places])

    return Lazy(read, np.arange(len(array)), array.shape[1:], array.dtype)


def select(x: Any, index: Int[np.ndarray, " rows"]) -> Any:
    """Some rows; of lazy ones, without reading them.

    Example:
      >>> select(np.array([5, 6, 7]), np.array([2, 0]))
      array([7, 5])
    """
    return dataclasses.replace(x, places=x.places[index]) if isinstance(x, Lazy) else x[index]


def chunks(x: Any, values: int = CHUNK) -> Iterator[tuple[int, np.ndarray]]:
    """Parts of an array's rows, one after the other, each with the place of its first row.

    Example:
      >>> [(start, len(part)) for start, part in chunks(np.zeros((5, 4)), values=8)]
      [(0, 2), (2, 2), (4, 1)]
    """
    rows = max(1, values // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x), rows):
        yield start, x[start : start + rows]
