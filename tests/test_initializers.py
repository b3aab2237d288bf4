"""Initial factors: streamed against materialised, and the literature's error bounds over seeds."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxpr_walk import sizes

import rosler_kernels as rk
from rosler_jax import initializers as init
from rosler_jax.factors import SketchFactors, core_from_sketch, reconstruct


def _f64(x):
    return np.asarray(x, np.float64)


@pytest.mark.parametrize(("m", "n"), [(1, 5), (37, 21), (700, 600)])  # the last in several tiles
def test_a_streamed_virtual_matrix_is_the_materialised_one(m, n):
    w0 = init.virtual_normal(jax.random.key(0), m, n, 0.3)
    w = w0.scale * _f64(rk.materialize(w0.sketch))
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(n, 3)), rng.normal(size=(m, 2))
    atol = 1e-5 * np.sqrt(m + n)
    product = init.virtual_matmul(w0, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(product, w @ x, atol=atol)
    product = init.virtual_rmatmul(w0, jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(product, y.T @ w, atol=atol)


def test_a_virtual_matrix_has_the_variance_asked_for():
    """The sample variance of N normal entries deviates by sqrt(2 / N): four times that passes."""
    for name, stddev in init.STDDEVS.items():
        w0 = init.virtual_normal(jax.random.key(7), 300, 200, stddev(300, 200))
        w = w0.scale * _f64(rk.materialize(w0.sketch))
        expected = {"glorot": 2 / 500, "he": 2 / 300}[name]
        assert abs(w.var() / expected - 1) < 4 * np.sqrt(2 / w.size)
        assert abs(w.mean()) < 4 * np.sqrt(expected / w.size)


@pytest.mark.parametrize("variance", ["glorot", "he"])
@pytest.mark.parametrize(("m", "n", "rank"), [(20, 30, 4), (33, 17, 1), (12, 9, 9)])
def test_the_range_finder_equals_the_dense_computation(m, n, rank, variance):
    """W0 is made whole here from the same two keys; Q Q^T W0 does not depend on the basis Q."""
    key = jax.random.key(3)
    f = init.range_finder(key, m, n, rank, init=variance, gain=0.7)
    assert f.c.shape == (m, rank) and f.u.shape == (rank, rank) and f.r.shape == (rank, n)
    key_w, key_omega = jax.random.split(key)
    w0 = init.virtual_normal(key_w, m, n, init.STDDEVS[variance](m, n))
    w = w0.scale * _f64(rk.materialize(w0.sketch))
    omega = _f64(jax.random.normal(key_omega, (n, rank), jnp.float32))
    q, _ = np.linalg.qr(w @ omega)
    expected = 0.7 * np.sqrt(m / rank) * q @ (q.T @ w)
    np.testing.assert_allclose(reconstruct(f), expected, atol=2e-4 * np.abs(expected).max())
    assert np.all(np.diff(np.diag(f.u)) <= 0) and np.count_nonzero(f.u) == rank  # balanced


def test_the_range_finder_forms_no_full_matrix():
    m = n = 4096
    program = jax.make_jaxpr(lambda key: init.range_finder(key, m, n, 8))(jax.random.key(0))
    largest = sizes(program)[0]
    # A tile of the virtual matrix is 2**18 entries, twice that while its bits are hashed.
    assert largest[0] <= 2**20 < m * n / 8, largest
    dense = jax.make_jaxpr(lambda key: jax.random.normal(key, (m, n)))(jax.random.key(0))
    assert sizes(dense)[0][0] >= m * n  # the walker does see a full matrix where there is one


@pytest.mark.parametrize(("m", "n", "s", "l"), [(20, 30, 4, 8), (33, 17, 3, 5), (12, 12, 2, 2)])
def test_ares_sketches_are_the_sketches_of_one_matrix(m, n, s, l):
    psi, omega = rk.gaussian(1, m, l), rk.gaussian(2, n, s)
    key = jax.random.key(5)
    f = init.ares_sketches(key, psi, omega, gain=0.7)
    w = _f64(reconstruct(init.range_finder(key, m, n, s, gain=0.7)))  # the same virtual matrix
    p, o = _f64(rk.materialize(psi)), _f64(rk.materialize(omega))
    for actual, expected in ((f.c, w @ o), (f.u.T, p.T @ w @ o), (f.r, p.T @ w)):
        np.testing.assert_allclose(actual, expected, atol=2e-4 * np.abs(expected).max())


def test_a_seeded_core_starts_as_a_dense_layer_would():
    f = init.seeded(jax.random.key(0), rk.srht(1, 200, 120), rk.srht(2, 300, 100))
    assert f.u.shape == (120, 100)
    assert abs(_f64(f.u).var() * 120 / 2 - 1) < 4 * np.sqrt(2 / f.u.size)  # He: 2 / s_in


def _decaying(m, n, seed=0):
    """Singular values 1 / j^1.5 with random singular vectors."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(m, m)))
    right, _ = np.linalg.qr(rng.normal(size=(n, n)))
    sigma = np.arange(1, min(m, n) + 1.0) ** -1.5
    return (left[:, : sigma.size] * sigma) @ right[:, : sigma.size].T, sigma


