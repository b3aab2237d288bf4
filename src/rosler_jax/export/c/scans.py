"""Scans as C: a function of the body, called for each position."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from rosler_jax.export.c.arena import Arena, aligned
from rosler_jax.export.c.loops import function
from rosler_jax.export.c.unit import CTYPES, Step, Unit
from rosler_jax.export.c.wiring import Wiring, mentions, statements
from rosler_jax.graph.kinds import count


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
    x, y = ([f"{letter}{k}" for k in range(len(t))] for letter, t in zip("xy", types, strict=True))
    given = [f"const {c} *{name}" for c, name in zip(ctypes, x, strict=True)]
    wanted = [f"{c} *{name}" for c, name in zip(made, y, strict=True)]
    signature = ", ".join([*given, *wanted, "unsigned char *a"])
    body, arena = _body(unit, label, signature, (x, y), wire_body)
    sizes = [count(v.shape) * CTYPES[c] for v, c in zip(op.body.outputs, made, strict=True)]
    shared, n = op.shared, op.carries
    *rooms, room = itertools.accumulate(map(aligned, sizes[:n]), initial=0)
    states = list(zip(y[:n], x[shared : shared + n], rooms, sizes[:n], made[:n], strict=True))
    rows = [
        f"{name} + t * {count(shape[1:])}"
        for name, shape in (
            *zip(x[shared + n :], op.in_shapes[shared + n :], strict=True),
            *zip(y[n:], op.out_shapes[n:], strict=True),
        )
    ]
    sequences = len(x) - shared - n
    passed = [
        *x[:shared], *(f"(const {c} *)(a + {at})" for *_, at, _, c in states), *rows[:sequences],
        *y[:n], *rows[sequences:], f"a + {room}",
    ]  # fmt: skip
    last = op.length - 1
    way = f"t = {last}; t >= 0; --t" if op.reverse else f"t = 0; t < {op.length}; ++t"
    lines = [
        "    int t;",
        *(f"    memcpy({name}, {first}, {size});" for name, first, _, size, _ in states),
        f"    for ({way}) {{",
        *(f"        memcpy(a + {at}, {name}, {size});" for name, _, at, size, _ in states),
        f"        {body}({', '.join(passed)});",
        "    }",
    ]
    name = unit.function(f"rosler_{label}", function(signature, *lines))
    pairs = zip(op.out_shapes, made, strict=True)
    first, *more = [count(shape) * CTYPES[c] for shape, c in pairs]
    return Step(
        lambda *parts: f"{name}({', '.join(parts)});", first, room + arena.bytes,
        more_out_bytes=tuple(more),
    )  # fmt: skip


def _body(
    unit: Unit, label: str, signature: str, names: tuple[list[str], list[str]],
    wire_body: Callable[[Sequence[str]], Wiring],
) -> tuple[str, Arena]:  # fmt: skip
    """Adds the function of one position; gives its name, and what it needs of memory."""
    x, y = names
    lines, arena = statements(wire_body(x), y, unit.poison)
    unused = [f"(void){name};" for name in (*x, "a") if not mentions(lines, name)]
    text = function(signature, *(f"    {line}" for line in (*unused, *lines)))
    return unit.function(f"rosler_{label}_body", text), arena
