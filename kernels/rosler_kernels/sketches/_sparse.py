"""What sparse families share: from a pattern (columns and values of each row) to a tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int32


class Pattern(NamedTuple):
    """The nonzeros of some rows of a sparse sketch: k distinct columns a row."""

    columns: Int32[Array, "n k"]
    values: Float[Array, "n k"]


def dense_tile(pattern: Pattern, col_start: int | Array, n_cols: int) -> Float[Array, "n n_cols"]:
    """The rows of a pattern as a dense tile, float32."""
    columns = jnp.asarray(col_start, jnp.int32) + jnp.arange(n_cols, dtype=jnp.int32)
    out = jnp.zeros((pattern.columns.shape[0], n_cols), jnp.float32)
    # At most one of these terms is not zero, so that their order does not matter.
    for t in range(pattern.columns.shape[1]):
        hit = pattern.columns[:, t, None] == columns[None, :]
        out = jnp.where(hit, pattern.values[:, t, None], out)
    return out
