"""Nodes and constants of an ONNX graph as they are gathered, and arrays in their smallest form."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from rosler_jax.export._stored import in_integers
from rosler_jax.graph import Weight
from rosler_jax.graph.weight import Shape, simplified

VECTOR_BITS = 16  # of biases in integer files, as in the model file
PACKED_FROM = 512  # signs; packing fewer takes more bytes of nodes than it saves


@dataclasses.dataclass
class Builder:
    """What has been written so far, of the model or of the body of a loop.

    Attributes:
      bits: of the weights; 32 for floats.
      batch: name of a tensor whose first axis is the batch.
      whole: stored tensors (by id) that are written as they are, and laid out by nodes.
      parent: of a body, what it is in: it sees the tensors there.
      nodes: in order.
      initializers: constants; those of bodies are the model's.
      uses: stored arrays that were asked for, as they lie in the file.
      known: names of constants by their contents, and of results by what made them: equal ones are
        there once.
      names: that are taken.
    """

    bits: int
    batch: str
    whole: frozenset[int] = frozenset()
    parent: Builder | None = None
    nodes: list[Any] = dataclasses.field(default_factory=list)
    initializers: list[Any] = dataclasses.field(default_factory=list)
    uses: list[Weight] = dataclasses.field(default_factory=list)
    known: dict[Any, str] = dataclasses.field(default_factory=dict)
    names: set[str] = dataclasses.field(default_factory=set)

    @property
    def root(self) -> Builder:
        """The model's builder."""
        return self if self.parent is None else self.parent.root

    def body(self) -> Builder:
        """A builder of the body of a loop."""
        return Builder(self.bits, self.batch, parent=self)

    def fresh(self, name: str = "") -> str:
        """A name that is not taken: this one, or with a number behind."""
        names, k = self.root.names, 1
        new = name = name or f"t{len(names)}"
        while new in names:
            new, k = f"{name}:{k}", k + 1
        names.add(new)
        return new

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output, and returns its name; equal nodes are there once."""
        from onnx import helper

        key = (kind, inputs, repr(sorted(attributes.items())))
        at: Builder | None = self
        while at is not None:
            if key in at.known:
                return at.known[key]
            at = at.parent
        out = self.known[key] = self.fresh()
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def constant(self, array: np.ndarray, name: str = "") -> str:
        """A stored array; one that is stored already is not stored again."""
        from onnx import numpy_helper

        root, array = self.root, np.asarray(array, order="C")
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in root.known:
            root.known[key] = self.fresh(name or f"c{len(root.initializers)}")
            root.initializers.append(numpy_helper.from_array(array, root.known[key]))
        return root.known[key]

    def ints(self, *values: int) -> str:
        """A stored vector of int64: shapes, axes, limits."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: float, dtype: str = "float32") -> str:
        """A stored number."""
        return self.constant(np.asarray(value, dtype))

    def cast(self, name: str, dtype: str) -> str:
        """A tensor in another type."""
        return self.add("Cast", name, to=type_of(dtype))


def type_of(dtype: str) -> int:
    """ONNX's number of a type."""
    from onnx import TensorProto

    return int(TensorProto.DataType.Value({"float32": "FLOAT"}.get(dtype, dtype.upper())))


class Tensor(NamedTuple):
    """A value of the graph as it is held in the file.

    Attributes:
      name: in the ONNX graph.
      shape: of what lies behind the first axis, channels last. Where that is less than the whole
        value, as a row of a matrix, the first axis counts examples times rows.
      first: whether the channels lie first, ``(batch, c, *spatial)``.
      batched: whether the first axis counts examples; else it is as for one example.
      dtype: ``"float32"``, ``"int32"`` or ``"bool"``.
      weight: a stored array that is not in the file yet: it is written in the form that is read.
    """

    name: str
    shape: Shape
    first: bool = False
    batched: bool = True
    dtype: str = "float32"
    weight: Weight | None = None

    @property
    def trailing(self) -> Shape:
        """Sizes of the axes behind the channels."""
        return self.shape[:-1] if self.first else ()

    def axis(self, axis: int) -> int:
        """Where an axis of the value lies."""
        if not self.first:
            return axis + 1
        return 1 if axis == len(self.shape) - 1 else axis + 2


