"""Which line of the user's program an equation came from."""

from __future__ import annotations

from typing import Any


class TraceError(ValueError):
    """A model that cannot become a graph: says what, where it is written, and what would do."""


def line_of(eqn: Any) -> str:
    """``file.py:12 (function)`` of the user's frame, or nothing where JAX does not know it."""
    try:
        from jax._src import source_info_util

        return str(source_info_util.summarize(eqn.source_info))
    except (ImportError, AttributeError):
        return "an unknown line"


def refuse(eqn: Any, why: str) -> TraceError:
    """The error for an equation."""
    return TraceError(f"{eqn.primitive.name}, from {line_of(eqn)}: {why}")
