"""Masked sums: exact modulo 2^32, whoever drops, and nothing to be seen before."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cryptography", reason="secure aggregation needs the extra 'federated'")

from rosler_jax.federated.secure import (
    SecureError,
    fixed_point,
    join,
    make_secrets,
    masked,
    mean_of,
    public_key,
    split,
    split_secrets,
    unmasked,
)


def round_of(clients, numbers, threshold, seed=0):
    rng = np.random.default_rng(seed)
    who = list(range(0, 3 * clients, 3))
    words = {k: rng.integers(0, 2**32, numbers, dtype=np.uint32) for k in who}
    secrets = {k: make_secrets(rng.bytes(16)) for k in who}
    keys = {k: public_key(secrets[k]) for k in who}
    shares = {k: split_secrets(secrets[k], who, threshold) for k in who}
    sent = {k: masked(words[k], k, secrets[k], keys) for k in who}
    return words, keys, shares, sent


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), clients=st.integers(2, 7), data=st.data())
def test_the_sum_is_exact_whoever_drops(seed, clients, data):
    threshold = clients // 2 + 1
    words, keys, shares, sent = round_of(clients, 9, threshold, seed)
    came = data.draw(st.sets(st.sampled_from(sorted(words)), min_size=threshold))
    total = unmasked({k: sent[k] for k in came}, keys, shares, threshold)
    assert np.array_equal(total, sum(words[k].astype(np.uint64) for k in came) % 2**32)


def test_too_few_are_refused():
    _, keys, shares, sent = round_of(5, 4, 3)
    with pytest.raises(SecureError, match="2 of 5 clients answered; 3 are needed"):
        unmasked({k: sent[k] for k in (0, 3)}, keys, shares, 3)


def test_a_masked_message_looks_random():
    """Of a message of zeros: bytes are uniform (chi-square, 255 degrees, within 5 deviations)."""
    rng, who = np.random.default_rng(0), [0, 1, 2]
    secrets = {k: make_secrets(rng.bytes(16)) for k in who}
    keys = {k: public_key(secrets[k]) for k in who}
    seen = masked(np.zeros(25_000, np.uint32), 1, secrets[1], keys).view(np.uint8)
    expected = len(seen) / 256
    chi = ((np.bincount(seen, minlength=256) - expected) ** 2 / expected).sum()
    assert abs(chi - 255) < 5 * np.sqrt(2 * 255)


def test_without_the_own_mask_a_late_message_would_show():
    """The reason for it: a client counted as dropped, whose key was recovered, sends after all."""
    words, keys, shares, sent = round_of(4, 6, 3)
    came = {k: sent[k] for k in (0, 3, 6)}
    unmasked(came, keys, shares, 3)  # opens the key of 9
    secret = join({k: shares[9].private[k] for k in (0, 3, 6)})
    from rosler_jax.federated.secure import _mask, _pair, _signed

    late = sent[9].copy()
    for k in (0, 3, 6):
        late = _signed(late, _mask(_pair(secret, keys[k]), 6), k < 9)
    assert not np.array_equal(late, words[9])


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.integers(0, 100))
def test_shares(secret, threshold, seed):
    numbers = list(range(8))
    shares = split(secret, numbers, threshold)
    some = np.random.default_rng(seed).permutation(8)
    assert join({int(k): shares[k] for k in some[:threshold]}) == secret
    if threshold > 1:
        with contextlib.suppress(SecureError):
            assert join({int(k): shares[k] for k in some[: threshold - 1]}) != secret


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6), clients=st.integers(1, 40), most=st.sampled_from([0.01, 1.0, 50.0])
)
def test_the_mean_of_fixed_point_numbers(seed, clients, most):
    """Within half a step: sums of weights times steps do not wrap."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 1000, clients)
    x = rng.uniform(-most, most, (clients, 5))
    total = int(weights.sum())
    words = sum(
        fixed_point(v, int(w), total, most).astype(np.uint64)
        for v, w in zip(x, weights, strict=True)
    )
    found = mean_of((words % 2**32).astype(np.uint32), total, total, most)
    step = most / ((2**31 - 1) // total)
    assert np.abs(found - weights @ x / total).max() <= step / 2 * (1 + 1e-6)
    cut = fixed_point(np.array([99 * most, -99 * most]), 3, total + 3, most)
    assert np.allclose(mean_of(cut, 3, total + 3, most), [most, -most])
