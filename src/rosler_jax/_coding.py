"""Integer tensors as one stream of adaptive decisions: what a model file of version 3 holds.

Of every tensor in turn, all counters of :mod:`rosler_jax._range_coder` starting anew:

1. Is it coded? If not, nothing follows. Then ``transposed``, ``smooth``, if it is smooth the 12
   bits of ``stride``, the highest first, else ``running``. All these have the context ``CHOICE``.
2. The tensor is a matrix: its last axis the columns, all others the rows; the other way round where
   it is transposed. Each row begins with: is it not all zeros? The context is ``ROW`` + 1 after a
   row that is not, else ``ROW``. Nothing follows of a row of zeros.
3. Of each value, by its ``sum`` and ``trend`` (below): is it not zero, at ``ZERO`` + the level of
   the sum. Then whether its sign is not the trend's (that of no trend is +), at ``SIGN`` + the
   level of the trend's size, at most 5. Then its size: "greater than k?" for k = 1, 2, ... up to 6,
   but below the largest that the bits hold, at ``SIZE`` + 6 min(sum >> 3, 3) + k - 1.
4. A size beyond 6, where the bits hold more than 7, is 6 + x. How many of x's binary digits follow
   the first: "more than k?" for k = 0, 1, ... below the most that the bits hold, at ``DIGITS`` + k.
   Then these digits, the highest at ``FIRST`` + their number, all others at ``OTHER``.

The levels 0 to 10 begin at 0, 1, 2, 3, 4, 6, 8, 12, 16, 24 and 32.

All that sums are made of are small numbers: values cut off at +-3. A column has an activity a,
after each row a <- a - (a >> 5) + 16 times the size of its small number. It begins with what the
matrix coded before (of two axes or more) says, whose k-th row feeds the columns k, k + its rows,
...: min(16 t, 4095), t the sum of the small sizes in that row; or with 0 where its rows do not
divide the columns. So the weights that read a unit which is almost dead cost almost nothing. There
is one activity of all values, too, which begins with 0 and goes on after each value in rows that
are not all zeros: the sum is a >> 3 of this one if the tensor is running, else of the column's, and
the trend 0. If it is smooth, x1, x2, ... are the small numbers before the value in its row (0
before the row), D is the stride, a the column's, and::

    sum   = (a >> 6) + 4 |x1| + |x2| + |x3| + 2 |x[D]| + 2 |x[D-1]| + |x[D+1]|
    trend = 4 x1 + x2 + 2 x[D] + 2 x[D-1]

without the terms of D where it is 0. With D the width of an image they see what lies above.

A stream of n bytes holds at most 1024 n + 2^20 values, where a row counts as 16 more; a row has at
most 65536 values. A reader refuses more before it begins, and what goes on beyond the stream's end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from rosler_jax import _range_coder

if TYPE_CHECKING:
    from jaxtyping import Int, Integer

    Tensor = Integer[np.ndarray, "..."]
    Matrix = Integer[np.ndarray, "rows columns"]
    Decisions = tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]

ROW, ZERO, SIGN, SIZE, DIGITS, FIRST, OTHER, CHOICE = 0, 2, 13, 19, 43, 57, 72, 73
CONTEXTS: Final = 74

_UNARY, _SMALL, _STRIDE_BITS, _MOST_ACTIVITY = 6, 3, 12, 4095
_STARTS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # of the levels after 0
_LEVEL: Final = np.searchsorted(_STARTS, np.arange(_MOST_ACTIVITY // 8 + 1), side="right")
_NEAR: Final = ((1, 4, 4), (2, 1, 1), (3, 1, 0))
_PER_BYTE, _AT_ONCE, _PER_ROW = 1 << 10, 1 << 20, 16  # values that a stream may hold
_LONGEST: Final = 1 << 16  # of rows


class Coding(NamedTuple):
    """How a matrix is coded: by neighbours, by all values so far, or else by what its columns held.

    Attributes:
        transposed: its rows are the tensor's last axis.
        smooth: neighbours count.
        running: all values so far do.
        stride: of smooth ones, to neighbours above; 0 for none.
    """

    transposed: bool
    smooth: bool
    running: bool = False
    stride: int = 0


class Coded(NamedTuple):
    """What :func:`decode` gives of a tensor: None where it is not coded, and its bits."""

    values: Tensor | None
    bits: float


def encode(
    tensors: Sequence[tuple[Tensor, int, int]],
    *,
    transposed: bool | None = None,
    smooth: bool | None = None,
) -> tuple[bytes, list[bool]]:
    """Codes tensors, each if that makes it smaller.

    Args:
        tensors: of each its values, within +-levels; the levels; the bits that it takes uncoded.
        transposed: what all matrices are, for a reader that must know; None for what is smaller.
        smooth: the same, for a reader that can no other.

    Returns:
        The stream, and which of them are coded.

    Example:
        >>> values = np.tri(64, dtype=np.int8)
        >>> stream, coded = encode([(values, 7, 4 * values.size)])
        >>> len(stream), np.array_equal(decode(stream, [((64, 64), 7)])[0].values, values)
        (59, True)
    """
    parts, coded, before = [], list[bool](), np.zeros(0, np.int64)
    length, weight = 0.0, 0
    for values, levels, uncoded in tensors:
        best, chosen = (float(uncoded), *_no_decisions()), None
        for coding in _codings(values, transposed):
            if smooth not in (None, coding.smooth):
                continue
            decisions = _decisions(values, levels, coding, before)
            bits = _length(*decisions)
            more = weight + _weight(_matrix(values, coding).shape)
            # The stream's length is known at the end alone; half of what is expected is safe.
            if bits < best[0] and _is_bounded(more, int(length + bits) // 16):
                best, chosen = (bits, *decisions), coding
        if chosen is not None:
            length, weight = length + best[0], weight + _weight(_matrix(values, chosen).shape)
            if values.ndim > 1:
                before = _small_sizes(_matrix(values, chosen)).sum(axis=1)
        parts.append((best[1].tolist(), best[2].tolist()))
        coded.append(chosen is not None)
    return _range_coder.write(parts, CONTEXTS), coded


# Choosing.


def _codings(values: Tensor, only: bool | None) -> Iterator[Coding]:
    """The ways worth trying."""
    if not values.size:
        return
    ways = (False, True) if only is None else (only,)
    for transposed in ways if values.ndim > 1 else (False,):
        yield Coding(transposed, smooth=False)
        yield Coding(transposed, smooth=False, running=True)
        for stride in (0, *_strides(_matrix(values, Coding(transposed, smooth=True)))):
            yield Coding(transposed, smooth=True, stride=stride)


def _strides(matrix: Matrix) -> list[int]:
    """Two distances along the rows at which sizes are more alike than just before and after."""
    columns = matrix.shape[1]
    longest = min(columns // 2, (1 << _STRIDE_BITS) - 1)
    sizes = _small_sizes(matrix) - _small_sizes(matrix).mean()
    power = (np.abs(np.fft.rfft(sizes, 2 * columns)) ** 2).sum(axis=0)
    alike = np.fft.irfft(power, 2 * columns)
    peaks = [k for k in range(2, longest + 1) if alike[k - 1] <= alike[k] > alike[k + 1]]
    return sorted(peaks, key=lambda k: -alike[k])[:2]


def _length(contexts: Int[np.ndarray, " n"], bits: Int[np.ndarray, " n"]) -> float:
    """About how many bits decisions take: those of Krichevsky and Trofimov, as counters begin."""
    counts = np.bincount(2 * contexts + bits, minlength=2 * CONTEXTS).reshape(-1, 2).tolist()
    log = math.lgamma
    nats = (log(a + b + 1) - log(a + 0.5) - log(b + 0.5) + math.log(math.pi) for a, b in counts)
    return sum(nats) / math.log(2)


def _weight(sides: tuple[int, ...]) -> int:
    """How many values a matrix counts as: a row takes time, too. A long row takes memory."""
    return sides[0] * (sides[1] + _PER_ROW) if sides[1] <= _LONGEST else 1 << 60


def _is_bounded(weight: int, size: int) -> bool:
    """Whether a stream of so many bytes may hold so much: it bounds a reader's time and memory."""
    return weight <= _PER_BYTE * size + _AT_ONCE


