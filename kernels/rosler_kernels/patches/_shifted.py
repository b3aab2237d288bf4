"""Patch projection by a kernel that projects shifted rows of one list of pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from ._geometry import flat, from_pixels, to_pixels

if TYPE_CHECKING:
    from types import ModuleType

    from jaxtyping import Array

    from ..sketches import Sketch
    from ._geometry import Geometry


def project(
    kernels: ModuleType, x: Array, sketch: Sketch, geometry: Geometry, **options: Any
) -> Array:
    """(b, *spatial, c) -> (b, *out, cols) through ``kernels.project``.

    Args:
      kernels: a back end of ``rosler_kernels.projection`` whose ``project`` takes ``offsets``.
      x: padded images.
      sketch: rows = pixels of the window times c.
      geometry: of the window.
      **options: of the back end.
    """
    spatial = x.shape[1:-1]
    out = geometry.out(spatial)
    form = flat(geometry, x.shape[0], spatial)
    pixels = to_pixels(x, geometry, form)
    # Windows that leave the last image read past the end.
    room = max(form.offsets) + form.pixels - pixels.shape[0]
    pixels = jnp.pad(pixels, ((0, max(0, room)), (0, 0)))
    y = kernels.project(pixels, sketch, offsets=form.offsets, rows_out=form.pixels, **options)
    y = y.reshape(x.shape[0], *form.grid, sketch.cols)
    return y[(slice(None), *(slice(0, n) for n in out))]


def project_transpose(
    kernels: ModuleType,
    y: Array,
    sketch: Sketch,
    geometry: Geometry,
    spatial: tuple[int, ...],
    **options: Any,
) -> Array:
    """(b, *out, cols) -> (b, *spatial, c): the adjoint of ``project``."""
    form = flat(geometry, y.shape[0], spatial)
    room = [g - n for g, n in zip(form.grid, y.shape[1:-1], strict=True)]
    y = jnp.pad(y, [(0, 0), *((0, r) for r in room), (0, 0)]).reshape(form.pixels, -1)
    # x_j = sum_w y_{j - offset_w} Omega_w^T: offsets counted back from the last.
    last, total = max(form.offsets), form.phases * form.pixels
    y = jnp.pad(y, ((last, total - form.pixels), (0, 0)))
    offsets = tuple(last - offset for offset in form.offsets)
    x = kernels.project_transpose(y, sketch, offsets=offsets, rows_out=total, **options)
    return from_pixels(x, geometry, form, spatial)
