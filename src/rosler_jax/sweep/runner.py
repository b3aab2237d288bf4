"""A sweep on disk: planned once, run chunk by chunk, resumable after anything."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rosler_jax import config as configs
from rosler_jax import data as datasets
from rosler_jax._files import replace_text
from rosler_jax.config import TrainConfig
from rosler_jax.sweep import table
from rosler_jax.sweep.plan import Group, make_plan
from rosler_jax.sweep.population import Examples, Member, Outcome, Population, read_examples
from rosler_jax.sweep.ship import shipped
from rosler_jax.sweep.spec import SweepSpec, difference

SPEC, PLAN, LOCK = "sweep.json", "plan.json", "lock"
CHUNK_SECONDS = 20.0
"""About what an interruption may lose; ROSLER_SWEEP_CHUNK_SECONDS overrides it."""
MAX_CHUNK = 1024
WIDTHS = (1, 8, 64, 512)
MEMORY_SHARE = 0.5  # of what the machine has

Report = Callable[[dict[str, Any]], None]


class SweepError(RuntimeError):
    """A sweep that cannot start or go on; the message says why and what to do."""


class Chunk(NamedTuple):
    """Trainings that run in one call: indices into a group's trainings."""

    group: int
    trainings: tuple[int, ...]


class Plan(NamedTuple):
    """How the members of a sweep become calls of compiled programs.

    Attributes:
      groups: trainings that share a program.
      widths: members under one ``vmap``, for each group.
      seconds: estimated, of one training of each group, all devices busy; 0 where not timed.
      chunks: the calls, in order.
    """

    groups: tuple[Group, ...]
    widths: tuple[int, ...]
    seconds: tuple[float, ...]
    chunks: tuple[Chunk, ...]

    def lines(self) -> list[str]:
        """The plan in words, a line a program."""
        out = []
        for i, group in enumerate(self.groups):
            count = sum(len(m) for m in group.members)
            calls = sum(chunk.group == i for chunk in self.chunks)
            estimate = self.seconds[i] * len(group.trainings)
            config = group.config
            rank = "" if config.method == "dense" else f", rank up to {config.rank}"
            out.append(
                f"program {i + 1}: {config.method}{rank}, hidden "
                f"{','.join(map(str, config.hidden))}, {config.epochs} epochs: {count} members, "
                f"{len(group.trainings)} trainings, {self.widths[i]} at a time on each device, "
                f"{calls} calls, about {estimate:.0f} s"
            )
        return out


class Summary(NamedTuple):
    """What a sweep ends with."""

    folder: Path
    rows: list[dict[str, Any]]
    failed: int


def load_examples(config: TrainConfig) -> Examples:
    """The data that all members share."""
    options = {} if config.manual_dir is None else {"manual_dir": config.manual_dir}
    return read_examples(config.data, datasets.read(config.data, **options))


def check(members: Sequence[TrainConfig]) -> None:
    """Refuses what the members of one sweep cannot differ in.

    Raises:
      SweepError: naming the field.
    """
    for name in ("data", "manual_dir"):
        if len({getattr(c, name) for c in members}) > 1:
            raise SweepError(f"members differ in {name}; one sweep has one data set")


