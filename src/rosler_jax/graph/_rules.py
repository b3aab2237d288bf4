"""What each primitive of JAX becomes in a graph: one line of a table each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import rosler_kernels as rk
from rosler_jax.graph._builder import Builder, Held, dtype_name, known
from rosler_jax.graph._source import refuse
from rosler_jax.graph.functions import FUNCTIONS
from rosler_jax.graph.kinds import (
    Concat,
    Conv,
    Convolve,
    Cumulative,
    Dense,
    Gather,
    KernelGrad,
    PatchProject,
    Pool,
    Project,
    Run,
    Scatter,
    Slice,
    Unpool,
    Window,
    runs_of,
)

Rule = Callable[..., Held | list[Held]]


def _shape(eqn: Any) -> tuple[int, ...]:
    return tuple(eqn.outvars[0].aval.shape)


def _dtype(eqn: Any) -> str:
    return dtype_name(eqn.outvars[0].aval.dtype)


def _function(name: str) -> Rule:
    return lambda b, eqn, *xs: b.map(name, xs, _shape(eqn))


def _same(b: Builder, eqn: Any, x: Held, *_: Held) -> Held:
    return x


def _convert(b: Builder, eqn: Any, x: Held) -> Held:
    dtype = _dtype(eqn)
    if dtype == x.dtype:
        return x
    if dtype not in FUNCTIONS:
        raise refuse(eqn, f"a conversion to {dtype} has no operation; use float32, int32 or bool")
    return b.map(dtype, [x], _shape(eqn))


def _integer_pow(b: Builder, eqn: Any, x: Held) -> Held:
    y = int(eqn.params["y"])
    if y == 2:
        return b.map("mul", [x, x], _shape(eqn))
    return b.map("power", [x], _shape(eqn), (y,))


# Three that JAX has since 0.12.


def _one_minus_square(b: Builder, eqn: Any, x: Held) -> Held:
    """``(1 + x)(1 - x)``: the derivative of a hyperbolic tangent, among others."""
    one, out = known(np.float32(1), "constant"), _shape(eqn)
    return b.map("mul", [b.map("add", [one, x], out), b.map("sub", [one, x], out)], out)


def _log2(b: Builder, eqn: Any, x: Held) -> Held:
    out = _shape(eqn)
    return b.map("div", [b.map("log", [x], out), known(np.float32(np.log(2)), "constant")], out)


def _polynomial(b: Builder, eqn: Any, x: Held, *coefficients: Held) -> Held:
    """By Horner's rule; the constant comes first."""
    out = _shape(eqn)
    *lower, total = coefficients
    for a in reversed(lower):
        total = b.map("add", [b.map("mul", [total, x], out), a], out)
    view = (1,) * (len(out) - len(total.view)) + total.view
    return Held(total.source, view, out, total.dtype)


def _clamp(b: Builder, eqn: Any, low: Held, x: Held, high: Held) -> Held:
    if low.scalar is not None and high.scalar is not None and x.dtype == "float32":
        return b.map("clamp", [x], _shape(eqn), (low.scalar, high.scalar))
    return b.map("min", [b.map("max", [x, low], _shape(eqn)), high], _shape(eqn))


def _select(b: Builder, eqn: Any, which: Held, *cases: Held) -> Held:
    if len(cases) != 2 or which.dtype != "bool":
        raise refuse(eqn, f"a choice among {len(cases)} has no operation; use nested jnp.where")
    if which.scalar is not None:
        return cases[int(which.scalar)]
    return b.map("select", [which, cases[1], cases[0]], _shape(eqn))


# Shapes


def _reshape(b: Builder, eqn: Any, x: Held, *_: Held) -> Held:
    if eqn.params.get("dimensions") and eqn.primitive.name == "reshape":
        x = b.transpose(x, eqn.params["dimensions"])
    return b.reshape(x, _shape(eqn))


