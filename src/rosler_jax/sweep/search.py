"""A search that learns: Optuna proposes a batch, a population trains it, Optuna is told.

The study lies in the sweep's folder (or in a storage of the user's), so that Optuna's dashboard and
its own tools work on it. A batch's sampler is seeded by the sweep's seed and the batch's number: a
resumed search asks what an undisturbed one would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rosler_jax.sweep import folder as folders
from rosler_jax.sweep import hosts, schedule
from rosler_jax.sweep.axes import Axis
from rosler_jax.sweep.spec import SweepSpec
from rosler_jax.sweep.work import Stage, Work, check, stored_rows_here

STUDY = "rosler"


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("a search needs Optuna: pip install 'rosler-jax[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def distributions(spec: SweepSpec) -> dict[str, Any]:
    """The axes as Optuna's distributions; lists become their JSON text, which it can store."""
    return {axis.name: _distribution(axis) for axis in spec.axes}


def _distribution(axis: Axis) -> Any:
    of = _optuna().distributions
    if axis.kind in ("grid", "choice"):
        return of.CategoricalDistribution(range(len(axis.given)))
    low, high = axis.given
    if axis.kind == "integer":
        return of.IntDistribution(low, high)
    return of.FloatDistribution(low, high, log=axis.kind == "log_uniform")


def _values(spec: SweepSpec, params: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for axis in spec.axes:
        value = params[axis.name]
        out[axis.name] = axis.given[value] if axis.kind in ("grid", "choice") else value
    return out


def open_study(folder: Path, spec: SweepSpec, batch: int) -> Any:
    """The sweep's study, made if it is new, with the sampler of a batch."""
    optuna, search = _optuna(), spec.search
    assert search is not None
    seed = (spec.seed * 1_000_003 + batch) % 2**32
    larger = spec.objectives()
    directions = ["maximize" if larger[name] else "minimize" for name in search.objectives]
    return optuna.create_study(
        storage=search.storage or f"sqlite:///{folder.absolute()}/optuna.db",
        study_name=search.study or STUDY,
        sampler=optuna.samplers.TPESampler(seed=seed, multivariate=False),
        directions=directions,
        load_if_exists=True,
    )


def _ask(folder: Path, spec: SweepSpec, batch: int) -> list[dict[str, Any]]:
    """Asks for a batch; trials that an interruption left open are given up first."""
    assert spec.search is not None
    optuna = _optuna()
    study = open_study(folder, spec, batch)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    count = min(spec.search.batch, spec.search.trials - batch * spec.search.batch)
    trials = [study.ask(distributions(spec)) for _ in range(count)]
    return [{"number": t.number, "params": t.params} for t in trials]


def tell(
    folder: Path, spec: SweepSpec, trials: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> None:
    """Tells a finished batch, but what was told before."""
    assert spec.search is not None
    state = _optuna().trial.TrialState
    study = open_study(folder, spec, 0)
    for trial, row in zip(trials, rows, strict=True):
        values = [float(row[name]) for name in spec.search.objectives]
        if row["status"] != "done" or any(math.isnan(v) for v in values):
            study.tell(trial["number"], state=state.FAIL, skip_if_finished=True)
        else:
            study.tell(trial["number"], values, skip_if_finished=True)


def batches(work: Work) -> Iterator[Stage]:
    """The batches of a search, each told before the next is asked for."""
    spec, search = work.spec, work.spec.search
    assert search is not None
    most = _largest_ranks(spec)
    for batch in range(math.ceil(search.trials / search.batch)):
        kept = folders.read_stage(work.folder, batch)
        if kept is None:
            trials = hosts.share(_ask(work.folder, spec, batch) if hosts.is_first() else None)
        else:
            trials = kept["trials"]
        members = [spec.member(_values(spec, t["params"])) for t in trials]
        check([spec.first(), *members])
        wide = [spec.member({**_values(spec, t["params"]), **most}) for t in trials]
        if kept is None:
            plan = schedule.make_schedule(members, work.built, wide)
            folders.store_spec(work.folder, spec, work.built.examples)
            decided = {"trials": trials, "plan": schedule.to_json(plan)}
            folders.write_stage(work.folder, batch, decided)
        else:
            plan = schedule.from_json(kept["plan"], members, work.built, wide)
        index = tuple(range(batch * search.batch, batch * search.batch + len(members)))
        yield Stage(batch, index, tuple(members), 0, None, plan)
        if hosts.is_first():
            rows = sorted(stored_rows_here(work, batch, plan), key=lambda row: row["member"])
            tell(work.folder, spec, trials, rows)


def _largest_ranks(spec: SweepSpec) -> dict[str, Any]:
    """The largest ranks that a search may propose, so that all batches share programs."""
    names = ("rank", "in_sketch", "oversampling")
    return {
        axis.name: max(v for v in axis.given if v is not None)
        for axis in spec.axes
        if axis.name in names and any(v is not None for v in axis.given)
    }
