"""The chain with every factor formed whole: what other implementations are tested against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ..products import accumulator
from ..sketches import Sketch, materialize

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def chain(
    x: Float[Array, "b m"], left: Array | Sketch, core: Float[Array, "s l"], right: Array | Sketch
) -> tuple[Array, Array, Array]:
    """(y, h, z) with h = x L, z = h U, y = z R, summed in float32 or wider."""
    left = materialize(left) if isinstance(left, Sketch) else left
    right = materialize(right).T if isinstance(right, Sketch) else right
    h = _dot(x, left)
    z = _dot(h, core)
    return _dot(z, right).astype(x.dtype), h.astype(x.dtype), z.astype(x.dtype)


def _dot(a: Array, b: Array) -> Array:
    wide = accumulator(a.dtype)
    return jnp.dot(a.astype(wide), b.astype(wide), precision=jax.lax.Precision.HIGHEST)
