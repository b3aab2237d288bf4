"""A model cut where training begins: what comes before stays as it is, the rest changes."""

from __future__ import annotations

import dataclasses

from rosler_jax.export.c.arena import aligned
from rosler_jax.export.c.train.parts import names
from rosler_jax.export.c.unit import CTYPES, Step, Unit
from rosler_jax.export.c.wiring import Wiring, statements, unused
from rosler_jax.graph.graph import Graph, Value
from rosler_jax.graph.kinds import Op


def cut(graph: Graph, trained: frozenset[str]) -> tuple[Graph, list[Op]] | None:
    """What comes before all that trains, as a graph, and the operations from there on.

    Args:
      graph: of one input and one output.
      trained: names of the parameters that train.

    Returns:
      None if the operations are no chain, each of which reads nothing but what the one before made,
      or a tensor that trains is used twice.
    """
    moved: set[int] = {k for k, w in graph.constants.items() if w.name in trained}
    rest: list[Op] = []
    for op in graph.ops:
        if moved.intersection(op.inputs) or trained.intersection(names(op)):
            rest.append(op)
            moved.update(op.outputs)
    used = [name for op in rest for name in names(op) if name in trained]
    if not rest or len(rest[0].inputs) != 1 or len(graph.outputs) != 1 or len(graph.inputs) != 1:
        return None
    links = [*(op.output for op in rest), graph.outputs[0].id]
    chained = all(op.inputs == (link,) for op, link in zip(rest[1:], links, strict=False))
    if not chained or links[-1] != links[-2] or len(set(used)) != len(used):
        return None
    first = rest[0].inputs[0]
    if first in graph.constants:
        return None
    ops = tuple(op for op in graph.ops if op not in rest)
    value = Value(first, "", rest[0].in_shape, graph.dtypes()[first])
    return dataclasses.replace(graph, ops=ops, outputs=(value,)), rest


def frozen_step(unit: Unit, wiring: Wiring, ctypes: tuple[str, str], size: int) -> Step:
    """A function that runs what does not train.

    Args:
      unit: of the file.
      wiring: of the steps; the input is called ``x``.
      ctypes: of input and output.
      size: numbers in the output.
    """
    lines, arena = statements(wiring, ["y"], unit.poison)
    body = "\n".join(f"    {line}" for line in [*unused(lines, ("x", "a")), *lines])
    head = f"static void @NAME@(const {ctypes[0]} *x, {ctypes[1]} *y, unsigned char *a)"
    name = unit.function("rosler_train_frozen", f"{head}\n{{\n{body}\n}}")
    return Step(
        lambda x, y, a: f"{name}({x}, {y}, {a});", size * CTYPES[ctypes[1]], aligned(arena.bytes)
    )
