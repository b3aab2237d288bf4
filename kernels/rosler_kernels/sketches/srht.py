"""SRHT: random signs, a Walsh-Hadamard transform, sampled columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ..hashing import Tag, bijection, bijection_inverse, domain_key
from ._base import (
    Family,
    Sketch,
    by_cols,
    check_range,
    indices,
    inverse_sqrt,
    new_sketch,
    sign_rows,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt32


def srht(seed: object, rows: int, cols: int) -> Sketch:
    """Omega = D H P / sqrt(cols): subsampled randomised Hadamard transform.

    D is a diagonal of random signs, H the Walsh-Hadamard matrix of order n2 = the least power of
    two >= rows (its first rows rows), H[i, c] = (-1)^popcount(i & c), and P keeps the distinct
    columns c_j = bijection(key, j, log2 n2), j < cols (Ailon and Chazelle, SIAM J. Comput. 39,
    2009; Tropp, Adv. Adapt. Data Anal. 3, 2011). The sign of row i is bit i % 64 of
    threefry_2x32(key', (i // 64, 0)), as for ``rademacher``.

    Args:
      seed: int, uint32[2] or JAX key.
      rows: dimension projected away.
      cols: embedding dimension, at most n2.

    Returns:
      Sketch.

    Raises:
      ValueError: a dimension or the seed is out of range.

    >>> srht(0, 784, 256).rows
    784
    """
    if rows >= 1:
        high = 1 << order_bits(rows)
        check_range("srht", "cols", cols, 1, high, f"at most {rows} rows padded to a power of two")
    return new_sketch("srht", seed, rows, cols)


def order_bits(rows: int) -> int:
    """log2 of the order of the Hadamard matrix."""
    return (rows - 1).bit_length()


def signs(sketch: Sketch, row_start: int | Array, n_rows: int) -> Float[Array, "n_rows"]:
    """The diagonal of D, those rows."""
    key = domain_key(sketch.seed, Tag.SRHT_SIGNS)
    return sign_rows(key, row_start, n_rows, jnp.zeros((1,), jnp.uint32))[:, 0]


def columns(sketch: Sketch, j: UInt32[Array, "n"]) -> UInt32[Array, "n"]:
    """The Hadamard columns c_j."""
    key = domain_key(sketch.seed, Tag.SRHT_COLUMNS)
    return bijection(key, j, order_bits(sketch.rows))


def ranks(sketch: Sketch, c: UInt32[Array, "n"]) -> UInt32[Array, "n"]:
    """The j with c_j = c; c was not sampled where it is >= cols."""
    key = domain_key(sketch.seed, Tag.SRHT_COLUMNS)
    return bijection_inverse(key, c, order_bits(sketch.rows))


def tile(
    sketch: Sketch, row_start: int | Array, n_rows: int, col_start: int | Array, n_cols: int
) -> Float[Array, "n_rows n_cols"]:
    """That tile of Omega, float32."""
    c = columns(sketch, indices(col_start, n_cols))
    parity = jax.lax.population_count(indices(row_start, n_rows)[:, None] & c[None, :]) & 1
    walsh = (1 - 2 * parity.astype(jnp.int32)).astype(jnp.float32)
    return walsh * signs(sketch, row_start, n_rows)[:, None] * inverse_sqrt(sketch.cols)


FAMILY = Family(
    srht, tile, "hadamard", scale=by_cols, signed=True, generator="signs", tag=Tag.SRHT_SIGNS,
    c_name="srht", nested=True,
)  # fmt: skip
