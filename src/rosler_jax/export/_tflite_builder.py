"""TFLite operators on float, 16-bit or 8-bit tensors: what the operations of a graph are made of.

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
MARGIN = 1.1  # what calibration saw, and a little more, in 16 bits
SMALL = 32  # numbers that are not worth an operator to read them from integers


class Steps(NamedTuple):
    """What integers stand for: ``scale * (integer - zero)``."""

    scale: np.float32
    zero: int = 0


UNITS = {
    ("TANH", 16): Steps(np.float32(2.0**-15)),
    ("TANH", 8): Steps(np.float32(2.0**-7)),
    ("LOGISTIC", 16): Steps(np.float32(2.0**-15)),
    ("LOGISTIC", 8): Steps(np.float32(2.0**-8), -128),
    ("SOFTMAX", 16): Steps(np.float32(2.0**-15)),
    ("SOFTMAX", 8): Steps(np.float32(2.0**-8), -128),
    ("LOG_SOFTMAX", 8): Steps(np.float32(2.0**-4), 127),
}
"""What TFLite wants integers to stand for behind an operator, by the operator and the bits."""

ACTIVATIONS: dict[str, tuple[int, float, float]] = {
    "relu": (1, 0.0, np.inf),
    "relu_n1_to_1": (2, -1.0, 1.0),
    "relu6": (3, 0.0, 6.0),
}
"""What an operator may do last: its number in ``ActivationFunctionType``, and the limits."""


@dataclasses.dataclass
class Builder:
    """A model in the making.

    Attributes:
      bits: of the weights; 32 for floats.
      activations: bits of what is computed: 32 (floats), 16 or 8.
      model: tensors and operators.
      known: the same numbers as floats or in other steps, by tensor and steps.
      first: an input: what knows how many examples there are.
      spans: least and largest numbers of what the steps of a scan have in common, by operation and
        count; None outside of scans.
      at: the operation that is being added, and how many steps of integers it has asked for.
    """

    bits: int
    activations: int
    model: Model = dataclasses.field(default_factory=Model)
    known: dict[tuple[int, Steps | None], Value] = dataclasses.field(default_factory=dict)
    first: Value | None = None
    spans: dict[tuple[int, int], tuple[float, float]] | None = None
    at: tuple[int, int] = (0, 0)

    @property
    def integer(self) -> bool:
        """Whether real numbers are computed with in integers."""
        return self.activations != 32

    def trial(self) -> Builder:
        """A copy that finds spans."""
        m = self.model
        model = Model(list(m.tensors), list(m.operators), dict(m.known))
        return dataclasses.replace(self, model=model, known=dict(self.known), spans={})


Options = tuple[str, dict[str, Any]]
"""The name of a table of options in the schema, and its fields."""


class Value(NamedTuple):
    """A computed tensor.

    Attributes:
      tensor: its index in the model.
      shape: with a batch of 1.
      sample: what it holds for the calibration inputs; None where there are none.
      steps: of integers that stand for real numbers; None for what is stored as it is.
      dtype: of what it stands for: ``"float32"``, ``"int32"`` or ``"bool"``.
    """

    tensor: int
    shape: tuple[int, ...]
    sample: np.ndarray | None = None
    steps: Steps | None = None
    dtype: str = "float32"


Operand = Value | np.ndarray
"""What an elementwise operator takes: a computed tensor, or numbers."""


def steps_of(b: Builder, sample: np.ndarray) -> Steps:
    """The steps that numbers ask for; in a scan those of all its steps."""
    low, high = float(sample.min(initial=0.0)), float(sample.max(initial=0.0))
    if b.spans is not None:
        least, most = b.spans.get(b.at, (0.0, 0.0))
        b.spans[b.at] = low, high = min(low, least), max(high, most)
        b.at = b.at[0], b.at[1] + 1
    if b.activations == 16:
        return Steps(np.float32((max(-low, high) or 1.0) * MARGIN / HIGH))
    scale = np.float32((high - low or 1.0) / 255)
    return Steps(scale, int(np.clip(np.rint(-128 - low / float(scale)), -128, 127)))


def value(
    b: Builder,
    shape: Sequence[int],
    sample: np.ndarray | None,
    steps: Steps | None = None,
    real: bool = False,
    dtype: str = "float32",
) -> Value:
    """A new tensor: as it is, or in given steps or those that its sample asks for."""
    if not b.integer or real or dtype != "float32":
        index = b.model.tensor(Tensor(tuple(shape), dtype))
        return Value(index, tuple(shape), sample, None, dtype)
    if steps is None:
        assert sample is not None
        steps = steps_of(b, sample)
    stored = Tensor(tuple(shape), f"int{b.activations}", scale=steps.scale, zero=steps.zero)
    return Value(b.model.tensor(stored), tuple(shape), sample, steps)


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


def sampled(f: Callable[..., Any], *xs: Operand) -> np.ndarray | None:
    """``f`` of what tensors hold for the calibration inputs."""
    samples = [x.sample if isinstance(x, Value) else x for x in xs]
    if any(s is None for s in samples):
        return None
    y = np.asarray(f(*samples))
    return y.astype({"f": np.float32, "i": np.int32}.get(y.dtype.kind, np.bool_))


def quantized(b: Builder, x: Value, steps: Steps | None = None) -> Value:
    """The tensor in integers where the file has them: in any steps, or in these."""
    if not b.integer or x.dtype != "float32" or (x.steps and steps in (None, x.steps)):
        return x
    if steps is None:
        assert x.sample is not None
        steps = steps_of(b, x.sample)
    if (x.tensor, steps) not in b.known:
        out = apply(b, "QUANTIZE", [x.tensor], value(b, x.shape, None, steps))
        b.known[x.tensor, steps] = out
    return b.known[x.tensor, steps]._replace(sample=x.sample)


def real(b: Builder, x: Value) -> Value:
    """The tensor as floats, read once however often they are used."""
    if x.steps is None:
        return x
    if (x.tensor, None) not in b.known:
        out = apply(b, "DEQUANTIZE", [x.tensor], value(b, x.shape, None, real=True))
        b.known[x.tensor, None] = out
    return b.known[x.tensor, None]._replace(sample=x.sample)


def like(b: Builder, x: Value, shape: Sequence[int], sample: np.ndarray | None) -> Value:
    """A new tensor of the same type and steps."""
    return value(b, shape, sample, x.steps, real=x.steps is None, dtype=x.dtype)


def moved(
    b: Builder,
    kind: str,
    x: Value,
    shape: Sequence[int],
    f: Callable[[np.ndarray], np.ndarray],
    constants: Sequence[Any] = (),
    options: Options | None = None,
) -> Value:
    """An operator that moves numbers: the result has the steps of what goes in.

    Args:
      b: the model.
      kind: of the operator.
      x: what goes in.
      shape: of what comes out.
      f: the same in NumPy.
      constants: further inputs, indices and sizes.
      options: of the operator.
    """
    out = like(b, x, shape, sampled(f, x))
    return apply(b, kind, [x.tensor, *(ints(b, c) for c in constants)], out, options)


def ints(b: Builder, array: Any) -> int:
    """Stored 32-bit integers: shapes and indices."""
    data = np.asarray(array, np.int32)
    return b.model.tensor(Tensor(data.shape, "int32", data))


def reshape(b: Builder, x: Value, *shape: int) -> Value:
    """A new shape for every example; the first axis takes what is left."""
    return x if x.shape[1:] == shape else copied(b, x, *shape)


def copied(b: Builder, x: Value, *shape: int) -> Value:
    """The same numbers in another tensor."""
    whole = (math.prod(x.shape) // math.prod(shape), *shape)
    return moved(
        b, "RESHAPE", x, whole, lambda s: s.reshape(-1, *shape), [np.array([-1, *shape])],
        ("ReshapeOptions", {}),
    )  # fmt: skip


def gather(b: Builder, x: Value, index: np.ndarray, axis: int) -> Value:
    """Numbers picked along an axis. Not of 16-bit integers: TFLite Micro picks none."""
    shape = (*x.shape[:axis], index.size, *x.shape[axis + 1 :])
    picked = real(b, x) if b.activations == 16 else x
    options = ("GatherOptions", {"Axis": axis})
    y = moved(b, "GATHER", picked, shape, lambda s: s.take(index, axis), [index], options)
    return quantized(b, y, x.steps) if x.steps else y


def pad(b: Builder, x: Value, widths: Sequence[tuple[int, int]], fill: float = 0.0) -> Value:
    """Zeros, or another number, around all axes but the batch's."""
    if not any(map(any, widths)):
        return x
    everywhere = [(0, 0), *widths]
    shape = [n + low + high for n, (low, high) in zip(x.shape, everywhere, strict=True)]

    def padded(s: np.ndarray) -> np.ndarray:
        return np.pad(s, everywhere, constant_values=fill)

    if fill == 0:
        return moved(b, "PAD", x, shape, padded, [np.array(everywhere)], ("PadOptions", {}))
    if x.steps is not None:
        assert x.sample is not None
        fill = max(fill, float(x.sample.min()))  # -inf, below what a max looks at
        x = spanning(b, x, np.append(x.sample, np.float32(fill)))
    out = like(b, x, shape, sampled(padded, x))
    stored = numbers(b, np.asarray(fill, x.dtype), x.steps is not None, x.steps)
    return apply(b, "PADV2", [x.tensor, ints(b, everywhere), stored], out, ("PadV2Options", {}))


