"""SRHT by a fast Walsh-Hadamard transform, whoever transforms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from ..sketches import family
from ..sketches._base import indices, inverse_sqrt
from ..sketches.srht import columns, order_bits, ranks, signs

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float

    from ..sketches import Sketch

    Transform = Callable[[Array], Array]

_AHEAD = 4


def by_transform(
    transpose: bool, x: Array, sketch: Sketch, transform: Transform, limit: int
) -> Array | None:
    """The projection by a kernel's transform, or None where tiles of Omega cost less.

    A transform of order 64 a takes 64 + a multiplications a number, tiles take cols; the transform
    also writes and reads all of the order once more, so that it has to be well ahead.

    Args:
      transpose: which of the two products.
      x: floating.
      sketch: any sketch.
      transform: x H along the last axis.
      limit: largest order it takes.
    """
    if family(sketch.kind).structure != "hadamard":
        return None
    order = 1 << order_bits(sketch.rows)
    if order > limit or sketch.cols <= _AHEAD * (64 + order // 64):
        return None
    # float16 would overflow between the transform and the scale.
    wide = x.astype(jnp.float32) if x.dtype == jnp.float16 else x
    sign = signs(sketch, 0, sketch.rows)
    if transpose:
        rank = jnp.minimum(ranks(sketch, indices(0, order)), jnp.uint32(sketch.cols))
        out = project_transpose(wide, sketch, sign, rank.astype(jnp.int32), transform)
    else:
        chosen = columns(sketch, indices(0, sketch.cols)).astype(jnp.int32)
        out = project(wide, sketch, sign, chosen, transform)
    return out.astype(x.dtype)


def project(
    x: Float[Array, "b rows"], sketch: Sketch, sign: Array, chosen: Array, transform: Transform
) -> Float[Array, "b cols"]:
    """x D H P / sqrt(cols).

    Args:
      x: floating.
      sketch: an SRHT.
      sign: the diagonal of D (rows,).
      chosen: the sampled columns (cols,), int32.
      transform: x H along the last axis.
    """
    order = 1 << order_bits(sketch.rows)
    x = jnp.pad(x * sign[None, :].astype(x.dtype), ((0, 0), (0, order - sketch.rows)))
    out = jnp.take(transform(x), chosen, axis=1, mode="clip")
    return out * inverse_sqrt(sketch.cols).astype(x.dtype)


def project_transpose(
    y: Float[Array, "b cols"], sketch: Sketch, sign: Array, rank: Array, transform: Transform
) -> Float[Array, "b rows"]:
    """y P^T H D / sqrt(cols).

    Args:
      y: floating.
      sketch: an SRHT.
      sign: the diagonal of D (rows,).
      rank: for each column of H its place among the sampled ones, cols where it is not (order,).
      transform: x H along the last axis.
    """
    y = jnp.pad(y, ((0, 0), (0, 1)))
    # A gather through the inverse bijection: XLA's scatter is serial on CPU.
    out = transform(jnp.take(y, rank, axis=1, mode="clip"))
    # The scale last: before, it would round every term of a narrow dtype.
    return out[:, : sketch.rows] * (sign[None, :] * inverse_sqrt(sketch.cols)).astype(y.dtype)
