"""X Omega and Y Omega^T with Omega formed whole: what other implementations are tested against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ..products import accumulator
from ..sketches import materialize

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ..sketches import Sketch


def project(x: Float[Array, "b rows"], sketch: Sketch) -> Float[Array, "b cols"]:
    """x Omega."""
    return _dot(x, materialize(sketch))


def project_transpose(y: Float[Array, "b cols"], sketch: Sketch) -> Float[Array, "b rows"]:
    """y Omega^T."""
    return _dot(y, materialize(sketch).T)


def _dot(x: Array, omega: Array) -> Array:
    wide = accumulator(x.dtype)
    out = jnp.dot(x.astype(wide), omega.astype(wide), precision=jax.lax.Precision.HIGHEST)
    return out.astype(x.dtype)
