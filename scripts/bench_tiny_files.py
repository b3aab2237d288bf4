"""The MLPerf Tiny networks as ONNX and TFLite files for other engines, without our exporter.

The files are what the usual converters make: batch normalisation folded into the convolution or
dense layer before it, rectifiers fused (TFLite) or nodes of their own (ONNX), NHWC and NCHW.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ai_edge_litert.schema_py_generated as schema
import flatbuffers
import numpy as np
import onnx
import onnxruntime
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from flax import nnx
from onnx import TensorProto, helper, numpy_helper

POOLS = {"resnet8": (8, 8), "ds_cnn": (24, 5), "mobilenet": (3, 3)}
"""The window of the pooling between the last convolution and the dense layer."""


class Layer(NamedTuple):
    """One operation; its output is the value with the layer's number plus one, the input is 0.

    Attributes:
      kind: "conv", "depthwise", "dense", "add", "pool" or "flatten".
      inputs: numbers of values.
      shape: of the output, without the batch axis.
      weight: (height, width, in, out), (height, width, 1, channels) or (in, out).
      bias: of the outputs.
      stride, relu: as they say.
    """

    kind: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    stride: int = 1
    relu: bool = False


def layers_of(name: str, model: Any, shape: tuple[int, ...]) -> list[Layer]:
    """The layers of a network of ``tests/tiny_models.py``, batch normalisation folded."""
    if hasattr(model, "stem"):
        modules = [model.stem, *model.blocks, model.head]
    else:
        pairs = zip(model.hidden, model.norms, strict=True)
        modules = [m for pair in pairs for m in (*pair, nnx.relu)] + [model.head]
    out: list[Layer] = []
    _walk(modules, out, shape, POOLS.get(name))
    return out


def _walk(
    modules: Sequence[Any], out: list[Layer], shape: tuple[int, ...], pool: tuple[int, int] | None
) -> None:
    for module in modules:
        last = out[-1].shape if out else shape
        if isinstance(module, nnx.Conv):
            out.append(_conv(module, len(out), last))
        elif isinstance(module, nnx.Linear):
            if pool is not None:
                out.append(Layer("pool", (len(out),), (1, 1, last[2])))
                out.append(Layer("flatten", (len(out),), (last[2],)))
            assert module.bias is not None
            weight, bias = np.asarray(module.kernel[...]), np.asarray(module.bias[...])
            out.append(Layer("dense", (len(out),), bias.shape, weight, bias))
        elif isinstance(module, nnx.BatchNorm):
            out[-1] = _fold(out[-1], module)
        elif module is nnx.relu:
            out[-1] = out[-1]._replace(relu=True)
        elif hasattr(module, "shortcut"):
            _residual(module, out)
        elif hasattr(module, "depthwise"):
            _walk([module.depthwise, module.pointwise], out, shape, None)
        else:
            _walk([module.conv, module.norm] + [nnx.relu] * module.relu, out, shape, None)


def _residual(block: Any, out: list[Layer]) -> None:
    start = x = len(out)
    _walk([block.first, block.second], out, (), None)
    y = len(out)
    if block.shortcut is not None:
        out.append(_conv(block.shortcut, start, out[start - 1].shape))
        x = len(out)
    out.append(Layer("add", (x, y), out[-1].shape, relu=True))


def _conv(module: nnx.Conv, value: int, shape: tuple[int, ...]) -> Layer:
    assert module.bias is not None
    assert isinstance(module.strides, tuple) and module.padding == "SAME"
    weight, bias = np.asarray(module.kernel[...]), np.asarray(module.bias[...])
    stride = module.strides[0]
    kind = "depthwise" if module.feature_group_count > 1 else "conv"
    size = tuple(math.ceil(n / stride) for n in shape[:2])
    return Layer(kind, (value,), (*size, len(bias)), weight, bias, stride)


def _fold(layer: Layer, norm: nnx.BatchNorm) -> Layer:
    assert layer.weight is not None and layer.bias is not None
    assert norm.scale is not None and norm.bias is not None
    scale = np.asarray(norm.scale[...]) / np.sqrt(np.asarray(norm.var[...]) + norm.epsilon)
    bias = (layer.bias - np.asarray(norm.mean[...])) * scale + np.asarray(norm.bias[...])
    return layer._replace(weight=layer.weight * scale, bias=bias)


def module_of(layer: Layer, shape: tuple[int, ...]) -> nnx.Sequential:
    """The Flax module of a convolution or dense layer; ``shape`` is its input's."""
    assert layer.weight is not None and layer.bias is not None
    m, n, rngs = shape[-1], layer.shape[-1], nnx.Rngs(0)
    module: nnx.Conv | nnx.Linear
    if layer.kind == "dense":
        module = nnx.Linear(m, n, rngs=rngs)
    else:
        module = nnx.Conv(
            m,
            n,
            layer.weight.shape[:2],
            strides=(layer.stride, layer.stride),
            feature_group_count=m if layer.kind == "depthwise" else 1,
            rngs=rngs,
        )
    assert module.bias is not None
    module.kernel[...], module.bias[...] = layer.weight, layer.bias
    return nnx.Sequential(module, nnx.relu) if layer.relu else nnx.Sequential(module)