def _broadcast(b: Builder, eqn: Any, x: Held, *_: Held) -> Held:
    out, place = _shape(eqn), eqn.params["broadcast_dimensions"]
    view = [1] * len(out)
    for axis, k in enumerate(place):
        view[k] = x.view[axis]
    return Held(x.source, tuple(view), out, x.dtype)


def _transpose(b: Builder, eqn: Any, x: Held) -> Held:
    return b.transpose(x, eqn.params["permutation"])


def _slice(b: Builder, eqn: Any, x: Held) -> Held:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    if x.known and all(s == 1 for s in strides):
        for axis, (low, high) in enumerate(zip(starts, limits, strict=True)):
            if (low, high) != (0, x.shape[axis]):
                x = x.laid("slice", axis, low, high)
        return x
    return b.take(x, [((a, s, n),) for a, s, n in zip(starts, strides, _shape(eqn), strict=True)])


def _reverse(b: Builder, eqn: Any, x: Held) -> Held:
    axes = eqn.params["dimensions"]
    if x.known:
        return x.laid("reverse", tuple(axes))
    return b.take(x, [((n - 1, -1, n),) if k in axes else None for k, n in enumerate(x.shape)])


def _pad(b: Builder, eqn: Any, x: Held, value: Held) -> Held:
    if value.scalar is None:
        raise refuse(eqn, "padding with a value that the model computes; pad with a constant")
    runs = [
        _padded(n, *widths) for n, widths in zip(x.shape, eqn.params["padding_config"], strict=True)
    ]
    return b.take(x, runs, value.scalar)


def _padded(n: int, low: int, high: int, interior: int) -> tuple[Run, ...]:
    """Runs of an axis with padding (negative: cut off) and gaps."""
    places: list[int] = []
    for i in range(n):
        places += [i] + [-1] * (interior if i < n - 1 else 0)
    places = [-1] * low + places if low >= 0 else places[-low:]
    places = places + [-1] * high if high >= 0 else places[: len(places) + high]
    return runs_of(places)


def _concatenate(b: Builder, eqn: Any, *xs: Held) -> Held:
    return _joined(b, _shape(eqn), int(eqn.params["dimension"]), xs)


def _stack(b: Builder, eqn: Any, *xs: Held) -> Held:
    axis = int(eqn.params["axis"])
    parts = [b.reshape(b.whole(x), (*x.shape[:axis], 1, *x.shape[axis:])) for x in xs]
    return _joined(b, _shape(eqn), axis, parts)


def _joined(b: Builder, out: tuple[int, ...], axis: int, xs: Sequence[Held]) -> Held:
    whole = [b.whole(x) for x in xs if x.shape[axis]]
    if len(whole) == 1:
        return whole[0]
    outer, inner = math.prod(out[:axis]), math.prod(out[axis + 1 :])
    shapes = [(outer, x.shape[axis], inner) for x in whole]
    kept = [k for k, n in enumerate((outer, 2, inner)) if n != 1]
    cut = [tuple(s[k] for k in kept) for s in (*shapes, (outer, out[axis], inner))]
    y = b.emit(Concat, whole, cut[:-1], cut[-1], axis=kept.index(1))
    return Held(y.source, out, out, y.dtype)


# Products


