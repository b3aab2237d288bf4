"""Cosine sketch: the lowest frequencies of the discrete cosine transform. No entry is random."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from ..hashing import sin_cos_turns
from ._base import Family, Sketch, check_range, indices
from ._separable import Separable, image_of, image_sketch

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, UInt32

LONGEST = 46340
"""Of an axis: 32 bits hold 2 n^2."""


def dct(
    seed: object, rows: int, cols: int, height: int | None = None, width: int | None = None
) -> Sketch:
    """Omega whose columns are the lowest frequencies of the DCT-II, the same for every seed.

    With q_u(i) = cos(pi (2 i + 1) u / (2 n)) sqrt(2 / n), of u = 0 sqrt(1 / n), which are
    orthonormal (Ahmed, Natarajan and Rao, IEEE Trans. Comput. C-23, 1974), column u is q_u
    sqrt(rows / cols): orthogonal, of the norm that a random sketch's columns have.

    With a height and a width, rows are images, channels last, and the columns q_u(i) q_v(j) of
    every channel. Frequencies (u, v) are taken as a box of a x b of them grows: by a row, u = a and
    v = 0 .. b - 1, where a width <= b height, and else by a column, v = b and u = 0 .. a - 1. So
    the lowest 144 of 28 x 28 are 12 x 12 of them.

    Args:
      seed: not read.
      rows: dimension projected away; of an axis at most 46,340.
      cols: number of frequencies, times channels; at most rows.
      height, width: of the image, both or neither.

    Returns:
      Sketch.

    Raises:
      ValueError: a dimension is out of range, or rows are no images of that size.

    >>> dct(0, 784, 144, height=28, width=28).params
    (('height', 28), ('width', 28))
    """
    del seed
    sketch = image_sketch("dct", rows, cols, height, width)
    image = image_of(sketch)
    why = "32 bits hold twice its square; give height and width to split rows"
    check_range("dct", "an axis", max(image.height, image.width), 1, LONGEST, why)
    return sketch


def box(height: int, width: int, count: int) -> tuple[int, int]:
    """The box a x b that the first frequencies lie in.

    >>> box(28, 28, 144), box(28, 28, 145)
    ((12, 12), (13, 12))
    """
    a, b = (count, 1) if width == 1 else (1, 1)
    while a * b < count:
        a, b = (a + 1, b) if a * width <= b * height else (a, b + 1)
    return a, b


@functools.lru_cache(maxsize=64)
def frequencies(height: int, width: int, count: int) -> Int[np.ndarray, "count 2"]:
    """The first (u, v), in the order of ``dct``.

    >>> frequencies(2, 3, 6).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [1, 2]]
    """
    if width == 1:
        return np.stack([np.arange(count), np.zeros(count, np.int64)], axis=1)
    found, a, b = [np.zeros((1, 2), np.int64)], 1, 1
    while a * b < count:
        row = a * width <= b * height
        along = np.arange(b if row else a)
        found.append(np.stack([along * 0 + a, along] if row else [along, along * 0 + b], axis=1))
        a, b = (a + 1, b) if row else (a, b + 1)
    return np.concatenate(found)[:count]


def of_sketch(sketch: Sketch) -> Int[np.ndarray, "n 2"]:
    """The frequencies of its columns, a channel."""
    height, width, channels = image_of(sketch)
    return frequencies(height, width, -(-sketch.cols // channels))


def box_of(sketch: Sketch) -> tuple[int, int]:
    """The box that its frequencies lie in."""
    height, width, channels = image_of(sketch)
    return box(height, width, -(-sketch.cols // channels))


def cosines(n: int, i: UInt32[Array, "..."], u: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """q_u(i) sqrt(n / 2), float32: cosines, of u = 0 sqrt(1 / 2)."""
    turn = ((jnp.uint32(2) * i + jnp.uint32(1)) * u) % jnp.uint32(4 * n)
    _, cosine = sin_cos_turns(turn.astype(jnp.int32).astype(jnp.float32) / np.float32(4 * n))
    return jnp.where(u == jnp.uint32(0), np.float32(np.sqrt(0.5)), cosine)


def scale(sketch: Sketch) -> np.float32:
    """What the products of ``cosines`` along the axes are multiplied by."""
    image = image_of(sketch)
    both = 4.0 if image.width > 1 else 2.0
    return np.float32(np.sqrt(both * image.channels / sketch.cols))


def separable(sketch: Sketch) -> Separable:
    """As a product along each axis; the width is more than 1."""
    image, found, (a, b) = image_of(sketch), of_sketch(sketch), box_of(sketch)
    left, right = (
        cosines(n, indices(0, n)[:, None], indices(0, size)[None, :])
        for n, size in ((image.height, a), (image.width, b))
    )
    return Separable(left * scale(sketch), right, found @ np.array([b, 1]))


def tile(
    sketch: Sketch, row_start: int | Array, n_rows: int, col_start: int | Array, n_cols: int
) -> Float[Array, "n_rows n_cols"]:
    """That tile of Omega, float32."""
    height, width, channels = image_of(sketch)
    row, column = indices(row_start, n_rows)[:, None], indices(col_start, n_cols)[None, :]
    if width == channels == 1:
        return cosines(height, row, column) * scale(sketch)
    u, v = jnp.asarray(of_sketch(sketch), jnp.uint32)[column // jnp.uint32(channels)].T
    u, v = u.reshape(1, -1), v.reshape(1, -1)
    i, j = row // jnp.uint32(width * channels), row // jnp.uint32(channels) % jnp.uint32(width)
    entries = cosines(height, i, u) * scale(sketch)
    entries = entries * cosines(width, j, v) if width > 1 else entries
    same = row % jnp.uint32(channels) == column % jnp.uint32(channels)
    return jnp.where(same, entries, np.float32(0.0))


# No kernel makes it tile by tile: products along two axes are far fewer operations.
FAMILY = Family(dct, tile, "separable", scale=scale, nested=True, separable=separable, fixed=True)
