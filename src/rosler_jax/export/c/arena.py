"""Where the buffers of a chain of steps lie in one arena: inputs and outputs at its two ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rosler_jax.export.c.unit import Step

ALIGN = 8


class Place(NamedTuple):
    """Offsets in bytes of a step's buffers; None for a buffer of the caller."""

    x: int | None
    y: int | None
    scratch: int


class Arena(NamedTuple):
    """The size of the arena, and the place of every step's buffers."""

    bytes: int
    places: tuple[Place, ...]


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def plan(steps: Sequence[Step]) -> Arena:
    """Places the buffers: the first input and the last output belong to the caller.

    Args:
      steps: in order, each reading what the one before wrote.

    Example:
      >>> f = lambda x, y, scratch: ""
      >>> plan([Step(f, 100), Step(f, 40, scratch_bytes=8), Step(f, 4)])
      Arena(bytes=152, places=(Place(x=None, y=0, scratch=104), Place(x=0, y=112, scratch=104), \
Place(x=112, y=None, scratch=0)))
    """
    sizes = [0, *(_aligned(step.out_bytes) for step in steps[:-1]), 0]  # 0: the caller's
    needs = [
        (x if step.in_place and 0 < i < len(steps) - 1 else x + y) + _aligned(step.scratch_bytes)
        for i, (step, x, y) in enumerate(zip(steps, sizes, sizes[1:], strict=False))
    ]
    total = max([*needs, ALIGN])
    places, x, low = [], None, True  # low: whether the next output goes to the low end
    for i, step in enumerate(steps):
        last = i == len(steps) - 1
        y: int | None
        if last:
            y = None
        elif step.in_place and x is not None:
            y, low = x, not low
        else:
            y = 0 if low else total - sizes[i + 1]
        ends = [(p, p + size) for p, size in ((x, sizes[i]), (y, sizes[i + 1])) if p is not None]
        scratch = max([stop for start, stop in ends if start == 0], default=0)
        places.append(Place(x, y, scratch))
        x, low = y, not low
    return Arena(total, tuple(places))