def _dot_general(b: Builder, eqn: Any, x: Held, y: Held) -> Held:
    (xc, yc), (xb, yb) = eqn.params["dimension_numbers"]
    if "float32" not in (x.dtype, y.dtype):
        raise refuse(eqn, "a product of whole numbers has no operation; convert to float32 first")
    batch = math.prod(x.shape[k] for k in xb)
    xf, yf = ([k for k in range(len(h.shape)) if k not in (*c, *bt)]
              for h, c, bt in ((x, xc, xb), (y, yc, yb)))  # fmt: skip
    out = (*(x.shape[k] for k in (*xb, *xf)), *(y.shape[k] for k in yf))
    if batch == 1 and (x.known or y.known):
        if y.known:
            return _dense(b, x, y, ((*xb, *xf), xc), (yc, (*yb, *yf)), out)
        made = _dense(b, y, x, ((*yb, *yf), yc), (xc, (*xb, *xf)), ())
        swapped = b.reshape(made, tuple(h.shape[k] for h, f in ((y, yf), (x, xf)) for k in f))
        turned = b.transpose(swapped, (*range(len(yf), len(yf) + len(xf)), *range(len(yf))))
        return b.reshape(turned, out)
    if x.known and not y.known:  # the known factor last
        made = _batched(b, (y, x), (yb, xb), (yf, xf), (yc, xc))
        k, split = len(yb), len(yb) + len(yf)
        order = (*range(k), *range(split, split + len(xf)), *range(k, split))
        return b.transpose(made, order)
    return _batched(b, (x, y), (xb, yb), (xf, yf), (xc, yc))


def _batched(b: Builder, xy: Any, batches: Any, free: Any, contracted: Any) -> Held:
    """Products of matrices: ``(batch, free of the first, free of the second)``."""
    (x, y), (xb, yb), (xf, yf), (xc, yc) = xy, batches, free, contracted
    out = (*(x.shape[k] for k in (*xb, *xf)), *(y.shape[k] for k in yf))
    batch = math.prod(x.shape[k] for k in xb)
    order = (*xf, *xb, *xc)
    if y.known and (order == tuple(range(len(order))) or b.undoes(x, order)):
        x = b.transpose(x, order)
        return b.reshape(_grouped(b, x, y, (len(xf), len(xb)), (*yc, *yb, *yf)), out)
    m, n = math.prod(x.shape[k] for k in xf), math.prod(y.shape[k] for k in yf)
    k = math.prod(x.shape[k] for k in xc)
    first = b.transpose(x, (*xb, *xf, *xc))
    flat = not _moves(y, (*yb, *yf, *yc))
    second = b.transpose(y, (*yb, *yf, *yc) if flat else (*yb, *yc, *yf))
    first, second = b.whole(first), b.whole(second)
    return b.reshape(b.matmul(first, second, (batch, m, k, n), flat), out)


def _grouped(b: Builder, x: Held, w: Held, cuts: tuple[int, int], order: Any) -> Held:
    """Known matrices, one for each of some groups of channels: a convolution of one pixel."""
    free, batch = cuts
    x, w = b.whole(x), b.transpose(b.whole(w), order)
    sizes = (x.shape[:free], x.shape[free : free + batch], x.shape[free + batch :])
    p, g, m = map(math.prod, sizes)
    n = math.prod(w.shape) // (m * g)
    ones = (1,)
    window = Window(
        size=ones, strides=ones, padding=((0, 0),), dilation=ones, input_dilation=ones, groups=g
    )
    y = b.emit(
        Conv, [x], [(p, g * m)], (p, g * n), name=w.weight.name,
        weight=b.reshape(w, (1, m, g * n)).weight, window=window,
    )  # fmt: skip
    whole = b.reshape(y, (*sizes[0], g, n))
    return b.transpose(whole, (free, *range(free), free + 1))


def _moves(x: Held, axes: Sequence[int]) -> bool:
    """Whether a transpose moves numbers."""
    kept = [k for k in axes if x.shape[k] != 1]
    return kept != sorted(kept)


def _dense(b: Builder, x: Held, w: Held, xa: Any, wa: Any, out: tuple[int, ...]) -> Held:
    """A product with a known matrix: ``xa`` are free and contracted axes, ``wa`` the other way."""
    x = b.whole(b.transpose(x, (*xa[0], *xa[1])))
    w = b.transpose(b.whole(w), (*wa[0], *wa[1]))
    cut = len(xa[0])
    rows, m = math.prod(x.shape[:cut]), math.prod(x.shape[cut:])
    n = math.prod(w.shape) // max(m, 1)
    weight = b.reshape(w, (m, n)).weight
    y = b.emit(Dense, [x], [(rows, m)], (rows, n), name=weight.name, weight=weight)
    return b.reshape(y, out) if out else y


