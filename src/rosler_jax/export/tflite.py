"""TFLite, written straight from the graph: runs in LiteRT and in TFLite Micro.

Three kinds of files: floats; weights of 16, 8 or 4 bits that are read as floats (TFLite Micro has
no 4 bits); and, with calibration inputs, weights of 8 bits and activations of 16 ("16x8"), where
products are integer throughout.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from rosler_jax.export import _tflite_sketch as sketches
from rosler_jax.export import reference
from rosler_jax.export._errors import ExportError
from rosler_jax.export._stored import Integers, entries, integers_of, pad_indices, replace_bytes
from rosler_jax.export._tflite_builder import (
    RELU,
    UNIT,
    Builder,
    Value,
    apply,
    cut,
    elementwise,
    gather,
    moved,
    numbers,
    pad,
    product,
    quantized,
    real,
    reshape,
    sampled,
    value,
    with_numbers,
)
from rosler_jax.export._tflite_file import NONE, serialize
from rosler_jax.export.graph import (
    Activate,
    Affine,
    Conv,
    Dense,
    Flatten,
    Graph,
    Op,
    Pad,
    PatchProject,
    Pool,
    Project,
    Shape,
    Weight,
    Window,
    is_relu,
)
from rosler_jax.export.inputs import calibration_inputs, check_finite

BITS = (32, 16, 8, 4)
LARGEST = 2**31 - 1  # bytes of one flatbuffer
VALID = 1  # in Padding


def to_tflite(
    graph: Graph, path: str | os.PathLike[str], *, bits: int = 32, calibration: Any = None
) -> int:
    """Writes a graph as a TFLite file.

    Input ``"input"`` is float32 ``(1, *in_shape)``, channels last; output ``"output"`` is float32
    ``(1, *out_shape)``. LiteRT can resize the batch; the signature is ``"serving_default"``.

    Args:
      graph: the network.
      path: file to write.
      bits: of the stored weights: 32 (floats), 16, 8, or 4 (LiteRT alone). Integers of the model
        file are kept where they have no more bits.
      calibration: representative inputs, some hundreds; with 8 bits activations become 16-bit
        integers, scaled by what these inputs give. What lies beyond saturates.

    Returns:
      Bytes of the file.

    Raises:
      ExportError: for unknown bits, an operation that TFLite does not have, bad calibration inputs,
        or a model of 2 GB and more.
      ImportError: if the extra is not installed.
      OSError: if the file cannot be written.

    Example:
      >>> import tempfile
      >>> from rosler_jax.export.build import build_graph
      >>> specs = [{"kind": "linear", "in_features": 2, "out_features": 1}]
      >>> graph = build_graph(specs, {"0/kernel": np.ones((2, 1))})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = to_tflite(graph, f"{folder}/m.tflite")
      ...     open(f"{folder}/m.tflite", "rb").read()[4:8]
      b'TFL3'
    """
    data = tflite_model(graph, bits, calibration)
    replace_bytes(path, data)
    return len(data)


def tflite_model(graph: Graph, bits: int = 32, calibration: Any = None) -> bytes:
    """The file's contents; see :func:`to_tflite`."""
    _check(graph, bits, calibration)
    sample = None if calibration is None else calibration_inputs(calibration, graph.in_shape)
    b = Builder(bits, calibration is not None)
    start = value(b, (1, *graph.in_shape), sample, real=True)
    x = reshape(b, start, *inner(graph.in_shape))
    i = 0
    while i < len(graph.ops):
        op = graph.ops[i]
        relu = isinstance(op, FUSED) and is_relu(graph.ops, i + 1)
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            x = EMIT[type(op)](b, op, x, relu)
        if x.sample is not None:
            check_finite(x.sample, op.name)
        i += 1 + relu
    x = reshape(b, real(b, x), *graph.out_shape)
    if not b.model.operators:  # interpreters want one
        x = moved(b, "RESHAPE", x, x.shape, np.asarray, [np.array([-1, *x.shape[1:]])])
    data = serialize(b.model, start.tensor, x.tensor)
    if len(data) > LARGEST:
        raise ExportError(
            f"the model takes {len(data)} bytes, more than a TFLite file's {LARGEST}; use fewer "
            "bits or a sketch that is stored as signs (srht, rademacher)"
        )
    return data


