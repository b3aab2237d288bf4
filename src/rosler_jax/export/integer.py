r"""Integer inference, specified once: what the C code computes, bit for bit, as pure JAX.

Between operations every tensor holds 16-bit integers q that stand for ``q * scale``. A product
accumulates exactly, in 32 bits where that is proved from the weights and the range of its inputs to
be enough and in 64 bits elsewhere, and is brought back to 16 bits by :class:`Requant`::

    y = clip((acc * multiplier + 2 ^ (shift - 1)) >> shift, low, high)

in 64-bit integers with an arithmetic shift. No product of the specification can overflow, for any
input: :mod:`rosler_jax.export.lowering` proves it while it chooses the numbers. Since all sums are
exact, their order does not matter, and an implementation may use whatever instructions it likes.

An activation other than relu is a table of 513 numbers t, read with linear interpolation::

    u = x + 32768
    k = u >> 7
    f = u & 127
    y = t[k] + (((t[k + 1] - t[k]) * f + 64) >> 7)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import rosler_kernels as rk
from rosler_jax.export import reference
from rosler_jax.export.graph import Pad, Pool, Shape, Window
from rosler_jax.export.inputs import examples, quantized

if TYPE_CHECKING:
    from jaxtyping import Array, Int16, Int64, Integer

LOW, HIGH = -(2**15), 2**15 - 1
TABLE_BITS = 7  # of the 16 bits of an input, those that interpolate
TABLE_SIZE = 2 ** (16 - TABLE_BITS) + 1


@dataclasses.dataclass(frozen=True, eq=False)
class Requant:
    """From an accumulator to 16 bits.

    Attributes:
      multiplier: below 2^31 in magnitude; one number, or one per output channel.
      shift: 1 to 62.
      low, high: the output's limits; low is 0 where a relu is fused.
    """

    multiplier: Integer[np.ndarray, "..."]
    shift: int
    low: int = LOW
    high: int = HIGH


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class IntOp:
    """What all integer operations have; shapes are those of one example."""

    name: str
    in_shape: Shape
    out_shape: Shape


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Product(IntOp):
    """``requant(x W + b)``: what dense layers and convolutions share.

    Attributes:
      weight: integers ``(*window, m / groups, n)``, no window for a dense layer.
      bits: 16, 8 or 4: how the weights are stored.
      bias: integers ``(n,)`` in units of the accumulator.
      wide: whether the accumulator needs 64 bits.
      requant: to 16 bits.
      window: of a convolution; None for a dense layer.
    """

    weight: Integer[np.ndarray, "*window m n"]
    bits: int
    bias: Int64[np.ndarray, "n"]
    wide: bool
    requant: Requant
    window: Window | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Signs(IntOp):
    """``requant(x S)`` or ``requant(x S^T + b)``: S holds a sketch's entries over their magnitude.

    All entries of a sketch but Gaussian ones and weighted samples are 0 or +-1 times one number.
    """

    sketch: rk.Sketch
    transpose: bool
    bias: Int64[np.ndarray, "n"]
    requant: Requant

    @property
    def vectors(self) -> int:
        """How many vectors are projected."""
        inner = self.sketch.cols if self.transpose else self.sketch.rows
        return math.prod(self.in_shape) // inner


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PatchSigns(IntOp):
    """A convolution with the signs of a sketch as filters, the same in every group."""

    sketch: rk.Sketch
    requant: Requant
    window: Window


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Shifted(IntOp):
    """``requant(x * 2^left + b)``, one bias or one per channel: standardised inputs."""

    left: int
    bias: Int64[np.ndarray, "..."]
    requant: Requant


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Relu(IntOp):
    """``max(x, 0)``."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Lookup(IntOp):
    """An elementwise function by a table (see the module's text)."""

    table: Int16[np.ndarray, "513"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Pooled(IntOp):
    """Max over windows, or ``requant`` of their sum."""

    kind: str
    window: Shape
    requant: Requant


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Padded(IntOp):
    """Pads the spatial axes, ``"wrap"`` or ``"reflect"``."""

    mode: str
    widths: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Reshaped(IntOp):
    """A new shape for the same numbers."""


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Integer operations in order, and what their inputs and outputs stand for.

    Attributes:
      ops: at least one.
      input_dtype: ``"uint8"`` or ``"int16"``.
      input_scale: an input x is ``x / input_scale`` as an integer.
      output_scale: an output q stands for ``q * output_scale``.
    """

    ops: tuple[IntOp, ...]
    input_dtype: str
    input_scale: float
    output_scale: float

    @property
    def in_shape(self) -> Shape:
        """Shape of one input."""
        return self.ops[0].in_shape

    @property
    def out_shape(self) -> Shape:
        """Shape of one output."""
        return self.ops[-1].out_shape

    def quantize_input(self, x: Any) -> np.ndarray:
        """Real inputs as the integers that go in; see :func:`rosler_jax.export.inputs.quantized`.

        Args:
          x: examples, shape ``(batch, *in_shape)`` or of as many numbers.
        """
        given = examples(np.asarray(x), self.in_shape)
        return quantized(given, self.input_scale, self.input_dtype)


def sign_matrix(sketch: rk.Sketch) -> Integer[np.ndarray, "rows cols"]:
    """A sketch's entries over their common magnitude: -1, 0 and 1.

    Example:
      >>> sorted(set(sign_matrix(rk.sparse_sign(0, 40, 8)).ravel().tolist()))
      [-1, 0, 1]
    """
    with jax.ensure_compile_time_eval():
        return np.asarray(jnp.sign(rk.materialize(sketch)), np.int8)


def _requant(acc: Array, r: Requant) -> Array:
    half = jnp.int64(1) << (r.shift - 1)
    y = (acc * r.multiplier.astype(np.int64) + half) >> r.shift
    return jnp.clip(y, r.low, r.high)


def _product(op: Product, x: Array) -> Array:
    weight = op.weight.astype(np.int64)
    acc = x @ weight if op.window is None else reference.convolve(x, weight, op.window)
    return _requant(acc + op.bias, op.requant)


def _signs(op: Signs, x: Array) -> Array:
    s = sign_matrix(op.sketch).astype(np.int64)
    inner = op.sketch.cols if op.transpose else op.sketch.rows
    acc = x.reshape(x.shape[0], op.vectors, inner) @ (s.T if op.transpose else s)
    return _requant(acc.reshape(x.shape[0], *op.out_shape) + op.bias, op.requant)


def _patch_signs(op: PatchSigns, x: Array) -> Array:
    filters = reference.group_filters(op, sign_matrix(op.sketch).astype(np.int64))
    return _requant(reference.convolve(x, filters, op.window), op.requant)


def _lookup(op: Lookup, x: Array) -> Array:
    t = jnp.asarray(op.table, jnp.int64)
    u = x - LOW
    k, f = u >> TABLE_BITS, u & (2**TABLE_BITS - 1)
    step = (t[k + 1] - t[k]) * f
    return t[k] + ((step + 2 ** (TABLE_BITS - 1)) >> TABLE_BITS)


def _pooled(op: Pooled, x: Array) -> Array:
    kind = Pool(
        name=op.name, in_shape=op.in_shape, out_shape=op.out_shape, kind=op.kind, window=op.window
    )
    y = reference.pool(x, kind)
    return y if op.kind == "max" else _requant(y, op.requant)


def _padded(op: Padded, x: Array) -> Array:
    kind = Pad(
        name=op.name, in_shape=op.in_shape, out_shape=op.out_shape, mode=op.mode, widths=op.widths
    )
    return reference.pad(x, kind)


COMPUTE: dict[type[IntOp], Callable[[Any, Array], Array]] = {
    Product: _product,
    Signs: _signs,
    PatchSigns: _patch_signs,
    Shifted: lambda op, x: _requant((x << op.left) + op.bias, op.requant),
    Relu: lambda op, x: jnp.maximum(x, 0),
    Lookup: _lookup,
    Pooled: _pooled,
    Padded: _padded,
    Reshaped: lambda op, x: x.reshape(x.shape[0], *op.out_shape),
}
"""What each integer operation computes on a batch of 64-bit integers."""


def forward(program: Program, x: Integer[Array, "batch *features"]) -> Int64[Array, "batch *out"]:
    """The specification itself: pure, to be traced with 64-bit integers enabled.

    Args:
      program: the integer network.
      x: integers within ``program.input_dtype``, shape ``(batch, *in_shape)``.
    """
    y = jnp.asarray(x, jnp.int64)
    for op in program.ops:
        y = COMPUTE[type(op)](op, y)
    return y


def run_integer(program: Program, x: Any) -> Int16[np.ndarray, "batch *out"]:
    """Integer inference on a batch of integer inputs; what the C code gives, bit for bit.

    Args:
      program: the integer network.
      x: integers of ``program.input_dtype``, shape ``(batch, *in_shape)`` or of as many numbers
        (see :meth:`Program.quantize_input`).

    Returns:
      int16 outputs; times ``program.output_scale`` they are the network's.

    Raises:
      ValueError: x is of another dtype, or its examples of another size.
    """
    x = np.asarray(x)
    if x.dtype != program.input_dtype:
        raise ValueError(
            f"inputs of dtype {x.dtype}; expected {program.input_dtype}, as quantize_input gives"
        )
    with jax.enable_x64(True):
        return np.asarray(_compiled(program)(examples(x, program.in_shape))).astype(np.int16)


@functools.lru_cache(maxsize=16)
def _compiled(program: Program) -> Callable[[Any], Array]:
    """The jitted specification of a program, kept: tests and reports call it again and again."""
    return jax.jit(lambda x: forward(program, x))