def spanning(b: Builder, x: Value, sample: np.ndarray) -> Value:
    """The tensor in steps that reach as far as a sample."""
    assert x.sample is not None
    within = x.sample.min() <= sample.min() and sample.max() <= x.sample.max()
    return x if within else quantized(b, x, steps_of(b, sample))


def cut(b: Builder, x: Value, begin: Sequence[int], size: Sequence[int]) -> Value:
    """A part of all axes but the batch's."""
    if tuple(size) == x.shape[1:]:
        return x
    part = (slice(None), *(slice(i, i + n) for i, n in zip(begin, size, strict=True)))
    constants = [np.array([0, *begin]), np.array([-1, *size])]
    options: Options = ("SliceOptions", {})
    return moved(b, "SLICE", x, (x.shape[0], *size), lambda s: s[part], constants, options)


def every(b: Builder, x: Value, start: int, step: int, count: int) -> Value:
    """Every so many-th position of the middle axis of ``x (rows, n, inner)``."""
    if step == 1:
        return cut(b, x, [start, 0], [count, x.shape[2]])
    stop = start + (count - 1) * step + 1
    constants = [[0, start, 0], [0, stop, 0], [1, step, 1]]
    options = ("StridedSliceOptions", {"BeginMask": 5, "EndMask": 5})
    shape = (x.shape[0], count, x.shape[2])
    return moved(b, "STRIDED_SLICE", x, shape, lambda s: s[:, start:stop:step], constants, options)


