"""Checkpoints of a training run, with Orbax; resuming from one is exact, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from rosler_jax.fit import TrainState

KEEP = 2


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


def save(manager: Any, epoch: int, state: TrainState, history: list[dict[str, float]]) -> None:
    """Saves the state after ``epoch`` epochs, with the history so far."""
    import orbax.checkpoint as ocp

    leaves = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(leaves), history=ocp.args.JsonSave({"rows": history})
    )
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
    target = {str(i): np.asarray(x) for i, x in enumerate(leaves)}
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
