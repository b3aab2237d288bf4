"""C that trains: options checked, and given to who writes it."""

from __future__ import annotations

from typing import Any

from rosler_jax.export.c.train.fixed_source import write_fixed
from rosler_jax.export.c.train.options import DEFAULT, Training, check
from rosler_jax.export.c.train.parallel import parallel_graph
from rosler_jax.export.c.train.parts import parameters_of
from rosler_jax.export.c.train.source import TrainSource, write_float
from rosler_jax.graph.graph import Graph


def write_training(
    graph: Graph,
    training: Training = DEFAULT,
    *,
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
      training: the options.
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
    check(training)
    graph = parameters_of(graph)
    if training.dtype == "fixed":
        return write_fixed(graph, training, calibration)
    if training.stage == "parallel":
        graph = parallel_graph(graph, seed=seed, sketch=sketch)
    return write_float(graph, training, chains)
