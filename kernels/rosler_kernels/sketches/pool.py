"""Pooling sketch: sums over windows side by side. No entry is random."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from ._base import Family, Sketch, indices
from ._separable import Image, Separable, image_of, image_sketch
from ._sparse import Pattern, dense_tile

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt32


def pool(
    seed: object, rows: int, cols: int, height: int | None = None, width: int | None = None
) -> Sketch:
    """Omega that sums over windows which lie side by side, the same for every seed.

    Of the p windows along an axis of n numbers the first n mod p hold floor(n / p) + 1, the others
    floor(n / p); entries are 1 there, else 0. So columns are orthogonal, and where p divides n, of
    norm sqrt(rows / cols), the norm of a random sketch's.

    With a height and a width, rows are images, channels last, cut into a grid of a x b windows with
    a b channels = cols: of those that fit, the one whose windows are the squarest, and of two such
    the one of fewer rows.

    Args:
      seed: not read.
      rows: dimension projected away.
      cols: number of windows, times channels; at most rows.
      height, width: of the image, both or neither.

    Returns:
      Sketch.

    Raises:
      ValueError: a dimension is out of range, rows are no images of that size, or no grid has so
        many windows.

    >>> grid(pool(0, 784, 196, height=28, width=28))
    (14, 14)
    """
    del seed
    sketch = image_sketch("pool", rows, cols, height, width)
    grid(sketch)
    return sketch


def grid(sketch: Sketch) -> tuple[int, int]:
    """Windows along the height and along the width."""
    return _grid(image_of(sketch), sketch.cols)


@functools.lru_cache(maxsize=64)
def _grid(image: Image, cols: int) -> tuple[int, int]:
    height, width, channels = image
    if width == channels == 1:
        return cols, 1
    windows, rest = divmod(cols, channels)
    small = [a for a in range(1, math.isqrt(windows) + 1) if not rest and windows % a == 0]
    divisors = sorted({*small, *(windows // a for a in small)})
    fitting = [(a, windows // a) for a in divisors if a <= height and windows // a <= width]
    if not fitting:
        raise ValueError(
            f"pool: cols={cols}; expected a * b * {channels} channels with a up to {height} and b "
            f"up to {width}"
        )
    sides = [(a * width, b * height) for a, b in fitting]  # of a window, crosswise
    return fitting[min(range(len(sides)), key=lambda k: max(sides[k]) / min(sides[k]))]


def separable(sketch: Sketch) -> Separable:
    """As a sum along each axis."""
    image = image_of(sketch)
    left, right = (
        (_window(indices(0, n), n, p)[:, None] == indices(0, p)[None, :]).astype(jnp.float32)
        for n, p in zip(image[:2], grid(sketch), strict=True)
    )
    return Separable(left, right, np.arange(left.shape[1] * right.shape[1]))


def _window(i: UInt32[Array, "..."], n: int, windows: int) -> UInt32[Array, "..."]:
    """The window that number i of an axis of n lies in."""
    size, longer = (jnp.uint32(k) for k in divmod(n, windows))
    first = longer * (size + 1)
    return jnp.where(i < first, i // (size + 1), longer + (i - first) // size)


def pattern(sketch: Sketch, row_start: int | Array, n_rows: int) -> Pattern:
    """The nonzeros of those rows: one each."""
    (height, width, channels), (high, wide) = image_of(sketch), grid(sketch)
    pixel, channel = jnp.divmod(indices(row_start, n_rows), jnp.uint32(channels))
    i, j = jnp.divmod(pixel, jnp.uint32(width))
    at = _window(i, height, high) * jnp.uint32(wide) + _window(j, width, wide)
    column = (at * jnp.uint32(channels) + channel).astype(jnp.int32)[:, None]
    return Pattern(column, jnp.ones(column.shape, jnp.float32))


def tile(
    sketch: Sketch, row_start: int | Array, n_rows: int, col_start: int | Array, n_cols: int
) -> Float[Array, "n_rows n_cols"]:
    """That tile of Omega, float32."""
    return dense_tile(pattern(sketch, row_start, n_rows), col_start, n_cols)


FAMILY = Family(
    pool, tile, "separable", pattern, scale=lambda _: np.float32(1.0), signed=True,
    generator="sparse", separable=separable, fixed=True,
)  # fmt: skip
