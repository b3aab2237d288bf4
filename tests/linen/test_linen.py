"""The Linen twins: against Linen's layers with the kernel written out, and against NNX's."""

from __future__ import annotations

from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.errors import ScopeParamNotFoundError
from written_out import matrices

import rosler_jax
import rosler_kernels as rk
from rosler_jax import ares_bp
from rosler_jax.linen import SketchConv, SketchDense

MODES = ("chain", "ares", "seeded")


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def weight(variables: Any, m: int, n: int) -> np.ndarray:
    """The matrices ``(g, m, n)`` of newly initialised variables."""
    sketches = (None, None)
    if "c" not in variables["params"]:
        seeds = (variables["sketch"][k] for k in ("psi_seed", "omega_seed"))
        widths = variables["params"]["u"].shape[-2:]
        sketches = tuple(map(rk.srht, seeds, (m, n), widths))
    return matrices(variables["params"], sketches)


@pytest.mark.parametrize("mode", MODES)
def test_dense_is_linens_with_the_kernel_written_out(mode: Any) -> None:
    layer = SketchDense(7, rank=3, mode=mode, bias_init=nn.initializers.normal(1.0))
    x = normal(1, 2, 5, 9)
    variables = layer.init(jax.random.key(0), x)
    kernel = jnp.asarray(weight(variables, 9, 7)[0], jnp.float32)
    plain = {"params": {"kernel": kernel, "bias": variables["params"]["bias"]}}
    expected = nn.Dense(7).apply(plain, x)
    got = jax.jit(layer.apply)(variables, x)
    np.testing.assert_allclose(got, expected, atol=2e-4 * float(jnp.max(jnp.abs(expected))))


GROUPS = dict(features=8, kernel_size=(3, 2), strides=2, feature_group_count=2)
CIRCULAR = dict(
    features=4, kernel_size=(3, 1), padding="CIRCULAR", kernel_dilation=2, use_bias=False
)


