"""What the values of a graph are for representative inputs: what scales are chosen by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax.graph import Graph, run_all
from rosler_jax.graph.kinds import Conv, Dense, Scan

HUGE = 1e30  # numbers beyond stand for infinity, as masks have them
_AT_ONCE = 32  # examples


class Seen(NamedTuple):
    """What was seen of a value; numbers beyond HUGE are left out, but for ``most``.

    Attributes:
      low, high: least and greatest.
      channels: largest magnitude of each channel.
      most: largest magnitude; NaN if there was one.
    """

    low: float
    high: float
    channels: np.ndarray
    most: float

    @property
    def size(self) -> float:
        """Largest magnitude."""
        return float(self.channels.max(initial=0.0))


class Ranges(NamedTuple):
    """What was seen of each value, and within the bodies of scans, by the scan's name."""

    values: dict[int, Seen]
    bodies: dict[str, Ranges]


def channels_of(graph: Graph) -> dict[int, int]:
    """Numbers in the last axis of each value, as the one product that reads it takes it."""
    found = {v.id: v.shape[-1] if v.shape else 1 for v in graph.inputs}
    for op in graph.ops:
        found |= {k: s[-1] if s else 1 for k, s in zip(op.outputs, op.out_shapes, strict=True)}
    for value, ops in graph.consumers().items():
        if len(ops) == 1 and isinstance(ops[0], Dense | Conv):
            found[value] = ops[0].in_shape[-1]
    return found


def observe(graph: Graph, inputs: Sequence[np.ndarray]) -> Ranges:
    """Runs a graph on examples.

    Args:
      graph: the model.
      inputs: for each input examples, shape ``(batch, *shape)``.
    """
    step = jax.jit(lambda *x: _observe(graph, x)[1])
    # The last ones may overlap those before, which changes no maximum: one shape, compiled once.
    last = max(0, len(inputs[0]) - _AT_ONCE)
    merged: Any = None
    for start in [*range(0, last, _AT_ONCE), last]:
        found = jax.device_get(step(*(x[start : start + _AT_ONCE] for x in inputs)))
        merged = found if merged is None else jax.tree.map(np.maximum, merged, found)
    return _ranges(merged)


def _ranges(found: Any) -> Ranges:
    values, bodies = found
    seen = {
        k: Seen(-float(low), float(high), np.asarray(each, np.float64), float(most))
        for k, (low, high, each, most) in values.items()
    }
    return Ranges(seen, {name: _ranges(body) for name, body in bodies.items()})


def _statistics(x: Any, channels: int) -> tuple[Any, ...]:
    """Maxima of ``-x``, x, its channels' magnitudes, and all magnitudes."""
    x = jnp.asarray(x, jnp.float32)
    size = jnp.abs(x)
    known = size < HUGE
    low, high = (jnp.where(known, v, -jnp.inf).max(initial=-HUGE) for v in (-x, x))
    each = jnp.where(known, size, 0.0).reshape(-1, channels).max(0, initial=0.0)
    return low, high, each, size.max(initial=0.0)


def _observe(graph: Graph, inputs: Sequence[Any]) -> tuple[dict[int, Any], tuple[Any, Any]]:
    """All values of a batch; and what is seen of them, and within the bodies of scans."""
    values = jax.vmap(lambda *x: run_all(graph, x))(*inputs)
    channels = channels_of(graph)
    found = {k: _statistics(x, channels.get(k, 1)) for k, x in values.items()}
    bodies = {
        op.name: _observe_scan(op, values, len(inputs[0])) for op in graph.ops
        if isinstance(op, Scan)
    }  # fmt: skip
    return values, (found, bodies)


def _observe_scan(op: Scan, values: Mapping[int, Any], batch: int) -> tuple[Any, Any]:
    """The maxima over all positions."""
    given = [values[k].reshape(batch, *s) for k, s in zip(op.inputs, op.in_shapes, strict=True)]
    shared, rest = given[: op.shared], given[op.shared :]
    first = tuple(rest[: op.carries])
    sequences = tuple(jnp.moveaxis(x, 1, 0) for x in rest[op.carries :])

    def step(state: Any, at: Any) -> tuple[Any, None]:
        carry, before = state
        inputs = [*shared, *carry, *at]
        made, seen = _observe(op.body, inputs)
        carried = op.body.outputs[: op.carries]
        out = tuple(made[v.id].reshape(batch, *v.shape) for v in carried)
        return (out, jax.tree.map(jnp.maximum, before, seen)), None

    at = tuple(x[0] for x in sequences)
    shape = jax.eval_shape(lambda: _observe(op.body, [*shared, *first, *at])[1])
    least = jax.tree.map(lambda leaf: jnp.full(leaf.shape, -HUGE, leaf.dtype), shape)
    length = None if sequences else op.length
    return jax.lax.scan(step, (first, least), sequences, length, op.reverse)[0][1]
