"""What stands around, before, after and inside ares_bp: it trains right, or says so."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rosler_kernels as rk
from rosler_jax.initializers import ares_sketches
from rosler_jax.nn import SketchConv, SketchLinear, SketchLinearGeneral, functional
from rosler_jax.optim import ares_bp, check_sketches

SKETCHES = [
    (rk.gaussian(k, m, 3), rk.gaussian(k + 9, n, 2)) for k, (m, n) in enumerate([(10, 8), (8, 6)])
]
X = jnp.asarray(np.random.default_rng(0).normal(size=(12, 10)), jnp.float32)
Y = jnp.tanh(X @ jnp.asarray(np.random.default_rng(1).normal(size=(10, 6)), jnp.float32) / 3)


def two_layers(count=2):
    layers = {}
    for k, (psi, omega) in enumerate(SKETCHES[:count]):
        f = ares_sketches(jax.random.key(k), psi, omega)
        flag, bias = jnp.ones(()), jnp.zeros(omega.rows)
        layers[f"layer{k}"] = {"c": f.c, "u": f.u, "r": f.r, "parallel": flag, "bias": bias}
    return layers


def loss_of(params):
    x = X
    for (psi, omega), p in zip(SKETCHES, params.values(), strict=False):
        x = functional.sketch_dot(
            x, p["c"], p["u"], p["r"], parallel=p["parallel"], psi=psi, omega=omega
        )
        x = jnp.tanh(x + p["bias"][None])
    return jnp.mean((x[:, :6] - Y) ** 2)


def one_layer():
    return two_layers(1)


def train(tx, params, steps):
    """All in one program; returns the last parameters and the losses."""

    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))
    (params, _), losses = run((params, tx.init(params)))
    return params, losses


def ends_loudly(tx, params, steps=8):
    return bool(jnp.isnan(train(tx, params, steps)[1][-1]))


def named(*names):
    """Labels "yes" for the leaves so named, and "no" for the others."""
    return lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: "yes" if path[-1].key in names else "no", params
    )


# Fault 2: parted from the flag.


def by_ndim(params):
    return jax.tree.map(lambda p: "yes" if jnp.ndim(p) > 1 else "no", params)


@pytest.mark.parametrize(
    ("labels", "missing"),
    [
        (by_ndim, "is given c, u, r of the layer 'layer0' without parallel"),
        (named("c", "r", "parallel"), "is given c, r, parallel of the layer 'layer0' without u"),
        (named("parallel", "bias"), "is given parallel of the layer 'layer0' without c, u, r"),
        (named("u"), "is given u of the layer 'layer0' without c, r, parallel"),
    ],
)
def test_part_of_a_layer_is_refused_by_name(labels, missing):
    sketched = ares_bp(optax.adam(1e-2), switch_step=3)
    tx = optax.partition({"yes": sketched, "no": optax.adam(1e-2)}, labels)
    for init in (tx.init, jax.jit(tx.init)):
        with pytest.raises(ValueError, match=missing) as error:
            init(two_layers())
        assert "Label whole layers" in str(error.value)


def test_a_state_without_its_flags_is_refused_where_the_core_shows_it():
    params = {k: {n: v for n, v in p.items() if n != "parallel"} for k, p in two_layers().items()}
    with pytest.raises(ValueError, match="c, u, r of the layer 'layer0' without parallel"):
        ares_bp(optax.adam(1e-2), switch_step=3).init(params)


def test_whole_layers_may_be_labelled_and_chains_are_none_of_ares_bps_business():
    tx = optax.partition(
        {"sketched": ares_bp(optax.adam(1e-2), switch_step=3), "other": optax.adam(1e-2)},
        {"layer0": "other", "layer1": "sketched", "chain": "sketched"},
    )
    params = two_layers()
    params["layer0"]["parallel"] = jnp.zeros(())  # past its parallel stage: a chain
    square = {"c": jnp.ones((5, 2)), "u": jnp.eye(2), "r": jnp.ones((2, 4))}
    tx.init(params | {"chain": square})
    tx = optax.masked(ares_bp(optax.adam(1e-2), switch_step=3), {"chain": named_bool(square, "u")})
    tx.init({"chain": square})


def named_bool(tree, *names):
    return {name: name in names for name in tree}


# Fault 3: every group, each leaf.


def freeze(*names):
    return optax.partition({"yes": optax.set_to_zero(), "no": optax.sgd(0.1)}, named(*names))


ONE_LAYER = {"layer0": "sgd", "layer1": "adam"}
NOT_LINEAR = {
    "Adam for the second layer": (
        lambda: optax.partition({"sgd": optax.sgd(0.1), "adam": optax.adam(1e-3)}, ONE_LAYER),
        "gradient of 'layer1'.* because of its c, u and r",
    ),
    **{
        f"{name} frozen": (
            lambda name=name: freeze(name),
            f"gradient of 'layer0'.* because of its {name}",
        )
        for name in "cur"
    },
    "another rate for matrices of many rows": (
        lambda: optax.partition(
            {"yes": optax.sgd(0.1), "no": optax.sgd(0.2)},
            lambda params: jax.tree.map(lambda p: "yes" if p.shape[:1] > (5,) else "no", params),
        ),
        "because of its c",
    ),
    "collected gradients": (
        lambda: optax.MultiSteps(optax.adam(1e-3), 6).gradient_transformation(),
        "because of its c, u and r",
    ),
    "warm-up from zero": (
        lambda: optax.adam(lambda count: jnp.where(count < 10, 0.0, 1e-3)),
        "because of its c, u and r",
    ),
    "by unit": (
        lambda: optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.1)),
        "not linear in the gradient of 'layer0'",
    ),
}


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_the_trial_looks_at_every_layer_and_each_factor(name):
    make, message = NOT_LINEAR[name]
    with pytest.raises(ValueError, match=message):
        ares_bp(optax.adam(1e-3), switch_step=5, parallel=make()).init(two_layers())


def test_a_whole_layer_may_be_frozen_inside():
    frozen = optax.partition(
        {"sgd": optax.sgd(0.1), "adam": optax.set_to_zero()}, ONE_LAYER
    )  # the second layer
    start = two_layers()
    end, losses = train(ares_bp(frozen, switch_step=3, parallel=frozen), start, 6)
    assert losses[-1] < losses[0]
    assert float(jnp.abs(end["layer0"]["bias"]).max()) > 1e-3
    assert not np.any(end["layer1"]["bias"])


# Fault 4: neighbours in a chain.


def sketched(switch_step=3, **options):
    return ares_bp(optax.adam(1e-2), switch_step=switch_step, **options)


AFTER = {
    "scaled": optax.scale(-1e-2),
    "decay of matrices": optax.add_decayed_weights(
        1e-2, lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params)
    ),
    "core frozen": optax.masked(
        optax.set_to_zero(),
        lambda params: jax.tree.map(lambda label: label == "yes", named("u")(params)),
    ),
}


@pytest.mark.parametrize("name", AFTER)
def test_a_link_that_changes_the_switch_ends_the_run(name):
    assert ends_loudly(optax.chain(sketched(), AFTER[name]), one_layer())


def test_outside_jit_the_message_says_what_to_do():
    tx = optax.chain(sketched(switch_step=1), optax.scale(0.5))
    params = grads = one_layer()
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    with pytest.raises(ValueError, match="flag of the stage layer0/parallel is neither 0") as error:
        tx.update(grads, state, params)
    assert "belong before ares_bp, or inside" in str(error.value)
    moved = jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.zeros(()) if path[-1].key == "parallel" else p, params
    )
    with pytest.raises(ValueError, match="layer0/c is not where the switch"):
        tx.update(grads, state, moved)


BEFORE = {
    "entries clipped": lambda: optax.chain(
        optax.clip(1e-3), sketched(99, parallel=optax.sgd(50.0))
    ),
    "units clipped": lambda: optax.chain(
        optax.adaptive_grad_clip(1e-2), sketched(99, parallel=optax.sgd(2.0))
    ),
    "Adam alone": lambda: optax.adamw(1e-2),
}


@pytest.mark.parametrize("name", BEFORE)
def test_torn_sketches_end_the_run(name):
    assert ends_loudly(BEFORE[name](), one_layer(), 40)


def test_plain_weight_decay_moves_the_flag_and_ends_the_run():
    assert ends_loudly(optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)), one_layer(), 3)


def test_a_flag_that_names_no_stage_gives_no_number():
    loss_and_gradients = jax.jit(jax.value_and_grad(loss_of))
    for flag, fails in ((0.5, True), (2.0, True), (jnp.nan, True), (0.0, False), (1.0, False)):
        params = two_layers()
        params["layer1"]["parallel"] = jnp.asarray(flag, jnp.float32)
        loss, grads = loss_and_gradients(params)
        assert bool(jnp.isnan(loss)) == bool(jnp.isnan(grads["layer0"]["c"]).all()) == fails


@pytest.mark.slow
def test_debug_nans_stops_at_the_place():
    params = two_layers()
    params["layer1"]["u"] = params["layer1"]["u"] + 1.0
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        jax.jit(jax.grad(loss_of))(params)


@pytest.mark.parametrize(("dtype", "most"), [(jnp.float32, 0.03), (jnp.bfloat16, 0.25)])
def test_half_precision_may_be_off_by_more(dtype, most):
    (psi, omega), p = SKETCHES[0], one_layer()["layer0"]
    x, c, r = (a.astype(dtype) for a in (X, p["c"], p["r"]))

    @jax.jit
    def gradient(u):
        y = lambda u: functional.sketch_dot(
            x, c, u, r, parallel=p["parallel"], psi=psi, omega=omega
        )
        return jax.grad(lambda u: jnp.sum(y(u).astype(jnp.float32)))(u)

    for off, fails in ((0.7 * most, False), (3 * most, True)):
        found = gradient((p["u"] / (1 + off)).astype(dtype))
        assert bool(jnp.isnan(found).all()) == bool(jnp.isnan(found).any()) == fails


def outside(tx):
    return {
        "collected outside": (optax.MultiSteps(tx, 2).gradient_transformation(), 2),
        "skipping NaN": (optax.apply_if_finite(tx, 3), 1),
    }


@pytest.mark.parametrize("name", outside(optax.identity()))
def test_what_may_stand_around_it_trains_through_the_switch(name):
    tx, pace = outside(sketched(switch_step=3))[name]
    end, losses = train(tx, one_layer(), 12 * pace)
    assert all(float(p["parallel"]) == 0 for p in end.values())
    assert losses[-1] < losses[0]


def test_layers_past_their_parallel_stage_are_left_as_they_are():
    once, _ = train(sketched(switch_step=1, parallel=optax.sgd(0.0)), one_layer(), 1)
    still = ares_bp(optax.sgd(0.0), switch_step=2, parallel=optax.sgd(0.0))
    again, losses = train(still, once, 4)
    jax.tree.map(np.testing.assert_array_equal, again, once)
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


# The helper.


@pytest.mark.slow
def test_check_sketches_names_the_layer():
    linear = SketchLinear(10, 8, 2, mode="ares", rngs=nnx.Rngs(0))
    model = nnx.List([linear, stack(STACKS["conv"][0]), SketchLinear(10, 8, 2, rngs=nnx.Rngs(0))])
    found = check_sketches(model)
    assert set(found) == {"0", "1"}
    assert max(found.values()) < 1e-5
    model[1].u[...] = model[1].u[...].at[2, 1].mul(1.2)
    with pytest.raises(ValueError, match=r"sketches of layer '1' are torn.* by 0\.17 \(relative\)"):
        check_sketches(model)
    model[1].parallel[...] = jnp.asarray([1.0, 1.0, 0.0])  # only the torn one is past the stage
    linear.parallel[...] = jnp.zeros(())
    assert set(check_sketches(model)) == {"1"}
    linear.parallel[...] = jnp.asarray(1.25)
    with pytest.raises(ValueError, match=r"layer '0' is 1\.25, neither 0 nor 1"):
        check_sketches(model)


# Fault 16: stacked layers.


def stack(make, layers=3):
    @nnx.split_rngs(splits=layers)
    @nnx.vmap
    def build(rngs):
        return make(rngs)

    return build(nnx.Rngs(0))


STACKS = {
    "conv": (
        lambda rngs: SketchConv(6, 6, (3,), 2, feature_group_count=2, mode="ares", rngs=rngs),
        (2, 5, 6),
    ),
    "general": (
        lambda rngs: SketchLinearGeneral(6, 6, 2, batch_axis={0: 2}, mode="ares", rngs=rngs),
        (2, 4, 6),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STACKS)
def test_a_stack_is_trained_as_its_layers_are(name):
    make, shape = STACKS[name]
    x = jax.random.normal(jax.random.key(5), shape)
    tx = ares_bp(optax.sgd(0.1), switch_step=2, parallel=optax.sgd(0.1))

    stacked = stack(make)
    graph, params, rest = nnx.split(stacked, nnx.Param, ...)

    def loss(params, rest):
        return jnp.mean((nnx.merge(graph, params, rest)(x) - 1) ** 2)

    def train(loss, params, rest):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, rest), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=3)[0][0]

    together = lambda params, rest: jnp.sum(jax.vmap(loss)(params, rest))
    got = nnx.to_pure_dict(jax.jit(partial(train, together))(params, rest))
    want = nnx.to_pure_dict(jax.jit(jax.vmap(partial(train, loss)))(params, rest))
    np.testing.assert_array_equal(got["parallel"], np.zeros(3))
    for product in (lambda p: p["u"] @ p["r"], lambda p: jnp.abs(p["c"])):  # up to signs
        np.testing.assert_allclose(product(got), product(want), atol=1e-4)


def test_stacks_along_another_axis_are_refused():
    params = {"c": jnp.ones((6, 3, 2)), "u": jnp.ones((2, 3, 4)), "r": jnp.ones((4, 3, 6)),
              "parallel": jnp.ones(3)}  # fmt: skip
    with pytest.raises(ValueError, match="stack along axis 0"):
        ares_bp(optax.sgd(0.1), switch_step=2).init({"layers": params})
