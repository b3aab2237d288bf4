"""How the members of a stage become calls of compiled programs: widths, memory, chunks."""

from __future__ import annotations

import collections
import math
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rosler_jax.config import TrainConfig
from rosler_jax.fit import method_of
from rosler_jax.run import example_of
from rosler_jax.sweep import hosts, trainings
from rosler_jax.sweep.examples import batches_key
from rosler_jax.sweep.plan import Built, Group, make_plan

CHUNK_SECONDS = 20.0
"""About what an interruption may lose; ROSLER_SWEEP_CHUNK_SECONDS overrides it."""
MAX_CHUNK = 1024
WIDTHS = (1, 8, 64, 512)
MEMORY_SHARE = 0.5  # of what the machine has
REPAYS = 100.0
"""A width is tried where all training takes so many times as long as that."""


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
    """Trainings whose results are written together: indices into a group's trainings."""

    group: int
    trainings: tuple[int, ...]


class Plan(NamedTuple):
    """The work of one stage.

    Attributes:
      groups: trainings that share a program.
      costs: one for each group.
      chunks: in order.

    Example:
      >>> from rosler_jax.sweep import load_examples
      >>> members = [TrainConfig(hidden=(8,), rank=rank, batch_size=4) for rank in (2, 4)]
      >>> examples = load_examples(members[0], (np.eye(20), np.arange(20) % 2))
      >>> make_schedule(members, Built(examples)).lines()
      ['program 1: mlp 8, chain, rank up to 4, 10 epochs: 2 members, 2 trainings, ...']
    """

    groups: tuple[Group, ...]
    costs: tuple[Cost, ...]
    chunks: tuple[Chunk, ...]

    @property
    def seconds(self) -> float:
        """Estimated, of all trainings whose program was timed."""
        pairs = zip(self.costs, self.groups, strict=True)
        return sum(cost.seconds * len(group.trainings) for cost, group in pairs)

    def lines(self) -> list[str]:
        """The plan in words, a line a program."""
        return [self._line(i) for i in range(len(self.groups))]

    def _line(self, i: int) -> str:
        group, cost = self.groups[i], self.costs[i]
        config = group.config
        largest = max((int(rule.rank or 0) for rule in group.form.ranks.values()), default=0)
        rank = f", rank up to {largest}" if largest else ""
        hidden = f" {','.join(map(str, config.hidden))}" if config.hidden else ""
        together = cost.width * cost.blocks
        memory = cost.bytes * together / 1e6
        needs = f"{memory:.0f} MB, about {cost.seconds * len(group.trainings):.0f} s of training"
        return (
            f"program {i + 1}: {config.model}{hidden}, {config.method}{rank}, "
            f"{config.epochs} epochs: "
            f"{sum(len(m) for m in group.members)} members, {len(group.trainings)} trainings, "
            f"{together} at a time on each device, "
            f"{sum(chunk.group == i for chunk in self.chunks)} chunks, "
            f"{needs if cost.seconds else 'too few to be timed'}"
        )


def make_schedule(
    members: Sequence[TrainConfig],
    built: Built,
    wide: Sequence[TrainConfig] = (),
    share: float = 1.0,
    always: bool = False,
) -> Plan:
    """Groups members, and chooses widths and chunks by memory and a short timing.

    Args:
      members: the stage's.
      built: the data, and what is known of programs; what is found out is added.
      wide: see :func:`make_plan`.
      share: the part of all epochs that the stage trains.
      always: time programs of few trainings, too, though nothing hangs on it.

    Example:
      >>> from rosler_jax.sweep import load_examples
      >>> members = [TrainConfig(hidden=(8,), rank=2, batch_size=4, bits=bits) for bits in (4, 8)]
      >>> examples = load_examples(members[0], (np.eye(20), np.arange(20) % 2))
      >>> make_schedule(members, Built(examples)).chunks  # the two differ in their files alone
      (Chunk(group=0, trainings=(0,)),)
    """
    groups = make_plan(members, built, wide)
    chunks = []
    for i, group in enumerate(groups):
        if group.key not in built.costs:
            built.costs[group.key] = choose_width(group, built, always)
        chunks += [Chunk(i, t) for t in _split(len(group.trainings), built.costs[group.key], share)]
    costs = tuple(built.costs[group.key] for group in groups)
    return Plan(tuple(groups), costs, tuple(chunks))


