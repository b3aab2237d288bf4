"""What ONNX and TFLite files hold of weights and sketches, as NumPy arrays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rosler_kernels as rk
from rosler_jax._files import replace_file
from rosler_jax.export.graph import Pad, Weight
from rosler_jax.quantization import channel_axis, quantize
from rosler_kernels.sketches.rows import samples as row_samples
from rosler_kernels.sketches.srht import columns, order_bits, signs

if TYPE_CHECKING:
    from jaxtyping import Float32, Integer


class Integers(NamedTuple):
    """A weight as integers; the numbers are ``values * scale``.

    Attributes:
      values: int8 or int16, the weight's shape.
      scale: float32, one per index of ``axis``, or one number.
      axis: -1, -2 or None.
    """

    values: Integer[np.ndarray, "*window m n"]
    scale: Float32[np.ndarray, "..."]
    axis: int | None


def integers_of(weight: Weight, bits: int, axis: int | None = None) -> Integers:
    """A weight in integers of at most so many bits: those of the model file where they fit.

    Args:
      weight: the matrix or kernel.
      bits: of the integers.
      axis: where a weight is quantised anew, the axis that carries the scales; by default the
        rank's (see :func:`rosler_jax.quantization.channel_axis`).

    Example:
      >>> floats = np.array([[1.0, 0.5]], np.float32)
      >>> w = Weight("0/kernel", floats, None, np.ones((), np.float32), None, 32)
      >>> integers_of(w, 8).values.tolist()
      [[126, 126]]
    """
    shape = weight.values.shape
    fits = weight.integers is not None and weight.bits <= bits
    if weight.integers is not None and fits and axis in (None, weight.axis):
        # Groups of a convolution share the scales of their inputs: the first group's serve.
        scale = weight.scale[: shape[-2]] if weight.axis == -2 else weight.scale
        return Integers(weight.integers, np.asarray(scale, np.float32), weight.axis)
    if axis is None:
        ranked = channel_axis(weight.name, shape)
        axis = -1 if ranked is None else ranked - len(shape)
    with jax.ensure_compile_time_eval():
        new = quantize(jnp.asarray(weight.values), bits, axis)
    return Integers(np.asarray(new.values), np.asarray(new.scale, np.float32), axis)


def entries(sketch: rk.Sketch) -> Float32[np.ndarray, "rows cols"]:
    """The whole sketch.

    Example:
      >>> entries(rk.srht(0, 4, 2)).shape
      (4, 2)
    """
    with jax.ensure_compile_time_eval():
        return np.asarray(rk.materialize(sketch), np.float32)


class Hadamard(NamedTuple):
    """An SRHT as what it is made of: ``Omega = entry diag(signs) H[:rows, columns]``.

    Attributes:
      signs: int8, one per row.
      columns: int64, which of the ``2**bits`` columns are kept.
      bits: log2 of the order of ``H``.
      entry: magnitude of the entries.
    """

    signs: Integer[np.ndarray, "rows"]
    columns: Integer[np.ndarray, "cols"]
    bits: int
    entry: float


def hadamard_of(sketch: rk.Sketch) -> Hadamard:
    """The parts of an SRHT.

    Example:
      >>> parts = hadamard_of(rk.srht(0, 5, 3))
      >>> walsh = np.kron(np.kron(walsh_matrix(1), walsh_matrix(1)), walsh_matrix(1))
      >>> omega = parts.entry * parts.signs[:, None] * walsh[:5, parts.columns]
      >>> bool(np.allclose(omega, entries(rk.srht(0, 5, 3))))
      True
    """
    with jax.ensure_compile_time_eval():
        kept = columns(sketch, jnp.arange(sketch.cols, dtype=jnp.uint32))
        return Hadamard(
            np.asarray(signs(sketch, 0, sketch.rows), np.int8),
            np.asarray(kept, np.int64),
            order_bits(sketch.rows),
            float(np.float32(1.0 / np.sqrt(sketch.cols))),
        )


def walsh_matrix(bits: int) -> Integer[np.ndarray, "order order"]:
    """The Walsh-Hadamard matrix of order ``2**bits``, int8.

    Example:
      >>> walsh_matrix(1).tolist()
      [[1, 1], [1, -1]]
    """
    out = np.ones((1, 1), np.int8)
    for _ in range(bits):
        out = np.kron(out, np.array([[1, 1], [1, -1]], np.int8))
    return out


def walsh_steps(bits: int, at_most: int = 4) -> list[int]:
    """Bits of the small matrices whose Kronecker product is the matrix of order ``2**bits``.

    Example:
      >>> walsh_steps(10)
      [4, 4, 2]
    """
    whole, rest = divmod(bits, at_most)
    return [at_most] * whole + ([rest] if rest else [])


def rows_of(
    sketch: rk.Sketch,
) -> tuple[Integer[np.ndarray, "cols"], Float32[np.ndarray, "cols"]]:
    """Row index and scale of every column of a row-sampling sketch.

    Example:
      >>> rows_of(rk.rows_uniform(0, 16, 4))[1].tolist()
      [2.0, 2.0, 2.0, 2.0]
    """
    with jax.ensure_compile_time_eval():
        index, scale = row_samples(sketch)
        return np.asarray(index, np.int64), np.asarray(scale, np.float32)


def pad_indices(op: Pad) -> list[tuple[int, Integer[np.ndarray, "n"]]]:
    """Padding that copies, as which index of an axis comes where: ``(spatial axis, indices)``.

    Example:
      >>> op = Pad(name="0/pad", in_shape=(3, 1), out_shape=(5, 1), mode="wrap", widths=((1, 1),))
      >>> [(axis, index.tolist()) for axis, index in pad_indices(op)]
      [(0, [2, 0, 1, 2, 0])]
    """
    return [
        (axis, np.pad(np.arange(op.in_shape[axis]), widths, mode=op.mode))  # type: ignore[call-overload]
        for axis, widths in enumerate(op.widths)
        if widths != (0, 0)
    ]


def replace_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a binary file, all of it or nothing."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    replace_file(path, write)
