"""Random sketches held as seeds, and products with them."""

from __future__ import annotations

from .projection import explain, project, project_transpose
from .selection import IMPLEMENTATIONS, Choice, assume_device, use_implementation
from .sketches import (
    FAMILIES,
    Family,
    Sketch,
    block_perm,
    family,
    gaussian,
    make,
    materialize,
    rademacher,
    rows_leverage,
    rows_norm,
    rows_uniform,
    sparse_sign,
    srht,
    tile,
)

__all__ = [
    "FAMILIES",
    "IMPLEMENTATIONS",
    "Choice",
    "Family",
    "Sketch",
    "assume_device",
    "block_perm",
    "explain",
    "family",
    "gaussian",
    "make",
    "materialize",
    "project",
    "project_transpose",
    "rademacher",
    "rows_leverage",
    "rows_norm",
    "rows_uniform",
    "sparse_sign",
    "srht",
    "tile",
    "use_implementation",
]