def _conv(b: Builder, eqn: Any, x: Held, kernel: Held) -> Held:
    p = eqn.params
    numbers = p["dimension_numbers"]
    lhs, rhs, result = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    if (
        not kernel.known
        and x.shape[lhs[1]] == 1
        and (p["batch_group_count"] != 1 or x.shape[lhs[0]] != 1)
    ):
        return _kernel_grad(b, eqn, x, kernel)
    if p["batch_group_count"] != 1:
        raise refuse(eqn, "batch groups have no operation")
    x = b.whole(b.transpose(x, (lhs[0], *lhs[2:], lhs[1])))
    w = b.transpose(b.whole(kernel), (*rhs[2:], rhs[1], rhs[0]))
    pads = [(int(low), int(high)) for low, high in p["padding"]]
    if any(min(pair) < 0 for pair in pads):
        cut = [
            _padded(n, min(low, 0), min(high, 0), 0)
            for n, (low, high) in zip(x.shape[1:-1], pads, strict=True)
        ]
        x = b.take(x, [None, *cut, None])
        pads = [(max(low, 0), max(high, 0)) for low, high in pads]
    window = Window(
        size=w.shape[:-2], strides=tuple(p["window_strides"]), padding=tuple(pads),
        dilation=tuple(p["rhs_dilation"]), input_dilation=tuple(p["lhs_dilation"]),
        groups=int(p["feature_group_count"]),
    )  # fmt: skip
    window, shape = _with_batch(window, x.shape)
    weight = w if len(window.size) == len(w.shape) - 2 else b.reshape(w, (1, *w.shape))
    out = (*window.outputs(shape[:-1]), w.shape[-1])
    if kernel.known:
        name = kernel.weight.name
        y = b.emit(Conv, [x], [shape], out, name=name, weight=weight.weight, window=window)
    else:
        y = b.emit(Convolve, [x, weight], [shape, weight.shape], out, window=window)
    whole = b.reshape(y, (x.shape[0], *out[len(out) + 1 - len(x.shape) :]))
    return b.transpose(whole, _inverse((result[0], *result[2:], result[1])))


