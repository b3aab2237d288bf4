"""Gaussian sketch: independent normal entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from ..hashing import Tag, domain_key, sin_cos_turns, threefry_2x32, uniform
from ._base import Family, Sketch, aligned_rows, by_cols, indices, inverse_sqrt, new_sketch

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def gaussian(seed: object, rows: int, cols: int) -> Sketch:
    """Omega with independent N(0, 1/cols) entries.

    With (w0, w1) = threefry_2x32(key, (row // 2, column)), u = (floor(w0 / 2^8) + 1) / 2^24 and v =
    floor(w1 / 2^8) / 2^24 (Box and Muller, Ann. Math. Stat. 29, 1958): entries 2k and 2k + 1 of a
    column are sqrt(-2 log u) cos(2 pi v) and sqrt(-2 log u) sin(2 pi v), over sqrt(cols). So
    |entry| sqrt(cols) < 5.8. The words are the same on every platform, the entries to the last
    places of log, cos and sin.

    Args:
      seed: int, uint32[2] or JAX key.
      rows: dimension projected away.
      cols: embedding dimension.

    Returns:
      Sketch.

    Raises:
      ValueError: a dimension or the seed is out of range.

    >>> gaussian(0, 100, 8).kind
    'gaussian'
    """
    return new_sketch("gaussian", seed, rows, cols)


def tile(
    sketch: Sketch, row_start: int | Array, n_rows: int, col_start: int | Array, n_cols: int
) -> Float[Array, "n_rows n_cols"]:
    """That tile of Omega, float32."""
    key = domain_key(sketch.seed, Tag.GAUSSIAN)
    columns = indices(col_start, n_cols)

    def generate(first: int | Array, n_pairs: int) -> Array:
        w0, w1 = threefry_2x32(key, (indices(first, n_pairs)[:, None], columns[None, :]))
        radius = jnp.sqrt(-2.0 * jnp.log(uniform(w0) + np.float32(2.0**-24)))
        radius = radius * inverse_sqrt(sketch.cols)
        sine, cosine = sin_cos_turns(uniform(w1))
        # Not stacked: XLA would write the hash out again for every use, see sign_rows.
        second = jnp.arange(2)[:, None] == 1
        pairs = radius[:, None, :] * jnp.where(second, sine[:, None, :], cosine[:, None, :])
        return pairs.reshape(2 * n_pairs, n_cols)

    return aligned_rows(generate, 2, row_start, n_rows)


FAMILY = Family(
    gaussian, tile, "dense", scale=by_cols, generator="normal", tag=Tag.GAUSSIAN, nested=True
)
