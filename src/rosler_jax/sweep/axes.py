"""Axes of a sweep: lists of values, and values drawn from ranges."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class SpecError(ValueError):
    """A sweep that cannot be planned; the message names the axis or field and what is allowed.

    Example:
      >>> from rosler_jax.sweep import parse
      >>> parse({"method": "chain", "axes": {"rnk": {"grid": [4, 8]}}})
      Traceback (most recent call last):
      rosler_jax.sweep.axes.SpecError: unknown field 'rnk'; did you mean 'rank'?
    """


class Axis(NamedTuple):
    """One field and the values it takes, in order.

    Attributes:
      name: field of a run.
      kind: one of :data:`FORMS`.
      given: the list of values, or the two ends of the range.
      values: drawn from it; in a search, what a search may begin with.

    Example:
      >>> axis = make_axis("rank", {"integer": [2, 16], "n": 3}, seed=0)
      >>> axis.name, axis.kind, axis.given, len(axis.values)
      ('rank', 'integer', (2, 16), 3)
    """

    name: str
    kind: str
    given: tuple[Any, ...]
    values: tuple[Any, ...]


Draw = Callable[[np.random.Generator, Any, int], list[Any]]


def _uniform(rng: np.random.Generator, ends: tuple[float, float], n: int) -> list[Any]:
    return [float(v) for v in rng.uniform(*ends, n)]


def _log_uniform(rng: np.random.Generator, ends: tuple[float, float], n: int) -> list[Any]:
    if ends[0] <= 0:
        raise SpecError(f"starts at {ends[0]}; a logarithm needs positive ends")
    return [math.exp(v) for v in rng.uniform(math.log(ends[0]), math.log(ends[1]), n)]


def _integer(rng: np.random.Generator, ends: tuple[float, float], n: int) -> list[Any]:
    if any(end != int(end) for end in ends):
        raise SpecError(f"ends {list(ends)}; expected whole numbers")
    return [int(v) for v in rng.integers(int(ends[0]), int(ends[1]), n, endpoint=True)]


def _choice(rng: np.random.Generator, values: list[Any], n: int) -> list[Any]:
    return [values[i] for i in rng.integers(0, len(values), n)]


RANGES: dict[str, Draw] = {"uniform": _uniform, "log_uniform": _log_uniform, "integer": _integer}
FORMS = ("grid", "choice", *RANGES)


def make_axis(name: str, form: Any, seed: int, draws: int | None = None) -> Axis:
    """An axis from its form in a spec.

    Args:
      name: the field.
      form: what :func:`rosler_jax.sweep.spec.parse` describes.
      seed: of the sweep.
      draws: how many values are drawn, whatever the form says.

    Raises:
      SpecError: if the form or its values make no sense.

    Example:
      >>> make_axis("rank", {"grid": [4, 8]}, seed=0).values
      (4, 8)
    """
    if draws is not None and isinstance(form, Mapping):
        form = {**form, "n": draws}
    kind, given, values = _drawn(name, form, seed)
    return Axis(name, kind, tuple(_hashable(v) for v in given), values)


def _drawn(name: str, form: Any, seed: int) -> tuple[str, Sequence[Any], tuple[Any, ...]]:
    kinds = [k for k in form if k in FORMS] if isinstance(form, Mapping) else []
    extra = sorted(set(form) - {*FORMS, "n"}) if isinstance(form, Mapping) else []
    if len(kinds) != 1 or extra:
        wrong = f"has {', '.join(extra)}" if extra else f"is {form!r}"
        raise SpecError(f"axis {name!r} {wrong}; expected one of {', '.join(FORMS)}, and n")
    kind, given = kinds[0], form[kinds[0]]
    if not isinstance(given, list | tuple) or not given:
        raise SpecError(f"axis {name!r}: {kind} is {given!r}; expected a list that is not empty")
    if kind == "grid":
        return kind, given, tuple(_hashable(v) for v in given)
    n = form.get("n")
    if not isinstance(n, int) or n < 1:
        raise SpecError(f"axis {name!r}: n={n!r}; {kind} draws n values, n at least 1")
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if kind == "choice":
        return kind, given, tuple(_hashable(v) for v in _choice(rng, list(given), n))
    if len(given) != 2 or not all(isinstance(v, int | float) for v in given):
        raise SpecError(f"axis {name!r}: {kind} is {given!r}; expected [low, high]")
    if not given[0] < given[1]:
        raise SpecError(f"axis {name!r}: {kind} from {given[0]} to {given[1]}; low is not below")
    try:
        return kind, given, tuple(RANGES[kind](rng, (given[0], given[1]), n))
    except SpecError as error:
        raise SpecError(f"axis {name!r}: {kind} {error}") from error


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
