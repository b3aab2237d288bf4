"""SketchConv against Flax's convolution with the kernel written out.

In float64, so that what is left of a difference is rounding: sums of a few hundred terms, 1e-14,
and a core solve that loses a factor of the core's condition (below 1e4 in these layers).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from written_out import columns, matrices, matrix, params_of

from rosler_jax import SketchConv

MODES = ("chain", "ares", "seeded")
RTOL = 1e-9
RANK = 2


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def make(options: Any, mode: Any, seed: int = 0, **more: Any) -> Any:
    """A layer in the widest dtype that is enabled, with a bias that is not zero."""
    more = {"param_dtype": jnp.zeros(()).dtype, "bias_init": nnx.initializers.normal(1.0), **more}
    return SketchConv(**options, rank=RANK, mode=mode, rngs=nnx.Rngs(seed), **more)


def flax_conv(options: Any) -> Any:
    """Flax's layer as a function of (kernel, bias, inputs)."""
    layer = nnx.Conv(**options, param_dtype=jnp.zeros(()).dtype, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    treedef = jax.tree.structure(state)

    def apply(kernel: jax.Array, bias: jax.Array, x: jax.Array) -> jax.Array:
        assert kernel.shape == layer.kernel.shape
        return nnx.merge(graph, jax.tree.unflatten(treedef, (bias, kernel)))(x)

    return apply


def as_kernel(w: Any, options: Any) -> Any:
    """Matrices ``(g, m, n)`` as Flax's kernel: the groups one after another along the last axis."""
    g, m, n = w.shape
    size = options["kernel_size"]
    window = (size,) if isinstance(size, int) else size
    return w.transpose(1, 0, 2).reshape(*window, m // int(np.prod(window)), g * n)


def close(got: Any, expected: Any) -> None:
    expected = np.asarray(expected)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=0, atol=RTOL * np.abs(expected).max())


ONE = dict(in_features=3, out_features=4)
TWO = dict(in_features=4, out_features=6)
# Every way to place the window, and the shape of the inputs; modes do not differ in it.
PLACES = {
    "one_dimension": (dict(ONE, kernel_size=3), (2, 7, 3)),
    "valid": (dict(ONE, kernel_size=(4,), padding="VALID"), (2, 7, 3)),
    "causal": (dict(ONE, kernel_size=(3,), padding="CAUSAL", kernel_dilation=2), (2, 7, 3)),
    "same_lower": (dict(ONE, kernel_size=(2,), padding="SAME_LOWER"), (2, 7, 3)),
    "same_strided": (dict(ONE, kernel_size=(3, 2), strides=(2, 3)), (2, 6, 8, 3)),
    "circular": (dict(ONE, kernel_size=(2, 3), padding="CIRCULAR", strides=2), (2, 6, 5, 3)),
    "reflect": (dict(ONE, kernel_size=(4, 3), padding="REFLECT", strides=(1, 2)), (2, 6, 5, 3)),
    "circular_dilated": (
        dict(ONE, kernel_size=(2, 3), padding="CIRCULAR", kernel_dilation=(3, 2)),
        (2, 6, 5, 3),
    ),
    "padded_by_one_number": (dict(ONE, kernel_size=(3, 3), padding=2), (2, 6, 5, 3)),
    "padded_by_a_number_an_axis": (dict(ONE, kernel_size=(3, 3), padding=(0, 2)), (2, 6, 5, 3)),
    "padded_by_pairs": (
        dict(ONE, kernel_size=(3, 3), padding=((1, 0), (2, 3)), strides=2),
        (2, 6, 5, 3),
    ),
    "dilated": (dict(ONE, kernel_size=(3, 2), kernel_dilation=(2, 3)), (2, 7, 8, 3)),
    "transposed": (
        dict(ONE, kernel_size=(3, 3), input_dilation=(2, 3), padding=((1, 1), (1, 0))),
        (2, 4, 3, 3),
    ),
    "groups": (dict(TWO, kernel_size=(3, 2), feature_group_count=2, strides=2), (2, 5, 4, 4)),
    "three_dimensions": (dict(ONE, kernel_size=(2, 3, 2), strides=(1, 2, 1)), (2, 3, 4, 5, 3)),
    "no_batch": (dict(ONE, kernel_size=(3, 2)), (5, 4, 3)),
    "two_batch_axes": (dict(ONE, kernel_size=(3,), padding="CIRCULAR"), (2, 3, 6, 3)),
    "no_strides_given": (dict(ONE, kernel_size=(3,), strides=None), (2, 6, 3)),
}


@pytest.mark.parametrize("place", PLACES)
def test_is_flaxs_wherever_the_window_goes(place: str, x64: None) -> None:
    options, shape = PLACES[place]
    layer, x = make(options, "chain"), normal(1, *shape)
    w = matrices(params_of(layer), layer.sketches())
    close(layer(x), flax_conv(options)(as_kernel(w, options), layer.bias[...], x))


# A causal, a circular and a grouped one: the lifts of the sketched input go the same ways.
KINDS = {
    "causal": PLACES["causal"],
    "circular": PLACES["circular_dilated"],
    "groups": PLACES["groups"],
    "one_dimension_grouped": (
        dict(TWO, kernel_size=(2,), feature_group_count=2, padding="VALID"),
        (2, 5, 4),
    ),
}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("circular", "ares"),
        ("groups", "ares"),
        ("causal", "seeded"),
        ("groups", "seeded"),
        ("one_dimension_grouped", "seeded"),
    ],
)
def test_is_flaxs_in_every_mode(kind: str, mode: Any, x64: None) -> None:
    options, shape = KINDS[kind]
    layer, x = make(options, mode), normal(1, *shape)
    w = matrices(params_of(layer), layer.sketches())
    assert w.shape == (options.get("feature_group_count", 1), *layer.matrix_shape)
    close(layer(x), flax_conv(options)(as_kernel(w, options), layer.bias[...], x))


