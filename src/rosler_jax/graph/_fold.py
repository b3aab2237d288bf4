"""Passes that make a traced graph small: what folds into what."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from rosler_jax._quantized import QuantizedTensor
from rosler_jax.graph._limits import limits, operands
from rosler_jax.graph._recognise import recognised
from rosler_jax.graph._rewrite import Known, each, renumbered, trailing
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.kinds import (
    Affine,
    Concat,
    Conv,
    Dense,
    Gather,
    Map,
    MatMul,
    Norm,
    Op,
    PatchProject,
    Pool,
    Project,
    Reduce,
    Run,
    Scan,
    Take,
    Transpose,
    Window,
    elements,
    runs_of,
)
from rosler_jax.graph.weight import Weight
from rosler_jax.graph.weight import simplified as shortest


def simplified(graph: Graph) -> Graph:
    """A graph with everything folded that folds."""
    ops = tuple(
        dataclasses.replace(op, body=simplified(op.body)) if isinstance(op, Scan) else op
        for op in graph.ops
    )
    graph = each(limits)(dataclasses.replace(graph, ops=ops))
    graph = recognised(graph)
    passes = (
        _turned, _composed, _joined, _composed, _joined, _composed, _grouped, _scaled, _affine,
        _scaled, _affine_alone, _padding, _wrapped,
    )  # fmt: skip
    return renumbered(each(*passes)(graph))


def _scaled(known: Known, op: Op) -> None:
    """A value times a number: the number joins what makes the value, and the product goes."""
    if not isinstance(op, Map) or op.function not in ("mul", "div"):
        return
    places = operands(known, op)
    if places is None or (op.function == "div" and places != (0, 1)):
        return
    number, value = known.scalar(op.inputs[places[1]]), op.inputs[places[0]]
    if number and _absorb(known, value, 1.0 / number if op.function == "div" else number):
        known.alias(op, value)


_SCALABLE = (Reduce, Pool, Project, PatchProject)


def _absorb(known: Known, value: int, factor: float) -> bool:
    """Multiplies a value by a number where it is made, if that is for nothing."""
    op = known.only(value, (*_SCALABLE, Dense, Conv, Transpose, MatMul))
    if op is None or math.isnan(factor) or math.isinf(factor):
        return False
    if isinstance(op, Transpose):
        return _absorb(known, op.inputs[0], factor)
    if isinstance(op, MatMul):
        return any(_absorb(known, v, factor) for v in op.inputs)
    if isinstance(op, Dense | Conv):
        n = op.out_shape[-1]
        new = fold_affine(op, np.full(n, factor), np.zeros(n))
    elif getattr(op, "bias", None) is not None or getattr(op, "function", "sum") != "sum":
        new = None
    else:
        new = dataclasses.replace(op, scale=op.scale * factor)  # type: ignore[attr-defined, call-arg]
    if new is not None:
        known.put(op, new)
    return new is not None


def _moved(before: Op, op: Op, **changes: Any) -> Op:
    """The operation before, with another's output."""
    return dataclasses.replace(before, outputs=op.outputs, **changes)


def _map_affine(known: Known, op: Op) -> tuple[int, np.ndarray, np.ndarray] | None:
    """``(value, f, s)`` of a map ``x f + s`` by numbers of the last axes."""
    if not isinstance(op, Map) or op.function not in ("add", "sub", "mul", "div"):
        return None
    places = operands(known, op)
    if places is None or op.in_shapes[places[0]] != op.out_shape:
        return None
    at, other = places
    c = trailing(known.constants[op.inputs[other]], op.in_shapes[other], op.out_shape)
    if c is None or (op.function == "div" and other == 0):
        return None
    c = c.astype(np.float64)
    f, s = np.ones_like(c), np.zeros_like(c)
    with np.errstate(divide="ignore", over="ignore"):  # refused below
        if op.function == "mul":
            f = c
        elif op.function == "div":
            f = 1.0 / c
        elif op.function == "sub" and other == 0:
            f, s = -f, c
        else:
            s = -c if op.function == "sub" else c
    return (op.inputs[at], f, s) if np.isfinite(f).all() and np.isfinite(s).all() else None


