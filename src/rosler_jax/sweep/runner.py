"""A sweep on disk: planned stage by stage, run chunk by chunk, resumable after anything.

A stage is a set of members that train for a while: all of them to the end, all to the first rung of
successive halving, the survivors to the next, or one batch of a search. What a stage decided is
written before it runs, and a chunk's rows before the next chunk begins.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rosler_jax import config as configs
from rosler_jax._files import replace_json
from rosler_jax._folder import tie_data
from rosler_jax.config import TrainConfig
from rosler_jax.graph.save import MODEL, save
from rosler_jax.run import CONFIG
from rosler_jax.sweep import folder as folders
from rosler_jax.sweep import halving, hosts, schedule, search, table, trainings
from rosler_jax.sweep import report as report_page
from rosler_jax.sweep.examples import load_examples
from rosler_jax.sweep.plan import Built, Group
from rosler_jax.sweep.schedule import Chunk, Plan
from rosler_jax.sweep.ship import Job, graph_of, shipped
from rosler_jax.sweep.spec import SweepSpec, as_spec
from rosler_jax.sweep.trainings import Outcome
from rosler_jax.sweep.work import Report, Row, Stage, Work, check, stored_rows
from rosler_jax.tasks import Task, metric_of

Planned = Callable[[Sequence[str]], None]

MODELS = "models"


class Summary(NamedTuple):
    """What a sweep ends with.

    Example:
      >>> rows = [{"rank": 2, "test_accuracy": 0.8}, {"rank": 4, "test_accuracy": 0.9}]
      >>> done = Summary(Path("ranks"), rows, failed=0)
      >>> max(done.rows, key=lambda row: row["test_accuracy"])["rank"]
      4
    """

    folder: Path
    rows: list[Row]
    failed: int


def check_libraries(spec: SweepSpec) -> None:
    """Raises before anything is trained if a library is not there that the end would need.

    Raises:
      ImportError: naming the extra to install.
    """
    needed = {"pyarrow": "its table", "matplotlib": "its pictures"}
    if spec.halving:
        needed["orbax"] = "its rungs"
    for name, what in needed.items():
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"a sweep needs {name} for {what}: pip install 'rosler-jax[sweep]'")


def sweep(
    space: SweepSpec | Mapping[str, Any] | str | Path,
    data: Any = None,
    config: TrainConfig | None = None,
    *,
    out: str | os.PathLike[str],
    resume: bool = False,
    report: Report | None = None,
    planned: Planned | None = None,
    models: bool = False,
) -> Summary:
    """Runs a sweep into a folder, or goes on with one.

    A chunk's rows are on disk before the next begins: an interruption at any moment loses at most
    the chunk in flight, and a resumed sweep ends with the table of an undisturbed one, but for the
    seconds.

    A member is ``rosler_jax.run.train`` of its config but for the order of sums: in
    ``tests/sweep/test_runner.py`` losses agree to 1e-4 (relative), weights to 5e-4 or 1e-3 of
    themselves, accuracies to an example or so, and files have the same bytes.

    Args:
      space: what varies: a sweep, a TOML file or what it would hold, or axes alone.
      data: data set by name or path, instead of the one in ``space``; or arrays, as
        :func:`rosler_jax.data.load` takes them.
      config: with axes: what stays the same.
      out: folder; made if it does not exist.
      resume: go on with the sweep in the folder.
      report: called after every chunk with ``stage``, ``done``, ``total``, ``best``, ``rate``
        (members a second) and ``left`` (seconds).
      planned: called with the lines of a plan before it is run.
      models: write the model file of every member that is trained from now on, with its config, to
        ``models/<member>`` in the folder: what else there is takes that as the folder of a run.

    Returns:
      Summary: the folder, the rows of its table, and how many members failed.

    Example:
      >>> import tempfile
      >>> axes = {"rank": {"grid": [2, 4]}, "bits": {"grid": [4, 8]}}
      >>> base = TrainConfig(method="chain", hidden=(8,), epochs=1)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     done = sweep(axes, "mnist5k", base, out=folder)
      >>> [(row["rank"], row["bits"], row["status"]) for row in done.rows]
      [(2, 4, 'done'), (2, 8, 'done'), (4, 4, 'done'), (4, 8, 'done')]

    Raises:
      SweepError: if the folder holds another sweep, is in use, has nothing to resume, or was begun
        with other data.
      SpecError, ValueError, OSError: for members, data or folders that cannot be used.
    """
    folder, spec = Path(out), as_spec(space, data, config)
    first = spec.first()
    check(spec.configs() if spec.search is None else [first])
    check_libraries(spec)
    hosts.on_first(lambda: folders.open_folder(folder, spec, resume))
    given = None if isinstance(data, str | Path) else data
    built = Built(load_examples(first, given))
    with folders.locked(folder):
        # Once more: a sweep that began a moment earlier may have come and gone.
        hosts.on_first(lambda: folders.open_folder(folder, spec, resume))
        folders.check_examples(folder, built.examples)
        total = spec.search.trials if spec.search else halving.total(spec)
        told = report if hosts.is_first() else None
        work = Work(folder, spec, built, total, told, models)
        stages = search.batches(work) if spec.search else _stages(work)
        rows: list[Row] = []
        for stage in stages:
            if planned is not None and hosts.is_first():
                planned(stage_lines(spec, stage))
            rows += run_stage(work, stage)
        rows = table.last_rows(rows)
        if hosts.is_first():
            table.write_rows(folder / table.TABLE, rows)
            axes, (metric, larger) = [axis.name for axis in spec.axes], spec.followed()
            report_page.write_report(folder, axes, rows, metric=metric, larger_is_better=larger)
    return Summary(folder, rows, sum(row["status"] == "failed" for row in rows))


def plan_lines(spec: SweepSpec, plan: Plan) -> list[str]:
    """A whole sweep's plan in words; of a search, from the plan of a part of its trials."""
    planned = sum(len(members) for group in plan.groups for members in group.members)
    count = spec.search.trials if spec.search else planned
    seconds = plan.seconds * halving.effort(spec) * count / planned
    timed = all(cost.seconds for cost in plan.costs)
    about = f"about {seconds:.0f} s" if timed else f"{seconds:.0f} s and what was not timed"
    return [
        *plan.lines(),
        *halving.lines(spec),
        f"{count} members, {about} of training; compiling, and packing each member, come on top",
    ]


