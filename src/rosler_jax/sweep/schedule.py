"""How the members of a stage become calls of compiled programs: widths, memory, chunks."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from rosler_jax import config as configs
from rosler_jax.config import TrainConfig
from rosler_jax.sweep import hosts
from rosler_jax.sweep.examples import Examples
from rosler_jax.sweep.plan import Group, make_plan, program_key
from rosler_jax.sweep.population import Member, Population

CHUNK_SECONDS = 20.0
"""About what an interruption may lose; ROSLER_SWEEP_CHUNK_SECONDS overrides it."""
MAX_CHUNK = 1024
WIDTHS = (1, 8, 64, 512)
MEMORY_SHARE = 0.5  # of what the machine has


class Cost(NamedTuple):
    """What was found out about a program.

    Attributes:
      width: members under one ``vmap``.
      seconds: of one whole training, all devices busy; 0 where not timed.
      bytes: of device memory for one member, by XLA's own analysis; 0 where not compiled.
    """

    width: int
    seconds: float
    bytes: int


class Chunk(NamedTuple):
    """Trainings that run in one call: indices into a group's trainings."""

    group: int
    trainings: tuple[int, ...]


class Plan(NamedTuple):
    """The calls of one stage.

    Attributes:
      groups: trainings that share a program.
      costs: one for each group.
      chunks: the calls, in order.
    """

    groups: tuple[Group, ...]
    costs: tuple[Cost, ...]
    chunks: tuple[Chunk, ...]

    @property
    def seconds(self) -> float:
        """Estimated, of all trainings."""
        pairs = zip(self.costs, self.groups, strict=True)
        return sum(cost.seconds * len(group.trainings) for cost, group in pairs)

    def size(self, group: int) -> int:
        """Trainings in a group's largest call: what its program is compiled for."""
        return max(len(c.trainings) for c in self.chunks if c.group == group)

    def lines(self) -> list[str]:
        """The plan in words, a line a program."""
        return [self._line(i) for i in range(len(self.groups))]

    def _line(self, i: int) -> str:
        group, cost = self.groups[i], self.costs[i]
        config = group.config
        rank = "" if config.method == "dense" else f", rank up to {config.rank}"
        memory = f"{cost.bytes * self.size(i) / 1e6:.0f} MB, " if cost.bytes else ""
        return (
            f"program {i + 1}: {config.method}{rank}, hidden "
            f"{','.join(map(str, config.hidden))}, {config.epochs} epochs: "
            f"{sum(len(m) for m in group.members)} members, {len(group.trainings)} trainings, "
            f"{cost.width} at a time on each device, "
            f"{sum(chunk.group == i for chunk in self.chunks)} calls, {memory}"
            f"about {cost.seconds * len(group.trainings):.0f} s"
        )


Costs = dict[TrainConfig, Cost]
"""Of each program, by what tells programs apart."""


def make_schedule(
    members: Sequence[TrainConfig],
    examples: Examples,
    known: Costs | None = None,
    least_rank: int = 1,
    share: float = 1.0,
) -> Plan:
    """Groups members, and chooses widths and chunks by memory and a short timing.

    Args:
      members: the stage's.
      examples: the data.
      known: programs that were timed before; the new ones are added.
      least_rank: see :func:`make_plan`.
      share: the part of all epochs that the stage trains.
    """
    known = {} if known is None else known
    groups = make_plan(members, least_rank)
    chunks = []
    for i, group in enumerate(groups):
        key = program_key(group.config)
        if key not in known:
            known[key] = Cost(*hosts.share(list(choose_width(group, examples))))
        chunks += [Chunk(i, t) for t in _split(len(group.trainings), known[key], share)]
    costs = tuple(known[program_key(group.config)] for group in groups)
    return Plan(tuple(groups), costs, tuple(chunks))


def _split(count: int, cost: Cost, share: float) -> list[tuple[int, ...]]:
    """Trainings in calls of about the same size, none of them longer than may be lost."""
    seconds = cost.seconds * share
    fitting = MAX_CHUNK if seconds == 0 else max(1, int(min(MAX_CHUNK, chunk_seconds() / seconds)))
    if cost.bytes:
        fitting = min(fitting, max(1, int(MEMORY_SHARE * memory() * _devices() / cost.bytes)))
    slots = _devices() * cost.width
    size = max(slots, fitting // slots * slots)
    even = math.ceil(count / math.ceil(count / size) / slots) * slots
    return [tuple(range(a, min(count, a + even))) for a in range(0, count, even)]


def _devices() -> int:
    return jax.device_count()


def chunk_seconds() -> float:
    """About how long a call may take."""
    return float(os.environ.get("ROSLER_SWEEP_CHUNK_SECONDS", CHUNK_SECONDS))


def choose_width(group: Group, examples: Examples) -> Cost:
    """The number of members under one ``vmap`` that trains most a second, one always among them."""
    devices = _devices()
    if len(group.trainings) <= 2 * devices:
        return Cost(1, 0.0, 0)
    trial = group.config if group.config.method == "ares-bp" else _one_epoch(group.config)
    share = trial.epochs / group.config.epochs
    best = Cost(1, math.inf, 0)
    for width in WIDTHS:
        if width > 1 and width * devices > len(group.trainings):
            break
        population = Population(trial, examples, width)
        count = devices * width
        members = [population.member(_like(trial, c)) for c in group.trainings[:count]]
        compiled = population.compile(members)
        needed = population.bytes_needed(compiled)
        if needed > MEMORY_SHARE * memory():
            break
        each = _timed(population, compiled, members) / count / share
        if each > 1.2 * best.seconds:
            break
        if each < best.seconds:
            best = Cost(width, each, needed // count)
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
    """Bytes of one of the devices that members run on."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return whole / jax.local_device_count()  # virtual devices share it


def to_json(plan: Plan) -> dict[str, Any]:
    """What has to stay the same when a stage is resumed."""
    return {
        "costs": [list(cost) for cost in plan.costs],
        "chunks": [[c.group, list(c.trainings)] for c in plan.chunks],
    }


def from_json(
    kept: dict[str, Any], members: Sequence[TrainConfig], known: Costs, least_rank: int = 1
) -> Plan:
    """The plan of the same members as it was; its programs' costs are added to ``known``."""
    groups = tuple(make_plan(members, least_rank))
    costs = tuple(Cost(*cost) for cost in kept["costs"])
    known.update({program_key(g.config): c for g, c in zip(groups, costs, strict=True)})
    chunks = tuple(Chunk(group, tuple(trainings)) for group, trainings in kept["chunks"])
    return Plan(groups, costs, chunks)
