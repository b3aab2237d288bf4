"""Coded tensors: streams that come back, are short and as documented, and refused otherwise."""

from __future__ import annotations

import math
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosler_jax import _coding, _range_coder
from rosler_jax._coding import Coding, decode, encode

LEVELS = (1, 3, 7, 127, 32767)


def laplace(shape: tuple[int, ...], width: float, levels: int, seed: int = 0) -> np.ndarray:
    drawn = np.rint(width * np.random.default_rng(seed).laplace(size=shape))
    return np.clip(drawn, -levels, levels).astype(np.int16 if levels > 127 else np.int8)


def smooth_images(units: int, side: int = 14, dead: int = 0) -> np.ndarray:
    """Weights (pixels, units) as training leaves them: smooth, sparse, some units without any."""
    rng = np.random.default_rng(units)
    noise = rng.normal(size=(units, side, side))
    for axis in (1, 2):
        noise = sum(np.roll(noise, k, axis) for k in (-1, 0, 1, 2)) / 2
    weights = np.trunc(noise.reshape(units, -1).T).astype(np.int8)
    weights[:, :dead] = 0
    return np.clip(weights, -7, 7)


def in_some_columns(shape: tuple[int, int]) -> np.ndarray:
    large = np.arange(shape[1]) * 7 % 5 % 3 == 0
    return np.where(large, laplace(shape, 2.0, 7), laplace(shape, 0.3, 7, seed=1))


def entropy(values: np.ndarray) -> float:
    """Bytes of order 0: the least of any code that sees one value at a time."""
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def streamed(*tensors: tuple[np.ndarray, int]) -> bytes:
    return encode([(values, levels, 1 << 40) for values, levels in tensors])[0]


def assert_comes_back(*tensors: tuple[np.ndarray, int]) -> bytes:
    stream = streamed(*tensors)
    found = decode(stream, [(values.shape, levels) for values, levels in tensors])
    for (values, _), coded in zip(tensors, found, strict=True):
        assert coded.values is not None and coded.values.dtype == values.dtype
        np.testing.assert_array_equal(coded.values, values)
    assert sum(coded.bits for coded in found) == pytest.approx(8 * len(stream), abs=32)
    return stream


# --- the range coder ----------------------------------------------------------------------------

DECISIONS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=300)


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(DECISIONS, max_size=4), often=st.integers(0, 1))
def test_decisions_come_back(parts: list[list[tuple[int, int]]], often: int) -> None:
    # Long runs as well, or no probability would ever be near 0 or 1.
    parts = [part + [(1, often)] * 400 + part for part in parts]
    stream = _range_coder.write([([k for k, _ in p], [bit for _, bit in p]) for p in parts], 3)
    reader = _range_coder.read(stream, 3)
    for part in parts:
        reader.restart()
        assert [reader.bit(k) for k, _ in part] == [bit for _, bit in part]
    reader.finish()


@settings(max_examples=300, deadline=None)
@given(stream=st.binary(max_size=12), count=st.integers(0, 90))
def test_every_stream_but_the_one_is_refused(stream: bytes, count: int) -> None:
    try:
        reader = _range_coder.read(stream, 2)
        which = [k % 2 for k in range(count)]
        bits = [int(reader.bit(k)) for k in which]
        reader.finish()
    except ValueError:
        return
    assert _range_coder.write([(which, bits)], 2) == stream


def test_carries_run_through_the_bytes_before() -> None:
    # Decisions that are never less likely than the other way leave low just below a power of two.
    rng = np.random.default_rng(0)
    for length in range(1, 400, 7):
        bits = (rng.random(length) < 0.02).astype(int).tolist()
        stream = _range_coder.write([([0] * length, bits)], 1)
        reader = _range_coder.read(stream, 1)
        assert [reader.bit(0) for _ in bits] == bits
        reader.finish()


# --- tensors ------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 9), max_size=4).map(tuple), min_size=1, max_size=4),
    levels=st.sampled_from(LEVELS),
    width=st.sampled_from((0.01, 0.4, 3.0, 1e6)),
    seed=st.integers(0, 99),
)
def test_tensors_come_back(shapes: Any, levels: int, width: float, seed: int) -> None:
    assert_comes_back(*((laplace(shape, width, levels, seed), levels) for shape in shapes))


def test_what_is_not_smaller_is_not_coded() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(-7, 8, (30, 30)).astype(np.int8)
    values = laplace((30, 30), 0.3, 7)
    empty = np.zeros((3, 0), np.int8)
    stream, coded = encode([(noise, 7, 3 * 900), (values, 7, 4 * 900), (empty, 7, 0)])
    assert coded == [False, True, False]
    found = decode(stream, [((30, 30), 7), ((30, 30), 7), ((3, 0), 7)])
    assert found[0].values is None and found[2].values is None
    np.testing.assert_array_equal(found[1].values, values)
    assert found[0].bits < 2 < 500 < found[1].bits