# What a decision depends on.


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor."""
    return math.prod(shape[:-1]), math.prod(shape[-1:])


def _matrix(values: Tensor, coding: Coding) -> Matrix:
    matrix = values.reshape(_sides(values.shape))
    return matrix.T if coding.transposed else matrix


def _small_sizes(values: Tensor) -> Int[np.ndarray, "..."]:
    return np.minimum(np.abs(values.astype(np.int64)), _SMALL)


def _activity(before: Int[np.ndarray, " k"], columns: int) -> Int[np.ndarray, " columns"]:
    """Of the columns at first."""
    if not len(before) or columns % len(before):
        return np.zeros(columns, np.int64)
    return np.tile(np.minimum(16 * before, _MOST_ACTIVITY), columns // len(before))


def _base(activity: Int[np.ndarray, " columns"], coding: Coding) -> Int[np.ndarray, " columns"]:
    """What the columns add to the sums of a row."""
    return activity >> (6 if coding.smooth else 3)


def _after(
    activity: Int[np.ndarray, " columns"], sizes: Int[np.ndarray, " columns"]
) -> Int[np.ndarray, " columns"]:
    return activity - (activity >> 5) + 16 * sizes


def _neighbours(coding: Coding) -> tuple[tuple[int, int, int], ...]:
    """How far before a value they are, what they count in the sum, and in the trend."""
    d = coding.stride
    far = ((d, 2, 2), (d - 1, 2, 2), (d + 1, 1, 0)) if d else ()
    return (*_NEAR, *far) if coding.smooth else ()


# Writing.


def _no_decisions() -> Decisions:
    """Of a tensor that is not coded."""
    return np.array([CHOICE]), np.array([0])


def _decisions(
    values: Tensor, levels: int, coding: Coding, before: Int[np.ndarray, " k"]
) -> Decisions:
    """Contexts and bits of a tensor, in their order."""
    matrix = _matrix(values, coding).astype(np.int64)
    sums, trends = _sums(matrix, coding, _activity(before, matrix.shape[1]))
    # Where in the stream: 64 places for each row, and then for each of its values.
    places = (np.arange(matrix.size).reshape(matrix.shape) + np.arange(len(matrix))[:, None]) * 64
    full = matrix != 0
    live = full.any(axis=1)
    groups = [
        (places[:, 0], ROW + np.append(0, live[:-1]), live),
        (places[live] + 64, ZERO + _LEVEL[sums[live]], full[live]),
        *_about_sizes(places[full] + 65, matrix[full], sums[full], trends[full], levels),
    ]
    where, contexts, bits = (
        np.concatenate([np.ravel(group[k]) for group in groups]).astype(np.int64) for k in range(3)
    )
    order = np.argsort(where, kind="stable")
    chosen = [1, int(coding.transposed), int(coding.smooth)]
    stride = [coding.stride >> k & 1 for k in reversed(range(_STRIDE_BITS))]
    chosen += stride if coding.smooth else [int(coding.running)]
    return np.append([CHOICE] * len(chosen), contexts[order]), np.append(chosen, bits[order])


def _sums(
    matrix: Matrix, coding: Coding, activity: Int[np.ndarray, " columns"]
) -> tuple[Int[np.ndarray, "rows columns"], Int[np.ndarray, "rows columns"]]:
    """Sums and trends of all values; those of rows of zeros are of no use."""
    sizes = _small_sizes(matrix)
    small = sizes * np.sign(matrix)
    sums, trends = np.zeros_like(sizes), np.zeros_like(sizes)
    if coding.running:
        live = matrix.any(axis=1)
        sums[live] = _running(sizes[live])
        return sums, trends
    for into, row in zip(sums, sizes, strict=True):
        into[:] = _base(activity, coding)
        activity = _after(activity, row)
    for far, count, trend in _neighbours(coding):
        sums[:, far:] += count * sizes[:, :-far]
        trends[:, far:] += trend * small[:, :-far]
    return sums, trends


def _running(sizes: Int[np.ndarray, "rows columns"]) -> Int[np.ndarray, "rows columns"]:
    """Sums by all values before."""
    activity, sums = 0, []
    for size in sizes.ravel().tolist():
        sums.append(activity >> 3)
        activity += 16 * size - (activity >> 5)
    return np.asarray(sums, np.int64).reshape(sizes.shape)


def _about_sizes(at: Any, x: Any, sums: Any, trends: Any, levels: int) -> Iterator[tuple[Any, ...]]:
    """Places, contexts and bits of the decisions about values that are not zero."""
    yield at, SIGN + np.minimum(_LEVEL[np.abs(trends)], 5), (x < 0) ^ (trends < 0)
    x, base = np.abs(x), SIZE + _UNARY * np.minimum(sums >> 3, 3) - 1
    for k in range(1, min(_UNARY, levels - 1) + 1):
        asked = x >= k
        yield at[asked] + k, base[asked] + k, x[asked] > k
    at, x = at[x > _UNARY], x[x > _UNARY] - _UNARY
    digits = np.frexp(x)[1] - 1
    for k in range(_digits(levels - _UNARY)):
        asked = digits >= k
        yield at[asked] + 7 + k, np.full(asked.sum(), DIGITS + k), digits[asked] > k
        asked = digits > k
        context = np.full(asked.sum(), OTHER) if k else FIRST + digits[asked]
        yield at[asked] + 24 + k, context, x[asked] >> (digits[asked] - 1 - k) & 1


def _digits(x: int) -> int:
    """Of a number's binary digits, how many follow the first; 0 of what is not positive."""
    return max(x, 1).bit_length() - 1


