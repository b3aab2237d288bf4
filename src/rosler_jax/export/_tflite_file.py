"""Tensors and operators of a TFLite model as they are gathered, and the flatbuffer they become."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from rosler_jax._bitpack import pack

VERSION = 3  # of the schema
ALIGNMENT = 16  # of stored arrays: interpreters read them where they lie
TYPES = {
    "float32": "FLOAT32", "int4": "INT4", "int8": "INT8", "int16": "INT16", "int32": "INT32",
    "int64": "INT64", "bool": "BOOL",
}  # fmt: skip
NONE = -1  # an input that is left out

_SINCE = {
    "ADD MEAN SOFTMAX RELU RELU6 TANH LOGISTIC CONCATENATION PACK BATCH_MATMUL RSQRT ABS LESS "
    "GREATER_EQUAL PAD PADV2 REDUCE_MAX REDUCE_MIN MAX_POOL_2D AVERAGE_POOL_2D": (2, 3, 1),
    "MUL MAXIMUM MINIMUM SLICE EQUAL": (2, 4, 1),
    "UNPACK": (2, 4, 3),
    "SUB": (2, 5, 1),
    "TRANSPOSE": (2, 5, 3),
    "SUM LOG_SOFTMAX GREATER LESS_EQUAL NOT_EQUAL SQUARED_DIFFERENCE EXP LOG": (2, 1, 1),
    "ARG_MAX ARG_MIN STRIDED_SLICE": (2, 1, 3),
    "GATHER": (2, 4, 3),
    "CAST": (3, 1, 1),
    "DEQUANTIZE": (2, 3, 1),
    "CONV_2D": (3, 4, 1),
    "FULLY_CONNECTED": (4, 7, 1),
    "DEPTHWISE_CONV_2D": (3, 5, 1),
}
VERSIONS = {kind: since for kinds, since in _SINCE.items() for kind in kinds.split()}
"""Version of an operator with int8, int16 and bool; with floats and int32 it is 1."""


@dataclasses.dataclass
class Tensor:
    """One tensor.

    Attributes:
      shape: with a batch of 1.
      dtype: a key of :data:`TYPES`.
      data: what is stored, None for what is computed.
      scale: of integers, one or one per index of ``axis``; None for none.
      axis: that carries the scales.
      zero: the integer that stands for 0.
    """

    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray | None = None
    scale: Any = None
    axis: int = 0
    zero: int = 0


@dataclasses.dataclass
class Operator:
    """One operator.

    Attributes:
      kind: name in ``BuiltinOperator``.
      inputs, outputs: indices of tensors.
      options: name of the table of options and its fields; None for none.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: tuple[str, dict[str, Any]] | None = None


@dataclasses.dataclass
class Model:
    """What has been gathered so far.

    Attributes:
      tensors, operators: in order.
      known: stored tensors by their contents; equal ones are stored once.
    """

    tensors: list[Tensor] = dataclasses.field(default_factory=list)
    operators: list[Operator] = dataclasses.field(default_factory=list)
    known: dict[Any, int] = dataclasses.field(default_factory=dict)

    def tensor(self, tensor: Tensor) -> int:
        """Adds a tensor; one that is stored already is not stored again."""
        if tensor.data is None:
            self.tensors.append(tensor)
            return len(self.tensors) - 1
        scale = None if tensor.scale is None else np.asarray(tensor.scale).tobytes()
        key = (tensor.dtype, tensor.shape, tensor.data.tobytes(), scale, tensor.axis, tensor.zero)
        if key not in self.known:
            self.tensors.append(tensor)
            self.known[key] = len(self.tensors) - 1
        return self.known[key]


Named = Sequence[tuple[str, int]]
"""Inputs or outputs: a name and a tensor each."""


def serialize(model: Model, inputs: Named, outputs: Named) -> bytes:
    """The file of a model."""
    import flatbuffers

    f = flatbuffers.Builder(1024)
    names = {index: name for name, index in (*inputs, *outputs)}
    buffers = [_table(f, "Buffer")]  # the first one is empty, for tensors that are computed
    written: dict[bytes, int] = {}
    tensors = []
    for i, tensor in enumerate(model.tensors):
        data = b"" if tensor.data is None else _stored(tensor)
        if data and data not in written:  # one buffer, whatever shapes and scales it is read with
            written[data] = len(buffers)
            buffers.append(_table(f, "Buffer", Data=_bytes(f, data)))
        tensors.append(_tensor(f, tensor, names.get(i, f"t{i}"), written.get(data, 0)))
    versions = [_version(model, operator) for operator in model.operators]
    kinds = sorted({(op.kind, v) for op, v in zip(model.operators, versions, strict=True)})
    operators = [
        _operator(f, operator, kinds.index((operator.kind, version)))
        for operator, version in zip(model.operators, versions, strict=True)
    ]
    graph = _table(
        f, "SubGraph", Tensors=_offsets(f, tensors), Inputs=_ints(f, [i for _, i in inputs]),
        Outputs=_ints(f, [i for _, i in outputs]), Operators=_offsets(f, operators),
    )  # fmt: skip
    root = _table(
        f, "Model", Version=VERSION, OperatorCodes=_offsets(f, [_code(f, *kind) for kind in kinds]),
        Subgraphs=_offsets(f, [graph]), Description=f.CreateString("rosler_jax"),
        Buffers=_offsets(f, buffers), SignatureDefs=_signature(f, inputs, outputs),
    )  # fmt: skip
    f.Finish(root, file_identifier=b"TFL3")
    return bytes(f.Output())


