"""What a sweep varies: axes over the fields of a training run, from TOML or a mapping."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import tomllib
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rosler_jax.config import TrainConfig, from_dict


class SpecError(ValueError):
    """A sweep that cannot be planned; the message names the axis or field and what is allowed."""


class Axis(NamedTuple):
    """One field and the values it takes, in order.

    Attributes:
      name: field of :class:`rosler_jax.config.TrainConfig`.
      kind: one of :data:`FORMS`.
      given: the list of values, or the two ends of the range.
      values: drawn from it; in a search, what a search may begin with.
    """

    name: str
    kind: str
    given: tuple[Any, ...]
    values: tuple[Any, ...]


class Halving(NamedTuple):
    """Successive halving.

    Attributes:
      rungs: epochs after which only some go on, rising.
      keep: the part of the trainings that goes on.
    """

    rungs: tuple[int, ...]
    keep: float


class Search(NamedTuple):
    """A search by Optuna, instead of the product of the axes.

    Attributes:
      trials: in all.
      batch: asked for together, trained as one population.
      objectives: columns of the table; file_bytes, parameters and loss are made small.
      storage: of the study, as Optuna names it; None for a file in the sweep's folder.
      study: its name; None for the default.
    """

    trials: int
    batch: int
    objectives: tuple[str, ...]
    storage: str | None
    study: str | None


@dataclasses.dataclass(frozen=True)
class SweepSpec:
    """A sweep: the product of its axes over a base of fields that stay the same.

    Attributes:
      base: fields of :class:`rosler_jax.config.TrainConfig`.
      axes: what varies; the last varies fastest.
      source: the mapping that it was made from, kept to be compared when a sweep is resumed.
      seed: of what is drawn.
      halving: how early members are stopped; None for not at all.
      search: who proposes members; None for the product of the axes.
    """

    base: dict[str, Any]
    axes: tuple[Axis, ...]
    source: dict[str, Any]
    seed: int = 0
    halving: Halving | None = None
    search: Search | None = None

    def first(self) -> TrainConfig:
        """The member with the first value of every axis."""
        return self.member({axis.name: axis.values[0] for axis in self.axes})

    def member(self, varied: Mapping[str, Any]) -> TrainConfig:
        """One member.

        Raises:
          SpecError: if it is no possible run, naming it.
        """
        try:
            return from_dict({**self.base, **varied})
        except (ValueError, TypeError) as error:
            raise SpecError(f"member {dict(varied)}: {error}") from error

    def configs(self) -> list[TrainConfig]:
        """The members, in order.

        Raises:
          SpecError: if a member is no possible run, naming it.
        """
        names = [axis.name for axis in self.axes]
        product = itertools.product(*(axis.values for axis in self.axes))
        return [self.member(dict(zip(names, values, strict=True))) for values in product]


def parse(source: Mapping[str, Any]) -> SweepSpec:
    """Reads a sweep from a mapping: fields of a run, and ``axes``.

    An axis is ``{grid: [...]}`` (every value), ``{choice: [...], n: N}`` (N of them at random),
    ``{uniform: [low, high], n: N}``, ``{log_uniform: [low, high], n: N}`` or
    ``{integer: [low, high], n: N}`` (both ends included). Drawn values depend on the axis' name
    and on ``sweep_seed`` alone. ``halving = {rungs: [1, 3], keep: 0.3}`` stops most of the members
    early; ``search = {trials: 64, batch: 16}`` lets Optuna propose members within the axes (which
    then need no n), by ``objectives``, by default the validation accuracy.

    Args:
      source: as TOML gives it.

    Returns:
      The sweep.

    Raises:
      SpecError: for a field or a form of axis that does not exist, or values out of range.

    Example:
      >>> axes = {"learning_rate": {"log_uniform": [1e-4, 1e-2], "n": 16}, "rank": {"grid": [4, 8]}}
      >>> len(parse({"method": "chain", "axes": axes}).configs())
      32
    """
    base = dict(source)
    axes, seed = base.pop("axes", {}), base.pop("sweep_seed", 0)
    halving, search = _halving(base.pop("halving", None)), _search(base.pop("search", None))
    if halving and search:
        raise SpecError("halving and search do not go together yet; leave one out")
    if not isinstance(axes, Mapping) or not axes:
        raise SpecError("a sweep needs a table of axes, as [axes] with rank = { grid = [4, 8] }")
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    for name in (*base, *axes):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            raise SpecError(f"unknown field {name!r}; {hint}")
    both = sorted(set(base) & set(axes))
    if both:
        raise SpecError(f"{both[0]!r} is both fixed and an axis; leave one out")
    made = tuple(_axis(name, form, seed, search is not None) for name, form in axes.items())
    whole = {**source, "axes": {k: dict(v) for k, v in axes.items()}}
    spec = SweepSpec(base, made, whole, seed, halving, search)
    if halving:
        _check_rungs(spec, halving)
    return spec


def _table(name: str, given: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A table of the spec with its defaults; refuses keys that it does not have."""
    if not isinstance(given, Mapping):
        raise SpecError(f"{name} is {given!r}; expected a table with {', '.join(defaults)}")
    for key in given:
        if key not in defaults:
            raise SpecError(f"{name} has {key!r}; expected {', '.join(defaults)}")
    return {**defaults, **given}