def gradients(layer: Any, x: jax.Array, delta: jax.Array) -> tuple[Any, jax.Array]:
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    loss = lambda params, x: jnp.vdot(nnx.merge(graph, params, rest)(x), delta)
    return jax.jit(jax.grad(loss, (0, 1)))(params, x)


def dense_gradients(options: Any, layer: Any, x: jax.Array) -> tuple[jax.Array, ...]:
    """An error, and through the written-out kernel ``G (g, m, n)``, and those of bias and input."""
    kernel = as_kernel(matrices(params_of(layer), layer.sketches()), options)
    y, pull = jax.vjp(flax_conv(options), jnp.asarray(kernel), layer.bias[...], x)
    delta = normal(2, *y.shape)
    g_kernel, g_bias, g_x = pull(delta)
    groups = options.get("feature_group_count", 1)
    m, n = layer.matrix_shape
    return delta, np.asarray(g_kernel).reshape(m, groups, n).transpose(1, 0, 2), g_bias, g_x


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("causal", "chain"),
        ("circular", "seeded"),
        ("groups", "chain"),
        ("groups", "ares"),
        ("one_dimension_grouped", "seeded"),
    ],
)
def test_gradients_of_the_chain_are_those_through_the_written_out_kernel(
    kind: str, mode: Any, x64: None
) -> None:
    options, shape = KINDS[kind]
    layer, x = make(options, mode), normal(1, *shape)
    if mode == "ares":  # past the switch: a core in the slot, the flag down
        layer.parallel[...] = jnp.zeros_like(layer.parallel[...])
        layer.u[...] = normal(5, *layer.u.shape)
    delta, g, g_bias, g_x = dense_gradients(options, layer, x)
    got, got_x = gradients(layer, x, delta)
    close(got_x, g_x)
    close(got["bias"][...], g_bias)
    p = params_of(layer)
    t = lambda a: np.swapaxes(a, -1, -2)
    if mode == "seeded":
        psi, omega = map(matrix, layer.sketches())
        close(got["u"][...], np.sqrt(psi.shape[1] / psi.shape[0]) * psi.T @ g @ omega)
        return
    c = columns(p["c"], *p["u"].shape[:2])
    got_c = columns(np.asarray(got["c"][...]), *p["u"].shape[:2])
    close(got_c, g @ t(p["u"] @ p["r"]))
    close(got["u"][...], t(c) @ g @ t(p["r"]))
    close(got["r"][...], t(c @ p["u"]) @ g)