def _squared_errors(w, rank, method, seeds):
    keys = jax.random.split(jax.random.key(11), seeds)
    dense = jnp.asarray(w, jnp.float32)
    run = lambda key: reconstruct(init.from_dense(dense, rank, key, method=method))
    approximations = jax.jit(lambda k: jax.lax.map(run, k))(keys)
    return np.array([np.sum((_f64(a) - w) ** 2) for a in approximations])


def test_svd_error_is_near_the_optimum_over_seeds():
    """q = 2 power iterations, oversampling 8: the singular values seen are those of W^5.

    HMT corollary 10.10 in that form bounds the expected spectral error by
    (1 + sqrt(s / (p-1)) + e sqrt(s+p) / p * sqrt(min(m,n) - s))^(1/5) sigma_{s+1}, here
    (1 + sqrt(6/7) + e sqrt(14)/8 sqrt(24))^(1/5) = 1.52; the Frobenius error is far inside.
    """
    w, sigma = _decaying(40, 30)
    best = np.sum(sigma[6:] ** 2)
    errors = _squared_errors(w, 6, "svd", 20)
    assert errors.min() >= best * (1 - 1e-4)
    assert errors.mean() <= 1.52**2 * best
    assert errors.max() <= 1.05 * best  # what it is in practice for this decay


def test_nystrom_error_obeys_the_bound_over_seeds():
    """Generalised Nystroem with Gaussian sketches, l = 2 s.

    E ||W - CUR||_F^2 <= (1 + s / (l - s - 1)) (1 + k / (s - k - 1)) sum_{j > k} sigma_j^2 for every
    k < s - 1 (Tropp et al. 2017, theorem 4.3; Nakatsukasa 2020, theorem 3.1). The mean of 64 seeds
    lies within three of its standard errors, estimated from the seeds, of the expectation.
    """
    w, sigma = _decaying(40, 30)
    s, l = 8, 16
    bound = min(
        (1 + s / (l - s - 1)) * (1 + k / (s - k - 1)) * np.sum(sigma[k:] ** 2) for k in range(s - 1)
    )
    errors = _squared_errors(w, s, "nystrom", 64)
    assert errors.mean() <= bound + 3 * errors.std() / 8
    assert errors.min() >= np.sum(sigma[s:] ** 2) * (1 - 1e-4)


def test_cur_beats_the_additive_bound_over_seeds():
    """Norm-weighted columns: E ||W - C C^+ W||_F^2 <= ||W - W_k||_F^2 + k / c ||W||_F^2.

    Frieze, Kannan, Vempala (2004), theorem 2, with c columns, for every k <= c. With U = C^+ W R^+
    the errors of columns and rows add (Pythagoras), which bounds the expectation by their sum. The
    core here, (Psi^T W Omega)^+, is cheaper and not that optimum; the same bound is asked of it
    (W = 0 would miss it twofold).
    """
    w, sigma = _decaying(40, 30)
    total = np.sum(sigma**2)
    additive = lambda c: min(np.sum(sigma[k:] ** 2) + k / c * total for k in range(c))
    errors = _squared_errors(w, 8, "cur", 32)
    assert np.mean(errors) <= additive(8) + additive(16) < 0.5 * total
    assert errors.min() >= np.sum(sigma[8:] ** 2) * (1 - 1e-4)