def stored(weight: Weight) -> Tensor:
    """A constant of the graph."""
    dtype = {"b": "bool", "i": "int32", "u": "int32"}.get(weight.values.dtype.kind, "float32")
    return Tensor("", weight.shape, batched=False, dtype=dtype, weight=weight)


def read(b: Builder, x: Tensor, shape: Shape, first: bool = False) -> Tensor:
    """A value in that shape; of a part of it, as of rows, the first axis counts the parts."""
    if x.weight is not None:
        return _read_stored(b, x, x.weight, shape, first)
    if x.shape != shape and x.first and first and x.shape[-1] == shape[-1]:
        x = x._replace(name=reshape(b, x.name, shape[-1], *shape[:-1]), shape=shape)
    elif x.shape != shape:
        name = x.name if _same_order(x) else channels_last(b, x).name
        x = x._replace(name=reshape(b, name, *shape), shape=shape, first=False)
    return channels_first(b, x) if first else channels_last(b, x)


def _read_stored(b: Builder, x: Tensor, weight: Weight, shape: Shape, first: bool) -> Tensor:
    n, parts = len(shape), math.prod(x.shape) // max(1, math.prod(shape))
    weight = weight.then("reshape", (parts, *shape))
    if first:
        weight = weight.then("transpose", (0, n, *range(1, n)))
    return Tensor(array_of(b, weight, False), shape, first, False, x.dtype)


def as_held(b: Builder, x: Tensor, shape: Shape) -> Tensor:
    """A value in that shape; channels first if it is held so."""
    return read(b, x, shape, x.first and x.shape == shape)


def any_form(b: Builder, x: Tensor) -> Tensor:
    """A value in whatever form it is held."""
    return x if x.weight is None else read(b, x, x.shape)


def expanded(b: Builder, x: Tensor) -> Tensor:
    """A whole value with one copy for each example."""
    if x.batched:
        return x
    examples = b.root.add("Shape", b.batch, start=0, end=1)
    shape = b.root.add("Concat", examples, b.ints(*(1,) * len(x.shape)), axis=0)
    return x._replace(name=b.add("Expand", x.name, shape), batched=True)


def as_type(b: Builder, x: Tensor, dtype: str) -> Tensor:
    """A value in another type."""
    if x.dtype == dtype:
        return x
    x = any_form(b, x)
    return x._replace(name=b.cast(x.name, dtype), dtype=dtype)


def _same_order(x: Tensor) -> bool:
    """Whether the numbers lie in the order of the value: channels last, or as if."""
    return not x.first or x.shape[-1] == 1 or all(size == 1 for size in x.shape[:-1])


def channels_first(b: Builder, x: Tensor) -> Tensor:
    """A value with the channels first, as ONNX's windows want them."""
    return x if x.first else _moved(b, x, True)


def channels_last(b: Builder, x: Tensor) -> Tensor:
    """A value with the channels last, as the graph has them."""
    return _moved(b, x, False) if x.first else x


def _moved(b: Builder, x: Tensor, first: bool) -> Tensor:
    *spatial, c = x.shape
    n = len(spatial)
    if _same_order(x._replace(first=True)):
        shape = (c, *spatial) if first else (*spatial, c)
        return x._replace(name=reshape(b, x.name, *shape), first=first)
    order = [0, n + 1, *range(1, n + 1)] if first else [0, *range(2, n + 2), 1]
    return x._replace(name=b.add("Transpose", x.name, perm=order), first=first)


def reshape(b: Builder, name: str, *shape: int) -> str:
    """A new shape for every example; the batch takes what is left."""
    return b.add("Reshape", name, b.ints(-1, *shape))


def per_channel(b: Builder, x: Tensor, array: Any) -> str:
    """A stored vector that meets the channels of a tensor, or one number."""
    vector = np.asarray(array, np.float32)
    return floats(b, vector.reshape(-1, *(1,) * len(x.trailing)) if vector.ndim else vector)


def add_bias(b: Builder, x: Tensor, bias: Weight | None) -> Tensor:
    """``x + bias`` along the channels."""
    if bias is None:
        return x
    return x._replace(name=b.add("Add", x.name, per_channel(b, x, bias.values.ravel())))


