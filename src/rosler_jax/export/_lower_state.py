"""Lowering in the making: what is known of each value, and the forms that all kinds share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rosler_jax.export._errors import ExportError
from rosler_jax.export._ranges import HUGE, Ranges, Seen
from rosler_jax.export.intops import HIGH, LIMITS, LOW, IntOp, Requant, Shifted
from rosler_jax.graph import Graph
from rosler_jax.graph.kinds import Map, Op

MARGIN = 1.1  # what calibration saw, and a little more
MASKED = 24.0  # e to minus this is nothing beside 1: where a mask's infinity is put
_LIMIT = 2.0**62


class Number(NamedTuple):
    """What is known of the integers of a value.

    Attributes:
      scale: q stands for ``(q - zero) * scale``.
      bound: the largest magnitude of ``q - zero``, whatever the input.
      dtype: a key of ``LIMITS``.
      zero: the integer that stands for 0; 0 in all but int8.
      gained: whether the channels carry the scales of the next weight's inputs.
    """

    scale: float
    bound: int
    dtype: str = "int16"
    zero: int = 0
    gained: bool = False

    @property
    def form(self) -> tuple[float, str, int]:
        """What an integer stands for."""
        return self.scale, self.dtype, self.zero


def exact(dtype: str) -> Number:
    """Whole numbers, or truth values."""
    return Number(1.0, 1 if dtype == "bool" else 2**31, dtype)


@dataclasses.dataclass
class State:
    """A program in the making.

    Attributes:
      graph: what is lowered.
      ranges: what was seen of its values.
      bits: of the weights.
      activations: bits of the values between operations.
      numbers: what is known of each value.
      sizes: numbers in each value of the program.
      same: the program's value for those of the graph that are others at another scale.
      ops, constants: of the program.
      done: names of operations that others took in.
    """

    graph: Graph
    ranges: Ranges
    bits: int
    activations: int
    numbers: dict[int, Number] = dataclasses.field(default_factory=dict)
    sizes: dict[int, int] = dataclasses.field(default_factory=dict)
    same: dict[int, int] = dataclasses.field(default_factory=dict)
    ops: list[IntOp] = dataclasses.field(default_factory=list)
    constants: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    done: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        self.consumers = self.graph.consumers()
        self.results = {value.id for value in self.graph.outputs}
        self.dtypes = self.graph.dtypes()
        self._next = max(self.dtypes, default=0) + 1

    def fresh(self) -> int:
        """A value that the graph does not have."""
        self._next += 1
        return self._next - 1

    def rename(self, value: int, other: int, number: Number) -> None:
        """Lets a value of the graph be another one of the program, that stands for this."""
        self.same[value], self.numbers[value] = self.same.get(other, other), number

    def read(self, value: int) -> tuple[int, Number]:
        """The program's value for one of the graph's, and what is known of it."""
        if value not in self.numbers:
            self.store(value, self.graph.constants[value].values)
        return self.same.get(value, value), self.numbers[value]

    def store(self, value: int, array: np.ndarray, number: Number | None = None) -> int:
        """Adds a constant; real numbers at the number's scale, or at the finest of 16 bits."""
        if array.dtype.kind == "b":
            stored, number = array.astype(np.uint8), exact("bool")
        elif array.dtype.kind in "iu":
            stored, number = array.astype(np.int32), exact("int32")
        else:
            size = np.abs(array)
            most = float(size[size < HUGE].max(initial=0.0))
            number = number or Number(finest(most, 1.0), -LOW)
            low, high = LIMITS[number.dtype]
            real = np.clip(array.astype(np.float64) / number.scale, -1e9, 1e9)
            stored = np.clip(np.rint(real) + number.zero, low, high).astype(number.dtype)
        self.constants[value], self.numbers[value] = stored, number
        self.sizes[value] = stored.size
        return value

    def scalar(self, value: int) -> float | None:
        """The real number that a constant of the graph is, if it is one."""
        weight = self.graph.constants.get(value)
        if weight is None or weight.values.size != 1 or weight.values.dtype.kind != "f":
            return None
        return float(weight.values.ravel()[0])

    def only_reader(self, value: int) -> Op | None:
        """The operation that reads a value, if there is one and nobody else wants it."""
        readers = self.consumers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self.results else None

    def seen(self, value: int) -> Seen:
        """What was seen of a value; a mask's infinity just so far that softmax drops it."""
        found = self.ranges.values[value]
        if found.most < HUGE:
            return found
        low = min(found.low, found.high - MASKED) if found.low > -HUGE else -MASKED
        return found._replace(low=low, channels=np.maximum(found.channels, -low))

    def target(self, value: int, small: bool = True) -> Number:
        """The scale for a value that is made anew; results, and what is not small, have 16 bits."""
        seen = self.seen(value)
        if self.activations == 16 or not small or value in self.results:
            return Number(finest(seen.size), -LOW)
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        scale = (high - low) / 255.0 or 1.0
        zero = int(np.clip(np.rint(-128 - low / scale), -128, 127))
        return Number(scale, max(127 - zero, zero + 128), "int8", zero)

    def emit(
        self,
        kind: Any,
        op: Op | None,
        inputs: Sequence[int],
        number: Number,
        output: int,
        **fields: Any,
    ) -> tuple[int, Number]:
        """Adds an operation with the shapes of the graph's that it stands for, but for those given.

        Returns:
          Its output, and what is known of it.
        """
        shapes: dict[str, Any] = {}
        if op is not None:
            shapes = {"in_shapes": op.in_shapes[: len(inputs)], "out_shapes": op.out_shapes[:1]}
            shapes["name"] = op.name
        dtypes = tuple(self.numbers[k].dtype for k in inputs)
        given = shapes | fields
        made = kind(
            inputs=tuple(inputs), outputs=(output,), in_dtypes=dtypes, dtypes=(number.dtype,),
            **given,
        )  # fmt: skip
        self.ops.append(made)
        self.numbers[output], self.sizes[output] = number, math.prod(made.out_shape)
        return output, number


