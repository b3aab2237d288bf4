"""The chain as three products that XLA schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from ..projection import xla as projection
from ..sketches import Sketch

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def chain(
    x: Float[Array, "b m"], left: Array | Sketch, core: Float[Array, "s l"], right: Array | Sketch
) -> tuple[Array, Array, Array]:
    """(y, h, z) with h = x L, z = h U, y = z R."""
    h = projection.project(x, left) if isinstance(left, Sketch) else jnp.dot(x, left)
    z = jnp.dot(h, core)
    if isinstance(right, Sketch):
        return projection.project_transpose(z, right), h, z
    return jnp.dot(z, right), h, z
