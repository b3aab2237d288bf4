"""A graph as steps in C: of the model, and of the bodies of its scans."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from rosler_jax.export.c.arena import Use
from rosler_jax.export.c.floats import EMIT
from rosler_jax.export.c.maps import Fused, fuse, fused_step
from rosler_jax.export.c.scans import scan_step
from rosler_jax.export.c.unit import CTYPE, CTYPES, Unit
from rosler_jax.export.c.wiring import Wiring, settled
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.kinds import Scan, count


def wire(graph: Graph, unit: Unit, names: Sequence[str], label: str = "layer") -> Wiring:
    """The steps of a graph in float32, and the values that they work on.

    Args:
      graph: the model, or a body.
      unit: of the file.
      names: C expressions of the inputs.
      label: what the names of functions and data begin with.

    Raises:
      ExportError: for an operation that C code does not have.
    """
    ctypes = {value: CTYPE[dtype] for value, dtype in graph.dtypes().items()}
    outside = {value.id: x for value, x in zip(graph.inputs, names, strict=True)}
    ops = fuse(graph)
    read = {value for op in ops for value in op.inputs} | {value.id for value in graph.outputs}
    for value, weight in graph.constants.items():
        if value in read:
            name = f"{label}_constant{value}"
            outside[value] = unit.array(ctypes[value], name, weight.values, "weights")
    uses = []
    for i, op in enumerate(ops):
        types = [ctypes[value] for value in op.inputs]
        name = f"{label}{i}"
        if isinstance(op, Fused):
            step = fused_step(op, unit, name, types)
        elif isinstance(op, Scan):
            inner = functools.partial(wire, op.body, unit, label=f"{name}_")
            made = [CTYPE[dtype] for dtype in op.dtypes]
            step = scan_step(op, unit, name, (types, made), inner)
        else:
            step = EMIT[type(op)](op, unit, name, types)
        uses.append(Use(step, op.inputs, op.outputs))
    sizes = {v.id: count(v.shape) * CTYPES[CTYPE[v.dtype]] for v in graph.outputs}
    return settled(Wiring(uses, ctypes, outside, [v.id for v in graph.outputs]), sizes)