def stage_lines(spec: SweepSpec, stage: Stage) -> list[str]:
    """What there is to say of a stage before it runs; of a search, of its first batch alone."""
    if stage.number == 0:
        return plan_lines(spec, stage.plan)
    if spec.search:
        return []
    return [f"from epoch {stage.start} on:", *stage.plan.lines()]


def _stages(work: Work) -> Iterator[Stage]:
    """All members to the end, or from rung to rung, fewer each time."""
    members = work.spec.configs()
    alive = list(range(len(members)))
    ends = halving.ends(work.spec)
    start = 0
    for number, stop in enumerate(ends):
        chosen = [members[i] for i in alive]
        share = ((stop or members[0].epochs) - start) / members[0].epochs
        plan = _agreed_plan(work, number, alive, chosen, share)
        yield Stage(number, tuple(alive), tuple(chosen), start, stop, plan)
        if stop is not None:
            alive = halving.survivors(work.spec, members, stored_rows(work, number, plan))
            start = stop


def _agreed_plan(
    work: Work, number: int, index: list[int], members: list[TrainConfig], share: float
) -> Plan:
    """The plan of a stage as it was decided before, or decided now."""
    kept = folders.read_stage(work.folder, number)
    if kept is not None:
        return schedule.from_json(kept["plan"], members, work.built)
    plan = schedule.make_schedule(members, work.built, share=share)
    folders.store_spec(work.folder, work.spec, work.built.examples)
    folders.write_stage(work.folder, number, {"members": index, "plan": schedule.to_json(plan)})
    return plan


def run_stage(work: Work, stage: Stage) -> list[Row]:
    """Runs the chunks of a stage that have no file yet; the rows of all of them."""
    before = halving.load_states(work, stage.number - 1) if stage.start else None
    rows: list[Row] = []
    for number, chunk in enumerate(stage.plan.chunks):
        path = table.part_path(work.folder, stage.number, number)
        if hosts.share(path.exists()):
            found = hosts.share(table.read_rows(path) if hosts.is_first() else None)
        else:
            found = run_chunk(work, stage, number, chunk, before)
            if hosts.is_first():
                table.write_rows(path, found)
            work.trained += len(found)
        rows += found
        _tell(work, stage, found)
    return rows


def _tell(work: Work, stage: Stage, rows: list[Row]) -> None:
    work.done += len(rows)
    metric, larger = work.spec.followed()
    found = [row[f"validation_{metric}"] for row in rows]
    finite = [v for v in (work.best, *found) if math.isfinite(v)]
    work.best = (max if larger else min)(finite, default=math.nan)
    if work.report is not None:
        rate = work.trained / (time.perf_counter() - work.began)
        left = (work.total - work.done) / rate if rate else math.inf
        counts = {"stage": stage.number, "done": work.done, "total": work.total}
        work.report({**counts, "best": work.best, "rate": rate, "left": left})