def _kernel_grad(b: Builder, eqn: Any, x: Held, dy: Held) -> Held:
    """A convolution of channels as a batch with a cotangent as the kernel: a kernel's cotangent."""
    p = eqn.params
    numbers = p["dimension_numbers"]
    lhs, rhs, result = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    gaps = tuple(p["lhs_dilation"])
    if p["feature_group_count"] != 1:
        raise refuse(eqn, "the gradient of a convolution of groups of groups has no operation")
    x = b.whole(b.transpose(x, (lhs[1], *lhs[2:], lhs[0])))
    dy = b.whole(b.transpose(dy, (rhs[1], *rhs[2:], rhs[0])))
    size = tuple(_shape(eqn)[k] for k in result[2:])
    strides, dilation = tuple(p["rhs_dilation"]), tuple(p["window_strides"])
    outs, pads = dy.shape[1:-1], []
    ins = tuple((n - 1) * gap + 1 for n, gap in zip(x.shape[1:-1], gaps, strict=True))
    for n, o, k, s, d, (low, _) in zip(
        ins, outs, size, strides, dilation, p["padding"], strict=True
    ):
        pads.append((int(low), max(0, (o - 1) * s + (k - 1) * d + 1 - n - int(low))))
    window = Window(
        size=size, strides=strides, padding=tuple(pads), dilation=dilation,
        input_dilation=gaps, groups=int(p["batch_group_count"]),
    )  # fmt: skip
    if min(low for low, _ in pads) < 0 or window.outputs(x.shape[1:-1]) != outs:
        raise refuse(eqn, "the gradient of a convolution that leaves pixels out; pad it evenly")
    shape = (*size, x.shape[-1] // window.groups, dy.shape[-1])
    y = b.emit(KernelGrad, [x, dy], [x.shape[1:], dy.shape[1:]], shape, window=window)
    return b.transpose(y, _inverse((*result[2:], result[0], result[1])))


def _inverse(axes: Sequence[int]) -> tuple[int, ...]:
    """The transpose that undoes one."""
    return tuple(map(int, np.argsort(axes)))


def _with_batch(window: Window, shape: tuple[int, ...]) -> tuple[Window, tuple[int, ...]]:
    """A window on ``(batch, *spatial, c)``: without the batch of one, or with it as an axis."""
    if shape[0] == 1:
        return window, shape[1:]
    wider = Window(
        size=(1, *window.size), strides=(1, *window.strides), padding=((0, 0), *window.padding),
        dilation=(1, *window.dilation), input_dilation=(1, *window.input_dilation),
        groups=window.groups,
    )  # fmt: skip
    return wider, shape


def _pool(function: str) -> Rule:
    def rule(b: Builder, eqn: Any, x: Held) -> Held:
        p = eqn.params
        rank = len(x.shape)
        ones = (1,) * rank
        strides = p["window_strides"]
        dilation, base = p.get("window_dilation") or ones, p.get("base_dilation") or ones
        pads = tuple((int(low), int(high)) for low, high in p["padding"])
        sizes = zip(p["window_dimensions"], strides, pads, base, strict=True)
        idle = [w == 1 and s == 1 and pad == (0, 0) and g == 1 for w, s, pad, g in sizes]
        channels = rank if not idle[-1] else rank - 1
        first = 1 if rank > 1 and idle[0] and x.shape[0] == 1 else 0
        x = b.whole(x)
        at = slice(first, channels)
        window = Window(
            size=tuple(p["window_dimensions"][at]), strides=tuple(strides[at]), padding=pads[at],
            dilation=tuple(dilation[at]), input_dilation=tuple(base[at]),
        )  # fmt: skip
        if any(min(pair) < 0 for pair in pads):
            raise refuse(eqn, "a pool with negative padding has no operation; cut the input first")
        shape = (*x.shape[at], *(x.shape[channels:] or (1,)))
        out = (*window.outputs(shape[:-1]), shape[-1])
        y = b.emit(Pool, [x], [shape], out, function=function, window=window)
        return b.reshape(y, _shape(eqn))

    return rule


def _any_pool(b: Builder, eqn: Any, x: Held, start: Held) -> Held:
    inner = eqn.params["jaxpr"]
    names = [e.primitive.name for e in getattr(inner, "jaxpr", inner).eqns]
    wanted = {"max": -math.inf, "add": 0.0}
    if len(names) != 1 or names[0] not in wanted or start.scalar != wanted[names[0]]:
        raise refuse(eqn, f"a pool by {names}; only max and sum (mean) have an operation")
    return _pool("max" if names[0] == "max" else "sum")(b, eqn, x)  # type: ignore[return-value]


def _unpool(b: Builder, eqn: Any, dy: Held, x: Held) -> Held:
    p = eqn.params
    if str(p["select_prim"]) != "ge":
        raise refuse(eqn, "only the gradient of a max pool has an operation")
    x, dy = b.whole(x), b.whole(dy)
    ones = (1,) * (len(x.shape) - 2)
    sizes, strides, pads = (tuple(p[k]) for k in ("window_dimensions", "window_strides", "padding"))
    if x.shape[0] != 1 or sizes[0] != 1 or sizes[-1] != 1:
        raise refuse(eqn, "the gradient of a pool over batch or channels has no operation")
    window = Window(
        size=sizes[1:-1], strides=strides[1:-1],
        padding=tuple((int(low), int(high)) for low, high in pads[1:-1]), dilation=ones,
        input_dilation=ones,
    )  # fmt: skip
    y = b.emit(Unpool, [x, dy], [x.shape[1:], dy.shape[1:]], x.shape[1:], window=window)
    return b.reshape(y, x.shape)


# Reductions, indexing


def _reduce(function: str) -> Rule:
    return lambda b, eqn, x: b.reduce(function, x, eqn.params["axes"], _dtype(eqn))


def _cumulative(function: str) -> Rule:
    def rule(b: Builder, eqn: Any, x: Held) -> Held:
        axis, x = int(eqn.params["axis"]), b.whole(x)
        shape = (math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))
        y = b.emit(
            Cumulative, [x], [shape], shape, function=function, reverse=eqn.params["reverse"]
        )
        return b.reshape(y, x.shape)

    return rule


