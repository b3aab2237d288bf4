"""Factors against float64 NumPy: products, balance, fold, truncation, the core solve."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

import rosler_kernels as rk
from rosler_jax.factors import (
    SeededFactors,
    SketchFactors,
    TwoFactors,
    apply,
    balance,
    check_rank,
    core_from_sketch,
    fold,
    reconstruct,
    truncate,
)

SHAPES = [(7, 5, 1, 1), (33, 17, 4, 4), (20, 31, 3, 6), (40, 12, 6, 3), (6, 6, 6, 6)]


def _random(shape, seed=0, dtype=jnp.float32):
    m, n, s, l = shape
    rng = np.random.default_rng(seed)
    draw = lambda *size: jnp.asarray(rng.normal(size=size), dtype)
    return SketchFactors(c=draw(m, s), u=draw(s, l), r=draw(l, n))


def _dense(f):
    """float64 reference of ``C U R``."""
    c, u, r = (np.asarray(v, np.float64) for v in (f.c, f.u, f.r))
    return c @ u @ r


def _close(actual, expected, tolerance):
    error = np.abs(np.asarray(actual, np.float64) - expected).max()
    assert error <= tolerance * np.abs(expected).max(), error


@pytest.mark.parametrize("shape", SHAPES)
def test_reconstruct_apply_and_fold_agree_with_float64(shape):
    f = _random(shape)
    m, n, s, l = shape
    w = _dense(f)
    x = np.random.default_rng(1).normal(size=(2, 3, m)).astype(np.float32)
    folded = fold(f)
    k = min(s, l)
    assert folded.c.shape == (m, k) and folded.r.shape == (k, n)
    for factors in (f, folded):
        _close(reconstruct(factors), w, 1e-5)
        y = apply(factors, jnp.asarray(x))
        assert y.shape == (2, 3, n) and y.dtype == jnp.float32
        _close(y, x.astype(np.float64) @ w, 1e-5)


@pytest.mark.parametrize("kind", ["gaussian", "srht", "sparse_sign"])
def test_seeded_factors_agree_with_float64(kind):
    psi, omega = rk.make(kind, 1, 21, 8), rk.make(kind, 2, 33, 5)
    u = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    f = SeededFactors(u=jnp.asarray(u), psi=psi, omega=omega)
    p, o = (np.asarray(rk.materialize(s), np.float64) for s in (psi, omega))
    w = np.sqrt(8 / 21) * p @ u @ o.T
    _close(reconstruct(f), w, 1e-5)
    x = np.random.default_rng(1).normal(size=(4, 21)).astype(np.float32)
    _close(apply(f, jnp.asarray(x)), x @ w, 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_balance_keeps_the_matrix_and_splits_the_singular_values(shape):
    f = _random(shape)
    s, l = shape[2:]
    b = balance(f)
    chex.assert_trees_all_equal_shapes_and_dtypes(f, b)
    w = _dense(f)
    _close(_dense(b), w, 1e-5)
    k = min(s, l)
    sigma = np.linalg.svd(w, compute_uv=False)[:k]
    root = np.cbrt(sigma)
    np.testing.assert_allclose(np.diag(b.u)[:k], root, rtol=1e-3)
    c, r = (np.asarray(v, np.float64) for v in (b.c, b.r))
    pad = lambda size: np.diag(np.pad(root**2, (0, size - k)))
    tolerance = 1e-4 * root[0] ** 2
    np.testing.assert_allclose(c.T @ c, pad(s), atol=tolerance)
    np.testing.assert_allclose(r @ r.T, pad(l), atol=tolerance)
    assert np.count_nonzero(np.asarray(b.u)) == k


def test_balance_of_badly_scaled_factors_is_stable():
    f = _random((30, 20, 4, 4))
    scaled = SketchFactors(c=1e4 * f.c, u=f.u, r=1e-4 * f.r)
    b = balance(scaled)
    _close(_dense(b), _dense(f), 1e-5)
    norms = [float(jnp.linalg.norm(v, 2)) for v in (b.c, b.u, b.r)]
    np.testing.assert_allclose(norms, norms[0], rtol=1e-4)


def test_surplus_rows_stay_zero_under_gradient_descent():
    b = balance(_random((20, 31, 3, 6)))
    x, t = jnp.ones((4, 20)), jnp.ones((4, 31))
    grads = jax.grad(lambda f: ((apply(f, x) - t) ** 2).sum())(b)
    assert float(jnp.abs(grads.r[3:]).max()) == float(jnp.abs(grads.u[:, 3:]).max()) == 0.0
    assert float(jnp.abs(grads.r[:3]).max()) > 0


def test_balance_refuses_factors_that_are_wider_than_the_matrix():
    with pytest.raises(ValueError, match=r"rank 6<=in=5 and co-range dimension 6<=out=20"):
        balance(_random((5, 20, 6, 6)))
    with pytest.raises(ValueError, match=r"co-range dimension 9<=out=8"):
        balance(_random((20, 8, 4, 9)))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_truncation_is_the_best_approximation_of_that_rank(rank):
    f = _random((33, 17, 4, 6))
    cut = truncate(f, rank)
    assert cut.c.shape == (33, rank) and cut.u.shape == (rank, rank) and cut.r.shape == (rank, 17)
    left, sigma, right = np.linalg.svd(_dense(f), full_matrices=False)
    _close(_dense(cut), (left[:, :rank] * sigma[:rank]) @ right[:rank], 2e-5)


def test_ranks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"rank 5 is outside 1\.\.4"):
        truncate(_random((33, 17, 4, 6)), 5)
    with pytest.raises(ValueError, match=r"rank 0 is outside 1\.\.4"):
        truncate(_random((33, 17, 4, 6)), 0)
    with pytest.raises(ValueError, match=r"rank 32 is outside 1\.\.min\(in=16, out=64\)=16"):
        check_rank(32, 16, 64)
    check_rank(16, 16, 64)


@pytest.mark.parametrize("size", [(1, 1), (6, 3), (8, 8), (13, 5)])
def test_core_is_the_pseudo_inverse(size):
    """The ridge lam moves the inverse of a singular value by lam / sigma^2 at most, relatively."""
    a = np.random.default_rng(3).normal(size=size)
    sigma = np.linalg.svd(a, compute_uv=False)
    lam = 1e-6 * (sigma**2).sum() / size[1]
    u = core_from_sketch(jnp.asarray(a, jnp.float32))
    expected = np.linalg.pinv(a)
    bound = lam / sigma[-1] ** 2 + 1e-6 * sigma[0] / sigma[-1]
    assert np.linalg.norm(u - expected, 2) <= (bound + 1e-5) * np.linalg.norm(expected, 2)
    regularised = np.linalg.solve(a.T @ a + lam * np.eye(size[1]), a.T)
    _close(u, regularised, 1e-5 * max(1, sigma[0] / sigma[-1]))


def test_core_of_a_singular_or_zero_sketch_is_bounded():
    """``||U||_2 <= 1 / (2 sqrt(lam))``, whatever A is; zero in, zero out and no NaN."""
    a = np.outer(np.arange(1.0, 7.0), [1.0, 2.0, 3.0])
    lam = 1e-6 * (a**2).sum() / 3
    u = core_from_sketch(jnp.asarray(a, jnp.float32))
    assert np.linalg.norm(u, 2) <= 0.5 / np.sqrt(lam)
    # A U A is A again, up to the ridge on the one singular value that there is.
    _close(a @ np.asarray(u, np.float64) @ a, a, 1e-3)
    zero = core_from_sketch(jnp.zeros((6, 3)))
    assert np.array_equal(zero, np.zeros((3, 6)))


def test_half_precision_is_computed_in_float32():
    f = _random((33, 17, 4, 4), dtype=jnp.bfloat16)
    assert core_from_sketch(f.u).dtype == jnp.float32
    b = balance(f)
    assert b.c.dtype == jnp.bfloat16
    _close(_dense(b), _dense(f), 3 * 2.0**-8)  # each factor is rounded to 8 bits once


@pytest.mark.parametrize("function", [balance, reconstruct, lambda f: truncate(f, 2)])
def test_jit_and_vmap_do_as_a_loop_does(function):
    f = [_random((14, 11, 3, 4), seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *f)
    batch = jax.jit(jax.vmap(function))(stacked)
    for i, one in enumerate(f):
        one, member = function(one), jax.tree.map(lambda v, i=i: v[i], batch)
        if isinstance(one, SketchFactors):  # the signs of singular vectors are free
            one, member = reconstruct(one), reconstruct(member)
        np.testing.assert_allclose(member, one, atol=1e-4)


def test_one_compilation_for_all_factors_of_a_shape():
    traced = chex.assert_max_traces(lambda f: reconstruct(balance(f)), n=1)
    jitted = jax.jit(traced)
    jitted(_random((14, 11, 3, 4), 0))
    jitted(_random((14, 11, 3, 4), 1))


@pytest.mark.parametrize("form", ["three", "two", "seeded"])
def test_gradients_are_those_of_the_dense_product(form):
    """With W the matrix that is represented, dL/dx = delta W^T and dL/dU = C^T G R^T."""
    m, n = 12, 9
    rng = np.random.default_rng(4)
    x, t = rng.normal(size=(5, m)), rng.normal(size=(5, n))
    f = _random((m, n, 3, 4))
    if form == "two":
        f = TwoFactors(c=f.c, r=f.u @ f.r)
    if form == "seeded":
        f = SeededFactors(u=jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
                          psi=rk.gaussian(1, m, 6), omega=rk.gaussian(2, n, 4))  # fmt: skip

    def rebuilt(thin):
        if form == "seeded":
            return SeededFactors(u=thin[0], psi=f.psi, omega=f.omega)
        kind, names = (SketchFactors, "cur") if form == "three" else (TwoFactors, "cr")
        return kind(**dict(zip(names, thin, strict=True)))

    loss = lambda x, thin: ((apply(rebuilt(thin), x) - t) ** 2).sum()
    thin = {"three": lambda: (f.c, f.u, f.r), "two": lambda: (f.c, f.r), "seeded": lambda: (f.u,)}
    dx, d_thin = jax.grad(loss, (0, 1))(jnp.asarray(x, jnp.float32), thin[form]())
    w = np.asarray(reconstruct(f), np.float64)
    delta = 2 * (x @ w - t)
    g = x.T @ delta
    _close(dx, delta @ w.T, 1e-4)
    if form == "seeded":
        p, o = (np.asarray(rk.materialize(s), np.float64) for s in (f.psi, f.omega))
        _close(d_thin[0], np.sqrt(6 / m) * p.T @ g @ o, 1e-4)
    elif form == "two":
        _close(d_thin[0], g @ np.asarray(f.r, np.float64).T, 1e-4)
        _close(d_thin[1], np.asarray(f.c, np.float64).T @ g, 1e-4)
    else:
        c, u, r = (np.asarray(v, np.float64) for v in (f.c, f.u, f.r))
        for actual, expected in zip(
            d_thin, (g @ (u @ r).T, c.T @ g @ r.T, (c @ u).T @ g), strict=True
        ):
            _close(actual, expected, 1e-4)


def test_the_core_solve_has_the_gradient_of_finite_differences():
    a = jnp.asarray(np.random.default_rng(5).normal(size=(5, 3)), jnp.float32)
    solve = jax.jit(lambda a: core_from_sketch(a, ridge=1e-2))
    jax.test_util.check_grads(solve, (a,), 1, ["rev"], rtol=5e-2)
    one = jax.grad(lambda a: core_from_sketch(a).sum())
    per_member = jax.jit(jax.vmap(one))(jnp.stack([a, 2 * a]))
    assert bool(jnp.isfinite(per_member).all())
