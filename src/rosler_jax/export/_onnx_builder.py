"""Nodes and constants of an ONNX graph as they are gathered, and arrays in their smallest form."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from rosler_jax.export._stored import integers_of
from rosler_jax.export.graph import Shape, Weight

VECTOR_BITS = 16  # of biases in integer files, as in the model file
PACKED_FROM = 512  # signs; packing fewer takes more bytes of nodes than it saves


@dataclasses.dataclass
class Builder:
    """What has been written so far.

    Attributes:
      bits: of the weights; 32 for floats.
      nodes: in order.
      initializers: constants.
      known: names of constants by their contents: equal ones are stored once.
    """

    bits: int
    nodes: list[Any] = dataclasses.field(default_factory=list)
    initializers: list[Any] = dataclasses.field(default_factory=list)
    known: dict[Any, str] = dataclasses.field(default_factory=dict)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output, and returns its name."""
        from onnx import helper

        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def constant(self, array: np.ndarray, name: str = "") -> str:
        """A stored array; one that is stored already is not stored again."""
        from onnx import numpy_helper

        array = np.ascontiguousarray(array)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self.known:
            self.known[key] = name or f"c{len(self.initializers)}"
            tensor = numpy_helper.from_array(array, self.known[key])
            self.initializers.append(tensor)
        return self.known[key]

    def ints(self, *values: int) -> str:
        """A stored vector of int64: shapes, axes, limits."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A stored float32."""
        return self.constant(np.asarray(value, np.float32))


class Value(NamedTuple):
    """A tensor between operations.

    Attributes:
      name: in the ONNX graph.
      shape: of one example, channels last.
      first: whether it lies in memory with the channels first, ``(batch, c, *spatial)``.
    """

    name: str
    shape: Shape
    first: bool = False

    @property
    def trailing(self) -> Shape:
        """Sizes of the axes behind the channels."""
        return self.shape[:-1] if self.first else ()


def channels_first(b: Builder, x: Value) -> Value:
    """The tensor with the channels first, as ONNX's windows want them."""
    return x if x.first else _moved(b, x, True)


def channels_last(b: Builder, x: Value) -> Value:
    """The tensor with the channels last, as the graph has them."""
    return _moved(b, x, False) if x.first else x


def _moved(b: Builder, x: Value, first: bool) -> Value:
    *spatial, c = x.shape
    n = len(spatial)
    if c == 1 or all(size == 1 for size in spatial):  # the same order in memory
        shape = (c, *spatial) if first else (*spatial, c)
        return Value(reshape(b, x.name, *shape), x.shape, first)
    order = [0, n + 1, *range(1, n + 1)] if first else [0, *range(2, n + 2), 1]
    return Value(b.add("Transpose", x.name, perm=order), x.shape, first)


def reshape(b: Builder, name: str, *shape: int) -> str:
    """A new shape for every example; the batch takes what is left."""
    return b.add("Reshape", name, b.ints(-1, *shape))


def per_channel(b: Builder, x: Value, array: Any) -> str:
    """A stored vector that meets the channels of a tensor, or one number."""
    vector = np.asarray(array, np.float32)
    return floats(b, vector.reshape(-1, *(1,) * len(x.trailing)) if vector.ndim else vector)


def add_bias(b: Builder, x: Value, bias: np.ndarray | None) -> Value:
    """``x + bias`` along the channels."""
    return x if bias is None else x._replace(name=b.add("Add", x.name, per_channel(b, x, bias)))


def floats(b: Builder, array: np.ndarray) -> str:
    """Stored real numbers: float32, or 16-bit integers and a scale in a file of integers."""
    largest = float(np.abs(array).max(initial=0.0))
    if b.bits == 32 or array.size < 32 or not 0.0 < largest < np.inf:
        return b.constant(np.asarray(array, np.float32))
    scale = largest / (2 ** (VECTOR_BITS - 1) - 1)
    stored = b.constant(np.rint(array / scale).astype(np.int16))
    return b.add("Mul", b.add("Cast", stored, to=_float()), b.number(scale))


def weight(b: Builder, w: Weight, order: tuple[int, ...]) -> str:
    """A stored matrix or kernel with its axes in that order; integers come with their scales."""
    if b.bits == 32:
        return b.constant(w.values.transpose(order), w.name)
    integers, scale, axis = integers_of(w, b.bits)
    values = integers.transpose(order)
    if b.bits == 4:
        import ml_dtypes

        values = values.astype(ml_dtypes.int4)
    else:
        values = values.astype({8: np.int8, 16: np.int16}[b.bits])
    stored = (b.constant(values, w.name), b.constant(np.asarray(scale, np.float32)))
    if axis is None:
        return b.add("DequantizeLinear", *stored)
    return b.add("DequantizeLinear", *stored, axis=order.index(axis % values.ndim))


def indices(b: Builder, array: np.ndarray) -> str:
    """Stored indices, in as many bytes as they need."""
    largest = int(array.max(initial=0))
    dtype = np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.int32
    from onnx import TensorProto

    stored = b.constant(array.astype(dtype))
    return stored if dtype is np.int32 else b.add("Cast", stored, to=TensorProto.INT32)


def signs(b: Builder, array: np.ndarray, entry: float) -> str:
    """Stored numbers ``+-entry``, a bit each where there are many."""
    if array.size < PACKED_FROM:
        stored = b.add("Cast", b.constant(np.sign(array).astype(np.int8)), to=_float())
        return b.add("Mul", stored, b.number(entry))
    packed = np.packbits((array < 0).ravel(), bitorder="little")
    bits = b.constant(np.arange(8, dtype=np.uint8))
    shifted = b.add("BitShift", b.constant(packed[:, None]), bits, direction="RIGHT")
    zero_one = b.add("Mod", shifted, b.constant(np.array(2, np.uint8)))
    if array.size % 8:
        flat = b.add("Reshape", zero_one, b.ints(-1))
        zero_one = b.add("Slice", flat, b.ints(0), b.ints(array.size))
    real = b.add("Cast", b.add("Reshape", zero_one, b.ints(*array.shape)), to=_float())
    return b.add("Add", b.add("Mul", real, b.number(-2 * entry)), b.number(entry))


def _float() -> int:
    from onnx import TensorProto

    return int(TensorProto.FLOAT)
