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
    spans = _spans(nodes, first)
    order = sorted(range(len(spans.found)), key=lambda i: spans.found[i].first)
    total, places = place([spans.found[i] for i in order])
    offsets = dict(zip(order, places, strict=True))

    def memory(kind: str, i: int) -> str:
        return f"(a + {offsets[spans.keys[(kind, i)]]})"

    def at(kind: str, i: int, const: str = "") -> str:
        return f"({const}{element} *){memory(kind, i)}"

    wires = [
        Wires(
            x=at("y", i - 1, "const ") if i else "x",
            y=at("y", i),
            saved=memory("saved", i),
            dy=at("d", i) if i >= first else "",
            dx=at("d", i - 1) if i > first else "",
            scratch=memory("forward", i),
            back_scratch=memory("backward", i),
            pinned=memory("pinned", i),
        )
        for i in range(len(nodes))
    ]
    last = len(nodes) - 1
    return Layout(max(total, ALIGN), wires, at("y", last), at("d", last))


@dataclasses.dataclass
class _Spans:
    """When each tensor is needed, by kind and node; some are the same memory."""

    found: list[Span] = dataclasses.field(default_factory=list)
    keys: dict[tuple[str, int], int] = dataclasses.field(default_factory=dict)

    def add(self, kind: str, node: int, size: int, start: int, stop: int) -> None:
        """One of its own."""
        self.keys[(kind, node)] = len(self.found)
        self.found.append(Span(aligned(size), start, stop))

    def share(self, kind: str, node: int, with_node: int, stop: int) -> None:
        """One that lies where another's does, which is then needed for so long at least."""
        index = self.keys[(kind, with_node)]
        self.keys[(kind, node)] = index
        span = self.found[index]
        self.found[index] = span._replace(last=max(span.last, stop))


def _spans(nodes: Sequence[Node], first: int) -> _Spans:
    """Node i runs forward at ``i + 1``, backward as many events before the end as it is forward."""
    count, spans = len(nodes), _Spans()
    end, loss = 2 * count + 1, count + 1
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
            spans.share("y", i, i - 1, until)
        else:
            spans.add("y", i, node.out_bytes, i + 1, until)
        spans.add("saved", i, node.saved_bytes, i + 1, end - i if trains else i + 1)
        spans.add("forward", i, node.forward_scratch, i + 1, i + 1)
        spans.add("backward", i, node.backward_scratch if trains else 0, end - i, end - i)
        spans.add("pinned", i, node.pinned_bytes, 0, end)
    spans.add("d", count - 1, nodes[-1].error_bytes, loss, end - count + 1)
    for i in range(count - 1, first, -1):
        if nodes[i].in_place or nodes[i].backward is None:
            spans.share("d", i - 1, i, end - i + 1)
        else:
            spans.add("d", i - 1, nodes[i - 1].error_bytes, end - i, end - i + 1)
    return spans
