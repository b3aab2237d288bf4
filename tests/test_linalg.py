"""The randomised SVD against NumPy in float64 and the bounds of Halko, Martinsson, Tropp (HMT)."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rosler_jax._linalg import low_rank_product, randomized_range_finder, randomized_svd

SEEDS = 64
SHAPES = [(40, 27), (27, 40), (33, 33), (7, 120)]


def matrix(m, n, spectrum, seed=0):
    """A float64 matrix with the given singular values."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((m, min(m, n))))[0]
    right = np.linalg.qr(rng.standard_normal((n, min(m, n))))[0]
    return (left * spectrum) @ right.T


def best(w, rank):
    left, sigma, right = np.linalg.svd(np.asarray(w, np.float64), full_matrices=False)
    return (left[:, :rank] * sigma[:rank]) @ right[:rank]


def keys():
    return jax.random.split(jax.random.key(0), SEEDS)


def assert_mean_below(samples, bound):
    """The bounds are on expectations: allow the mean of SEEDS draws 4 standard errors."""
    samples = np.asarray(samples, np.float64)
    assert samples.mean() <= bound + 4 * samples.std(ddof=1) / np.sqrt(len(samples))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 5])
def test_whole_range_gives_the_svd(shape, rank):
    w = np.random.default_rng(1).standard_normal(shape)
    triplets = randomized_svd(jnp.asarray(w, jnp.float32), rank, jax.random.key(0), oversampling=99)
    sigma = np.append(np.linalg.svd(w)[1], 0.0)
    np.testing.assert_allclose(triplets[1], sigma[:rank], rtol=1e-5)
    # Rounding turns the leading space by its size over the gap below it (Davis and Kahan).
    atol = np.finfo(np.float32).eps * sigma[0] ** 2 / (sigma[rank - 1] - sigma[rank])
    np.testing.assert_allclose(low_rank_product(*triplets), best(w, rank), atol=max(atol, 1e-5))


@pytest.mark.parametrize("shape", SHAPES)
def test_exact_at_the_rank_of_the_matrix(shape):
    w = best(np.random.default_rng(2).standard_normal(shape), 3)
    for oversampling in (0, 4):
        triplets = randomized_svd(
            jnp.asarray(w, jnp.float32), 3, jax.random.key(0), oversampling=oversampling
        )
        np.testing.assert_allclose(low_rank_product(*triplets), w, atol=5e-5)


def test_range_finder_meets_hmt_theorem_10_5():
    size, spectrum = 12, 1.0 / np.arange(1, 41)
    w = matrix(60, 40, spectrum)

    def squared_error(key):
        q = randomized_range_finder(jnp.asarray(w, jnp.float32), size, key, power_iterations=0)
        return jnp.sum((w - q @ (q.T @ w)) ** 2)

    errors = jax.vmap(squared_error)(keys())

    def tail(k):
        return np.sum(spectrum[k:] ** 2)

    # E ||W - Q Q^T W||_F^2 <= (1 + s/(p-1)) tail(s) for every split s + p = size with p >= 2.
    bound = min((1 + s / (size - s - 1)) * tail(s) for s in range(1, size - 1))
    assert_mean_below(errors, bound)
    assert np.all(np.asarray(errors) >= tail(size) * (1 - 1e-4))  # Eckart-Young
    # A basis blind to W leaves (1 - 12/60) tail(0) in expectation: the bound asks for far less.
    assert bound < 0.25 * (1 - size / 60) * tail(0)


def test_truncation_meets_its_bound():
    rank, extra, spectrum = 6, 4, 1.0 / np.arange(1, 41)
    w = matrix(60, 40, spectrum)

    def squared_error(key):
        triplets = randomized_svd(
            jnp.asarray(w, jnp.float32), rank, key, power_iterations=0, oversampling=extra
        )
        return jnp.sum((w - low_rank_product(*triplets)) ** 2)

    # ||W - Q (Q^T W)_s||^2 = ||W - Q Q^T W||^2 + ||Q^T W - (Q^T W)_s||^2: theorem 10.5 bounds the
    # first term by (1 + s/(p-1)) tail; the second is at most tail, since no singular value of Q^T W
    # exceeds that of W.
    tail = np.sum(spectrum[rank:] ** 2)
    errors = jax.vmap(squared_error)(keys())
    assert_mean_below(errors, (2 + rank / (extra - 1)) * tail)
    assert np.all(np.asarray(errors) >= tail * (1 - 1e-4))


