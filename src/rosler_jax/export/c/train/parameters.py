"""The numbers of a training program: those that change, in RAM, and those that stay, in flash."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rosler_jax.export._errors import ExportError
from rosler_jax.export.c.unit import Unit

MOST = 2**28
"""Numbers that train, at most: code counts their bytes in 32 bits."""
FLAG = "parallel"
"""The parameter that is 1 in the parallel stage; no gradient moves it."""


class Place(NamedTuple):
    """Where a parameter lies in C.

    Attributes:
      value: expression that points to its first number; ``"0"`` for none.
      gradient: the same of its gradient; empty for one that stays as it is.
    """

    value: str
    gradient: str = ""

    @property
    def trains(self) -> bool:
        """Whether it has a gradient."""
        return bool(self.gradient)

    def plus(self, offset: str) -> Place:
        """So many numbers further on; none stays none.

        Example:
          >>> Place("s->weights + 8", "g + 8").plus("k * 3")
          Place(value='s->weights + 8 + k * 3', gradient='g + 8 + k * 3')
        """
        if self == NO_PLACE:
            return self
        return Place(*(at and f"{at} + {offset}" for at in self))


NO_PLACE = Place("0")


class Field(NamedTuple):
    """Where a parameter that trains lies in ``state.weights``.

    Attributes:
      name: ``"2/c"``; ``"2/u"`` holds ``A^T`` in the parallel stage.
      offset: index of its first number.
      shape: as the network has it.
      fraction: bits after the point of a fixed-point number; 0 for floats.
      transposed: whether the C code holds it with its axes in reverse.

    Example:
      >>> field = Field("0/c", 12, (4, 3))
      >>> field.size, slice(field.offset, field.offset + field.size)
      (12, slice(12, 24, None))
    """

    name: str
    offset: int
    shape: tuple[int, ...]
    fraction: int = 0
    transposed: bool = True

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return int(np.prod(self.shape))


@dataclasses.dataclass
class Parameters:
    """Collects the parameters of a program as it is written.

    Attributes:
      unit: the file.
      ctype: of a number that trains.
      trained: names of the parameters that train.
      fields: those seen so far.
      initial: their first values, as they lie in memory.
    """

    unit: Unit
    ctype: str
    trained: frozenset[str]
    fields: list[Field] = dataclasses.field(default_factory=list)
    initial: list[np.ndarray] = dataclasses.field(default_factory=list)

    @property
    def count(self) -> int:
        """How many numbers train."""
        return sum(field.size for field in self.fields)

    @property
    def below(self) -> bool:
        """Whether anything that came so far trains, so that errors must go down to it."""
        return any(field.name != FLAG for field in self.fields)

    def trains(self, name: str) -> bool:
        """Whether a parameter trains."""
        return name in self.trained

    def add(self, name: str, values: Any, fraction: int = 0, *, transposed: bool = True) -> Place:
        """Adds a parameter that trains; gives its place in the weights.

        Raises:
          ExportError: if it holds NaN or infinity, or all of them are too many.
        """
        array = np.asarray(values)
        if not np.isfinite(array).all():
            raise ExportError(f"{name}: holds NaN or infinity; training on the host went wrong")
        offset = self.count
        self.fields.append(Field(name, offset, array.shape, fraction, transposed))
        self.initial.append((array.T if transposed else array).ravel())
        if self.count > MOST:
            raise ExportError(f"{name}: {self.count} numbers to train; {MOST} at most, fewer parts")
        return Place(f"s->weights + {offset}", f"g + {offset}")

    def add_any(self, label: str, name: str, values: Any) -> Place:
        """Adds a parameter of floats, whether it trains or not."""
        if self.trains(name):
            return self.add(name, values)
        return Place(self.unit.array(self.ctype, label, np.asarray(values).T, "weights"))


def unpack(fields: tuple[Field, ...], flat: Any, *, real: bool = True) -> Mapping[str, np.ndarray]:
    """The numbers of ``state.weights``, or of its velocity, by parameter, as the network has them.

    Args:
      fields: of the program.
      flat: as the C code holds them.
      real: whether fixed-point weights become real numbers.

    Example:
      >>> fields = (Field("0/c", 0, (2, 3)), Field("0/bias", 6, (1,)))
      >>> unpack(fields, np.arange(7))["0/c"].tolist()
      [[0, 2, 4], [1, 3, 5]]
    """
    out = {}
    for field in fields:
        part = np.asarray(flat)[field.offset : field.offset + field.size]
        values = part.reshape(field.shape[::-1]).T if field.transposed else (
            part.reshape(field.shape)
        )  # fmt: skip
        out[field.name] = values * 2.0**-field.fraction if real and field.fraction else values
    return out
