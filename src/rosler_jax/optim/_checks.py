"""Checks of options on which shapes depend."""

from __future__ import annotations

import operator
from typing import Any

import jax


def static_int(name: str, value: Any, least: int) -> int:
    """Returns ``value`` as a Python int of at least ``least``.

    Raises:
      TypeError: if it is no int. A ``jax.Array`` is refused even when it is concrete: whether it is
        would depend on whether the caller has jitted.
      ValueError: if it is below ``least``.
    """
    if isinstance(value, (bool, jax.Array)) or not hasattr(value, "__index__"):
        raise TypeError(
            f"{name} must be a Python int, got {value!r} ({type(value).__name__}); "
            "under optax.inject_hyperparams name it in static_args"
        )
    value = operator.index(value)
    if value < least:
        raise ValueError(f"{name} {value} is too small; pass {name}>={least}")
    return value