def _check(graph: Graph, bits: int, calibration: Any) -> None:
    try:
        import flatbuffers  # noqa: F401
        import tflite  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "writing TFLite needs the tflite and flatbuffers packages; install them with pip "
            "install rosler-jax[export]"
        ) from error
    if bits not in BITS:
        known = ", ".join(map(str, BITS))
        raise ExportError(f"bits {bits!r} cannot be written to TFLite; use one of {known}")
    if calibration is not None and bits != 8:
        raise ExportError(
            f"calibration inputs are for weights of 8 bits with activations of 16, not for {bits}; "
            "pass bits=8, or no calibration"
        )
    size = sum(w.values.size for w in graph.weights()) * bits // 8
    if size > LARGEST:
        raise ExportError(
            f"the weights alone take {size} bytes, more than a TFLite file's {LARGEST}; use fewer "
            "bits"
        )


def inner(shape: Shape) -> Shape:
    """The shape that a tensor has in the file: series are images of one row.

    Example:
      >>> inner((9, 2)), inner((5,))
      ((1, 9, 2), (5,))
    """
    return (1, *shape) if len(shape) == 2 else shape


def _affine(b: Builder, op: Affine, x: Value, relu: bool) -> Value:
    if op.center.any():
        x = with_numbers(b, "SUB", x, op.center)
    return with_numbers(b, "MUL", x, op.factor)


