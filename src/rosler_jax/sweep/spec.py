"""What a sweep varies: axes over the fields of a training run, from TOML or a mapping."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rosler_jax.config import TrainConfig, from_dict, to_dict
from rosler_jax.fit import task_of
from rosler_jax.sweep.axes import Axis, SpecError, make_axis
from rosler_jax.tasks import Task, metric_of

LISTS = ("target", "options", "rules")
"""Fields that are lists of words, and may be given as one word with commas."""


class Halving(NamedTuple):
    """Successive halving.

    Attributes:
      rungs: epochs after which only some go on, rising.
      keep: the part of the trainings that goes on.

    Example:
      >>> axes = {"rank": {"grid": [2, 4, 8]}}
      >>> parse({"epochs": 9, "halving": {"rungs": [1, 3], "keep": 0.5}, "axes": axes}).halving
      Halving(rungs=(1, 3), keep=0.5)
    """

    rungs: tuple[int, ...]
    keep: float


class Search(NamedTuple):
    """A search by Optuna, instead of the product of the axes.

    Attributes:
      trials: in all.
      batch: asked for together, trained as one population.
      objectives: columns of the table.
      storage: of the study, as Optuna names it; None for a file in the sweep's folder.
      study: its name; None for the default.

    Example:
      >>> axes = {"rank": {"integer": [2, 16]}}
      >>> search = parse({"search": {"trials": 8, "batch": 4}, "axes": axes}).search
      >>> search.trials, search.objectives
      (8, ('validation_accuracy',))
    """

    trials: int
    batch: int
    objectives: Any
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
      draws: values that every drawn axis has, taken together and not crossed; None to cross them.
      halving: how early members are stopped; None for not at all.
      search: who proposes members; None for the product of the axes.

    Example:
      >>> axes = {"rank": {"grid": [2, 4]}, "seed": {"grid": [0, 1]}}
      >>> spec = parse({"method": "chain", "axes": axes})
      >>> [(config.rank, config.seed) for config in spec.configs()], spec.followed()
      ([(2, 0), (2, 1), (4, 0), (4, 1)], ('accuracy', True))
    """

    base: dict[str, Any]
    axes: tuple[Axis, ...]
    source: dict[str, Any]
    seed: int = 0
    draws: int | None = None
    halving: Halving | None = None
    search: Search | None = None

    def task(self) -> Task:
        """What all members are trained for."""
        return task_of(self.first())

    def followed(self) -> tuple[str, bool]:
        """The metric that members are compared by, and whether larger is better."""
        name, metric = metric_of(self.task(), self.first().metric)
        return name, metric.larger_is_better

    def objectives(self) -> dict[str, bool]:
        """Columns that a search may go by, and whether larger is better."""
        metrics = self.task().metrics.items()
        found = {f"validation_{name}": metric.larger_is_better for name, metric in metrics}
        return found | dict.fromkeys(("file_bytes", "parameters", "loss"), False)

    def first(self) -> TrainConfig:
        """The member with the first value of every axis."""
        return self.member({axis.name: axis.values[0] for axis in self.axes})

    def member(self, varied: Mapping[str, Any]) -> TrainConfig:
        """One member.

        Raises:
          SpecError: if it is no possible run, naming it.
        """
        fields = {**self.base, **varied}
        for name in LISTS:  # as the command line has them
            if isinstance(fields.get(name), str):
                fields[name] = [part for part in fields[name].split(",") if part]
        try:
            return from_dict(fields)
        except (ValueError, TypeError) as error:
            raise SpecError(f"member {dict(varied)}: {error}") from error

    def configs(self) -> list[TrainConfig]:
        """The members, in order.

        Raises:
          SpecError: if a member is no possible run, naming it.
        """
        drawn = [axis for axis in self.axes if axis.kind != "grid" and self.draws is not None]
        crossed = [axis for axis in self.axes if axis not in drawn]
        points = zip(*(axis.values for axis in drawn), strict=True) if drawn else [()]
        names = [axis.name for axis in (*drawn, *crossed)]
        product = itertools.product(points, *(axis.values for axis in crossed))
        members = (dict(zip(names, (*point, *grid), strict=True)) for point, *grid in product)
        return [self.member(member) for member in members]