@pytest.mark.parametrize("method", ["svd", "nystrom", "cur"])
@pytest.mark.parametrize(("m", "n"), [(23, 14), (14, 23), (9, 9)])
def test_a_matrix_of_rank_s_is_kept(m, n, method):
    """Every method is exact on rank s, up to the ridge; CUR draws rows by norm, so with repeats."""
    rng = np.random.default_rng(2)
    w = rng.normal(size=(m, 2)) @ rng.normal(size=(2, n))
    f = init.from_dense(jnp.asarray(w, jnp.float32), 4, jax.random.key(1), method=method)
    assert f.c.shape == (m, 4) and f.u.shape == (4, 4) and f.r.shape == (4, n)
    np.testing.assert_allclose(reconstruct(f), w, atol=1e-2 * np.abs(w).max())


def test_an_existing_matrix_sketched_for_the_parallel_stage():
    w, sigma = _decaying(40, 30)
    psi, omega = rk.gaussian(1, 40, 10), rk.gaussian(2, 30, 5)
    f = init.ares_from_dense(jnp.asarray(w, jnp.float32), psi, omega, jax.random.key(0))
    p, o = _f64(rk.materialize(psi)), _f64(rk.materialize(omega))
    np.testing.assert_allclose(p.T @ _f64(f.c), f.u.T, atol=1e-5)
    np.testing.assert_allclose(_f64(f.r) @ o, f.u.T, atol=1e-5)
    kept = SketchFactors(c=f.c, u=core_from_sketch(f.u.T), r=f.r)
    error = np.linalg.norm(_f64(reconstruct(kept)) - w)
    assert error <= 1.05 * np.linalg.norm(sigma[5:]) + 1e-2


def test_the_seeded_core_of_an_existing_matrix_is_the_least_squares_one():
    w, _ = _decaying(40, 30)
    psi, omega = rk.srht(1, 40, 12), rk.sparse_sign(2, 30, 6)
    f = init.seeded_from_dense(jnp.asarray(w, jnp.float32), psi, omega)
    p, o = _f64(rk.materialize(psi)), _f64(rk.materialize(omega))
    expected = np.linalg.pinv(p) @ w @ np.linalg.pinv(o.T) / np.sqrt(12 / 40)
    np.testing.assert_allclose(f.u, expected, atol=1e-4 * np.abs(expected).max())


def test_what_does_not_fit_is_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"rank 6 is outside 1\.\.min\(in=20, out=5\)=5"):
        init.range_finder(key, 20, 5, 6)
    with pytest.raises(ValueError, match="rank 6 is outside"):
        init.ares_sketches(key, rk.gaussian(1, 5, 6), rk.gaussian(2, 20, 6))
    with pytest.raises(ValueError, match="rank 6 is outside"):
        init.from_dense(jnp.ones((20, 5)), 6, key)
    with pytest.raises(ValueError, match="unknown method 'qr'"):
        init.from_dense(jnp.ones((20, 5)), 2, key, method="qr")


def test_range_finder_batches_over_keys_without_compiling_again():
    one = chex.assert_max_traces(lambda key: init.range_finder(key, 20, 30, 4), n=1)
    many = jax.jit(jax.vmap(one))
    keys = jax.random.split(jax.random.key(0), 3)
    batch = many(keys)
    many(jax.random.split(jax.random.key(1), 3))
    for i in range(3):
        alone = reconstruct(init.range_finder(keys[i], 20, 30, 4))
        member = reconstruct(jax.tree.map(lambda v, i=i: v[i], batch))
        np.testing.assert_allclose(member, alone, atol=1e-5)
