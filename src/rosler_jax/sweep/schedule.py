"""How the members of a stage become calls of compiled programs: widths, memory, chunks."""

from __future__ import annotations

import collections
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
from rosler_jax.sweep.plan import Group, batches_key, make_plan, program_key
from rosler_jax.sweep.population import Member, Population

CHUNK_SECONDS = 20.0
"""About what an interruption may lose; ROSLER_SWEEP_CHUNK_SECONDS overrides it."""
MAX_CHUNK = 1024
WIDTHS = (1, 8, 64, 512)
MEMORY_SHARE = 0.5  # of what the machine has


class Cost(NamedTuple):
    """What was found out about a program.

    Attributes:
      width: members of a block, which share their batches.
      blocks: that run together.
      seconds: of one whole training, all devices busy; 0 where not timed.
      bytes: of device memory for one member, by XLA's own analysis; 0 where not compiled.
    """

    width: int
    blocks: int
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
        """Estimated, of all trainings whose program was timed."""
        pairs = zip(self.costs, self.groups, strict=True)
        return sum(cost.seconds * len(group.trainings) for cost, group in pairs)

    def size(self, group: int) -> int:
        """Blocks in a group's largest call: what its program is compiled for."""
        trainings, width = self.groups[group].trainings, self.costs[group].width
        calls = [[trainings[i] for i in c.trainings] for c in self.chunks if c.group == group]
        return max(count_blocks(call, width) for call in calls)

    def lines(self) -> list[str]:
        """The plan in words, a line a program."""
        return [self._line(i) for i in range(len(self.groups))]

    def _line(self, i: int) -> str:
        group, cost = self.groups[i], self.costs[i]
        config = group.config
        rank = "" if config.method == "dense" else f", rank up to {config.rank}"
        memory = cost.bytes * self.size(i) * cost.width / 1e6
        needs = f"{memory:.0f} MB, about {cost.seconds * len(group.trainings):.0f} s of training"
        together = cost.width * cost.blocks
        return (
            f"program {i + 1}: {config.method}{rank}, hidden "
            f"{','.join(map(str, config.hidden))}, {config.epochs} epochs: "
            f"{sum(len(m) for m in group.members)} members, {len(group.trainings)} trainings, "
            f"{together} at a time on each device, "
            f"{sum(chunk.group == i for chunk in self.chunks)} calls, "
            f"{needs if cost.seconds else 'too few to be timed'}"
        )


def count_blocks(trainings: Sequence[TrainConfig], width: int) -> int:
    """Blocks that trainings fill, those of each seed by themselves.

    Example:
      >>> count_blocks([TrainConfig(seed=s) for s in (0, 0, 0, 1)], width=2)
      3
    """
    alike = collections.Counter(batches_key(config) for config in trainings)
    return sum(math.ceil(count / width) for count in alike.values())


Costs = dict[TrainConfig, Cost]
"""Of each program, by what tells programs apart."""


def make_schedule(
    members: Sequence[TrainConfig],
    examples: Examples,
    known: Costs | None = None,
    least_rank: int = 1,
    share: float = 1.0,
    always: bool = False,
) -> Plan:
    """Groups members, and chooses widths and chunks by memory and a short timing.

    Args:
      members: the stage's.
      examples: the data.
      known: programs that were timed before; the new ones are added.
      least_rank: see :func:`make_plan`.
      share: the part of all epochs that the stage trains.
      always: time programs of few trainings, too, though nothing hangs on it.
    """
    known = {} if known is None else known
    groups = make_plan(members, least_rank)
    chunks = []
    for i, group in enumerate(groups):
        key = program_key(group.config)
        if key not in known:
            known[key] = Cost(*hosts.share(list(choose_width(group, examples, always))))
        chunks += [Chunk(i, t) for t in _split(len(group.trainings), known[key], share)]
    costs = tuple(known[program_key(group.config)] for group in groups)
    return Plan(tuple(groups), costs, tuple(chunks))


def _split(count: int, cost: Cost, share: float) -> list[tuple[int, ...]]:
    """Trainings in calls of about the same size, none of them longer than may be lost."""
    seconds = cost.seconds * share
    fitting = MAX_CHUNK if seconds == 0 else max(1, int(min(MAX_CHUNK, chunk_seconds() / seconds)))
    if cost.bytes:
        fitting = min(fitting, max(1, int(MEMORY_SHARE * memory() * _devices() / cost.bytes)))
    slots = _devices() * cost.width * cost.blocks
    size = max(slots, fitting // slots * slots)
    even = math.ceil(count / math.ceil(count / size) / slots) * slots
    return [tuple(range(a, min(count, a + even))) for a in range(0, count, even)]


def _devices() -> int:
    return jax.device_count()


def chunk_seconds() -> float:
    """About how long a call may take."""
    return float(os.environ.get("ROSLER_SWEEP_CHUNK_SECONDS", CHUNK_SECONDS))


def choose_width(group: Group, examples: Examples, always: bool = False) -> Cost:
    """How many members together train most a second, one at a time always being among the choices.

    First members that share their batches, as many as a seed has; then blocks of these.
    """
    devices, count = _devices(), len(group.trainings)
    if count <= 2 * devices:
        return (_tried(group, examples, 1, 1) if always else None) or Cost(1, 1, 0.0, 0)
    alike = max(collections.Counter(batches_key(c) for c in group.trainings).values())
    best = Cost(1, 1, math.inf, 0)
    for width in WIDTHS:
        if width > 1 and (width > alike or width * devices > count):
            break
        found = _tried(group, examples, width, 1)
        if found is None or found.seconds > 1.2 * best.seconds:
            break
        best = min(best, found, key=lambda cost: cost.seconds)
    for blocks in WIDTHS[1:]:
        if blocks * best.width * devices > count:
            break
        found = _tried(group, examples, best.width, blocks)
        if found is None or found.seconds > 1.2 * best.seconds:
            break
        best = min(best, found, key=lambda cost: cost.seconds)
    return best


def _tried(group: Group, examples: Examples, width: int, blocks: int) -> Cost | None:
    """What a choice costs, timed on copies of a member over an epoch; None if it needs too much."""
    trial = group.config if group.config.method == "ares-bp" else _one_epoch(group.config)
    population = Population(trial, examples, width, blocks)
    count = _devices() * width * blocks
    member = population.member(_like(trial, group.trainings[0]))
    members = [member] * count
    compiled = population.compile(members)
    needed = population.bytes_needed(compiled)
    if needed > MEMORY_SHARE * memory():
        return None
    share = trial.epochs / group.config.epochs
    seconds = _timed(population, compiled, members) / count / share
    return Cost(width, blocks, seconds, needed * _devices() // count)


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