def _version(model: Model, operator: Operator) -> int:
    """The version of an operator that knows its types and options: the oldest runtime that can."""
    tensors = [model.tensors[i] for i in operator.inputs if i != NONE]
    dtype, kind = tensors[0].dtype, operator.kind
    options = {} if operator.options is None else operator.options[1]
    if kind == "QUANTIZE":
        return 2 if model.tensors[operator.outputs[0]].dtype == "int16" else 1
    if kind == "DEQUANTIZE" and dtype == "int4":
        return 6
    if kind == "CONV_2D" and tensors[0].shape[-1] != tensors[1].shape[-1]:
        return 6  # groups
    if kind == "GATHER" and options.get("BatchDims"):
        return 5
    if kind == "TRANSPOSE" and len(tensors[0].shape) > 4:
        return 4 if len(tensors[0].shape) == 5 else 6
    if kind == "DEPTHWISE_CONV_2D" and dtype == "float32":
        return 2 if max(options["DilationWFactor"], options["DilationHFactor"]) > 1 else 1
    if kind == "MUL" and dtype == "int8":
        y = model.tensors[operator.outputs[0]]
        return 3 if tensors[0].scale * tensors[1].scale >= y.scale else 2
    if kind in ("MAXIMUM", "MINIMUM", "SUB", "DIV") and max(len(t.shape) for t in tensors) > 4:
        return {"DIV": 2, "SUB": 5 if dtype == "int16" else 3}.get(kind, 3)
    since = VERSIONS.get(kind, (1, 1, 1))
    return dict(zip(("int8", "int16", "bool"), since, strict=True)).get(dtype, 1)


def _table(f: Any, name: str, **fields: Any) -> int:
    """A table of the schema; fields by their names there, offsets for what is no number."""
    module = importlib.import_module(f"tflite.{name}")
    module.Start(f)
    for field, value in fields.items():
        if value is not None:
            getattr(module, f"Add{field}")(f, value)
    return int(module.End(f))


def _offsets(f: Any, offsets: Sequence[int]) -> int:
    f.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        f.PrependUOffsetTRelative(offset)
    return int(f.EndVector())


def _ints(f: Any, values: Sequence[int]) -> int:
    return int(f.CreateNumpyVector(np.array(values, np.int32)))


def _bytes(f: Any, data: bytes) -> int:
    f.StartVector(1, len(data), ALIGNMENT)
    f.head = f.Head() - len(data)
    f.Bytes[f.Head() : f.Head() + len(data)] = data
    return int(f.EndVector())


def _stored(tensor: Tensor) -> bytes:
    assert tensor.data is not None
    if tensor.dtype == "int4":
        return pack(tensor.data, 4)
    return tensor.data.astype(tensor.dtype).tobytes()


def _tensor(f: Any, tensor: Tensor, name: str, buffer: int) -> int:
    import tflite

    computed = tensor.data is None
    signature = _ints(f, [-1, *tensor.shape[1:]]) if computed and tensor.shape else None
    return _table(
        f, "Tensor", Shape=_ints(f, tensor.shape), ShapeSignature=signature,
        Type=getattr(tflite.TensorType, TYPES[tensor.dtype]), Buffer=buffer,
        Name=f.CreateString(name), Quantization=_quantization(f, tensor),
    )  # fmt: skip


def _quantization(f: Any, tensor: Tensor) -> int | None:
    if tensor.scale is None:
        return None
    scale = np.atleast_1d(np.asarray(tensor.scale, np.float32))
    return _table(
        f, "QuantizationParameters", Scale=int(f.CreateNumpyVector(scale)),
        ZeroPoint=int(f.CreateNumpyVector(np.full(scale.size, tensor.zero, np.int64))),
        QuantizedDimension=tensor.axis,
    )  # fmt: skip


def _operator(f: Any, operator: Operator, code: int) -> int:
    import tflite

    options, kind = None, None
    if operator.options is not None:
        name, fields = operator.options
        options, kind = _table(f, name, **fields), getattr(tflite.BuiltinOptions, name)
    return _table(
        f, "Operator", OpcodeIndex=code, Inputs=_ints(f, operator.inputs),
        Outputs=_ints(f, operator.outputs), BuiltinOptionsType=kind, BuiltinOptions=options,
    )  # fmt: skip


def _code(f: Any, kind: str, version: int) -> int:
    import tflite

    number = getattr(tflite.BuiltinOperator, kind)
    old = min(number, int(tflite.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES))
    return _table(f, "OperatorCode", DeprecatedBuiltinCode=old, BuiltinCode=number, Version=version)


def _signature(f: Any, inputs: Named, outputs: Named) -> int:
    maps = [
        _offsets(
            f,
            [_table(f, "TensorMap", Name=f.CreateString(name), TensorIndex=i) for name, i in named],
        )
        for named in (inputs, outputs)
    ]
    key = f.CreateString("serving_default")
    signature = _table(
        f, "SignatureDef", Inputs=maps[0], Outputs=maps[1], SignatureKey=key, SubgraphIndex=0
    )
    return _offsets(f, [signature])
