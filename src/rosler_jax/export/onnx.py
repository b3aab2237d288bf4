"""ONNX, written straight from the graph: learnt factors stay factors, sketches stay small.

Float files and files of 8-bit weights take opset 13; files of 16-bit and 4-bit weights take opset
21, the first whose ``DequantizeLinear`` reads them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from rosler_jax._version import __version__
from rosler_jax.export import _onnx_sketch as sketches
from rosler_jax.export._errors import ExportError
from rosler_jax.export._onnx_builder import (
    Builder,
    Value,
    add_bias,
    channels_first,
    channels_last,
    indices,
    per_channel,
    reshape,
    weight,
)
from rosler_jax.export._stored import pad_indices, replace_bytes
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
    Window,
)

OPSETS = {32: 13, 16: 21, 8: 13, 4: 21}
"""The lowest opset for weights of so many bits."""
INPUT, OUTPUT = "input", "output"
LARGEST = 2**31 - 1  # bytes of one protocol buffer


def to_onnx(graph: Graph, path: str | os.PathLike[str], *, bits: int = 32) -> int:
    """Writes a graph as an ONNX file with a batch of any size.

    Input ``"input"`` is float32 ``(batch, *in_shape)``, channels last as in JAX; output
    ``"output"`` is float32 ``(batch, *out_shape)``.

    Args:
      graph: the network.
      path: file to write.
      bits: of the stored weights: 32 (floats), 16, 8 or 4. Integers of the model file are kept
        where they have no more bits; arithmetic is in float32 throughout.

    Returns:
      Bytes of the file.

    Raises:
      ExportError: for unknown bits, or a model of 2 GB and more.
      ImportError: if the extra is not installed.
      OSError: if the file cannot be written.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from rosler_jax.export.build import build_graph
      >>> specs = [{"kind": "linear", "in_features": 2, "out_features": 1}]
      >>> graph = build_graph(specs, {"0/kernel": np.ones((2, 1))})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     to_onnx(graph, f"{folder}/m.onnx") == Path(f"{folder}/m.onnx").stat().st_size
      True
    """
    data = onnx_bytes(graph, bits)
    replace_bytes(path, data)
    return len(data)


def onnx_bytes(graph: Graph, bits: int = 32) -> bytes:
    """The file's contents; see :func:`to_onnx`."""
    model = onnx_model(graph, bits)
    if model.ByteSize() > LARGEST:
        raise ExportError(
            f"the model takes {model.ByteSize()} bytes, more than an ONNX file's {LARGEST}; use "
            "fewer bits or a sketch that is stored as signs (srht, rademacher)"
        )
    return bytes(model.SerializeToString())


def onnx_model(graph: Graph, bits: int = 32) -> Any:
    """The ``onnx.ModelProto`` of a graph; see :func:`to_onnx`."""
    if bits not in OPSETS:
        known = ", ".join(map(str, OPSETS))
        raise ExportError(f"bits {bits!r} cannot be written to ONNX; use one of {known}")
    helper = _helper()
    b = Builder(bits)
    x = Value(INPUT, graph.in_shape)
    for op in graph.ops:
        x = EMIT[type(op)](b, op, x)
    b.nodes.append(helper.make_node("Identity", [channels_last(b, x).name], [OUTPUT]))
    body = helper.make_graph(
        b.nodes,
        "rosler",
        [_signature(INPUT, graph.in_shape)],
        [_signature(OUTPUT, graph.out_shape)],
        b.initializers,
    )
    opsets = [helper.make_opsetid("", OPSETS[bits])]
    return helper.make_model(
        body,
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="rosler_jax",
        producer_version=__version__,
    )


def _helper() -> Any:
    try:
        from onnx import helper
    except ImportError as error:
        raise ImportError(
            "writing ONNX needs the onnx package; install it with pip install rosler-jax[export]"
        ) from error
    return helper


def _signature(name: str, shape: tuple[int, ...]) -> Any:
    from onnx import TensorProto

    return _helper().make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])


def _affine(b: Builder, op: Affine, x: Value) -> Value:
    name = x.name
    if op.center.any():
        name = b.add("Sub", name, per_channel(b, x, op.center))
    return x._replace(name=b.add("Mul", name, per_channel(b, x, op.factor)))


def _dense(b: Builder, op: Dense, x: Value) -> Value:
    # The matrix lies transposed: onnxruntime rounds activations to 8 bits where a matrix of small
    # integers stands behind a plain product.
    inputs = [x.name, weight(b, op.weight, (1, 0))]
    y = Value("", op.out_shape)
    if op.bias is not None:
        inputs.append(per_channel(b, y, op.bias))
    return y._replace(name=b.add("Gemm", *inputs, transB=1))


