"""Which members of a sweep share a compiled program, and which share a whole training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from rosler_jax.config import TrainConfig

DYNAMIC = (
    "learning_rate",
    "weight_decay",
    "parallel_learning_rate",
    "momentum",
    "clip_norm",
    "label_smoothing",
    "noise",
    "seed",
)
"""Fields that are data to a compiled run: members that differ in these alone share a program."""

PADDED = ("chain", "low-rank")
"""Methods whose rank is a mask: zeros beyond it stay zeros under every update."""


class Group(NamedTuple):
    """Trainings that run as one population.

    Attributes:
      config: what they share; its rank is the largest among them.
      trainings: the config of each training, with the bits of its first member.
      members: for each training, the indices of the sweep's members that it serves.
    """

    config: TrainConfig
    trainings: tuple[TrainConfig, ...]
    members: tuple[tuple[int, ...], ...]


def training_key(config: TrainConfig) -> TrainConfig:
    """The config without what only changes the file: members of one key share a training."""
    same: dict[str, Any] = {} if config.quantization_aware else {"bits": 16}
    if config.method == "dense":
        same["rank"] = 1
    return dataclasses.replace(config, **same)


def program_key(config: TrainConfig) -> TrainConfig:
    """The config without what is data to a program: trainings of one key share a program."""
    neutral: dict[str, Any] = {name: _default(name) for name in DYNAMIC}
    neutral["learning_rate"] = 1.0
    neutral["noise"] = 1.0 if config.noise else 0.0
    if config.method == "restrict-rank":  # its projections take the seed when they are made
        neutral["seed"] = config.seed
    if config.method in PADDED:
        neutral["rank"] = 1
    return dataclasses.replace(training_key(config), **neutral)


def batches_key(config: TrainConfig) -> tuple[float, int]:
    """What decides a training's examples and their order: members of one key share batches."""
    return config.validation, config.seed


def make_plan(configs: Sequence[TrainConfig], least_rank: int = 1) -> list[Group]:
    """Groups the members of a sweep into as few programs as their differences allow.

    Args:
      configs: the members.
      least_rank: what a padded rank is at least, so that later members fit the same program.

    Raises:
      ValueError: if a member asks for what a population cannot do.

    Example:
      >>> base = TrainConfig(method="chain", hidden=(32,))
      >>> members = [
      ...     dataclasses.replace(base, rank=r, bits=b, seed=s)
      ...     for r in (2, 4)
      ...     for b in (8, 16)
      ...     for s in (0, 1, 2)
      ... ]
      >>> [(g.config.rank, len(g.trainings), len(sum(g.members, ()))) for g in make_plan(members)]
      [(4, 6, 12)]
    """
    trainings: dict[TrainConfig, list[int]] = {}
    for i, config in enumerate(configs):
        if config.patience is not None:
            raise ValueError(
                f"member {i}: patience={config.patience}; a population runs all its epochs, leave "
                "patience out"
            )
        trainings.setdefault(training_key(config), []).append(i)
    programs: dict[TrainConfig, list[TrainConfig]] = {}
    for training in trainings:
        programs.setdefault(program_key(training), []).append(training)
    groups = []
    for key, unsorted in programs.items():
        found = sorted(unsorted, key=batches_key)  # those that share their batches together
        least = least_rank if key.method in PADDED else 1
        widest = dataclasses.replace(key, rank=max(least, *(t.rank for t in found)))
        members = tuple(tuple(trainings[t]) for t in found)
        groups.append(Group(widest, tuple(found), members))
    return groups


def _default(name: str) -> Any:
    return next(f.default for f in dataclasses.fields(TrainConfig) if f.name == name)
