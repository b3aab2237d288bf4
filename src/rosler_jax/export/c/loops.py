"""Loops over axes in C: axes that lie one in the other become one, the rest are nested."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rosler_jax.graph.weight import Shape


class Axis(NamedTuple):
    """An axis to loop over: its size, and how far apart its positions lie in each array."""

    size: int
    strides: tuple[int, ...]


def strides_of(shape: Shape) -> tuple[int, ...]:
    """How far apart the positions of each axis lie, row-major.

    Example:
      >>> strides_of((2, 3, 4))
      (12, 4, 1)
    """
    return tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))


def dense_strides(shape: Shape, out_shape: Shape) -> tuple[int, ...]:
    """The strides of an array broadcast to a shape: 0 where it has one position.

    Example:
      >>> dense_strides((3, 1), (2, 3, 4))
      (0, 1, 0)
    """
    padded = (1,) * (len(out_shape) - len(shape)) + tuple(shape)[-len(out_shape) or len(shape) :]
    return tuple(0 if n == 1 else s for n, s in zip(padded, strides_of(padded), strict=True))[
        : len(out_shape)
    ]


def merged(shape: Shape, strides: Sequence[Sequence[int]]) -> list[Axis]:
    """The fewest axes that visit a shape in order, given the strides of each array; at least one.

    Example:
      >>> merged((2, 3, 4), [(12, 4, 1), (0, 0, 1)])
      [Axis(size=6, strides=(4, 0)), Axis(size=4, strides=(1, 1))]
    """
    axes: list[Axis] = []
    for k, size in enumerate(shape):
        steps = tuple(s[k] for s in strides)
        if size == 1:
            continue
        before = axes[-1] if axes else None
        if before and all(b == s * size for b, s in zip(before.strides, steps, strict=True)):
            axes[-1] = Axis(before.size * size, steps)
        else:
            axes.append(Axis(size, steps))
    return axes or [Axis(1, tuple(0 for _ in strides))]


def loops(axes: Sequence[Axis], letter: str = "i") -> list[tuple[str, int]]:
    """Variables and counts of nested loops over axes."""
    names = [letter] if len(axes) == 1 else [f"{letter}{k}" for k in range(len(axes))]
    return [(name, axis.size) for name, axis in zip(names, axes, strict=True)]


def offset(names: Sequence[str], strides: Sequence[int]) -> str:
    """C expression of a position.

    Example:
      >>> offset(["i", "j", "k"], [12, 0, 1])
      'i * 12 + k'
    """
    pairs = zip(names, strides, strict=True)
    parts = [name if s == 1 else f"{name} * {s}" for name, s in pairs if s]
    return " + ".join(parts) or "0"


def nested(counted: Sequence[tuple[str, int | str]], body: Sequence[str]) -> list[str]:
    r"""Lines of C: one loop in the other, within them the body.

    Example:
      >>> print("\n".join(nested([("i", 3)], ["*y++ = 0;"])))
          for (i = 0; i < 3; ++i) {
              *y++ = 0;
          }
    """
    lines = list(body)
    for variable, count in reversed(counted):
        head = f"for ({variable} = 0; {variable} < {count}; ++{variable}) {{"
        lines = [head, *(f"    {line}" for line in lines), "}"]
    return [f"    {line}" for line in lines]


def inside(counted: Sequence[tuple[str, int | str]], body: Sequence[str]) -> list[str]:
    """The same for within other loops, which indent it."""
    return [line[4:] for line in nested(counted, body)]


def declared(counted: Sequence[tuple[str, int | str]]) -> list[str]:
    """The line that declares loop variables, if there are any."""
    return [f"    int {', '.join(name for name, _ in counted)};"] if counted else []


def function(signature: str, *lines: str) -> str:
    """A static function, its name open."""
    return "\n".join([f"static void @NAME@({signature})", "{", *lines, "}"])


def over(count: int, body: str, variable: str = "v") -> str:
    """A statement for each of so many rows."""
    if count == 1 or not body:
        return body
    head = f"for ({variable} = 0; {variable} < {count}; ++{variable})"
    return f"{{ int {variable}; {head} {{ {body} }} }}"


def row(pointer: str, count: int, size: int, variable: str = "v") -> str:
    """The expression of a row of so many; the array itself if there is one."""
    return pointer if count == 1 or not pointer else f"({pointer}) + {variable} * {size}"