def _conv(b: Builder, op: Conv, x: Value) -> Value:
    n = len(op.window.size)
    kernel = weight(b, op.weight, (n + 1, n, *range(n)))
    return _convolved(b, op, op.window, x, kernel, op.bias)


def _patches(b: Builder, op: PatchProject, x: Value) -> Value:
    window = op.window
    kernel = sketches.filters(b, op.sketch, op.scale, window.size, window.groups)
    return _convolved(b, op, window, x, kernel, None)


def _convolved(
    b: Builder, op: Op, window: Window, x: Value, kernel: str, bias: np.ndarray | None
) -> Value:
    x = channels_first(b, x)
    name, padding = _dilated(b, x, window)
    inputs = [name, kernel]
    if bias is not None:
        inputs.append(per_channel(b, Value("", op.out_shape), bias))
    y = b.add(
        "Conv",
        *inputs,
        strides=list(window.strides),
        pads=[low for low, _ in padding] + [high for _, high in padding],
        dilations=list(window.dilation),
        group=window.groups,
    )
    return Value(y, op.out_shape, True)


def _dilated(b: Builder, x: Value, window: Window) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The input with its gaps, and the padding that is left for the convolution to do."""
    if all(d == 1 for d in window.input_dilation):
        return x.name, window.padding
    *spatial, c = x.shape
    n = len(spatial)
    wide = reshape(b, x.name, c, *(k for size in spatial for k in (size, 1)))
    gaps = [k for d in window.input_dilation for k in (0, d - 1)]
    wide = b.add("Pad", wide, b.ints(*(0,) * (2 * n + 2), 0, 0, *gaps))
    sizes = [size * d for size, d in zip(spatial, window.input_dilation, strict=True)]
    # No gap follows the last number: that part of the padding is there already, or cut off.
    low = [pair[0] for pair in window.padding]
    high = [
        pair[1] - (d - 1) for pair, d in zip(window.padding, window.input_dilation, strict=True)
    ]
    name = b.add("Pad", reshape(b, wide, c, *sizes), b.ints(0, 0, *low, 0, 0, *high))
    return name, ((0, 0),) * n


def _project(b: Builder, op: Project, x: Value) -> Value:
    rows, cols = op.sketch.rows, op.sketch.cols
    inner, outer = (cols, rows) if op.transpose else (rows, cols)
    trailing = math.prod(x.trailing)
    name = x.name
    if x.shape != (inner,):
        name = reshape(b, name, inner, *((trailing,) if trailing > 1 else ()))
    name = sketches.project(b, name, op.sketch, op.scale, op.transpose, trailing)
    y = Value(name, op.out_shape, x.first)
    if op.out_shape != (outer,):
        shape = (op.out_shape[-1], *x.trailing) if x.first else op.out_shape
        y = y._replace(name=reshape(b, name, *shape))
    return add_bias(b, y, op.bias)


def _activate(b: Builder, op: Activate, x: Value) -> Value:
    return x._replace(name=ACTIVATIONS[op.kind](b, x.name))


def _gelu(b: Builder, x: str) -> str:
    """``x sigmoid(2 z)``, ``z = sqrt(2 / pi) (x + 0.044715 x^3)``: the tanh form in fewer nodes."""
    factor = 2.0 * math.sqrt(2.0 / math.pi)
    square = b.add("Mul", b.add("Mul", x, x), b.number(0.044715 * factor))
    inside = b.add("Mul", x, b.add("Add", square, b.number(factor)))
    return b.add("Mul", x, b.add("Sigmoid", inside))


ACTIVATIONS: dict[str, Callable[[Builder, str], str]] = {
    "relu": lambda b, x: b.add("Relu", x),
    "gelu": _gelu,
    "tanh": lambda b, x: b.add("Tanh", x),
}
"""Elementwise functions by name."""


def _pool(b: Builder, op: Pool, x: Value) -> Value:
    kind = "MaxPool" if op.kind == "max" else "AveragePool"
    size = list(op.window)
    name = b.add(kind, channels_first(b, x).name, kernel_shape=size, strides=size)
    return Value(name, op.out_shape, True)


def _pad(b: Builder, op: Pad, x: Value) -> Value:
    name = x.name
    for axis, index in pad_indices(op):
        name = b.add("Gather", name, indices(b, index), axis=axis + (2 if x.first else 1))
    return Value(name, op.out_shape, x.first)


def _flatten(b: Builder, op: Flatten, x: Value) -> Value:
    if x.shape == op.out_shape:
        return x
    return Value(reshape(b, channels_last(b, x).name, *op.out_shape), op.out_shape)


EMIT: dict[type[Op], Callable[[Builder, Any, Value], Value]] = {
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
"""How each operation becomes ONNX nodes: a new one is one line here."""
