"""Where the tensors of a training step lie: each has a place while it is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rosler_jax.export.c.arena import ALIGN, Span, aligned, place
from rosler_jax.export.c.unit import Step


class Wires(NamedTuple):
    """C expressions of what a node's statements work on.

    Attributes:
      x, y: input and output.
      saved: what forward leaves for backward beside them.
      dy: error of the output.
      dx: error of the input, to be written; the same as ``dy`` in place; "" if nobody wants it.
      scratch, back_scratch: working memory of the forward and of the backward statement.
      pinned: memory of the whole call, filled before its examples.
    """

    x: str
    y: str
    saved: str
    dy: str
    dx: str
    scratch: str
    back_scratch: str
    pinned: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """One operation of the training program.

    Attributes:
      forward: C statement.
      backward: C statement; None if it only hands the error on.
      out_bytes: of its output.
      error_bytes: of its output's error.
      keeps_input, keeps_output: what backward reads.
      in_place: whether the output may lie where the input does, and the errors too.
      saved_bytes: see :attr:`Wires.saved`.
      forward_scratch, backward_scratch: bytes.
      begin: statement once before the examples of a call.
      pinned_bytes: memory that it fills, for the whole call.
    """

    forward: Callable[[Wires], str]
    backward: Callable[[Wires], str] | None
    out_bytes: int
    error_bytes: int = 0
    keeps_input: bool = False
    keeps_output: bool = False
    in_place: bool = False
    saved_bytes: int = 0
    forward_scratch: int = 0
    backward_scratch: int = 0
    begin: Callable[[Wires], str] | None = None
    pinned_bytes: int = 0


def frozen(step: Step) -> Node:
    """A step of inference, before anything that trains."""
    return Node(
        forward=lambda w: step.call(w.x, w.y, w.scratch),
        backward=None,
        out_bytes=step.out_bytes,
        error_bytes=step.out_bytes,
        in_place=step.in_place,
        forward_scratch=step.scratch_bytes,
    )


class Layout(NamedTuple):
    """The places of a training program.

    Attributes:
      bytes: of the arena.
      wires: of every node; ``x`` of the first is ``"x"``, the caller's.
      output, error: expressions of the last output and of its error.
    """

    bytes: int
    wires: list[Wires]
    output: str
    error: str


def lay_out(nodes: Sequence[Node], first: int, element: str) -> Layout:
    """Places all tensors of one example's forward and backward pass.

    Args:
      nodes: in order.
      first: index of the first node with something to train; backward goes down to it.
      element: C type of activations and errors.
    """
    count = len(nodes)
    end = 2 * count + 1  # the last event; node i runs forward at i + 1, backward at end - i
    loss = count + 1
    keys: dict[tuple[str, int], int] = {}
    spans: list[Span] = []

    def add(key: tuple[str, int], size: int, start: int, stop: int) -> None:
        keys[key] = len(spans)
        spans.append(Span(aligned(size), start, stop))

    for i, node in enumerate(nodes):
        trains = i >= first
        until = i + 2 if i + 1 < count else loss
        if trains and node.keeps_output:
            until = max(until, end - i)
        if first <= i + 1 < count and nodes[i + 1].keeps_input:
            until = max(until, end - i - 1)
        # An output that backward does not read may be overwritten; the caller's input never.
        free = i > 0 and not (nodes[i - 1].keeps_output and i - 1 >= first)
        if node.in_place and free and not (trains and node.keeps_input):
            index = keys[("y", i - 1)]
            keys[("y", i)] = index
            span = spans[index]
            spans[index] = Span(span.bytes, span.first, max(span.last, until))
        else:
            add(("y", i), node.out_bytes, i + 1, until)
        add(("saved", i), node.saved_bytes, i + 1, end - i if trains else i + 1)
        add(("forward", i), node.forward_scratch, i + 1, i + 1)
        add(("backward", i), node.backward_scratch if trains else 0, end - i, end - i)
        add(("pinned", i), node.pinned_bytes, 0, end)
    add(("d", count - 1), nodes[-1].error_bytes, loss, end - count + 1)
    for i in range(count - 1, first, -1):
        if nodes[i].in_place or nodes[i].backward is None:
            index = keys[("d", i)]
            keys[("d", i - 1)] = index
            spans[index] = spans[index]._replace(last=end - i + 1)
        else:
            add(("d", i - 1), nodes[i - 1].error_bytes, end - i, end - i + 1)
    order = sorted(range(len(spans)), key=lambda i: spans[i].first)
    total, places = place([spans[i] for i in order])
    offsets = dict(zip(order, places, strict=True))

    def at(kind: str, i: int) -> str:
        return f"({element} *)(a + {offsets[keys[(kind, i)]]})"

    def memory(kind: str, i: int) -> str:
        return f"(a + {offsets[keys[(kind, i)]]})"

    wires = [
        Wires(
            x=f"(const {element} *)(a + {offsets[keys[('y', i - 1)]]})" if i else "x",
            y=at("y", i),
            saved=memory("saved", i),
            dy=at("d", i) if i >= first else "",
            dx=at("d", i - 1) if i > first else "",
            scratch=memory("forward", i),
            back_scratch=memory("backward", i),
            pinned=memory("pinned", i),
        )
        for i in range(count)
    ]
    return Layout(max(total, ALIGN), wires, at("y", count - 1), at("d", count - 1))
