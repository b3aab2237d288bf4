"""Successive halving: after every rung the best part of the trainings goes on, packed anew.

Each rung trains all that are left for the same number of epochs under the schedule of the whole
run, so that a survivor ends where it would have ended without rungs (Jamieson and Talwalkar, 2016;
the rungs of ASHA, Li et al., 2020, here in step, since a population moves as one).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from rosler_jax import checkpoint
from rosler_jax._ranks import cropped
from rosler_jax.config import TrainConfig
from rosler_jax.fit import TrainState
from rosler_jax.sweep import folder as folders
from rosler_jax.sweep import hosts, schedule
from rosler_jax.sweep.plan import form_of, training_key
from rosler_jax.sweep.spec import SweepSpec
from rosler_jax.sweep.work import Work, stored_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


RUNGS = "rungs"


def ends(spec: SweepSpec) -> list[int | None]:
    """Epochs at which the stages end; None for the end of the run.

    Example:
      >>> from rosler_jax.sweep.spec import parse
      >>> axes = {"seed": {"grid": [0, 1, 2]}}
      >>> ends(parse({"epochs": 9, "axes": axes, "halving": {"rungs": [1, 3]}}))
      [1, 3, None]
    """
    return [*(spec.halving.rungs if spec.halving else ()), None]


def kept(spec: SweepSpec, count: int) -> int:
    """Trainings of ``count`` that survive a rung."""
    return max(1, math.ceil(spec.halving.keep * count)) if spec.halving else count


def total(spec: SweepSpec) -> int:
    """Rows that all stages write, if every training serves as many members."""
    counts = [len(spec.configs())]
    for _ in ends(spec)[1:]:
        counts.append(kept(spec, counts[-1]))
    return sum(counts)


def effort(spec: SweepSpec) -> float:
    """The part of the epochs of all members that is trained.

    Example:
      >>> from rosler_jax.sweep.spec import parse
      >>> axes = {"seed": {"grid": [0, 1, 2, 3]}}
      >>> effort(parse({"epochs": 4, "axes": axes, "halving": {"rungs": [1], "keep": 0.25}}))
      0.4375
    """
    if spec.halving is None:
        return 1.0
    members, epochs = len(spec.configs()), spec.first().epochs
    count, start, done = members, 0, 0
    for stop in [*spec.halving.rungs, epochs]:
        done += count * (stop - start)
        count, start = kept(spec, count), stop
    return done / (members * epochs)


def lines(spec: SweepSpec) -> list[str]:
    """The rungs in words."""
    if spec.halving is None:
        return []
    rungs = ", ".join(map(str, spec.halving.rungs))
    return [
        f"rungs after {rungs} epochs, each keeping {spec.halving.keep:.0%}: "
        f"{effort(spec):.0%} of the epochs of all members"
    ]


def survivors(
    spec: SweepSpec, members: Sequence[TrainConfig], rows: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Members that go on: those of the trainings that were best in validation so far.

    Members of one training (they differ in bits alone) survive together. A training that diverged
    never does. Ties go to the earlier member.
    """
    _, larger = spec.followed()
    score: dict[Any, tuple[float, int]] = {}
    served: dict[Any, list[int]] = {}
    for row in rows:
        key = training_key(members[row["member"]])
        served.setdefault(key, []).append(row["member"])
        if row["status"] != "failed":
            best = -max(row["curve"]) if larger else min(row["curve"])
            score[key] = (best, min(served[key]))
    ranked = sorted(score, key=lambda key: score[key])[: kept(spec, len(served))]
    return sorted(i for key in ranked for i in served[key])


class States(NamedTuple):
    """Where the trainings of a stage stopped."""

    stacked: dict[int, Any]  # by chunk
    place: dict[Any, tuple[int, int, Any]]  # by training: chunk, row, shapes at its own ranks
    rows: dict[int, Any]  # by member

    def state(self, config: TrainConfig) -> TrainState:
        """A training's state at its own ranks."""
        chunk, row, like = self.place[training_key(config)]
        return cropped(jax.tree.map(lambda a: np.asarray(a)[row], self.stacked[chunk]), like)


def continued(row: dict[str, Any], before: States | None) -> dict[str, Any]:
    """A row with what the training's earlier stages had."""
    if before is None:
        return row
    old = before.rows[row["member"]]
    return {
        **row,
        **{name: [*old[name], *row[name]] for name in ("curve", "loss_curve")},
        "seconds": old["seconds"] + row["seconds"],
    }


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _path(folder: Path, stage: int, chunk: int) -> Path:
    return (folder / RUNGS / f"{stage:03d}-{chunk:06d}").absolute()


def save_states(folder: Path, stage: int, chunk: int, state: TrainState) -> None:
    """Writes a checkpoint of a chunk at the end of its rung.

    Raises:
      OSError: if it cannot be written; the chunk then counts as not run.
    """
    if not hosts.is_first():
        return
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    with checkpoint.writing(folder, leaves), _checkpointer() as orbax:
        orbax.save(_path(folder, stage, chunk), leaves, force=True)


def load_states(work: Work, stage: int) -> States:
    """Reads a finished stage's checkpoints, on every host.

    Raises:
      SweepError: if one cannot be read.
    """
    decided = folders.read_stage(work.folder, stage)
    assert decided is not None
    every = work.spec.configs()
    members = [every[i] for i in decided["members"]]
    plan = schedule.from_json(decided["plan"], members, work.built)
    stacked: dict[int, Any] = {}
    place: dict[Any, tuple[int, int, Any]] = {}
    for number, chunk in enumerate(plan.chunks):
        group = plan.groups[chunk.group]
        treedef = jax.tree.structure(group.form.like)
        leaves = _read(work.folder, stage, number)
        stacked[number] = jax.tree.unflatten(treedef, leaves)
        for row, i in enumerate(chunk.trainings):
            config = group.trainings[i]
            place[training_key(config)] = number, row, form_of(config, work.built).like
    rows = {row["member"]: row for row in stored_rows(work, stage, plan)}
    return States(stacked, place, rows)


def _read(folder: Path, stage: int, chunk: int) -> list[np.ndarray]:
    leaves: list[np.ndarray] = []
    if hosts.is_first():
        path = _path(folder, stage, chunk)
        try:
            with _checkpointer() as orbax:
                found = orbax.restore(path)
        except Exception as error:  # Orbax raises many kinds, all meaning the same
            raise folders.SweepError(
                f"{path}: the rung's checkpoint cannot be read: {error}; remove this folder and "
                f"{folder}/parts/{stage:03d}-{chunk:06d}.parquet, and resume"
            ) from error
        leaves = [np.asarray(found[str(i)]) for i in range(len(found))]
    return hosts.share_arrays(leaves)