def run_chunk(
    work: Work, stage: Stage, number: int, chunk: Chunk, before: halving.States | None
) -> list[Row]:
    """Trains a chunk; one row for each member that it serves."""
    group, cost = stage.plan.groups[chunk.group], stage.plan.costs[chunk.group]
    built = work.built
    population = trainings.population_of(group, built, cost.width, cost.blocks)
    configs_ = [group.trainings[i] for i in chunk.trainings]
    states = [before.state(c) if before else None for c in configs_]
    data = [trainings.member_of(c, group, built, s) for c, s in zip(configs_, states, strict=True)]
    start = time.perf_counter()
    epochs = (stage.stop or group.config.epochs) - stage.start
    out = trainings.run(population, data, epochs, keep=stage.stop is not None)
    each = hosts.share((time.perf_counter() - start) / len(data))
    if stage.stop is not None:
        halving.save_states(work.folder, stage.number, number, out.state)
    members = [(k, j) for k, i in enumerate(chunk.trainings) for j in group.members[i]]
    jobs = [Job(stage.members[j], k) for k, j in members]
    found = results(jobs, out, group, built, cost.width * cost.blocks, stage.start)
    if work.models and stage.stop is None and hosts.is_first():
        for job, row, (_, j) in zip(jobs, found, members, strict=True):
            if row["status"] == "done":
                _write_model(model_folder(work.folder, stage.indices[j]), job, out, built)
    rows = []
    for (_, j), result in zip(members, found, strict=True):
        row = _identity(work.spec, stage, j) | result
        if stage.stop is not None and row["reason"] in ("", UNSHIPPABLE):
            row |= {"status": "stopped", "reason": ""}  # unless a later stage says otherwise
        row |= {"seconds": each, "stage": stage.number, "program": chunk.group}
        row["epochs_done"] = stage.stop or stage.members[j].epochs
        row["config"] = json.dumps(configs.to_dict(stage.members[j]))
        rows.append(halving.continued(row, before))
    return sorted(rows, key=lambda row: row["member"])


def model_folder(folder: Path, member: int) -> Path:
    """Where the model of a member is, if a sweep writes them."""
    return folder / MODELS / str(member)


def _write_model(folder: Path, job: Job, out: Outcome, built: Built) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tie_data(folder, built.examples.name, built.examples.digest)
    replace_json(folder / CONFIG, configs.to_dict(job.config))
    graph = graph_of(job, out.state, built)
    save(folder / MODEL, graph, bits=job.config.bits, coded=job.config.rate_coded)


def _identity(spec: SweepSpec, stage: Stage, j: int) -> Row:
    config = stage.members[j]
    varied = {axis.name: _cell(config, axis.name) for axis in spec.axes}
    return {"member": stage.indices[j], **varied}


def _cell(config: TrainConfig, name: str) -> Any:
    value = getattr(config, name)
    return json.dumps(value) if isinstance(value, tuple) else value


def results(
    jobs: Sequence[Job], out: Outcome, group: Group, built: Built, at_once: int, start: int = 0
) -> list[Row]:
    """What members ended with, and what their model files would hold.

    Args:
      jobs: the members, each with the row of its training.
      out: of the trainings, from epoch ``start`` on.
      group: theirs.
      built: the data, and what is known of programs.
      at_once: members that a device trains together.
      start: epochs that they had behind them.
    """
    task = built.examples.task
    metric, _ = metric_of(task, group.config.metric)
    curves = np.asarray(out.history.validation[metric]).astype(float).tolist()
    losses = np.asarray(out.history.loss).astype(float).tolist()
    rows, shippable = [], []
    for i, (_, k) in enumerate(jobs):
        reason = ""
        if not np.all(out.history.finite[k]):
            epoch = start + 1 + int(np.argmin(out.history.finite[k]))
            reason = f"loss or parameters no longer finite in epoch {epoch}"
        elif not out.state.best_epoch[k]:  # in a parallel stage: nothing to ship yet
            reason = UNSHIPPABLE
        else:
            shippable.append(i)
        rows.append({
            "status": "failed" if reason else "done",
            "reason": reason,
            **nothing(task),
            "best_epoch": int(out.state.best_epoch[k]),
            "loss": float(out.history.loss[k, -1]),
            "curve": curves[k],
            "loss_curve": losses[k],
        })  # fmt: skip
    chosen = [jobs[i] for i in shippable]
    if chosen:
        found = shipped(chosen, out.state, group, built, at_once)
        for i, more in zip(shippable, found, strict=True):
            rows[i] |= more
    return rows


def nothing(task: Task) -> Row:
    """What a row has where there is no model."""
    splits = [f"{split}_{name}" for name in task.metrics for split in ("validation", "test")]
    sizes: Row = {"file_bytes": 0, "parameters": 0, "compression": math.nan}
    return dict.fromkeys(splits, math.nan) | sizes


UNSHIPPABLE = "no epoch ended with a model that can ship; train longer"


def reasons(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """Why members failed: each reason once, with the first member that it stopped.

    Example:
      >>> rows = [{"member": i, "rank": 4, "status": "failed", "reason": "odd"} for i in (3, 7)]
      >>> reasons(rows, ["rank"])
      ['2 of 2 members: odd (the first is member 3, rank=4)']
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["status"] == "failed":
            found.setdefault(row["reason"], []).append(row)
    lines = []
    for reason, failed in found.items():
        place = ", ".join([f"member {failed[0]['member']}", *(f"{a}={failed[0][a]}" for a in axes)])
        lines.append(f"{len(failed)} of {len(rows)} members: {reason} (the first is {place})")
    return lines