def make_schedule(spec: SweepSpec, examples: Examples) -> Plan:
    """Groups members, and chooses widths and chunks by memory and a short timing."""
    groups = make_plan(spec.configs())
    widths, seconds, chunks = [], [], []
    for i, group in enumerate(groups):
        width, each = _choose_width(group, examples)
        widths.append(width)
        seconds.append(each)
        fitting = MAX_CHUNK if each == 0 else max(1, int(_chunk_seconds() / each))
        slots = jax.local_device_count() * width
        size = max(slots, min(MAX_CHUNK, fitting) // slots * slots)
        count = len(group.trainings)
        calls = math.ceil(count / size)
        even = math.ceil(count / calls / slots) * slots
        for start in range(0, count, even):
            chunks.append(Chunk(i, tuple(range(start, min(count, start + even)))))
    return Plan(tuple(groups), tuple(widths), tuple(seconds), tuple(chunks))


def _chunk_seconds() -> float:
    return float(os.environ.get("ROSLER_SWEEP_CHUNK_SECONDS", CHUNK_SECONDS))


def _choose_width(group: Group, examples: Examples) -> tuple[int, float]:
    """The number of members under one ``vmap`` that trains most a second, one always among them."""
    devices = jax.local_device_count()
    if len(group.trainings) <= 2 * devices:
        return 1, 0.0
    trial = group.config if group.config.method == "ares-bp" else _one_epoch(group.config)
    share = trial.epochs / group.config.epochs
    best = (1, math.inf)
    for width in WIDTHS:
        if width > 1 and width * devices > len(group.trainings):
            break
        population = Population(trial, examples, width)
        count = devices * width
        members = [population.member(_like(trial, c)) for c in group.trainings[:count]]
        compiled = population.compile(members)
        if population.bytes_needed(compiled) > MEMORY_SHARE * memory():
            break
        each = _timed(population, compiled, members) / count / share
        if each > 1.2 * best[1]:
            break
        if each < best[1]:
            best = (width, each)
    return best


def _one_epoch(config: TrainConfig) -> TrainConfig:
    return configs.from_dict({**configs.to_dict(config), "epochs": 1, "quantize_from": 0.0})


def _like(trial: TrainConfig, member: TrainConfig) -> TrainConfig:
    own = {**configs.to_dict(member), "epochs": trial.epochs, "quantize_from": trial.quantize_from}
    return configs.from_dict(own)


def _timed(population: Population, compiled: Any, members: Sequence[Member]) -> float:
    population.call(compiled, members)
    start = time.perf_counter()
    population.call(compiled, members)
    return time.perf_counter() - start


def memory() -> float:
    """Bytes of the device that members run on."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder against a second process.

    Raises:
      SweepError: if another process has it.
    """
    with (folder / LOCK).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepError(f"{folder}: another process is running this sweep") from None
        yield


def plan_to_json(plan: Plan) -> str:
    """What has to stay the same when a sweep is resumed."""
    kept = {
        "widths": plan.widths,
        "seconds": plan.seconds,
        "chunks": [[c.group, list(c.trainings)] for c in plan.chunks],
    }
    return json.dumps(kept) + "\n"


def plan_from_json(text: str, spec: SweepSpec) -> Plan:
    """The plan that a folder holds."""
    kept = json.loads(text)
    chunks = tuple(Chunk(group, tuple(trainings)) for group, trainings in kept["chunks"])
    groups = tuple(make_plan(spec.configs()))
    return Plan(groups, tuple(kept["widths"]), tuple(kept["seconds"]), chunks)


def sweep(
    spec: SweepSpec,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    report: Report | None = None,
) -> Summary:
    """Runs a sweep into a folder, or goes on with one.

    A chunk's rows are on disk before the next begins: an interruption at any moment loses at most
    the chunk in flight, and a resumed sweep ends with the table of an undisturbed one, but for the
    seconds.

    Args:
      spec: what varies.
      out: folder; made if it does not exist.
      resume: go on with the sweep in the folder.
      report: called after every chunk with ``done``, ``total``, ``best``, ``rate`` (members a
        second) and ``left`` (seconds).

    Returns:
      Summary: the folder, the rows of its table, and how many members failed.

    Raises:
      SweepError: if the folder holds another sweep, is in use, or has nothing to resume.
      SpecError, ValueError, OSError: for members, data or folders that cannot be used.
    """
    folder = Path(out)
    members = spec.configs()
    check(members)
    if resume and not (folder / SPEC).exists():
        raise SweepError(f"{folder}: holds no sweep to resume")
    if not resume and (folder / SPEC).exists():
        raise SweepError(f"{folder}: already holds a sweep; resume it, or choose another folder")
    examples = load_examples(members[0])
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        plan = _agreed_plan(folder, spec, examples, resume)
        run_chunks(folder, spec, plan, examples, members, report)
        rows = table.merge(folder, len(plan.chunks))
    return Summary(folder, rows, sum(row["status"] != "done" for row in rows))


def stored_spec(folder: Path) -> dict[str, Any]:
    """The source of the sweep that a folder holds.

    Raises:
      SweepError: if there is none, or it is damaged.
    """
    path = folder / SPEC
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SweepError(f"{path}: no such file; {folder} holds no sweep") from None
    except ValueError as error:
        raise SweepError(f"{path}: damaged: {error}") from error


def _agreed_plan(folder: Path, spec: SweepSpec, examples: Examples, resume: bool) -> Plan:
    source = json.loads(json.dumps(spec.source))
    if resume:
        changed = difference(stored_spec(folder), source)
        if changed:
            raise SweepError(f"{folder} holds another sweep:\n  " + "\n  ".join(changed))
        if (folder / PLAN).exists():
            return plan_from_json((folder / PLAN).read_text(encoding="utf-8"), spec)
    plan = make_schedule(spec, examples)
    replace_text(folder / SPEC, json.dumps(source, indent=2) + "\n")
    replace_text(folder / PLAN, plan_to_json(plan))
    return plan


def run_chunks(
    folder: Path,
    spec: SweepSpec,
    plan: Plan,
    examples: Examples,
    members: list[TrainConfig],
    report: Report | None,
) -> None:
    """Runs the chunks that have no file yet."""
    total, best, trained = len(members), 0.0, 0
    done = 0
    start = time.perf_counter()
    population: tuple[int, Population] | None = None
    for number, chunk in enumerate(plan.chunks):
        path = table.part_path(folder, number)
        if path.exists():
            rows = table.read_rows(path)
        else:
            if population is None or population[0] != chunk.group:
                group = plan.groups[chunk.group]
                width = plan.widths[chunk.group]
                population = (chunk.group, Population(group.config, examples, width))
            rows = run_chunk(spec, plan, chunk, population[1], members)
            table.write_rows(path, rows)
            trained += len(rows)
        done += len(rows)
        best = max([best, *(r["validation_accuracy"] for r in rows if r["status"] == "done")])
        if report is not None:
            rate = trained / (time.perf_counter() - start)
            left = (total - done) / rate if rate else math.inf
            report({"done": done, "total": total, "best": best, "rate": rate, "left": left})


def run_chunk(
    spec: SweepSpec,
    plan: Plan,
    chunk: Chunk,
    population: Population,
    members: list[TrainConfig],
) -> list[dict[str, Any]]:
    """Trains a chunk; one row for each member that it serves."""
    group = plan.groups[chunk.group]
    size = max(len(c.trainings) for c in plan.chunks if c.group == chunk.group)
    trainings = [group.trainings[i] for i in chunk.trainings]
    data = [population.member(config) for config in trainings]
    start = time.perf_counter()
    out = population.run(data, size)
    each = (time.perf_counter() - start) / len(data)
    rows = []
    for k, i in enumerate(chunk.trainings):
        one = jax.tree.map(lambda a, k=k: a[k], out)
        for j in group.members[i]:
            row = {"member": j, **{axis.name: _cell(members[j], axis.name) for axis in spec.axes}}
            row |= _result(members[j], one, data[k], population)
            row |= {"seconds": each, "program": chunk.group}
            row["config"] = json.dumps(configs.to_dict(members[j]))
            rows.append(row)
    return rows


def _cell(config: TrainConfig, name: str) -> Any:
    value = getattr(config, name)
    return json.dumps(value) if isinstance(value, tuple) else value


def _result(
    config: TrainConfig, one: Outcome, member: Member, population: Population
) -> dict[str, Any]:
    finite = bool(np.all(one.history.finite))
    curve = [float(v) for v in one.history.validation_accuracy]
    common = {
        "best_epoch": int(one.best_epoch),
        "loss": float(one.history.loss[-1]),
        "curve": curve,
    }
    if not finite or float(one.best_accuracy) < 0:
        nothing = {"validation_accuracy": math.nan, "test_accuracy": math.nan}
        nothing |= {"compression": math.nan}
        return {"status": "failed", **nothing, "file_bytes": 0, "parameters": 0, **common}
    params, buffers = population.crop(one.params, one.buffers, config)
    found = shipped(config, params, buffers, member, population.examples)
    return {"status": "done", **found, **common}
