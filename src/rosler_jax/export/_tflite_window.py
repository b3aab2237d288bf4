"""Convolutions and pooling in TFLite: of images, of series as images of one row, and of volumes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax.export._errors import ExportError
from rosler_jax.export._stored import Integers
from rosler_jax.export._tflite_builder import (
    Builder,
    Product,
    Value,
    apply,
    cut,
    elementwise,
    every,
    last,
    like,
    numbers,
    pad,
    product,
    real_weight,
    reshape,
    sampled,
    with_numbers,
)
from rosler_jax.export._tflite_file import NONE
from rosler_jax.graph import compute
from rosler_jax.graph.kinds import Conv, Convolve, PatchProject, Pool, Window
from rosler_jax.graph.weight import Shape

SAME, VALID = 0, 1  # in Padding


def inner(shape: Shape) -> Shape:
    """The shape that a tensor has in the file: series are images of one row.

    Example:
      >>> inner((9, 2)), inner((5,))
      ((1, 9, 2), (5,))
    """
    return (1, *shape) if len(shape) == 2 else shape


def convolved(
    b: Builder,
    op: Conv | PatchProject | Convolve,
    x: Value,
    weight: Integers | np.ndarray,
    bias: np.ndarray | None,
    act: str | None,
) -> Value:
    """A convolution with a weight ``(n, *window, c / groups)``."""
    window, lead = _without_batch(op.window)
    in_shape, out_shape, n = op.in_shape[lead:], op.out_shape[lead:], op.out_shape[-1]
    x = reshape(b, x, *inner(in_shape))
    if len(window.size) == 3 and isinstance(weight, Integers) and b.bits == 32 and not x.steps:
        weight = real_weight(weight)  # a sketch's signs
    same = _is_same(window, in_shape[:-1])
    kind, options, weight, axis = _form(op, window, weight, SAME if same else VALID)
    if not same:
        rows = [(0, 0)] * (len(window.size) == 1)  # that a series has
        x = _padded(b, x, [*rows, *window.padding], [*(1 for _ in rows), *window.input_dilation])
    within = window if same else _unpadded(window)
    shape = (x.shape[0], *inner(out_shape))

    def convolve(s: np.ndarray, w: np.ndarray) -> np.ndarray:
        kernel = (np.moveaxis(w, 0, -1) if axis == 0 else w).reshape(*window.size, -1, n)
        y = compute.convolve(_images(s, window), kernel, within)
        return np.asarray(y).reshape(-1, *shape[1:])

    def operator(inputs: Sequence[int], out: Value, act: str | None) -> Value:
        zeros = numbers(b, np.zeros(n), False) if inputs[2] == NONE else inputs[2]
        return apply(b, kind, [*inputs[:2], zeros], out, (options[0], options[1] | last(act)))

    return product(b, x, weight, bias, shape, Product(convolve, operator, axis), act)


def _images(s: np.ndarray, window: Window) -> jax.Array:
    """What a window slides over: without the axis of one row that a series has in the file."""
    return jnp.asarray(s.reshape(len(s), *s.shape[-1 - len(window.size) :]))


def _without_batch(window: Window) -> tuple[Window, int]:
    """A window without the axes in front along which it does nothing, and how many these are."""
    idle = zip(window.size, window.strides, window.input_dilation, window.padding, strict=True)
    k = 0
    for k, axis in enumerate(idle):
        if axis != (1, 1, 1, (0, 0)) or k == len(window.size) - 1:
            break
    names = ("size", "strides", "padding", "dilation", "input_dilation")
    return dataclasses.replace(window, **{name: getattr(window, name)[k:] for name in names}), k


def _form(
    op: Conv | PatchProject | Convolve, window: Window, weight: Integers | np.ndarray, padding: int
) -> tuple[str, tuple[str, dict[str, Any]], Integers | np.ndarray, int]:
    """The operator of a window, its options, its weight, and the weight's axis of the outputs."""
    n, axis = len(window.size), 0
    values = weight if isinstance(weight, np.ndarray) else weight.values
    values = values.reshape(len(values), *window.size, -1)
    floats = isinstance(weight, np.ndarray)
    if n > 2 and (n > 3 or window.groups > 1 or not floats):
        raise ExportError(
            f"{op.name}: TFLite has {n}-D convolutions of floats without groups alone (3-D), in "
            "LiteRT; use bits=32 (float32) and a learnt, gaussian or dense layer, or another "
            "target (onnx, stablehlo)"
        )
    axes = "DHW"[-max(n, 2) :]
    ones = (1,) * (2 - n)  # a series is an image of one row
    options = _options(axes, ones + window.strides, ones + window.dilation)
    kind, table = "CONV_2D", "Conv2DOptions"
    if n == 3:
        kind, table, values, axis = "CONV_3D", "Conv3DOptions", np.moveaxis(values, 0, -1), -1
    elif n == 1:
        values = values[:, None]
    if n < 3 and window.groups == op.in_shape[-1] > 1:
        kind, table = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
        values, axis = np.moveaxis(values[..., 0], 0, -1)[None], -1
        options["DepthMultiplier"] = op.out_shape[-1] // window.groups
    values = np.ascontiguousarray(values)
    laid = values if isinstance(weight, np.ndarray) else weight._replace(values=values)
    return kind, (table, {**options, "Padding": padding}), laid, axis