def rescaled(state: State, value: int, number: Number, name: str) -> tuple[int, Number]:
    """The same real numbers at another scale; of a constant a constant."""
    weight = state.graph.constants.get(value)
    if weight is not None and weight.values.dtype.kind == "f":
        k = state.store(state.fresh(), weight.values, number)
        return k, state.numbers[k]
    source, old = state.read(value)
    shape = ((state.sizes[source],),)
    left = max(0, 24 - (old.bound + abs(old.zero)).bit_length())
    form, reach = requant(
        old.scale / number.scale * 2.0**-left, old.bound << left, *LIMITS[number.dtype], number.zero
    )
    known = number._replace(bound=min(number.bound, reach))
    return state.emit(
        Shifted, None, [source], known, state.fresh(), left=left, requant=form,
        bias=np.asarray(-old.zero << left, np.int64), name=name, in_shapes=shape, out_shapes=shape,
    )  # fmt: skip


def as_int16(state: State, value: int, name: str, *kept: str) -> tuple[int, Number]:
    """A value as int16, at the same scale; itself if it is, or has one of the dtypes to keep."""
    source, number = state.read(value)
    if number.dtype in ("int16", *kept):
        return source, number
    if number.bound > HIGH:
        raise ExportError(f"{name} takes whole numbers of 32 bits as real ones; use float32")
    return rescaled(state, value, number._replace(dtype="int16", zero=0), name)


def finest(seen: float, margin: float = MARGIN) -> float:
    """The finest power of two of which 2^15 - 1 reach what was seen, with a margin."""
    if seen == 0.0:
        return 2.0**-15
    return 2.0 ** float(np.clip(math.ceil(math.log2(seen * margin / HIGH)), -60, 60))


