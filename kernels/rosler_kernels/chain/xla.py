"""The chain as three products that XLA schedules; seeded factors by whatever projects best."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..products import dot
from ..projection.api import project, project_transpose
from ..sketches import Sketch

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def chain(
    x: Float[Array, "b m"],
    left: Array | Sketch,
    core: Float[Array, "s l"],
    right: Array | Sketch,
    *,
    implementation: str | None = None,
) -> tuple[Array, Array, Array]:
    """(y, h, z) with h = x L, z = h U, y = z R.

    Args:
      x, left, core, right: as of ``sketch_matmul``, x with one leading dimension.
      implementation: of the projections by a seeded factor.
    """
    if isinstance(left, Sketch):
        h = project(x, left, implementation=implementation)
    else:
        h = dot(x, left)
    z = dot(h, core)
    if isinstance(right, Sketch):
        return project_transpose(z, right, implementation=implementation), h, z
    return dot(z, right), h, z
