"""Models that many tests read: made once in a process and copied, and run as one program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


def made_once(make: Callable[[nnx.Rngs], Any]) -> Callable[[], Any]:
    """Returns copies of the model of seed 0: initialisers are a program for every shape."""
    first = functools.cache(lambda: make(nnx.Rngs(0)))
    return lambda: nnx.clone(first())


def outputs_of(call: Any, *args: Any) -> Any:
    """What a module or function gives, as one program: most models are dozens of operations."""
    if isinstance(call, nnx.Module):
        return nnx.jit(lambda model, *args: model(*args))(call, *args)
    return jax.jit(call)(*args)