def concatenated(b: Builder, xs: Sequence[Value], axis: int) -> Value:
    """Tensors one behind the other, in the same steps; TFLite Micro takes ten at once."""
    if len(xs) == 1:
        return xs[0]
    if len(xs) > 10:
        groups = [concatenated(b, xs[i : i + 10], axis) for i in range(0, len(xs), 10)]
        return concatenated(b, groups, axis)
    xs = alike(b, xs)
    shape = list(xs[0].shape)
    shape[axis] = sum(x.shape[axis] for x in xs)
    out = like(b, xs[0], shape, sampled(lambda *s: np.concatenate(s, axis), *xs))
    options = ("ConcatenationOptions", {"Axis": axis})
    return apply(b, "CONCATENATION", [x.tensor for x in xs], out, options)


def alike(b: Builder, xs: Sequence[Value]) -> list[Value]:
    """Tensors in the same steps, those that reach as far as all do."""
    if not b.integer or xs[0].dtype != "float32":
        return list(xs)
    steps = xs[0].steps if len({x.steps for x in xs}) == 1 else None
    if steps is None:
        samples = [x.sample for x in xs if x.sample is not None]
        ends = [end for s in samples for end in (s.min(), s.max())]
        steps = steps_of(b, np.array(ends, np.float32))
    return [quantized(b, x, steps) for x in xs]


class Elementwise(NamedTuple):
    """An elementwise operator.

    Attributes:
      compute: the same in NumPy.
      options: table of options; None for none.
      fields: its fields.
      dtype: of the result; None for the last operand's.
      same: whether integers have the same steps in and out.
    """

    compute: Callable[..., Any]
    options: str | None = None
    fields: dict[str, Any] = {}  # noqa: RUF012
    dtype: str | None = None
    same: bool = False


def _compare(compute: Callable[..., Any], name: str) -> Elementwise:
    return Elementwise(compute, f"{name}Options", dtype="bool")