def _split(count: int, cost: Cost, share: float) -> list[tuple[int, ...]]:
    """Trainings in chunks of about the same size, none of them longer than may be lost."""
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
    """About how long a chunk may take."""
    return float(os.environ.get("ROSLER_SWEEP_CHUNK_SECONDS", CHUNK_SECONDS))


def choose_width(group: Group, built: Built, always: bool = False) -> Cost:
    """How many members together train most a second, so far as finding that out repays.

    First a few members that share their batches. What the whole group then takes decides: other
    widths, and blocks of these, are compiled and timed only where training is long beside that.
    """
    devices, count = _devices(), len(group.trainings)
    if count <= 2 * devices:
        return (_tried(group, built, 1, 1) if always else None) or Cost(1, 1, 0, 0)
    if jax.default_backend() == "cpu" and _convolves(group, built):
        return _tried(group, built, 1, 1) or Cost(1, 1, 0, 0)
    alike = max(collections.Counter(batches_key(c) for c in group.trainings).values())
    widths = [w for w in WIDTHS if w == 1 or (w <= alike and w * devices <= count)]
    first = widths[min(1, len(widths) - 1)]
    start = time.perf_counter()
    best = _tried(group, built, first, 1) or Cost(1, 1, math.inf, 0)
    share = _tried_epochs(group.config) / group.config.epochs
    once = hosts.share(time.perf_counter() - start - best.seconds * share * first * devices)

    def repays(width: int, blocks: int) -> bool:
        trial = once + best.seconds * share * width * blocks * devices
        return math.isinf(best.seconds) or trial * REPAYS < best.seconds * count

    narrower, wider = ([w for w in widths if w < first], [w for w in widths if w > first])
    for choices in ([(w, 1) for w in wider], [(w, 1) for w in narrower], [(0, b) for b in WIDTHS]):
        for width, blocks in choices:
            width = width or best.width
            if (width, blocks) == best[:2] or (blocks > 1 and blocks * width * devices > count):
                continue
            found = _tried(group, built, width, blocks) if repays(width, blocks) else None
            if found is None or found.seconds > 1.2 * best.seconds:
                break
            best = min(best, found, key=lambda cost: cost.seconds)
    return best


def _convolves(group: Group, built: Built) -> bool:
    """Whether a model has convolutions: those of several members are grouped ones.

    XLA's for CPUs computes these many times slower: two ResNet-8 together take five times as long
    as one.
    """
    form, x = group.form, example_of(built.examples.x)
    apply = jax.jit(lambda params, buffers, x: form.learner.apply(params, buffers, x, False)[0])
    return "stablehlo.convolution" in apply.lower(form.like.params, form.like.buffers, x).as_text()


def _tried_epochs(config: TrainConfig) -> int:
    """Stages of a method cost what they cost; of others the last epoch, which quantises, tells."""
    return config.epochs if method_of(config).stages else 1


def _tried(group: Group, built: Built, width: int, blocks: int) -> Cost | None:
    """What a choice costs, timed on copies of a member over an epoch; None if it needs too much."""
    config = group.config
    population = trainings.population_of(group, built, width, blocks)
    member = trainings.member_of(group.trainings[0], group, built)
    population.compiled(member)
    needed = population.bytes_needed
    if hosts.share(needed > MEMORY_SHARE * memory()):
        return None
    epochs = _tried_epochs(config)
    last = member.common._replace(epoch=np.int32(config.epochs - epochs))
    count = _devices() * width * blocks
    members = [member._replace(common=last)] * count
    trainings.run(population, members, 0)
    start = time.perf_counter()
    trainings.run(population, members, epochs)
    seconds = hosts.share((time.perf_counter() - start) * config.epochs / epochs / count)
    return Cost(width, blocks, seconds, needed // (width * blocks))


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
    kept: dict[str, Any],
    members: Sequence[TrainConfig],
    built: Built,
    wide: Sequence[TrainConfig] = (),
) -> Plan:
    """The plan of the same members as it was; the costs of its programs are known from now on."""
    groups = tuple(make_plan(members, built, wide))
    costs = tuple(Cost(*cost) for cost in kept["costs"])
    built.costs.update({g.key: c for g, c in zip(groups, costs, strict=True)})
    chunks = tuple(Chunk(group, tuple(trainings)) for group, trainings in kept["chunks"])
    return Plan(groups, costs, chunks)
