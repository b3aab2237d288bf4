"""How weights lie in flash: words of 32 bits, rows in blocks of four.

A word holds 2, 4 or 8 weights that follow each other in a row. The words of four rows are
interleaved, so that a core loads four of them at once and uses each input four times; the last
``n % 4`` rows lie one by one. Within a word the order is the one that SXTB16 or a mask turns into
pairs: bytes 0, 2, 1, 3 and nibbles 0, 2, 4, 6, 1, 3, 5, 7, lowest first; nibbles hold w + 8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Integer, UInt32

PER_WORD = {16: 2, 8: 4, 4: 8}
"""Weights in a word, by their bits."""
_ORDER = {16: (0, 1), 8: (0, 2, 1, 3), 4: (0, 2, 4, 6, 1, 3, 5, 7)}
_OFFSET = {16: 0, 8: 0, 4: 8}


def pack_rows(rows: Integer[np.ndarray, "n m"], bits: int) -> UInt32[np.ndarray, "words"]:
    """Packs the rows of a weight.

    Args:
      rows: signed integers of at most so many bits, one row an output.
      bits: 16, 8 or 4.

    Returns:
      The words; a row's last word is filled up with zero weights.

    Example:
      >>> [hex(word) for word in pack_rows(np.array([[1, 2, 3, 4, -1]]), 8)]
      ['0x4020301', '0xff']
    """
    n, m = rows.shape
    unit = PER_WORD[bits]
    padded = np.zeros((n, -(-m // unit) * unit), np.int64)
    padded[:, :m] = rows
    groups = padded.reshape(n, -1, unit)[:, :, list(_ORDER[bits])] + _OFFSET[bits]
    fields = groups.astype(np.uint64) & np.uint64(2**bits - 1)
    shifts = np.arange(unit, dtype=np.uint64) * np.uint64(bits)
    words = np.bitwise_or.reduce(fields << shifts, axis=2).astype(np.uint32)
    blocked = n - n % 4
    width = words.shape[1]
    interleaved = words[:blocked].reshape(blocked // 4, 4, width).transpose(0, 2, 1)
    return np.concatenate([interleaved.ravel(), words[blocked:].ravel()])
