"""The table of families, and what works for every one of them."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ._base import only_live
from .block_perm import FAMILY as BLOCK_PERM
from .dct import FAMILY as DCT
from .gaussian import FAMILY as GAUSSIAN
from .pool import FAMILY as POOL
from .rademacher import FAMILY as RADEMACHER
from .rows import LEVERAGE, NORM, UNIFORM
from .sparse_sign import FAMILY as SPARSE_SIGN
from .srht import FAMILY as SRHT

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ._base import Family, Sketch


FAMILIES: dict[str, Family] = {
    "gaussian": GAUSSIAN,
    "rademacher": RADEMACHER,
    "sparse_sign": SPARSE_SIGN,
    "block_perm": BLOCK_PERM,
    "srht": SRHT,
    "rows_uniform": UNIFORM,
    "rows_norm": NORM,
    "rows_leverage": LEVERAGE,
    "dct": DCT,
    "pool": POOL,
}


def family(kind: str) -> Family:
    """The family of that name.

    Raises:
      ValueError: there is none.

    >>> family("srht").structure
    'hadamard'
    """
    if kind not in FAMILIES:
        raise ValueError(f"unknown sketch kind {kind!r}; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def make(kind: str, seed: object, rows: int, cols: int, **options: Any) -> Sketch:
    """A sketch by the name of its family.

    Args:
      kind: a key of ``FAMILIES``.
      seed: int, uint32[2] or JAX key; of uint32[3] the last word says how many columns are live:
        the matrix is that of so many columns, with zeros behind.
      rows: dimension projected away.
      cols: embedding dimension.
      **options: the family's own (nnz, blocks, kappa; height, width for dct, pool; w, of shape
        (rows, k), for rows_norm and rows_leverage).

    Returns:
      Sketch.

    Raises:
      ValueError: unknown kind, missing w, an argument out of range, or live columns of a family
        whose columns depend on how many there are.

    >>> make("sparse_sign", 0, 100, 16, nnz=2).params
    (('nnz', 2),)
    """
    chosen = family(kind)
    if getattr(seed, "shape", None) == (3,):
        if not chosen.nested:
            nested = ", ".join(name for name, row in FAMILIES.items() if row.nested)
            raise ValueError(f"{kind}: its columns depend on how many there are; use {nested}")
        words = jnp.asarray(seed, jnp.uint32)
        sketch = make(kind, words[:2], rows, cols, **options)
        return dataclasses.replace(sketch, live=words[2])
    if not chosen.weighted:
        return chosen.make(seed, rows, cols, **options)
    if "w" not in options:
        raise ValueError(f"{kind} samples the rows of a matrix; pass w of shape ({rows}, k)")
    w = options.pop("w")
    if w.ndim != 2 or w.shape[0] != rows:
        raise ValueError(f"{kind}: w has shape {w.shape}; expected ({rows}, k)")
    return chosen.make(seed, w, cols, **options)


def tile(
    sketch: Sketch,
    row_start: int | Array,
    n_rows: int,
    col_start: int | Array = 0,
    n_cols: int | None = None,
) -> Float[Array, "n_rows n_cols"]:
    """Omega[row_start : row_start + n_rows, col_start : col_start + n_cols], nothing else formed.

    Bit-equal to that slice of ``materialize(sketch)``.

    Args:
      sketch: any sketch.
      row_start: first row; may be traced, and is then not checked.
      n_rows: number of rows.
      col_start: first column; may be traced, and is then not checked.
      n_cols: number of columns; by default up to the last (col_start must then be an int).

    Returns:
      float32 array of shape (n_rows, n_cols).

    Raises:
      ValueError: the tile does not lie within the sketch.

    >>> from rosler_kernels import rademacher
    >>> tile(rademacher(0, 2**31 - 1, 512), 2**31 - 65, 64, 8, 4).shape
    (64, 4)
    """
    if n_cols is None:
        if not isinstance(col_start, int):
            raise ValueError("tile: pass n_cols where col_start is traced")
        n_cols = sketch.cols - col_start
    for name, start, size, limit in (
        ("rows", row_start, n_rows, sketch.rows),
        ("columns", col_start, n_cols, sketch.cols),
    ):
        first = start if isinstance(start, int) else 0
        if size < 1 or first < 0 or first + size > limit:
            raise ValueError(f"tile: {name} {first} to {first + size - 1} of {limit}; stay within")
    static = {"n_rows": n_rows, "n_cols": n_cols}
    return _tile(sketch, row_start, col_start=col_start, **static)


@functools.partial(jax.jit, static_argnames=("n_rows", "n_cols"))
def _tile(
    sketch: Sketch, row_start: int | Array, *, n_rows: int, col_start: int | Array, n_cols: int
) -> Array:
    whole = family(sketch.kind).tile(sketch, row_start, n_rows, col_start, n_cols)
    return only_live(whole, sketch, col_start)


@functools.partial(jax.jit, static_argnames=("dtype",))
def materialize(sketch: Sketch, dtype: Any = jnp.float32) -> Float[Array, "rows cols"]:
    """The whole of Omega: for tests and small sizes.

    Args:
      sketch: any sketch.
      dtype: of the result; entries are made in float32 and rounded.

    Returns:
      array of shape (rows, cols).

    >>> from rosler_kernels import srht
    >>> omega = materialize(srht(0, 8, 8))
    >>> bool(abs(omega @ omega.T - jnp.eye(8)).max() < 1e-6)
    True
    """
    whole = family(sketch.kind).tile(sketch, 0, sketch.rows, 0, sketch.cols)
    return only_live(whole, sketch).astype(dtype)