def _gather(b: Builder, eqn: Any, table: Held, ids: Held) -> Held:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    axes, collapsed = numbers.start_index_map, numbers.collapsed_slice_dims
    offsets, out = numbers.offset_dims, _shape(eqn)
    ids = b.whole(ids)
    if ids.known and ids.array.size == len(axes) and not numbers.operand_batching_dims:
        starts = np.zeros(len(sizes), int)
        last = np.array([table.shape[axis] - sizes[axis] for axis in axes])
        starts[list(axes)] = _within(eqn, np.ravel(ids.array), last)
        return b.reshape(
            b.take(table, [((a, 1, n),) for a, n in zip(starts.tolist(), sizes, strict=True)]), out
        )
    simple = (
        len(axes) == 1 and tuple(collapsed) == tuple(axes) and not numbers.operand_batching_dims
    )
    axis = axes[0] if simple else 0
    if not simple or any(
        n != s for k, (n, s) in enumerate(zip(sizes, table.shape, strict=True)) if k != axis
    ):
        raise refuse(
            eqn, "this indexing has no operation; index one axis by whole numbers (jnp.take)"
        )
    rest = [k for k in range(len(table.shape)) if k != axis]
    table = b.whole(b.transpose(table, (axis, *rest)))
    v, d, n = table.shape[0], math.prod(table.shape[1:]), math.prod(ids.shape)
    if ids.known:
        places = _within(eqn, np.ravel(ids.array), v - 1)
        picked = b.take(table, [runs_of(places.tolist()), *[None] * len(rest)])
    else:
        ids = _cut_off(b, eqn, ids, v - 1)
        picked = b.emit(Gather, [table, ids], [(v, d), (n,)], (n, d), dtype=table.dtype,
                        name=table.weight.name if table.known else "gather")  # fmt: skip
    batch = ids.shape[:-1]
    picked = b.reshape(picked, (*batch, *table.shape[1:]))
    order, left, right = [], 0, len(batch)
    for k in range(len(out)):
        order.append(right if k in offsets else left)
        left, right = (left, right + 1) if k in offsets else (left + 1, right)
    return b.transpose(picked, order)


def _within(eqn: Any, places: np.ndarray, last: Any) -> np.ndarray:
    """Known positions, cut off at the ends as JAX does; not where it would read NaN."""
    inside = np.clip(places, 0, last)
    if "FILL" in str(eqn.params["mode"]) and (inside != places).any():
        raise refuse(
            eqn, f"an index of {places.tolist()!s:.60} lies beyond its axis, and gives NaN"
        )
    return inside


def _cut_off(b: Builder, eqn: Any, ids: Held, last: int) -> Held:
    """Positions that are values, cut off at the ends where JAX does so."""
    if "CLIP" not in str(eqn.params["mode"]):
        return ids
    low, high = (known(np.int32(n), "constant") for n in (0, last))
    return b.map("min", [b.map("max", [ids, low], ids.shape), high], ids.shape)