ELEMENTWISE: dict[str, Elementwise] = {
    "MUL": Elementwise(np.multiply, "MulOptions"),
    "ADD": Elementwise(np.add, "AddOptions", {"PotScaleInt16": False}),
    "SUB": Elementwise(np.subtract, "SubOptions", {"PotScaleInt16": False}),
    "DIV": Elementwise(lambda x, y: x / y, "DivOptions"),
    "FLOOR_MOD": Elementwise(np.mod, "FloorModOptions"),
    "POW": Elementwise(np.power, "PowOptions"),
    "ATAN2": Elementwise(np.arctan2, "ATan2Options"),
    "SQUARED_DIFFERENCE": Elementwise(lambda x, y: (x - y) ** 2, "SquaredDifferenceOptions"),
    "MAXIMUM": Elementwise(np.maximum, "MaximumMinimumOptions", same=True),
    "MINIMUM": Elementwise(np.minimum, "MaximumMinimumOptions", same=True),
    "SELECT_V2": Elementwise(np.where, "SelectV2Options", same=True),
    "RELU": Elementwise(lambda x: np.maximum(x, 0)),
    "RELU6": Elementwise(lambda x: np.clip(x, 0, 6)),
    "RELU_N1_TO_1": Elementwise(lambda x: np.clip(x, -1, 1)),
    "TANH": Elementwise(np.tanh),
    "LOGISTIC": Elementwise(lambda x: 1 / (1 + np.exp(-x))),
    "HARD_SWISH": Elementwise(lambda x: x * np.clip(x + 3, 0, 6) / 6, "HardSwishOptions"),
    "ELU": Elementwise(lambda x: np.where(x > 0, x, np.expm1(x))),
    "NEG": Elementwise(np.negative, "NegOptions"),
    "ABS": Elementwise(np.abs, "AbsOptions"),
    "FLOOR": Elementwise(np.floor),
    "CEIL": Elementwise(np.ceil),
    "ROUND": Elementwise(np.rint),
    "EXP": Elementwise(np.exp, "ExpOptions"),
    "LOG": Elementwise(np.log),
    "SQRT": Elementwise(np.sqrt),
    "RSQRT": Elementwise(lambda x: 1 / np.sqrt(x)),
    "SIN": Elementwise(np.sin),
    "COS": Elementwise(np.cos, "CosOptions"),
    "LOGICAL_AND": Elementwise(np.logical_and, "LogicalAndOptions"),
    "LOGICAL_OR": Elementwise(np.logical_or, "LogicalOrOptions"),
    "LOGICAL_NOT": Elementwise(np.logical_not, "LogicalNotOptions"),
    "EQUAL": _compare(np.equal, "Equal"),
    "NOT_EQUAL": _compare(np.not_equal, "NotEqual"),
    "LESS": _compare(np.less, "Less"),
    "LESS_EQUAL": _compare(np.less_equal, "LessEqual"),
    "GREATER": _compare(np.greater, "Greater"),
    "GREATER_EQUAL": _compare(np.greater_equal, "GreaterEqual"),
}
"""Elementwise operators by name."""


def elementwise(b: Builder, kind: str, *xs: Any, act: str | None = None) -> Value:
    """An elementwise operator of tensors and of numbers, and what it does last."""
    how = ELEMENTWISE[kind]
    operands: list[Operand] = [x if isinstance(x, Value) else np.asarray(x) for x in xs]
    sample = sampled(_ending(how.compute, act), *operands)
    shape = np.broadcast_shapes(*(x.shape for x in operands))
    of_result = [x for x in operands[kind == "SELECT_V2" :] if isinstance(x, Value)]
    dtype = how.dtype or (of_result[0].dtype if of_result else operands[-1].dtype.name)  # type: ignore[union-attr]
    integer = any(isinstance(x, Value) and x.steps for x in operands)
    whole = dtype == "float32" and not integer
    steps = UNITS.get((kind, b.activations))
    if kind.startswith("RELU") and isinstance(operands[0], Value):
        steps = operands[0].steps  # TFLite Micro clips, but makes no new steps
    out = value(b, shape, sample, steps, real=whole, dtype=dtype)
    if how.same and out.steps:
        operands = [quantized(b, x, out.steps) if isinstance(x, Value) else x for x in operands]
    steps = out.steps if how.same else None
    inputs = [x.tensor if isinstance(x, Value) else numbers(b, x, integer, steps) for x in operands]
    options = (how.options, how.fields | last(act)) if how.options else None
    return apply(b, kind, inputs, out, options)


def last(act: str | None) -> dict[str, int]:
    """The field of options that says what an operator does last."""
    return {"FusedActivationFunction": ACTIVATIONS[act][0]} if act else {}


def _ending(f: Callable[..., Any], act: str | None) -> Callable[..., Any]:
    """A function, and then an activation."""
    if act is None:
        return f
    _, low, high = ACTIVATIONS[act]
    return lambda *xs: np.clip(f(*xs), low, high)


def with_numbers(b: Builder, kind: str, x: Value, array: Any, act: str | None = None) -> Value:
    """``x`` with numbers, one or one per channel; nothing where that is ``x``."""
    array = np.asarray(array, np.float32)
    if act is None and (array == (1.0 if kind == "MUL" else 0.0)).all():
        return x
    return elementwise(b, kind, x, array, act=act)