def parse(source: Mapping[str, Any]) -> SweepSpec:
    """Reads a sweep from a mapping: fields of a run, and ``axes``.

    An axis is ``{grid: [...]}`` (every value), ``{choice: [...], n: N}`` (N of them at random),
    ``{uniform: [low, high], n: N}``, ``{log_uniform: [low, high], n: N}`` or
    ``{integer: [low, high], n: N}`` (both ends included). Drawn values depend on the axis' name
    and on ``sweep_seed`` alone. ``halving = {rungs: [1, 3], keep: 0.3}`` stops most of the members
    early; ``search = {trials: 64, batch: 16}`` lets Optuna propose members within the axes (which
    then need no n), by ``objectives``, by default the followed metric in validation.

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
      >>> axes = {"learning_rate": {"log_uniform": [1e-4, 1e-2]}, "noise": {"uniform": [0, 0.3]}}
      >>> len(parse({"method": "chain", "draws": 16, "axes": axes}).configs())
      16
    """
    base = dict(source)
    axes, seed = base.pop("axes", {}), base.pop("sweep_seed", 0)
    draws = base.pop("draws", None)
    halving, search = _halving(base.pop("halving", None)), _search(base.pop("search", None))
    if halving and search:
        raise SpecError("halving and search do not go together yet; leave one out")
    if draws is not None and (search or not isinstance(draws, int) or draws < 1):
        why = "a search draws by itself, leave one out" if search else "expected at least 1"
        raise SpecError(f"draws is {draws!r}; {why}")
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
    for name, form in axes.items():
        if draws is not None and isinstance(form, Mapping) and form.get("n", draws) != draws:
            raise SpecError(f"axis {name!r}: n={form['n']!r}, but draws is {draws}; leave n out")
    given = 1 if search else draws  # what a search draws here is no more than an example
    made = tuple(make_axis(name, form, seed, given) for name, form in axes.items())
    if draws is not None and all(axis.kind == "grid" for axis in made):
        raise SpecError(f"draws is {draws!r}, but every axis is a grid; nothing is drawn")
    whole = {**source, "axes": {k: dict(v) for k, v in axes.items()}}
    spec = SweepSpec(base, made, whole, seed, draws, halving, search)
    if halving:
        _check_rungs(spec, halving)
    if search:
        search = search._replace(objectives=_objectives(spec, search.objectives))
    return dataclasses.replace(spec, search=search)


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


def _search(given: Any) -> Search | None:
    if given is None:
        return None
    defaults = {"trials": None, "batch": 16, "objectives": None, "storage": None, "study": None}
    table = _table("search", given, defaults)
    for name in ("trials", "batch"):
        if not isinstance(table[name], int) or table[name] < 1:
            raise SpecError(f"search: {name} is {table[name]!r}; expected at least 1")
    objectives = None if table["objectives"] is None else tuple(table["objectives"])
    return Search(table["trials"], table["batch"], objectives, table["storage"], table["study"])


def _objectives(spec: SweepSpec, given: tuple[str, ...] | None) -> tuple[str, ...]:
    """The columns that objectives name; a metric stands for its value in validation."""
    columns = spec.objectives()
    if given is None:
        return (f"validation_{spec.followed()[0]}",)
    found = tuple(f"validation_{name}" if name not in columns else name for name in given)
    for name, column in zip(given or ("nothing",), found or ("",), strict=True):
        if column not in columns:
            raise SpecError(f"search: objective {name!r}; expected {', '.join(columns)}")
    return found


def load(path: str | Path) -> SweepSpec:
    """Reads a sweep from a TOML file.

    Raises:
      SpecError: naming the file and what is wrong.
      OSError: if it cannot be read.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder) / "ranks.toml"
      ...     size = path.write_text("axes = { rank = { grid = [2, 4] } }")
      ...     spec = load(path)
      >>> [config.rank for config in spec.configs()]
      [2, 4]
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


def as_spec(
    space: SweepSpec | Mapping[str, Any] | str | Path,
    data: Any = None,
    config: TrainConfig | None = None,
) -> SweepSpec:
    """A sweep from what a caller has at hand.

    Args:
      space: a sweep; a TOML file; what it would hold; or its axes alone.
      data: data set by name or path, instead of the one in ``space``; or arrays.
      config: fields that stay the same, where ``space`` is a mapping that does not name them.

    Raises:
      SpecError: naming what is wrong.

    Example:
      >>> base = TrainConfig(method="chain", hidden=(64,))
      >>> spec = as_spec({"rank": {"grid": [2, 4]}}, "mnist5k", base)
      >>> [(c.rank, c.hidden) for c in spec.configs()]
      [(2, (64,)), (4, (64,))]
    """
    if isinstance(space, Mapping):
        source = dict(space) if "axes" in space else {"axes": space}
        fixed = {} if config is None else to_dict(config)
        varied = source["axes"] if isinstance(source["axes"], Mapping) else {}
        fixed = {k: v for k, v in fixed.items() if v is not None and k not in varied}
        source = {**fixed, **source}
    elif config is not None:
        raise SpecError("config goes with axes; a whole sweep has its fields already")
    else:
        source = (space if isinstance(space, SweepSpec) else load(space)).source
    if data is None:
        return parse(source)
    return parse({**source, "data": str(data) if isinstance(data, str | Path) else "arrays"})
