"""What ONNX and TFLite files hold of weights and sketches, as NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rosler_kernels as rk
from rosler_jax.graph import Weight
from rosler_jax.graph.weight import simplified
from rosler_jax.quantization import channel_axis, quantize
from rosler_kernels.sketches._separable import image_of
from rosler_kernels.sketches.rows import samples as row_samples
from rosler_kernels.sketches.srht import columns, order_bits, signs

if TYPE_CHECKING:
    from jaxtyping import Float32, Integer


class Integers(NamedTuple):
    """A weight as integers; the numbers are ``values * scale``.

    Attributes:
      values: int8 or int16, the weight's shape.
      scale: float32, one per index of ``axis``, or one number.
      axis: counted from the end, or None.
    """

    values: Integer[np.ndarray, "*window m n"]
    scale: Float32[np.ndarray, "..."]
    axis: int | None


def integers_of(weight: Weight, bits: int, axis: int | None = None) -> Integers:
    """What :func:`in_integers` gives, where the scales lie along one axis.

    Example:
      >>> floats = np.array([[1.0, 0.5]], np.float32)
      >>> integers_of(Weight("0/kernel", floats), 8).values.tolist()
      [[126, 126]]
    """
    new = in_integers(weight, bits, axis)
    assert new.integers is not None
    return Integers(new.integers, new.scale, new.axis)


def in_integers(weight: Weight, bits: int, axis: int | None = None) -> Weight:
    """A weight in integers of at most so many bits: those of the model file where they fit.

    Args:
      weight: the matrix or kernel.
      bits: of the integers.
      axis: where a weight is quantised anew, the axis that carries the scales; by default the
        rank's (see :func:`rosler_jax.quantization.channel_axis`). Integers of the file with scales
        along another axis are not kept.
    """
    shape = weight.shape
    kept = weight.integers is not None and weight.bits <= bits
    if kept and (axis is None or axis == weight.axis):
        return weight
    if axis is None:
        axis = channel_axis(weight.name, shape)
    with jax.core.eval_context():
        new = quantize(jnp.asarray(weight.values), bits, axis)
    return Weight(weight.name, jax.tree.map(np.asarray, new))


def read_whole(weights: Iterable[Weight]) -> frozenset[int]:
    """Which stored tensors (by id) are smaller than all the arrays together that they are read as.

    Such a tensor, as an embedding that is also a head, is best stored once, and laid out where it
    is read; another, as a stack of which every layer reads its part, best as it is read.
    """
    sizes: dict[int, dict[Any, int]] = {}
    whole: dict[int, int] = {}
    for weight in weights:
        key, layout = id(weight.stored), simplified(weight)
        sizes.setdefault(key, {})[layout] = math.prod(weight.shape)
        whole[key] = math.prod(weight.stored.shape)
    return frozenset(key for key, found in sizes.items() if sum(found.values()) > whole[key])


def entries(sketch: rk.Sketch) -> Float32[np.ndarray, "rows cols"]:
    """The whole sketch.

    Example:
      >>> entries(rk.srht(0, 4, 2)).shape
      (4, 2)
    """
    with jax.core.eval_context():
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
    with jax.core.eval_context():
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
    with jax.core.eval_context():
        index, scale = row_samples(sketch)
        return np.asarray(index, np.int64), np.asarray(scale, np.float32)


class Axes(NamedTuple):
    """A sketch of images as a product along each axis of ``(height, width channels)``.

    Attributes:
      left: ``(height, a)``.
      right: ``(width channels, b)``.
      places: which of the ``a b`` products are columns, in their order.
    """

    left: Float32[np.ndarray, "height a"]
    right: Float32[np.ndarray, "wide b"]
    places: Integer[np.ndarray, "cols"]

    @property
    def inverse(self) -> Integer[np.ndarray, "ab"]:
        """The column that each product is; one more than there are for the others."""
        inverse = np.full(self.left.shape[1] * self.right.shape[1], self.places.size)
        inverse[self.places] = np.arange(self.places.size)
        return inverse


def axes_of(sketch: rk.Sketch) -> Axes | None:
    """The axes of a sketch of images; None for any other.

    Example:
      >>> axes = axes_of(rk.dct(0, 784, 144, height=28, width=28))
      >>> axes.left.shape, axes.right.shape
      ((28, 12), (28, 12))
    """
    separable, channels = rk.family(sketch.kind).separable, image_of(sketch).channels
    if separable is None or image_of(sketch).width == 1:
        return None
    with jax.core.eval_context():
        left, right, places = separable(sketch)
        wide = np.kron(np.asarray(right), np.eye(channels, dtype=np.float32))
        each = (places[:, None] * channels + np.arange(channels)).ravel()
        return Axes(np.asarray(left), wide, each[: sketch.cols])
