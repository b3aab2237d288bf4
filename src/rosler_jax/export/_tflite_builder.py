"""TFLite operators on float or 16-bit tensors: what the operations of a graph are made of.

Every tensor carries, in a file of integers, what it holds for the calibration inputs: that gives
its scale. Shapes have a batch of 1 in front; the batch may be part of the first axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rosler_jax._quantized import integer_levels
from rosler_jax.export._stored import Integers
from rosler_jax.export._tflite_file import NONE, Model, Operator, Tensor

HIGH = integer_levels(16)
MARGIN = 1.1  # what calibration saw, and a little more
UNIT = np.float32(2.0**-15)  # the scale that TFLite wants of what lies within +-1
RELU = 1  # in ActivationFunctionType
SMALL = 32  # numbers that are not worth an operator to read them from integers


@dataclasses.dataclass
class Builder:
    """A model in the making.

    Attributes:
      bits: of the weights; 32 for floats.
      integer: whether activations are 16-bit integers.
      model: tensors and operators.
    """

    bits: int
    integer: bool
    model: Model = dataclasses.field(default_factory=Model)


Options = tuple[str, dict[str, Any]]
"""The name of a table of options in the schema, and its fields."""


class Value(NamedTuple):
    """A computed tensor.

    Attributes:
      tensor: its index in the model.
      shape: with a batch of 1.
      sample: what it holds for the calibration inputs; None where there are none.
      scale: of 16-bit integers; None for floats.
    """

    tensor: int
    shape: tuple[int, ...]
    sample: np.ndarray | None = None
    scale: np.ndarray | None = None


def value(
    b: Builder,
    shape: Sequence[int],
    sample: np.ndarray | None,
    scale: Any = None,
    real: bool = False,
) -> Value:
    """A new tensor: of floats, or with the scale that its sample asks for."""
    if b.integer and not real and scale is None:
        assert sample is not None
        seen = float(np.abs(sample).max(initial=0.0))
        scale = np.float32((seen or 1.0) * MARGIN / HIGH)
    if not b.integer or real:
        scale = None
    dtype = "float32" if scale is None else "int16"
    index = b.model.tensor(Tensor(tuple(shape), dtype, scale=scale))
    return Value(index, tuple(shape), sample, scale)


def apply(
    b: Builder,
    kind: str,
    inputs: Sequence[int],
    out: Value,
    options: Options | None = None,
) -> Value:
    """Adds an operator."""
    b.model.operators.append(Operator(kind, tuple(inputs), (out.tensor,), options))
    return out


def sampled(f: Callable[..., np.ndarray], *xs: Value) -> np.ndarray | None:
    """``f`` of what tensors hold for the calibration inputs."""
    samples = [x.sample for x in xs]
    return None if any(s is None for s in samples) else np.asarray(f(*samples), np.float32)


def quantized(b: Builder, x: Value) -> Value:
    """The tensor as integers where the file has them."""
    if not b.integer or x.scale is not None:
        return x
    return apply(b, "QUANTIZE", [x.tensor], value(b, x.shape, x.sample))


def real(b: Builder, x: Value) -> Value:
    """The tensor as floats."""
    if x.scale is None:
        return x
    return apply(b, "DEQUANTIZE", [x.tensor], value(b, x.shape, x.sample, real=True))


def moved(
    b: Builder,
    kind: str,
    x: Value,
    shape: Sequence[int],
    f: Callable[[np.ndarray], np.ndarray],
    constants: Sequence[np.ndarray] = (),
    options: Options | None = None,
) -> Value:
    """An operator that moves numbers: the result has the scale of what goes in.

    Args:
      b: the model.
      kind: of the operator.
      x: what goes in.
      shape: of what comes out.
      f: the same in NumPy.
      constants: further inputs, indices and sizes.
      options: of the operator.
    """
    out = value(b, shape, sampled(f, x), x.scale, real=x.scale is None)
    return apply(b, kind, [x.tensor, *(ints(b, c) for c in constants)], out, options)


def ints(b: Builder, array: Any) -> int:
    """Stored 32-bit integers: shapes and indices."""
    data = np.asarray(array, np.int32)
    return b.model.tensor(Tensor(data.shape, "int32", data))


def reshape(b: Builder, x: Value, *shape: int) -> Value:
    """A new shape for every example; the first axis takes what is left."""
    if x.shape[1:] == shape:
        return x
    whole = (math.prod(x.shape) // math.prod(shape), *shape)
    options: Options = ("ReshapeOptions", {})
    return moved(
        b, "RESHAPE", x, whole, lambda s: s.reshape(-1, *shape), [np.array([-1, *shape])], options
    )


def gather(b: Builder, x: Value, index: np.ndarray, axis: int) -> Value:
    """Numbers picked along an axis. Of floats: TFLite Micro picks no 16-bit integers."""
    shape = (*x.shape[:axis], index.size, *x.shape[axis + 1 :])
    options = ("GatherOptions", {"Axis": axis})
    y = moved(b, "GATHER", real(b, x), shape, lambda s: s.take(index, axis), [index], options)
    return y if x.scale is None else _as(b, y, x.scale)


def _as(b: Builder, x: Value, scale: np.ndarray) -> Value:
    return apply(b, "QUANTIZE", [x.tensor], value(b, x.shape, x.sample, scale))


def pad(b: Builder, x: Value, widths: Sequence[tuple[int, int]]) -> Value:
    """Zeros around all axes but the batch's."""
    if not any(map(any, widths)):
        return x
    everywhere = [(0, 0), *widths]
    shape = [n + low + high for n, (low, high) in zip(x.shape, everywhere, strict=True)]
    options: Options = ("PadOptions", {})
    return moved(
        b, "PAD", x, shape, lambda s: np.pad(s, everywhere), [np.array(everywhere)], options
    )


