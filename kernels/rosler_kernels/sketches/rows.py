"""Row sampling with replacement: uniform, or weighted by norms or leverage scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from ..factorizations import qr
from ..hashing import Tag, as_seed, bounded, domain_key, threefry_2x32, uniform
from ..products import accumulator
from ._base import Family, Sketch, indices, new_sketch

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int32


def rows_uniform(seed: object, rows: int, cols: int) -> Sketch:
    """Omega whose column j is e_i sqrt(rows/cols), i uniform.

    i = bounded(w0, rows) with (w0, w1) = threefry_2x32(key, (0, j)).

    Args:
      seed: int, uint32[2] or JAX key.
      rows: dimension projected away.
      cols: number of samples, drawn with replacement.

    Returns:
      Sketch.

    Raises:
      ValueError: a dimension or the seed is out of range.

    >>> rows_uniform(0, 100, 8).data is None
    True
    """
    return new_sketch("rows_uniform", seed, rows, cols)


def rows_norm(seed: object, w: Float[Array, "rows k"], cols: int) -> Sketch:
    """Omega whose column j is e_i / sqrt(cols p_i), i drawn with p_i ~ ||w_i||^2.

    E[Omega Omega^T] = I on the rows of w that are not zero (Drineas, Kannan and Mahoney, SIAM J.
    Comput. 36, 2006). Indices and scales depend on w and are held as data; no gradient passes
    through them.

    Args:
      seed: int, uint32[2] or JAX key.
      w: the matrix whose rows are sampled, floating.
      cols: number of samples, drawn with replacement.

    Returns:
      Sketch with data {"indices": int32 (cols,), "scales": float32 (cols,)}.

    Raises:
      ValueError: w is not a matrix, or a dimension or the seed is out of range.

    >>> rows_norm(0, jnp.eye(4)[:, :2], 8).data["indices"].max() < 2
    Array(True, dtype=bool)
    """
    w = _matrix("rows_norm", w)
    return _weighted("rows_norm", seed, jnp.sum(jnp.square(w), axis=1), cols)


def rows_leverage(seed: object, w: Float[Array, "rows k"], cols: int) -> Sketch:
    """Omega whose column j is e_i / sqrt(cols p_i), i drawn with p_i ~ the leverage score of row i.

    The score is ||Q_i||^2 for w = Q R (Drineas, Mahoney and Muthukrishnan, SIAM J. Matrix Anal.
    Appl. 30, 2008). With k >= rows all scores are 1 and the sampling is uniform.

    Args:
      seed: int, uint32[2] or JAX key.
      w: the matrix whose rows are sampled, floating, of full column rank.
      cols: number of samples, drawn with replacement.

    Returns:
      Sketch with data {"indices": int32 (cols,), "scales": float32 (cols,)}.

    Raises:
      ValueError: w is not a matrix, or a dimension or the seed is out of range.

    >>> rows_leverage(0, jnp.ones((100, 1)), 8).rows
    100
    """
    q, _ = qr(_matrix("rows_leverage", w))
    return _weighted("rows_leverage", seed, jnp.sum(jnp.square(q), axis=1), cols)


def samples(sketch: Sketch) -> tuple[Int32[Array, "cols"], Float[Array, "cols"]]:
    """Row index and scale of every column."""
    if sketch.data is not None:
        return sketch.data["indices"], sketch.data["scales"]
    key = domain_key(sketch.seed, Tag.ROWS_UNIFORM)
    w0, _ = threefry_2x32(key, (0, jnp.arange(sketch.cols, dtype=jnp.uint32)))
    scales = jnp.full((sketch.cols,), _scale(sketch))
    return bounded(w0, sketch.rows).astype(jnp.int32), scales


def _scale(sketch: Sketch) -> np.float32:
    """Of every sampled row, where all are as likely."""
    return np.float32(np.sqrt(sketch.rows / sketch.cols))


def tile(
    sketch: Sketch, row_start: int | Array, n_rows: int, col_start: int | Array, n_cols: int
) -> Float[Array, "n_rows n_cols"]:
    """That tile of Omega, float32."""
    index, scale = (jax.lax.dynamic_slice_in_dim(a, col_start, n_cols) for a in samples(sketch))
    rows = indices(row_start, n_rows).astype(jnp.int32)
    return jnp.where(rows[:, None] == index[None, :], scale[None, :], np.float32(0.0))


def _matrix(kind: str, w: Array) -> Float[Array, "rows k"]:
    w = jnp.asarray(w)
    if w.ndim != 2:
        raise ValueError(f"{kind}: w has shape {w.shape}; expected a matrix (rows, k)")
    return jax.lax.stop_gradient(w.astype(accumulator(w.dtype)))


def _weighted(kind: str, seed: object, weights: Float[Array, "rows"], cols: int) -> Sketch:
    weights = weights.astype(jnp.float32)
    cumulative = jnp.cumsum(weights)
    key = domain_key(as_seed(seed), Tag.ROWS_WEIGHTED)
    w0, _ = threefry_2x32(key, (0, jnp.arange(cols, dtype=jnp.uint32)))
    # uniform() < 1 - 2^-25, so that the product stays below the total, and side="right" skips rows
    # of no weight.
    index = jnp.searchsorted(cumulative, uniform(w0) * cumulative[-1], side="right")
    scales = jnp.sqrt(cumulative[-1] / (weights[index] * cols))
    data = {"indices": index.astype(jnp.int32), "scales": scales}
    return new_sketch(kind, seed, weights.shape[0], cols, data)


UNIFORM = Family(rows_uniform, tile, "rows", scale=_scale, signed=True, c_name="rows", nested=True)
NORM = Family(rows_norm, tile, "rows", weighted=True)
LEVERAGE = Family(rows_leverage, tile, "rows", weighted=True)