def _halving(given: Any) -> Halving | None:
    if given is None:
        return None
    table = _table("halving", given, {"rungs": [], "keep": 1 / 3})
    rungs, keep = table["rungs"], table["keep"]
    rising = isinstance(rungs, list | tuple) and all(isinstance(r, int) for r in rungs)
    rising = rising and all(a < b for a, b in itertools.pairwise([0, *rungs]))
    if not rising or not rungs:
        raise SpecError(f"halving: rungs is {rungs!r}; expected rising epochs, as [1, 3]")
    if not isinstance(keep, int | float) or not 0 < keep < 1:
        raise SpecError(f"halving: keep is {keep!r}; expected a part between 0 and 1")
    return Halving(tuple(rungs), float(keep))


def _check_rungs(spec: SweepSpec, halving: Halving) -> None:
    if any(axis.name == "epochs" for axis in spec.axes):
        raise SpecError("halving needs the same epochs for all members; epochs is an axis")
    epochs = spec.first().epochs
    if halving.rungs[-1] >= epochs:
        raise SpecError(f"halving: rungs {list(halving.rungs)} reach beyond the {epochs} epochs")


OBJECTIVES = ("validation_accuracy", "file_bytes", "parameters", "loss")


def _search(given: Any) -> Search | None:
    if given is None:
        return None
    defaults = {"trials": None, "batch": 16, "objectives": OBJECTIVES[:1]}
    table = _table("search", given, {**defaults, "storage": None, "study": None})
    for name in ("trials", "batch"):
        if not isinstance(table[name], int) or table[name] < 1:
            raise SpecError(f"search: {name} is {table[name]!r}; expected at least 1")
    objectives = tuple(table["objectives"])
    for name in objectives or ("nothing",):
        if name not in OBJECTIVES:
            raise SpecError(f"search: objective {name!r}; expected {', '.join(OBJECTIVES)}")
    return Search(table["trials"], table["batch"], objectives, table["storage"], table["study"])


def load(path: str | Path) -> SweepSpec:
    """Reads a sweep from a TOML file.

    Raises:
      SpecError: naming the file and what is wrong.
      OSError: if it cannot be read.
    """
    try:
        return parse(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not TOML: {error}") from error
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What changed between two sources of a sweep, a line each.

    Example:
      >>> difference({"epochs": 3, "axes": {"rank": {"grid": [4]}}}, {"epochs": 5, "axes": {}})
      ["axes.rank: {'grid': [4]} -> nothing", 'epochs: 3 -> 5']
    """
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += difference(a, b, f"{prefix}{key}.")
        else:
            shown = ["nothing" if value is None else repr(value) for value in (a, b)]
            lines.append(f"{prefix}{key}: {shown[0]} -> {shown[1]}")
    return lines


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


def _axis(name: str, form: Any, seed: int, searched: bool) -> Axis:
    if searched and isinstance(form, Mapping):
        form = {"n": 1, **form}  # a search draws by itself
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
