"""X Omega and Y Omega^T with Omega formed whole: what other implementations are tested against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..products import wide_dot
from ..sketches import materialize

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ..sketches import Sketch


def project(x: Float[Array, "b rows"], sketch: Sketch) -> Float[Array, "b cols"]:
    """x Omega."""
    return wide_dot(x, materialize(sketch)).astype(x.dtype)


def project_transpose(y: Float[Array, "b cols"], sketch: Sketch) -> Float[Array, "b rows"]:
    """y Omega^T."""
    return wide_dot(y, materialize(sketch).T).astype(y.dtype)
