"""How each kind of operation becomes TFLite operators."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rosler_jax.export import _tflite_sketch as sketches
from rosler_jax.export._errors import ExportError
from rosler_jax.export._stored import Integers, entries, integers_of
from rosler_jax.export._tflite_builder import (
    UNITS,
    Builder,
    Operand,
    Options,
    Value,
    alike,
    apply,
    concatenated,
    cut,
    elementwise,
    every,
    gather,
    ints,
    like,
    moved,
    numbers,
    pad,
    quantized,
    real,
    reshape,
    sampled,
    value,
    with_numbers,
)
from rosler_jax.export._tflite_file import Operator, Tensor
from rosler_jax.export._tflite_functions import FUNCTIONS, IN_INTEGERS, cast, looked_up, zero_of
from rosler_jax.export._tflite_window import convolved, pooled
from rosler_jax.export.inputs import check_finite
from rosler_jax.graph import kinds
from rosler_jax.graph.compute import COMPUTE, group_filters
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.kinds import Op, elements
from rosler_jax.graph.weight import Shape, Weight

LONGEST = 128
"""Steps of a scan that are written out one after the other."""
BELOW = 12.0
"""How far a mask in front of a softmax goes below all else in integers: its share is 6e-6."""

Node = Value | Weight
"""A value of a graph: computed, or stored."""


# --- the walk -----------------------------------------------------------------------------------


def emitted(b: Builder, graph: Graph, given: Sequence[Node]) -> list[Node]:
    """Adds the operators of a graph; gives its outputs."""
    values: dict[int, Node] = dict(graph.constants)
    values |= {v.id: x for v, x in zip(graph.inputs, given, strict=True)}
    fused, done = _fused(graph), set()
    kept = {v.id for v in graph.outputs}
    ends = {k: op for op in graph.ops for k in op.inputs if k not in kept}
    masked, fine = (_masked(graph), _fine(graph)) if b.integer else (set(), set())
    for op in graph.ops:
        if id(op) in done:
            continue
        xs = [values[k] for k in op.inputs]
        for k in set(op.inputs):
            if ends.get(k) is op:  # what calibration inputs gave is large
                del values[k]
        if all(isinstance(x, Weight) for x in xs):
            values |= zip(op.outputs, _folded(op, xs), strict=True)
            continue
        act, after = fused.get(id(op), (None, None))
        b.at = id(op), 0
        if op.output in masked:
            xs = _shallow(xs)
        in_floats = op.output in fine and isinstance(op, (kinds.Map, kinds.Reduce, kinds.Affine))
        if in_floats:
            xs = [real(b, x) if isinstance(x, Value) else x for x in xs]
        with np.errstate(all="ignore"):  # refused below
            within = dataclasses.replace(b, activations=32) if in_floats else b
            made = EMIT[type(op)](within, op, act, *xs)
        results = made if isinstance(made, list) else [made]
        for x in results:
            if isinstance(x, Value) and x.sample is not None and x.dtype == "float32":
                check_finite(x.sample, op.name)
        if after is not None:
            done.add(id(after))
        values |= zip((after or op).outputs, results, strict=True)
    return [values[v.id] for v in graph.outputs]


def _folded(op: Op, xs: Sequence[Any]) -> list[Weight]:
    """An operation on stored arrays alone, done here."""
    given = (x.values.reshape(shape) for x, shape in zip(xs, op.in_shapes, strict=True))
    made = COMPUTE[type(op)](op, None, *given)
    results = made if isinstance(op, kinds.Scan) else [made]
    return [
        Weight(f"{op.name}/{i}", np.asarray(y).astype(dtype))
        for i, (y, dtype) in enumerate(zip(results, op.dtypes, strict=True))
    ]


def _fused(graph: Graph) -> dict[int, tuple[str, Op]]:
    """Operations that do an activation last, which follows and that nothing else reads."""
    users, found = graph.consumers(), {}
    outputs = {v.id for v in graph.outputs}
    for op in graph.ops:
        after = users.get(op.output, [])
        fits = isinstance(op, (kinds.Dense, kinds.Conv)) or (
            isinstance(op, kinds.Map) and op.function in ("add", "sub", "mul")
        )
        if fits and len(after) == 1 and op.output not in outputs and op.dtypes == ("float32",):
            act = _activation(after[0])
            if act is not None:
                found[id(op)] = act, after[0]
    return found


def _activation(op: Op) -> str | None:
    if not isinstance(op, kinds.Map):
        return None
    named = {("relu",): "relu", ("clamp", 0.0, 6.0): "relu6", ("clamp", -1.0, 1.0): "relu_n1_to_1"}
    return named.get((op.function, *op.numbers))


def _masked(graph: Graph) -> set[int]:
    """Values that softmaxes alone read, and that a mask may have been put on."""
    return {
        k
        for k, users in graph.consumers().items()
        if all(isinstance(op, kinds.Softmax) and not op.log for op in users)
    } & {op.output for op in graph.ops if isinstance(op, kinds.Map) and len(op.inputs) > 1}


def _fine(graph: Graph) -> set[int]:
    """Values that are divided by, or of which a root or logarithm is taken, and what makes them.

    Near zero a step is too much for those: they stay floats in files of integers.
    """
    found: set[int] = set()
    for op in reversed(graph.ops):
        function = op.function if isinstance(op, (kinds.Map, kinds.Reduce)) else ""
        if function == "div":
            found.add(op.inputs[1])
        steep = function in ("sqrt", "rsqrt", "log", "log1p", "cbrt")
        through = function in ("add", "mul", "max", "power", "abs", "exp", "sum")
        computed = set(op.inputs) - graph.constants.keys()
        if steep or (through and len(computed) == 1 and op.output in found):
            found |= {op.output, *computed}
    return found


def _shallow(xs: Sequence[Node]) -> list[Node]:
    """Operands without the depth of a mask, which would take all the steps of integers."""
    samples = [x.sample for x in xs if isinstance(x, Value) and x.dtype == "float32"]
    reach = [(s.min(), s.max()) for s in samples if s is not None]
    low = min((least - max(most, 0) for least, most in reach), default=0.0) - np.float32(BELOW)
    return [
        Weight(x.name, np.maximum(x.values, low))
        if isinstance(x, Weight) and x.values.dtype == np.float32
        else x
        for x in xs
    ]


def batched(b: Builder, weight: Weight, shape: Shape) -> Value:
    """A stored array as a value, one for each example."""
    assert b.first is not None
    row = reshape(b, b.first, math.prod(b.first.shape[1:]))
    zero = zero_of(b, cast(b, cut(b, row, [0], [1]), "float32"))
    array = weight.values.reshape(-1)
    if array.dtype != np.float32:
        whole = elementwise(b, "ADD", cast(b, zero, "int32"), array.astype(np.int32))
        return reshape(b, cast(b, whole, "bool") if array.dtype == bool else whole, *shape)
    return reshape(b, elementwise(b, "ADD", zero, array), *shape)


def _value(b: Builder, x: Node, shape: Shape) -> Value:
    """An operand as a value in a shape."""
    return batched(b, x, shape) if isinstance(x, Weight) else reshape(b, x, *shape)


# --- products -----------------------------------------------------------------------------------


def _weight(
    b: Builder, x: Value, w: Weight, order: tuple[int, ...]
) -> tuple[Value, Integers | np.ndarray]:
    """A weight with the output's axis first; scales of its inputs go to what comes in."""
    if b.bits == 32:
        return x, np.ascontiguousarray(w.values.transpose(order))
    integers = _whole(b, w)
    values = np.ascontiguousarray(integers.values.transpose(order))
    values = values.astype(np.int16 if b.bits == 16 else np.int8)
    if integers.axis != -2:
        return x, Integers(values, integers.scale, integers.axis)
    channels = x.shape[-1]
    x = with_numbers(b, "MUL", x, np.tile(integers.scale, channels // integers.scale.size))
    return x, Integers(values, np.ones(1, np.float32), None)


def _whole(b: Builder, w: Weight) -> Integers:
    """A weight in integers with scales of its outputs or of its inputs: the file's where they are.

    A factor more in 8 bits would cost more than new scales do.
    """
    axis = -1 if b.activations == 8 else None
    if sum(n > 1 for n in w.factors.shape) > 1 or w.axis not in (None, -1, -2):
        w, axis = Weight(w.name, w.values), -1
    return integers_of(w, b.bits, axis)


def _bias(bias: Weight | None) -> np.ndarray | None:
    return None if bias is None else bias.values.ravel()


def _dense(b: Builder, op: kinds.Dense, act: str | None, x: Value) -> Value:
    rows = quantized(b, reshape(b, x, op.in_shape[-1]))
    rows, weight = _weight(b, rows, op.weight, (1, 0))
    return sketches.dense(b, rows, weight, _bias(op.bias), act)


def _conv(b: Builder, op: kinds.Conv, act: str | None, x: Value) -> Value:
    n = len(op.window.size)
    x, weight = _weight(b, _channels(b, x, op), op.weight, (n + 1, *range(n + 1)))
    return convolved(b, op, x, weight, _bias(op.bias), act)


def _patches(b: Builder, op: kinds.PatchProject, act: str | None, x: Value) -> Value:
    filters = group_filters(op, entries(op.sketch) * np.float32(op.scale))
    weight = sketches.matrix(b, np.moveaxis(np.asarray(filters), -1, 0))
    return convolved(b, op, _channels(b, x, op), weight, None, None)


def _convolve(b: Builder, op: kinds.Convolve, act: str | None, x: Node, kernel: Node) -> Value:
    if isinstance(kernel, Value):
        raise ExportError(
            f"{op.name}: TFLite has no convolution with a kernel that is computed, another in "
            "every example; use another target (c, onnx, stablehlo)"
        )
    n = len(op.window.size)
    rows = _channels(b, _value(b, x, op.in_shape), op)
    kernel = kernel.then("reshape", op.in_shapes[1])
    rows, weight = _weight(b, rows, kernel, (n + 1, *range(n + 1)))
    return convolved(b, op, rows, weight, None, act)


def _refused(b: Builder, op: Op, act: str | None, *xs: Node) -> Value:
    raise ExportError(
        f"{op.name}: TFLite has no {type(op).__name__}, which is a gradient's; export the model"
    )


def _channels(b: Builder, x: Value, op: Op) -> Value:
    """What a window slides over, its channels last."""
    n = op.in_shape[-1]
    return quantized(b, x if x.shape[-1] == n else reshape(b, x, *op.in_shape))


def _project(b: Builder, op: kinds.Project, act: str | None, x: Value) -> Value:
    x = reshape(b, x, op.sketch.cols if op.transpose else op.sketch.rows)
    bias = _bias(op.bias)
    columns = op.sketch.rows if op.transpose else op.sketch.cols
    if bias is None or bias.size == columns:
        return sketches.project(b, x, op.sketch, op.scale, op.transpose, bias)
    y = sketches.project(b, x, op.sketch, op.scale, op.transpose)
    return with_numbers(b, "ADD", reshape(b, y, bias.size), bias)


def _matmul(b: Builder, op: kinds.MatMul, act: str | None, x: Node, y: Node) -> Value:
    (many, m, _), after = op.in_shape, op.in_shapes[1]
    if isinstance(y, Weight) and many == 1:
        matrix = y.then("reshape", after[1:])
        matrix = matrix.then("transpose", (1, 0)) if op.transpose else matrix
        rows = quantized(b, _value(b, x, op.in_shape[-1:]))
        rows, weight = _weight(b, rows, matrix, (1, 0))
        return sketches.dense(b, rows, weight, None)
    n = after[1 if op.transpose else 2]
    stored = isinstance(x, Weight) or isinstance(y, Weight)
    operands: list[Operand] = []
    for node, shape in zip((x, y), op.in_shapes, strict=True):
        if isinstance(node, Weight):
            operands.append(node.values.reshape(1, *shape))
        else:  # the batch is part of the first axis, unless a stored array has none
            operands.append(quantized(b, reshape(b, node, *(shape if stored else shape[1:]))))

    def multiply(s: np.ndarray, t: np.ndarray) -> np.ndarray:
        return np.matmul(s, t.swapaxes(-1, -2) if op.transpose else t)

    sample = sampled(multiply, *operands)
    out = value(b, (1, many, m, n) if stored else (many, m, n), sample)
    inputs = [x.tensor if isinstance(x, Value) else numbers(b, x, b.integer) for x in operands]
    return apply(b, "BATCH_MATMUL", inputs, out, ("BatchMatMulOptions", {"AdjY": op.transpose}))


# --- elementwise --------------------------------------------------------------------------------


def _affine(b: Builder, op: kinds.Affine, act: str | None, x: Value) -> Value:
    channels = max(op.center.size, op.factor.size)
    if channels not in (1, x.shape[-1]):
        x = reshape(b, x, channels)
    center, factor = (a.reshape(() if a.size == 1 else -1) for a in (op.center, op.factor))
    return with_numbers(b, "MUL", with_numbers(b, "SUB", x, center), factor)


def _map(b: Builder, op: kinds.Map, act: str | None, *xs: Node) -> Value:
    operands, f = _aligned(b, op, xs), FUNCTIONS[op.function]
    in_integers = b.integer and op.function in IN_INTEGERS[b.activations]
    if b.activations == 8 and not in_integers and len(xs) == 1 and op.dtypes == ("float32",):
        only = operands[0]
        if isinstance(only, Value) and only.dtype == "float32":
            return looked_up(b, op, only)
    if b.integer and op.function == "div" and isinstance(operands[1], np.ndarray):
        return elementwise(b, "MUL", quantized(b, operands[0]), 1 / operands[1])  # type: ignore[arg-type]
    change = quantized if in_integers else real
    operands = [change(b, x) if isinstance(x, Value) else x for x in operands]
    if act is not None:
        return elementwise(b, op.function.upper(), *operands, act=act)
    try:
        return f(b, *operands, *op.numbers)
    except ExportError as error:
        raise ExportError(f"{op.name}: {error}") from error


def _aligned(b: Builder, op: kinds.Map, xs: Sequence[Node]) -> list[Operand]:
    """Operands in shapes that TFLite broadcasts, with as few axes and reshapes as may be."""
    full = np.broadcast_shapes(*op.in_shapes)
    computed = [(x, s) for x, s in zip(xs, op.in_shapes, strict=True) if isinstance(x, Value)]
    if any(math.prod(s) != math.prod(full) for _, s in computed):
        return _broadcast(b, op, xs, full)
    shape = computed[0][0].shape
    operands = [
        x if isinstance(x, Value) else _short(np.broadcast_to(x.values.reshape(s), full), shape)
        for x, s in zip(xs, op.in_shapes, strict=True)
    ]
    if shape[0] > 1 and any(isinstance(x, np.ndarray) and x.ndim == len(shape) for x in operands):
        shape = (1, *shape)  # numbers vary along an axis that the batch was part of
    return [reshape(b, x, *shape[1:]) if isinstance(x, Value) else x for x in operands]


def _short(a: np.ndarray, shape: Shape) -> np.ndarray:
    """An array in a shape, less the axes along which it does not vary, those in front dropped."""
    a = a.reshape(shape)
    for k in range(a.ndim):
        first = a.take([0], k)
        if np.array_equal(np.broadcast_to(first, a.shape), a, equal_nan=a.dtype.kind == "f"):
            a = first
    lead = next((k for k, n in enumerate(a.shape) if n > 1), a.ndim)
    return np.ascontiguousarray(a.reshape(a.shape[lead:]))


def _broadcast(b: Builder, op: kinds.Map, xs: Sequence[Node], full: Shape) -> list[Operand]:
    """Operands whose axes that are broadcast alike are one."""
    shapes = [(1,) * (len(full) - len(s)) + tuple(s) for s in op.in_shapes]
    merged: list[list[int]] = []
    before = None
    for k, n in enumerate(full):
        pattern = [s[k] > 1 for s in shapes]
        if n == 1:
            continue
        if pattern != before:
            merged.append([1] * len(shapes))
        merged[-1] = [m * s[k] for m, s in zip(merged[-1], shapes, strict=True)]
        before = pattern
    new = [tuple(axis[i] for axis in merged) for i in range(len(shapes))]
    return [
        reshape(b, x, *s) if isinstance(x, Value) else x.values.reshape(s)
        for x, s in zip(xs, new, strict=True)
    ]


# --- rows ---------------------------------------------------------------------------------------


def _softmax(b: Builder, op: kinds.Softmax, act: str | None, x: Value) -> Value:
    kind = "LOG_SOFTMAX" if op.log else "SOFTMAX"
    x = reshape(b, x, op.in_shape[-1])
    steps = UNITS.get((kind, b.activations))
    x = quantized(b, x) if steps else real(b, x)

    def f(s: np.ndarray) -> np.ndarray:
        z = s - s.max(-1, keepdims=True)
        total = np.exp(z).sum(-1, keepdims=True)
        return z - np.log(total) if op.log else np.exp(z) / total

    out = value(b, x.shape, sampled(f, x), steps, real=steps is None)
    options = ("LogSoftmaxOptions", {}) if op.log else ("SoftmaxOptions", {"Beta": 1.0})
    return apply(b, kind, [x.tensor], out, options)


def _norm(b: Builder, op: kinds.Norm, act: str | None, x: Value) -> Value:
    """In floats in every file: 8 bits of a variance are too few to divide by."""
    x = real(b, reshape(b, x, op.in_shape[-1]))
    if op.center:
        x = elementwise(b, "SUB", x, _mean(b, x))
    spread = elementwise(b, "ADD", _mean(b, elementwise(b, "MUL", x, x)), np.float32(op.epsilon))
    x = elementwise(b, "MUL", x, elementwise(b, "RSQRT", spread))
    x = x if op.scale is None else with_numbers(b, "MUL", x, _bias(op.scale))
    return x if op.bias is None else with_numbers(b, "ADD", x, _bias(op.bias))


def _mean(b: Builder, x: Value) -> Value:
    return moved(
        b, "MEAN", x, (x.shape[0], 1), lambda s: s.mean(-1, keepdims=True), [[1]],
        ("ReducerOptions", {"KeepDims": True}),
    )  # fmt: skip


_REDUCE: dict[str, tuple[str, Callable[..., Any]]] = {
    "sum": ("SUM", np.sum),
    "max": ("REDUCE_MAX", np.max),
    "min": ("REDUCE_MIN", np.min),
    "prod": ("REDUCE_PROD", np.prod),
    "all": ("REDUCE_ALL", np.all),
    "any": ("REDUCE_ALL", np.all),
}


def _reduce(b: Builder, op: kinds.Reduce, act: str | None, x: Value) -> Value:
    if op.function.startswith("arg"):
        return _arg(b, op, x)
    if op.function == "any":  # TFLite Micro knows all alone
        x = elementwise(b, "LOGICAL_NOT", x)
    kind, f = _REDUCE[op.function]
    count = math.prod(op.in_shape[k] for k in op.axes)
    mean = op.function == "sum" and abs(op.scale * count - 1) < 1e-6
    if mean:
        kind, f = "MEAN", np.mean
    exact = b.activations == 8 and kind in ("REDUCE_MAX", "REDUCE_MIN")
    x = quantized(b, x) if exact or kind in ("MEAN", "SUM") else real(b, x)
    x, axes = _to_reduce(b, op, x)
    kept = [n for k, n in enumerate(x.shape) if k not in axes]
    sample = sampled(lambda s: f(s, axis=tuple(axes)), x)
    steps = x.steps if exact else None
    out = value(b, kept, sample, steps, real=x.steps is None, dtype=x.dtype)
    apply(b, kind, [x.tensor, ints(b, axes)], out, ("ReducerOptions", {"KeepDims": False}))
    if op.function == "any":
        return elementwise(b, "LOGICAL_NOT", out)
    return out if mean or op.scale == 1 else with_numbers(b, "MUL", out, op.scale)


def _to_reduce(b: Builder, op: kinds.Reduce, x: Value) -> tuple[Value, list[int]]:
    """What is reduced, in a shape of few axes, and which of them go."""
    if len(op.in_shape) < 4 and len(op.axes) < 3:
        return reshape(b, x, *op.in_shape), sorted(k + 1 for k in op.axes)
    merged, gone = [1], [False]  # the batch goes with what is kept
    for k, n in enumerate(op.in_shape):
        if (k in op.axes) == gone[-1]:
            merged[-1] *= n
        else:
            merged.append(n)
            gone.append(k in op.axes)
    return reshape(b, x, *merged[1:]), [k for k, goes in enumerate(gone) if goes]


def _arg(b: Builder, op: kinds.Reduce, x: Value) -> Value:
    axis = op.axes[0]
    x = reshape(b, x, op.in_shape[axis], math.prod(op.in_shape[axis + 1 :]))
    x = real(b, x) if b.activations == 16 else x
    f = np.argmax if op.function == "argmax" else np.argmin
    name = f"Arg{op.function[3:].title()}Options"
    out = value(b, (x.shape[0], x.shape[2]), sampled(lambda s: f(s, axis=1), x), dtype="int32")
    axis_tensor = ints(b, 1)
    int32 = 2  # in TensorType
    return apply(
        b, f"ARG_{op.function[3:].upper()}", [x.tensor, axis_tensor], out,
        (name, {"OutputType": int32}),
    )  # fmt: skip


def _cumulative(b: Builder, op: kinds.Cumulative, act: str | None, x: Value) -> Value:
    _, n, width = op.in_shape
    x = real(b, reshape(b, x, n, width))
    if op.function == "sum":

        def f(s: np.ndarray) -> np.ndarray:
            return s[:, ::-1].cumsum(1)[:, ::-1] if op.reverse else s.cumsum(1)

        options: Options = ("CumsumOptions", {"Reverse": op.reverse})
        return moved(b, "CUMSUM", x, x.shape, f, [1], options)
    limits = (-np.inf, np.inf) if x.dtype == "float32" else (-(2**31), 2**31 - 1)
    kind, fill = {
        "prod": ("MUL", 1), "max": ("MAXIMUM", limits[0]), "min": ("MINIMUM", limits[1]),
    }[op.function]  # fmt: skip
    step = 1
    while step < n:  # every position takes in twice as many
        part = cut(b, x, [step if op.reverse else 0, 0], [n - step, width])
        widths = (0, step) if op.reverse else (step, 0)
        x = elementwise(b, kind, x, pad(b, part, [widths, (0, 0)], fill))
        step *= 2
    return x


# --- moving -------------------------------------------------------------------------------------


def _pool(b: Builder, op: kinds.Pool, act: str | None, x: Value) -> Value:
    return pooled(b, op, quantized(b, x))


def _take(b: Builder, op: kinds.Take, act: str | None, x: Value) -> Value:
    parts = [_part(runs, n) for runs, n in zip(op.index, op.in_shape, strict=True)]
    if len(parts) < 4 and all(part is not None for part in parts):
        low, begin, size, high = zip(*(part for part in parts if part), strict=True)
        x = cut(b, reshape(b, x, *op.in_shape), begin, size)
        return pad(b, x, list(zip(low, high, strict=True)), op.fill)
    shape = list(op.in_shape)
    for axis, runs in enumerate(op.index):
        if runs is not None:
            x = reshape(b, x, shape[axis], math.prod(shape[axis + 1 :]))
            x = _picked(b, x, runs, op.fill)
            shape[axis] = x.shape[1]
    return x


def _part(runs: Any, n: int) -> tuple[int, int, int, int] | None:
    """Runs as padding, begin, size, padding; None if they are something else."""
    if runs is None:
        return 0, 0, n, 0
    low = runs[0][2] if runs[0][0] < 0 else 0
    high = runs[-1][2] if runs[-1][0] < 0 and len(runs) > 1 else 0
    kept = [run for run in runs if run[0] >= 0]
    if len(kept) != 1 or len(runs) != 1 + (low > 0) + (high > 0):
        return None
    start, step, count = kept[0]
    return (low, start, count, high) if step == 1 or count == 1 else None


def _picked(b: Builder, x: Value, runs: Any, fill: float) -> Value:
    """Positions of the middle axis of ``x (rows, n, inner)``."""
    n, part = x.shape[1], _part(runs, x.shape[1])
    if part is not None:
        low, begin, size, high = part
        return pad(b, cut(b, x, [begin, 0], [size, x.shape[2]]), [(low, high), (0, 0)], fill)
    if len(runs) == 1 and runs[0][0] >= 0 and runs[0][1] > 1:
        start, step, count = runs[0]
        return every(b, x, start, step, count)
    index = np.array(elements(runs, n))
    if (index < 0).any():
        x = pad(b, x, [(0, 1), (0, 0)], fill)
        index = np.where(index < 0, n, index)
    return gather(b, x, index, 1)


def _transpose(b: Builder, op: kinds.Transpose, act: str | None, x: Value) -> Value:
    shape, order = (1, *op.in_shape), (0, *(k + 1 for k in op.axes))
    groups: list[list[int]] = []  # axes that stay side by side
    for k in order:
        if shape[k] == 1 and k > 0:
            continue
        if groups and k == groups[-1][-1] + 1:
            groups[-1].append(k)
        else:
            groups.append([k])
    first = sorted(range(len(groups)), key=lambda i: groups[i])
    sizes = [math.prod(shape[k] for k in groups[i]) for i in first]
    x = reshape(b, x, *sizes[1:])
    if first == sorted(first):
        return x
    axes = [first.index(i) for i in range(len(groups))]
    return moved(
        b, "TRANSPOSE", x, [x.shape[k] for k in axes], lambda s: s.transpose(axes),
        [np.array(axes)], ("TransposeOptions", {}),
    )  # fmt: skip


def _concat(b: Builder, op: kinds.Concat, act: str | None, *xs: Node) -> Value:
    if len(op.out_shape) < 4:
        parts = [_value(b, x, s) for x, s in zip(xs, op.in_shapes, strict=True)]
        return concatenated(b, parts, op.axis + 1)
    width = math.prod(op.out_shape[op.axis + 1 :])
    parts = [
        reshape(b, _value(b, x, s), s[op.axis], width)
        for x, s in zip(xs, op.in_shapes, strict=True)
    ]
    return concatenated(b, parts, 1)


def _gather(b: Builder, op: kinds.Gather, act: str | None, table: Node, ids: Node) -> Value:
    """Rows of a table. LiteRT refuses numbers beyond it when it runs."""
    (_, width), (n,) = op.in_shapes
    if isinstance(table, Value):
        rows = reshape(b, table, *op.in_shape)
        if isinstance(ids, Weight):
            at = ids.values.ravel()
            return gather(b, rows, np.where(at < 0, at + op.in_shape[0], at), 1)
        ids = _from_end(b, ids, op.in_shape[0]) if op.wrap else ids
        return _each(b, rows, reshape(b, ids, n), 1)
    assert isinstance(ids, Value)
    index = _from_end(b, ids, op.in_shape[0]) if op.wrap else ids
    index = reshape(b, index)
    if b.bits == 8:
        return _stored_rows(b, table, index, width)
    array = table.values.reshape(op.in_shape)
    return _rows(b, numbers(b, array, False), array, index)


def _rows(b: Builder, tensor: int, array: np.ndarray, index: Value) -> Value:
    sample = sampled(lambda i: array[np.clip(i, 0, len(array) - 1)], index)
    out = value(b, (*index.shape, *array.shape[1:]), sample, real=True)
    return apply(b, "GATHER", [tensor, index.tensor], out, ("GatherOptions", {"Axis": 0}))


def _stored_rows(b: Builder, table: Weight, index: Value, width: int) -> Value:
    """Rows of a table of bytes: they alone become floats."""
    integers = integers_of(table, 8, None if table.integers is not None else -2)
    codes = integers.values.astype(np.int8)
    scale = np.float32(1.0) if integers.scale.size > 1 else integers.scale.reshape(())
    sample = sampled(lambda i: codes[np.clip(i, 0, len(codes) - 1)] * scale, index)
    shape = (*index.shape, width)
    stored = Tensor(codes.shape, "int8", codes, np.full(1, scale, np.float32))
    picked = Value(b.model.tensor(Tensor(shape, "int8", scale=stored.scale)), shape)
    options = ("GatherOptions", {"Axis": 0})
    apply(b, "GATHER", [b.model.tensor(stored), index.tensor], picked, options)
    rows = apply(b, "DEQUANTIZE", [picked.tensor], value(b, shape, sample, real=True))
    if integers.scale.size == 1:
        return rows
    if integers.axis == -1:
        return elementwise(b, "MUL", rows, integers.scale)
    scales = integers.scale.reshape(-1, 1).astype(np.float32)
    return elementwise(b, "MUL", rows, _rows(b, numbers(b, scales, False), scales, index))


def _scatter(b: Builder, op: kinds.Scatter, act: str | None, ids: Node, rows: Node) -> Value:
    """A product with ones where a row goes: numbers beyond the size are nowhere."""
    (n,), (_, width) = op.in_shapes
    places = np.arange(op.size, dtype=np.int32)[:, None]
    at = elementwise(b, "EQUAL", _value(b, ids, (1, n)), places)
    ones = cast(b, at, "float32")
    given = cast(b, real(b, _value(b, rows, (n, width))), "float32")
    out = value(b, (1, op.size, width), sampled(np.matmul, ones, given), real=True)
    apply(b, "BATCH_MATMUL", [ones.tensor, given.tensor], out, ("BatchMatMulOptions", {}))
    return cast(b, out, op.dtypes[0])


def _each(b: Builder, x: Value, index: Value, axis: int) -> Value:
    """Positions of an axis, others in every example."""
    x = real(b, x) if b.activations == 16 else x
    shape = (*x.shape[:axis], index.shape[1], *x.shape[axis + 1 :])

    def f(s: np.ndarray, i: np.ndarray) -> np.ndarray:
        return np.stack([a.take(k, axis - 1, mode="clip") for a, k in zip(s, i, strict=True)])

    options = ("GatherOptions", {"Axis": axis, "BatchDims": 1})
    out = like(b, x, shape, sampled(f, x, index))
    return apply(b, "GATHER", [x.tensor, index.tensor], out, options)


def _slice(b: Builder, op: kinds.Slice, act: str | None, x: Node, start: Node) -> Value:
    n = op.in_shape[1]
    if isinstance(start, Weight):
        at = int(start.values.ravel()[0])
        at = int(np.clip(at + n * (at < 0), 0, n - op.size))
        rows = _value(b, x, op.in_shape[1:])
        return cut(b, rows, [at, 0], [op.size, op.in_shape[2]])
    first = reshape(b, start, 1)
    first = elementwise(b, "MAXIMUM", _from_end(b, first, n), np.int32(0))
    first = elementwise(b, "MINIMUM", first, np.int32(n - op.size))
    index = elementwise(b, "ADD", first, np.arange(op.size, dtype=np.int32))
    return _each(b, _value(b, x, op.in_shape), index, 2)


def _from_end(b: Builder, index: Value, n: int) -> Value:
    """Whole numbers of which those below 0 count from the end."""
    below = cast(b, elementwise(b, "LESS", index, np.int32(0)), "int32")
    return elementwise(b, "ADD", index, elementwise(b, "MUL", below, np.int32(n)))


# --- scans --------------------------------------------------------------------------------------


def _scan(b: Builder, op: kinds.Scan, act: str | None, *xs: Node) -> list[Node]:
    """A scan step by step: stored weights are there once, operators in every step."""
    if op.length > LONGEST:
        raise ExportError(
            f"{op.name}: a scan of {op.length} steps; in TFLite at most {LONGEST} are written out "
            "one after the other; use shorter sequences, or another target (c, onnx, stablehlo)"
        )
    shared, rest = list(xs[: op.shared]), list(xs[op.shared :])
    carry, sequences = rest[: op.carries], rest[op.carries :]
    alone = any(isinstance(x, Weight) for x in sequences)  # steps with weights of their own
    if b.integer and b.spans is None and not alone:
        trial = b.trial()  # to see what all steps reach, so that they have the same scales
        _scan(trial, op, act, *xs)
        b.spans = trial.spans
        results = _scan(b, op, act, *xs)
        b.spans = None
        return results
    shapes = op.in_shapes[op.shared + op.carries :]
    at = [_unstacked(b, x, s, op.length) for x, s in zip(sequences, shapes, strict=True)]
    gave: list[list[Node]] = []
    for t in range(op.length)[:: -1 if op.reverse else 1]:
        out = emitted(b, op.body, [*shared, *carry, *(parts[t] for parts in at)])
        carry = out[: op.carries]
        gave.append(out[op.carries :])
    gave = gave[::-1] if op.reverse else gave
    stacked = [
        _stacked(b, [parts[i] for parts in gave], shape)
        for i, shape in enumerate(op.out_shapes[op.carries :])
    ]
    return [*carry, *stacked]


def _unstacked(b: Builder, x: Node, shape: Shape, length: int) -> Sequence[Node]:
    if isinstance(x, Weight):
        return [x.then("slice", 0, t, t + 1) for t in range(length)]
    width = math.prod(shape[1:])
    x = reshape(b, x, length, width)
    outs = [like(b, x, (1, width), sampled(lambda s, t=t: s[:, t], x)) for t in range(length)]
    options = ("UnpackOptions", {"Num": length, "Axis": 1})
    b.model.operators.append(
        Operator("UNPACK", (x.tensor,), tuple(out.tensor for out in outs), options)
    )
    return outs


def _stacked(b: Builder, parts: Sequence[Node], shape: Shape) -> Node:
    if all(isinstance(x, Weight) for x in parts):
        return Weight(parts[0].name, np.stack([x.values for x in parts]))  # type: ignore[union-attr]
    width = math.prod(shape[1:])
    values = alike(b, [_value(b, x, (width,)) for x in parts])
    out = like(b, values[0], (1, len(parts), width), sampled(lambda *s: np.stack(s, 1), *values))
    options = ("PackOptions", {"ValuesCount": len(parts), "Axis": 1})
    return apply(b, "PACK", [x.tensor for x in values], out, options)


EMIT: dict[type[Op], Callable[..., Any]] = {
    kinds.Dense: _dense,
    kinds.Conv: _conv,
    kinds.Project: _project,
    kinds.PatchProject: _patches,
    kinds.MatMul: _matmul,
    kinds.Affine: _affine,
    kinds.Map: _map,
    kinds.Reduce: _reduce,
    kinds.Pool: _pool,
    kinds.Take: _take,
    kinds.Transpose: _transpose,
    kinds.Concat: _concat,
    kinds.Softmax: _softmax,
    kinds.Norm: _norm,
    kinds.Gather: _gather,
    kinds.Cumulative: _cumulative,
    kinds.Slice: _slice,
    kinds.Scan: _scan,
    kinds.Convolve: _convolve,
    kinds.KernelGrad: _refused,
    kinds.Unpool: _refused,
    kinds.Scatter: _scatter,
}
"""How each kind becomes TFLite operators: a new one is one line here."""