def cut(b: Builder, x: Value, begin: Sequence[int], size: Sequence[int]) -> Value:
    """A part of all axes but the batch's."""
    if tuple(size) == x.shape[1:]:
        return x
    part = (slice(None), *(slice(i, i + n) for i, n in zip(begin, size, strict=True)))
    constants = [np.array([0, *begin]), np.array([-1, *size])]
    options: Options = ("SliceOptions", {})
    return moved(b, "SLICE", x, (x.shape[0], *size), lambda s: s[part], constants, options)


ELEMENTWISE: dict[str, tuple[str, dict[str, Any], Callable[[Any, Any], Any]]] = {
    "MUL": ("MulOptions", {}, np.multiply),
    "ADD": ("AddOptions", {"PotScaleInt16": False}, np.add),
    "SUB": ("SubOptions", {"PotScaleInt16": False}, np.subtract),
}


def elementwise(b: Builder, kind: str, x: Value, y: Value) -> Value:
    """``x * y``, ``x + y`` or ``x - y``."""
    table, fields, f = ELEMENTWISE[kind]
    out = value(b, x.shape, sampled(f, x, y), real=x.scale is None)
    return apply(b, kind, [x.tensor, y.tensor], out, (table, dict(fields)))


def with_stored(
    b: Builder, kind: str, x: Value, index: int, array: Any, relu: bool = False
) -> Value:
    """``x`` with a stored tensor that stands for an array, and a relu of it."""
    table, fields, f = ELEMENTWISE[kind]

    def compute(s: np.ndarray) -> np.ndarray:
        return np.asarray(np.maximum(f(s, array), 0) if relu else f(s, array))

    out = value(b, x.shape, sampled(compute, x), real=x.scale is None)
    options = {**fields, "FusedActivationFunction": RELU} if relu else dict(fields)
    return apply(b, kind, [x.tensor, index], out, (table, options))


def with_numbers(b: Builder, kind: str, x: Value, array: Any, relu: bool = False) -> Value:
    """``x`` with numbers, one or one per channel, and a relu of it; nothing where that is ``x``."""
    array = np.asarray(array, np.float32)
    if not relu and (array == (1.0 if kind == "MUL" else 0.0)).all():
        return x
    return with_stored(b, kind, x, numbers(b, array, x.scale is not None), array, relu)


def numbers(b: Builder, array: np.ndarray, integer: bool) -> int:
    """Stored real numbers: float32, or 16-bit integers and a scale in a file of integers."""
    array = np.asarray(array, np.float32)
    largest = float(np.abs(array).max(initial=0.0))
    if not integer and (b.bits == 32 or array.size < SMALL or largest == 0.0):
        return b.model.tensor(Tensor(array.shape, "float32", array))
    scale = np.float32((largest or 1.0) / HIGH)
    return stored(b, np.rint(array / scale).astype(np.int16), scale, integer)


