"""The hash: known answers, bijections, bounded words, seeds."""

from __future__ import annotations

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from rosler_kernels import hashing

ONES = 0xFFFFFFFF
# Random123's published vectors: (rounds, key, counter, words).
KNOWN = [
    (13, (0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
    (13, (ONES, ONES), (ONES, ONES), (0xFD36D048, 0x2D17272C)),
    (13, (0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xBA3E4725, 0xF27D669E)),
    (20, (0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    (20, (ONES, ONES), (ONES, ONES), (0x1CB996FC, 0xBB002BE7)),
    (20, (0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


def python_threefry(key, counter, rounds):
    """The specification in hashing's text, in Python integers."""
    mask = 0xFFFFFFFF
    k = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x0, x1 = (counter[0] + k[0]) & mask, (counter[1] + k[1]) & mask
    for i in range(rounds):
        r = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        x0 = (x0 + x1) & mask
        x1 = (((x1 << r) | (x1 >> (32 - r))) & mask) ^ x0
        if i % 4 == 3:
            n = i // 4 + 1
            x0, x1 = (x0 + k[n % 3]) & mask, (x1 + k[(n + 1) % 3] + n) & mask
    return x0, x1


@pytest.mark.parametrize(("rounds", "key", "counter", "words"), KNOWN)
def test_known_answers(rounds, key, counter, words):
    got = hashing.threefry_2x32(key, counter, rounds)
    assert tuple(int(w) for w in got) == words


def test_thirteen_rounds_is_the_default_and_follows_the_specification():
    rng = np.random.default_rng(0)
    for a, b, c, d in rng.integers(0, 2**32, (20, 4)).tolist():
        got = hashing.threefry_2x32((a, b), (c, d))
        assert tuple(int(w) for w in got) == python_threefry((a, b), (c, d), 13)


def test_twenty_rounds_is_the_generator_of_jax():
    rng = np.random.default_rng(1)
    key = jnp.asarray(rng.integers(0, 2**32, 2), jnp.uint32)
    counter = jnp.asarray(rng.integers(0, 2**32, (2, 500)), jnp.uint32)
    want = jax.extend.random.threefry_2x32(key, counter.reshape(-1))
    got = hashing.threefry_2x32(key, (counter[0], counter[1]), rounds=20)
    np.testing.assert_array_equal(np.concatenate(got), want)


def test_seeds_as_ints_words_and_keys_agree():
    words = np.array([3, 7], np.uint32)
    wanted = [3, 7]
    assert hashing.as_seed((3 << 32) + 7).tolist() == wanted
    assert hashing.as_seed(words).tolist() == wanted
    assert hashing.as_seed(jax.random.wrap_key_data(words, impl="threefry2x32")).tolist() == wanted
    assert hashing.as_seed(11).tolist() == jax.random.key_data(jax.random.key(11)).tolist()
    assert jax.jit(hashing.as_seed)(jnp.int32(9)).tolist() == [0, 9]
    assert hashing.as_seed(words).dtype == jnp.uint32


@pytest.mark.parametrize("seed", [-1, 2**64, np.zeros(3, np.uint32), np.zeros((4, 2), np.uint32)])
def test_bad_seed_values(seed):
    with pytest.raises(ValueError, match="seed"):
        hashing.as_seed(seed)


def test_bad_seed_dtype():
    with pytest.raises(TypeError, match="float32"):
        hashing.as_seed(np.zeros(2, np.float32))


def test_domains_of_one_seed_differ():
    words = [tuple(map(int, hashing.domain_key(hashing.as_seed(0), t))) for t in hashing.Tag]
    assert len(set(words)) == len(list(hashing.Tag)) == len({int(t) for t in hashing.Tag})
    assert words[0] == python_threefry((0, 0), (1, 0x524F534C), 13)


def test_bounded_is_the_high_product():
    rng = np.random.default_rng(2)
    word = np.concatenate([rng.integers(0, 2**32, 1000), [0, 1, 2**32 - 1, 2**16, 2**31]])
    for n in (1, 2, 7, 65535, 65536, 65537, 2**31 - 1, 2**32 - 1):
        want = word.astype(np.uint64) * np.uint64(n) >> np.uint64(32)
        np.testing.assert_array_equal(hashing.bounded(jnp.asarray(word, jnp.uint32), n), want)


def test_uniform_is_exact_at_the_ends():
    got = hashing.uniform(jnp.array([0, 255, 256, ONES], jnp.uint32))
    np.testing.assert_array_equal(got, np.array([0, 0, 2.0**-24, 1 - 2.0**-24], np.float32))


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 5, 10, 13])
def test_bijection_and_inverse(bits):
    x = jnp.arange(1 << bits, dtype=jnp.uint32)
    for seed in range(5):
        key = hashing.domain_key(hashing.as_seed(seed), 5)
        y = hashing.bijection(key, x, bits)
        np.testing.assert_array_equal(np.sort(y), x)
        np.testing.assert_array_equal(hashing.bijection_inverse(key, y, bits), x)


def test_bijection_on_31_bits_inverts():
    key = hashing.domain_key(hashing.as_seed(0), 5)
    x = jnp.asarray(np.random.default_rng(3).integers(0, 2**31, 1000), jnp.uint32)
    y = hashing.bijection(key, x, 31)
    assert int(y.max()) < 2**31
    np.testing.assert_array_equal(hashing.bijection_inverse(key, y, 31), x)


def test_bijection_pairs_are_uniform_over_keys():
    # SRHT's variance needs the images of two inputs to be a uniform pair of distinct values.
    # Chi-square of the 8 x 7 pairs over n keys has 55 degrees of freedom: mean 55, variance 110;
    # six deviations above is 118.
    bits, n = 3, 20000
    keys = jnp.asarray(np.random.default_rng(4).integers(0, 2**32, (n, 2)), jnp.uint32)
    x = jnp.arange(8, dtype=jnp.uint32)
    images = np.asarray(jax.jit(jax.vmap(lambda k: hashing.bijection(k, x, bits)))(keys))
    for a, b in ((0, 1), (0, 4), (3, 6), (2, 7)):
        counts = np.bincount(images[:, a] * 8 + images[:, b], minlength=64).reshape(8, 8)
        assert np.trace(counts) == 0
        expected = n / 56
        chi2 = ((counts[~np.eye(8, dtype=bool)] - expected) ** 2 / expected).sum()
        assert chi2 < 118, (a, b, chi2)


def test_words_are_unbiased_bits():
    # Each of 64 bits over n counters is binomial: five deviations are 2.5 sqrt(n).
    n = 1 << 16
    key = hashing.domain_key(hashing.as_seed(5), 2)
    words = hashing.threefry_2x32(key, (jnp.arange(n, dtype=jnp.uint32), 3))
    bits = np.unpackbits(np.stack(words, 1).view(np.uint8), axis=1)
    assert np.abs(bits.sum(0, dtype=np.int64) - n / 2).max() < 2.5 * np.sqrt(n)
