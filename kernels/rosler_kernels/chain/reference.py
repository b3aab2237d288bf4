"""The chain with every factor formed whole: what other implementations are tested against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..products import wide_dot
from ..sketches import Sketch, materialize

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def chain(
    x: Float[Array, "b m"], left: Array | Sketch, core: Float[Array, "s l"], right: Array | Sketch
) -> tuple[Array, Array, Array]:
    """(y, h, z) with h = x L, z = h U, y = z R, summed in float32 or wider."""
    left = materialize(left) if isinstance(left, Sketch) else left
    right = materialize(right).T if isinstance(right, Sketch) else right
    h = wide_dot(x, left)
    z = wide_dot(h, core)
    return wide_dot(z, right).astype(x.dtype), h.astype(x.dtype), z.astype(x.dtype)
