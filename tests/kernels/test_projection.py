"""project and project_transpose: against float64, under every transformation."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rosler_kernels as rk
from rosler_kernels.projection import _blocks, _dense, xla
from rosler_kernels.specs import Spec, tolerance

KINDS = list(rk.FAMILIES)
RANDOM = [kind for kind in KINDS if not rk.FAMILIES[kind].fixed]
SIZES = [(100, 24), (1, 1), (129, 65)]


def new(kind, seed, rows, cols):
    if rk.FAMILIES[kind].weighted:
        return rk.make(kind, seed, rows, cols, w=jax.random.normal(jax.random.key(99), (rows, 3)))
    return rk.make(kind, seed, rows, cols)


def normal(seed, shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def exact(sketch):
    return np.asarray(rk.materialize(sketch), np.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("implementation", "rows", "cols"),
    [("xla", *size) for size in SIZES] + [("reference", 37, 13)],
)
def test_matches_float64(kind, rows, cols, implementation):
    sketch = new(kind, 3, rows, cols)
    omega = exact(sketch)
    x, y = normal(0, (5, rows)), normal(1, (5, cols))
    got = rk.project(x, sketch, implementation=implementation)
    back = rk.project_transpose(y, sketch, implementation=implementation)
    # Sums of at most 129 float32 products of size about 1: rounding below 129 * 6e-8.
    scale = max(1.0, np.abs(omega).max())
    np.testing.assert_allclose(got, np.asarray(x, np.float64) @ omega, atol=1e-5 * scale)
    np.testing.assert_allclose(back, np.asarray(y, np.float64) @ omega.T, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_many_tiles_match_one(kind, monkeypatch):
    sketch = new(kind, 3, 1000, 30)
    x, y = normal(0, (3, 1000)), normal(1, (3, 30))
    monkeypatch.setattr(_dense, "TILE_ENTRIES", 128 * 30)  # 7 tiles of 128 rows and one of 104
    got, back = jax.jit(xla.project)(x, sketch), jax.jit(xla.project_transpose)(y, sketch)
    np.testing.assert_allclose(got, np.asarray(x, np.float64) @ exact(sketch), atol=1e-4)
    np.testing.assert_allclose(back, np.asarray(y, np.float64) @ exact(sketch).T, atol=1e-4)


@pytest.mark.parametrize(
    "limits", [{}, {"TILE_BYTES": (64 * 40 * 4,) * 2, "NUMBERS": 20 * 64}], ids=len
)
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_paths_of_other_platforms_match_float64(kind, dtype, platform, limits, monkeypatch):
    for name, value in limits.items():  # loops of several blocks, the last of them smaller
        monkeypatch.setattr(_dense if name == "TILE_BYTES" else _blocks, name, value)
    sketch = new(kind, 5, 400, 70)
    rng = np.random.default_rng(0)
    for function, width, transpose in (
        (xla.project, 400, False),
        (xla.project_transpose, 70, True),
    ):
        x = jnp.asarray(rng.normal(size=(50, width)), dtype)
        got = jax.jit(functools.partial(function, platform=platform))(x, sketch)
        assert got.dtype == x.dtype
        omega = exact(sketch)
        want = np.asarray(x, np.float64) @ (omega.T if transpose else omega)
        rtol, atol = tolerance(Spec(kind, 50, 400, 70, dtype, transpose))
        narrow = 2.0**-13 if dtype != "float32" and not rk.FAMILIES[kind].signed else 0.0
        np.testing.assert_allclose(
            np.asarray(got, np.float64), want, rtol=rtol, atol=2 * atol + narrow
        )


LARGE = (8192, 512) if jax.default_backend() == "cpu" else (65536, 2048)
# 16.8 MB of float32 entries, and a few of tiles and words; cuBLAS alone takes 32 MB for itself.
ALLOWED = 6e6 if jax.default_backend() == "cpu" else 60e6


@pytest.mark.parametrize("kind", [k for k in KINDS if not rk.FAMILIES[k].weighted])
def test_a_large_omega_is_never_formed(kind):
    sketch = new(kind, 0, min(LARGE[0], 46_340) if kind == "dct" else LARGE[0], LARGE[1])
    x, y = jnp.zeros((2, sketch.rows)), jnp.zeros((2, sketch.cols))
    for function, argument in ((rk.project, x), (rk.project_transpose, y)):
        compiled = jax.jit(function).lower(argument, sketch).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < ALLOWED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "lead"),
    [
        (jnp.float32, 1e-5, ()),
        (jnp.float32, 1e-5, (0,)),
        (jnp.float16, 1e-3, (2, 1, 3)),
        (jnp.bfloat16, 8e-3, (2, 3)),
    ],
)
def test_dtypes_and_leading_dimensions(kind, dtype, tolerance, lead):
    sketch = new(kind, 3, 50, 20)
    omega = exact(sketch)
    x, y = normal(0, (*lead, 50), dtype), normal(1, (*lead, 20), dtype)
    got, back = rk.project(x, sketch), rk.project_transpose(y, sketch)
    assert got.dtype == back.dtype == dtype
    # float32 inside: what is left is one rounding of the result (2^-11 for float16, 2^-8 for
    # bfloat16).
    for result, want in (
        (got, np.asarray(x, np.float64) @ omega),
        (back, np.asarray(y, np.float64) @ omega.T),
    ):
        assert result.shape == want.shape
        result = np.asarray(result, np.float64)
        np.testing.assert_allclose(result, want, rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_float64(kind):
    sketch = new(kind, 3, 40, 12)
    omega = exact(sketch)
    x, y = normal(0, (5, 40)), normal(1, (5, 12))
    weights, weights_t = normal(2, (5, 12)), normal(3, (5, 40))

    def loss(x):
        return jnp.sum(jnp.sin(rk.project(x, sketch)) * weights)

    def loss_t(y):
        return jnp.sum(jnp.sin(rk.project_transpose(y, sketch)) * weights_t)

    x64, y64 = np.asarray(x, np.float64), np.asarray(y, np.float64)
    want = (np.cos(x64 @ omega) * np.asarray(weights)) @ omega.T
    want_t = (np.cos(y64 @ omega.T) * np.asarray(weights_t)) @ omega
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(x), want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jax.grad(loss_t)(y), want_t, rtol=1e-4, atol=1e-4)
    per_example = jax.jit(
        jax.vmap(jax.grad(lambda x, w: jnp.sum(jnp.sin(rk.project(x, sketch)) * w)))
    )
    np.testing.assert_allclose(per_example(x, weights), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives(kind):
    # f(x) = sum sin(x Omega): grad of <grad f, v> is -(sin(x Omega) * (v Omega)) Omega^T.
    sketch = new(kind, 3, 16, 6)
    omega = exact(sketch)
    x, v = normal(0, (16,)), normal(1, (16,))
    f = lambda x: jnp.sum(jnp.sin(rk.project(x, sketch)))
    got = jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), v))(x)
    x64, v64 = np.asarray(x, np.float64), np.asarray(v, np.float64)
    np.testing.assert_allclose(got, -(np.sin(x64 @ omega) * (v64 @ omega)) @ omega.T, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_transpose_is_the_adjoint(kind):
    sketch = new(kind, 3, 90, 31)
    x, y = normal(0, (90,)), normal(1, (31,))
    forward = jnp.vdot(rk.project(x, sketch), y)
    backward = jnp.vdot(x, rk.project_transpose(y, sketch))
    np.testing.assert_allclose(forward, backward, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", RANDOM)
def test_vmap_over_seeds_equals_a_loop(kind):
    x, seeds = normal(0, (3, 50)), jnp.arange(4)
    sketch = jax.jit(lambda seed: new(kind, seed, 50, 20))
    mapped = jax.jit(jax.vmap(lambda seed: rk.project(x, new(kind, seed, 50, 20))))(seeds)
    omegas = [exact(sketch(seed)) for seed in range(4)]
    for got, omega in zip(mapped, omegas, strict=True):
        np.testing.assert_allclose(got, np.asarray(x, np.float64) @ omega, atol=1e-4)
    assert (omegas[0] != omegas[1]).any()
    # Gradients with everything mapped: seeds and inputs. d ||x Omega||^2 = 2 x Omega Omega^T.
    xs = normal(1, (4, 3, 50))

    def loss(x, seed):
        return jnp.sum(jnp.square(rk.project(x, new(kind, seed, 50, 20))))

    got = jax.jit(jax.vmap(jax.grad(loss)))(xs, seeds)
    for k, omega in enumerate(omegas):
        want = 2 * np.asarray(xs[k], np.float64) @ omega @ omega.T
        np.testing.assert_allclose(got[k], want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_sketches_can_be_mapped_and_scanned(kind):
    stacked = jax.vmap(lambda seed: new(kind, seed, 30, 10))(jnp.arange(3))
    x = normal(0, (2, 30))
    mapped = jax.vmap(rk.project, (None, 0))(x, stacked)
    _, scanned = jax.lax.scan(lambda c, sketch: (c, rk.project(x, sketch)), 0, stacked)
    np.testing.assert_allclose(mapped, scanned, atol=1e-5)


@pytest.mark.parametrize("kind", RANDOM)
def test_a_new_seed_does_not_retrace(kind):
    chex.clear_trace_counter()
    step = jax.jit(
        chex.assert_max_traces(
            lambda x, sketch: jax.grad(lambda x: rk.project(x, sketch).sum())(x), 1
        )
    )
    x = normal(0, (3, 40))
    a, b = step(x, new(kind, 1, 40, 8)), step(x, new(kind, 2, 40, 8))
    assert (np.asarray(a) != np.asarray(b)).any()


def test_no_gradient_reaches_weighted_scales():
    w = normal(0, (20, 3))
    loss = lambda w: rk.project(jnp.ones(20), rk.rows_norm(0, w, 6)).sum()
    np.testing.assert_array_equal(jax.grad(loss)(w), np.zeros((20, 3)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: rk.project(jnp.ones((2, 9)), s), ValueError, "rows=10"),
        (lambda s: rk.project_transpose(jnp.ones((2, 9)), s), ValueError, "cols=4"),
        (lambda s: rk.project(jnp.ones(()), s), ValueError, "rows=10"),
        (lambda s: rk.project(jnp.ones((2, 10), jnp.int32), s), TypeError, "int32"),
        (lambda s: rk.project(jnp.ones(10), s, implementation="cuda"), ValueError, "cuda"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call(rk.gaussian(0, 10, 4))
