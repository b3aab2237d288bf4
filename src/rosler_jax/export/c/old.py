"""Operations of the list of layers as those of a graph, until all that reads them is converted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rosler_jax.export import graph as before
from rosler_jax.export.c.floats import EMIT
from rosler_jax.export.c.maps import Fused, fused_step
from rosler_jax.export.c.unit import Step, Unit
from rosler_jax.graph import kinds
from rosler_jax.graph.graph import Graph, Value
from rosler_jax.graph.kinds import Map, Op
from rosler_jax.graph.weight import Weight


def new_op(op: before.Op, at: int) -> Op | None:
    """The operation that reads value ``at`` and makes the next one; None for a new shape."""
    where: dict[str, Any] = {
        "name": f"{at}", "inputs": (at,), "outputs": (at + 1,),
        "in_shapes": (op.in_shape,), "out_shapes": (op.out_shape,),
    }  # fmt: skip
    if isinstance(op, before.Dense | before.Conv | before.Project):
        bias = None if op.bias is None else Weight(f"{op.name}/bias", op.bias)
    if isinstance(op, before.Dense):
        rows = {"in_shapes": ((1, *op.in_shape),), "out_shapes": ((1, *op.out_shape),)}
        return kinds.Dense(**where | rows, weight=Weight(op.name, op.weight.values), bias=bias)
    if isinstance(op, before.Conv):
        weight = Weight(op.name, op.weight.values)
        return kinds.Conv(**where, weight=weight, window=window(op.window), bias=bias)
    if isinstance(op, before.Project):
        rows = {
            name: ((op.vectors, math.prod(shape) // op.vectors),)
            for name, shape in (("in_shapes", op.in_shape), ("out_shapes", op.out_shape))
        }
        return kinds.Project(
            **where | rows, sketch=op.sketch, scale=op.scale, transpose=op.transpose, bias=bias
        )
    if isinstance(op, before.PatchProject):
        return kinds.PatchProject(
            **where, sketch=op.sketch, scale=op.scale, window=window(op.window)
        )
    if isinstance(op, before.Affine):
        return kinds.Affine(**where, center=op.center, factor=op.factor)
    if isinstance(op, before.Activate):
        return Map(**where, function=op.kind)
    if isinstance(op, before.Pool):
        ones = (1,) * len(op.window)
        side = kinds.Window(
            size=op.window, strides=op.window, padding=((0, 0),) * len(ones), dilation=ones,
            input_dilation=ones,
        )  # fmt: skip
        mean = op.kind == "mean"
        scale = 1.0 / math.prod(op.window) if mean else 1.0
        return kinds.Pool(**where, function="sum" if mean else "max", window=side, scale=scale)
    if isinstance(op, before.Pad):
        index = [
            tuple((int(k), 1, 1) for k in np.pad(np.arange(n), both, mode=op.mode))  # type: ignore[call-overload]
            for n, both in zip(op.in_shape[:-1], op.widths, strict=True)
        ]
        return kinds.Take(**where, index=(*(runs(axis) for axis in index), None))
    return None


def runs(positions: tuple[kinds.Run, ...]) -> tuple[kinds.Run, ...]:
    """Single positions as the longest runs."""
    found: list[kinds.Run] = []
    for k, _, _ in positions:
        first, step, n = found[-1] if found else (0, 0, 0)
        if found and (n == 1 or k == first + step * n):
            found[-1] = (first, k - first if n == 1 else step, n + 1)
        else:
            found.append((k, 1, 1))
    return tuple(found)


def window(old: before.Window) -> kinds.Window:
    """The same window."""
    names = ("size", "strides", "padding", "dilation", "input_dilation", "groups")
    return kinds.Window(**{name: getattr(old, name) for name in names})


def new_graph(old: before.Graph) -> Graph:
    """The same network."""
    ops: list[Op] = []
    for op in old.ops:
        new = new_op(op, len(ops))
        ops += [] if new is None else [new]
    return Graph((Value(0, "x", old.in_shape),), tuple(ops), (Value(len(ops), "y", old.out_shape),))


def step(op: before.Op, unit: Unit, label: str) -> Step | None:
    """One operation in float."""
    new = new_op(op, 0)
    if isinstance(new, Map):
        fused = Fused(
            name=new.name, inputs=(0,), outputs=(1,), in_shapes=new.in_shapes,
            out_shapes=new.out_shapes, maps=(new,),
        )  # fmt: skip
        return fused_step(fused, unit, label, ["float"])
    return None if new is None else EMIT[type(new)](new, unit, label, ["float"])
