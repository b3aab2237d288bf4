"""Walking a jaxpr and all the jaxprs inside it."""

from __future__ import annotations

from collections.abc import Iterator

import jax.extend.core as jex
import numpy as np


def equations(jaxpr: jex.Jaxpr) -> Iterator[jex.JaxprEqn]:
    """Every equation, down through whatever holds a jaxpr: jit, cond, scan, while, custom rules."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, jex.ClosedJaxpr):
                    yield from equations(inner.jaxpr)
                elif isinstance(inner, jex.Jaxpr):
                    yield from equations(inner)


def sizes(closed: jex.ClosedJaxpr) -> list[tuple[int, tuple[int, ...], str]]:
    """``(elements, shape, primitive)`` of every result in the program, largest first."""
    found = [
        (int(np.prod(var.aval.shape)), tuple(var.aval.shape), eqn.primitive.name)
        for eqn in equations(closed.jaxpr)
        for var in eqn.outvars
        if hasattr(var.aval, "shape")
    ]
    found += [(int(np.size(c)), np.shape(c), "constant") for c in closed.consts]
    return sorted(found, reverse=True)
