"""A graph as steps in C: of the model, and of the bodies of its scans."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from rosler_jax.export.c.arena import Use
from rosler_jax.export.c.floats import EMIT
from rosler_jax.export.c.maps import CTYPE, Fused, fuse, fused_step
from rosler_jax.export.c.unit import CTYPES, Step, Unit
from rosler_jax.export.c.wiring import Wiring, settled, statements
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


def scan_step(
    op: Any, unit: Unit, label: str, types: tuple[Sequence[str], Sequence[str]],
    wire_body: Callable[[Sequence[str]], Wiring],
) -> Step:  # fmt: skip
    """A function that calls another, the body, for each position; the state is copied for it.

    Args:
      op: a scan in floats or integers.
      unit: of the file.
      label: for names.
      types: C types of its inputs and outputs.
      wire_body: the steps of the body, given names of its inputs.
    """
    ctypes, made = types
    x = [f"x{k}" for k in range(len(ctypes))]
    y = [f"y{k}" for k in range(len(made))]
    lines, arena = statements(wire_body(x), y, unit.poison)
    given = [f"const {c} *{name}" for c, name in zip(ctypes, x, strict=True)]
    wanted = [f"{c} *{name}" for c, name in zip(made, y, strict=True)]
    signature = ", ".join([*given, *wanted, "unsigned char *a"])
    unused = [f"(void){name};" for name in (*x, "a") if not mentions(lines, name)]
    inner = unit.function(
        f"rosler_{label}_body",
        "\n".join(
            [f"static void @NAME@({signature})", "{", *(f"    {s}" for s in (*unused, *lines)), "}"]
        ),
    )
    shared, carries = op.shared, op.carries
    sizes = [count(v.shape) * CTYPES[c] for v, c in zip(op.body.outputs, made, strict=True)]
    states, room = list[str](), 0
    begin, before, passed = list[str](), list[str](), [*x[:shared]]
    for k in range(carries):
        state = f"({made[k]} *)(a + {room})"
        states.append(state)
        begin.append(f"memcpy({y[k]}, {x[shared + k]}, {sizes[k]});")
        before.append(f"memcpy({state}, {y[k]}, {sizes[k]});")
        passed.append(f"(const {made[k]} *)(a + {room})")
        room += -(-sizes[k] // 8) * 8
    for k in range(shared + carries, len(x)):
        each = count(op.in_shapes[k][1:])
        passed.append(f"{x[k]} + t * {each}")
    passed += y[:carries]
    passed += [f"{y[k]} + t * {count(op.out_shapes[k][1:])}" for k in range(carries, len(y))]
    call = f"{inner}({', '.join([*passed, f'a + {room}'])});"
    head = f"for (t = {op.length - 1}; t >= 0; --t) {{" if op.reverse else (
        f"for (t = 0; t < {op.length}; ++t) {{"
    )  # fmt: skip
    loop = ["int t;", *begin, head, *(f"    {s}" for s in (*before, call)), "}"]
    outer = unit.function(
        f"rosler_{label}",
        "\n".join([f"static void @NAME@({signature})", "{", *(f"    {s}" for s in loop), "}"]),
    )
    pairs = zip(op.out_shapes, made, strict=True)
    first, *more = [count(shape) * CTYPES[c] for shape, c in pairs]
    return Step(
        lambda *parts: f"{outer}({', '.join(parts)});", first, room + arena.bytes,
        more_out_bytes=tuple(more),
    )  # fmt: skip


def mentions(lines: Sequence[str], name: str) -> bool:
    """Whether C statements use a name."""
    return re.search(rf"\b{name}\b", "\n".join(lines)) is not None
