"""What a baseline is shipped as: a file of the library, read again before it is scored."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rosler_jax.graph import Graph, trace
from rosler_jax.graph.prune import pruned
from rosler_jax.graph.save import Model, load, save
from rosler_jax.run import Prepared, example_of
from rosler_jax.streaming import score
from rosler_jax.units import in_units


class Shipped(NamedTuple):
    """A model as it is to be written.

    Attributes:
      graph: its operations and weights.
      bits: of the weights.
      coded: whether the integers are entropy-coded.
      metadata: in the file, in its bytes.
      restored: the graph that a file that was read stands for.
    """

    graph: Graph
    bits: int
    coded: bool
    metadata: Mapping[str, Any] = {}
    restored: Callable[[Model], Graph] = lambda model: model.graph


def graph_of(problem: Prepared, params: Any, ready: Callable[[Graph], Graph] = pruned) -> Graph:
    """The graph of trained parameters, without units of which nothing comes.

    Args:
      problem: data and model.
      params: of the model.
      ready: what is done to the graph before the units of the inputs become part of it.
    """
    x = problem.dataset.train_x
    graph = trace(problem.learner.model(params, {}), example_of(x), **problem.learner.call)
    return in_units(ready(graph), problem.units, problem.task.scaled)


def matrices(graph: Graph) -> list[np.ndarray]:
    """The weights of a graph but for its biases."""
    return [weight.values for weight in graph.weights() if len(weight.shape) > 1]


def measured(problem: Prepared, shipped: Shipped, path: Path) -> dict[str, Any]:
    """Writes the file, reads it, and scores what was read: validation and, once, test images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = save(
        path, shipped.graph, bits=shipped.bits, coded=shipped.coded, metadata=shipped.metadata
    )
    model = load(path)
    graph = shipped.restored(model)
    predict = model if graph is model.graph else Model(graph, model.file)
    data, found = problem.dataset, matrices(graph)
    scored = functools.partial(score, task=problem.task, units=problem.units)
    errors = {
        name: 100 * (1 - scored(predict, x, y)[1]["accuracy"])
        for name, x, y in (
            ("validation_error", data.validation_x, data.validation_y),
            ("test_error", data.test_x, data.test_y),
        )
    }
    return {
        "bytes": size,
        **errors,
        "weights": int(sum(np.count_nonzero(w) for w in found)),
        "stored": int(sum(w.size for w in found)),
    }
