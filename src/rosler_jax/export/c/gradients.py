"""The operations that only gradients have, as C; and gradients that are added where others lie."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from rosler_jax.export.c.unit import Step, Unit
from rosler_jax.export.c.windows import axes_table
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.kinds import (
    Convolve,
    KernelGrad,
    Map,
    MatMul,
    Op,
    Scatter,
    Transpose,
    Unpool,
    count,
)
from rosler_jax.graph.weight import Weight

Adding = Callable[..., str]
"""A C statement that adds to its output, given expressions of inputs and output."""


def _window(op: Any, unit: Unit, label: str, image: tuple[int, ...]) -> str:
    """The table and the sizes of a window that slides from an input to an image of outputs."""
    table = axes_table(unit, label, (op.in_shape, image), op.window)
    return f"{table}, {len(op.window.size)}"


def _convolution(op: Convolve | KernelGrad, unit: Unit, label: str) -> Adding:
    grad, groups = isinstance(op, KernelGrad), op.window.groups
    image = op.in_shapes[1] if grad else op.out_shape
    name = "kernel_grad_f32" if grad else "convolve_f32"
    unit.use(name)
    sizes = f"{groups}, {op.in_shape[-1] // groups}, {math.prod(image[:-1])}, {image[-1]}"
    sizes = f"{_window(op, unit, label, image)}, {sizes}"
    return lambda x, other, y: f"rosler_{name}({x}, {sizes}, {other}, {y});"


def _unpool(op: Unpool, unit: Unit, label: str) -> Adding:
    unit.use("pool_back_f32")
    outputs = math.prod(op.in_shapes[1][:-1])
    sizes = f"{_window(op, unit, label, op.in_shapes[1])}, {op.in_shape[-1]}, {outputs}, 0.0f"
    return lambda x, d, y: f"rosler_pool_back_f32({x}, {sizes}, {d}, {y});"


def _scatter(op: Scatter, unit: Unit, label: str) -> Adding:
    unit.use("scatter_rows_f32")
    sizes = f"{op.in_shapes[1][0]}, {op.in_shapes[1][1]}, {op.size}"
    return lambda ids, rows, y: f"rosler_scatter_rows_f32({ids}, {rows}, {sizes}, {y});"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Outer(Op):
    """``y_ij = sum_t x_ti w_tj``, each read with strides ``(t, i)`` and ``(t, j)``."""

    strides: tuple[tuple[int, int], tuple[int, int]]
    length: int


def _outer(op: Outer, unit: Unit, label: str) -> Adding:
    unit.use("outer_sum_f32")
    (m, n), (x, w) = op.out_shape, op.strides
    sizes = f"{op.length}, {m}, {n}, {x[0]}, {x[1]}, {w[0]}, {w[1]}"
    return lambda x, w, y: f"rosler_outer_sum_f32({x}, {w}, {sizes}, {y});"


ADD: dict[type[Op], Callable[[Any, Unit, str], Adding]] = {
    Convolve: _convolution,
    KernelGrad: _convolution,
    Unpool: _unpool,
    Scatter: _scatter,
    Outer: _outer,
}
"""Each operation that adds to what is there."""


def gradient_step(op: Op, unit: Unit, label: str) -> Step:
    """A step of one of these operations."""
    add, size = ADD[type(op)](op, unit, label), 4 * count(op.out_shape)

    def call(x: str, other: str, y: str, _: str) -> str:
        return f"memset({y}, 0, {size}); {add(x, other, y)}"

    return Step(call, size)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Accumulate(Op):
    """Adds to what is at ``g + offset`` a value, or what an operation would make."""

    made_by: Op | None
    offset: int


def accumulate_step(op: Accumulate, unit: Unit, label: str) -> Step:
    """A step of no output of its own."""
    to = f"(g + {op.offset})"
    if op.made_by is not None:
        add = ADD[type(op.made_by)](op.made_by, unit, label)
        return Step(lambda x, other, *_: add(x, other, to), 0)
    unit.use("add_f32")
    size = count(op.in_shape)
    return Step(lambda x, *_: f"rosler_add_f32({x}, {size}, 1.0f, {to});", 0)


def with_numbers(graph: Graph) -> Graph:
    """A graph whose maps read arrays of one number, as derivatives have them, as that number."""
    numbers: dict[float, int] = {}
    constants = dict(graph.constants)
    free = max([*constants, *graph.dtypes()]) + 1

    def plain(op: Op) -> Op:
        if not isinstance(op, Map) or len(op.inputs) < 2:
            return op
        inputs, shapes = list(op.inputs), list(op.in_shapes)
        for i, (value, shape) in enumerate(zip(op.inputs, op.in_shapes, strict=True)):
            held = graph.constants.get(value)
            whole = op.out_shape in (*shapes[:i], *shapes[i + 1 :])  # of another operand
            if held is None or count(shape) < 2 or not whole or held.values.dtype != np.float32:
                continue
            first = held.values.flat[0]
            if (held.values == first).all():
                inputs[i] = numbers.setdefault(float(first), free + len(numbers))
                shapes[i] = (1,) * len(op.out_shape)
                constants[inputs[i]] = Weight("constant", np.full((), first, np.float32))
        return dataclasses.replace(op, inputs=tuple(inputs), in_shapes=tuple(shapes))

    return dataclasses.replace(graph, ops=tuple(map(plain, graph.ops)), constants=constants)


def accumulating(graph: Graph) -> Graph:
    """A graph that adds its outputs, but the last, to those of others as soon as they are made."""
    graph = with_numbers(graph)
    *gradients, last = graph.outputs
    producers = graph.producers()
    uses = Counter(v for op in graph.ops for v in op.inputs)
    uses.update(v.id for v in graph.outputs)
    after: dict[int, list[Accumulate]] = {}
    free = max([*graph.constants, *graph.dtypes()]) + 1

    def add(value: int, size: int, offset: int) -> None:
        """Accumulates a value; of a sum that nothing else reads, both parts."""
        nonlocal free
        made = producers.get(value)
        alone = made is not None and uses[value] == 1
        if made is None and not graph.constants[value].values.any():
            return
        plus = isinstance(made, Map) and made.function == "add" and alone
        if plus and all(count(shape) == size for shape in made.in_shapes):  # type: ignore[union-attr]
            for part in made.inputs:  # type: ignore[union-attr]
                add(part, size, offset)
            return
        whole = None if made is None or not alone else _outer_of(made, producers) or made
        whole = whole if type(whole) in ADD else None
        inputs, shapes = (whole.inputs, whole.in_shapes) if whole else ((value,), ((size,),))
        new = Accumulate(
            name=f"gradient{free}", inputs=inputs, outputs=(free,), in_shapes=shapes,
            out_shapes=((0,),), made_by=whole, offset=offset,
        )  # fmt: skip
        after.setdefault(made.output if made else -1, []).append(new)
        free += 1

    offset = 0
    for value in gradients:
        add(value.id, count(value.shape), offset)
        offset += count(value.shape)
    ops: list[Op] = [*after.get(-1, ())]
    for op in graph.ops:
        ops += [op, *after.get(op.output, ())]
    wanted, kept = {last.id}, list[Op]()
    for op in reversed(ops):
        if isinstance(op, Accumulate) or wanted.intersection(op.outputs):
            kept.append(op)
            wanted.update(op.inputs)
    constants = {k: w for k, w in graph.constants.items() if k in wanted}
    return dataclasses.replace(
        graph, ops=tuple(reversed(kept)), outputs=(last,), constants=constants
    )


def _outer_of(op: Op, producers: Any) -> Outer | None:
    """A product of two matrices, itself and they transposed or not, as one operation."""
    turned = _transposed(op)
    product = producers.get(op.inputs[0]) if turned else op
    if not isinstance(product, MatMul) or product.in_shape[0] != 1:
        return None
    (_, m, k), n = product.in_shape, product.out_shape[-1]
    x, w = product.inputs
    read: list[tuple[int, tuple[int, int]]] = []
    for value, strides, sizes in (
        (x, (1, k), (m, k)),
        (w, (1, k) if product.transpose else (n, 1), (n, k) if product.transpose else (k, n)),
    ):
        before = producers.get(value)
        if before is not None and _transposed(before) and before.out_shape == sizes:
            # What lay (a, b) was (b, a) before it was turned.
            value, strides = before.inputs[0], (sizes[0], 1) if strides[0] == 1 else (1, sizes[0])
        read.append((value, strides))
    if turned:
        read, m, n = read[::-1], n, m
    flat = [(k * m,), (k * n,)]
    return Outer(
        name=op.name, inputs=tuple(v for v, _ in read), outputs=op.outputs,
        in_shapes=tuple(flat), out_shapes=((m, n),), strides=(read[0][1], read[1][1]), length=k,
    )  # fmt: skip


def _transposed(op: Op) -> bool:
    return isinstance(op, Transpose) and op.axes == (1, 0)
