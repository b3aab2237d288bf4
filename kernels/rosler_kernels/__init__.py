"""Random sketches held as seeds, and products with them."""

from __future__ import annotations

from .chain.api import Parallel, sketch_matmul
from .factorizations import lstsq, qr, solve_triangular, svd
from .hadamard.api import hadamard_transform
from .patches.api import project_patches
from .products import accumulator, outer
from .projection.api import explain, project, project_transpose
from .selection import IMPLEMENTATIONS, Choice, assume_device, use_implementation
from .sharding import automatically, by_example
from .sketches import (
    FAMILIES,
    Family,
    Sketch,
    block_perm,
    dct,
    family,
    gaussian,
    make,
    materialize,
    pool,
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
    "Parallel",
    "Sketch",
    "accumulator",
    "assume_device",
    "automatically",
    "block_perm",
    "by_example",
    "dct",
    "explain",
    "family",
    "gaussian",
    "hadamard_transform",
    "lstsq",
    "make",
    "materialize",
    "outer",
    "pool",
    "project",
    "project_patches",
    "project_transpose",
    "qr",
    "rademacher",
    "rows_leverage",
    "rows_norm",
    "rows_uniform",
    "sketch_matmul",
    "solve_triangular",
    "sparse_sign",
    "srht",
    "svd",
    "tile",
    "use_implementation",
]
