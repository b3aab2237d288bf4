"""Checkpoints of a training run, with Orbax; resuming from one is exact, bit for bit."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from rosler_jax.fit import TrainState

KEEP = 2
SLACK = 2**17  # of Orbax' own files


def open_manager(folder: Path) -> Any:
    """Opens the Orbax manager of a run's checkpoints; the caller closes it.

    Raises:
      ImportError: if Orbax is not installed.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError("checkpoints need Orbax: pip install 'rosler-jax[cli]'") from error
    options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.absolute(), options=options)


@contextlib.contextmanager
def writing(folder: Path, leaves: dict[str, np.ndarray]) -> Iterator[None]:
    """Makes one OSError of what goes wrong while Orbax writes, which its threads say at length.

    Args:
      folder: where to; its disk must have the room.
      leaves: what is written.

    Raises:
      OSError: if there is no room, or it cannot be written.
    """
    needed = sum(leaf.nbytes for leaf in leaves.values())
    try:
        if shutil.disk_usage(folder).free < 1.1 * needed + SLACK:
            raise OSError(errno.ENOSPC, f"no space for a checkpoint of {needed / 1e6:.1f} MB")
        before = logging.root.manager.disable, sys.unraisablehook
        logging.disable(logging.CRITICAL)
        sys.unraisablehook = lambda _: None
        try:
            yield
        finally:
            logging.disable(before[0])
            sys.unraisablehook = before[1]
    except (ValueError, OSError) as error:  # ValueError: what its threads ran into
        reason = str(error).rsplit(": ", 1)[-1]
        raise OSError(
            f"{folder}: the checkpoint cannot be written: {reason}; make room and resume"
        ) from error


def save(manager: Any, epoch: int, state: TrainState, history: list[dict[str, float]]) -> None:
    """Saves the state after ``epoch`` epochs, with the history so far.

    Raises:
      OSError: if it cannot be written, as on a full disk; the checkpoints before it are kept.
    """
    import orbax.checkpoint as ocp

    leaves = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(leaves), history=ocp.args.JsonSave({"rows": history})
    )
    with writing(Path(manager.directory), leaves):
        manager.save(epoch, args=items)
        manager.wait_until_finished()


def restore(manager: Any, like: TrainState) -> tuple[TrainState, list[dict[str, float]]] | None:
    """Restores the latest checkpoint into the structure of ``like``; None if there is none.

    Raises:
      ValueError: if the checkpoint does not fit the run, or cannot be read.
    """
    import orbax.checkpoint as ocp

    epoch = manager.latest_step()
    if epoch is None:
        return None
    leaves, treedef = jax.tree.flatten(like)
    target = {str(i): np.zeros(x.shape, x.dtype) for i, x in enumerate(leaves)}
    items = ocp.args.Composite(
        state=ocp.args.StandardRestore(target), history=ocp.args.JsonRestore()
    )
    try:
        found = manager.restore(epoch, args=items)
        values = [jax.numpy.asarray(found.state[str(i)]) for i in range(len(leaves))]
    except Exception as error:  # Orbax raises many kinds, all meaning that this cannot be resumed
        raise ValueError(
            f"checkpoint {epoch} in {manager.directory} cannot be read: {error}"
        ) from error
    for value, leaf in zip(values, leaves, strict=True):
        if value.shape != leaf.shape or value.dtype != leaf.dtype:
            raise ValueError(
                f"checkpoint {epoch} in {manager.directory} holds {value.dtype}{value.shape} where "
                f"this run has {leaf.dtype}{leaf.shape}; was it made with another config?"
            )
    return jax.tree.unflatten(treedef, values), found.history["rows"]
