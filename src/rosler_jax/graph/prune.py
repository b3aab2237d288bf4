"""Units of which nothing comes, left out: training drove them to zero.

A unit, a channel or a rank of two factors is idle where what reads it has zeros for it, or where it
is zero itself: no weight leads to it, and its activation of its bias is zero. Without it the model
computes the very same.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import NamedTuple

import numpy as np

from rosler_jax._quantized import FLOAT_BITS, QuantizedTensor
from rosler_jax.graph.check import weight_shape
from rosler_jax.graph.functions import FUNCTIONS
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.kinds import Conv, Dense, Map, Op, Pool
from rosler_jax.graph.weight import Weight


class _Chain(NamedTuple):
    """A product, what is done to each of its outputs alone, and the product that reads it."""

    first: Dense | Conv
    between: tuple[Op, ...]
    last: Dense | Conv


def pruned(graph: Graph) -> Graph:
    """The graph without idle units between its products; their other weights as they are.

    Args:
      graph: any; what is in scans, and what several operations read, stays.

    Example:
      >>> from rosler_jax.graph.trace import trace
      >>> import jax.numpy as jnp
      >>> w = np.array([[1.0, 0.0], [2.0, 0.0]], np.float32)  # nothing leads to the second unit
      >>> net = (lambda p, x: jnp.maximum(x @ p["w"], 0) @ p["v"], {"w": w, "v": w})
      >>> [weight.shape for weight in pruned(trace(net, np.ones((1, 2), np.float32))).weights()]
      [(2, 1), (1, 2)]
    """
    while True:
        chains = _chains(graph)
        found = ((chain, _live(chain)) for chain in chains)
        chosen = next(((chain, live) for chain, live in found if not live.all()), None)
        if chosen is None:
            return graph
        new = {op.output: op for op in _without(*chosen)}
        ops = tuple(new.get(op.output, op) for op in graph.ops)
        graph = dataclasses.replace(graph, ops=ops)


def _chains(graph: Graph) -> list[_Chain]:
    readers, kept = graph.consumers(), {value.id for value in graph.outputs}
    uses = Counter(id(weight.stored) for weight in graph.weights())

    def own(op: Op) -> bool:
        return isinstance(op, Dense | Conv) and uses[id(op.weight.stored)] == 1

    chains = []
    for op in graph.ops:
        between: list[Op] = []
        value = op.output
        while own(op) and value not in kept and len(readers.get(value, ())) == 1:
            (reader,) = readers[value]
            if own(reader):
                chain = _Chain(op, tuple(between), reader)  # type: ignore[arg-type]
                chains += [chain] if _fits(chain) else []
            alone = isinstance(reader, Map) and len(reader.inputs) == 1
            if not alone and not isinstance(reader, Pool):
                break
            between.append(reader)
            value = reader.output
    return chains


def _width(op: Dense | Conv) -> int:
    return int(weight_shape(op.weight)[-1])


def _fits(chain: _Chain) -> bool:
    """Whether the units are the last axis everywhere, so that one can be left out."""
    n, (first, between, last) = _width(chain.first), chain
    plain = all(op.window.groups == 1 for op in (first, last) if isinstance(op, Conv))
    shapes = [shape for op in between for shape in (op.in_shape, op.out_shape)]
    along = all(shape[-1:] == (n,) for shape in (first.out_shape, *shapes))
    if isinstance(last, Conv):
        return plain and along and last.in_shape[-1] == n
    rows = first.out_shape if not between else between[-1].out_shape
    whole = last.in_shape[-1] % n == 0 and (
        last.in_shape[-1] == n or last.in_shape[:-1] in ((), (1,))
    )
    return plain and along and whole and bool(rows)


def _live(chain: _Chain) -> np.ndarray:
    """Which units count for anything; at least one."""
    first, between, last = chain
    n = _width(first)
    leads = first.weight.values.reshape(-1, n).any(0)
    alone = np.zeros(n, np.float32) if first.bias is None else first.bias.values.reshape(-1, n)[0]
    one_bias = first.bias is None or first.bias.values.size == n
    for op in between:
        if isinstance(op, Map):
            alone = np.asarray(FUNCTIONS[op.function].compute(alone, *op.numbers))
    read = last.weight.values.reshape(-1, n, _width(last)).any((0, 2))
    live = (leads | (alone != 0) | (not one_bias)) & read
    if not live.any():
        live[0] = True
    return live


def _without(chain: _Chain, live: np.ndarray) -> tuple[Op, ...]:
    """The operations of a chain with the live units alone."""
    first, between, last = chain
    n, kept = len(live), np.flatnonzero(live)

    def narrow(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] // n * len(kept))

    bias = (
        None
        if first.bias is None
        else _taken(first.bias, -1, _repeated(kept, n, first.bias.shape[-1]))
    )
    made: list[Op] = [
        dataclasses.replace(
            first, weight=_taken(first.weight, -1, kept), bias=bias,
            out_shapes=(narrow(first.out_shape),),
        )
    ]  # fmt: skip
    made += [
        dataclasses.replace(
            op, in_shapes=(narrow(op.in_shape),), out_shapes=(narrow(op.out_shape),)
        )
        for op in between
    ]
    rows = _repeated(kept, n, weight_shape(last.weight)[-2])
    weight = _taken(last.weight, -2, rows)
    return (*made, dataclasses.replace(last, weight=weight, in_shapes=(narrow(last.in_shape),)))


def _repeated(kept: np.ndarray, n: int, size: int) -> np.ndarray:
    """Indices of the units in an axis that counts them several times."""
    return (np.arange(0, size, n)[:, None] + kept).ravel()


def _taken(weight: Weight, axis: int, index: np.ndarray) -> Weight:
    """A weight with some of its entries along an axis, as its operation takes it."""
    if weight.integers is None or weight.bits == FLOAT_BITS:
        return Weight(weight.name, weight.values.take(index, axis))
    scale, along = weight.scale, weight.axis
    if along is not None and along == axis:
        scale = scale[index]
    values = weight.integers.take(index, axis)
    position = None if along is None else along % values.ndim
    return Weight(weight.name, QuantizedTensor(values, scale, weight.bits, position))
