"""A graph's weights as integers: how many bits each tensor gets, and which of its axes have scales.

What a tensor is, its uses say, not its name: a product's matrix has a scale for each output, found
in the tensor as it is stored through the steps of its layout, so that the heads of an attention and
the layers of a stack have scales of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from rosler_jax._quantized import FLOAT_BITS, Axes, QuantizedTensor, to_numpy
from rosler_jax.graph.check import weight_shape
from rosler_jax.graph.graph import Graph, map_weights, op_vectors
from rosler_jax.graph.kinds import Conv, Dense, Gather, MatMul, Op, Scan
from rosler_jax.graph.weight import Layout, Shape, Weight
from rosler_jax.quantization import VECTOR_BITS, as_axes, checked_bits, quantize


def quantize_graph(graph: Graph, bits: int | Callable[[tuple[str, ...]], int]) -> Graph:
    """The graph with its weights as integers, with scales as :mod:`rosler_jax.quantization` has.

    The matrices of products, kernels and tables get ``bits`` and a scale for each output; of a
    product that reads another's outcome and is wider, as the last of thin factors, for each input,
    so that they stay few. All other floats (biases, scales of norms) get 16 bits and one scale for
    each layer of a stack. Whole numbers, truth values and single numbers stay as they are, and so
    does what is quantised already.

    Args:
      graph: the model.
      bits: 32, 16, 8, 4, 3 or 2, or a function from a tensor's path to one of these.

    Returns:
      The graph; itself for 32 bits.

    Raises:
      ValueError: for other bits.
    """
    if not callable(bits) and checked_bits(bits) == FLOAT_BITS:
        return graph
    made = {
        key: _quantized(stored, width, axes)
        for key, (stored, width, axes) in quantization_plan(graph, bits).items()
    }
    return map_weights(graph, lambda w: Weight(w.name, made[id(w.stored)], w.layout))


def _quantized(stored: Any, width: int, axes: Axes) -> Any:
    if isinstance(stored, QuantizedTensor):
        stored = stored.values if stored.bits == FLOAT_BITS != width else stored
    if width == FLOAT_BITS or isinstance(stored, QuantizedTensor):
        return stored
    found = quantize(stored, width, axes)
    return QuantizedTensor(np.asarray(found.values), np.asarray(found.scale), width, found.axis)


def with_integers(graph: Graph, tensors: Mapping[str, QuantizedTensor]) -> Graph:
    """The graph of a model whose weights are these integers, with the integers in their places.

    Where batch normalisation was folded into a weight, the integers get its factors as scales.

    Args:
      graph: traced with the values of the integers.
      tensors: by the weights' names.
    """
    made: dict[int, Any] = {}

    def found(weight: Weight) -> Weight:
        stored, known = weight.stored, tensors.get(weight.name)
        if known is None or isinstance(stored, QuantizedTensor):
            return weight
        if id(stored) not in made:
            made[id(stored)] = _as_integers(np.asarray(stored), known)
        return Weight(weight.name, made[id(stored)], weight.layout)

    return map_weights(graph, found)


def _as_integers(stored: np.ndarray, known: QuantizedTensor) -> Any:
    """A stored array as the integers that it was made of; as it is, if it was not."""
    if stored.shape != known.shape:
        return stored
    if np.array_equal(stored, to_numpy(known)):
        return known
    values = np.asarray(known.values, np.float64)
    others = tuple(range(values.ndim - 1))
    squares = (values * values).sum(others)
    factors = (values * stored).sum(others) / np.where(squares == 0, 1.0, squares)
    if not np.allclose(values * factors, stored, rtol=1e-4, atol=0):
        return stored
    scale = np.where(squares == 0, 1.0, np.abs(factors)).astype(np.float32)
    rounded = (scale.view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32)
    signed = np.where(factors < 0, -known.values, known.values).astype(np.int8)
    return QuantizedTensor(signed, rounded, known.bits, values.ndim - 1)


def storable(graph: Graph) -> Graph:
    """The graph with scales that a file can hold; integers of others are quantised again.

    Those of version 1 met constants when they were traced: a seeded core's scale, a batch norm.
    """
    made: dict[int, Any] = {}

    def fitting(weight: Weight) -> Weight:
        stored = weight.stored
        if not isinstance(stored, QuantizedTensor) or stored.bits == FLOAT_BITS:
            return weight
        if not (np.asarray(stored.scale, np.float32).view(np.uint32) & 0xFFFF).any():
            return weight
        if id(stored) not in made:
            made[id(stored)] = _quantized(to_numpy(stored), stored.bits, stored.axis)
        return Weight(weight.name, made[id(stored)], weight.layout)

    return map_weights(graph, fitting)


class Planned(NamedTuple):
    """A stored tensor, the bits that it gets (32: it stays as it is), the axes of its scales."""

    stored: Any
    bits: int
    axes: Axes


def quantization_plan(
    graph: Graph, bits: int | Callable[[tuple[str, ...]], int]
) -> dict[int, Planned]:
    """What :func:`quantize_graph` does with every stored tensor, by its ``id``."""
    uses: dict[int, list[Use]] = {}
    for use in _uses(graph):
        uses.setdefault(id(use.weight.stored), []).append(use)
    found = {}
    for weight in graph.weights():
        stored = weight.stored
        asked = checked_bits(bits(tuple(weight.name.split("/"))) if callable(bits) else bits)
        found[id(stored)] = Planned(stored, *_bits_and_axes(stored, asked, uses[id(stored)]))
    return found


def _bits_and_axes(stored: Any, asked: int, uses: list[Use]) -> tuple[int, Axes]:
    if isinstance(stored, QuantizedTensor) and stored.bits != FLOAT_BITS:
        return stored.bits, stored.axis
    shape = tuple(map(int, stored.shape))
    floats = isinstance(stored, QuantizedTensor) or stored.dtype.kind == "f"
    if asked == FLOAT_BITS or not floats or not shape:
        return FLOAT_BITS, None
    best = max(use.rank for use in uses)
    matrix = best > 0 and len(shape) > 1
    counted = [_carrying(shape, use) for use in uses if use.rank == best]
    axes = tuple(k for k, n in enumerate(shape) if n > 1 and all(k in found for found in counted))
    return (asked if matrix else VECTOR_BITS), as_axes(axes)


class Use(NamedTuple):
    """One use of a stored tensor.

    Attributes:
      weight: with the whole layout up to the operation.
      channels: axes, then, along which a scale may change; all others are summed over.
      rank: 2 for a product's matrix, 1 for a table, 0 for what is added or multiplied with, and
        less for what is only passed on.
      groups: of a convolution.
    """

    weight: Weight
    channels: tuple[int, ...] = ()
    rank: int = 0
    groups: int = 1


def _uses(graph: Graph) -> Iterator[Use]:
    readers = graph.consumers()
    kept = {value.id for value in graph.outputs}
    producers = graph.producers()
    for op in graph.ops:
        yield from map(Use, op_vectors(op))
        if isinstance(op, Dense | Conv):
            source = op.inputs[0]
            alone = len(readers[source]) == 1 and source not in kept
            follows = alone and isinstance(producers.get(source), Dense | Conv)
            yield _product(op, follows)
        if isinstance(op, Scan):
            yield from _uses(op.body)
    constants = {k: (weight, 0) for k, weight in graph.constants.items()}
    yield from _read(graph, constants)


def _product(op: Dense | Conv, follows: bool) -> Use:
    """The matrix of a product; ``follows``: it alone reads what another product gives."""
    *window, m, n = weight_shape(op.weight)
    groups = op.window.groups if isinstance(op, Conv) else 1
    thin = follows and math.prod(window) == 1 and m < n // groups
    axis = len(window) + (0 if thin else 1)
    return Use(op.weight, (axis,), 2, groups)


def _read(graph: Graph, known: Mapping[int, tuple[Weight, int]]) -> Iterator[Use]:
    """Uses of values that are stored; of each, how many axes in front count runs of scans."""
    for weight, _ in known.values():
        yield Use(weight, rank=-1)
    for op in graph.ops:
        inner: dict[int, tuple[Weight, int]] = {}
        for k, (value, shape) in enumerate(zip(op.inputs, op.in_shapes, strict=True)):
            if value not in known:
                continue
            weight, runs = known[value]
            front = weight_shape(weight)[:runs]
            laid = weight.then("reshape", (*front, *shape))
            if isinstance(op, Scan):
                sequence = k >= op.shared + op.carries
                if not op.shared <= k < op.shared + op.carries:
                    inner[op.body.inputs[k].id] = laid, runs + sequence
                continue
            channels, rank = _channels(op, k)
            yield Use(laid, (*range(runs), *(runs + axis for axis in channels)), rank)
        if isinstance(op, Scan) and inner:
            yield from _read(op.body, inner)


def _channels(op: Op, k: int) -> tuple[tuple[int, ...], int]:
    """Axes that the ``k``-th value of an operation may have scales along, and what it is there."""
    if isinstance(op, MatMul):
        return ((0, 1) if k == 0 or op.transpose else (0, 2)), 2
    return ((1,), 1) if isinstance(op, Gather) and k == 0 else ((), 0)


# Where the axes of a stored tensor are in what an operation takes.

Part = tuple[frozenset[int], int]  # of an axis: stored axes whose positions it counts, how many


def _carrying(shape: Shape, use: Use) -> set[int]:
    """Stored axes along which a scale may change: they count channels, or nothing of this use."""
    axes = stored_axes(shape, use.weight.layout)
    others = [parts for k, parts in enumerate(axes) if k not in use.channels]
    summed = {axis for parts in others for stored, _ in parts for axis in stored}
    if use.groups > 1 and len(axes[-1]) > 1 and axes[-1][0][1] == use.groups:
        summed |= axes[-1][0][0]  # the groups of thin factors share the scales of the rank
    return {k for k in range(len(shape)) if k not in summed}


def stored_axes(shape: Shape, layout: Layout) -> list[list[Part]]:
    """Of each axis of a laid out array, the stored axes that it counts, the slowest first.

    Example:
      >>> heads = stored_axes((16, 4, 8), (("reshape", (16, 32)),))
      >>> [[(sorted(axes), n) for axes, n in parts] for parts in heads]
      [[([0], 16)], [([1], 4), ([2], 8)]]
    """
    axes: list[list[Part]] = [[(frozenset({k}), n)] if n > 1 else [] for k, n in enumerate(shape)]
    for step, *rest in layout:
        if step == "transpose":
            axes = [axes[k] for k in rest[0]]
        elif step == "reshape":
            axes = _split([part for parts in axes for part in parts], rest[0])
        elif step == "slice":
            axis, start, stop = rest
            mixed = frozenset[int]().union(*(stored for stored, _ in axes[axis]))
            whole = math.prod(n for _, n in axes[axis]) == stop - start
            cut = [(mixed, stop - start)] if stop - start > 1 else []
            axes[axis] = axes[axis] if whole else cut
    return axes


def _split(parts: list[Part], shape: Shape) -> list[list[Part]]:
    """Parts in their order, dealt out to axes of these sizes."""
    left, axes = list(parts), []
    for size in shape:
        axes.append(list[Part]())
        while size > 1:
            stored, n = left.pop(0)
            if size % n and n % size:  # they do not fit: who knows what counts what
                mixed = frozenset[int]().union(*(stored for stored, _ in parts))
                return [[(mixed, n)] if n > 1 else [] for n in shape]
            part = min(size, n)
            axes[-1].append((stored, part))
            size //= part
            left = left if part == n else [(stored, n // part), *left]
    return axes