def _options(axes: str, strides: Shape, dilation: Shape) -> dict[str, Any]:
    """Strides and dilations by the names that the schema gives them."""
    steps = {f"Stride{axis}": s for axis, s in zip(axes, strides, strict=True)}
    gaps = {f"Dilation{axis}Factor": d for axis, d in zip(axes, dilation, strict=True)}
    return {**steps, **gaps}


def _is_same(window: Window, spatial: Shape) -> bool:
    """Whether the padding is what TFLite calls SAME, and not none."""
    if not any(map(any, window.padding)) or max(window.input_dilation) > 1:
        return False
    sizes = zip(spatial, window.size, window.strides, window.dilation, strict=True)
    whole = [max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in sizes]
    return all(pair == (t // 2, t - t // 2) for pair, t in zip(window.padding, whole, strict=True))


def _unpadded(window: Window) -> Window:
    none, ones = ((0, 0),) * len(window.size), (1,) * len(window.size)
    return dataclasses.replace(window, padding=none, input_dilation=ones)


def _padded(
    b: Builder,
    x: Value,
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    fill: float = 0.0,
) -> Value:
    """The input ``(rows, *spatial, c)`` with its gaps and its padding; negative padding cuts."""
    for axis, d in enumerate(dilation):
        x = _with_gaps(b, x, axis + 1, d, fill)
    # No gap follows the last number: that part of the padding is there already, or cut off.
    ends = [(low, high - (d - 1)) for (low, high), d in zip(padding, dilation, strict=True)]
    begin = [max(0, -low) for low, _ in ends]
    size = [
        n + min(0, low) + min(0, high) for n, (low, high) in zip(x.shape[1:-1], ends, strict=True)
    ]
    x = cut(b, x, [*begin, 0], [*size, x.shape[-1]])
    return pad(b, x, [*((max(0, low), max(0, high)) for low, high in ends), (0, 0)], fill)


def _with_gaps(b: Builder, x: Value, axis: int, d: int, fill: float) -> Value:
    """``d - 1`` zeros, or another number, after every number of an axis."""
    if d == 1:
        return x
    shape = x.shape[1:]
    before, after = math.prod(shape[: axis - 1]), math.prod(shape[axis:])
    y = reshape(b, x, before * shape[axis - 1], 1, after)
    y = pad(b, y, [(0, 0), (0, d - 1), (0, 0)], fill)
    return reshape(b, y, *shape[: axis - 1], d * shape[axis - 1], *shape[axis:])


def pooled(b: Builder, op: Pool, x: Value) -> Value:
    """The max or the sum under a window."""
    window = op.window
    spread = max(*window.dilation, *window.input_dilation) > 1
    if len(window.size) > 2 or spread or x.dtype != "float32":
        return _by_axes(b, op, x)
    x = reshape(b, x, *inner(op.in_shape))
    rows = [(0, 0)] * (len(window.size) == 1)
    largest = op.function == "max"
    same = largest and _is_same(window, op.in_shape[:-1])
    if not same:
        x = _padded(b, x, [*rows, *window.padding], [1, 1], -np.inf if largest else 0.0)
    (h, w), (down, right) = ((1, *size)[-2:] for size in (window.size, window.strides))
    options = {
        "Padding": SAME if same else VALID, "StrideH": down, "StrideW": right,
        "FilterHeight": h, "FilterWidth": w,
    }  # fmt: skip
    share = 1.0 if largest else 1 / (h * w)

    def compute_pool(s: np.ndarray) -> np.ndarray:
        within = window if same else _unpadded(window)
        y = compute.pool(_images(s, window), op.function, within)
        return np.asarray(y).reshape(-1, *inner(op.out_shape)) * np.float32(share)

    out = like(b, x, (1, *inner(op.out_shape)), sampled(compute_pool, x))
    kind = "MAX_POOL_2D" if largest else "AVERAGE_POOL_2D"
    y = apply(b, kind, [x.tensor], out, ("Pool2DOptions", options))
    return _times(b, y, op.scale / share)


def _times(b: Builder, x: Value, factor: float) -> Value:
    return x if abs(factor - 1) < 1e-6 else with_numbers(b, "MUL", x, factor)


def _by_axes(b: Builder, op: Pool, x: Value) -> Value:
    """Pooling axis by axis, from shifted slices: any number of axes, and gaps."""
    window, shape, fill = op.window, list(op.in_shape), 0.0
    if op.function == "max":
        fill = -np.inf if x.dtype == "float32" else np.iinfo(np.int32).min
    kind = "MAXIMUM" if op.function == "max" else "ADD"
    outputs = window.outputs(op.in_shape[:-1])
    for k, size in enumerate(window.size):
        x = reshape(b, x, shape[k], math.prod(shape[k + 1 :]))
        x = _padded(b, x, [window.padding[k]], [window.input_dilation[k]], fill)
        y = every(b, x, 0, window.strides[k], outputs[k])
        for j in range(1, size):
            part = every(b, x, j * window.dilation[k], window.strides[k], outputs[k])
            y = elementwise(b, kind, y, part)
        x, shape[k] = y, outputs[k]
    return _times(b, x, op.scale)
