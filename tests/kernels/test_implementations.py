"""Every implementation of every operation: one numerics suite, against float64.

The Mosaic kernels run through their interpreters, which simulate the memories and the threads of
the device and look for races. On a GPU or a TPU the same tests run the kernels for real.
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rosler_kernels as rk
from rosler_kernels import _entries
from rosler_kernels.specs import KERNEL_FAMILIES, SMALL, Spec, tolerance

PLATFORM = jax.default_backend()
IMPLEMENTATIONS = [
    "xla",
    "mosaic_gpu" if PLATFORM == "gpu" else "mosaic_gpu_interpret",
    "mosaic_tpu" if PLATFORM == "tpu" else "mosaic_tpu_interpret",
]
KERNELS = IMPLEMENTATIONS[1:]
# Of the products of family, shape, dtype and direction, half: every pair of them.
PAIRS = [spec for i, spec in enumerate(SMALL) if (i // 2 + i) % 2 == 0]

materialize = jax.jit(rk.materialize)


@pytest.fixture(autouse=True)
def no_races(request):
    """Fails a test in which an interpreter saw a race."""
    yield
    for find in (_gpu_races, _tpu_races):
        races = find()
        assert races is None or not races.races_found


def _gpu_races():
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    try:
        return gpu_callbacks.get_races()
    except Exception:
        return None


def _tpu_races():
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    return getattr(interpret_pallas_call, "races", None)


def exact(sketch):
    return np.asarray(materialize(sketch), np.float64)


def normal(seed, *shape):
    """By NumPy: JAX's would be compiled for every shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def check(got, want, rtol, atol):
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rtol, atol=atol)


def run(spec, x, sketch, implementation):
    function = rk.project_transpose if spec.transpose else rk.project
    return function(x, sketch, implementation=implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("spec", PAIRS, ids=lambda spec: spec.name)
def test_projection_matches_float64(spec, implementation):
    sketch, x = spec.sketch(3), spec.inputs(0)
    omega = exact(sketch)
    got = run(spec, x, sketch, implementation)
    assert got.dtype == x.dtype
    rtol, atol = tolerance(spec)
    check(got, np.asarray(x, np.float64) @ (omega.T if spec.transpose else omega), rtol, atol)


@pytest.mark.parametrize("implementation", ["xla", *(["mosaic_gpu"] if PLATFORM == "gpu" else [])])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("rows", [1024, 8192, 65536])
def test_long_sums_of_float32_do_not_drift(rows, kind, implementation):
    # Tensor cores cut off what they add, which no interpreter shows: by 1.5e-6 to 4e-6, once.
    # CPUs without wide vectors add runs of up to 2,048 terms one by one, without bias: the rounding
    # of a run of n is 1.8e-8 sqrt(n) of its sum, 8e-7 here.
    most = 1.2e-6 if PLATFORM == "cpu" else 5e-7
    sketch, x = rk.make(kind, 0, rows, 64), normal(0, 64, rows)
    want = np.asarray(x, np.float64) @ exact(sketch)
    got = np.asarray(rk.project(x, sketch, implementation=implementation), np.float64)
    assert np.linalg.norm(got - want) < most * np.linalg.norm(want)
    assert abs(np.mean((got - want) * np.sign(want))) < 2e-7 * np.abs(want).mean()


@functools.cache
def _jitted(implementation, transpose):
    function = rk.project_transpose if transpose else rk.project
    return jax.jit(functools.partial(function, implementation=implementation))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KERNEL_FAMILIES),
    rows=st.integers(1, 200),
    cols=st.integers(1, 150),
    lead=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    seed=st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1]),
    transpose=st.booleans(),
)
def test_any_shape_and_seed(implementation, kind, rows, cols, lead, dtype, seed, transpose):
    limits = {"srht": 1 << (rows - 1).bit_length(), "pool": rows}
    cols = min(cols, limits.get(kind, cols))
    spec = Spec(kind, 1, rows, cols, dtype, transpose)
    sketch = spec.sketch(seed)
    x = normal(0, *lead, cols if transpose else rows).astype(dtype)
    omega = exact(sketch)
    want = np.asarray(x, np.float64) @ (omega.T if transpose else omega)
    rtol, atol = tolerance(spec)
    got = _jitted(implementation, transpose)(x, sketch)
    assert got.shape == want.shape
    check(got, want, rtol, atol)


@pytest.mark.parametrize("kind", KERNEL_FAMILIES)
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("size", [(64, 1), (9, 1), (2, 1), (1, 2)], ids=str)
def test_vectors_compile(kind, size, seeds):
    """XLA fuses a product of vectors with what makes them; the hash may then grow exponentially."""
    rows, cols = size
    cols = min(cols, rows) if kind in ("srht", "pool") else cols

    def both(seed, x, y):
        sketch = rk.make(kind, seed, rows, cols)
        return rk.project(x, sketch), rk.project_transpose(y, sketch)

    x, y = np.ones((seeds, 1, rows), np.float32), np.ones((seeds, 1, cols), np.float32)
    with rk.use_implementation("xla"):
        got, back = jax.jit(jax.vmap(both))(jnp.arange(seeds), x, y)
    for seed in range(seeds):
        omega = exact(rk.make(kind, seed, rows, cols))
        check(got[seed], x[seed] @ omega, 1e-5, 1e-5)
        check(back[seed], y[seed] @ omega.T, 1e-5, 1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KERNEL_FAMILIES)