@pytest.mark.parametrize("kind", ["groups", "one_dimension_grouped"])
def test_a_new_ares_layer_holds_sketches_of_one_matrix(kind: str) -> None:
    layer = make(KINDS[kind][0], "ares")
    psi, omega = map(matrix, layer.sketches())
    a_t, r = (np.asarray(v[...], np.float64) for v in (layer.u, layer.r))
    c = columns(np.asarray(layer.c[...], np.float64), *layer.u.shape[:2])
    core = np.swapaxes(a_t, -1, -2)
    # Made in float32, from products of matrices of this size.
    atol = 1e-5 * np.abs(core).max() * np.sqrt(layer.plan.m * layer.plan.n)
    np.testing.assert_allclose(psi.T @ c, core, rtol=0, atol=atol)
    np.testing.assert_allclose(r @ omega, core, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_parallel_are_sketches_of_the_dense_one(kind: str, x64: None) -> None:
    options, shape = KINDS[kind]
    # Two programs make the same signs, but a Gaussian's entries to the last places of float32 only.
    layer, x = make(options, "ares", sketch="rademacher"), normal(1, *shape)
    delta, g, g_bias, g_x = dense_gradients(options, layer, x)
    got, got_x = gradients(layer, x, delta)
    psi, omega = map(matrix, layer.sketches())
    close(columns(np.asarray(got["c"][...]), *layer.u.shape[:2]), g @ omega)
    close(got["r"][...], psi.T @ g)
    close(got["u"][...], np.swapaxes(psi.T @ g @ omega, 1, 2))
    close(got["bias"][...], g_bias)
    close(got_x, g_x)
    assert got["parallel"][...] == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_dtypes(mode: Any) -> None:
    options, shape = KINDS["groups"]
    x = normal(1, *shape)
    wide, half = make(options, mode), make(options, mode, dtype=jnp.bfloat16)
    y = half(x)
    assert y.dtype == jnp.bfloat16
    # Unit roundoff 2^-9: inputs, three factors, the results of as many products and the sum, some
    # ten roundings, and more for a core that is solved for from rounded entries.
    expected = np.asarray(wide(x))
    atol = 40 * 2.0**-9 * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, rtol=0, atol=atol)
    grads = nnx.grad(lambda layer: jnp.sum(layer(x).astype(jnp.float32) ** 2))(half)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}
    stored = make(options, mode, param_dtype=jnp.bfloat16)
    assert stored.u.dtype == jnp.bfloat16
    assert stored(x).dtype == jnp.float32  # as Flax's layers promote
    assert stored(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("mode", MODES)
def test_vmap_over_inputs_and_over_layers_gradients_included(mode: Any) -> None:
    options, shape = KINDS["groups"]
    layers = [make(options, mode, seed=seed) for seed in range(2)]
    x = normal(1, 2, *shape)
    np.testing.assert_allclose(jax.vmap(layers[0])(x), layers[0](x), atol=1e-5)
    graph = nnx.graphdef(layers[0])
    states = [nnx.state(layer) for layer in layers]
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def value_and_grads(state: Any, x: jax.Array) -> Any:
        rest = nnx.filter_state(state, nnx.Not(nnx.Param))
        loss = lambda params: jnp.sum(jnp.sin(nnx.merge(graph, params, rest)(x)))
        return jax.value_and_grad(loss)(nnx.filter_state(state, nnx.Param))

    got = jax.jit(jax.vmap(value_and_grads))(many, x)
    one = jax.jit(value_and_grads)
    each = [one(state, x) for state, x in zip(states, x, strict=True)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    # float32 sums in another order, and the core of an ares layer
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, got, expected)


def test_compiles_once() -> None:
    options, shape = KINDS["groups"]
    graph, _, _ = nnx.split(make(options, "ares"), nnx.Param, ...)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params: Any, rest: Any, x: jax.Array) -> Any:
        return jax.value_and_grad(lambda p: jnp.sum(nnx.merge(graph, p, rest)(x) ** 2))(params)

    states = [nnx.split(make(options, "ares", seed=s), nnx.Param, ...)[1:] for s in range(3)]
    values = {float(step(*state, normal(s, *shape))[0]) for s, state in enumerate(states)}
    assert len(values) == 3


def test_without_bias() -> None:
    layer = make(dict(ONE, kernel_size=(3,), use_bias=False), "chain")
    assert layer.bias is None
    assert not layer(jnp.zeros((1, 5, 3))).any()


def test_errors() -> None:
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match="multiples of feature_group_count=2"):
        SketchConv(3, 4, (3,), RANK, feature_group_count=2, rngs=rngs)
    with pytest.raises(ValueError, match="multiples of feature_group_count=2"):
        SketchConv(4, 3, (3,), RANK, feature_group_count=2, rngs=rngs)
    with pytest.raises(ValueError, match=r"rank 4 is outside 1..min\(in=6, out=3\)=3"):
        SketchConv(4, 6, (3,), 4, feature_group_count=2, rngs=rngs)
    with pytest.raises(ValueError, match="unknown mode 'full'"):
        SketchConv(4, 6, (3,), RANK, mode="full", rngs=rngs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown padding 'FULL'"):
        SketchConv(4, 6, (3,), RANK, padding="FULL", rngs=rngs)
    with pytest.raises(ValueError, match="causal padding is for 1-D"):
        SketchConv(4, 6, (3, 3), RANK, padding="CAUSAL", rngs=rngs)
    with pytest.raises(ValueError, match="pass 2 numbers or pairs"):
        SketchConv(4, 6, (3, 3), RANK, padding=[1], rngs=rngs)
    with pytest.raises(ValueError, match=r"strides \(1, 2, 3\); pass 2 positive"):
        SketchConv(4, 6, (3, 3), RANK, strides=(1, 2, 3), rngs=rngs)
    for mode in MODES:
        layer = SketchConv(4, 6, (3, 3), RANK, feature_group_count=2, mode=mode, rngs=rngs)
        with pytest.raises(ValueError, match=r"inputs of shape \(2, 5, 5, 3\).*in_features=4"):
            layer(jnp.ones((2, 5, 5, 3)))
        with pytest.raises(ValueError, match=r"inputs of shape \(5, 4\).*at least 3 axes"):
            layer(jnp.ones((5, 4)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(0, 5, 5, 4), (2, 1, 1, 4), (2, 0, 5, 4)], ids=str)
def test_nothing_in_gives_nothing_as_flax_does(mode: Any, groups: int, shape: Any) -> None:
    options = {"in_features": 4, "out_features": 6, "kernel_size": (3, 3), "padding": "VALID"}
    layer = make(options, mode, feature_group_count=groups)
    wanted = nnx.Conv(**options, feature_group_count=groups, rngs=nnx.Rngs(0))(jnp.ones(shape))
    y = layer(jnp.ones(shape))
    assert y.shape == wanted.shape
    grads, dx = gradients(layer, jnp.ones(shape), y)
    assert dx.shape == shape
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads))
