"""SketchLinear and TwoFactorLinear against the dense layer with the weight written out.

In float64, so that what is left of a difference is rounding: products of a few dozen terms, 1e-15
each, and a core solve that loses a factor of the core's condition (below 1e4 in these layers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from written_out import matrices, matrix, params_of

from rosler_jax import (
    SketchEinsum,
    SketchLinear,
    SketchLinearGeneral,
    SketchParam,
    TwoFactorLinear,
)

MODES = ("chain", "ares", "seeded")
RTOL = 1e-9
M, N, RANK = 9, 7, 3


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def make(mode: Any, m: int = M, n: int = N, rank: int = RANK, seed: int = 0, **options: Any) -> Any:
    """A layer in the widest dtype that is enabled, with a bias that is not zero."""
    options = {"param_dtype": jnp.zeros(()).dtype, **options}
    bias = nnx.initializers.normal(1.0)
    return SketchLinear(m, n, rank, mode=mode, bias_init=bias, rngs=nnx.Rngs(seed), **options)


def close(got: Any, expected: Any, rtol: float = RTOL) -> None:
    expected = np.asarray(expected)
    assert np.asarray(got).dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * np.abs(expected).max())


def split(layer: Any) -> tuple[Callable[..., jax.Array], Any]:
    """The layer as a function of (parameters, inputs), and its parameters."""
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    return (lambda params, x: nnx.merge(graph, params, rest)(x)), params


def successive(layer: Any) -> Any:
    """Takes an ares layer past the switch: a core in the slot, the flag down."""
    layer.parallel[...] = jnp.zeros_like(layer.parallel[...])
    layer.u[...] = normal(5, *layer.u.shape).astype(layer.u.dtype)
    return layer


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lead", [(), (2, 5)])
def test_is_the_dense_product(mode: Any, lead: tuple[int, ...], x64: None) -> None:
    layer, x = make(mode), normal(1, *lead, M)
    (w,) = matrices(params_of(layer), layer.sketches())
    assert w.shape == (M, N)
    close(layer(x), np.asarray(x) @ w + np.asarray(layer.bias[...]))


# Wide, tall, one column, full rank (where no oversampling fits), and sketches of chosen sizes.
SHAPES = [
    dict(m=5, n=12, rank=2),
    dict(m=13, n=4, rank=1, mode="ares"),
    dict(m=5, n=6, rank=5, mode="ares", sketch="gaussian"),  # small matrices of signs are singular
    dict(m=11, n=6, rank=2, mode="ares", oversampling=0),
    dict(m=11, n=6, rank=2, mode="ares", oversampling=3, sketch="sparse_sign"),
    dict(m=11, n=6, rank=2, mode="seeded", in_sketch=7, sketch="rademacher"),
]


@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
def test_of_any_shape(shape: Any, x64: None) -> None:
    layer = make(**{"mode": "chain", **shape}, use_bias=False)
    x = normal(1, 3, shape["m"])
    (w,) = matrices(params_of(layer), layer.sketches())
    assert np.linalg.matrix_rank(w) == shape["rank"]
    close(jax.jit(lambda x: layer(x))(x), np.asarray(x) @ w)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_the_chain_are_those_through_the_written_out_weight(
    mode: Any, x64: None
) -> None:
    layer, x, target = make(mode), normal(1, 4, M), normal(2, 4, N)
    if mode == "ares":
        successive(layer)
    apply, params = split(layer)

    psi, omega = (None if s is None else matrix(s) for s in layer.sketches())

    def dense(p: Any, x: jax.Array) -> jax.Array:
        if mode == "seeded":
            w = np.sqrt(psi.shape[1] / M) * psi @ p["u"][...] @ omega.T
        else:
            w = p["c"][...] @ p["u"][...] @ p["r"][...]
        return x @ w + p["bias"][...]

    def gradients(product: Any) -> Any:
        loss = lambda p, x: jnp.sum(jnp.sin(product(p, x) - target))
        return jax.jit(jax.grad(loss, (0, 1)))(params, x)

    (got, got_x), (expected, expected_x) = gradients(apply), gradients(dense)
    close(got_x, expected_x)
    names = ("u", "bias") if mode == "seeded" else ("c", "u", "r", "bias")
    for name in names:
        close(got[name][...], expected[name][...])


@pytest.mark.parametrize("sketch", ["gaussian", "srht", "sparse_sign", "rows_uniform"])
def test_gradients_in_parallel_are_sketches_of_the_dense_one(sketch: str, x64: None) -> None:
    layer = make("ares", sketch=sketch)
    x, delta = normal(1, 2, 4, M), normal(2, 2, 4, N)
    (w,) = matrices(params_of(layer), layer.sketches())
    apply, params = split(layer)
    loss = lambda params, x: jnp.vdot(apply(params, x), delta)
    got, got_x = jax.jit(jax.grad(loss, (0, 1)))(params, x)
    psi, omega = map(matrix, layer.sketches())
    rows, deltas = np.asarray(x).reshape(-1, M), np.asarray(delta).reshape(-1, N)
    g = rows.T @ deltas
    # Two programs make a Gaussian's entries the same to the last places of float32.
    rtol = 1e-6 if sketch == "gaussian" else RTOL
    close(got["c"][...], g @ omega, rtol)
    close(got["r"][...], psi.T @ g, rtol)
    close(got["u"][...], (psi.T @ g @ omega).T, rtol)
    close(got["bias"][...], deltas.sum(0))
    close(got_x, np.asarray(delta) @ w.T)
    assert got["parallel"][...] == 0.0


def test_a_new_ares_layer_holds_sketches_of_one_matrix() -> None:
    layer = make("ares")
    psi, omega = map(matrix, layer.sketches())
    a_t, r = (np.asarray(v[...], np.float64) for v in (layer.u, layer.r))
    c = np.asarray(layer.c[...], np.float64)
    core = np.swapaxes(a_t, -1, -2)
    # Made in float32, from products of matrices of this size.
    atol = 1e-5 * np.abs(core).max() * np.sqrt(layer.plan.m * layer.plan.n)
    np.testing.assert_allclose(psi.T @ c, core, rtol=0, atol=atol)
    np.testing.assert_allclose(r @ omega, core, rtol=0, atol=atol)


def test_seeded_gradient_is_a_double_sketch(x64: None) -> None:
    layer, x, delta = make("seeded"), normal(1, 4, M), normal(2, 4, N)
    apply, params = split(layer)
    got = jax.grad(lambda params: jnp.vdot(apply(params, x), delta))(params)
    psi, omega = map(matrix, layer.sketches())
    g = np.asarray(x).T @ np.asarray(delta)
    close(got["u"][...], np.sqrt(psi.shape[1] / M) * psi.T @ g @ omega)


def test_second_derivatives_of_the_chain(x64: None) -> None:
    layer, x = make("chain"), normal(1, 4, M)
    apply, params = split(layer)
    dense = lambda p, x: x @ (p["c"][...] @ p["u"][...] @ p["r"][...]) + p["bias"][...]

    def curvature(product: Any) -> Any:
        def slope(p: Any) -> jax.Array:
            grads = jax.grad(lambda p: jnp.sum(jnp.sin(product(p, x))))(p)
            return sum(jnp.vdot(g, v) for g, v in zip(*map(jax.tree.leaves, (grads, p)), strict=1))

        return jax.jit(jax.grad(slope))(params)

    got, expected = curvature(apply), curvature(dense)
    for name in ("c", "u", "r", "bias"):
        close(got[name][...], expected[name][...])


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_inside_full_precision_parameters(mode: Any) -> None:
    wide, half = make(mode), make(mode, dtype=jnp.bfloat16)
    x, delta = normal(1, 5, M), normal(2, 5, N)
    y = half(x)
    assert y.dtype == jnp.bfloat16
    # Unit roundoff 2^-9: inputs, three factors, the results of as many products and the sum, some
    # ten roundings, and more for a core that is solved for from rounded entries.
    expected = np.asarray(wide(x))
    atol = 40 * 2.0**-9 * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, rtol=0, atol=atol)
    grads = nnx.grad(lambda layer: jnp.vdot(layer(x).astype(jnp.float32), delta))
    for a, b in zip(*(jax.tree.leaves(grads(layer)) for layer in (half, wide)), strict=True):
        assert a.dtype == jnp.float32
        atol = 40 * 2.0**-9 * max(float(jnp.abs(b).max()), 1e-6)
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("mode", MODES)
def test_dtypes(mode: Any) -> None:
    layer = make(mode, param_dtype=jnp.bfloat16)
    dtypes = {name: v.dtype for name, v in params_of(layer).items()}
    assert dtypes.pop("parallel", jnp.float32) == jnp.float32
    assert set(dtypes.values()) == {jnp.dtype(jnp.bfloat16)}
    assert layer(jnp.ones((2, M), jnp.bfloat16)).dtype == jnp.bfloat16
    assert layer(jnp.ones((2, M))).dtype == jnp.float32  # as Flax's layers promote
    assert layer(jnp.ones((2, M), jnp.int8)).dtype == jnp.bfloat16


@pytest.mark.parametrize("mode", MODES)
def test_vmap_over_inputs(mode: Any) -> None:
    layer, x = make(mode), normal(1, 3, 4, M)
    np.testing.assert_allclose(jax.vmap(layer)(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_vmap_over_layers_gradients_included(mode: Any) -> None:
    layers = [make(mode, seed=seed) for seed in range(3)]
    if mode == "ares":
        successive(layers[1])  # stages may differ
    x, delta = normal(1, 3, 4, M), normal(2, 3, 4, N)
    graph = nnx.graphdef(layers[0])
    states = [nnx.state(layer) for layer in layers]
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    is_param = lambda state: nnx.filter_state(state, nnx.Param)
    if mode != "chain":
        assert len(np.unique(np.asarray(many["psi_seed"][...]), axis=0)) == 3

    def value_and_grads(state: Any, x: jax.Array, delta: jax.Array) -> Any:
        rest = nnx.filter_state(state, nnx.Not(nnx.Param))
        return jax.value_and_grad(lambda p: jnp.vdot(nnx.merge(graph, p, rest)(x), delta))(
            is_param(state)
        )

    got = jax.jit(jax.vmap(value_and_grads))(many, x, delta)
    one = jax.jit(value_and_grads)
    each = [one(state, *data) for state, *data in zip(states, x, delta, strict=True)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    # float32 sums in another order, and the core of an ares layer
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, got, expected)


@pytest.mark.parametrize("mode", MODES)
def test_is_made_under_vmap(mode: Any) -> None:
    @nnx.vmap
    def make_many(rngs: nnx.Rngs) -> SketchLinear:
        return SketchLinear(M, N, RANK, mode=mode, rngs=rngs)

    layers = make_many(nnx.Rngs(0).split(3))
    assert layers.u.shape[0] == 3
    y = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(layers, jnp.ones((2, M)))
    assert y.shape == (3, 2, N)
    assert len(np.unique(np.asarray(y[:, 0, 0]))) == 3


@pytest.mark.parametrize("mode", MODES)
def test_compiles_once(mode: Any) -> None:
    apply, _ = split(make(mode))
    chex.clear_trace_counter()  # it knows functions by their code, and this one runs per mode

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params: Any, x: jax.Array) -> Any:
        return jax.value_and_grad(lambda params: jnp.sum(apply(params, x) ** 2))(params)

    values = {float(step(split(make(mode, seed=s))[1], normal(s, 2, M))[0]) for s in range(3)}
    assert len(values) == 3


def test_variables_and_their_types() -> None:
    layer = make("ares", use_bias=False)
    assert layer.bias is None
    names = lambda kind: {path[-1] for path, _ in nnx.to_flat_state(nnx.state(layer, kind))}
    assert names(SketchParam) == {"c", "u", "r", "parallel"}
    assert names(nnx.Param) == {"c", "u", "r", "parallel"}  # seeds are not trained
    assert names(...) - names(nnx.Param) == {"psi_seed", "omega_seed"}
    assert (layer.psi_seed[...] != layer.omega_seed[...]).any()
    assert set(params_of(make("chain"))) == {"c", "u", "r", "bias"}
    assert set(params_of(make("seeded"))) == {"u", "bias"}


def test_shapes_without_any_array() -> None:
    layer = nnx.eval_shape(lambda: SketchLinear(10**6, 10**6, 8, mode="ares", rngs=nnx.Rngs(0)))
    assert layer.c.shape == (10**6, 8)
    assert layer.u.shape == (8, 16)
    assert layer.r.shape == (16, 10**6)


def test_two_factors_are_the_dense_product(x64: None) -> None:
    bias = nnx.initializers.normal(1.0)
    options = dict(param_dtype=jnp.float64, bias_init=bias)
    layer = TwoFactorLinear(M, N, RANK, **options, rngs=nnx.Rngs(0))
    x, delta = normal(1, 4, M), normal(2, 4, N)
    c, r, b = (np.asarray(v[...]) for v in (layer.c, layer.r, layer.bias))
    close(layer(x), np.asarray(x) @ (c @ r) + b)
    grads = nnx.grad(lambda layer: jnp.vdot(layer(x), delta))(layer)
    g = np.asarray(x).T @ np.asarray(delta)
    close(grads["c"][...], g @ r.T)
    close(grads["r"][...], c.T @ g)


def test_two_factors_in_half_precision() -> None:
    layer = TwoFactorLinear(M, N, RANK, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    wide = TwoFactorLinear(M, N, RANK, rngs=nnx.Rngs(0))
    for half, full in ((layer.c, wide.c), (layer.r, wide.r)):
        assert half.dtype == jnp.bfloat16
        np.testing.assert_allclose(half[...].astype(jnp.float32), full[...], rtol=2.0**-6)
    assert layer(jnp.ones((2, M), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("mode", MODES)
def test_precision_reaches_every_product_and_its_derivative(mode: Any) -> None:
    x = normal(1, 4, M)

    def products(**options: Any) -> tuple[int, int, Any]:
        layer = make(mode, **options)
        apply, params = split(layer)
        both = lambda p: jax.value_and_grad(lambda p: jnp.sum(jnp.sin(apply(p, x))))(p)
        text = str(jax.make_jaxpr(both)(params))
        return text.count("dot_general["), text.count("Precision.HIGHEST)"), both(params)

    count, exact, want = products()
    again, highest, got = products(precision=jax.lax.Precision.HIGHEST)
    # The rule that carries a precision has x's gradient, too, which nobody reads here.
    assert again == highest
    assert again - count in (0, 1)
    assert exact < highest
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


@pytest.mark.parametrize("mode", MODES)
def test_kernel_init_is_the_matrix_that_a_layer_starts_from(mode: Any) -> None:
    options: Any = dict(mode=mode, rngs=nnx.Rngs(0))
    rank = 4 if mode == "ares" else 2  # small Gaussian cores are better conditioned so
    if mode == "seeded":
        options |= dict(in_sketch=8, sketch="gaussian")  # square: no matrix is left out
        rank = 6
    w = normal(3, 3, 8, 2) @ normal(4, 3, 2, 6)
    give = lambda w: lambda _, shape, dtype: w.reshape(shape).astype(dtype)
    x = normal(1, 5, 3, 8)
    layers = (
        (SketchLinear(8, 6, rank, kernel_init=give(w[0]), **options), x, x @ w[0]),
        (
            SketchEinsum("bgm,gmn->bgn", w.shape, rank, kernel_init=give(w), **options),
            x,
            jnp.einsum("bgm,gmn->bgn", x, w),
        ),
        (
            SketchLinearGeneral(
                (2, 4), 6, rank, axis=(-2, -1), batch_axis={0: 3}, kernel_init=give(w), **options
            ),
            x.swapaxes(0, 1).reshape(3, 5, 2, 4),
            jnp.einsum("bgm,gmn->gbn", x, w),
        ),
    )
    for layer, inputs, want in layers:
        np.testing.assert_allclose(layer(inputs), want, atol=3e-3)


def test_errors() -> None:
    rngs = nnx.Rngs(0)
    for rank in (0, 8):
        with pytest.raises(ValueError, match=rf"rank {rank} is outside 1..min\(in=9, out=7\)=7"):
            SketchLinear(M, N, rank, rngs=rngs)
    with pytest.raises(ValueError, match="rank 8 is outside"):
        TwoFactorLinear(M, N, 8, rngs=rngs)
    with pytest.raises(ValueError, match="unknown mode 'full'; pass one of 'chain', 'ares'"):
        SketchLinear(M, N, RANK, mode="full", rngs=rngs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown.*'fourier'"):
        SketchLinear(M, N, RANK, mode="ares", sketch="fourier", rngs=rngs)
    with pytest.raises(ValueError, match="oversampling -1"):
        SketchLinear(M, N, RANK, mode="ares", oversampling=-1, rngs=rngs)
    with pytest.raises(ValueError, match="in_sketch 0 is not positive"):
        SketchLinear(M, N, RANK, mode="seeded", in_sketch=0, rngs=rngs)
    with pytest.raises(ValueError, match="unknown init 'lecun'"):
        SketchLinear(M, N, RANK, init="lecun", rngs=rngs)  # type: ignore[arg-type]
    for mode in MODES:
        with pytest.raises(ValueError, match=r"inputs of shape \(2, 8\).*in_features=9"):
            SketchLinear(M, N, RANK, mode=mode, rngs=rngs)(jnp.ones((2, 8)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(0, M), (2, 0, M)], ids=str)
def test_an_empty_batch_gives_an_empty_batch(mode: Any, shape: Any) -> None:
    layer, x = make(mode), jnp.ones(shape)
    assert layer(x).shape == (*shape[:-1], N)
    assert jax.grad(lambda x: layer(x).sum())(x).shape == shape
