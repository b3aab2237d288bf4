"""Models that many tests read are made once in a process, and copied."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx


def made_once(make: Callable[[nnx.Rngs], Any]) -> Callable[[], Any]:
    """Returns copies of the model of seed 0: initialisers are a program for every shape."""
    first = functools.cache(lambda: make(nnx.Rngs(0)))
    return lambda: nnx.clone(first())