def test_vmap_of_grad_over_inputs_and_seeds(kind, implementation):
    xs = normal(1, 2, 3, 50)

    def loss(x, seed):
        sketch = rk.make(kind, seed, 50, 20)
        return jnp.sum(jnp.sin(rk.project(x, sketch, implementation=implementation)))

    got = jax.jit(jax.vmap(jax.grad(loss)))(xs, jnp.arange(2))
    for k in range(2):
        omega = exact(rk.make(kind, k, 50, 20))
        x = np.asarray(xs[k], np.float64)
        check(got[k], np.cos(x @ omega) @ omega.T, 1e-4, 1e-4)


@pytest.mark.parametrize("implementation", KERNELS)
def test_a_new_seed_does_not_retrace(implementation):
    chex.clear_trace_counter()
    step = jax.jit(
        chex.assert_max_traces(
            lambda x, sketch: rk.project(x, sketch, implementation=implementation), 1
        )
    )
    x = jnp.ones((3, 40))
    a, b = step(x, rk.rademacher(1, 40, 8)), step(x, rk.rademacher(2, 40, 8))
    assert (np.asarray(a) != np.asarray(b)).any()


CHAINS = {
    "stored": lambda c, r: (c, r),
    "seeded": lambda c, r: (rk.srht(1, c.shape[0], c.shape[1]), rk.rademacher(2, *r.shape[::-1])),
    "half": lambda c, r: (c, rk.gaussian(2, *r.shape[::-1])),
}


