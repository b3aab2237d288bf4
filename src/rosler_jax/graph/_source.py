"""Which line of the user's program an equation came from."""

from __future__ import annotations

from typing import Any


class TraceError(ValueError):
    """A model that cannot become a graph: says what, where it is written, and what would do.

    Example:
      >>> import jax.numpy as jnp
      >>> from rosler_jax.graph import trace
      >>> trace(jnp.sort, jnp.ones((1, 4)))
      Traceback (most recent call last):
      rosler_jax.graph._source.TraceError: sort, from ...: it has no operation; do it outside of the
      model
    """


class UnlocatedError(TraceError):
    """One whose line JAX does not know: within a function of its own that it traced before."""

    def __init__(self, primitive: str, why: str):
        super().__init__(f"{primitive}: {why}")
        self.primitive, self.why = primitive, why


def line_of(eqn: Any) -> str:
    """``file.py:12 (function)`` of the user's frame, or nothing where JAX does not know it."""
    try:
        from jax._src import source_info_util

        return str(source_info_util.summarize(eqn.source_info))
    except (ImportError, AttributeError):
        return ""


def refuse(eqn: Any, why: str, primitive: str = "") -> TraceError:
    """The error for an equation (or for a primitive within it)."""
    line, primitive = line_of(eqn), primitive or eqn.primitive.name
    if not line:
        return UnlocatedError(primitive, why)
    return TraceError(f"{primitive}, from {line}: {why}")