@pytest.mark.parametrize(
    ("options", "mode"),
    [(GROUPS, "chain"), (GROUPS, "ares"), (GROUPS, "seeded"), (CIRCULAR, "chain")],
)
def test_conv_is_linens_with_the_kernel_written_out(options: Any, mode: Any) -> None:
    layer = SketchConv(rank=2, mode=mode, bias_init=nn.initializers.normal(1.0), **options)
    x = normal(1, 2, 7, 6, 4)
    variables = layer.init(jax.random.key(0), x)
    groups, window = options.get("feature_group_count", 1), options["kernel_size"]
    features = options["features"]
    m, n = window[0] * window[1] * 4 // groups, features // groups
    w = weight(variables, m, n)
    # Linen's kernel (*window, cin / g, cout): the groups one after another along the last axis.
    kernel = jnp.asarray(w.transpose(1, 0, 2).reshape(*window, 4 // groups, features), jnp.float32)
    plain = {"params": {"kernel": kernel}}
    if "bias" in variables["params"]:
        plain["params"]["bias"] = variables["params"]["bias"]
    expected = nn.Conv(**options).apply(plain, x)
    got = layer.apply(variables, x)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=2e-4 * float(jnp.max(jnp.abs(expected))))


def twin(layer: Any) -> dict[str, Any]:
    """The variables of an NNX layer, as Linen has them."""
    seeds = ("psi_seed", "omega_seed")
    return {
        "params": nnx.to_pure_dict(nnx.state(layer, nnx.Param)),
        "sketch": {k: getattr(layer, k)[...] for k in seeds if getattr(layer, k) is not None},
    }


@pytest.mark.parametrize("mode", MODES)
def test_agrees_with_nnx(mode: Any) -> None:
    linear = rosler_jax.SketchLinear(9, 7, rank=3, mode=mode, rngs=nnx.Rngs(0))
    conv = rosler_jax.SketchConv(4, 4, (3, 1), rank=2, mode=mode, rngs=nnx.Rngs(0))
    dense = SketchDense(7, rank=3, mode=mode)
    twin_conv = SketchConv(4, (3, 1), rank=2, mode=mode)
    for nnx_layer, linen_layer, x in (
        (linear, dense, normal(1, 5, 9)),
        (conv, twin_conv, normal(2, 2, 5, 5, 4)),
    ):
        variables = twin(nnx_layer)
        made = jax.eval_shape(linen_layer.init, jax.random.key(0), x)
        chex.assert_trees_all_equal_shapes_and_dtypes(
            {"params": variables["params"], "sketch": variables["sketch"]},
            {"params": made["params"], "sketch": made.get("sketch", {})},
        )
        np.testing.assert_array_equal(linen_layer.apply(variables, x), nnx_layer(x))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(SketchConv(6, (3,), rank=2, mode="ares")(x))
        return SketchDense(5, rank=2, mode="ares")(x.reshape(x.shape[0], -1))


@pytest.mark.slow
def test_ares_bp_trains_through_the_switch() -> None:
    net, x, y = Net(), normal(1, 32, 6, 3), jnp.arange(32) % 5
    variables = jax.jit(net.init)(jax.random.key(0), x)
    tx = ares_bp(optax.sgd(0.1), switch_step=5)
    params, state = variables["params"], tx.init(variables["params"])

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params: Any, state: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            logits = net.apply(variables | {"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for i in range(60):
        params, state, value = step(params, state)
        losses.append(float(value))
        # Update number 5, the last of the parallel stage, also switches.
        assert {float(layer["parallel"]) for layer in params.values()} == {float(i < 4)}
    assert losses[-1] < 0.9 * losses[0]


def test_vmap_over_keys_gives_each_its_own_sketches() -> None:
    layer, x = SketchDense(7, rank=3, mode="seeded"), normal(1, 5, 9)
    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.jit(jax.vmap(lambda key: layer.init(key, x)))(keys)
    assert len(np.unique(np.asarray(many["sketch"]["psi_seed"]), axis=0)) == 3
    outputs = jax.vmap(lambda variables: layer.apply(variables, x))(many)
    one = layer.init(keys[1], x)
    np.testing.assert_array_equal(one["sketch"]["psi_seed"], many["sketch"]["psi_seed"][1])
    np.testing.assert_allclose(outputs[1], layer.apply(one, x), atol=1e-4)


def test_seeds_and_draw_are_independent() -> None:
    variables = SketchDense(7, rank=3, mode="ares").init(jax.random.key(0), jnp.ones((1, 9)))
    psi, omega = (np.asarray(variables["sketch"][k]) for k in ("psi_seed", "omega_seed"))
    assert (psi != omega).any()
    assert psi.dtype == omega.dtype == np.uint32
    assert psi.shape == omega.shape == (2,)


def test_dtypes() -> None:
    layer = SketchDense(7, rank=3, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 9)))
    assert y.dtype == jnp.bfloat16
    assert {v.dtype for v in variables["params"].values()} == {jnp.dtype("float32")}


class ResNet(nn.Module):
    """As models of Linen's are written: layers as attributes, arguments by position."""

    conv: Any = nn.Conv
    dense: Any = nn.Dense

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(self.conv, use_bias=False, dtype=jnp.float32)
        x = conv(6, (3, 3), (2, 2), "SAME")(x)
        y = nn.relu(conv(6, (3, 3))(x))
        x = x + conv(6, (1, 1), (1, 1), kernel_init=nn.initializers.zeros)(y)
        x = x.mean(axis=(-3, -2))
        x = self.dense(5, True, jnp.float32, kernel_init=nn.initializers.lecun_normal())(x)
        return self.dense(3, dot_general_cls=None, precision="highest")(inputs=x)


@pytest.mark.parametrize("mode", ["chain", "seeded"])
def test_stands_for_linens_layers_in_a_model_of_somebody_elses(mode: Any) -> None:
    plain = ResNet()
    net = ResNet(
        conv=partial(SketchConv, rank=4, mode=mode), dense=partial(SketchDense, rank=3, mode=mode)
    )
    key, x = jax.random.key(0), normal(1, 2, 8, 8, 4)
    outputs = [jax.eval_shape(module.init_with_output, key, x)[0] for module in (plain, net)]
    assert outputs[0].shape == outputs[1].shape

    @jax.jit
    def slope(key: jax.Array) -> Any:
        variables = net.init(key, x)
        loss = lambda p: jnp.sum(net.apply({**variables, "params": p}, x) ** 2)
        return jax.grad(loss)(variables["params"])

    # What starts from a kernel of zeros learns all the same.
    assert any(jnp.any(g != 0) for g in jax.tree.leaves(slope(key)["SketchConv_2"]))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["chain", "seeded"])
