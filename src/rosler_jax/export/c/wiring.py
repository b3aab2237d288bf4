"""The statements of a C function that runs steps, each value at its place."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from rosler_jax.export.c.arena import Arena, Use, plan
from rosler_jax.export.c.unit import CTYPES, Step


@dataclasses.dataclass(frozen=True)
class Wiring:
    """Steps, and what they work on.

    Attributes:
      uses: the steps in order, and the values that each reads and writes.
      ctypes: C type of every value.
      outside: C expressions of what is not made here: inputs and constants.
      outputs: values that the caller has buffers for; any of them, several times too.
    """

    uses: Sequence[Use]
    ctypes: Mapping[int, str]
    outside: Mapping[int, str]
    outputs: Sequence[int]


def settled(wiring: Wiring, sizes: Mapping[int, int]) -> Wiring:
    """The same with copies where an output is an input, a constant, or another output.

    Args:
      wiring: of a program.
      sizes: bytes of the outputs.
    """
    uses, ctypes, outputs = list(wiring.uses), dict(wiring.ctypes), list[int]()
    for value in wiring.outputs:
        if value in wiring.outside or value in outputs:
            copy = max([*ctypes, *wiring.outside]) + 1
            uses.append(Use(copy_step(sizes[value], 0), (value,), (copy,)))
            ctypes[copy] = ctypes[value]
            value = copy
        outputs.append(value)
    return Wiring(uses, ctypes, wiring.outside, outputs)


def copy_step(size: int, start: int) -> Step:
    """A part of a value as it is, from byte ``start``: no code where it may lie where it is."""

    def call(x: str, y: str, _: str) -> str:
        source = x if start == 0 else f"(const unsigned char *){x} + {start}"
        return f"memcpy({y}, {source}, {size});"

    return Step(call, size, alias=start)


def statements(
    wiring: Wiring, names: Sequence[str], poison: int | None = None
) -> tuple[list[str], Arena]:
    """C statements that run the steps; ``a`` points to the arena.

    Args:
      wiring: whose outputs are all made by steps, once each.
      names: C expressions of the outputs' buffers.
      poison: for tests: a byte that is written over all memory of the arena that nobody needs,
        before every step.
    """
    arena = plan(wiring.uses, wiring.outputs)
    held = dict(wiring.outside)
    held |= {arena.roots[v][0]: y for v, y in zip(wiring.outputs, names, strict=True)}

    def at(value: int, const: str) -> str:
        root, start = arena.roots.get(value, (value, 0))
        ctype = wiring.ctypes[value]
        if root not in held:
            return f"({const}{ctype} *)(a + {arena.offsets[root] + start})"
        return f"({held[root]} + {start // CTYPES[ctype]})" if start else held[root]

    lines = []
    for i, (step, inputs, made) in enumerate(wiring.uses):
        if poison is not None:
            lines += [f"memset(a + {b}, {poison}, {e - b});" for b, e in arena.dead(i - 1)]
        if all(arena.roots[v][0] != v for v in made) and step.alias is not None:
            continue
        x, y = [at(v, "const ") for v in inputs], [at(v, "") for v in made]
        lines.append(step.call(*x, *y, f"(a + {arena.scratch[i]})"))
    return lines, arena


def unused(lines: Sequence[str], names: Sequence[str]) -> list[str]:
    """C statements for parameters that others do not use: compilers warn of them otherwise."""
    return [f"(void){name};" for name in names if not mentions(lines, name)]


def mentions(lines: Sequence[str], name: str) -> bool:
    """Whether C statements use a name."""
    return re.search(rf"\b{name}\b", "\n".join(lines)) is not None