def reference(stream: bytes, shape: tuple[int, int], levels: int) -> tuple[np.ndarray, Coding]:
    """One matrix, read as the modules' descriptions say and as C would, with no code of theirs."""
    data = iter(stream)
    code, width = int.from_bytes(bytes(next(data, 0) for _ in range(4)), "big"), 2**32 - 1
    p, n = [32768] * 74, [2] * 74

    def ask(context: int) -> int:
        nonlocal code, width
        cut = (width >> 16) * p[context]
        yes = code < cut
        code, width = (code, cut) if yes else (code - cut, width - cut)
        p[context] += (65535 - p[context]) // n[context] if yes else -(p[context] // n[context])
        n[context] = min(n[context] + 1, 129)
        while width < 1 << 24:
            code, width = code << 8 | next(data, 0), width << 8
        return int(yes)

    def level(size: int) -> int:
        return sum(size >= start for start in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32))

    def size_of(total: int) -> int:
        size, bank = 1, 19 + 6 * min(total >> 3, 3)
        while size < min(7, levels) and ask(bank + size - 1):
            size += 1
        if size < 7 or levels == 7:
            return size
        digits, x = 0, 1
        while digits < int(math.log2(levels - 6)) and ask(43 + digits):
            digits += 1
        for k in range(digits):
            x = 2 * x + ask(72 if k else 57 + digits)
        return 6 + x

    assert ask(73)
    transposed, smooth = ask(73), ask(73)
    d = sum(ask(73) << 11 - k for k in range(12)) if smooth else 0
    running = ask(73) if not smooth else 0
    out = np.zeros(shape, int)
    matrix = out.T if transposed else out
    activity, live, so_far = [0] * matrix.shape[1], 0, 0
    for row in matrix:
        live = ask(live)
        for c in range(len(row)) if live else ():
            x = [0, *(int(np.clip(row[c - k], -3, 3)) if c >= k else 0 for k in range(1, d + 4))]
            total, trend = (so_far if running else activity[c]) >> 3, 0
            if smooth:
                total = (activity[c] >> 6) + 4 * abs(x[1]) + abs(x[2]) + abs(x[3])
                trend = 4 * x[1] + x[2]
            if d:
                total += 2 * abs(x[d]) + 2 * abs(x[d - 1]) + abs(x[d + 1])
                trend += 2 * x[d] + 2 * x[d - 1]
            if ask(2 + level(total)):
                negative = ask(13 + min(level(abs(trend)), 5)) ^ (trend < 0)
                row[c] = (-1) ** negative * size_of(total)
            so_far += 16 * min(abs(row[c]), 3) - (so_far >> 5)
        for c, value in enumerate(row):
            activity[c] += 16 * min(abs(value), 3) - (activity[c] >> 5)
    return out, Coding(bool(transposed), bool(smooth), bool(running), d)


@pytest.mark.parametrize(
    ("values", "levels", "coding"),
    [
        (smooth_images(24, dead=3), 7, Coding(True, True, stride=14)),
        (np.ascontiguousarray(smooth_images(24).T), 127, Coding(False, True, stride=14)),
        (in_some_columns((40, 20)), 7, Coding(False, False)),
        (in_some_columns((40, 20)).T, 7, Coding(True, False)),
        (laplace((20, 12), 2.0, 7), 7, Coding(True, False, running=True)),
        (laplace((20, 12), 20.0, 127), 127, None),
        (laplace((20, 12), 4000.0, 32767), 32767, None),
        (laplace((20, 12), 1.0, 3), 3, None),
        (laplace((20, 12), 1.0, 1), 1, None),
    ],
)
def test_streams_are_as_documented(values: np.ndarray, levels: int, coding: Coding | None) -> None:
    stream = assert_comes_back((values, levels))
    read, how = reference(stream, values.shape, levels)
    np.testing.assert_array_equal(read, values)
    assert coding is None or how == coding


def test_rows_of_the_matrix_before_feed_the_columns() -> None:
    # Units of which some say little, then what reads them, as a kernel over flattened pixels does.
    units = np.exp(np.random.default_rng(1).normal(size=30) * 2)
    before = np.clip(laplace((40, 30), 1.0, 7) * units / 2, -7, 7).astype(np.int8)
    reading = np.clip(laplace((60, 20), 1.0, 7) * np.tile(units, 2)[:, None] / 2, -7, 7)
    pair = (before, 7), (reading.astype(np.int8), 7)
    apart = sum(len(assert_comes_back(each)) for each in pair)
    assert len(assert_comes_back(*pair)) < 0.98 * apart


