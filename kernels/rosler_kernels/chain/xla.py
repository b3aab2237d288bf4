"""The chain as three products that XLA schedules; seeded factors by whatever projects best."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from ..projection import project, project_transpose
from ..sketches import Sketch

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def chain(
    x: Float[Array, "b m"],
    left: Array | Sketch,
    core: Float[Array, "s l"],
    right: Array | Sketch,
    *,
    projections: tuple[str, str] = ("xla", "xla"),
) -> tuple[Array, Array, Array]:
    """(y, h, z) with h = x L, z = h U, y = z R.

    Args:
      x, left, core, right: as of ``sketch_matmul``, x with one leading dimension.
      projections: implementations for a seeded left and a seeded right factor.
    """
    if isinstance(left, Sketch):
        h = project(x, left, implementation=projections[0])
    else:
        h = jnp.dot(x, left)
    z = jnp.dot(h, core)
    if isinstance(right, Sketch):
        return project_transpose(z, right, implementation=projections[1]), h, z
    return jnp.dot(z, right), h, z
