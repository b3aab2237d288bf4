"""Messages as bytes: what is written is read, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosler_jax.federated.compress import COMPRESSIONS, Packed, compression, pack
from rosler_jax.federated.garbage import GARBAGE
from rosler_jax.federated.wire import (
    DOWN,
    UP,
    Form,
    Header,
    MessageError,
    check_header,
    decode,
    encode,
)

SHAPES = [(), (1,), (7,), (5, 8), (3, 2, 6)]


def message(seed, levels, shapes):
    """Tensors of a form: from all zeros to wild."""
    rng, form = np.random.default_rng(seed), Form(shapes, levels)
    if not levels:
        values = tuple(rng.normal(size=s).astype(np.float32) for s in shapes)
        return form, Packed(values, tuple(np.float32(1) for _ in shapes))
    spread = rng.choice([0.1, 1.0, levels / 2])
    drawn = (np.clip(np.round(rng.normal(scale=spread, size=s)), -levels, levels) for s in shapes)
    scales = tuple(np.float32(2.0) ** k for k in rng.integers(-20, 20, len(shapes)))
    return form, Packed(tuple(np.asarray(v, np.int16) for v in drawn), scales)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6), levels=st.sampled_from([0, 1, 3, 7, 127, 2047, 32767]),
    shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4),
    header=st.tuples(st.sampled_from([UP, DOWN]), *[st.integers(0, 10**6)] * 3),
)  # fmt: skip
def test_there_and_back(seed, levels, shapes, header):
    form, packed = message(seed, levels, shapes)
    data = encode(Header(*header), packed, form)
    found, read = decode(data, form)
    assert found == header
    for mine, other in zip(packed.values, read.values, strict=True):
        assert mine.dtype == other.dtype and np.array_equal(mine, other)
    assert [float(s) for s in packed.scales] == [float(s) for s in read.scales]


@pytest.mark.parametrize("levels", [0, 127])
def test_any_wrong_bit_is_seen(levels):
    form, packed = message(1, levels, [(4, 5), (3,)])
    data = encode(Header(UP, 2, 3, 40), packed, form)
    for place in range(8 * len(data)):
        wrong = bytearray(data)
        wrong[place // 8] ^= 1 << place % 8
        with pytest.raises(MessageError) as caught:
            decode(bytes(wrong), form)
        assert caught.value.reason == "damaged"


@pytest.mark.parametrize("levels", [0, 127])
def test_any_cut_is_seen(levels):
    form, packed = message(1, levels, [(4, 5), (3,)])
    data = encode(Header(UP, 2, 3, 40), packed, form)
    for end in range(len(data)):
        with pytest.raises(MessageError):
            decode(data[:end], form)
    with pytest.raises(MessageError):
        decode(data + b"\0", form)


@settings(max_examples=200, deadline=2000)
@given(st.binary(max_size=300))
def test_random_bytes_are_no_message(data):
    form = Form([(50, 40), (9,)], 127)
    for start in (b"", b"RF\x01\x00\x01\x01\x01"):
        with pytest.raises(MessageError):
            decode(start + data, form)


def test_another_models_message_is_refused():
    form, packed = message(3, 7, [(6, 4)])
    data = encode(Header(UP, 1), packed, form)
    for other in (Form([(4, 6)], 7), Form([(6, 4)], 15), Form([(6, 4), (1,)], 7)):
        with pytest.raises(MessageError, match="of another model"):
            decode(data, other)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (Header(UP, 4, 1, 9), "stale"),
        (Header(UP, 6, 1, 9), "stale"),
        (Header(DOWN, 5, 1, 9), "wrong way"),
        (Header(UP, 5, 7, 9), "unknown client"),
        (Header(UP, 5, 1, 0), "no examples"),
    ],
)
def test_headers_that_do_not_fit(header, reason):
    with pytest.raises(MessageError) as caught:
        check_header(header, UP, 5, clients=7)
    assert caught.value.reason == reason
    check_header(Header(UP, 5, 6, 1), UP, 5, clients=7)


@pytest.mark.parametrize("spec", ["float32", "step:2", "bits:8"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nan", "not finite"), ("huge", None), ("noise", None), ("flipped", None),
        ("stale", "stale"), ("shape", "damaged"), ("cut", "damaged"), ("random", "damaged"),
    ],
)  # fmt: skip
def test_what_the_reader_says_of_garbage(kind, reason, spec):
    how = compression(spec)
    tree = {"a": np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32), "b": np.ones(3)}
    packed = pack(how, tree)
    packed = Packed(*(tuple(map(np.asarray, part)) for part in packed))
    form, header = Form([(6, 5), (3,)], how.levels), Header(UP, 8, 2, 30)
    with np.errstate(all="ignore"):
        data = GARBAGE[kind](header, packed, form, np.random.default_rng(1))
    if reason is None:  # what it holds is for the aggregation to see
        assert check_header(decode(data, form)[0], UP, 8, 4) is None
        return
    with pytest.raises(MessageError) as caught:
        check_header(decode(data, form)[0], UP, 8, 4)
    assert caught.value.reason == reason


def test_every_kind_of_garbage_is_tried():
    tried = {"nan", "huge", "noise", "flipped", "stale", "shape", "cut", "random"}
    assert set(GARBAGE) == tried and "step" in COMPRESSIONS


def test_few_bytes_beside_the_numbers():
    """A sparse message of 10,000 numbers: within 3 % and 20 bytes of its entropy."""
    rng, form = np.random.default_rng(0), Form([(100, 100)], 127)
    q = np.round(rng.laplace(scale=0.35, size=(100, 100))).astype(np.int16)
    counts = np.bincount(q.ravel() + 127)
    p = counts[counts > 0] / q.size
    entropy = -(p * np.log2(p)).sum() * q.size / 8
    size = len(encode(Header(UP, 30, 99, 600), Packed((q,), (np.float32(1),)), form))
    assert entropy < size < 1.03 * entropy + 20
