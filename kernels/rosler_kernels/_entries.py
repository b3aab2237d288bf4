"""Entries of a sketch inside a kernel: elementwise in whatever index arrays a back end holds.

A kernel cannot call a family's ``tile``: it must choose the layout of every array, hash once for 64
rows, and scale the accumulator, not the entries. So these functions take index arrays of any
mutually broadcastable shapes and return *unscaled* entries: signs, zeros, unit normals. They are
tested against ``tile``, which defines the entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from .hashing import domain_key, sin_cos_turns, threefry_2x32, uniform
from .sketches import family
from .sketches._base import SIGN_BLOCK, indices
from .sketches.srht import columns as hadamard_columns

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int32, UInt32

    from .hashing import Words
    from .sketches import Sketch

# Bit i of mask b is bit b of i: the Walsh functions of order 2^b over one word.
_WALSH_MASKS = (0xAAAAAAAA, 0xCCCCCCCC, 0xF0F0F0F0, 0xFF00FF00, 0xFFFF0000)


class Operands(NamedTuple):
    """What a kernel reads besides its matrix: O(rows + cols) numbers, made by XLA.

    Attributes:
      key: the family's domain key, two words in the first places of 32 bytes.
      columns: for SRHT the sampled Hadamard columns, else None.
      codes: for sparse families 2 column + (1 if the entry is negative), one line a nonzero, else
        None.
    """

    key: UInt32[Array, "8"]
    columns: UInt32[Array, "cols"] | None
    codes: Int32[Array, "nnz rows"] | None


def operands(sketch: Sketch) -> Operands:
    """What a kernel needs to regenerate a sketch of signs, normals or sparse signs."""
    of = family(sketch.kind)
    key = jnp.zeros((8,), jnp.uint32)
    if of.tag is not None:
        key = key.at[:2].set(jnp.stack(domain_key(sketch.seed, of.tag)))
    columns = codes = None
    if of.structure == "hadamard":
        columns = hadamard_columns(sketch, indices(0, sketch.cols))
    if of.pattern is not None:
        place, value = of.pattern(sketch, 0, sketch.rows)
        codes = (2 * place + (value < 0).astype(place.dtype)).astype(jnp.int32).T
    return Operands(key, columns, codes)


def scale(sketch: Sketch) -> np.float32:
    """What the unscaled entries are multiplied by."""
    made = family(sketch.kind).scale
    assert made is not None  # of every family that a kernel makes
    return made(sketch)


def sign_words(kind: str, key: Words, block: Array, column: Array) -> Words:
    """Signs of rows 64 block .. 64 block + 63 of a column as two words; a set bit is -1.

    Args:
      kind: "rademacher" or "srht".
      key: two uint32 scalars, ``operands(sketch).key[:2]``.
      block: uint32, index of the block of 64 rows.
      column: uint32; for "rademacher" the column, for "srht" its Hadamard column.

    Returns:
      Two uint32 arrays: rows 0 .. 31 and 32 .. 63 of the block.
    """
    if family(kind).structure != "hadamard":
        return threefry_2x32(key, (block, column))
    d0, d1 = threefry_2x32(key, (block, 0))
    walsh = column & np.uint32(0)
    for bit, mask in enumerate(_WALSH_MASKS):
        walsh = walsh ^ (_spread(column >> np.uint32(bit)) & np.uint32(mask))
    walsh = walsh ^ _spread(_parity(block & (column >> np.uint32(6))))
    return walsh ^ d0, walsh ^ _spread(column >> np.uint32(5)) ^ d1


def shift_words(low: Words, high: Words, rows: UInt32[Array, "..."]) -> Words:
    """Words of the 64 rows that begin ``rows`` (0 .. 63) after the block of ``low``.

    Args:
      low, high: words of two neighbouring blocks of 64 rows.
      rows: uint32, how far to move; of any shape that goes with the words.

    Returns:
      Two uint32 arrays, as ``sign_words`` gives them.
    """
    far, bits = rows >= np.uint32(32), rows & np.uint32(31)
    a = jnp.where(far, low[1], low[0])
    b = jnp.where(far, high[0], low[1])
    c = jnp.where(far, high[1], high[0])

    def join(first: Array, second: Array) -> Array:
        # Two shifts on the left: a shift by 32 is not defined.
        left = (second << np.uint32(1)) << (np.uint32(31) - bits)
        return (first >> bits) | left

    return join(a, b), join(b, c)


def sign(words: Words, row: Int32[Array, "..."]) -> Float[Array, "..."]:
    """The sign of row 0 .. 63 within the block that the words describe, float32."""
    word = jnp.where(row < np.int32(SIGN_BLOCK // 2), words[0], words[1])
    shift = (row & np.int32(31)).astype(jnp.uint32)
    bit = lax.shift_right_logical(word, shift) & np.uint32(1)
    return jnp.where(bit == np.uint32(0), np.float32(1.0), np.float32(-1.0))


def normal(key: Words, row: UInt32[Array, "..."], column: UInt32[Array, "..."]) -> Array:
    """The unit normal entry of (row, column), float32.

    Every entry hashes its own pair of words: neighbouring rows share theirs, but no back end can
    interleave rows cheaply. Even rows take the cosine, odd rows the sine.
    """
    w0, w1 = threefry_2x32(key, (row >> np.uint32(1), column))
    square = np.float32(-2.0) * jnp.log(uniform(w0) + np.float32(2.0**-24))
    # Mosaic GPU has no square root; log(1) = 0 must not meet an infinite reciprocal.
    radius = square * lax.rsqrt(jnp.maximum(square, np.float32(1e-30)))
    sine, cosine = sin_cos_turns(uniform(w1))
    return radius * jnp.where((row & np.uint32(1)) == np.uint32(0), cosine, sine)


def sparse(codes: list[Int32[Array, "..."]], column: Int32[Array, "..."]) -> Array:
    """Entries of rows whose nonzeros have those codes: +1, -1 or 0, float32."""
    twice = column * np.int32(2)
    out = None
    for code in codes:
        away = code - twice
        term = jnp.where(away == np.int32(0), np.float32(1.0), np.float32(0.0))
        term = jnp.where(away == np.int32(1), np.float32(-1.0), term)
        out = term if out is None else out + term  # distinct columns: at most one is not zero
    assert out is not None
    return out


def ceil_to(n: int, multiple: int) -> int:
    """The least multiple that is not below n."""
    return -(-n // multiple) * multiple


def _spread(word: Array) -> Array:
    """All ones where the lowest bit is set, else zero."""
    return np.uint32(0) - (word & np.uint32(1))


def _parity(word: Array) -> Array:
    for shift in (16, 8, 4, 2, 1):
        word = word ^ (word >> np.uint32(shift))
    return word & np.uint32(1)