def _scatter_add(b: Builder, eqn: Any, zeros: Held, ids: Held, rows: Held) -> Held:
    numbers = eqn.params["dimension_numbers"]
    axes, inserted = numbers.scatter_dims_to_operand_dims, numbers.inserted_window_dims
    simple = tuple(axes) == tuple(inserted) == (0,) and not numbers.operand_batching_dims
    rank = len(ids.shape) - 1
    windows = tuple(numbers.update_window_dims)
    if not simple or windows != tuple(range(rank, rank + len(zeros.shape) - 1)):
        raise refuse(eqn, "adding at these positions has no operation; add rows of one axis")
    v, d, n = zeros.shape[0], math.prod(zeros.shape[1:]), math.prod(ids.shape)
    ids, rows = _cut_off(b, eqn, b.whole(ids), v - 1), b.whole(rows)
    y = b.emit(Scatter, [ids, rows], [(n,), (n, d)], (v, d), dtype=rows.dtype, size=v)
    y = b.reshape(y, zeros.shape)
    return y if zeros.scalar == 0.0 else b.map("add", [zeros, y], zeros.shape)


def _split(b: Builder, eqn: Any, x: Held) -> list[Held]:
    axis, start, made = int(eqn.params["axis"]), 0, []
    for size in map(int, eqn.params["sizes"]):
        runs = [((start, 1, size),) if k == axis else None for k in range(len(x.shape))]
        made.append(x.laid("slice", axis, start, start + size) if x.known else b.take(x, runs))
        start += size
    return made


def _unstack(b: Builder, eqn: Any, x: Held) -> list[Held]:
    axis, made = int(eqn.params["axis"]), []
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    for k in range(x.shape[axis]):
        runs = [((k, 1, 1),) if i == axis else None for i in range(len(x.shape))]
        if x.known:
            made.append(x.laid("slice", axis, k, k + 1).laid("reshape", shape))
        else:
            made.append(b.reshape(b.take(x, runs), shape))
    return made


def _dynamic_slice(b: Builder, eqn: Any, x: Held, *starts: Held) -> Held:
    sizes = eqn.params["slice_sizes"]
    x = b.whole(x)
    fixed: list[Any] = []
    free = -1
    for axis, (start, n) in enumerate(zip(starts, sizes, strict=True)):
        at = 0 if x.shape[axis] == n else start.scalar
        fixed.append(None if at is None else ((int(min(max(at, 0), x.shape[axis] - n)), 1, n),))
        if at is None:
            if free >= 0:
                raise refuse(eqn, "a slice whose starts are computed along several axes")
            free = axis
    x = b.take(x, fixed)
    if free < 0:
        return x
    shape = (math.prod(x.shape[:free]), x.shape[free], math.prod(x.shape[free + 1 :]))
    n = sizes[free]
    y = b.emit(Slice, [x, starts[free]], [shape, ()], (shape[0], n, shape[2]), size=n)
    return b.reshape(y, _shape(eqn))


# Sketches


def sketch_of(eqn: Any, leaves: Sequence[Held]) -> rk.Sketch:
    """The sketch of an equation, its seed (and data) known."""
    if eqn.params.get("maps"):
        raise refuse(eqn, "layers with seeds of their own, mapped; scan over them, or use a list")
    if not all(leaf.known for leaf in leaves):
        raise refuse(eqn, "the seed of a sketch depends on the inputs; pass it as a parameter")
    static = eqn.params["sketch"]
    seed = np.asarray(leaves[0].array, np.uint32)
    names = getattr(static, "data", None) or ()
    data = {k: np.asarray(leaf.array) for k, leaf in zip(names, leaves[1:], strict=True)} or None
    return rk.Sketch(static.kind, static.rows, static.cols, seed, static.params, data)  # type: ignore[arg-type]


def _project(b: Builder, eqn: Any, x: Held, *leaves: Held) -> Held:
    sketch, transpose = sketch_of(eqn, leaves), bool(eqn.params["transpose"])
    x = b.whole(x)
    inner, outer = (sketch.cols, sketch.rows) if transpose else (sketch.rows, sketch.cols)
    vectors = math.prod(x.shape) // inner
    y = b.emit(
        Project, [x], [(vectors, inner)], (vectors, outer), sketch=sketch, scale=1.0,
        transpose=transpose,
    )  # fmt: skip
    return b.reshape(y, _shape(eqn))