def _affine(known: Known, op: Op) -> None:
    """An affine map of channels goes into the product before it."""
    found = _map_affine(known, op)
    if found is None:
        return
    value, f, s = found
    before = known.only(value, (Dense, Conv, Project, Norm))
    if before is None:
        return
    new: Any = fold_affine(before, f, s)
    if new is None:
        return
    (added,) = (known.constants[v] for v in op.inputs if v in known.constants)
    own = isinstance(op, Map) and op.function == "add" and getattr(before, "bias", None) is None
    if own and added.source != "constant":
        n = added.values.size  # the model's own tensor, which may train, be it zeros
        if n == before.out_shape[-1] or isinstance(before, Project):
            bias = added.then("reshape", (n,))
            new = dataclasses.replace(new, bias=Weight(bias.name, bias.stored, shortest(bias)))
    known.put(op, _moved(new, op))


def fold_affine(op: Op, f: np.ndarray, s: np.ndarray) -> Op | None:
    """An operation with ``x f + s`` on its last axis folded in; None where that does not go."""
    n = op.out_shape[-1]
    if isinstance(op, Project):
        if not op.transpose or (f != 1).any() or s.size % n:
            return None
        old = 0.0 if op.bias is None else op.bias.values
        return dataclasses.replace(op, bias=_stored(op, "bias", s + old))
    if n % f.size:
        return None
    f, s = (np.tile(v, n // v.size) for v in (f, s))
    if isinstance(op, Norm):
        return _fold_norm(op, f, s)
    assert isinstance(op, Dense | Conv)
    bias = s if op.bias is None else op.bias.values * f + s
    weight = op.weight if (f == 1).all() else _times(op.weight, f)
    kept = None if not bias.any() else _stored(op, "bias", bias)
    return dataclasses.replace(op, bias=kept, weight=weight)


def _fold_norm(op: Norm, f: np.ndarray, s: np.ndarray) -> Op | None:
    if op.bias is not None and (f != 1).any():
        return None
    scale = op.scale
    if (f != 1).any():
        scale = _stored(op, "scale", f if scale is None else scale.values * f)
    old = 0.0 if op.bias is None else op.bias.values
    return dataclasses.replace(
        op, scale=scale, bias=_stored(op, "bias", s + old) if s.any() else op.bias
    )


def _stored(op: Op, role: str, values: Any) -> Weight:
    weight = getattr(op, "weight", None)
    base = op.name if weight is None else weight.name
    stem = base.rsplit("/", 1)[0] + "/" if "/" in base else ""
    return Weight(
        f"{stem}{role}" if weight is not None else f"{base}/{role}", np.asarray(values, np.float32)
    )


def _times(weight: Weight, f: np.ndarray) -> Weight:
    """A weight whose output channels are multiplied; integers stay, their scales take it."""
    if weight.integers is not None and weight.axis != -2:
        scale = (np.broadcast_to(weight.scale, f.shape) * f).astype(np.float32)
        signs = np.where(scale < 0, -1, 1)  # a scale stays positive: the integers take the sign
        integers = (weight.integers * signs).astype(weight.integers.dtype)
        axis = integers.ndim - 1
        return Weight(weight.name, QuantizedTensor(integers, np.abs(scale), weight.bits, axis))
    return Weight(weight.name, (weight.values * f).astype(np.float32))


def _affine_alone(known: Known, op: Op) -> None:
    """Two affine maps of channels, one after the other, are one."""
    second = _map_affine(known, op)
    if second is None:
        return
    before = known.only(second[0], (Map, Affine))
    if isinstance(before, Affine):
        f = np.ravel(before.factor).astype(np.float64)
        source, s = before.inputs[0], -np.ravel(before.center) * f
    else:
        first = None if before is None else _map_affine(known, before)
        if first is None or before is None:
            return
        source, f, s = first
    f2, s2 = second[1:]
    channels = op.out_shape[-1] if op.out_shape else 1
    if any(v.size not in (1, channels) for v in (f, s, f2, s2)) or not (f * f2).all():
        return
    factor, shift = f * f2, s * f2 + s2
    exact = not s2.any() and (f == 1).all()
    center = -s if exact else -shift / factor
    if not np.isfinite(center).all():
        return
    known.put(op, Affine(
        name=op.name, inputs=(source,), outputs=op.outputs, in_shapes=(op.out_shape,),
        out_shapes=op.out_shapes, center=_shrunk(center), factor=_shrunk(factor),
    ))  # fmt: skip


def _shrunk(v: np.ndarray) -> np.ndarray:
    return v.astype(np.float32).reshape(() if v.size == 1 else v.shape)


# Moving numbers about


def _turned(known: Known, op: Op) -> None:
    """Two transposes, one after the other, are one, or none."""
    if not isinstance(op, Transpose):
        return
    before = known.ops.get(op.inputs[0])
    if not isinstance(before, Transpose) or before.out_shape != op.in_shape:
        return
    axes = tuple(before.axes[k] for k in op.axes)
    if axes == tuple(range(len(axes))):
        known.alias(op, before.inputs[0])
    else:
        known.put(op, dataclasses.replace(
            op, inputs=before.inputs, in_shapes=before.in_shapes, axes=axes
        ))  # fmt: skip


def _wrapped(known: Known, op: Op) -> None:
    """``ids < 0 ? ids + size : ids``, which NumPy's indexing traces to, is the gather's own."""
    if not isinstance(op, Gather) or op.wrap:
        return
    select = known.ops.get(op.inputs[1])
    if not isinstance(select, Map) or select.function != "select":
        return
    less, moved, ids = (
        known.ops.get(select.inputs[0]),
        known.ops.get(select.inputs[1]),
        select.inputs[2],
    )
    if (
        isinstance(less, Map) and less.function == "lt" and less.inputs[0] == ids
        and isinstance(moved, Map) and moved.function == "add" and moved.inputs[0] == ids
        and _integer(known, less.inputs[1]) == 0
        and _integer(known, moved.inputs[1]) == op.in_shapes[0][0]
    ):  # fmt: skip
        known.put(op, dataclasses.replace(op, inputs=(op.inputs[0], ids), wrap=True))


def _integer(known: Known, value: int) -> int | None:
    """The whole number that a constant of one number is."""
    weight = known.constants.get(value)
    return int(weight.values.item()) if weight is not None and weight.values.size == 1 else None


def _take_of(known: Known, value: int) -> Take | None:
    return known.only(value, Take)  # type: ignore[return-value]


def _composed(known: Known, op: Op) -> None:
    """Two picks, one after the other, are one."""
    if not isinstance(op, Take):
        return
    before = known.ops.get(op.inputs[0])
    if not isinstance(before, Take) or before.out_shape != op.in_shape or before.fill != op.fill:
        return
    index = tuple(
        b if a is None else a if b is None else _through(a, b, n)
        for a, b, n in zip(before.index, op.index, before.in_shape, strict=True)
    )
    known.put(
        op, dataclasses.replace(op, inputs=before.inputs, in_shapes=before.in_shapes, index=index)
    )


def _through(first: tuple[Run, ...], second: tuple[Run, ...], n: int) -> tuple[Run, ...]:
    places = elements(first, n)
    return runs_of([-1 if k < 0 else places[k] for k in elements(second, len(places))])


def _grouped(known: Known, op: Op) -> None:
    """Patches of groups of channels that were brought in front one by one: groups of a window."""
    if not isinstance(op, Transpose):
        return
    patches = known.only(op.inputs[0], PatchProject)
    if not isinstance(patches, PatchProject) or patches.out_shape != op.in_shape:
        return
    first, n = known.only(patches.inputs[0], Transpose), len(op.axes) - 2
    window, inner = patches.window, patches.in_shape[1:-1]
    alone = (window.size[0], window.strides[0], window.padding[0]) == (1, 1, (0, 0))
    if (
        not isinstance(first, Transpose) or first.out_shape != patches.in_shape or not alone
        or first.axes != (n, *range(n), n + 1) or op.axes != (*range(1, n + 1), 0, n + 1)
    ):  # fmt: skip
        return
    g, channels = patches.in_shape[0], patches.in_shape[-1]
    plain = Window(
        size=window.size[1:], strides=window.strides[1:], padding=window.padding[1:],
        dilation=window.dilation[1:], input_dilation=window.input_dilation[1:], groups=g,
    )  # fmt: skip
    known.put(op, dataclasses.replace(
        patches, inputs=first.inputs, outputs=op.outputs, in_shapes=((*inner, g * channels),),
        out_shapes=((*patches.out_shape[1:-1], g * patches.out_shape[-1]),), window=plain,
    ))  # fmt: skip


def _joined(known: Known, op: Op) -> None:
    """Pieces of one value put one behind the other are one pick: padding by wrap and reflection."""
    if not isinstance(op, Concat):
        return
    takes = [known.ops.get(v) for v in op.inputs]
    pattern = next((t for t in takes if isinstance(t, Take)), None)
    axes = (
        [] if pattern is None else [k for k, runs in enumerate(pattern.index) if runs is not None]
    )
    if pattern is None or len(axes) != 1:
        return
    (axis,), source, shape = axes, pattern.inputs[0], pattern.in_shape
    inner = math.prod(shape[axis + 1 :])
    if inner != math.prod(op.out_shape[op.axis + 1 :]):
        return
    runs: list[Run] = []
    for value, take in zip(op.inputs, takes, strict=True):
        if value == source:
            runs.append((0, 1, shape[axis]))
        elif (
            isinstance(take, Take) and take.inputs[0] == source and take.in_shape == shape
            and all((r is not None) == (k == axis) for k, r in enumerate(take.index))
        ):  # fmt: skip
            runs += take.index[axis] or ()
        else:
            return
    out = (*shape[:axis], sum(run[2] for run in runs), *shape[axis + 1 :])
    index = tuple(tuple(runs) if k == axis else None for k in range(len(shape)))
    known.put(op, dataclasses.replace(
        pattern, name=op.name, outputs=op.outputs, out_shapes=(out,), index=index
    ))  # fmt: skip


def _padding(known: Known, op: Op) -> None:
    """Padding with zeros before a convolution is the window's own (-inf, before a max)."""
    if not isinstance(op, Conv | PatchProject | Pool):
        return
    take = _take_of(known, op.inputs[0])
    wanted = -math.inf if isinstance(op, Pool) and op.function == "max" else 0.0
    if take is None or take.fill != wanted or any(d != 1 for d in op.window.input_dilation):
        return
    along = _aligned(take, op.in_shape)
    if along is None:
        return
    pads: list[tuple[int, int]] = []
    for (runs, before), n in zip(along, op.in_shape[:-1], strict=True):
        places = elements(runs, n)
        inside = [k for k in places if k >= 0]
        low = next((i for i, k in enumerate(places) if k >= 0), 0)
        if inside != list(range(before)) or places[low : low + before] != inside:
            return
        pads.append((low, n - low - before))
    padding = tuple((a + c, b + d) for (a, b), (c, d) in zip(op.window.padding, pads, strict=True))
    known.put(op, dataclasses.replace(
        op, inputs=take.inputs, in_shapes=((*(n for _, n in along), op.in_shape[-1]),),
        window=dataclasses.replace(op.window, padding=padding),
    ))  # fmt: skip


def _aligned(take: Take, shape: tuple[int, ...]) -> list[tuple[Any, int]] | None:
    """A pick's runs and sizes before, along the spatial axes of a shape; None if it does more.

    The shape may have more axes of 1, and channels as one axis.
    """
    along: list[tuple[Any, int]] = []
    left = list(zip(take.index, take.in_shape, take.out_shape, strict=True))
    for size in shape[:-1]:
        if left and left[0][2] == size:
            runs, before, _ = left.pop(0)
            along.append((runs, before))
        elif size == 1:
            along.append((None, 1))
        else:
            return None
    whole = all(runs is None for runs, _, _ in left)
    return along if whole and math.prod(n for *_, n in left) == shape[-1] else None