def factors(b, m, s, l, n, dtype):
    x, c, u, r = normal(0, b, m), normal(1, m, s), normal(2, s, l), normal(3, l, n)
    return tuple(
        a.astype(dtype) for a in (x, c / m**0.5, u / max(s, 1) ** 0.5, r / max(l, 1) ** 0.5)
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("held", CHAINS)
@pytest.mark.parametrize("sizes", [(40, 150, 20, 30, 200), (70, 300, 64, 128, 90)], ids=str)
def test_chain_matches_float64(sizes, held, implementation):
    x, c, u, r = factors(*sizes, jnp.bfloat16)
    left, right = CHAINS[held](c, r)
    got = np.asarray(rk.sketch_matmul(x, left, u, right, implementation=implementation), np.float64)
    c, r = (
        exact(left) if isinstance(left, rk.Sketch) else np.asarray(c, np.float64),
        exact(right).T if isinstance(right, rk.Sketch) else np.asarray(r, np.float64),
    )
    want = np.asarray(x, np.float64) @ c @ np.asarray(u, np.float64) @ r
    # Three roundings to bfloat16 (2^-9 each), the first two averaged over the next contraction.
    assert np.abs(np.asarray(got, np.float64) - want).max() < 3 * 2.0**-9 * np.abs(want).max()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("held", CHAINS)
def test_chain_gradients_of_the_successive_stage(held, implementation):
    x, c, u, r = factors(10, 30, 5, 7, 20, jnp.bfloat16)
    left, right = CHAINS[held](c, r)
    stored = [not isinstance(f, rk.Sketch) for f in (left, right)]

    def loss(args, implementation):
        x, u, *rest = args
        a = rest.pop(0) if stored[0] else left
        b = rest.pop(0) if stored[1] else right
        y = rk.sketch_matmul(x, a, u, b, implementation=implementation)
        return jnp.sum(jnp.sin(y.astype(jnp.float32)))

    args = [x, u, *([left] if stored[0] else []), *([right] if stored[1] else [])]
    grad = jax.jit(jax.grad(loss), static_argnums=1)
    got = grad(args, implementation)
    want = grad([a.astype(jnp.float32) for a in args], "reference")
    for a, b in zip(got, want, strict=True):
        assert np.abs(np.asarray(a, np.float32) - b).max() < 0.02 * np.abs(b).max()


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_chain_cotangents_of_the_parallel_stage_are_sketches_of_the_gradient(implementation):
    x, c, u, r = factors(10, 30, 5, 7, 20, jnp.float32)
    psi, omega = rk.rademacher(1, 30, 7), rk.gaussian(2, 20, 5)
    weights = normal(5, 10, 20)

    def loss(x, c, u, r):
        y = rk.sketch_matmul(
            x, c, u, r, parallel=rk.Parallel(psi, omega), implementation=implementation
        )
        return jnp.sum(y * weights)

    dx, dc, du, dr = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(x, c, u, r)
    x, c, u, r, delta = (np.asarray(a, np.float64) for a in (x, c, u, r, weights))
    g = x.T @ delta
    check(dx, delta @ (c @ u @ r).T, 1e-4, 1e-4)
    check(dc, g @ exact(omega), 1e-4, 1e-4)
    check(dr, exact(psi).T @ g, 1e-4, 1e-4)
    check(du, (exact(psi).T @ g @ exact(omega)).T, 1e-4, 1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("n", [1, 2, 64, 128, 1024])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_hadamard_matches_float64(n, dtype, implementation):
    x = normal(0, 5, n).astype(dtype)
    h = np.array([[(-1.0) ** bin(i & c).count("1") for c in range(n)] for i in range(n)])
    got = rk.hadamard_transform(x, implementation=implementation)
    want = np.asarray(x, np.float64) @ h
    check(got, want, float(jnp.finfo(dtype).eps), 1e-5 * n**0.5 * 4)


IMAGES = [
    ((2, 7, 6, 3), (3, 3), {"padding": "SAME"}),
    (
        (2, 9, 8, 5),
        (3, 2),
        {"strides": (2, 3), "dilation": (1, 2), "padding": ((1, 2), (0, 1))},
    ),
    ((1, 5, 4, 5, 2), (2, 2, 3), {"strides": 2}),
    ((2, 11, 4), (3,), {"input_dilation": 2, "padding": "SAME_LOWER"}),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("shape", "window", "options"), IMAGES, ids=["2d", "strided", "3d", "1d"])
def test_patches_and_their_gradient_match_the_reference(shape, window, options, implementation):
    sketch = rk.rademacher(3, int(np.prod(window)) * shape[-1], 7)
    x = normal(0, *shape)

    def value(x, implementation):
        return rk.project_patches(
            x, sketch, window=window, implementation=implementation, **options
        )

    def loss(x, implementation):
        return jnp.sum(jnp.sin(value(x, implementation)))

    both = jax.jit(lambda x, i: (value(x, i), jax.grad(loss)(x, i)), static_argnums=1)
    (got, got_grad), (want, want_grad) = both(x, implementation), both(x, "reference")
    check(got, np.asarray(want), 1e-5, 1e-5)
    check(got_grad, np.asarray(want_grad), 1e-4, 1e-5)


@pytest.mark.slow
def test_patches_of_a_large_omega_match(monkeypatch):
    from rosler_kernels.patches import xla

    shape, window, options = IMAGES[1]
    test = test_patches_and_their_gradient_match_the_reference
    monkeypatch.setattr(xla, "WHOLE", 0)
    jax.clear_caches()
    test(shape, window, options, "xla")
    jax.clear_caches()


def entries(sketch):
    """The whole of Omega through the functions that kernels make tiles with."""
    made, (key, columns, codes) = rk.family(sketch.kind).generator, _entries.operands(sketch)
    shape = sketch.rows, sketch.cols
    row, column = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 1))
    if made == "normal":
        unscaled = _entries.normal((key[0], key[1]), row, column)
    elif made == "sparse":
        each = [jnp.broadcast_to(code[:, None], shape) for code in codes]
        unscaled = _entries.sparse(each, column.astype(jnp.int32))
    else:
        column = column if columns is None else jnp.broadcast_to(columns[None, :], shape)
        words = _entries.sign_words(sketch.kind, (key[0], key[1]), row // 64, column)
        unscaled = _entries.sign(words, (row % 64).astype(jnp.int32))
    return unscaled * _entries.scale(sketch)


@pytest.mark.parametrize("kind", KERNEL_FAMILIES)
@pytest.mark.parametrize("size", [(300, 70), (1, 1), (64, 64), (129, 100)], ids=str)
def test_entries_of_a_kernel_are_those_of_the_family(kind, size):
    sketch = rk.make(kind, 2**63 + 5, *size)
    np.testing.assert_allclose(
        jax.jit(entries)(sketch), materialize(sketch), atol=3e-7 if kind == "gaussian" else 0
    )


def test_index_arithmetic_at_the_end_of_the_range():
    # Rows up to 2^31 - 2 and entries far beyond 2^31, without an array of that size.
    sketch = rk.rademacher(7, 2**31 - 1, 4096)
    start = 2**31 - 1 - 130
    want = rk.tile(sketch, start, 130, 4000, 5)
    row = jnp.arange(start, start + 130, dtype=jnp.uint32)[:, None]
    column = jnp.arange(4000, 4005, dtype=jnp.uint32)[None, :]
    key = _entries.operands(rk.rademacher(7, 1, 4096)).key
    words = _entries.sign_words("rademacher", (key[0], key[1]), row // 64, column)
    got = _entries.sign(words, (row % 64).astype(jnp.int32)) * _entries.scale(sketch)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("transpose", [False, True])
def test_a_wide_srht_goes_through_the_transform(transpose, dtype, implementation):
    spec = Spec("srht", 3, 600, 512, dtype, transpose)
    sketch, x = spec.sketch(3), spec.inputs(0)
    omega = exact(sketch)
    rtol, atol = tolerance(spec)
    want = np.asarray(x, np.float64) @ (omega.T if transpose else omega)
    # Rounded once more, between the transform and the scale.
    check(run(spec, x, sketch, implementation), want, 2 * rtol, 4 * atol)
