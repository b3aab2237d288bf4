"""Operations of ONNX under a window that slides: they want the channels first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rosler_jax.export import _onnx_sketch as sketches
from rosler_jax.export._errors import ExportError
from rosler_jax.export._onnx_builder import (
    Builder,
    Tensor,
    array_of,
    as_type,
    floats,
    read,
    reshape,
)
from rosler_jax.graph.kinds import Conv, Convolve, PatchProject, Pool, Window

Padding = Sequence[tuple[int, int]]


def conv(b: Builder, op: Conv, x: Tensor) -> Tensor:
    """A convolution."""
    n = len(op.window.size)
    kernel = array_of(b, op.weight.then("transpose", (n + 1, n, *range(n))))
    bias = () if op.bias is None else (floats(b, op.bias.values),)
    return _convolved(b, op, x, kernel, *bias)


def patches(b: Builder, op: PatchProject, x: Tensor) -> Tensor:
    """A convolution with a sketch."""
    window = op.window
    kernel = sketches.filters(b, op.sketch, op.scale, window.size, window.groups)
    return _convolved(b, op, x, kernel)


def convolve(b: Builder, op: Convolve, x: Tensor, kernel: Tensor) -> Tensor:
    """A convolution with a kernel that is computed, but not from the inputs."""
    if kernel.batched:
        raise ExportError(
            f"{op.name}: ONNX has no convolution with a kernel for each example; export a model "
            "whose kernels do not depend on its inputs"
        )
    n = len(op.window.size)
    whole = read(b, kernel, op.in_shapes[1]).name
    turned = b.add("Transpose", whole, perm=[n + 2, n + 1, *range(1, n + 1), 0])
    *size, c, d = op.in_shapes[1]
    return _convolved(b, op, x, b.add("Reshape", turned, b.ints(d, c, *size)))


def _convolved(b: Builder, op: Conv | PatchProject | Convolve, x: Tensor, *weights: str) -> Tensor:
    x = read(b, x, op.in_shape, first=True)
    name, padding = _dilated(b, x, op.window, 0.0, False)
    y = b.add("Conv", name, *weights, group=op.window.groups, **_options(op.window, padding))
    return x._replace(name=y, shape=op.out_shape)


def _options(window: Window, padding: Padding) -> dict[str, Any]:
    return {
        "strides": list(window.strides),
        "pads": [low for low, _ in padding] + [high for _, high in padding],
        "dilations": list(window.dilation),
    }


def _dilated(
    b: Builder, x: Tensor, window: Window, fill: float, pooled: bool
) -> tuple[str, Padding]:
    """The input with its gaps, and the padding that is left for the operation to do."""
    n = len(window.size)
    none = ((0, 0),) * n
    if all(d == 1 for d in window.input_dilation):
        # Operators that pool take less padding than the window.
        pairs = zip(window.size, window.padding, strict=True)
        if all(k >= 0 and not (pooled and k >= size) for size, pair in pairs for k in pair):
            return x.name, window.padding
        return _padded(b, x.name, window.padding, fill), none
    *spatial, c = x.shape
    wide = reshape(b, x.name, c, *(k for size in spatial for k in (size, 1)))
    gaps = [pair for d in window.input_dilation for pair in ((0, 0), (0, d - 1))]
    wide = _padded(b, wide, gaps, fill)
    sizes = [size * d for size, d in zip(spatial, window.input_dilation, strict=True)]
    # No gap follows the last number: that part of the padding is there already, or cut off.
    rest = [
        (low, high - (d - 1))
        for (low, high), d in zip(window.padding, window.input_dilation, strict=True)
    ]
    return _padded(b, reshape(b, wide, c, *sizes), rest, fill), none


def _padded(b: Builder, name: str, padding: Padding, fill: float) -> str:
    low, high = zip(*padding, strict=True)
    ends = b.ints(0, 0, *low, 0, 0, *high)
    return b.add("Pad", name, ends, *((b.number(fill),) if fill else ()))


def pool(b: Builder, op: Pool, x: Tensor) -> Tensor:
    """A max or a sum under a window."""
    window, largest = op.window, op.function == "max"
    x = read(b, as_type(b, x, "float32"), op.in_shape, first=True)
    name, padding = _dilated(b, x, window, -np.inf if largest else 0.0, True)
    options = {"kernel_shape": list(window.size), **_options(window, padding)}
    scale = op.scale
    if largest:
        y = b.add("MaxPool", name, **_without_defaults(options))
    elif all(d == 1 for d in window.dilation):
        del options["dilations"]
        if any(map(any, padding)):
            options["count_include_pad"] = 1
        y = b.add("AveragePool", name, **_without_defaults(options))
        scale *= math.prod(window.size)
    else:
        ones = b.constant(np.ones((op.in_shape[-1], 1, *window.size), np.float32))
        del options["kernel_shape"]
        y = b.add("Conv", name, ones, group=op.in_shape[-1], **options)
    if abs(scale - 1.0) > 1e-6:
        y = b.add("Mul", y, b.number(scale))
    return as_type(b, x._replace(name=y, shape=op.out_shape), op.dtypes[0])


def _without_defaults(options: dict[str, Any]) -> dict[str, Any]:
    idle = {"pads": 0, "dilations": 1}
    return {k: v for k, v in options.items() if k not in idle or any(n != idle[k] for n in v)}