def test_kernel_init_is_the_matrix_that_a_layer_starts_from(mode: Any) -> None:
    w = normal(3, 9, 2) @ normal(4, 2, 7)  # of the layer's rank
    give = lambda _, shape, dtype: w.reshape(shape).astype(dtype)
    options = dict(kernel_init=give, rank=2, mode=mode, use_bias=False)
    if mode == "seeded":
        options |= dict(rank=7, in_sketch=9, sketch="gaussian")  # square: no matrix is left out
    dense = SketchDense(7, **options)
    x = normal(1, 5, 9)
    y = dense.init_with_output(jax.random.key(0), x)[0]
    np.testing.assert_allclose(y, x @ w, atol=2e-3)
    conv = SketchConv(7, (3,), **options)
    x = normal(1, 2, 6, 3)
    want = nn.Conv(7, (3,), use_bias=False).apply({"params": {"kernel": w.reshape(3, 3, 7)}}, x)
    np.testing.assert_allclose(conv.init_with_output(jax.random.key(0), x)[0], want, atol=2e-3)


@pytest.mark.slow
def test_a_scan_over_layers_carries_their_seeds() -> None:
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return SketchDense(6, rank=2, mode="seeded", name="dense")(x), None

    def scanned(**axes: int) -> nn.Module:
        return nn.scan(Body, variable_axes=axes, split_rngs={"params": True}, length=3)()

    x = normal(1, 2, 6)
    with pytest.raises(ValueError, match=r"dense: .*'sketch': 0"):
        scanned(params=0).init(jax.random.key(0), x, None)
    net = scanned(params=0, sketch=0)
    variables = net.init(jax.random.key(0), x, None)
    want = x
    for i in range(3):
        one = jax.tree.map(lambda a, i=i: a[i], variables)
        want = Body().apply(one, want, None)[0]
    np.testing.assert_allclose(net.apply(variables, x, None)[0], want, rtol=1e-4, atol=1e-5)


def test_what_acts_on_a_kernel_is_refused() -> None:
    x = jnp.ones((2, 9))
    with pytest.raises(ValueError, match="SketchDense: dot_general acts on a kernel"):
        SketchDense(7, rank=2, dot_general=jax.lax.dot_general).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="mask acts on a kernel"):
        SketchConv(7, (3,), rank=2, mask=x).init(jax.random.key(0), x[None])
    with pytest.raises(ValueError, match="one for both"):
        pair = ("high", "highest")
        SketchDense(7, rank=2, precision=pair).init(jax.random.key(0), x)
    with pytest.raises(TypeError, match="rank"):
        SketchDense(7, 2)  # type: ignore[call-arg]


def test_errors() -> None:
    x = jnp.ones((2, 9))
    with pytest.raises(ValueError, match="rank 8 is outside"):
        SketchDense(7, rank=8).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="unknown mode"):
        SketchDense(7, rank=2, mode="full").init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="feature_group_count=2"):
        SketchConv(8, (3,), rank=2, feature_group_count=2).init(jax.random.key(0), x[None])
    layer = SketchDense(7, rank=2, mode="seeded")
    variables = layer.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="collection 'sketch'"):
        layer.apply({"params": variables["params"]}, x)
    with pytest.raises(ScopeParamNotFoundError):
        SketchDense(7, rank=2).apply({"params": {"bias": x}}, x)