# Reading.


def decode(
    stream: bytes | memoryview, tensors: Sequence[tuple[tuple[int, ...], int]]
) -> list[Coded]:
    """The inverse of :func:`encode`.

    Args:
        stream: what it gave. Time and memory are bounded for anything else, too.
        tensors: of each its shape and its levels.

    Returns:
        Of each its values, int8 (int16 for levels beyond 127), and its share of the stream.

    Raises:
        ValueError: no stream of these tensors.
    """
    reader, before = _range_coder.read(stream, CONTEXTS), np.zeros(0, np.int64)
    found, weight = [], 0
    for shape, levels in tensors:
        start, values = reader.bits(), None
        reader.restart()
        if reader.bit(CHOICE):
            coding = _read_coding(reader.bit)
            sides = _sides(shape)
            weight += _weight(sides[::-1] if coding.transposed else sides)
            if not all(sides) or not _is_bounded(weight, len(stream)):
                raise ValueError(f"a tensor of shape {shape} in {len(stream)} coded bytes")
            values = np.zeros(shape, np.int8 if levels < 128 else np.int16)
            sizes = _read_matrix(reader.bit, _matrix(values, coding), levels, coding, before)
            before = sizes if len(shape) > 1 else before
        found.append(Coded(values, reader.bits() - start))
    reader.finish()
    return found


