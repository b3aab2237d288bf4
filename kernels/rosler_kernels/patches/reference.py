"""Patches gathered whole, times Omega formed whole: what other implementations are tested by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from ..products import accumulator
from ..projection import reference as projection

if TYPE_CHECKING:
    from jaxtyping import Array

    from ..sketches import Sketch
    from ._geometry import Geometry


def project(x: Array, sketch: Sketch, geometry: Geometry) -> Array:
    """(b, *spatial, c) -> (b, *out, cols)."""
    patches = jnp.concatenate(
        [x[_pixels(geometry, x.shape[1:-1], position)] for position in geometry.positions()],
        axis=-1,
    )
    flat = projection.project(patches.reshape(-1, sketch.rows), sketch)
    return flat.reshape(*patches.shape[:-1], sketch.cols)


def project_transpose(
    y: Array, sketch: Sketch, geometry: Geometry, spatial: tuple[int, ...]
) -> Array:
    """(b, *out, cols) -> (b, *spatial, c): the adjoint of ``project``."""
    flat = projection.project_transpose(y.reshape(-1, sketch.cols), sketch)
    patches = flat.reshape(*y.shape[:-1], -1)
    positions = list(geometry.positions())
    c = patches.shape[-1] // len(positions)
    wide = accumulator(y.dtype)
    out = jnp.zeros((y.shape[0], *spatial, c), wide)
    for i, position in enumerate(positions):
        term = patches[..., i * c : (i + 1) * c].astype(wide)
        out = out.at[_pixels(geometry, spatial, position)].add(term)
    return out.astype(y.dtype)


def _pixels(
    geometry: Geometry, spatial: tuple[int, ...], position: tuple[int, ...]
) -> tuple[slice, ...]:
    out = geometry.out(spatial)
    each = zip(position, out, geometry.strides, strict=True)
    return (slice(None), *(slice(p, p + (n - 1) * s + 1 if n else p, s) for p, n, s in each))