def requant(
    factor: Any, bound: int, low: int = LOW, high: int = HIGH, zero: int = 0
) -> tuple[Requant, int]:
    """The fixed-point form of ``y = acc * factor + zero``, exact to as many bits as fit.

    Args:
      factor: real, one number or one per channel.
      bound: the accumulator's largest magnitude.
      low, high: limits of the output.
      zero: the integer that stands for 0.

    Returns:
      The requantisation, and the largest magnitude of the output less ``zero``.

    Raises:
      ExportError: if no shift serves.

    Example:
      >>> r, bound = requant(0.5, 1000)
      >>> (1000 * int(r.multiplier) + 2 ** (r.shift - 1)) >> r.shift, bound
      (500, 501)
    """
    factor = np.asarray(factor, np.float64)
    largest = float(np.abs(factor).max()) if factor.size else 0.0
    if not math.isfinite(largest):
        raise ExportError("a scale is not finite; calibrate with inputs as the network is used on")
    room = min(30, 61 - max(1, int(bound).bit_length()))
    if room < 8:
        raise ExportError(
            f"an accumulator can reach {bound:.3g}, too much for 64 bits; use fewer bits"
        )
    exponent = math.frexp(largest)[1] if largest > 0 else 0  # largest < 2^exponent
    # With a zero point the half that rounds and the zero point together fit 32 bits (shift 54).
    shift = min(54 if zero else 62, room - exponent)
    if shift < 1:
        raise ExportError(f"a scale of {largest:.3g} is too large; calibrate with more inputs")
    multiplier = np.rint(factor * 2.0**shift).astype(np.int64)
    if multiplier.size and (multiplier == multiplier.flat[0]).all():
        multiplier = multiplier.reshape(-1)[0]
    reach = (bound * int(np.abs(multiplier).max()) + 2 ** (shift - 1)) >> shift
    assert bound * int(np.abs(multiplier).max()) + 2 ** (shift - 1) < _LIMIT
    if reach >= 2**31 - 256:
        raise ExportError("an output is far beyond its scale; calibrate with more inputs")
    limit = max(high - zero, 0 if low == 0 == zero else zero - low)
    return Requant(np.asarray(multiplier), shift, low, high, zero), min(limit, reach + 1)


class End(NamedTuple):
    """What comes at the end of an accumulator: the value that it makes.

    Attributes:
      value: of the graph: the operation's, or that of the relu or clamp that is fused.
      low: real limit of what is fused.
    """

    value: int
    low: float = -math.inf


def end_of(op: Op, state: State, small: bool = True) -> End:
    """Takes in the relu, or the clamp, that is the only reader of an operation.

    A clamp only round 0, and only where its result has 8 bits: then the ends of what was seen of
    it, which are those of its integers, lie within its own.
    """
    after = state.only_reader(op.output)
    if not isinstance(after, Map) or op.dtypes[0] != "float32":
        return End(op.output)
    if after.function == "relu":
        state.done.add(after.name)
        return End(after.output, low=0.0)
    bytes_hold = small and state.activations == 8 and after.output not in state.results
    if after.function == "clamp" and bytes_hold and after.numbers[0] <= 0 <= after.numbers[1]:
        state.done.add(after.name)
        return End(after.output)
    return End(op.output)


def limits(number: Number, low: float, high: float = math.inf) -> tuple[int, int]:
    """The integers that a value lies between, given real limits."""
    least, most = LIMITS[number.dtype]
    ends = [np.rint(np.clip(v / number.scale, -1e9, 1e9)) + number.zero for v in (low, high)]
    return max(least, int(ends[0])), min(most, int(ends[1]))


def finish(
    unit: Any,
    bound: int,
    op: Op,
    state: State,
    gain: np.ndarray | None,
    end: End,
    small: bool = True,
) -> tuple[Requant, Number]:
    """From an accumulator with units per channel to the scale that calibration gives."""
    number = state.target(end.value, small)
    if gain is not None:
        number = Number(finest(float((state.seen(end.value).channels * gain).max())), -LOW)
    factor = unit / number.scale if gain is None else unit * gain / number.scale
    form, reach = requant(factor, bound, *limits(number, end.low), number.zero)
    return form, number._replace(bound=reach, gained=gain is not None)


def checked32(op: Op, bound: int, what: str = "sums of signs") -> int:
    """A bound, if 32 bits hold it.

    Raises:
      ExportError: if not.
    """
    if bound >= 2**31:
        raise ExportError(
            f"{op.name}: {what} can reach {bound}, more than 32 bits hold; the layer is too "
            "wide for integers, export float32"
        )
    return bound
