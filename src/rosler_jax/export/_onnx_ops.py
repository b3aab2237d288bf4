"""Operations of the graph in ONNX's operators, but for windows and loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rosler_jax.export import _onnx_functions as functions
from rosler_jax.export import _onnx_sketch as sketches
from rosler_jax.export._errors import ExportError
from rosler_jax.export._onnx_builder import (
    Builder,
    Tensor,
    add_bias,
    any_form,
    array_of,
    as_held,
    as_type,
    expanded,
    floats,
    indices,
    per_channel,
    read,
    reshape,
)
from rosler_jax.graph.kinds import (
    Affine,
    Concat,
    Cumulative,
    Dense,
    Gather,
    Map,
    MatMul,
    Norm,
    Op,
    Project,
    Reduce,
    Run,
    Scatter,
    Slice,
    Softmax,
    Take,
    Transpose,
    elements,
)
from rosler_jax.graph.weight import Shape


def dense(b: Builder, op: Dense, x: Tensor) -> Tensor:
    """A product with a matrix, of rows; a convolution where the channels lie first."""
    m, n = op.weight.shape
    bias = () if op.bias is None else (floats(b, op.bias.values),)
    kernel = op.weight.then("transpose", (1, 0))
    if x.first and x.shape[-1] == m and math.prod(x.trailing) > 1:
        window = array_of(b, kernel.then("reshape", (n, m, *(1,) * len(x.trailing))))
        name = b.add("Conv", x.name, window, *bias)
        return x._replace(name=name, shape=(*x.trailing, n))
    # The matrix lies transposed: onnxruntime rounds activations to 8 bits where a matrix of small
    # integers stands behind a plain product.
    x = read(b, x, (m,))
    return x._replace(name=b.add("Gemm", x.name, array_of(b, kernel), *bias, transB=1), shape=(n,))


def project(b: Builder, op: Project, x: Tensor) -> Tensor:
    """A product with a sketch; along the channels where they lie first."""
    inner, outer = op.in_shape[-1], op.out_shape[-1]
    first = x.first and x.shape[-1] % inner == 0
    trailing = math.prod(x.trailing) if first else 1
    if not first:
        x = read(b, x, (inner,))
    elif x.shape[-1] != inner or len(x.trailing) > 1 or trailing == 1:
        name = reshape(b, x.name, inner, *((trailing,) if trailing > 1 else ()))
        x = x._replace(name=name)
    name = sketches.project(b, x.name, op.sketch, op.scale, op.transpose, trailing)
    if not first:
        y = x._replace(name=name, shape=(outer,))
        biased = op.bias is not None and op.bias.values.size
        return add_bias(b, read(b, y, (biased,)) if biased else y, op.bias)
    shape = (*x.trailing, x.shape[-1] // inner * outer)
    name = reshape(b, name, shape[-1], *x.trailing)
    return add_bias(b, x._replace(name=name, shape=shape), op.bias)


def matmul(b: Builder, op: MatMul, x: Tensor, y: Tensor) -> Tensor:
    """A product of two values, for each of a batch."""
    single = op.in_shape[0] == 1
    x, y = (read(b, v, shape[single:]) for v, shape in zip((x, y), op.in_shapes, strict=True))
    other = y.name
    if op.transpose:
        other = b.add("Transpose", other, perm=[0, 2, 1] if single else [0, 1, 3, 2])
    return Tensor(
        b.add("MatMul", x.name, other), op.out_shape[single:], batched=x.batched or y.batched
    )


def affine(b: Builder, op: Affine, x: Tensor) -> Tensor:
    """``(x - center) * factor``."""
    x = any_form(b, as_type(b, x, "float32"))
    sizes = {array.size for array in (op.center, op.factor) if array.ndim}
    if sizes - {x.shape[-1] if x.shape else 1}:
        x = read(b, x, op.in_shape)
    name = x.name
    if op.center.any():
        name = b.add("Sub", name, per_channel(b, x, op.center))
    return x._replace(name=b.add("Mul", name, per_channel(b, x, op.factor)))


def elementwise(b: Builder, op: Map, *xs: Tensor) -> Tensor:
    """A function of one to three values."""
    dtypes = functions.operand_dtypes(op.function, [x.dtype for x in xs])
    xs = tuple(as_type(b, x, dtype) for x, dtype in zip(xs, dtypes, strict=True))
    names, form = _aligned(b, op, xs)
    divisor = xs[-1].weight
    safe = divisor is not None and not np.isin(divisor.values, (0, -1)).any()
    name = functions.emit(b, op.function, op.numbers, dtypes[-1], *names, safe=safe)
    y = form._replace(name=name, dtype=functions.result_dtype(op.function, dtypes))
    return as_type(b, y, op.dtypes[0])


def _aligned(b: Builder, op: Map, xs: tuple[Tensor, ...]) -> tuple[list[str], Tensor]:
    """Operands that broadcast against each other, and the form of the result."""
    if len(xs) == 1:
        x = any_form(b, xs[0])
        return [x.name], x
    whole = np.broadcast_shapes(*op.in_shapes)
    shapes = [(1,) * (len(whole) - len(shape)) + tuple(shape) for shape in op.in_shapes]
    full = [x for x, shape in zip(xs, shapes, strict=True) if shape == whole and not x.weight]
    # Channels first, else rows rather than matrices: what comes next is likely to want them so.
    lead = min(full, key=lambda x: (not x.first, len(x.shape)), default=None)
    batched = any(x.batched for x in xs)
    if lead is not None:
        found = [_beside(b, x, shape, whole, lead) for x, shape in zip(xs, shapes, strict=True)]
        if None not in found:
            return [str(name) for name in found], lead._replace(batched=batched)
    first = lead is not None and lead.first and lead.shape == whole
    read_ = [read(b, x, shape, first) for x, shape in zip(xs, shapes, strict=True)]
    return [x.name for x in read_], Tensor("", whole, first, batched)


def _beside(b: Builder, x: Tensor, shape: Shape, whole: Shape, lead: Tensor) -> str | None:
    """An operand in a form that meets the form of another; None if there is none."""
    n = math.prod(shape)
    if shape == whole and (x.batched == lead.batched or math.prod(lead.shape) == n):
        return read(b, x, lead.shape, lead.first).name
    if x.batched or n not in (1, whole[-1]) or math.prod(shape[:-1]) > 1:
        return None
    if n == 1:
        x = read(b, x, ())
    elif lead.shape[-1:] == (n,):
        x = read(b, x, (n,))
    else:
        return None
    return reshape(b, x.name, *x.shape, *(1,) * len(lead.trailing)) if lead.trailing else x.name


_REDUCE = {
    "sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin", "prod": "ReduceProd",
    "any": "ReduceMax", "all": "ReduceMin", "argmax": "ArgMax", "argmin": "ArgMin",
}  # fmt: skip


def reduce(b: Builder, op: Reduce, x: Tensor) -> Tensor:
    """A sum and the like over axes."""
    if x.dtype == "bool":
        x = as_type(b, x, "int32")
    x = as_held(b, x, op.in_shape)
    axes, scale = sorted(x.axis(axis) for axis in op.axes), op.scale
    last = len(op.in_shape) - 1
    shape = tuple(n for k, n in enumerate(op.in_shape) if k not in op.axes)
    kind, dtype, options = _REDUCE[op.function], x.dtype, {"keepdims": 0}
    if op.function.startswith("arg"):
        name, dtype = b.cast(b.add(kind, x.name, axis=axes[0], **options), "int32"), "int32"
    elif not axes:
        name = x.name
    else:
        count = math.prod(op.in_shape[axis] for axis in op.axes)
        if op.function == "sum" and dtype == "float32" and abs(scale * count - 1.0) < 1e-6:
            kind, scale = "ReduceMean", 1.0
        name = b.add(kind, x.name, b.ints(*axes), **options)
    if scale != 1.0:
        name = b.add("Mul", name, b.number(scale))
    first = x.first and last not in op.axes and len(shape) > 1
    return as_type(b, x._replace(name=name, shape=shape, first=first, dtype=dtype), op.dtypes[0])


def take(b: Builder, op: Take, x: Tensor) -> Tensor:
    """Positions along axes: what lies apart is gathered, then cut, repeated and padded."""
    x = as_held(b, x, op.in_shape)
    name, rank = x.name, len(op.in_shape) + 1
    fill = b.number(op.fill, x.dtype) if op.fill else ""
    cuts, repeats, pads = [], [1] * rank, [0] * (2 * rank)
    for k, runs in enumerate(op.index):
        if runs is None:
            continue
        axis, size = x.axis(k), op.in_shape[k]
        low, inside, high = _split(runs)
        if len(inside) != 1:
            name = _gathered(b, name, np.array(elements(inside, size)), axis, rank, size, fill)
        else:
            start, step, n = inside[0]
            repeats[axis] = n if step == 0 else 1
            n, step = (1, 1) if step == 0 or n == 1 else (n, step)
            stop = start + n * step
            if (start, step, stop) != (0, 1, size):
                cuts.append((start, stop if stop >= 0 else -size - 1, axis, step))
        pads[axis], pads[axis + rank] = low, high
    if cuts:
        name = b.add("Slice", name, *(b.ints(*column) for column in zip(*cuts, strict=True)))
    if max(repeats) > 1:
        name = b.add("Expand", name, b.ints(*repeats))
    if any(pads):
        name = b.add("Pad", name, b.ints(*pads), *((fill,) if fill else ()))
    shape = tuple(
        n if runs is None else len(elements(runs, n))
        for runs, n in zip(op.index, op.in_shape, strict=True)
    )
    return x._replace(name=name, shape=shape)


def _split(runs: tuple[Run, ...]) -> tuple[int, tuple[Run, ...], int]:
    """Filling in front, what is picked, filling behind."""
    low = runs[0][2] if runs[0][0] < 0 else 0
    runs = runs[1:] if low else runs
    high = runs[-1][2] if runs and runs[-1][0] < 0 else 0
    return low, runs[:-1] if high else runs, high


def _gathered(
    b: Builder, name: str, picked: np.ndarray, axis: int, rank: int, size: int, fill: str
) -> str:
    if (picked < 0).any():  # one number more, that is filled in
        pads = b.ints(*(int(k == axis + rank) for k in range(2 * rank)))
        name = b.add("Pad", name, pads, *((fill,) if fill else ()))
    return b.add("Gather", name, indices(b, np.where(picked < 0, size, picked)), axis=axis)


def transpose(b: Builder, op: Transpose, x: Tensor) -> Tensor:
    """Axes in another order; none of it where the file holds them in that order."""
    x = as_held(b, x, op.in_shape)
    rank = len(op.in_shape)
    shape = tuple(op.in_shape[axis] for axis in op.axes)
    if not x.first and op.axes == (*range(1, rank), 0) and rank > 1:
        return x._replace(shape=shape, first=True)
    order = [0, *(x.axis(axis) for axis in op.axes)]
    name, at = x.name, {x.axis(k): n for k, n in enumerate(op.in_shape)}
    moved = [k for k in order[1:] if at[k] > 1]
    if order != sorted(order):
        if moved == sorted(moved):
            name = reshape(b, name, *shape)
        else:
            name = b.add("Transpose", name, perm=order)
    return x._replace(name=name, shape=shape, first=False)


def concat(b: Builder, op: Concat, *xs: Tensor) -> Tensor:
    """Values one behind the other."""
    given = list(zip(xs, op.in_shapes, strict=True))
    first = any(x.first and x.shape == shape for x, shape in given)
    parts = [read(b, x, shape, first) for x, shape in given]
    batched = any(x.batched for x in xs)
    if batched:
        parts = [expanded(b, x) for x in parts]
    shape = list(op.in_shape)
    shape[op.axis] = sum(given[op.axis] for given in op.in_shapes)
    y = Tensor("", tuple(shape), first, batched, op.dtypes[0])
    return y._replace(name=b.add("Concat", *(x.name for x in parts), axis=y.axis(op.axis)))


def softmax(b: Builder, op: Softmax, x: Tensor) -> Tensor:
    """Softmax along the last axis."""
    x = any_form(b, x)
    if x.shape[-1:] != op.in_shape[-1:]:
        x = read(b, x, op.in_shape[-1:])
    kind = "LogSoftmax" if op.log else "Softmax"
    return x._replace(name=b.add(kind, x.name, axis=1 if x.first else -1))


def norm(b: Builder, op: Norm, x: Tensor) -> Tensor:
    """A norm along the last axis."""
    n = op.in_shape[-1:]
    x = read(b, x, x.shape if x.shape[-1:] == n and not x.weight else n)
    scale = None if op.scale is None else floats(b, op.scale.values)
    if op.center:
        inputs = [x.name, b.constant(np.ones(n, np.float32)) if scale is None else scale]
        if op.bias is not None:
            inputs.append(floats(b, op.bias.values))
        return x._replace(name=b.add("LayerNormalization", *inputs, epsilon=op.epsilon))
    # The form that runtimes know as one operator.
    mean = b.add("ReduceMean", b.add("Pow", x.name, b.number(2.0)), b.ints(-1))
    name = b.add("Div", x.name, b.add("Sqrt", b.add("Add", mean, b.number(op.epsilon))))
    name = name if scale is None else b.add("Mul", name, scale)
    return add_bias(b, x._replace(name=name), op.bias)


def gather(b: Builder, op: Gather, table: Tensor, ids: Tensor) -> Tensor:
    """Rows of a table; beyond it what JAX fills in."""
    (rows, width), (n,) = op.in_shapes
    table = as_type(b, table, "int32") if table.dtype == "bool" else table
    ids = read(b, as_type(b, ids, "int32"), (n,))
    least = b.number(-rows if op.wrap else 0, "int32")
    inside = b.add("Clip", ids.name, least, b.number(rows - 1, "int32"))
    if not table.batched:
        name = _rows_of(b, table, (rows, width), inside)
    elif ids.batched:
        name = read(b, table, (rows, width)).name
        places = b.cast(reshape(b, inside, n, 1), "int64")
        name = b.add("GatherND", name, places, batch_dims=1)
    else:
        flat = b.add("Reshape", inside, b.ints(n))
        name = b.add("Gather", read(b, table, (rows, width)).name, flat, axis=1)
    fill = math.nan if table.dtype == "float32" else np.iinfo(np.int32).min
    known = reshape(b, b.add("Equal", ids.name, inside), n, 1)
    name = b.add("Where", known, name, b.number(fill, table.dtype))
    y = Tensor(name, (n, width), False, table.batched or ids.batched, table.dtype)
    return as_type(b, y, op.dtypes[0])


def _rows_of(b: Builder, table: Tensor, shape: Shape, ids: str) -> str:
    if table.weight is None:
        return b.add("Gather", b.add("Reshape", table.name, b.ints(*shape)), ids, axis=0)
    weight = table.weight.then("reshape", shape)
    return b.add("Gather", array_of(b, weight), ids, axis=0)


def scatter(b: Builder, op: Scatter, ids: Tensor, rows: Tensor) -> Tensor:
    """Rows added where numbers say; those beyond go to one row more, which is cut off."""
    (n,), (_, width) = op.in_shapes
    ids, rows = read(b, as_type(b, ids, "int32"), (n,)), read(b, rows, (n, width))
    beyond = b.number(op.size, "int32")
    below = b.add("Less", ids.name, b.number(0, "int32"))
    at = b.add("Where", below, beyond, b.add("Min", ids.name, beyond))
    at = b.add("Expand", reshape(b, at, n, 1), b.ints(1, n, width))
    zeros = b.constant(np.zeros((1, 1, 1), rows.dtype))
    zeros = b.add("Expand", zeros, b.ints(1, op.size + 1, width))
    batched = ids.batched or rows.batched
    shapes = zip((zeros, at, rows.name), (False, ids.batched, rows.batched), strict=True)
    parts = [Tensor(name, (n, width), batched=many) for name, many in shapes]
    names = [(expanded(b, x) if batched else x).name for x in parts]
    name = b.add("ScatterElements", *names, axis=1, reduction="add")
    name = b.add("Slice", name, b.ints(0), b.ints(op.size), b.ints(1))
    return Tensor(name, (op.size, width), batched=batched, dtype=rows.dtype)


def refused(b: Builder, op: Op, *xs: Tensor) -> Tensor:
    """What only the gradients of a model have."""
    raise ExportError(
        f"{op.name}: ONNX has no {type(op).__name__}, which is a gradient's; export the model"
    )


_IDENTITY = {"prod": 1, "max": -np.inf, "min": np.inf}
_COMBINE = {"prod": "Mul", "max": "Max", "min": "Min"}


def cumulative(b: Builder, op: Cumulative, x: Tensor) -> Tensor:
    """Running sums; of what has no operator of its own, by steps of 1, 2, 4, ... positions."""
    x = read(b, as_type(b, x, op.dtypes[0]), op.in_shape)
    if op.function == "sum":
        name = b.add("CumSum", x.name, b.number(2, "int64"), reverse=int(op.reverse))
        return x._replace(name=name)
    n, step, name = op.in_shape[1], 1, x.name
    start = _IDENTITY[op.function]
    if np.isinf(start) and x.dtype == "int32":
        start = np.iinfo(np.int32).min if start < 0 else np.iinfo(np.int32).max
    while step < n:
        ends = (step, n) if op.reverse else (0, n - step)
        part = b.add("Slice", name, *map(b.ints, (*ends, 2)))
        pads = (0,) * 6 + (step, 0) if op.reverse else (0, 0, step) + (0,) * 5
        moved = b.add("Pad", part, b.ints(*pads), b.number(start, x.dtype))
        name, step = b.add(_COMBINE[op.function], name, moved), 2 * step
    return x._replace(name=name)


def dynamic_slice(b: Builder, op: Slice, x: Tensor, start: Tensor) -> Tensor:
    """Positions from a start that is a value: counted from the end if negative, kept inside."""
    outer, n, inner = op.in_shape
    start = read(b, as_type(b, start, "int32"), (1,))
    behind = b.add("Add", start.name, b.number(n, "int32"))
    at = b.add("Where", b.add("Less", start.name, b.number(0, "int32")), behind, start.name)
    at = b.add("Clip", at, b.number(0, "int32"), b.number(n - op.size, "int32"))
    places = b.add("Add", at, b.constant(np.arange(op.size, dtype=np.int32)))
    x = read(b, x, op.in_shape)
    if not start.batched:
        flat = b.add("Reshape", places, b.ints(op.size))
        return x._replace(name=b.add("Gather", x.name, flat, axis=2), shape=(outer, op.size, inner))
    x = transpose(b, _moving(op.in_shape), expanded(b, x))
    places = b.cast(reshape(b, places, op.size, 1), "int64")
    name = b.add("GatherND", read(b, x, (n, outer, inner)).name, places, batch_dims=1)
    x = x._replace(name=name, shape=(op.size, outer, inner), first=False)
    return transpose(b, _moving((op.size, outer, inner)), x)


def _moving(shape: Shape) -> Any:
    a, n, c = shape
    return Transpose(
        name="", inputs=(), outputs=(), in_shapes=(shape,), out_shapes=((n, a, c),), axes=(1, 0, 2)
    )
