"""What passes over a graph share: who reads what, what is left out, new numbers for values."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rosler_jax.graph.graph import Graph, map_weights
from rosler_jax.graph.kinds import Op, Reduce, Scan
from rosler_jax.graph.weight import Shape, Weight


class Known:
    """A graph as a pass looks at it, changed operation by operation."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.ops: dict[int, Op] = {op.output: op for op in graph.ops}
        self.constants = dict(graph.constants)
        self.aliases: dict[int, int] = {}
        self.uses = Counter(v for op in graph.ops for v in op.inputs)
        self.uses.update(value.id for value in graph.outputs)

    @functools.cached_property
    def reduced(self) -> set[Shape]:
        """Shapes that something reduces along the last axis."""
        reductions = (op for op in self.graph.ops if isinstance(op, Reduce))
        return {op.in_shape for op in reductions if op.axes == (len(op.in_shape) - 1,)}

    def scalar(self, value: int) -> float | None:
        """The number that all entries of a constant are; None for anything else."""
        if value not in self.constants:
            return None
        values = self.constants[value].values
        same = values.size and values.dtype.kind == "f" and (values == values.flat[0]).all()
        return float(values.flat[0]) if same else None

    def only(self, value: int, kinds: type[Op] | tuple[type[Op], ...]) -> Op | None:
        """The operation of such a kind that makes a value which is read once; else None."""
        op = self.ops.get(value)
        return op if isinstance(op, kinds) and self.uses[value] == 1 else None

    def put(self, old: Op, new: Op) -> None:
        """A new operation in the place of one of the same output."""
        self.uses.subtract(old.inputs)
        self.uses.update(new.inputs)
        self.ops[old.output] = new

    def alias(self, op: Op, value: int) -> None:
        """Whoever reads an operation's output reads another value instead."""
        self.aliases[op.output] = self.aliases.get(value, value)

    def done(self) -> Graph:
        """The graph, without what nothing reads."""
        to = self.aliases
        ops: Iterable[Op] = self.ops.values()
        if to:
            ops = [
                dataclasses.replace(op, inputs=tuple(to.get(v, v) for v in op.inputs)) for op in ops
            ]
        outputs = tuple(v._replace(id=to.get(v.id, v.id)) for v in self.graph.outputs)
        return pruned(dataclasses.replace(
            self.graph, ops=tuple(ops), constants=self.constants, outputs=outputs
        ))  # fmt: skip


def each(*passes: Callable[[Known, Op], None], backwards: bool = False) -> Callable[[Graph], Graph]:
    """A pass that looks at every operation in order, or from the last one on, by each function."""

    def over(graph: Graph) -> Graph:
        for change in passes:
            known = Known(graph)
            for op in reversed(graph.ops) if backwards else graph.ops:
                change(known, known.ops[op.output])
            graph = known.done()
        return graph

    return over


def pruned(graph: Graph) -> Graph:
    """Without operations and constants that no output needs; each after what it reads."""
    wanted = {value.id for value in graph.outputs}
    producers = graph.producers()
    order: list[Op] = []
    done: set[int] = set()
    stack = [producers[v] for v in reversed([v.id for v in graph.outputs]) if v in producers]
    while stack:
        op = stack[-1]
        before = [producers[v] for v in op.inputs if v in producers]
        missing = [p for p in before if p.output not in done]
        if missing and op.output not in done:
            stack += reversed(missing)
            continue
        stack.pop()
        if op.output not in done:
            done.add(op.output)
            order.append(op)
            wanted.update(op.inputs)
    kept = {k: w for k, w in graph.constants.items() if k in wanted}
    return dataclasses.replace(graph, ops=tuple(order), constants=kept)


def renumbered(graph: Graph) -> Graph:
    """Values counted from 0: inputs, constants, then results in order."""
    new: dict[int, int] = {}

    def number(values: Iterable[int]) -> tuple[int, ...]:
        return tuple(new.setdefault(v, len(new)) for v in values)

    number(value.id for value in graph.inputs)
    number(graph.constants)
    ops = []
    for op in graph.ops:
        changed = dataclasses.replace(op, inputs=number(op.inputs), outputs=number(op.outputs))
        if isinstance(changed, Scan):
            changed = dataclasses.replace(changed, body=renumbered(changed.body))
        ops.append(changed)
    return dataclasses.replace(
        graph, ops=tuple(ops), constants={new[k]: w for k, w in graph.constants.items()},
        inputs=tuple(v._replace(id=new[v.id]) for v in graph.inputs),
        outputs=tuple(v._replace(id=new[v.id]) for v in graph.outputs),
    )  # fmt: skip


def named_apart(graph: Graph) -> Graph:
    """A name for every stored tensor: of two tensors of one name the second gets a number."""
    names: dict[int, str] = {}
    count: Counter[str] = Counter()

    def change(weight: Weight) -> Weight:
        key = id(weight.stored)
        if key not in names:
            count[weight.name] += 1
            n = count[weight.name]
            names[key] = weight.name if n == 1 else f"{weight.name}.{n}"
        same = names[key] == weight.name
        return weight if same else dataclasses.replace(weight, name=names[key])

    return map_weights(graph, change)


def trailing(constant: Weight, view: Sequence[int], out: Sequence[int]) -> np.ndarray | None:
    """A constant as numbers of the last axes of an operation's shape, flat; None if it is not."""
    view = tuple(view)
    lead = len(view)
    while lead > 0 and view[lead - 1] == out[lead - 1]:
        lead -= 1
    if any(n != 1 for n in view[:lead]):
        return None
    return constant.values.ravel()