def padding(layer: Layer, shape: tuple[int, ...]) -> list[int]:
    """Zeros above, left, below and right, for SAME."""
    assert layer.weight is not None
    sides = [
        max((out - 1) * layer.stride + size - n, 0)
        for n, out, size in zip(shape, layer.shape, layer.weight.shape[:2], strict=False)
    ]
    return [n // 2 for n in sides] + [n - n // 2 for n in sides]


def macs(layer: Layer) -> int:
    """Products of a convolution or dense layer, those with padding too; else 0."""
    if layer.weight is None:
        return 0
    places = math.prod(layer.shape[:2]) if len(layer.shape) == 3 else 1
    return places * layer.weight.size


def write_onnx(
    layers: Sequence[Layer], shape: tuple[int, ...], path: Path, *, gemm: bool = True
) -> None:
    """Writes float32 ONNX, images as (1, channels, height, width); else MatMul and Add for Gemm."""
    shapes = [shape, *(layer.shape for layer in layers)]
    nodes, constants = [], []
    for i, layer in enumerate(layers):
        names = [f"v{n}" for n in layer.inputs]
        at = shapes[layer.inputs[0]]
        fields: dict[str, Any] = {}
        if layer.weight is not None:
            dense = layer.kind == "dense"
            weight = layer.weight if dense else layer.weight.transpose(3, 2, 0, 1)
            for key, array in ((f"w{i}", weight), (f"b{i}", layer.bias)):
                constants.append(numpy_helper.from_array(np.ascontiguousarray(array), key))
                names.append(key)
            if not dense:
                fields = {
                    "strides": [layer.stride] * 2, "pads": padding(layer, at),
                    "kernel_shape": list(layer.weight.shape[:2]),
                    "group": at[2] if layer.kind == "depthwise" else 1,
                }  # fmt: skip
        elif layer.kind == "pool":
            window = list(_window(at))
            fields = {"kernel_shape": window, "strides": window}
        if layer.kind == "dense" and not gemm:
            nodes.append(helper.make_node("MatMul", names[:2], [f"m{i}"]))
            names = [f"m{i}", names[2]]
        target = f"r{i}" if layer.relu else f"v{i + 1}"
        kinds = {
            "conv": "Conv", "depthwise": "Conv", "dense": "Gemm" if gemm else "Add", "add": "Add",
            "pool": "AveragePool", "flatten": "Flatten",
        }  # fmt: skip
        nodes.append(helper.make_node(kinds[layer.kind], names, [target], **fields))
        if layer.relu:
            nodes.append(helper.make_node("Relu", [target], [f"v{i + 1}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, *channels_first(s)))
        for name, s in (("v0", shape), (f"v{len(layers)}", shapes[-1]))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) == 1 else (shape[-1], *shape[:-1])


def _window(shape: tuple[int, ...]) -> tuple[int, int]:
    """Of the pooling: all places, except for ds_cnn's, which leaves out the last of 25 rows."""
    return (24, 5) if shape[:2] == (25, 5) else (shape[0], shape[1])


_OPERATORS = schema.BuiltinOperator
_CODES = {
    "conv": (_OPERATORS.CONV_2D, schema.Conv2DOptionsT),
    "depthwise": (_OPERATORS.DEPTHWISE_CONV_2D, schema.DepthwiseConv2DOptionsT),
    "dense": (_OPERATORS.FULLY_CONNECTED, schema.FullyConnectedOptionsT),
    "add": (_OPERATORS.ADD, schema.AddOptionsT),
    "pool": (_OPERATORS.AVERAGE_POOL_2D, schema.Pool2DOptionsT),
    "flatten": (_OPERATORS.RESHAPE, schema.ReshapeOptionsT),
}


def write_tflite(layers: Sequence[Layer], shape: tuple[int, ...], path: Path) -> None:
    """Writes float32 TFLite with one signature, whose input is called "input"."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.operatorCodes, model.subgraphs = 3, [], [], [graph]
    graph.tensors, graph.operators = [], []

    def tensor(name: str, size: tuple[int, ...], values: np.ndarray | None = None) -> int:
        buffer, made = schema.BufferT(), schema.TensorT()
        if values is not None:
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        model.buffers.append(buffer)
        made.name, made.shape, made.buffer = name, list(size), len(model.buffers) - 1
        integers = values is not None and values.dtype == np.int32
        made.type = schema.TensorType.INT32 if integers else schema.TensorType.FLOAT32
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    model.buffers.append(schema.BufferT())  # the first one is empty by the format's rule
    values = [tensor("input", (1, *shape))]
    kinds = sorted({layer.kind for layer in layers})
    for kind in kinds:
        code = schema.OperatorCodeT()
        code.builtinCode, code.version = _CODES[kind][0], 1
        code.deprecatedBuiltinCode = code.builtinCode
        model.operatorCodes.append(code)
    for i, layer in enumerate(layers):
        made = schema.OperatorT()
        made.opcodeIndex = kinds.index(layer.kind)
        made.inputs = [values[n] for n in layer.inputs]
        if layer.weight is not None:
            weight = _stored(layer)
            made.inputs.append(tensor(f"w{i}", weight.shape, weight))
            made.inputs.append(tensor(f"b{i}", layer.shape[-1:], layer.bias))
        elif layer.kind == "flatten":
            made.inputs.append(tensor(f"s{i}", (2,), np.asarray([1, *layer.shape], np.int32)))
        values.append(tensor(f"v{i + 1}", (1, *layer.shape)))
        made.outputs = [values[-1]]
        made.builtinOptions = _options(layer, tuple(graph.tensors[made.inputs[0]].shape[1:]))
        name = type(made.builtinOptions).__name__.removesuffix("T")
        made.builtinOptionsType = getattr(schema.BuiltinOptions, name)
        graph.operators.append(made)
    graph.inputs, graph.outputs = values[:1], values[-1:]
    model.signatureDefs = [_signature(values[0], values[-1])]
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def _stored(layer: Layer) -> np.ndarray:
    """A weight as TFLite has it: outputs first; a depthwise one as (1, height, width, channels)."""
    assert layer.weight is not None
    axes = {"conv": (3, 0, 1, 2), "depthwise": (2, 0, 1, 3), "dense": (1, 0)}[layer.kind]
    return np.ascontiguousarray(layer.weight.transpose(axes), np.float32)


def _options(layer: Layer, shape: tuple[int, ...]) -> Any:
    options = _CODES[layer.kind][1]()
    if layer.relu:
        options.fusedActivationFunction = schema.ActivationFunctionType.RELU
    if layer.kind in ("conv", "depthwise"):
        options.strideH = options.strideW = layer.stride
        options.dilationHFactor = options.dilationWFactor = 1
    if layer.kind == "depthwise":
        options.depthMultiplier = 1
    if layer.kind == "pool":
        options.padding = schema.Padding.VALID
        options.filterHeight, options.filterWidth = _window(shape)
        options.strideH, options.strideW = _window(shape)
    if layer.kind == "flatten":
        options.newShape = [1, *layer.shape]
    return options


def _signature(first: int, last: int) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    for field, name, index in (("inputs", "input", first), ("outputs", "output", last)):
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        setattr(signature, field, [entry])
    return signature


def run_tflite(path: Path, inputs: np.ndarray) -> np.ndarray:
    """A TFLite file's outputs on this machine, one a row, as floats; with its plain kernels."""
    interpreter = Interpreter(
        str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    first, last = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scales = [end["quantization"] if end["dtype"] == np.int8 else (1, 0) for end in (first, last)]
    rows = []
    for x in inputs:
        stored = x if scales[0] == (1, 0) else np.rint(x / scales[0][0]) + scales[0][1]
        interpreter.set_tensor(first["index"], stored[None].astype(first["dtype"]))
        interpreter.invoke()
        y = interpreter.get_tensor(last["index"]).astype(np.float32)
        rows.append((y.reshape(-1) - scales[1][1]) * scales[1][0])
    return np.stack(rows)


def run_onnx(path: Path, inputs: np.ndarray) -> np.ndarray:
    """A float ONNX file's outputs on this machine, one a row."""
    session = onnxruntime.InferenceSession(path)
    return np.concatenate([session.run(None, {"v0": x[None]})[0] for x in inputs])


def input_scale(path: Path) -> tuple[float, int]:
    """The scale and zero point of an integer TFLite file's input."""
    scale, zero = Interpreter(str(path)).get_input_details()[0]["quantization"]
    return float(scale), int(zero)


def put_inline(path: Path) -> None:
    """Moves a TFLite file's tensors into the tables of the format.

    ai-edge-quantizer puts those of larger files behind them, where TFLM takes no constants from.
    """
    data = path.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    for buffer in model.buffers:
        if buffer.size:
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def quantize_onnx(path: Path, calibration: np.ndarray) -> None:
    """Makes a float ONNX file int8 by onnxruntime, in place, as far as onnx2c reads it.

    One scale for each tensor; pooling stays float, and so do input and output.
    """
    from onnxruntime import quantization

    class Rows(quantization.CalibrationDataReader):
        rows = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {"v0": row[None]}

    quantization.quantize_static(
        path,
        path,
        Rows(),
        quant_format=quantization.QuantFormat.QOperator,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["Conv", "Add", "MatMul", "Relu"],
    )