def numbers(b: Builder, array: np.ndarray, integer: bool, steps: Steps | None = None) -> int:
    """Stored numbers: as they are, or real ones as integers in a file of integers."""
    array = np.asarray(array)
    if array.dtype.kind in "ib":
        dtype = "bool" if array.dtype == bool else "int32"
        return b.model.tensor(Tensor(array.shape, dtype, array))
    array = array.astype(np.float32)
    largest = float(np.abs(array).max(initial=0.0))
    if not integer and (b.bits == 32 or array.size < SMALL or not 0 < largest < np.inf):
        return b.model.tensor(Tensor(array.shape, "float32", array))
    width = b.activations if integer else 16
    levels = integer_levels(width)
    if steps is None:
        steps = Steps(np.float32((largest or 1.0) / levels))
    data = np.clip(np.rint(array / steps.scale) + steps.zero, -levels - 1, levels)
    return stored(b, data.astype(f"int{width}"), steps.scale, integer, steps.zero)


def stored(b: Builder, array: np.ndarray, scale: Any, integer: bool, zero: int = 0) -> int:
    """Stored integers with one scale, as they are or read as floats."""
    dtype = "int4" if b.bits == 4 and array.dtype == np.int8 else array.dtype.name
    index = b.model.tensor(
        Tensor(array.shape, dtype, array, np.full(1, scale, np.float32), zero=zero)
    )
    return index if integer else real(b, Value(index, array.shape, None, Steps(scale))).tensor


Operate = Callable[[Sequence[int], Value, str | None], Value]
"""Adds a product's operator: from its inputs, what comes out, and what it does last."""


class Product(NamedTuple):
    """A product with a stored weight.

    Attributes:
      compute: in NumPy, from what goes in and real weights whose first axis is the output's.
      operator: adds the operator.
      axis: of the output in the weight as the operator wants it.
    """

    compute: Callable[[np.ndarray, np.ndarray], Any]
    operator: Operate
    axis: int = 0


def product(
    b: Builder,
    x: Value,
    weight: Integers | np.ndarray,
    bias: np.ndarray | None,
    out_shape: Sequence[int],
    how: Product,
    act: str | None = None,
) -> Value:
    """A product with a stored weight; integers get their scales.

    Args:
      b: the model.
      x: what goes in.
      weight: floats, or integers with one scale or one per output.
      bias: one number per output.
      out_shape: of what comes out.
      how: the product.
      act: what it does last.
    """
    full = weight if isinstance(weight, np.ndarray) else real_weight(weight, how.axis)
    shift = np.float32(0) if bias is None else bias
    whole = _ending(lambda s: np.asarray(how.compute(s, full)) + shift, act)
    if x.steps is not None:
        assert isinstance(weight, Integers)
        out = value(b, out_shape, sampled(whole, x))
        return how.operator([x.tensor, *_integers(b, x, weight, bias, how.axis)], out, act)
    out = value(b, out_shape, sampled(whole, x), real=True)
    if isinstance(weight, np.ndarray):
        index = b.model.tensor(Tensor(weight.shape, "float32", weight))
    elif weight.scale.size == 1:
        index = stored(b, weight.values, weight.scale.reshape(()), False)
    else:
        # TFLite Micro reads stored integers with one scale alone: the others come after.
        index = stored(b, weight.values, 1.0, False)
        y = how.operator([x.tensor, index, NONE], out, None)
        y = with_numbers(b, "MUL", y, weight.scale)
        return with_numbers(b, "ADD", y, 0.0 if bias is None else bias, act)
    shifts = NONE if bias is None else numbers(b, bias, False)
    return how.operator([x.tensor, index, shifts], out, act)


def real_weight(weight: Integers, axis: int = 0) -> np.ndarray:
    """What integers stand for whose scales belong to an axis."""
    shape = [1] * weight.values.ndim
    shape[axis] = -1
    return (weight.values * weight.scale.reshape(shape)).astype(np.float32)


def _integers(
    b: Builder, x: Value, weight: Integers, bias: np.ndarray | None, axis: int
) -> tuple[int, int]:
    """A weight and a bias as a product of integers wants them."""
    assert x.steps is not None
    scale = np.atleast_1d(weight.scale).astype(np.float32)
    values = weight.values
    index = b.model.tensor(Tensor(values.shape, "int8", values, scale, axis % values.ndim))
    unit = scale * x.steps.scale
    zeros = np.zeros(values.shape[axis])
    real_bias = zeros if bias is None else np.asarray(bias, np.float64)
    # A sum that is never reached says nothing: it stays within what the sums can come to.
    most, dtype = (2.0**38, "int64") if b.activations == 16 else (2.0**30, "int32")
    data = np.rint(np.clip(real_bias / unit.astype(np.float64), -most, most)).astype(dtype)
    return index, b.model.tensor(Tensor(data.shape, dtype, data, unit))
