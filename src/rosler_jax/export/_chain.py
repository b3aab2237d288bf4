"""A network as a list of operations, as a graph: for what still makes such lists."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rosler_jax._quantized import QuantizedTensor
from rosler_jax.export import graph as chain
from rosler_jax.graph import Graph, Value, Weight, kinds


def _weight(w: chain.Weight) -> Weight:
    if w.integers is None:
        return Weight(w.name, w.values)
    axis = None if w.axis is None else w.integers.ndim + w.axis
    scale = w.scale if axis is None else w.scale[: w.integers.shape[axis]]  # the same in all groups
    return Weight(w.name, QuantizedTensor(w.integers, scale, w.bits, axis))


def _window(w: chain.Window) -> kinds.Window:
    return kinds.Window(
        size=w.size, strides=w.strides, padding=w.padding, dilation=w.dilation,
        input_dilation=w.input_dilation, groups=w.groups,
    )  # fmt: skip


def _runs(index: np.ndarray) -> tuple[kinds.Run, ...]:
    cuts = np.flatnonzero(np.diff(np.diff(index, prepend=index[0] - 1)) != 0)
    pieces = np.split(index, cuts) if len(index) > 1 else [index]
    return tuple(
        (int(p[0]), int(p[1] - p[0]) if len(p) > 1 else 1, len(p)) for p in pieces if len(p)
    )


def _op(op: chain.Op, k: int) -> kinds.Op | None:
    def make(kind: Any, in_shape: Any = None, out_shape: Any = None, **fields: Any) -> kinds.Op:
        return kind(
            name=op.name, inputs=(k,), outputs=(k + 1,), in_shapes=(in_shape or op.in_shape,),
            out_shapes=(out_shape or op.out_shape,), **fields,
        )  # fmt: skip

    bias = getattr(op, "bias", None)
    given = None if bias is None else Weight(f"{op.name}/bias", np.asarray(bias, np.float32))
    if isinstance(op, chain.Affine):
        return make(kinds.Affine, center=op.center, factor=op.factor)
    if isinstance(op, chain.Dense):
        return make(
            kinds.Dense,
            (1, *op.in_shape),
            (1, *op.out_shape),
            weight=_weight(op.weight),
            bias=given,
        )
    if isinstance(op, chain.Conv):
        return make(kinds.Conv, weight=_weight(op.weight), window=_window(op.window), bias=given)
    if isinstance(op, chain.Project):
        s, v = op.sketch, op.vectors
        sides = [(v, s.rows), (v, s.cols)]
        inner, outer = sides[::-1] if op.transpose else sides
        return make(
            kinds.Project,
            inner,
            outer,
            sketch=s,
            scale=op.scale,
            transpose=op.transpose,
            bias=given,
        )
    if isinstance(op, chain.PatchProject):
        return make(kinds.PatchProject, sketch=op.sketch, scale=op.scale, window=_window(op.window))
    if isinstance(op, chain.Activate):
        return make(kinds.Map, function=op.kind)
    if isinstance(op, chain.Pool):
        n = len(op.window)
        window = kinds.Window(
            size=op.window, strides=op.window, padding=((0, 0),) * n, dilation=(1,) * n,
            input_dilation=(1,) * n,
        )  # fmt: skip
        function, count = ("max", 1) if op.kind == "max" else ("sum", math.prod(op.window))
        return make(kinds.Pool, function=function, window=window, scale=1.0 / count)
    if isinstance(op, chain.Pad):
        sides = zip(op.in_shape, op.widths, strict=False)
        index = [_runs(np.pad(np.arange(n), w, mode=op.mode)) for n, w in sides]
        return make(kinds.Take, index=(*index, None))
    return None


def as_graph(given: chain.Graph) -> Graph:
    """The same operations as a graph."""
    ops: list[kinds.Op] = []
    for op in given.ops:
        made = _op(op, len(ops))
        ops += [] if made is None else [made]
    return Graph(
        (Value(0, "0", given.in_shape),), tuple(ops), (Value(len(ops), "", given.out_shape),)
    )
