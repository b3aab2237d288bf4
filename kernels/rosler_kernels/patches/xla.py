"""A sum over the window's pixels: one strided view of the image and c rows of Omega at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ..products import wide_dot, widen
from ..sketches import family

if TYPE_CHECKING:
    from jaxtyping import Array

    from ..sketches import Sketch
    from ._geometry import Geometry

WHOLE = 2**18
"""Entries of Omega up to which it is a convolution's filter, 1 MB; beyond, one pixel at a time."""


def project(x: Array, sketch: Sketch, geometry: Geometry) -> Array:
    """(b, *spatial, c) -> (b, *out, cols)."""
    if 0 in geometry.out(x.shape[1:-1]) or x.shape[0] == 0:
        return jnp.zeros((x.shape[0], *geometry.out(x.shape[1:-1]), sketch.cols), x.dtype)
    wide = widen(x)
    if sketch.rows * sketch.cols <= WHOLE:
        return _convolve(wide, _filters(sketch, geometry, wide.dtype), geometry).astype(x.dtype)
    c, out = x.shape[-1], geometry.out(x.shape[1:-1])
    total = jnp.zeros((x.shape[0], *out, sketch.cols), wide.dtype)
    for i, position in enumerate(geometry.positions()):
        total = total + wide_dot(_view(wide, geometry, position), _rows(sketch, i, c))
    return total.astype(x.dtype)


def project_transpose(
    y: Array, sketch: Sketch, geometry: Geometry, spatial: tuple[int, ...]
) -> Array:
    """(b, *out, cols) -> (b, *spatial, c): the adjoint of ``project``."""
    c = sketch.rows // math.prod(geometry.window)
    if 0 in geometry.out(spatial) or y.shape[0] == 0:
        return jnp.zeros((y.shape[0], *spatial, c), y.dtype)
    wide = widen(y)
    if sketch.rows * sketch.cols <= WHOLE:
        filters = _filters(sketch, geometry, wide.dtype)
        like = jax.ShapeDtypeStruct((y.shape[0], *spatial, c), wide.dtype)
        adjoint = jax.linear_transpose(lambda x: _convolve(x, filters, geometry), like)
        return adjoint(wide)[0].astype(y.dtype)
    total = jnp.zeros((y.shape[0], *spatial, c), wide.dtype)
    for i, position in enumerate(geometry.positions()):
        total = total + _place(wide_dot(wide, _rows(sketch, i, c).T), geometry, position, spatial)
    return total.astype(y.dtype)


def _rows(sketch: Sketch, pixel: int, c: int) -> Array:
    return family(sketch.kind).tile(sketch, pixel * c, c, 0, sketch.cols)


def _filters(sketch: Sketch, geometry: Geometry, dtype: jnp.dtype) -> Array:
    whole = family(sketch.kind).tile(sketch, 0, sketch.rows, 0, sketch.cols)
    return whole.astype(dtype).reshape(*geometry.window, -1, sketch.cols)


def _convolve(x: Array, filters: Array, geometry: Geometry) -> Array:
    n = len(geometry.window)
    image, weights = (0, n + 1, *range(1, n + 1)), (n + 1, n, *range(n))
    return jax.lax.conv_general_dilated(
        x,
        filters,
        geometry.strides,
        "VALID",
        rhs_dilation=geometry.dilation,
        dimension_numbers=jax.lax.ConvDimensionNumbers(image, weights, image),
        precision=jax.lax.Precision.HIGHEST,
    )


def _view(x: Array, geometry: Geometry, position: tuple[int, ...]) -> Array:
    out = geometry.out(x.shape[1:-1])
    stops = [p + (n - 1) * s + 1 for p, n, s in zip(position, out, geometry.strides, strict=True)]
    return jax.lax.slice(
        x,
        (0, *position, 0),
        (x.shape[0], *stops, x.shape[-1]),
        (1, *geometry.strides, 1),
    )


def _place(
    y: Array, geometry: Geometry, position: tuple[int, ...], spatial: tuple[int, ...]
) -> Array:
    """The adjoint of ``_view``: values at their pixels, zeros between and around."""
    config = [(0, 0, 0)]
    for p, n, s, size in zip(position, y.shape[1:-1], geometry.strides, spatial, strict=True):
        config.append((p, size - (p + (n - 1) * s + 1), s - 1))
    return jax.lax.pad(y, jnp.zeros((), y.dtype), [*config, (0, 0, 0)])