def after_the_switch(net: nn.Module, x: jax.Array) -> Any:
    """Variables that the update of the switch has just made."""
    variables = jax.jit(net.init)(jax.random.key(0), x)
    params = variables["params"]
    tx = ares_bp(optax.sgd(0.1), switch_step=1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    return {**variables, "params": optax.apply_updates(params, updates)}


@pytest.mark.slow
@pytest.mark.parametrize("fold", [True, False])
def test_finish_makes_layers_of_your_own_small(fold: bool) -> None:
    net, x = Net(), normal(1, 4, 6, 3)
    variables = after_the_switch(net, x)
    small, made = rosler_jax.linen.finish(net, variables, x, fold=fold)
    assert set(made) == {"params"}
    shapes = jax.tree.map(jnp.shape, made["params"])
    chain = {"bias": (5,), "c": (36, 2), "u": (2, 2), "r": (2, 5)}
    folded = {"bias": (5,), "c": (36, 2), "r": (2, 5)}
    assert shapes["SketchDense_0"] == (folded if fold else chain)
    np.testing.assert_allclose(small.apply(made, x), net.apply(variables, x), atol=1e-5)

    @jax.jit
    def traced(variables: Any) -> jax.Array:
        small, made = rosler_jax.linen.finish(net, variables, x, fold=fold)
        return small.apply(made, x)

    np.testing.assert_allclose(traced(variables), net.apply(variables, x), atol=1e-5)
    if fold:  # nothing is left to do
        again, same = rosler_jax.linen.finish(small, made)
        np.testing.assert_array_equal(again.apply(same, x), small.apply(made, x))
    layer = SketchDense(18, rank=3, mode="ares")  # the module itself, dense again
    variables = after_the_switch(layer, x)
    small, made = rosler_jax.linen.finish(layer, variables, x, fold=fold)
    assert set(made["params"]) == ({"bias", "c", "u", "r"} if not fold else {"bias", "kernel"})
    np.testing.assert_allclose(small.apply(made, x), layer.apply(variables, x), atol=1e-4)


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, 8, kernel_init=nn.with_partitioning(
            nn.initializers.lecun_normal(), ("in", "out")))  # fmt: skip
        body = lambda layer, x: (jnp.tanh(layer(x)), None)
        many = nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )  # fmt: skip
        x, _ = many(dense(name="many"), x)
        return nn.ConvTranspose(4, (3,), strides=(2,), transpose_kernel=True)(x)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["chain", "ares"])
def test_finish_of_a_sketched_module_needs_no_call(mode: Any) -> None:
    net, x = Stacked(), normal(1, 2, 8, 8)
    rules = [
        rosler_jax.Rule("many", rank=2, mode=mode), rosler_jax.Rule("Conv*", rank=3, mode=mode)
    ]  # fmt: skip
    dense = net.init(jax.random.key(0), x)
    made = rosler_jax.linen.sketchify(net, dense, rules, x, rngs=nnx.Rngs(0))
    module, variables, _ = made
    if mode == "ares":
        with pytest.raises(ValueError, match=r"^ConvTranspose_0 is still in the parallel"):
            rosler_jax.linen.finish(module, variables)
        params, tx = variables["params"], ares_bp(optax.sgd(0.1), switch_step=1)
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        variables = {**variables, "params": optax.apply_updates(params, updates)}
    small, params = rosler_jax.linen.finish(module, variables)
    many = params["params"]["many"]
    assert {k: v.names for k, v in many.items() if k != "bias"} == {
        "c": ("layers", "in", None), "r": ("layers", None, "out")
    }  # fmt: skip
    want = module.apply(variables, x)
    np.testing.assert_allclose(small.apply(params, x), want, atol=1e-5)
    chain, params = rosler_jax.linen.finish(module, variables, fold=False)
    assert params["params"]["many"]["u"].value.shape == (3, 2, 2)
    np.testing.assert_allclose(chain.apply(params, x), want, atol=1e-5)


def test_finish_asks_for_a_call_where_it_needs_one() -> None:
    x = normal(1, 4, 6, 3)
    with pytest.raises(ValueError, match="SketchConv_0 holds c, u, r of a sketch layer"):
        rosler_jax.linen.finish(Net(), after_the_switch(Net(), x))
