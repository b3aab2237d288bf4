"""Where the values of a program lie in one arena: each has a place while it is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from rosler_jax.export.c.unit import Step

ALIGN = 8
_ENDLESS = 2**62


class Use(NamedTuple):
    """A step of a program, and the values that it reads and writes."""

    step: Step
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Span(NamedTuple):
    """A piece of memory: its bytes, and the first and last step that it is needed at."""

    bytes: int
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Arena:
    """Where everything lies.

    Attributes:
      bytes: of the arena.
      least: bytes of the largest set that is needed together: no plan takes fewer.
      roots: for each value that a step makes, the value whose memory it shares (itself, if none),
        and bytes from there.
      offsets: of the roots that lie in the arena; the others are the caller's.
      scratch: offset of each step's scratch memory.
      spans: of all that lies in the arena, in the order of ``places``.
      places: offsets of the spans.
    """

    bytes: int
    least: int
    roots: Mapping[int, tuple[int, int]]
    offsets: Mapping[int, int]
    scratch: tuple[int, ...]
    spans: tuple[Span, ...]
    places: tuple[int, ...]

    def dead(self, step: int) -> list[tuple[int, int]]:
        """Bytes ``(start, stop)`` that nobody needs between a step and the next."""
        live = sorted(
            (offset, offset + span.bytes)
            for span, offset in zip(self.spans, self.places, strict=True)
            if span.first <= step < span.last
        )
        edges = [0, *(edge for pair in live for edge in pair), self.bytes]
        pairs = zip(edges[::2], edges[1::2], strict=True)
        return [(start, stop) for start, stop in pairs if start < stop]


def aligned(size: int) -> int:
    """Bytes up to the next multiple of eight."""
    return -(-size // ALIGN) * ALIGN


def chain(steps: Sequence[Step]) -> list[Use]:
    """Steps that each read what the one before wrote: value 0 goes in."""
    return [Use(step, (i,), (i + 1,)) for i, step in enumerate(steps)]


def plan(uses: Sequence[Use], outputs: Collection[int]) -> Arena:
    """Gives every value a place; what no step makes, and outputs, belong to the caller.

    A value lies where an input of its step lies, if the step may work in place and nobody else
    needs that input; a step that only renames its input then takes no code.

    Args:
      uses: the steps in order.
      outputs: values that the caller has buffers for; each is made by a step.

    Example:
      >>> steps = [Step(str, 100), Step(str, 40, scratch_bytes=8), Step(str, 4)]
      >>> arena = plan(chain(steps), [3])
      >>> arena.bytes, arena.offsets, arena.scratch
      (152, {1: 0, 2: 112}, (0, 104, 0))
    """
    roots, sizes, first, last = _group(uses, outputs)
    whole = {roots[value][0] for value in outputs}
    keys = [root for root in sizes if root not in whole]
    spans = [Span(aligned(sizes[root]), first[root], last[root]) for root in keys]
    works = [i for i, use in enumerate(uses) if use.step.scratch_bytes]
    spans += [Span(aligned(uses[i].step.scratch_bytes), i, i) for i in works]
    total, places = place(spans)
    scratch = [0] * len(uses)
    for i, offset in zip(works, places[len(keys) :], strict=True):
        scratch[i] = offset
    return Arena(
        max(total, ALIGN), max(least(spans), ALIGN), roots,
        dict(zip(keys, places, strict=False)), tuple(scratch), tuple(spans), tuple(places),
    )  # fmt: skip


class _Groups(NamedTuple):
    """Values that lie in the same memory; of each group its bytes, its first and last step."""

    roots: dict[int, tuple[int, int]]
    sizes: dict[int, int]
    first: dict[int, int]
    last: dict[int, int]


def _group(uses: Sequence[Use], outputs: Collection[int]) -> _Groups:
    needed = {value: i for i, use in enumerate(uses) for value in (*use.outputs, *use.inputs)}
    needed |= dict.fromkeys(outputs, len(uses))
    own = {v: n for use in uses for v, n in zip(use.outputs, use.step.sizes, strict=True)}
    groups = _Groups({}, {}, {}, {})
    roots, sizes, first, last = groups
    for i, (step, inputs, made) in enumerate(uses):
        places = [roots.get(x, (x, 0)) for x in inputs]
        for k, value in enumerate(made):
            root, offset = value, 0
            if step.alias is not None and value not in outputs:
                root, offset = places[0][0], places[0][1] + step.alias
            elif step.in_place and k == 0:
                for x, (other, at) in zip(inputs, places, strict=True):
                    # Nobody reads it later, nor a part of it now.
                    free = at == 0 and sizes.get(other) == own[value] and last[other] <= i
                    if free and all(
                        place[0] != other or (place[1] == 0 and own[z] == own[x])
                        for z, place in zip(inputs, places, strict=True)
                    ):
                        root = other
                        break
            roots[value] = root, offset
            if root == value:
                sizes[value], first[value] = own[value], i
            last[root] = max(last.get(root, i), needed[value])
    return groups


def least(spans: Sequence[Span]) -> int:
    """Bytes of the largest set of spans that are needed at the same step."""
    steps = {span.first for span in spans}
    return max((sum(s.bytes for s in spans if s.first <= i <= s.last) for i in steps), default=0)


def place(spans: Sequence[Span]) -> tuple[int, list[int]]:
    """Gives every span an offset so that none that are needed together overlap.

    For a chain the two ends of the arena in turn, which is the least; else the largest first, each
    at the lowest offset that is free for its time, or the best of a few other orders.

    Args:
      spans: the pieces, of whole multiples of eight bytes; in the order of their first steps.

    Returns:
      Bytes in all, and the offsets.

    Example:
      >>> place([Span(8, 0, 1), Span(16, 1, 2), Span(8, 2, 3)])
      (24, [0, 8, 0])
    """
    bound = least(spans)
    best = _two_ends(spans, bound)
    if best is not None:
        return bound, best
    total = None
    for order in _orders(spans):
        offsets = _first_fit(spans, order)
        taken = max(offset + span.bytes for offset, span in zip(offsets, spans, strict=True))
        if total is None or taken < total:
            total, best = taken, offsets
        if total == bound:
            break
    assert total is not None and best is not None
    return total, best


def _orders(spans: Sequence[Span]) -> Iterator[list[int]]:
    order = range(len(spans))
    yield sorted(order, key=lambda i: -spans[i].bytes)
    yield sorted(order, key=lambda i: -(spans[i].last - spans[i].first + 1) * spans[i].bytes)
    yield sorted(order, key=lambda i: (spans[i].first - spans[i].last, -spans[i].bytes))
    yield sorted(order, key=lambda i: (spans[i].first, -spans[i].bytes))


def _gaps(
    spans: Sequence[Span], placed: Mapping[int, int], i: int, total: int
) -> list[tuple[int, int]]:
    """Start and stop of what is free for span ``i`` and large enough, in order."""
    first, last, end = spans[i].first, spans[i].last, 0
    taken = sorted(
        (offset, offset + spans[k].bytes)
        for k, offset in placed.items()
        if spans[k].first <= last and first <= spans[k].last
    )
    gaps = []
    for start, stop in [*taken, (total, total)]:
        if start - end >= spans[i].bytes:
            gaps.append((end, start))
        end = max(end, stop)
    return gaps


def _first_fit(spans: Sequence[Span], order: Sequence[int]) -> list[int]:
    placed: dict[int, int] = {}
    for i in order:
        placed[i] = _gaps(spans, placed, i, _ENDLESS)[0][0]
    return [placed[i] for i in range(len(spans))]


def _two_ends(spans: Sequence[Span], total: int) -> list[int] | None:
    """In the order of time, low and high in turn, then short ones, low; None if it is too small."""
    placed: dict[int, int] = {}
    low = True
    for i in sorted(range(len(spans)), key=lambda i: (spans[i].last == spans[i].first, i)):
        gaps = _gaps(spans, placed, i, total)
        if not gaps:
            return None
        short = spans[i].first == spans[i].last
        placed[i] = gaps[0][0] if low or short else gaps[-1][1] - spans[i].bytes
        low = low if short else not low
    return [placed[i] for i in range(len(spans))]
