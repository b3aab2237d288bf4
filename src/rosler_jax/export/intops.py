"""The kinds of integer operations: plain data; :mod:`rosler_jax.export.integer` computes them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, dataclass_transform

import numpy as np

import rosler_kernels as rk
from rosler_jax.export.cosines import Stages
from rosler_jax.graph.kinds import Op, Run, Window

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Int64, Integer

    from rosler_jax.graph.weight import Shape

LOW, HIGH = -(2**15), 2**15 - 1
TABLE_BITS = 7  # of the 16 bits of an input, those that interpolate
TABLE_SIZE = 2 ** (16 - TABLE_BITS) + 1
LIMITS = {
    "int16": (LOW, HIGH), "int8": (-128, 127), "uint8": (0, 255), "bool": (0, 1),
    "int32": (-(2**31), 2**31 - 1),
}  # fmt: skip
"""Least and greatest number of the types that values have."""
NORM_FRACTION, UNIT_FRACTION = 6, 16  # bits after the point within a norm


_T = TypeVar("_T")


@dataclass_transform(kw_only_default=True, frozen_default=True, eq_default=False)
def _kind(cls: type[_T]) -> type[_T]:
    return dataclasses.dataclass(frozen=True, eq=False, kw_only=True)(cls)


@dataclasses.dataclass(frozen=True, eq=False)
class Requant:
    """From an accumulator to a value: ``clip(((acc m + 2^(shift - 1)) >> shift) + zero)``.

    Attributes:
      multiplier: below 2^31 in magnitude; one number, or one per output channel.
      shift: 1 to 62.
      low, high: the output's limits; low is 0 where a relu is fused.
      zero: the integer that stands for 0.

    Example:
      >>> form = Requant(np.array([3, 5]), shift=4, low=0)  # 3/16 and 5/16, with a relu
      >>> acc = np.array([[100, -100], [20, 20]])
      >>> scaled = (acc * form.multiplier + 2 ** (form.shift - 1)) >> form.shift
      >>> np.clip(scaled + form.zero, form.low, form.high).tolist()
      [[19, 0], [4, 6]]
    """

    multiplier: Integer[np.ndarray, "..."]
    shift: int
    low: int = LOW
    high: int = HIGH
    zero: int = 0


@_kind
class IntOp(Op):
    """What all integer operations have: an operation of a graph, on values of these types.

    Attributes:
      in_dtypes: of the inputs: a key of :data:`LIMITS`; ``dtypes`` are those of the outputs.

    Example:
      >>> import jax.numpy as jnp
      >>> from rosler_jax.export import lower
      >>> from rosler_jax.graph import trace
      >>> graph = trace(lambda x: jnp.argmax(x, -1), np.ones((1, 4)))
      >>> (op,) = lower(graph, np.eye(4)).ops
      >>> isinstance(op, IntOp), op.in_dtypes, op.dtypes
      (True, ('int16',), ('int32',))
    """

    in_dtypes: tuple[str, ...]


@_kind
class Product(IntOp):
    """``requant(x W + b)``: what dense layers and convolutions share.

    Attributes:
      weight: integers ``(*window, m / groups, n)``, no window for a dense layer.
      bits: 16, 8 or 4: how the weights are stored.
      bias: integers ``(n,)`` in units of the accumulator.
      wide: whether the accumulator needs 64 bits.
      requant: to the output.
      window: of a convolution; None for a dense layer.
      fill: what padding holds: the integer that stands for 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from rosler_jax.export import lower
      >>> from rosler_jax.graph import trace
      >>> graph = trace(lambda x: x @ jnp.array([[127.0, 64.0], [0.0, -127.0]]), np.ones((1, 2)))
      >>> (op,) = lower(graph, np.eye(2), dtype="int8").ops
      >>> op.weight.tolist(), op.bits, op.bias.tolist(), op.wide
      ([[127, 64], [0, -127]], 8, [0, 0], False)
    """

    weight: Integer[np.ndarray, "*window m n"]
    bits: int
    bias: Int64[np.ndarray, "n"]
    wide: bool
    requant: Requant
    window: Window | None = None
    fill: int = 0


@_kind
class Signs(IntOp):
    """``requant(x S)`` or ``requant(x S^T + b)``: S holds a sketch's entries over their magnitude.

    All entries of a sketch but Gaussian ones and weighted samples are 0 or +-1 times one number.

    Example:
      >>> from rosler_jax.export import lower
      >>> from rosler_jax.graph import trace
      >>> sketch = rk.rademacher(0, 8, 2)
      >>> graph = trace(lambda x: rk.project(x, sketch), np.ones((1, 8)))
      >>> (op,) = lower(graph, np.eye(8)).ops
      >>> type(op).__name__, op.sketch.kind, op.transpose, op.out_shape
      ('Signs', 'rademacher', False, (1, 2))
    """

    sketch: rk.Sketch
    transpose: bool
    bias: Int64[np.ndarray, "n"]
    requant: Requant

    @property
    def vectors(self) -> int:
        """How many vectors are projected."""
        return self.in_shape[0]


@_kind
class Cosines(Signs):
    """The same of cosines, see :mod:`rosler_jax.export.cosines`; their scale is in ``requant``."""

    stages: Stages


@_kind
class PatchSigns(IntOp):
    """A convolution with the signs of a sketch as filters, the same in every group."""

    sketch: rk.Sketch
    requant: Requant
    window: Window


@_kind
class Products(IntOp):
    """``requant((x - z) (y - w))``, matrices of a batch; sums of 64 bits.

    Attributes:
      transpose: whether y is ``(b, n, k)``, not ``(b, k, n)``.
      zeros: z and w, which stand for 0.
      requant: to the output.
    """

    transpose: bool
    zeros: tuple[int, int]
    requant: Requant


@_kind
class Shifted(IntOp):
    """``requant(x * 2^left + b)``, one bias or one per channel: standardised inputs, new scales.

    Example:
      >>> from rosler_jax.export import lower
      >>> from rosler_jax.graph import trace
      >>> graph = trace(lambda x: (x - 3.0) / 2.0, np.ones((1, 4)))
      >>> (op,) = lower(graph, np.arange(8.0).reshape(2, 4)).ops
      >>> op.in_dtypes, float(op.bias) / 2**op.left  # minus the mean, in steps of the inputs
      (('uint8',), -3.0)
    """

    left: int
    bias: Int64[np.ndarray, "..."]
    requant: Requant


@_kind
class Limited(IntOp):
    """``clip(x, low, high)``: a relu, or the ends of a clamp."""

    low: int
    high: int


@_kind
class Lookup(IntOp):
    """An elementwise function by a table of 513 numbers (see the module that computes), or of 256.

    Attributes:
      table: for inputs of 16 bits, or for each input of 8.
    """

    table: Integer[np.ndarray, "n"]


@_kind
class Combined(IntOp):
    """``clip((f(x a + p, y b + q) + 2^(shift - 1)) >> shift, low, high)`` in 32 bits, elementwise.

    ``f`` is add, max or min; or a comparison, which gives a truth value at once.
    """

    function: str
    multipliers: tuple[int, int]
    offsets: tuple[int, int]
    shift: int
    low: int
    high: int


@_kind
class Chosen(IntOp):
    """``clip(((c ? x a + p : y b + q) + 2^(shift - 1)) >> shift, low, high)`` in 32 bits."""

    multipliers: tuple[int, int]
    offsets: tuple[int, int]
    shift: int
    low: int
    high: int


@_kind
class Times(IntOp):
    """``requant((x - z) (y - w))``, elementwise."""

    zeros: tuple[int, int]
    requant: Requant


@_kind
class Whole(IntOp):
    """An elementwise function of whole numbers or truth values, exact, in 32 bits that wrap."""

    function: str
    numbers: tuple[float, ...]


@_kind
class Truncated(IntOp):
    """Real numbers as whole ones, towards 0: ``|x - zero| * multiplier >> shift`` with its sign."""

    zero: int
    multiplier: int
    shift: int


@_kind
class Reduced(IntOp):
    """``requant`` of the sum of ``x - zero``; max, min, argmax or argmin over axes."""

    function: str
    axes: tuple[int, ...]
    zero: int
    requant: Requant | None


@_kind
class Pooled(IntOp):
    """Max under a window that slides, or ``requant`` of the sum of ``x - zero`` there."""

    function: str
    window: Window
    zero: int
    requant: Requant | None


@_kind
class Taken(IntOp):
    """Picks positions along axes, as :class:`rosler_jax.graph.kinds.Take`."""

    index: tuple[tuple[Run, ...] | None, ...]
    fill: int


@_kind
class Transposed(IntOp):
    """Axes in another order."""

    axes: tuple[int, ...]


@_kind
class Joined(IntOp):
    """Values one behind the other along an axis, each at the output's scale.

    Attributes:
      axis: along which.
      zeros: which integer stands for 0 in each.
      requants: what each goes through; None for a copy.
    """

    axis: int
    zeros: tuple[int, ...]
    requants: tuple[Requant | None, ...]


@_kind
class Probabilities(IntOp):
    """Softmax of rows, in units of 2^-15 (see :mod:`rosler_jax.export.softmax`), at most 32767.

    Attributes:
      multiplier, shift: ``M / 2^S`` is 4096 times the scale of the input.
    """

    multiplier: int
    shift: int


@_kind
class Normed(IntOp):
    """Rows over the root of their mean square, about their mean (see the module that computes).

    Attributes:
      center: whether the mean is subtracted.
      zero: the integer that stands for 0 in the input.
      epsilon: added to the variance, in its units.
      multiplier, offset: ``(n,)``: ``y = clip((z m + p) >> shift, low, high)``.
      shift, low, high: see there.
    """

    center: bool
    zero: int
    epsilon: int
    multiplier: Int64[np.ndarray, "n"]
    offset: Int64[np.ndarray, "n"]
    shift: int
    low: int
    high: int


@_kind
class Gathered(IntOp):
    """Rows of a table by whole numbers, from its end by negative ones if ``wrap``, or ``zero``."""

    zero: int
    wrap: bool


@_kind
class Accumulated(IntOp):
    """Running max or min along the middle axis; or ``requant`` of the sum of ``x - zero``."""

    function: str
    reverse: bool
    zero: int
    requant: Requant | None


@_kind
class Sliced(IntOp):
    """``size`` positions of the middle axis from a start that is a value."""

    size: int


@_kind
class Looped(IntOp):
    """A body that runs once for each position, as :class:`rosler_jax.graph.kinds.Scan`."""

    body: Program
    shared: int
    carries: int
    length: int
    reverse: bool


class IntValue(NamedTuple):
    """An input or an output of a program.

    Attributes:
      id: of the value.
      name: where it is in the model's arguments or results.
      shape: of one example.
      dtype: a key of :data:`LIMITS`.
      scale: q stands for ``q * scale``; 1 for whole numbers and truth values.

    Example:
      >>> import jax.numpy as jnp
      >>> from rosler_jax.export import lower
      >>> from rosler_jax.graph import trace
      >>> program = lower(trace(jnp.tanh, np.ones((1, 4))), np.linspace(-1, 1, 8).reshape(2, 4))
      >>> program.outputs[0].dtype, program.outputs[0].shape, program.outputs[0].scale == 2.0**-15
      ('int16', (4,), True)
    """

    id: int
    name: str
    shape: Shape
    dtype: str
    scale: float


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Integer operations, each after those whose results it reads.

    Attributes:
      inputs: in the order of the graph's.
      ops: the operations.
      outputs: in the order of the graph's; a value may be an input or a constant.
      constants: stored integers that operations read as values, by value.
      structure: of what the model returns, as in the graph.

    Example:
      >>> import jax.numpy as jnp
      >>> from rosler_jax.export import lower
      >>> from rosler_jax.graph import trace
      >>> program = lower(trace(jnp.tanh, np.ones((1, 4))), np.linspace(-1, 1, 8).reshape(2, 4))
      >>> program.in_shape, program.input_dtype, program.input_scale == 2.0**-14
      ((4,), 'int16', True)
      >>> program.quantize_input([[0.0, 0.5, 1.0, -9.0]])
      array([[     0,   8192,  16384, -32768]], dtype=int16)
    """

    inputs: tuple[IntValue, ...]
    ops: tuple[IntOp, ...]
    outputs: tuple[IntValue, ...]
    constants: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    structure: Any = None

    @property
    def in_shape(self) -> Shape:
        """Shape of the first input."""
        return self.inputs[0].shape

    @property
    def out_shape(self) -> Shape:
        """Shape of the first output."""
        return self.outputs[0].shape

    @property
    def input_dtype(self) -> str:
        """Of the first input."""
        return self.inputs[0].dtype

    @property
    def input_scale(self) -> float:
        """Of the first input."""
        return self.inputs[0].scale

    @property
    def output_scale(self) -> float:
        """Of the first output."""
        return self.outputs[0].scale

    def dtypes(self) -> dict[int, str]:
        """The dtype of each value."""
        found = {value.id: value.dtype for value in self.inputs}
        found |= {k: array.dtype.name for k, array in self.constants.items()}
        return found | {k: d for op in self.ops for k, d in zip(op.outputs, op.dtypes, strict=True)}

    def quantize_input(self, x: Any, which: int = 0) -> np.ndarray:
        """Real inputs as the integers that go in; see :func:`rosler_jax.export.inputs.quantized`.

        Args:
          x: examples, shape ``(batch, *in_shape)`` or of as many numbers.
          which: of the inputs.
        """
        from rosler_jax.export.inputs import examples, quantized

        value = self.inputs[which]
        given = examples(np.asarray(x), value.shape)
        return quantized(given, value.scale, value.dtype)
