"""Rademacher sketch: independent signs, 64 from one hash."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..hashing import Tag, domain_key
from ._base import Family, Sketch, by_cols, indices, inverse_sqrt, new_sketch, sign_rows

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def rademacher(seed: object, rows: int, cols: int) -> Sketch:
    """Omega with independent entries +-1/sqrt(cols) (Achlioptas, J. Comput. Syst. Sci. 66, 2003).

    The signs of rows 64 k .. 64 k + 63 of a column are the 64 bits of threefry_2x32(key, (k,
    column)); a set bit is -1.

    Args:
      seed: int, uint32[2] or JAX key.
      rows: dimension projected away.
      cols: embedding dimension.

    Returns:
      Sketch.

    Raises:
      ValueError: a dimension or the seed is out of range.

    >>> rademacher(0, 100, 8).cols
    8
    """
    return new_sketch("rademacher", seed, rows, cols)


def tile(
    sketch: Sketch, row_start: int | Array, n_rows: int, col_start: int | Array, n_cols: int
) -> Float[Array, "n_rows n_cols"]:
    """That tile of Omega, float32."""
    key = domain_key(sketch.seed, Tag.RADEMACHER)
    signs = sign_rows(key, row_start, n_rows, indices(col_start, n_cols))
    return signs * inverse_sqrt(sketch.cols)


FAMILY = Family(
    rademacher, tile, "dense", scale=by_cols, signed=True, generator="signs", tag=Tag.RADEMACHER,
    c_name="rademacher", nested=True,
)  # fmt: skip
