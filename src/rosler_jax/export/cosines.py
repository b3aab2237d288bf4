"""Cosines as integers, from a few operations each: no table of them is stored.

A quarter of a wave on an axis of n numbers, ``q[k] = cos(pi k / (2 n))`` for k = 0 .. n in units of
2^-14, is in integers, all divisions and shifts rounded down::

    t = (2^15 k + n / 2) / n
    p = 923085;  p = a - (p t^2 >> 30) for a = 22348826, 272358059, 1324674085, 2^30
    q[k] = (p + 2^15) >> 16

within 2^-14 of the cosine. The entries of ``dct``, over sqrt(2 / n), are ``q`` at the angle ``(2 i
+ 1) u`` modulo 4 n, and for u = 0 the number 11585.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np

import rosler_kernels as rk
from rosler_kernels.sketches._separable import image_of
from rosler_kernels.sketches.dct import box_of, of_sketch

if TYPE_CHECKING:
    from jaxtyping import Array, Int64

COEFFICIENTS = (923085, 22348826, 272358059, 1324674085, 1 << 30)
"""Of 1 - cos in t^2, so that the largest error is least; in units of 2^-30."""
BITS = 14
LOWEST = 11585
"""sqrt(1/2), in units of 2^-14."""


def quarter(n: int) -> Int64[np.ndarray, "m"]:
    """``q[0 .. n]``.

    Example:
      >>> quarter(2).tolist()
      [16384, 11585, 0]
    """
    t = ((np.arange(n + 1, dtype=np.int64) << 15) + n // 2) // n
    p = np.zeros(n + 1, np.int64)
    for a in COEFFICIENTS:
        p = a - ((p * t * t) >> 30)
    return (p + (1 << (29 - BITS))) >> (30 - BITS)


def waves(n: int, count: int) -> Int64[np.ndarray, "count n"]:
    """Frequencies 0 .. count - 1 of an axis of n numbers.

    Example:
      >>> waves(2, 2).tolist()
      [[11585, 11585], [11585, -11585]]
    """
    u, i = np.arange(count)[:, None], np.arange(n)[None, :]
    k = (2 * i + 1) * u % (4 * n)
    half, q = np.minimum(k, 4 * n - k), quarter(n)
    entries = np.where(half > n, -q[np.minimum(2 * n - half, n)], q[np.minimum(half, n)])
    return np.where(u == 0, LOWEST, entries)


class Stages(NamedTuple):
    """The shifts of a projection by cosines, to the right and rounded, after sums of 64 bits.

    Attributes:
      middle: between the two axes of an image, to 16 bits; 0 for vectors.
      last: to 31 bits.
    """

    middle: int = 0
    last: int = 0

    @property
    def bits(self) -> int:
        """By how many bits the sums are finer than the products of cosines with the inputs."""
        return BITS * (2 if self.middle else 1) - self.middle - self.last


def stages(sketch: rk.Sketch, transpose: bool, bound: int) -> tuple[Stages, int]:
    """The least shifts, and the largest magnitude of the sums.

    Args:
      sketch: of cosines.
      transpose: whether by its transpose.
      bound: largest magnitude of the inputs.

    Example:
      >>> stages(rk.dct(0, 784, 144, height=28, width=28), False, 255)
      (Stages(middle=12, last=3), 818856763)
    """
    (height, width, _), (high, wide) = image_of(sketch), box_of(sketch)
    # Of a sum over pixels the worst frequency counts, of a sum over frequencies the worst pixel.
    over = 0 if transpose else 1
    down = int(np.abs(waves(height, high)).sum(over).max())
    if width == 1:
        last, bound = _narrowed(bound * down, 30)
        return Stages(0, last), bound
    across = int(np.abs(waves(width, wide)).sum(over).max())
    first, second = (down, across) if transpose else (across, down)
    middle, bound = _narrowed(bound * first, 15)
    last, bound = _narrowed(bound * second, 30)
    return Stages(middle, last), bound


def _narrowed(bound: int, bits: int) -> tuple[int, int]:
    """The shift to so many bits, and what is left of a bound."""
    shift = max(1, bound.bit_length() - bits)
    shift += (bound + (1 << (shift - 1))) >> shift >= 1 << bits
    return shift, (bound + (1 << (shift - 1))) >> shift


def project(
    sketch: rk.Sketch, of: Stages, transpose: bool, x: Int64[Array, "vectors inner"]
) -> Int64[Array, "vectors outer"]:
    """The sums, exact but for the shifts: what the C code computes."""
    image, (high, wide), (u, v) = image_of(sketch), box_of(sketch), of_sketch(sketch).T
    down = waves(image.height, high)
    across = waves(image.width, wide) if image.width > 1 else np.ones((1, 1), np.int64)
    if not transpose:
        lines = _shifted(jnp.einsum("bijc,vj->bivc", x.reshape(-1, *image), across), of.middle)
        sums = jnp.einsum("bivc,ui->buvc", lines, down)[:, u, v]
        return _shifted(sums.reshape(x.shape[0], -1)[:, : sketch.cols], of.last)
    x = jnp.pad(x, ((0, 0), (0, u.size * image.channels - sketch.cols)))
    boxes = jnp.zeros((x.shape[0], high, wide, image.channels), x.dtype)
    boxes = boxes.at[:, u, v].set(x.reshape(x.shape[0], -1, image.channels))
    lines = _shifted(jnp.einsum("buvc,ui->bivc", boxes, down), of.middle)
    sums = jnp.einsum("bivc,vj->bijc", lines, across)
    return _shifted(sums.reshape(x.shape[0], -1), of.last)


def _shifted(sums: Array, shift: int) -> Array:
    return (sums + ((1 << shift) >> 1)) >> shift