def stored(b: Builder, array: np.ndarray, scale: Any, integer: bool) -> int:
    """Stored integers with one scale, as they are or read as floats."""
    dtype = "int4" if b.bits == 4 and array.dtype == np.int8 else array.dtype.name
    index = b.model.tensor(Tensor(array.shape, dtype, array, np.full(1, scale, np.float32)))
    return index if integer else dequantized(b, index)


def dequantized(b: Builder, index: int) -> int:
    """Stored integers as floats, read once however often they are used."""
    shape = b.model.tensors[index].shape
    for operator in b.model.operators:
        if operator.kind == "DEQUANTIZE" and operator.inputs == (index,):
            return operator.outputs[0]
    out = b.model.tensor(Tensor(shape, "float32"))
    b.model.operators.append(Operator("DEQUANTIZE", (index,), (out,)))
    return out


Operate = Callable[[Sequence[int], Value, bool], Value]
"""Adds a product's operator: from its inputs, what comes out, and whether it applies a relu."""


def product(
    b: Builder,
    x: Value,
    weight: Integers | np.ndarray,
    bias: np.ndarray | None,
    out_shape: Sequence[int],
    compute: Callable[[np.ndarray, np.ndarray], Any],
    operator: Operate,
    relu: bool = False,
) -> Value:
    """A product with a stored weight whose first axis is the output's; integers get their scales.

    Args:
      b: the model.
      x: what goes in.
      weight: floats, or integers with one scale or one per output (axis 0).
      bias: one number per output.
      out_shape: of what comes out.
      compute: the product in NumPy, from ``x`` and real weights.
      operator: adds the operator.
      relu: whether a relu follows.
    """
    full = weight if isinstance(weight, np.ndarray) else real_weight(weight)
    shift = np.float32(0) if bias is None else bias

    def whole(s: np.ndarray) -> np.ndarray:
        y = np.asarray(compute(s, full)) + shift
        return np.maximum(y, 0) if relu else y

    if x.scale is not None:
        assert isinstance(weight, Integers)
        return _integer_product(b, x, weight, bias, out_shape, whole, relu, operator)
    out = value(b, out_shape, sampled(whole, x), real=True)
    if isinstance(weight, np.ndarray):
        index = b.model.tensor(Tensor(weight.shape, "float32", weight))
    elif weight.scale.size == 1:
        index = stored(b, weight.values, weight.scale.reshape(()), False)
    else:
        # TFLite Micro reads stored integers with one scale alone: the others come after.
        index = stored(b, weight.values, 1.0, False)
        y = with_numbers(b, "MUL", operator([x.tensor, index, NONE], out, False), weight.scale)
        return with_numbers(b, "ADD", y, 0.0 if bias is None else bias, relu)
    return operator([x.tensor, index, NONE if bias is None else numbers(b, bias, False)], out, relu)


def real_weight(weight: Integers) -> np.ndarray:
    """What integers stand for whose scales belong to axis 0."""
    scale = weight.scale.reshape(-1, *(1,) * (weight.values.ndim - 1))
    return (weight.values * scale).astype(np.float32)


def _integer_product(
    b: Builder,
    x: Value,
    weight: Integers,
    bias: np.ndarray | None,
    out_shape: Sequence[int],
    whole: Callable[[np.ndarray], np.ndarray],
    relu: bool,
    operator: Operate,
) -> Value:
    assert x.scale is not None
    scale = np.atleast_1d(weight.scale).astype(np.float32)
    index = b.model.tensor(Tensor(weight.values.shape, "int8", weight.values, scale))
    unit = scale * x.scale
    zeros = np.zeros(weight.values.shape[0])
    real_bias = zeros if bias is None else np.asarray(bias, np.float64)
    # A sum that is never reached says nothing: it stays within what 16 bits can come to.
    data = np.rint(np.clip(real_bias / unit.astype(np.float64), -(2.0**38), 2.0**38))
    shifts = b.model.tensor(Tensor(data.shape, "int64", data.astype(np.int64), unit))
    return operator([x.tensor, index, shifts], value(b, out_shape, sampled(whole, x)), relu)
