"""Cosines as integers, from a few operations each: no table of them is stored.

A quarter of a wave on an axis of n numbers, ``q[k] = cos(pi k / (2 n))`` for k = 0 .. n in units of
2^-bits, is in integers, all divisions and shifts rounded down::

    t = (2^15 k + n / 2) / n
    p = 923085;  p = a - (p t^2 >> 30) for a = 22348826, 272358059, 1324674085, 2^30
    q[k] = (p + 2^(29 - bits)) >> (30 - bits)

which is within 2^-14 of the cosine, and the entries of ``dct``, over sqrt(2 / n), are ``q`` at the
angle ``(2 i + 1) u`` modulo 4 n, and for u = 0 ``((46341 >> (15 - bits)) + 1) >> 1``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np

import rosler_kernels as rk
from rosler_kernels.sketches._separable import image_of
from rosler_kernels.sketches.dct import of_sketch

if TYPE_CHECKING:
    from jaxtyping import Array, Int64

COEFFICIENTS = (923085, 22348826, 272358059, 1324674085, 1 << 30)
"""Of 1 - cos in t^2, so that the largest error is least; in units of 2^-30."""
MOST_BITS = 14


def quarter(n: int, bits: int) -> Int64[np.ndarray, "m"]:
    """``q[0 .. n]``.

    Example:
      >>> quarter(2, 14).tolist(), round(2**14 / 2**0.5)
      ([16384, 11585, 0], 11585)
    """
    t = ((np.arange(n + 1, dtype=np.int64) << 15) + n // 2) // n
    p = np.zeros(n + 1, np.int64)
    for a in COEFFICIENTS:
        p = a - ((p * t * t) >> 30)
    return (p + (1 << (29 - bits))) >> (30 - bits)


def waves(n: int, count: int, bits: int) -> Int64[np.ndarray, "count n"]:
    """Frequencies 0 .. count - 1 of an axis of n numbers.

    Example:
      >>> waves(2, 2, 4).tolist()
      [[11, 11], [11, -11]]
    """
    u, i = np.arange(count)[:, None], np.arange(n)[None, :]
    k = (2 * i + 1) * u % (4 * n)
    half = np.minimum(k, 4 * n - k)
    q = quarter(n, bits)
    entries = np.where(half > n, -q[np.minimum(2 * n - half, n)], q[np.minimum(half, n)])
    return np.where(u == 0, ((46341 >> (15 - bits)) + 1) >> 1, entries)


class Stages(NamedTuple):
    """The integers of a projection by cosines: along the width of an image, and along its height.

    Attributes:
      bits: of the cosines along the height and along the width.
      shift: right, rounded, between the two; 0 where the image is one column.
    """

    bits: tuple[int, int] = (0, 0)
    shift: int = 0


def counts(sketch: rk.Sketch) -> tuple[int, int]:
    """Frequencies along the height and along the width.

    Example:
      >>> counts(rk.dct(0, 784, 144, height=28, width=28))
      (12, 12)
    """
    high, wide = (of_sketch(sketch).max(axis=0) + 1).tolist()
    return high, wide


def stages(sketch: rk.Sketch, transpose: bool, bound: int) -> tuple[Stages, int]:
    """As many bits of the cosines as keep sums of 32 bits, and the largest magnitude of the last.

    Args:
      sketch: of cosines.
      transpose: whether by its transpose.
      bound: largest magnitude of the inputs.
    """
    image, (high, wide) = image_of(sketch), counts(sketch)
    # Of a sum over pixels the worst frequency counts, of a sum over frequencies the worst pixel.
    over = 0 if transpose else 1
    shift, across = 0, 0
    if image.width > 1 and not transpose:
        across, bound = _most(image.width, wide, over, bound)
        shift, bound = _narrowed(bound)
    down, bound = _most(image.height, high, over, bound)
    if image.width > 1 and transpose:
        shift, bound = _narrowed(bound)
        across, bound = _most(image.width, wide, over, bound)
    return Stages((down, across), shift), bound


def _most(n: int, count: int, over: int, bound: int) -> tuple[int, int]:
    for bits in range(MOST_BITS, 0, -1):
        reach = bound * int(np.abs(waves(n, count, bits)).sum(over).max())
        if reach < 2**30:  # room for a bias
            break
    return bits, reach


def _narrowed(bound: int) -> tuple[int, int]:
    """The shift to 16 bits."""
    shift = max(1, bound.bit_length() - 15)
    shift += (bound + (1 << (shift - 1))) >> shift > 2**15 - 1
    return shift, (bound + (1 << (shift - 1))) >> shift


def project(
    sketch: rk.Sketch, of: Stages, transpose: bool, x: Int64[Array, "vectors inner"]
) -> Int64[Array, "vectors outer"]:
    """The sums, exact but for the shift between the stages: what the C code computes."""
    image, (high, wide), found = image_of(sketch), counts(sketch), of_sketch(sketch)
    down = waves(image.height, high, of.bits[0])
    across = waves(image.width, wide, of.bits[1]) if image.width > 1 else np.ones((1, 1), np.int64)

    def middle(sums: Array) -> Array:
        return (sums + ((1 << of.shift) >> 1)) >> of.shift

    if not transpose:
        lines = middle(jnp.einsum("bijc,vj->bivc", x.reshape(-1, *image), across))
        boxes = jnp.einsum("bivc,ui->buvc", lines, down)
        return boxes[:, found[:, 0], found[:, 1]].reshape(x.shape[0], -1)[:, : sketch.cols]
    whole = jnp.pad(x, ((0, 0), (0, len(found) * image.channels - sketch.cols)))
    boxes = jnp.zeros((x.shape[0], high, wide, image.channels), x.dtype)
    boxes = boxes.at[:, found[:, 0], found[:, 1]].set(whole.reshape(x.shape[0], -1, image.channels))
    lines = middle(jnp.einsum("buvc,ui->bivc", boxes, down))
    return jnp.einsum("bivc,vj->bijc", lines, across).reshape(x.shape[0], -1)