def _weight(
    b: Builder, x: Value, w: Weight, order: tuple[int, ...]
) -> tuple[Value, Integers | np.ndarray]:
    """A weight with the output's axis first; scales of its inputs go to what comes in."""
    if b.bits == 32:
        return x, np.ascontiguousarray(w.values.transpose(order))
    integers = integers_of(w, b.bits)
    values = np.ascontiguousarray(integers.values.transpose(order))
    values = values.astype(np.int16 if b.bits == 16 else np.int8)
    if integers.axis != -2:
        return x, Integers(values, integers.scale, integers.axis)
    channels = x.shape[-1]
    x = with_numbers(b, "MUL", x, np.tile(integers.scale, channels // integers.scale.size))
    return x, Integers(values, np.ones(1, np.float32), None)


def _dense(b: Builder, op: Dense, x: Value, relu: bool) -> Value:
    x, weight = _weight(b, quantized(b, x), op.weight, (1, 0))
    return sketches.dense(b, x, weight, op.bias, relu)


def _conv(b: Builder, op: Conv, x: Value, relu: bool) -> Value:
    n = len(op.window.size)
    x, weight = _weight(b, quantized(b, x), op.weight, (n + 1, *range(n + 1)))
    return _convolved(b, op, op.window, x, weight, op.bias, relu)


def _patches(b: Builder, op: PatchProject, x: Value, relu: bool) -> Value:
    filters = reference.group_filters(op, entries(op.sketch) * np.float32(op.scale))
    weight = sketches.matrix(b, np.moveaxis(np.asarray(filters), -1, 0))
    return _convolved(b, op, op.window, quantized(b, x), weight, None, relu)


def _convolved(
    b: Builder,
    op: Op,
    window: Window,
    x: Value,
    weight: Integers | np.ndarray,
    bias: np.ndarray | None,
    relu: bool,
) -> Value:
    kind, options, weight = _form(op, window, weight)
    x = _padded(b, x, window)
    shape = (1, *inner(op.out_shape))

    def compute(s: np.ndarray, w: np.ndarray) -> np.ndarray:
        spatial = len(window.size)
        kernel = np.moveaxis(w, 0, -1).reshape(*window.size, -1, op.out_shape[-1])
        images = jnp.asarray(s.reshape(len(s), *s.shape[-1 - spatial :]))
        y = reference.convolve(images, kernel, _unpadded(window))
        return np.asarray(y).reshape(-1, *shape[1:])

    def operator(inputs: Sequence[int], out: Value, relu: bool) -> Value:
        fields = {**options[1], "FusedActivationFunction": RELU} if relu else options[1]
        zeros = numbers(b, np.zeros(op.out_shape[-1]), False) if inputs[2] == NONE else inputs[2]
        return apply(b, kind, [*inputs[:2], zeros], out, (options[0], fields))

    return product(b, x, weight, bias, shape, compute, operator, relu)


def _form(
    op: Op, window: Window, weight: Integers | np.ndarray
) -> tuple[str, tuple[str, dict[str, Any]], Integers | np.ndarray]:
    """The operator of a window, its options, and its weight as that operator wants it."""
    n = len(window.size)
    if n == 3 and isinstance(weight, np.ndarray) and window.groups == 1:
        options = _options("DHW", window.strides, window.dilation)
        return "CONV_3D", ("Conv3DOptions", options), np.moveaxis(weight, 0, -1)
    if n > 2:
        raise ExportError(
            f"{op.name}: TFLite has {n}-D convolutions of floats without groups alone (3-D), in "
            "LiteRT; use bits=32 (float32) and a learnt, gaussian or dense layer, or another "
            "target (onnx, stablehlo)"
        )
    ones = (1,) * (2 - n)  # a series is an image of one row
    options = _options("HW", ones + window.strides, ones + window.dilation)
    if n == 1 and isinstance(weight, Integers):
        weight = weight._replace(values=weight.values[:, None])
    elif n == 1 and isinstance(weight, np.ndarray):
        weight = weight[:, None]
    return "CONV_2D", ("Conv2DOptions", options), weight


def _options(axes: str, strides: Shape, dilation: Shape) -> dict[str, Any]:
    """Strides and dilations by the names that the schema gives them."""
    steps = {f"Stride{axis}": s for axis, s in zip(axes, strides, strict=True)}
    gaps = {f"Dilation{axis}Factor": d for axis, d in zip(axes, dilation, strict=True)}
    return {**steps, **gaps, "Padding": VALID}


def _unpadded(window: Window) -> Window:
    none, ones = ((0, 0),) * len(window.size), (1,) * len(window.size)
    return dataclasses.replace(window, padding=none, input_dilation=ones)


def _padded(b: Builder, x: Value, window: Window) -> Value:
    """The input with its gaps and its padding."""
    rows = int(len(window.size) == 1)  # that a series has
    padding = [(0, 0)] * rows + list(window.padding)
    dilation = (1,) * rows + tuple(window.input_dilation)
    for axis, d in enumerate(dilation):
        x = _with_gaps(b, x, axis + 1, d)
    # No gap follows the last number: that part of the padding is there already, or cut off.
    high = [pair[1] - (d - 1) for pair, d in zip(padding, dilation, strict=True)]
    size = [n + min(0, h) for n, h in zip(x.shape[1:], high, strict=False)]
    x = cut(b, x, [0] * (len(size) + 1), [*size, x.shape[-1]])
    widths = [(pair[0], max(0, h)) for pair, h in zip(padding, high, strict=True)]
    return pad(b, x, [*widths, (0, 0)])


def _with_gaps(b: Builder, x: Value, axis: int, d: int) -> Value:
    """``d - 1`` zeros after every number of an axis."""
    if d == 1:
        return x
    shape = x.shape[1:]
    before, after = math.prod(shape[: axis - 1]), math.prod(shape[axis:])
    y = reshape(b, x, before * shape[axis - 1], 1, after)
    y = pad(b, y, [(0, 0), (0, d - 1), (0, 0)])
    return reshape(b, y, *shape[: axis - 1], d * shape[axis - 1], *shape[axis:])


def _project(b: Builder, op: Project, x: Value, relu: bool) -> Value:
    inner_size = op.sketch.cols if op.transpose else op.sketch.rows
    x = reshape(b, x, inner_size)
    single = op.bias is None or op.vectors == math.prod(op.out_shape[:-1])
    bias = op.bias if single else None
    y = sketches.project(b, x, op.sketch, op.scale, op.transpose, bias)
    y = reshape(b, y, *inner(op.out_shape))
    return y if single else with_numbers(b, "ADD", y, op.bias)


def _activate(b: Builder, op: Activate, x: Value, relu: bool) -> Value:
    return ACTIVATIONS[op.kind](b, x)


def _elementwise(b: Builder, kind: str, x: Value, f: Callable[[Any], Any], scale: Any) -> Value:
    out = value(b, x.shape, sampled(f, x), scale, real=x.scale is None)
    return apply(b, kind, [x.tensor], out)


def _gelu(b: Builder, x: Value) -> Value:
    """``x sigmoid(2 z)``, ``z = sqrt(2 / pi) (x + 0.044715 x^3)``: the tanh form in fewer steps."""
    factor = 2.0 * math.sqrt(2.0 / math.pi)
    square = elementwise(b, "MUL", x, x)
    inside = with_numbers(b, "ADD", with_numbers(b, "MUL", square, 0.044715 * factor), factor)
    z = elementwise(b, "MUL", x, inside)
    gate = _elementwise(b, "LOGISTIC", z, lambda s: 1 / (1 + np.exp(-s)), UNIT)
    return elementwise(b, "MUL", x, gate)


ACTIVATIONS: dict[str, Callable[[Builder, Value], Value]] = {
    "relu": lambda b, x: _elementwise(b, "RELU", x, lambda s: np.maximum(s, 0), x.scale),
    "gelu": _gelu,
    "tanh": lambda b, x: _elementwise(b, "TANH", x, np.tanh, UNIT),
}
"""Elementwise functions by name."""


def _pool(b: Builder, op: Pool, x: Value, relu: bool) -> Value:
    n = len(op.window)
    if n > 2:
        raise ExportError(f"{op.name}: TFLite has no {n}-D pooling; use the target onnx")
    h, w = (1, *op.window)[-2:]
    options = {
        "Padding": VALID, "StrideH": h, "StrideW": w, "FilterHeight": h, "FilterWidth": w,
    }  # fmt: skip

    def pooled(s: np.ndarray) -> np.ndarray:
        y = reference.COMPUTE[Pool](op, jnp.asarray(s.reshape(-1, *op.in_shape)))
        return np.asarray(y).reshape(-1, *inner(op.out_shape))

    kind = "MAX_POOL_2D" if op.kind == "max" else "AVERAGE_POOL_2D"
    shape = (1, *inner(op.out_shape))
    out = value(b, shape, sampled(pooled, x), x.scale, real=x.scale is None)
    return apply(b, kind, [x.tensor], out, ("Pool2DOptions", options))


def _pad(b: Builder, op: Pad, x: Value, relu: bool) -> Value:
    first = len(x.shape) - len(op.in_shape)
    for axis, index in pad_indices(op):
        x = gather(b, x, index, axis + first)
    return x


def _flatten(b: Builder, op: Flatten, x: Value, relu: bool) -> Value:
    return reshape(b, x, *op.out_shape)


FUSED = (Dense, Conv)
"""Operations that apply a relu which follows."""

EMIT: dict[type[Op], Callable[[Builder, Any, Value, bool], Value]] = {
    Affine: _affine,
    Dense: _dense,
    Conv: _conv,
    Project: _project,
    PatchProject: _patches,
    Activate: _activate,
    Pool: _pool,
    Pad: _pad,
    Flatten: _flatten,
}
"""How each operation becomes TFLite operators: a new one is one line here."""
