"""Rows of tables that are named with a number, as ``dirichlet:0.3``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Spec(NamedTuple, Generic[T]):
    """One row.

    Attributes:
      row: what is named.
      number: where none is given; None for a row that takes none.
      least, most: that it may be.
    """

    row: T
    number: float | None = None
    least: float = 0.0
    most: float = math.inf


def choose(what: str, text: str, table: Mapping[str, Spec[T]], known: str = "") -> tuple[T, float]:
    """The row that a text names, and its number.

    Args:
      what: is named, for messages.
      text: ``name`` or ``name:number``.
      table: the rows.
      known: what else there is to say of what is known.

    Raises:
      ValueError: for an unknown name, or a number that it does not take.

    Example:
      >>> rows = {"all": Spec("everything"), "top": Spec("the largest", 0.1, most=1.0)}
      >>> choose("what", "top:0.5", rows), choose("what", "top", rows)
      (('the largest', 0.5), ('the largest', 0.1))
      >>> choose("what", "top:2", rows)
      Traceback (most recent call last):
      ValueError: what 'top:2': 2 is outside 0..1
    """
    name, _, given = text.partition(":")
    if name not in table:
        raise ValueError(f"{what} {text!r} is none of {', '.join(table)}{known}")
    spec = table[name]
    if not given:
        return spec.row, 0.0 if spec.number is None else spec.number
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if spec.number is None or not math.isfinite(number):
        takes = "no number" if spec.number is None else f"a number, as {name}:{spec.number:g}"
        raise ValueError(f"{what} {text!r}: {name} takes {takes}")
    if not spec.least <= number <= spec.most:
        raise ValueError(f"{what} {text!r}: {number:g} is outside {spec.least:g}..{spec.most:g}")
    return spec.row, number