def coding_of(stream: bytes) -> Coding:
    """How the first tensor of a stream is coded; it must be coded.

    Example:
        >>> stream, _ = encode([(np.eye(64, dtype=np.int8), 7, 4096)], transposed=False)
        >>> coding_of(stream).smooth
        False
    """
    reader = _range_coder.read(stream, CONTEXTS)
    assert reader.bit(CHOICE)
    return _read_coding(reader.bit)


def _read_coding(bit: Callable[[int], bool]) -> Coding:
    transposed, smooth, stride = bit(CHOICE), bit(CHOICE), 0
    if not smooth:
        return Coding(transposed, smooth, running=bit(CHOICE))
    for _ in range(_STRIDE_BITS):
        stride = 2 * stride + bit(CHOICE)
    return Coding(transposed, smooth, stride=stride)


def _read_matrix(
    bit: Callable[[int], bool], matrix: Matrix, levels: int, coding: Coding, before: Tensor
) -> Int[np.ndarray, " rows"]:
    """Fills a matrix, and gives the sums of small sizes in its rows."""
    columns = matrix.shape[1]
    if coding.stride == 1 or 2 * coding.stride > columns:
        raise ValueError(f"neighbours {coding.stride} apart in rows of {columns}")
    neighbours, activity, live = _neighbours(coding), _activity(before, columns), False
    beyond, totals = [0] * (coding.stride + 3), np.zeros(len(matrix), np.int64)
    running = 0
    for k, row in enumerate(matrix):
        live = bit(ROW + live)
        if live and coding.running:
            row[:], running = _read_running(bit, columns, running, levels)
        elif live:
            sums = _base(activity, coding).tolist() + beyond
            row[:] = _read_row(bit, sums, columns, neighbours, levels)
        sizes = _small_sizes(row)
        totals[k] = sizes.sum()
        activity = _after(activity, sizes)
    return totals


def _read_row(
    bit: Callable[[int], bool], sums: list[int], columns: int, neighbours: Any, levels: int
) -> list[int]:
    row, trends, level = [0] * columns, [0] * len(sums), _LEVEL.tolist()
    for k in range(columns):
        if bit(ZERO + level[sums[k]]):
            row[k] = value = _read_value(bit, sums[k], trends[k], levels)
            small = max(-_SMALL, min(value, _SMALL))
            for far, count, trend in neighbours:
                sums[k + far] += count * abs(small)
                trends[k + far] += trend * small
    return row


def _read_running(
    bit: Callable[[int], bool], columns: int, activity: int, levels: int
) -> tuple[list[int], int]:
    row, level = [0] * columns, _LEVEL.tolist()
    for k in range(columns):
        total = activity >> 3
        activity -= activity >> 5
        if bit(ZERO + level[total]):
            row[k] = value = _read_value(bit, total, 0, levels)
            activity += 16 * min(abs(value), _SMALL)
    return row, activity


def _read_value(bit: Callable[[int], bool], total: int, trend: int, levels: int) -> int:
    """One that is not zero."""
    level = int(_LEVEL[abs(trend)])
    negative = bit(SIGN + min(level, 5)) ^ (trend < 0)
    size = _read_size(bit, SIZE + _UNARY * min(total >> 3, 3) - 1, levels)
    return -size if negative else size


def _read_size(bit: Callable[[int], bool], base: int, levels: int) -> int:
    size = 1
    while size <= _UNARY and size < levels and bit(base + size):
        size += 1
    if size <= _UNARY or levels == size:
        return size
    digits, most = 0, _digits(levels - _UNARY)
    while digits < most and bit(DIGITS + digits):
        digits += 1
    x = 1
    for k in range(digits):
        x = 2 * x + bit(OTHER if k else FIRST + digits)
    if x > levels - _UNARY:
        raise ValueError(f"a coded value is beyond {levels}")
    return _UNARY + x