def _project_patches(b: Builder, eqn: Any, x: Held, *leaves: Held) -> Held:
    sketch, g = sketch_of(eqn, leaves), eqn.params["window"]
    if eqn.params["transpose"]:
        raise refuse(eqn, "the adjoint of a patch projection has no operation")
    n = len(g.window)
    lead = math.prod(x.shape[: len(x.shape) - n - 1])
    x = b.reshape(b.whole(x), (lead, *x.shape[len(x.shape) - n - 1 :]))
    window = Window(
        size=g.window, strides=g.strides, padding=((0, 0),) * n, dilation=g.dilation,
        input_dilation=(1,) * n,
    )  # fmt: skip
    window, shape = _with_batch(window, x.shape)
    out = (*window.outputs(shape[:-1]), window.groups * sketch.cols)
    y = b.emit(PatchProject, [x], [shape], out, sketch=sketch, scale=1.0, window=window)
    return b.reshape(y, _shape(eqn))


_SAME_NAME = (
    "tanh", "neg", "abs", "sign", "floor", "ceil", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt",
    "cbrt", "sin", "cos", "erf", "erfc", "not", "add", "sub", "mul", "div", "rem", "pow", "max",
    "min", "atan2", "and", "or", "xor", "eq", "ne", "lt", "le", "gt", "ge",
)  # fmt: skip

RULES: dict[str, Rule] = {
    **{name: _function(name) for name in _SAME_NAME},
    "logistic": _function("sigmoid"),
    "is_finite": _function("isfinite"),
    "round": _function("round"),
    "square": lambda b, eqn, x: b.map("mul", [x, x], _shape(eqn)),
    "integer_pow": _integer_pow,
    "one_minus_square": _one_minus_square,
    "log2": _log2,
    "polynomial": _polynomial,
    "clamp": _clamp,
    "select_n": _select,
    "convert_element_type": _convert,
    **dict.fromkeys(
        (
            "copy",
            "copy_p",
            "stop_gradient",
            "optimization_barrier",
            "reduce_precision",
            "sharding_constraint",
            "mesh_cast",
            "pvary",
            "reshard",
        ),
        _same,
    ),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "slice": _slice,
    "rev": _reverse,
    "pad": _pad,
    "concatenate": _concatenate,
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "reduce_window_max": _pool("max"),
    "reduce_window_sum": _pool("sum"),
    "reduce_window": _any_pool,
    **{f"reduce_{name}": _reduce(name) for name in ("sum", "max", "min", "prod")},
    "reduce_and": _reduce("all"),
    "reduce_or": _reduce("any"),
    "argmax": _reduce("argmax"),
    "argmin": _reduce("argmin"),
    **{f"cum{name}": _cumulative(name) for name in ("sum", "prod", "max", "min")},
    "select_and_scatter_add": _unpool,
    "scatter-add": _scatter_add,
    "scatter_add": _scatter_add,
    "split": _split,
    "stack": _stack,
    "unstack": _unstack,
    "add_any": _function("add"),
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "rosler_project": _project,
    "rosler_project_patches": _project_patches,
}
"""Every primitive that a graph can have: a new one is one line here."""


def evaluate(eqn: Any, xs: Sequence[Held]) -> list[Any]:
    """An equation of known numbers, computed."""
    given = [_as_array(x, var.aval) for x, var in zip(xs, eqn.invars, strict=True)]
    with jax.ensure_compile_time_eval():
        out = eqn.primitive.bind(*given, **eqn.params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _as_array(x: Held, aval: Any) -> Any:
    return x.array if x.dtype == "key" else np.asarray(x.array, aval.dtype).reshape(aval.shape)