def test_power_iterations_meet_hmt_corollary_10_10():
    k, p, q, spectrum = 5, 5, 2, 1.0 / np.sqrt(np.arange(1, 41))
    w = matrix(60, 40, spectrum)

    def error(key, power_iterations):
        basis = randomized_range_finder(
            jnp.asarray(w, jnp.float32), k + p, key, power_iterations=power_iterations
        )
        return jnp.linalg.norm(w - basis @ (basis.T @ w), ord=2)

    powered = spectrum ** (2 * q + 1)
    bound = (1 + np.sqrt(k / (p - 1))) * powered[k] + np.e * np.sqrt(k + p) / p * np.sqrt(
        np.sum(powered[k:] ** 2)
    )
    with_power = jax.vmap(lambda key: error(key, q))(keys())
    assert_mean_below(with_power, bound ** (1 / (2 * q + 1)))
    without = jax.vmap(lambda key: error(key, 0))(keys())
    assert np.mean(with_power) < 0.8 * np.mean(without)


def test_basis_stays_orthonormal_when_ill_conditioned():
    w = jnp.asarray(matrix(50, 30, 10.0 ** -np.arange(30.0)), jnp.float32)
    q = randomized_range_finder(w, 20, jax.random.key(0), power_iterations=3)
    np.testing.assert_allclose(q.T @ q, np.eye(20), atol=1e-5)


def test_zero_matrix():
    left, sigma, right = randomized_svd(jnp.zeros((9, 8)), 3, jax.random.key(0))
    chex.assert_tree_all_finite((left, sigma, right))
    assert not np.any(np.asarray(sigma))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_computes_in_float32_at_least(dtype):
    w = jnp.asarray(np.random.default_rng(3).standard_normal((20, 15)), dtype)
    triplets = randomized_svd(w, 4, jax.random.key(0), oversampling=11)
    assert {x.dtype for x in triplets} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(low_rank_product(*triplets), best(w, 4), atol=2e-5)


def test_jit_and_vmap_agree_with_single_calls():
    ws = jax.random.normal(jax.random.key(1), (3, 20, 15))
    split = jax.random.split(jax.random.key(2), 3)

    def product(w, key):
        return low_rank_product(*randomized_svd(w, 4, key))

    together = jax.jit(jax.vmap(product))(ws, split)
    alone = jnp.stack([product(w, key) for w, key in zip(ws, split, strict=True)])
    # Rounding of some forty sums of the size of the largest singular value, about 8.
    np.testing.assert_allclose(together, alone, atol=40 * 8 * np.finfo(np.float32).eps)


def test_second_call_does_not_retrace():
    chex.clear_trace_counter()
    function = jax.jit(chex.assert_max_traces(lambda w, key: randomized_svd(w, 2, key), n=1))
    for seed in range(2):
        function(jax.random.normal(jax.random.key(seed), (6, 5)), jax.random.key(seed))


@pytest.mark.parametrize(
    ("shape", "rank", "options", "message"),
    [
        ((4, 5), 5, {}, r"rank 5 is outside 1..min\(in=4, out=5\)=4; pass 1<=rank<=4"),
        ((4, 5), 0, {}, "rank 0 is outside"),
        ((4, 5, 6), 2, {}, r"expected a matrix, got shape \(4, 5, 6\)"),
        ((4, 5), 2, {"power_iterations": -1}, "power_iterations -1 is negative"),
        ((4, 5), 2, {"oversampling": -1}, "oversampling -1 is negative"),
    ],
)
def test_refuses(shape, rank, options, message):
    with pytest.raises(ValueError, match=message):
        randomized_svd(jnp.ones(shape), rank, jax.random.key(0), **options)