@pytest.mark.parametrize(
    ("values", "most"),
    [
        (smooth_images(64), 0.85),  # signs and zeros of neighbours are alike
        (smooth_images(64, dead=32), 0.75),
        (np.zeros((784, 300), np.int8), 5),  # in bytes
        (laplace((64, 32), 1.0, 7), 1.03),  # nothing to find: what learning the numbers costs
        (laplace((100, 100), 30.0, 127), 1.02),
    ],
)
def test_bytes_beside_those_of_order_0(values: np.ndarray, most: float) -> None:
    size = len(assert_comes_back((values, 7 if np.abs(values).max() <= 7 else 127)))
    assert size <= (most if most > 2 else most * entropy(values))


def test_reading_is_quick() -> None:
    values = laplace((300, 300), 0.5, 7)
    stream = streamed((values, 7))
    start = time.perf_counter()
    decode(stream, [(values.shape, 7)])
    assert time.perf_counter() - start < 10e-6 * values.size  # measured: 1 us a value


# --- what is refused ----------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    stream=st.binary(max_size=80) | st.binary(max_size=8).map(lambda head: head + bytes(60)),
    shape=st.lists(st.integers(0, 40), max_size=3).map(tuple),
    levels=st.sampled_from(LEVELS),
)
def test_any_bytes_are_refused_or_read(stream: bytes, shape: tuple[int, ...], levels: int) -> None:
    try:
        (found,) = decode(stream, [(shape, levels)])
    except ValueError:
        return
    if found.values is not None:
        assert found.values.shape == shape
        assert np.abs(found.values.astype(int)).max() <= levels


@pytest.mark.parametrize("shape", [(1 << 12, 1 << 10), (1 << 40,), (1 << 17, 1)])
def test_more_values_than_the_bytes_can_hold_are_refused_at_once(shape: tuple[int, ...]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="in 3 coded bytes"):
            decode(b"\x7f\x02\x03", [(shape, 7)])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("byte", [0, 0x55, 0xFE])
def test_no_bytes_take_long(byte: int) -> None:
    # Values that take as many decisions as may be, each almost certain.
    start = time.perf_counter()
    with pytest.raises(ValueError, match="coded bytes"):
        decode(bytes([byte] * 50), [((20, 50_000), 32767)])
    assert time.perf_counter() - start < 2


def test_a_tensor_beyond_the_bounds_is_not_coded() -> None:
    # Rows of zeros would take a few bytes, from which no reader would be allowed to make so many.
    values = np.zeros((1 << 10, 1 << 11), np.int8)
    stream, coded = encode([(values, 7, 8 * values.size)])
    assert coded == [False] and decode(stream, [(values.shape, 7)])[0].values is None


@pytest.mark.parametrize("cut", [2, 7, 50])
def test_a_stream_cut_short_or_made_longer_is_refused(cut: int) -> None:
    values = laplace((30, 30), 1.0, 7)
    stream = streamed((values, 7))
    for other in (stream[:-cut], stream + bytes(cut), stream + b"\1" * cut):
        with pytest.raises(ValueError, match="coded bytes"):
            decode(other, [(values.shape, 7)])


@pytest.mark.parametrize("stride", [1, 6])
def test_neighbours_must_lie_in_the_row(stride: int) -> None:
    said = [1, 0, 1, *(stride >> k & 1 for k in reversed(range(12)))]
    stream = _range_coder.write([([_coding.CHOICE] * 15, said)], _coding.CONTEXTS)
    with pytest.raises(ValueError, match=f"neighbours {stride} apart in rows of 10"):
        decode(stream, [((3, 10), 7)])


def test_values_beyond_the_bits_are_refused() -> None:
    # Of the largest size that its digits can say: 6 + 127, where the bits hold 127.
    d, size = _coding.DIGITS, _coding.SIZE
    contexts = [_coding.CHOICE] * 4 + [_coding.ROW, _coding.ZERO, _coding.SIGN]
    contexts += [size + k for k in range(6)] + [d + k for k in range(6)]
    contexts += [_coding.FIRST + 6] + [_coding.OTHER] * 5
    said = [1, 0, 0, 0, 1, 1, 0] + [1] * 18
    stream = _range_coder.write([(contexts, said)], _coding.CONTEXTS)
    with pytest.raises(ValueError, match="beyond 127"):
        decode(stream, [((1,), 127)])
