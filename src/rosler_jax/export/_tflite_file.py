"""Tensors and operators of a TFLite model as they are gathered, and the flatbuffer they become."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

VERSION = 3  # of the schema
ALIGNMENT = 16  # of stored arrays: interpreters read them where they lie
TYPES = {
    "float32": "FLOAT32", "int4": "INT4", "int8": "INT8", "int16": "INT16", "int32": "INT32",
    "int64": "INT64",
}  # fmt: skip
NONE = -1  # an input that is left out


@dataclasses.dataclass
class Tensor:
    """One tensor.

    Attributes:
      shape: with a batch of 1.
      dtype: a key of :data:`TYPES`.
      data: what is stored, None for what is computed.
      scale: of integers, one or one per index of ``axis``; None for none.
      axis: that carries the scales.
    """

    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray | None = None
    scale: np.ndarray | None = None
    axis: int = 0


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
        scale = None if tensor.scale is None else tensor.scale.tobytes()
        key = (tensor.dtype, tensor.shape, tensor.data.tobytes(), scale, tensor.axis)
        if key not in self.known:
            self.tensors.append(tensor)
            self.known[key] = len(self.tensors) - 1
        return self.known[key]


def serialize(model: Model, inputs: int, outputs: int) -> bytes:
    """The file of a model with one input, ``"input"``, and one output, ``"output"``."""
    import flatbuffers

    f = flatbuffers.Builder(1024)
    names = {inputs: "input", outputs: "output"}
    buffers = [_table(f, "Buffer")]  # the first one is empty, for tensors that are computed
    tensors = []
    for i, tensor in enumerate(model.tensors):
        buffer = 0
        if tensor.data is not None:
            buffers.append(_table(f, "Buffer", Data=_bytes(f, _stored(tensor))))
            buffer = len(buffers) - 1
        tensors.append(_tensor(f, tensor, names.get(i, f"t{i}"), buffer))
    kinds = sorted({operator.kind for operator in model.operators})
    operators = [_operator(f, operator, kinds.index(operator.kind)) for operator in model.operators]
    graph = _table(
        f, "SubGraph", Tensors=_offsets(f, tensors), Inputs=_ints(f, [inputs]),
        Outputs=_ints(f, [outputs]), Operators=_offsets(f, operators),
    )  # fmt: skip
    root = _table(
        f, "Model", Version=VERSION, OperatorCodes=_offsets(f, [_code(f, kind) for kind in kinds]),
        Subgraphs=_offsets(f, [graph]), Description=f.CreateString("rosler_jax"),
        Buffers=_offsets(f, buffers), SignatureDefs=_signature(f, inputs, outputs),
    )  # fmt: skip
    f.Finish(root, file_identifier=b"TFL3")
    return bytes(f.Output())


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
    if tensor.dtype != "int4":
        return np.ascontiguousarray(tensor.data).astype(tensor.dtype).tobytes()
    flat = np.append(tensor.data.ravel(), np.zeros(tensor.data.size % 2, np.int8)).astype(np.uint8)
    return ((flat[0::2] & 15) | (flat[1::2] << 4)).astype(np.uint8).tobytes()


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
        ZeroPoint=int(f.CreateNumpyVector(np.zeros(scale.size, np.int64))),
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


def _code(f: Any, kind: str) -> int:
    import tflite

    number = getattr(tflite.BuiltinOperator, kind)
    old = min(number, int(tflite.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES))
    return _table(f, "OperatorCode", DeprecatedBuiltinCode=old, BuiltinCode=number, Version=1)


def _signature(f: Any, inputs: int, outputs: int) -> int:
    maps = [
        _offsets(f, [_table(f, "TensorMap", Name=f.CreateString(name), TensorIndex=index)])
        for name, index in (("input", inputs), ("output", outputs))
    ]
    key = f.CreateString("serving_default")
    signature = _table(
        f, "SignatureDef", Inputs=maps[0], Outputs=maps[1], SignatureKey=key, SubgraphIndex=0
    )
    return _offsets(f, [signature])
