"""C that trains: options checked, and given to who writes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rosler_jax.export._errors import ExportError
from rosler_jax.export.c.train.fixed_source import write_fixed
from rosler_jax.export.c.train.parallel import parallel_graph
from rosler_jax.export.c.train.parts import parameters_of
from rosler_jax.export.c.train.source import TrainSource, write_float
from rosler_jax.graph.graph import Graph

LOSSES = ("cross_entropy", "mse")
STAGES = ("successive", "parallel")
DTYPES = ("float32", "fixed")


def write_training(
    graph: Graph,
    *,
    loss: str = "cross_entropy",
    batch: int = 16,
    stage: str = "successive",
    parts: str | Sequence[str] = "all",
    dtype: str = "float32",
    momentum: float = 0.9,
    clip: float | None = None,
    calibration: Any = None,
    seed: int = 0,
    sketch: str | None = None,
    chains: bool = True,
) -> TrainSource:
    """Writes C99 that trains a network on the device: forward, backward, update, save and load.

    The files stand alone or go beside ``rosler_model.*`` in one image. Weights that train are kept
    in the caller's ``rosler_state``, all others stay constant data. A step is SGD with momentum,
    ``v <- momentum v + g, w <- w - rate v``, with g the mean gradient over up to ``batch``
    examples. Without momentum and clipping, and with a batch of 1, no velocity is kept at all.

    Args:
      graph: the model, of one input and one output. In float32 any model trains; in fixed point a
        chain of linear layers, learnt, seeded or dense, after anything that does not train.
      loss: ``"cross_entropy"`` of integer labels or ``"mse"``.
      batch: most examples in a step; they are taken one by one and need no memory each.
      stage: ``"successive"`` is back-propagation through the factors; ``"parallel"`` turns each
        layer of two factors into sketches, trains these by sketches of the gradient, and goes on
        successively after ``rosler_train_switch``.
      parts: what trains; see :func:`rosler_jax.export.c.train.parts.trained_names`.
      dtype: ``"float32"``, or ``"fixed"`` for 16-bit activations and 32-bit weights.
      momentum: 0 to below 1.
      clip: norm that all gradients together are scaled down to; None for none.
      calibration: representative inputs; needed for ``dtype="fixed"``.
      seed, sketch: of the parallel stage's sketches.
      chains: whether chains of layers train by code written for them, which takes fewer
        instructions, and keeps no velocity where none is needed; all else, and all without, trains
        by the graph of its gradient.

    Returns:
      The texts and what they take.

    Raises:
      ExportError: for an operation that does not train in C, or an option out of range; names the
        alternatives.

    Example:
      >>> import numpy as np
      >>> from rosler_jax.graph.version1 import build_graph
      >>> specs = [{"kind": "linear", "in_features": 4, "out_features": 2}]
      >>> graph = build_graph(specs, {"0/kernel": np.ones((4, 2)), "0/bias": np.zeros(2)})
      >>> source = write_training(graph)
      >>> source.state_bytes, [field.name for field in source.fields]
      (80, ['0/kernel', '0/bias'])
    """
    _check("loss", loss, LOSSES)
    _check("stage", stage, STAGES)
    _check("dtype", dtype, DTYPES)
    if not (isinstance(batch, int) and batch >= 1):
        raise ExportError(f"batch {batch!r}; expected a whole number from 1")
    if not (isinstance(momentum, int | float) and 0.0 <= momentum < 1.0):
        raise ExportError(f"momentum {momentum!r}; expected 0 to below 1")
    if clip is not None and not (isinstance(clip, int | float) and 0.0 < clip < math.inf):
        raise ExportError(f"clip {clip!r}; expected a positive number, or None")
    graph = parameters_of(graph)
    if dtype == "fixed":
        return write_fixed(
            graph, loss=loss, batch=batch, stage=stage, parts=parts, momentum=momentum, clip=clip,
            calibration=calibration,
        )  # fmt: skip
    if stage == "parallel":
        graph = parallel_graph(graph, seed=seed, sketch=sketch)
    return write_float(graph, loss, batch, stage, parts, momentum, clip, chains)


def _check(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ExportError(f"{what} {value!r} is not known; use {' or '.join(known)}")
