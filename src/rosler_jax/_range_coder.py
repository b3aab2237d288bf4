"""Yes-or-no decisions as a stream of bytes: a binary range coder whose probabilities adapt.

Integers alone, so that every platform reads the same decisions. Each decision has a context. A
context's counter is p, the probability of yes in 1/65536 (at first 32768), and n (at first 2).
After a decision p += (65535 - p) / n for yes, p -= p / n for no, the quotients rounded down; then
n += 1 up to 129: a mean at first, and then one that forgets.

The coder has a width, at first 2^32 - 1. A decision cuts it at (width >> 16) * p: below lies yes.
Width below 2^24 grows by 256 times while a byte is written or read. The reader has the number
``code``, at first the stream's first four bytes, highest first. In C::

    uint32_t cut = (width >> 16) * p;
    int yes = code < cut;
    if (yes) width = cut; else { code -= cut; width -= cut; }
    while (width < 1u << 24) { code = code << 8 | next_byte(); width <<= 8; }

The writer ends with the fewest bytes (0 to 4) that lead into its last interval when zeros follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

_HALF: Final = 1 << 15
_ONE: Final = (1 << 16) - 1
_FIRST, _LAST = 2, 129  # of a counter's n
_WORD: Final = (1 << 32) - 1
_SMALLEST: Final = 1 << 24


def write(parts: Iterable[tuple[Sequence[int], Sequence[int]]], contexts: int) -> bytes:
    """The stream of decisions; at each part all counters start anew.

    Args:
        parts: of each, the decisions' contexts (0 to ``contexts`` - 1) and what was decided (0, 1).
        contexts: how many there are.

    Returns:
        The stream.

    Example:
        >>> write([([0, 1] * 500, [0, 1] * 500)], 2).hex()
        'a2db'
    """
    out, low, width = bytearray(), 0, _WORD
    for which, bits in parts:
        p, n = [_HALF] * contexts, [_FIRST] * contexts
        for k, bit in zip(which, bits, strict=True):
            cut = (width >> 16) * p[k]
            if bit:
                width = cut
                p[k] += (_ONE - p[k]) // n[k]
            else:
                low += cut
                width -= cut
                p[k] -= p[k] // n[k]
            if n[k] < _LAST:
                n[k] += 1
            while width < _SMALLEST:
                low = _put(out, low) << 8 & _WORD
                width <<= 8
    end, count = _ending(low, width)
    for _ in range(count):
        end = _put(out, end) << 8 & _WORD
    if end > _WORD:
        _put(out, end)
        out.pop()
    return bytes(out)


def _ending(low: int, width: int) -> tuple[int, int]:
    """The number of fewest bytes (highest first, zeros follow) in an interval, and how many."""
    for count in range(5):
        rest = _WORD >> 8 * count
        end = (low + rest) & ~rest
        if end < low + width:
            break
    return end, count


def _put(out: bytearray, low: int) -> int:
    """Appends the highest byte of 32 bits, and adds to the bytes before it what is beyond."""
    if low > _WORD:
        k = len(out) - 1
        while out[k] == 255:
            out[k] = 0
            k -= 1
        out[k] += 1
    out.append(low >> 24 & 255)
    return low & _WORD


def _after_first_four(data: bytes | memoryview) -> Iterator[int]:
    """The stream goes on as zeros, at most four of all that are read: time is bounded, too."""
    yield from data[4:]
    yield from bytes(min(len(data), 4))
    raise ValueError(f"{len(data)} coded bytes end before their decisions do")


class Reader(NamedTuple):
    """Reads a stream.

    Attributes:
        bit: of a context, what was decided. Raises ValueError beyond the end.
        restart: begins a part.
        bits: that have been read, as a measure of information.
        finish: raises ValueError for any stream but the one that is written of these decisions.
    """

    bit: Callable[[int], bool]
    restart: Callable[[], None]
    bits: Callable[[], float]
    finish: Callable[[], None]


def read(data: bytes | memoryview, contexts: int) -> Reader:
    """A reader of what :func:`write` wrote.

    Args:
        data: the stream.
        contexts: how many there are.

    Returns:
        The reader; it is in the first part.

    Raises:
        ValueError: the stream begins as none does.

    Example:
        >>> reader = read(write([([0, 1, 0], [1, 0, 1])], 2), 2)
        >>> [reader.bit(k) for k in (0, 1, 0)], reader.finish()
        ([True, False, True], None)
    """
    p, n = [_HALF] * contexts, [_FIRST] * contexts
    code, width, shifts = int.from_bytes(bytes(data[:4]).ljust(4, b"\0"), "big"), _WORD, 0
    rest = _after_first_four(data)
    if code == _WORD:  # not below the width, and never would be
        raise ValueError("the coded bytes begin as no stream does")

    def bit(k: int) -> bool:
        nonlocal code, width, shifts
        chance, count = p[k], n[k]
        cut = (width >> 16) * chance
        yes = code < cut
        if yes:
            width = cut
            p[k] = chance + (_ONE - chance) // count
        else:
            code -= cut
            width -= cut
            p[k] = chance - chance // count
        if count < _LAST:
            n[k] = count + 1
        while width < _SMALLEST:
            code = code << 8 | next(rest)
            width <<= 8
            shifts += 1
        return yes

    def restart() -> None:
        p[:], n[:] = [_HALF] * contexts, [_FIRST] * contexts

    def finish() -> None:
        last = int.from_bytes(bytes(data[shifts : shifts + 4]).ljust(4, b"\0"), "big")
        end, count = _ending(last - code & _WORD, width)
        if (end & _WORD, count) != (last, len(data) - shifts):
            raise ValueError(f"{len(data)} coded bytes do not end where their decisions do")

    return Reader(bit, restart, lambda: 8 * shifts + 32 - math.log2(width + 1), finish)
