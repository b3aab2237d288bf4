"""What a sweep is at: its stages, and the rows that they left on disk."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rosler_jax.config import TrainConfig
from rosler_jax.fit import task_of
from rosler_jax.sweep import hosts, table
from rosler_jax.sweep.examples import SHARED
from rosler_jax.sweep.folder import SweepError
from rosler_jax.sweep.plan import Built
from rosler_jax.sweep.schedule import Plan
from rosler_jax.sweep.spec import SweepSpec
from rosler_jax.tasks import metric_of

Row = dict[str, Any]
Report = Callable[[Row], None]


class Stage(NamedTuple):
    """Members that train for a while.

    Attributes:
      number: from 0 on.
      indices: of the members, in the whole sweep.
      members: their configs.
      start: epochs they have behind them.
      stop: epochs they then have; None for all of each config's.
      plan: the calls.
    """

    number: int
    indices: tuple[int, ...]
    members: tuple[TrainConfig, ...]
    start: int
    stop: int | None
    plan: Plan


@dataclasses.dataclass
class Work:
    """What lasts through a run of a sweep: the data, compiled programs, and how far it is."""

    folder: Path
    spec: SweepSpec
    built: Built
    total: int
    report: Report | None
    models: bool = False
    began: float = dataclasses.field(default_factory=time.perf_counter)
    done: int = 0
    trained: int = 0
    best: float = math.nan


def stored_rows_here(work: Work, number: int, plan: Plan) -> list[Row]:
    """The rows of a finished stage, read on this host."""
    rows: list[Row] = []
    for i in range(len(plan.chunks)):
        rows += table.read_rows(table.part_path(work.folder, number, i))
    return rows


def stored_rows(work: Work, number: int, plan: Plan) -> list[Row]:
    """The rows of a finished stage, on every host."""
    return hosts.share(stored_rows_here(work, number, plan) if hosts.is_first() else None)


def check(members: Sequence[TrainConfig]) -> None:
    """Refuses what the members of one sweep cannot differ in, or cannot do.

    Raises:
      SweepError: naming the field.
      ValueError: for a metric that the task does not have.
    """
    for name in SHARED:
        found = {getattr(c, name) for c in members}
        if len(found) > 1:
            shown = ", ".join(sorted(map(str, found)))
            raise SweepError(f"members differ in {name} ({shown}); one sweep has one {name}")
    for i, config in enumerate(members):
        if config.patience is not None:
            raise SweepError(
                f"member {i}: patience={config.patience}; a population runs all its epochs, leave "
                "patience out"
            )
        if config.budget_bytes is not None:
            raise SweepError(
                f"member {i}: budget_bytes={config.budget_bytes}; a budget is kept by a look at "
                "the file after every epoch, of one run: sweep rate_lambda, or train"
            )
        if config.rate_coded and config.staged:
            raise SweepError(
                f"member {i}: {config.method} is rate-coded after its switch, in a program of its "
                "own: sweep chain, or train"
            )
    first = members[0]
    metric_of(task_of(first), first.metric)
    if first.stream == "always":
        raise SweepError("stream=always: a sweep has its data on the device; leave stream out")
