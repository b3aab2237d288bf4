"""The quantised tensor as plain data: no JAX, so that a model file loads without it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32

INTEGER_BITS: Final = (2, 3, 4, 8, 16)
FLOAT_BITS: Final = 32

Axes = int | tuple[int, ...] | None
"""The axes that carry scales: one, several in ascending order, or None for one scale."""


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Symmetric integers with one scale per channel: x ~ values * scale.

    A JAX pytree once ``rosler_jax.quantization`` is imported (values and scale are data, bits and
    axis static); its arrays are JAX arrays when it comes from ``quantize`` and NumPy arrays when it
    comes from a model file.

    Attributes:
        values: int8 (2 to 8 bits), int16 (16 bits) or float32 (32 bits: not quantised), within
            +-(2**(bits - 1) - 1).
        scale: float32, shape (channels,) along ``axis``, one axis a carrying axis where there are
            several, or () for one scale. Always exactly a bfloat16 number, so that it is stored in
            two bytes and values * scale is exact.
        bits: 2, 3, 4, 8, 16 or 32.
        axis: the axis (not negative) that carries the scales, several in ascending order (the
            layers of a stack and the channels of each), or None for one scale.

    Example:
        >>> values, scale = np.array([[7, -7], [1, 0]], np.int8), np.float32([0.5, 0.25])
        >>> q = QuantizedTensor(values, scale, bits=4, axis=0)
        >>> q.shape, to_numpy(q).tolist()
        ((2, 2), [[3.5, -3.5], [0.25, 0.0]])
    """

    values: Any
    scale: Any
    bits: int
    axis: Axes

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(int(size) for size in self.values.shape)


def integer_levels(bits: int) -> int:
    """The largest stored integer, 2**(bits - 1) - 1; the most negative code is never used."""
    return int(2 ** (bits - 1) - 1)


def carrying(axis: Axes) -> tuple[int, ...]:
    """The axes that carry scales, none, one or several.

    Example:
        >>> carrying(None), carrying(2), carrying((0, 2))
        ((), (2,), (0, 2))
    """
    return () if axis is None else (axis,) if isinstance(axis, int) else axis


def scale_shape(shape: tuple[int, ...], axis: Axes) -> tuple[int, ...]:
    """The shape that the scales of a tensor of this shape have."""
    return tuple(shape[k] for k in carrying(axis))


def to_numpy(tensor: QuantizedTensor) -> Float32[np.ndarray, "..."]:
    """The tensor's values as NumPy float32; the same bits as ``quantization.dequantize`` gives.

    Example:
        >>> q = QuantizedTensor(np.array([[1, -3]], np.int8), np.float32([0.5, 0.25]), 3, 1)
        >>> to_numpy(q).tolist()
        [[0.5, -0.75]]
    """
    values = np.asarray(tensor.values).astype(np.float32)
    if tensor.bits == FLOAT_BITS:
        return values
    others = tuple(k for k in range(values.ndim) if k not in carrying(tensor.axis))
    scale = np.expand_dims(np.asarray(tensor.scale, np.float32), others)
    return np.asarray(values * scale, np.float32)
