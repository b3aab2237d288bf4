"""Sketches: matrices that are a seed and a shape, or a shape alone; one file a family."""

from __future__ import annotations

from ._base import Family, Sketch
from ._table import FAMILIES, family, make, materialize, tile
from .block_perm import block_perm
from .dct import dct
from .gaussian import gaussian
from .pool import pool
from .rademacher import rademacher
from .rows import rows_leverage, rows_norm, rows_uniform
from .sparse_sign import sparse_sign
from .srht import srht

__all__ = [
    "FAMILIES",
    "Family",
    "Sketch",
    "block_perm",
    "dct",
    "family",
    "gaussian",
    "make",
    "materialize",
    "pool",
    "rademacher",
    "rows_leverage",
    "rows_norm",
    "rows_uniform",
    "sparse_sign",
    "srht",
    "tile",
]
