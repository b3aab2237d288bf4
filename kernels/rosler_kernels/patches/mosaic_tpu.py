"""Patch projection by the Mosaic TPU projection kernels: an implicit matrix product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..projection import mosaic_tpu as kernels
from . import _shifted

if TYPE_CHECKING:
    from jaxtyping import Array

    from ..sketches import Sketch
    from ._geometry import Geometry

Blocks = getattr(kernels, "Blocks", None)
unsupported = kernels.unsupported


def project(x: Array, sketch: Sketch, geometry: Geometry, **options: Any) -> Array:
    """(b, *spatial, c) -> (b, *out, cols)."""
    return _shifted.project(kernels, x, sketch, geometry, **options)


def project_transpose(
    y: Array, sketch: Sketch, geometry: Geometry, spatial: tuple[int, ...], **options: Any
) -> Array:
    """(b, *out, cols) -> (b, *spatial, c): the adjoint of ``project``."""
    return _shifted.project_transpose(kernels, y, sketch, geometry, spatial, **options)
