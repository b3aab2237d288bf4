"""aRes-BP: the sketches stay sketches of one matrix, the switch happens inside one program."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rosler_kernels as rk
from rosler_jax.initializers import ares_sketches
from rosler_jax.nn import SketchConv, SketchLinear, functional
from rosler_jax.nn.lifts import conv_lift
from rosler_jax.optim.ares_bp import ares_bp, default_parallel

M, N, S, L = 20, 14, 3, 5
PSI, OMEGA = rk.gaussian(1, M, L), rk.gaussian(2, N, S)


def _params(seed=0):
    """A Linen-style tree: a sketched layer under a name, and a plain one."""
    f = ares_sketches(jax.random.key(seed), PSI, OMEGA)
    sketched = {"c": f.c, "u": f.u, "r": f.r, "parallel": jnp.ones(()), "bias": jnp.zeros(N)}
    head = {"kernel": 0.3 * jax.random.normal(jax.random.key(seed + 100), (N, 2))}
    return {"Dense_0": sketched, "head": head}


def _layer(p, x):
    y = functional.sketch_dot(
        x, p["c"], p["u"], p["r"], parallel=p["parallel"], psi=PSI, omega=OMEGA
    )
    return y + p["bias"][None, :]


def _net(params, x):
    return jnp.tanh(_layer(params["Dense_0"], x)) @ params["head"]["kernel"]


def _data(seed=3, batch=16):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, M))
    t = np.tanh(x @ rng.normal(size=(M, 2)) / np.sqrt(M))
    return jnp.asarray(x, jnp.float32), jnp.asarray(t, jnp.float32)


def _loss(params):
    x, t = _data()
    return ((_net(params, x) - t) ** 2).mean()


def _train(tx, params, steps, loss=_loss):
    """Runs a scan; returns the last parameters and state, and (losses, parameters) by step."""

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (value, params)

    (params, state), history = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return params, state, history


def _inconsistency(layer):
    """Largest relative distance of ``Psi^T C`` and ``R Omega`` from ``A``, in float64."""
    psi, omega = (np.asarray(rk.materialize(s), np.float64) for s in (PSI, OMEGA))
    c, u, r = (np.asarray(layer[k], np.float64) for k in "cur")
    a = np.swapaxes(u, -1, -2)
    scale = np.abs(a).max()
    return max(np.abs(psi.T @ c - a).max(), np.abs(r @ omega - a).max()) / scale


LINEAR_OPTIMISERS = {
    "default": lambda: default_parallel(),
    "all": lambda: optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.add_decayed_weights(1e-2),
        optax.sgd(optax.cosine_decay_schedule(0.3, 30), momentum=0.9, nesterov=True),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LINEAR_OPTIMISERS)
def test_the_sketches_stay_sketches_of_one_matrix(name):
    """Float32 rounding of 30 steps is 30 x 1e-7 x the cancellation in the sums: 1e-5 is ample."""
    start = _params()
    tx = ares_bp(optax.adam(1e-2), switch_step=100, parallel=LINEAR_OPTIMISERS[name]())
    end, _, (losses, history) = jax.jit(lambda p: _train(tx, p, 30))(start)
    assert _inconsistency(start["Dense_0"]) < 1e-5
    assert _inconsistency(end["Dense_0"]) < 1e-5
    assert _inconsistency(history["Dense_0"]) < 1e-5
    moved = jnp.linalg.norm(end["Dense_0"]["u"] - start["Dense_0"]["u"])
    assert moved > 0.1 * jnp.linalg.norm(start["Dense_0"]["u"])  # or the test would show nothing
    assert losses[-1] < losses[0]
    # Weight decay moves weights, not the flag that names the stage.
    np.testing.assert_array_equal(history["Dense_0"]["parallel"], np.ones(30))


def test_an_elementwise_optimiser_tears_the_sketches_apart_and_the_layer_says_so():
    """Control of the test above: training with Adam past all checks of ares_bp ends in NaN."""
    *_, (losses, history) = jax.jit(lambda p: _train(optax.adam(3e-3), p, 10))(_params())
    torn = int(jnp.argmax(jnp.isnan(losses)))  # the gradients were NaN one step before
    layers = jax.tree.map(lambda v: v[: torn - 1], history["Dense_0"])
    assert torn > 2
    assert 0.01 < _inconsistency(layers) < 0.1


def test_the_sketches_are_those_of_a_dense_matrix_trained_by_the_same_optimiser():
    """With a loss linear in W, G = x^T T does not depend on W: W itself is trained beside them.

    No clipping: the norm of the sketches is not that of W.
    """
    x, _ = _data()
    rng = np.random.default_rng(5)
    targets = jnp.asarray(rng.normal(size=(12, 16, N)), jnp.float32)  # a new linear loss each step
    inner = optax.chain(
        optax.add_decayed_weights(1e-2),
        optax.sgd(optax.linear_schedule(0.1, 0.01, 12), momentum=0.9),
    )
    tx = ares_bp(optax.adam(1e-2), switch_step=100, parallel=inner)
    w = jnp.asarray(rng.normal(size=(M, N)), jnp.float32)
    psi, omega = rk.materialize(PSI), rk.materialize(OMEGA)
    sketches = lambda w: {"c": w @ omega, "u": (psi.T @ w @ omega).T, "r": psi.T @ w}
    params = sketches(w) | {"parallel": jnp.ones(()), "bias": jnp.zeros(N)}

    def step(carry, t):
        params, state, w, w_state = carry
        grads = jax.grad(lambda p: (_layer(p, x) * t).mean())(params)
        updates, state = tx.update(grads, state, params)
        w_grad = jax.grad(lambda w: ((x @ w) * t).mean())(w)
        w_updates, w_state = inner.update(w_grad, w_state, w)
        params, w = optax.apply_updates(params, updates), optax.apply_updates(w, w_updates)
        return (params, state, w, w_state), None

    carry = (params, tx.init(params), w, inner.init(w))
    params, _, trained, _ = jax.jit(lambda c: jax.lax.scan(step, c, targets)[0])(carry)
    assert float(jnp.abs(trained - w).max()) > 0.05
    for name, expected in sketches(trained).items():
        np.testing.assert_allclose(
            params[name], expected, atol=2e-5 * float(jnp.abs(expected).max()), err_msg=name
        )


def test_the_switch_happens_at_its_step_inside_a_scan():
    tx = ares_bp(optax.adam(1e-2), switch_step=4)
    end, state, (losses, history) = jax.jit(lambda p: _train(tx, p, 9))(_params())
    flags = history["Dense_0"]["parallel"]
    np.testing.assert_array_equal(flags, [1, 1, 1, 0, 0, 0, 0, 0, 0])
    assert int(state.count) == 9
    assert int(state.successive[0].count) == 5  # Adam began after the switch
    # The switch balances, whatever the step before it left.
    at = jax.tree.map(lambda v: np.asarray(v[3], np.float64), history["Dense_0"])
    assert np.count_nonzero(np.abs(at["u"]) > 1e-6) == S
    np.testing.assert_allclose(at["c"].T @ at["c"], np.diag(np.diag(at["u"]) ** 2), atol=1e-4)
    assert bool(jnp.isfinite(losses).all()) and losses[-1] < losses[0]
    assert _inconsistency(end["Dense_0"]) > 1e-2  # no sketches any more


def test_the_switch_leaves_the_function_as_it_is():
    """Without a learning rate the update that holds the switch is the switch alone."""
    x, _ = _data(seed=8)
    params = _params()
    tx = ares_bp(optax.adam(1e-2), switch_step=1, parallel=optax.sgd(0.0))
    after, *_ = jax.jit(lambda p: _train(tx, p, 1))(params)
    before = _net(params, x)
    assert float(after["Dense_0"]["parallel"]) == 0
    assert float(jnp.abs(after["Dense_0"]["c"] - params["Dense_0"]["c"]).max()) > 0.01
    np.testing.assert_allclose(_net(after, x), before, atol=1e-5)


@pytest.mark.slow
def test_the_switch_leaves_a_grouped_convolution_as_it_is():
    model = SketchConv(
        8, 12, (3, 3), 2, feature_group_count=2, mode="ares", oversampling=1, rngs=nnx.Rngs(0)
    )
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 8))
    before = model(x)
    tx = ares_bp(optax.adam(1e-2), switch_step=1, parallel=optax.sgd(0.0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: (m(x) ** 2).mean())(model))

    step(model, optimizer)
    assert float(model.parallel[...]) == 0
    np.testing.assert_allclose(model(x), before, atol=1e-5 * float(jnp.abs(before).max()))


@pytest.mark.slow
def test_a_sweep_over_rates_seeds_and_switch_steps_is_one_vmap():
    def run(rate, seed, switch_step):
        f = ares_sketches(jax.random.key(seed), PSI, OMEGA)
        params = _params()
        params["Dense_0"] |= {"c": f.c, "u": f.u, "r": f.r}
        tx = ares_bp(
            optax.adam(0.1 * rate), switch_step=switch_step, parallel=default_parallel(rate)
        )
        params, _, (losses, history) = _train(tx, params, 6)
        return params, losses, history["Dense_0"]["parallel"]

    rates, seeds = jnp.array([0.05, 0.1, 0.2]), jnp.array([0, 1, 2])
    switches = jnp.array([2, 5, 100])
    params, losses, flags = jax.jit(jax.vmap(run))(rates, seeds, switches)
    np.testing.assert_array_equal(flags, [[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1] * 6])
    alone = jax.jit(run)
    for i in range(3):
        one, one_losses, _ = alone(rates[i], seeds[i], switches[i])
        np.testing.assert_allclose(losses[i], one_losses, rtol=1e-3)
        y = _net(jax.tree.map(lambda v, i=i: v[i], params), _data()[0])
        np.testing.assert_allclose(y, _net(one, _data()[0]), atol=1e-3)


REFUSED = {
    "adam": lambda: optax.adam(1e-3),
    "adamw": lambda: optax.adamw(1e-3),
    "sign": lambda: optax.sign_sgd(1e-3),
    "rmsprop": lambda: optax.rmsprop(1e-3),
    "adagrad": lambda: optax.adagrad(1e-2),
    "elementwise clip": lambda: optax.chain(optax.clip(1.0), optax.sgd(0.1)),
    "block clip": lambda: optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1)),
    "lamb": lambda: optax.lamb(1e-3),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_parallel_optimiser_that_is_not_linear_is_refused(name):
    tx = ares_bp(optax.adam(1e-3), switch_step=5, parallel=REFUSED[name]())
    with pytest.raises(ValueError, match="not linear in the gradient") as error:
        tx.init(_params())
    assert "pass SGD, momentum, weight decay or global-norm clipping as parallel=" in str(
        error.value
    )


def test_it_is_refused_under_jit_too_and_only_where_there_are_sketches():
    tx = ares_bp(optax.adam(1e-3), switch_step=5, parallel=optax.adam(1e-3))
    with pytest.raises(ValueError, match="not linear in the gradient"):
        jax.jit(tx.init)(_params())
    tx.init({"kernel": jnp.ones((3, 3))})  # nothing to tear apart


@pytest.mark.parametrize(
    "parallel",
    [
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1.0)),
        optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
        optax.chain(optax.clip_by_global_norm(1e-3), optax.ema(0.9), optax.scale(-0.1)),
    ],
)
def test_linear_optimisers_are_accepted(parallel):
    ares_bp(optax.adam(1e-3), switch_step=5, parallel=parallel).init(_params())


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="switch_step 0 leaves no parallel stage"):
        ares_bp(optax.adam(1e-3), switch_step=0)
    tx = ares_bp(optax.adam(1e-3), switch_step=1)
    state = tx.init(_params())
    with pytest.raises(ValueError, match="ares_bp needs the parameters"):
        tx.update(_params(), state)


# What optax's own common tests ask of a transformation.


def _nnx_linear():
    model = SketchLinear(M, 2, 1, mode="ares", rngs=nnx.Rngs(0))
    x, t = _data()
    return model, lambda m: ((m(x) - t) ** 2).mean()


def _nnx_conv():
    model = SketchConv(4, 6, (3, 3), 2, strides=2, mode="ares", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (4, 6, 6, 4))
    t = jax.random.normal(jax.random.key(2), (6,))
    return model, lambda m: ((jnp.tanh(m(x)).mean((1, 2)) - jnp.tanh(t)[None]) ** 2).mean()


def _problem(kind):
    """Parameters and a loss: an NNX state, or Linen-style nested dicts."""
    if kind == "dict linear":
        return _params(), _loss
    if kind == "dict conv":
        psi, omega, lift = rk.gaussian(1, 36, 4), rk.gaussian(2, 6, 2), conv_lift((3, 3))
        f = ares_sketches(jax.random.key(0), psi, omega)
        params = {"Conv_0": {"c": f.c.reshape(3, 3, 4, 2), "u": f.u[None], "r": f.r[None],
                             "parallel": jnp.ones(())}}  # fmt: skip
        x = jax.random.normal(jax.random.key(1), (4, 6, 6, 4))

        def loss(p):
            c, u, r, flag = (p["Conv_0"][k] for k in ("c", "u", "r", "parallel"))
            y = functional.sketch_conv(x, c, u, r, lift, parallel=flag, psi=psi, omega=omega)
            return ((jnp.tanh(y).mean((1, 2)) - 0.3) ** 2).mean()

        return params, loss
    model, nnx_loss = _nnx_linear() if kind == "nnx linear" else _nnx_conv()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return params, lambda p: nnx_loss(nnx.merge(graph, p, rest))


KINDS = ("nnx linear", "nnx conv", "dict linear", "dict conv")


@pytest.mark.parametrize("kind", KINDS)
def test_it_converges_through_both_stages(kind):
    params, loss = _problem(kind)
    tx = ares_bp(optax.adam(2e-2), switch_step=20)
    _, _, (losses, _) = jax.jit(lambda p: _train(tx, p, 150, loss))(params)
    assert losses[20] < losses[0]
    assert losses[-1] < 0.3 * losses[0], losses[:: len(losses) // 8]


@pytest.mark.parametrize("kind", ("nnx conv", "dict linear"))
def test_unexpected_extra_args_and_no_second_compilation(kind):
    params, loss = _problem(kind)
    tx = ares_bp(optax.adam(1e-2), switch_step=2)
    chex.clear_trace_counter()  # it counts by name, over all parameters of this test

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state):
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=1.0, unexpected=jnp.ones(2))
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(4):  # across the switch
        new, new_state = step(params, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
        params, state = new, new_state


def test_extra_args_reach_the_inner_optimisers():
    def scale_by_value():
        def update(updates, state, params=None, *, value, **extra):
            return optax.tree.scale(value, updates), state

        return optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)

    params = _params()
    tx = ares_bp(scale_by_value(), switch_step=1, parallel=optax.sgd(0.1))
    grads = jax.tree.map(jnp.ones_like, params)
    updates, state = tx.update(grads, tx.init(params), params, value=0.5)
    params = optax.apply_updates(params, updates)
    updates, _ = tx.update(grads, state, params, value=0.5)
    np.testing.assert_allclose(updates["head"]["kernel"], 0.5)
    assert float(updates["Dense_0"]["parallel"]) == 0.0


@pytest.mark.parametrize("kind", ("nnx linear", "dict linear"))
def test_tree_map_params_reaches_the_moments_of_both_stages(kind):
    params, _ = _problem(kind)
    tx = ares_bp(optax.adam(1e-2), switch_step=2)
    state = tx.init(params)
    marked = optax.tree.map_params(
        tx, lambda v: jnp.full_like(v, 7.0), state, transform_non_params=lambda v: v
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(marked, state)
    moments = (marked.parallel[1][0].trace, marked.successive[0].mu, marked.successive[0].nu)
    for tree in moments:
        assert all(bool((v == 7.0).all()) for v in jax.tree.leaves(tree))
    assert int(marked.count) == 0 and int(marked.switch_step) == 2


def test_inject_hyperparams_is_close_to_the_plain_optimiser():
    def make(rate, parallel_rate):
        return ares_bp(optax.adam(rate), switch_step=3, parallel=optax.sgd(parallel_rate))

    plain = make(1e-2, 0.1)
    injected = optax.inject_hyperparams(make)(rate=1e-2, parallel_rate=0.1)
    params, _, (losses, _) = jax.jit(lambda p: _train(plain, p, 6))(_params())
    other, state, (other_losses, _) = jax.jit(lambda p: _train(injected, p, 6))(_params())
    np.testing.assert_allclose(losses, other_losses, rtol=1e-4)
    x, _ = _data()
    np.testing.assert_allclose(_net(params, x), _net(other, x), atol=1e-4)
    assert set(state.hyperparams) == {"rate", "parallel_rate"}