def floats(b: Builder, array: np.ndarray) -> str:
    """Stored real numbers: float32, or 16-bit integers and a scale in a file of integers."""
    largest = float(np.abs(array).max(initial=0.0))
    if b.bits == 32 or array.size < 32 or not 0.0 < largest < np.inf:
        return b.constant(np.asarray(array, np.float32))
    scale = largest / (2 ** (VECTOR_BITS - 1) - 1)
    integers = b.constant(np.rint(array / scale).astype(np.int16))
    return b.root.add("Mul", b.root.cast(integers, "float32"), b.number(scale))


def array_of(b: Builder, weight: Weight, matrix: bool = True) -> str:
    """A stored array as it is laid out; a matrix in the file's bits.

    It is stored laid out, or, where a tensor is read in several layouts, as it is.
    """
    b, weight = b.root, Weight(weight.name, weight.stored, simplified(weight))
    b.uses.append(weight)
    if id(weight.stored) not in b.whole or not weight.layout:
        return _written(b, weight, matrix)
    name = _written(b, Weight(weight.name, weight.stored), matrix)
    for step, *rest in weight.layout:
        name = _LAYOUT[step](b, name, *rest)
    return name


def _reversed(b: Builder, name: str, axes: tuple[int, ...]) -> str:
    n, start, stop = len(axes), -1, np.iinfo(np.int64).min
    ends = b.ints(*(start,) * n), b.ints(*(stop,) * n)
    return b.add("Slice", name, *ends, b.ints(*axes), b.ints(*(-1,) * n))


_LAYOUT: dict[str, Any] = {
    "reshape": lambda b, name, shape: b.add("Reshape", name, b.ints(*shape)),
    "transpose": lambda b, name, axes: b.add("Transpose", name, perm=list(axes)),
    "slice": lambda b, name, axis, start, stop: b.add(
        "Slice", name, b.ints(start), b.ints(stop), b.ints(axis)
    ),
    "reverse": _reversed,
}


def _written(b: Builder, weight: Weight, matrix: bool) -> str:
    values = weight.values
    if values.dtype.kind in "biu":
        whole = values if values.dtype.kind == "b" else values.astype(np.int32)
        return b.constant(whole, weight.name)
    if b.bits == 32:
        return b.constant(values.astype(np.float32), weight.name)
    if not matrix and (weight.integers is None or weight.bits > b.bits):
        return floats(b, values)
    name, scale = integers_in(b, weight)
    varying = [k for k, n in enumerate(scale.shape) if n > 1]
    if len(varying) > 1:
        return b.add("Mul", b.cast(name, "float32"), b.constant(scale))
    flat = b.constant(scale.ravel() if varying else scale.reshape(()))
    return b.add("DequantizeLinear", name, flat, **({"axis": varying[0]} if varying else {}))


def integers_in(b: Builder, weight: Weight) -> tuple[str, np.ndarray]:
    """The integers of a stored array in the file's bits, and the scales that broadcast to them."""
    import ml_dtypes

    whole = in_integers(weight, b.bits)
    assert whole.integers is not None
    dtype = {4: ml_dtypes.int4, 8: np.int8, 16: np.int16}[b.bits]
    return b.constant(whole.integers.astype(dtype), weight.name), whole.factors


def indices(b: Builder, array: np.ndarray) -> str:
    """Stored indices, in as many bytes as they need."""
    largest = int(array.max(initial=0))
    dtype = np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.int32
    name = b.constant(array.astype(dtype))
    return name if dtype is np.int32 else b.cast(name, "int32")


def signs(b: Builder, array: np.ndarray, entry: float) -> str:
    """Stored numbers ``+-entry``, a bit each where there are many."""
    if array.size < PACKED_FROM:
        small = b.cast(b.constant(np.sign(array).astype(np.int8)), "float32")
        return b.add("Mul", small, b.number(entry))
    packed = np.packbits((array < 0).ravel(), bitorder="little")
    bits = b.constant(np.arange(8, dtype=np.uint8))
    shifted = b.add("BitShift", b.constant(packed[:, None]), bits, direction="RIGHT")
    zero_one = b.add("Mod", shifted, b.constant(np.array(2, np.uint8)))
    if array.size % 8:
        flat = b.add("Reshape", zero_one, b.ints(-1))
        zero_one = b.add("Slice", flat, b.ints(0), b.ints(array.size))
    real = b.cast(b.add("Reshape", zero_one, b.ints(*array.shape)), "float32")
    return b.add("Add", b.add("Mul", real, b.number(-2 * entry)), b.number(entry))
