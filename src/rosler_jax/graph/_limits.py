"""Max and min with a number, as clamps and relus."""

from __future__ import annotations

import dataclasses
import math

from rosler_jax.graph._rewrite import Known
from rosler_jax.graph.kinds import Map, Op


def operands(known: Known, op: Map) -> tuple[int, int] | None:
    """Of a function of two: the place of the value and of the constant; None if not one of each."""
    if len(op.inputs) != 2:
        return None
    constant = [v in known.constants for v in op.inputs]
    if constant.count(True) != 1 or op.dtypes[0] != "float32":
        return None
    return (0, 1) if constant[1] else (1, 0)


def limits(known: Known, op: Op) -> None:
    """Max and min with a number are one clamp; from zero on it is a relu."""
    if not isinstance(op, Map) or op.function not in ("max", "min", "clamp"):
        return
    if op.function == "clamp":
        at, (low, high) = 0, op.numbers
    else:
        places = operands(known, op)
        bound = None if places is None else known.scalar(op.inputs[places[1]])
        if places is None or bound is None or op.in_shapes[places[0]] != op.out_shape:
            return
        at = places[0]
        low, high = (bound, math.inf) if op.function == "max" else (-math.inf, bound)
    source, shape = op.inputs[at], op.in_shapes[at]
    before = known.only(source, Map)
    if isinstance(before, Map) and before.function in ("clamp", "relu"):
        first = before.numbers or (0.0, math.inf)
        low, high = (min(max(v, low), high) for v in first)
        source, shape = before.inputs[0], before.in_shape
    relu = (low, high) == (0.0, math.inf)
    known.put(op, dataclasses.replace(
        op, inputs=(source,), in_shapes=(shape,), function="relu" if relu else "clamp",
        numbers=() if relu else (low, high),
    ))  # fmt: skip
