"""Epochs over data that do not fit the device: the steps of a run, fed batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax.data import stream
from rosler_jax.evaluation import EVALUATION_BATCH, tallied, tally
from rosler_jax.fit import Epoch, Fit, Metrics, TrainState
from rosler_jax.hyper import Hyper
from rosler_jax.tasks import Task
from rosler_jax.units import PLAIN, Units

if TYPE_CHECKING:
    from jaxtyping import PyTree

CHUNK_BYTES = 64 * 2**20
"""Inputs that go to the device at once."""


def make_epoch(
    functions: Fit, task: Task, data: Any
) -> Callable[[TrainState, Hyper, Units], tuple[TrainState, Metrics]]:
    """An epoch in the same order, with the same keys, as of data on the device.

    Args:
      functions: of the run.
      task: its task.
      data: a :class:`rosler_jax.data.Dataset`, whose inputs need not be in memory.

    Returns:
      ``(state, hyper, units) -> (state, Metrics)``; not to be jitted, its parts are.
    """
    parts, y_given = functions.parts, data.train_y is not None

    @jax.jit
    def steps(carry: Any, xs: Any, ys: Any, keys: Any, state: Any, hyper: Any, units: Any) -> Any:
        def take(i: Any) -> tuple[Any, Any]:
            return xs[i], ys[i] if y_given else None

        return parts.steps(carry, take, Epoch(jnp.arange(len(xs)), keys), state, hyper, units)

    @jax.jit
    def sums(params: PyTree, buffers: PyTree, x: Any, y: Any, valid: Any, units: Any) -> Any:
        predict = lambda x: functions.outputs(params, buffers, x, units)  # noqa: E731
        return tally(task, predict, x, y, valid, units)

    begin, project, close = map(jax.jit, (parts.begin, parts.project, parts.close))

    def epoch(state: TrainState, hyper: Hyper, units: Units) -> tuple[TrainState, Metrics]:
        carry, seen = (state.params, state.buffers, state.opt_state), []
        order, keys = begin(state)
        done = 0
        for xs, ys in _chunks(data.train_x, data.train_y, np.asarray(order)):
            some = keys[done : done + len(xs)]
            carry, found = steps(carry, xs, ys, some, state, hyper, units)
            done += len(xs)
            seen.append(found)
        carry, deployed = project(state, carry, hyper)
        run = lambda *batch: sums(deployed, carry[1], *batch, units)  # noqa: E731
        totals, n = total(run, data.validation_x, data.validation_y)
        joined = jax.tree.map(lambda *found: jnp.concatenate(found), *seen)
        return close(state, carry, joined, tallied(task, totals, n), hyper)

    return epoch


def _chunks(x: Any, y: Any, order: np.ndarray) -> Iterator[tuple[Any, Any]]:
    """Batches in their order, as many at a time as go to the device at once."""
    bytes_each = max(1, x.dtype.itemsize * int(np.prod(x.shape[1:])) * order.shape[1])
    count = max(1, min(len(order), CHUNK_BYTES // bytes_each))
    kept: list[tuple[Any, Any]] = []
    for batch in stream.batches(x, y, order):
        kept.append(batch)
        if len(kept) == count:
            yield _stacked(kept)
            kept = []
    if kept:
        yield _stacked(kept)


def _stacked(batches: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    xs, ys = zip(*batches, strict=True)
    return np.stack(xs), None if ys[0] is None else np.stack(ys)


def total(sums: Callable[..., Any], x: Any, y: Any) -> tuple[Any, int]:
    """Adds up, in float64, what ``sums(x, y, valid)`` gives of every batch; and how many examples.

    The last batch is filled up with copies, which are not valid, so that all have one shape.
    """
    n, batch = len(x), min(EVALUATION_BATCH, len(x))
    parts = []
    for i in range(0, n, batch):
        index = np.minimum(np.arange(i, i + batch), n - 1)
        valid = np.arange(i, i + batch) < n
        parts.append(jax.device_get(sums(x[index], None if y is None else y[index], valid)))
    return jax.tree.map(lambda *found: sum(np.float64(v) for v in found), *parts), n


def score(
    predict: Callable[[Any], Any], x: Any, y: Any, task: Task, units: Units = PLAIN
) -> tuple[float, dict[str, float]]:
    """Mean loss and metrics of a model on data, its outputs in the data's units.

    Sums are taken on the device, means in float64: the same numbers wherever they are made again.

    Args:
      predict: from a batch of inputs to outputs.
      x, y: the data; inputs need not be in memory.
      task: what they are for.
      units: of the data, which a loss is taken in.
    """
    one = jax.jit(lambda x, y, valid: tally(task, predict, x, y, valid, units))
    sums, n = total(one, x, y)
    loss, found = jax.tree.map(lambda v: v / n, sums)
    return float(loss), {k: float(task.metrics[k].value(mean)) for k, mean in found.items()}
