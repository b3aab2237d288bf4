"""Sparse sign sketch (OSNAP, block construction): a few signs a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from ..hashing import Tag, bounded, domain_key, threefry_2x32
from ._base import Family, Sketch, block_boundary, check_range, indices, inverse_sqrt, new_sketch
from ._sparse import Pattern, dense_tile

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def sparse_sign(seed: object, rows: int, cols: int, nnz: int | None = None) -> Sketch:
    """Omega with nnz entries +-1/sqrt(nnz) in each row, one in each of nnz blocks of columns.

    OSNAP's block construction (Nelson and Nguyen, FOCS 2013; Kane and Nelson, J. ACM 61, 2014).
    Block t holds the columns from floor(t cols / nnz) to floor((t + 1) cols / nnz) - 1. With (w0,
    w1) = threefry_2x32(key, (row, t)) the entry lies at the block's column bounded(w0, size of
    block) and is negative when bit 0 of w1 is set. nnz = 1 is CountSketch.

    Args:
      seed: int, uint32[2] or JAX key.
      rows: dimension projected away.
      cols: embedding dimension.
      nnz: nonzeros a row, 1 to cols; by default min(4, cols).

    Returns:
      Sketch.

    Raises:
      ValueError: a dimension, nnz or the seed is out of range.

    >>> sparse_sign(0, 100, 16, nnz=2).param("nnz")
    2
    """
    nnz = min(4, cols) if nnz is None else nnz
    check_range("sparse_sign", "nnz", nnz, 1, cols, "no more nonzeros a row than cols")
    return new_sketch("sparse_sign", seed, rows, cols, nnz=nnz)


def pattern(sketch: Sketch, row_start: int | Array, n_rows: int) -> Pattern:
    """The nonzeros of those rows."""
    nnz = sketch.param("nnz")
    t = jnp.arange(nnz, dtype=jnp.uint32)[None, :]
    key = domain_key(sketch.seed, Tag.SPARSE_SIGN)
    w0, w1 = threefry_2x32(key, (indices(row_start, n_rows)[:, None], t))
    low, high = (block_boundary(i, sketch.cols, nnz) for i in (t, t + 1))
    columns = low + bounded(w0, high - low)
    signs = 1 - 2 * (w1 & jnp.uint32(1)).astype(jnp.int32)
    return Pattern(columns.astype(jnp.int32), signs.astype(jnp.float32) * inverse_sqrt(nnz))


def tile(
    sketch: Sketch, row_start: int | Array, n_rows: int, col_start: int | Array, n_cols: int
) -> Float[Array, "n_rows n_cols"]:
    """That tile of Omega, float32."""
    return dense_tile(pattern(sketch, row_start, n_rows), col_start, n_cols)


FAMILY = Family(
    sparse_sign, tile, "sparse", pattern, signed=True, generator="sparse", c_name="sparse_sign",
    scale=lambda sketch: inverse_sqrt(sketch.param("nnz")),
)  # fmt: skip
