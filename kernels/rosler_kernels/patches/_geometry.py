"""Where the pixels of a window lie: strides, dilation, and padding done beforehand."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Array


_TILE = 8


class Geometry(NamedTuple):
    """A window that slides over images which are padded already; one entry a spatial dimension.

    Attributes:
      window: pixels of the window.
      strides: steps between neighbouring outputs.
      dilation: steps between neighbouring pixels of the window.
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]

    def positions(self) -> Iterator[tuple[int, ...]]:
        """Where each pixel lies in the image, from the window's corner; in C order."""
        for pixel in itertools.product(*map(range, self.window)):
            yield tuple(p * d for p, d in zip(pixel, self.dilation, strict=True))

    def reach(self) -> tuple[int, ...]:
        """Size of the window with its gaps."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.window, self.dilation, strict=True))

    def out(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Outputs a dimension; none where the window does not fit."""
        sizes = zip(spatial, self.reach(), self.strides, strict=True)
        return tuple(max(0, (n - r) // s + 1) for n, r, s in sizes)


class Flat(NamedTuple):
    """Images as one list of pixels, in which every pixel of a window is a fixed offset away.

    With strides s, an image is cut into prod(s) phases, each every s-th pixel; a window's pixel
    lies in one phase. The rows of windows that leave their image are computed and thrown away.

    Attributes:
      phases: prod(strides).
      grid: pixels of a phase, a dimension.
      pixels: pixels of one phase of all images.
      offsets: from an output's pixel to the window's pixels.
    """

    phases: int
    grid: tuple[int, ...]
    pixels: int
    offsets: tuple[int, ...]


def flat(geometry: Geometry, batch: int, spatial: tuple[int, ...]) -> Flat:
    """The flat form of images of that size."""
    strides = geometry.strides
    grid = tuple(-(-n // s) for n, s in zip(spatial, strides, strict=True))
    # Rows of whole tiles: offsets then differ, modulo a tile, only by columns of the window.
    grid = (*grid[:-1], -(-grid[-1] // _TILE) * _TILE)
    pixels = batch * math.prod(grid)
    offsets = []
    for position in geometry.positions():
        phase, shift = 0, 0
        for p, s, n in zip(position, strides, grid, strict=True):
            phase, shift = phase * s + p % s, shift * n + p // s
        offsets.append(phase * pixels + shift)
    return Flat(math.prod(strides), grid, pixels, tuple(offsets))


def to_pixels(x: Array, geometry: Geometry, form: Flat) -> Array:
    """(batch, *spatial, c) -> (phases * pixels, c)."""
    strides, n = geometry.strides, len(form.grid)
    room = [g * s - a for g, s, a in zip(form.grid, strides, x.shape[1:-1], strict=True)]
    x = jnp.pad(x, [(0, 0), *((0, r) for r in room), (0, 0)])
    split = [size for pair in zip(form.grid, strides, strict=True) for size in pair]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    inner, outer = range(2, 2 * n + 1, 2), range(1, 2 * n, 2)
    x = x.transpose(*inner, 0, *outer, 2 * n + 1)
    return x.reshape(form.phases * form.pixels, x.shape[-1])


def from_pixels(pixels: Array, geometry: Geometry, form: Flat, spatial: tuple[int, ...]) -> Array:
    """The inverse of ``to_pixels``."""
    n, c = len(form.grid), pixels.shape[-1]
    x = pixels.reshape(*geometry.strides, -1, *form.grid, c)
    order = [n] + [axis for i in range(n) for axis in (n + 1 + i, i)] + [2 * n + 1]
    x = x.transpose(order)
    whole = [g * s for g, s in zip(form.grid, geometry.strides, strict=True)]
    x = x.reshape(x.shape[0], *whole, c)
    return x[(slice(None), *(slice(0, a) for a in spatial))]
