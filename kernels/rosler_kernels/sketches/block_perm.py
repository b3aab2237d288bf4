"""BlockPerm-SJLT: a sparse sign sketch whose blocks are wired by permutations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from ..hashing import Tag, bijection, bounded, domain_key, threefry_2x32
from ._base import Family, Sketch, block_boundary, check_range, indices, inverse_sqrt, new_sketch
from ._sparse import Pattern, dense_tile

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt32


def block_perm(
    seed: object,
    rows: int,
    cols: int,
    blocks: int | None = None,
    kappa: int | None = None,
    nnz: int | None = None,
) -> Sketch:
    """Omega of blocks x blocks blocks, kappa of them nonzero in each block row and column.

    After BlockPerm-SJLT (Dwaraknath, Kim and Pilanci, arXiv 2602.06071, 2026). Rows and columns are
    cut into equally many blocks, block b from floor(b n / blocks). Row block g meets column blocks

        pi_l(g) = out((in(g) + shift(l)) mod blocks),   l = 0 .. kappa - 1,

    where in, out and shift are keyed bijections of 0 .. blocks - 1: since the shifts are distinct,
    the kappa permutations share no edge. In each of its kappa column blocks a row has nnz entries
    +-1/sqrt(kappa nnz), placed as in ``sparse_sign`` with the counter (row, l nnz + t).

    Args:
      seed: int, uint32[2] or JAX key.
      rows: dimension projected away.
      cols: embedding dimension.
      blocks: a power of two, at most min(rows, cols); by default the largest that leaves 32 columns
        a block.
      kappa: column blocks met by a row, 1 to blocks; by default min(4, blocks).
      nnz: nonzeros in each, 1 to floor(cols / blocks); by default min(2, cols // blocks).

    Returns:
      Sketch.

    Raises:
      ValueError: a dimension, parameter or the seed is out of range.

    >>> dict(block_perm(0, 1024, 256).params)
    {'blocks': 8, 'kappa': 4, 'nnz': 2}
    """
    smaller = min(rows, cols)
    if blocks is None:
        blocks = 1 << max(0, min(cols // 32, rows).bit_length() - 1)
    check_range("block_perm", "blocks", blocks, 1, smaller, "at most min(rows, cols)")
    if blocks & (blocks - 1):
        raise ValueError(f"block_perm: blocks={blocks}; expected a power of two")
    kappa = min(4, blocks) if kappa is None else kappa
    check_range("block_perm", "kappa", kappa, 1, blocks, "no more than blocks")
    width = cols // blocks
    nnz = min(2, width) if nnz is None else nnz
    check_range("block_perm", "nnz", nnz, 1, width, "at most the cols // blocks columns of a block")
    return new_sketch("block_perm", seed, rows, cols, blocks=blocks, kappa=kappa, nnz=nnz)


def wiring(sketch: Sketch, row_blocks: UInt32[Array, "n"]) -> UInt32[Array, "n kappa"]:
    """The column blocks pi_l(g) that each row block meets."""
    blocks, kappa = sketch.param("blocks"), sketch.param("kappa")
    bits = blocks.bit_length() - 1
    inner, outer, shift = (
        domain_key(sketch.seed, tag)
        for tag in (Tag.BLOCK_PERM_INPUT, Tag.BLOCK_PERM_OUTPUT, Tag.BLOCK_PERM_SHIFT)
    )
    shifts = bijection(shift, jnp.arange(kappa, dtype=jnp.uint32), bits)
    moved = bijection(inner, row_blocks, bits)[:, None] + shifts[None, :]
    return bijection(outer, moved & jnp.uint32(blocks - 1), bits)


def row_block(sketch: Sketch, rows: UInt32[Array, "n"]) -> UInt32[Array, "n"]:
    """The block that holds each row: the greatest b with floor(b m / blocks) <= row."""
    blocks = sketch.param("blocks")
    starts = block_boundary(jnp.arange(blocks, dtype=jnp.uint32), sketch.rows, blocks)
    return (jnp.searchsorted(starts, rows, side="right") - 1).astype(jnp.uint32)


def pattern(sketch: Sketch, row_start: int | Array, n_rows: int) -> Pattern:
    """The nonzeros of those rows."""
    blocks, kappa, nnz = (sketch.param(name) for name in ("blocks", "kappa", "nnz"))
    rows = indices(row_start, n_rows)
    block = jnp.repeat(wiring(sketch, row_block(sketch, rows)), nnz, axis=1)
    k = jnp.arange(kappa * nnz, dtype=jnp.uint32)
    w0, w1 = threefry_2x32(
        domain_key(sketch.seed, Tag.BLOCK_PERM_ENTRIES), (rows[:, None], k[None, :])
    )
    start, stop = (block_boundary(b, sketch.cols, blocks) for b in (block, block + 1))
    t, width = (k % jnp.uint32(nnz))[None, :], stop - start
    low, high = t * width // jnp.uint32(nnz), (t + 1) * width // jnp.uint32(nnz)
    columns = start + low + bounded(w0, high - low)
    signs = 1 - 2 * (w1 & jnp.uint32(1)).astype(jnp.int32)
    values = signs.astype(jnp.float32) * inverse_sqrt(kappa * nnz)
    return Pattern(columns.astype(jnp.int32), values)


def tile(
    sketch: Sketch, row_start: int | Array, n_rows: int, col_start: int | Array, n_cols: int
) -> Float[Array, "n_rows n_cols"]:
    """That tile of Omega, float32."""
    return dense_tile(pattern(sketch, row_start, n_rows), col_start, n_cols)


FAMILY = Family(
    block_perm, tile, "sparse", pattern, signed=True, generator="sparse", c_name="block_perm",
    scale=lambda sketch: inverse_sqrt(sketch.param("kappa") * sketch.param("nnz")),
)  # fmt: skip
