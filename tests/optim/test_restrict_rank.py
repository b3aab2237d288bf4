"""restrict_rank: what every optax transformation must do, and what this one adds."""

from __future__ import annotations

import functools

import chex
import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rosler_jax.optim._matrices import path_name, select_matrices
from rosler_jax.optim.restrict_rank import restrict_rank
from rosler_jax.views import MatrixView

STATIC = ("rank", "power_iterations", "oversampling", "view", "where")
WHOLE = 99  # oversampling beyond every size here: the sketch spans the range, so the SVD is exact


def last_axis_out(name, shape):
    """A view for the trees here: every leaf of two axes or more, its last axis the output."""
    axes = range(len(shape))
    return MatrixView(tuple(axes[:-1]), (axes[-1],)) if len(shape) > 1 else None


restrict_all = functools.partial(restrict_rank, view=last_axis_out)


def normal(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def tree(seed=0):
    return {
        "conv": {"kernel": normal((3, 2, 2, 9), seed), "bias": normal((9,), seed)},
        "dense": [normal((7, 10), seed), normal((2, 8), seed)],
    }


def best(w, rank):
    """The best approximation of a weight viewed as a matrix, by NumPy in float64."""
    matrix = np.asarray(w, np.float64).reshape(-1, w.shape[-1])
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    return ((left[:, :rank] * sigma[:rank]) @ right[:rank]).reshape(w.shape)


def excess(w, rank):
    """sigma_{rank+1} / sigma_1, by NumPy in float64: rounding alone where the rank is held."""
    matrix = np.asarray(w, np.float64).reshape(-1, w.shape[-1])
    sigma = np.linalg.svd(matrix, compute_uv=False)
    return sigma[rank] / sigma[0]


def step(optimizer, grads, state, params):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def minimise(optimizer, loss, params, steps):
    def body(carry, _):
        params, state = carry
        return step(optimizer, jax.grad(loss)(params), state, params), None

    return jax.jit(lambda carry: jax.lax.scan(body, carry, None, steps)[0][0])(
        (params, optimizer.init(params))
    )


# What every optax transformation must do.


def test_converges_on_a_parabola_to_the_best_low_rank_point():
    target = normal((8, 7))
    optimizer = restrict_all(optax.sgd(0.1), rank=3, every=1, oversampling=WHOLE)
    found = minimise(optimizer, lambda w: jnp.sum((w - target) ** 2), jnp.zeros((8, 7)), 300)
    np.testing.assert_allclose(found, best(target, 3), atol=1e-3)


def rosenbrock(w):
    return jnp.sum((1 - w[:, 0]) ** 2 + 100 * (w[:, 1] - w[:, 0] ** 2) ** 2)


@pytest.mark.parametrize("shape", [(1, 2), (5, 2)])
def test_converges_on_rosenbrock(shape):
    # The minimum, all ones, has rank 1; one row is too small to be restricted at all.
    optimizer = restrict_all(optax.adam(3e-3), rank=1, every=10)
    start = 0.1 * normal(shape, seed=1)
    np.testing.assert_allclose(minimise(optimizer, rosenbrock, start, 20_000), 1, atol=3e-2)


def test_unexpected_extra_args_are_accepted_and_passed_on():
    def update(updates, state, params=None, *, value=0.0, **_):
        return jax.tree.map(lambda u: u * value, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda _: (), update)
    params = {"w": normal((7, 10)), "b": normal((10,))}
    optimizer = restrict_all(inner, 2)
    updates, _ = optimizer.update(params, optimizer.init(params), params, value=2.0, other=None)
    chex.assert_trees_all_close(updates, jax.tree.map(lambda x: 2 * x, params))
    plain = restrict_all(optax.sgd(1.0), 2)  # takes no extra args itself
    updates, _ = plain.update(params, plain.init(params), params, value=2.0, other=None)
    chex.assert_trees_all_close(updates, jax.tree.map(jnp.negative, params))


def test_works_with_tree_map_params():
    optimizer = restrict_all(optax.adam(0.1), 2, where=lambda name: "kernel" in name)
    state = optimizer.init(tree())
    doubled = optax.tree.map_params(optimizer, lambda x: x + 1, state)
    assert jax.tree.structure(doubled) == jax.tree.structure(state)
    chex.assert_trees_all_equal(
        doubled.inner_state[0].mu, jax.tree.map(jnp.ones_like, state.inner_state[0].mu)
    )
    np.testing.assert_array_equal(doubled.count, state.count)
    np.testing.assert_array_equal(doubled.key, state.key)


@pytest.mark.parametrize(("transform", "every"), [(jax.jit, 2), (lambda f: f, 1)])
def test_works_in_inject_hyperparams(transform, every):
    options = {"rank": 2, "every": every, "seed": 3}
    plain = restrict_all(optax.adam(0.1), **options)
    injected = optax.inject_hyperparams(restrict_all, static_args=STATIC)(
        optax.adam(0.1), **options
    )
    params, grads = {"w": normal((7, 10))}, {"w": normal((7, 10), 1)}
    update, update_injected = transform(plain.update), transform(injected.update)
    state, state_injected = plain.init(params), injected.init(params)
    for _ in range(every):
        updates, state = update(grads, state, params)
        updates_injected, state_injected = update_injected(grads, state_injected, params)
        chex.assert_trees_all_close(updates_injected, updates, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(state_injected.inner_state, state, rtol=1e-4)


def test_every_can_be_scheduled():
    schedule = lambda count: jnp.where(count < 2, 1, 100)
    optimizer = optax.inject_hyperparams(restrict_all, static_args=STATIC)(
        optax.sgd(0.1), rank=2, every=schedule
    )
    params = {"w": normal((7, 10))}
    state, held = optimizer.init(params), []
    take = jax.jit(lambda grads, state, params: step(optimizer, grads, state, params))
    for seed in range(4):
        params, state = take({"w": normal((7, 10), seed)}, state, params)
        held.append(excess(params["w"], 2) < 1e-5)
    assert held == [True, True, False, False]


def test_second_call_does_not_retrace_and_state_keeps_its_types():
    chex.clear_trace_counter()
    optimizer = restrict_all(optax.adam(0.1), 2, every=2)
    update = jax.jit(chex.assert_max_traces(optimizer.update, n=1))
    params = tree()
    state = optimizer.init(params)
    for _ in range(3):
        updates, new_state = update(tree(1), state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
        params, state = optax.apply_updates(params, updates), new_state
    assert int(state.count) == 3


def test_vmap_agrees_with_single_calls():
    optimizer = restrict_all(optax.adam(0.1), 2, every=2)
    members = [tree(seed) for seed in range(3)]
    stack = lambda trees: jax.tree.map(lambda *xs: jnp.stack(xs), *trees)

    def two_steps(params, grads):
        state = optimizer.init(params)
        for _ in range(2):
            params, state = step(optimizer, grads, state, params)
        return params

    together = jax.jit(jax.vmap(two_steps))(stack(members), stack(members[::-1]))
    single = jax.jit(two_steps)
    alone = stack([single(p, g) for p, g in zip(members, members[::-1], strict=True)])
    chex.assert_trees_all_close(together, alone, atol=2e-5)


def conditions(jaxpr):
    """The conds in a jaxpr, however deep."""
    found = []
    for equation in jaxpr.eqns:
        found += [equation] if equation.primitive.name == "cond" else []
        for sub in jax.extend.core.jaxprs_in_params(equation.params):
            found += conditions(sub)
    return found


def test_vmapped_training_loop_keeps_a_real_condition():
    optimizer = restrict_all(optax.sgd(0.1), 2, every=5)

    def train(params):
        def body(carry, _):
            params, state = carry
            return step(optimizer, params, state, params), None

        return jax.lax.scan(body, (params, optimizer.init(params)), None, 10)[0][0]

    batch = normal((3, 7, 10))
    assert len(conditions(jax.make_jaxpr(jax.vmap(train))(batch).jaxpr)) == 1
    # With a batched count the cond becomes a select of both branches, as documented.
    states = jax.vmap(optimizer.init)(batch)
    update = jax.vmap(optimizer.update)
    assert not conditions(jax.make_jaxpr(update)(batch, states, batch).jaxpr)


# What restrict_rank adds.


@pytest.mark.parametrize("shape", [(7, 10), (10, 7), (3, 3, 4, 11), (2, 5, 6)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_lands_on_the_best_low_rank_matrix(shape, dtype):
    params, grads = {"w": normal(shape, 1, dtype)}, {"w": normal(shape, 2, dtype)}
    optimizer = restrict_all(optax.sgd(0.5), 3, every=1, oversampling=WHOLE)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    landed = optax.apply_updates(params, updates)["w"]
    inner = np.asarray(grads["w"] * jnp.asarray(-0.5, dtype), np.float64)
    target = best(np.asarray(params["w"], np.float64) + inner, 3)
    # The update is rounded, then the sum (relative eps / 2 each); float32 arithmetic before it.
    eps = float(jnp.finfo(dtype).eps)
    roundings = np.abs(target) + np.abs(target - np.asarray(params["w"], np.float64))
    error = np.abs(np.asarray(landed, np.float64) - target)
    assert np.all(error <= eps / 2 * (1 + eps) * roundings + 1e-5)
    assert landed.dtype == dtype


def test_between_restrictions_it_is_the_inner_optimiser():
    inner = optax.adam(0.1)
    optimizer = restrict_all(inner, 2, every=3)
    params = tree()
    state, inner_state = optimizer.init(params), inner.init(params)
    for count in (1, 2):
        updates, state = optimizer.update(tree(count), state, params)
        expected, inner_state = inner.update(tree(count), inner_state, params)
        chex.assert_trees_all_equal(updates, expected)
        params = optax.apply_updates(params, updates)
    params, state = step(optimizer, tree(3), state, params)
    assert excess(params["dense"][0], 2) < 1e-5
    assert excess(params["conv"]["kernel"], 2) < 1e-5


def test_the_inner_state_never_sees_the_restriction():
    inner = optax.adam(0.1)
    optimizer = restrict_all(inner, 2, every=1)
    params = tree()
    _, state = optimizer.update(tree(1), optimizer.init(params), params)
    _, expected = inner.update(tree(1), inner.init(params), params)
    chex.assert_trees_all_equal(state.inner_state, expected)


def test_default_choice_leaves_small_and_flat_leaves_alone():
    optimizer = restrict_all(optax.sgd(0.1), 2, every=1)
    params = tree() | {"steps": jnp.ones((5, 5), jnp.int32), "scalar": jnp.float32(1.0)}
    grads = tree(1) | {"steps": jnp.zeros((5, 5), jnp.int32), "scalar": jnp.float32(0.0)}
    expected = optax.apply_updates(params, optax.sgd(0.1).update(grads, (None, None))[0])
    landed, _ = step(optimizer, grads, optimizer.init(params), params)
    for pick in (
        lambda p: p["conv"]["bias"],
        lambda p: p["dense"][1],  # 2 x 8 has rank 2 anyway
        lambda p: p["steps"],
        lambda p: p["scalar"],
    ):
        np.testing.assert_array_equal(pick(landed), pick(expected))
    assert np.any(landed["dense"][0] != expected["dense"][0])


def test_where_chooses():
    optimizer = restrict_all(optax.sgd(0.1), 2, every=1, where=lambda name: name == "dense/0")
    params, grads = tree(), tree(1)
    landed, _ = step(optimizer, grads, optimizer.init(params), params)
    assert excess(landed["dense"][0], 2) < 1e-5
    assert excess(landed["conv"]["kernel"], 2) > 1e-2


def test_composes_with_masked_and_chain():
    mask = {"conv": False, "dense": True}
    optimizer = optax.chain(
        optax.clip(1.0), optax.masked(restrict_all(optax.sgd(0.1), 2, every=1), mask)
    )
    params = tree()
    landed, _ = jax.jit(lambda s: step(optimizer, tree(1), s, params))(optimizer.init(params))
    assert excess(landed["dense"][0], 2) < 1e-5
    assert excess(landed["conv"]["kernel"], 2) > 1e-2


def test_seed_decides_the_sketch():
    def landed(seed, steps=1):
        optimizer = restrict_all(
            optax.sgd(1e-9), 2, every=1, power_iterations=0, oversampling=0, seed=seed
        )
        w = normal((9, 8))
        state = optimizer.init(w)
        for _ in range(steps):
            updates, state = optimizer.update(w, state, w)
        return w + updates

    np.testing.assert_array_equal(landed(1), landed(1))
    np.testing.assert_allclose(landed(1), jax.jit(landed)(1), atol=1e-5)  # a traced seed
    seeds = (1, 2, jax.random.key(1), jnp.asarray([1, 2], jnp.uint32))
    results = [landed(seed) for seed in seeds] + [landed(1, steps=2)]
    for i, one in enumerate(results):
        assert all(np.abs(one - other).max() > 1e-3 for other in results[:i])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank 0 is too small; pass rank>=1"),
        ({"rank": 2.0}, TypeError, "rank must be a Python int, got 2.0"),
        ({"rank": jnp.asarray(2)}, TypeError, "name it in static_args"),
        ({"rank": True}, TypeError, "rank must be a Python int, got True"),
        ({"rank": 2, "every": 0}, ValueError, "every 0 is too small; pass every>=1"),
        ({"rank": 2, "every": 1.5}, TypeError, "every must be a Python int, got 1.5"),
        ({"rank": 2, "every": jnp.ones(3)}, TypeError, r"integer scalar, got float32\[3\]"),
        ({"rank": 2, "power_iterations": -1}, ValueError, "power_iterations -1 is too small"),
        ({"rank": 2, "oversampling": -1}, ValueError, "oversampling -1 is too small"),
        ({"rank": 2, "seed": jnp.zeros(3, int)}, ValueError, r"seed has shape \(3,\)"),
        ({"rank": 2, "where": lambda name: name == "x"}, ValueError, "selects none of .*'dense/0'"),
        (
            {"rank": 2, "where": lambda name: "bias" in name, "view": None},
            ValueError,
            r"selects 'conv/bias' with shape \(9,\).* exclude it in where",
        ),
        (
            {"rank": 2, "where": lambda name: "conv/kernel" in name, "view": None},
            ValueError,
            r"selects 'conv/kernel' with shape \(3, 2, 2, 9\).* pass view= to say which",
        ),
        ({"rank": 2, "view": None}, ValueError, "no matrix is known .*; pass view="),
        ({"rank": 2, "view": 3}, TypeError, "view 3 is none"),
        ({"rank": 5, "where": lambda name: "dense" in name}, ValueError, r"rank 5 exceeds min\(in"),
    ],
)
def test_refuses(options, error, message):
    with pytest.raises(error, match=message):
        restrict_all(optax.sgd(0.1), **options).init(tree())


def test_refuses_missing_or_mismatched_params():
    optimizer = restrict_all(optax.sgd(0.1), 2)
    params = tree()
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="restrict_rank needs params"):
        optimizer.update(params, state)
    with pytest.raises(ValueError, match="params have 1 leaves, updates 4"):
        optimizer.update(params, state, {"w": params["dense"][0]})


# In training.


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), name="conv")(x))
        return nn.Dense(6, name="head")(nn.relu(nn.Dense(12, name="hidden")(x.mean((1, 2)))))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(8, 12, rngs=rngs)
        self.head = nnx.Linear(12, 6, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        return self.head(nnx.relu(self.hidden(x.mean((1, 2)))))


def data():
    x = normal((16, 6, 6, 3))
    return x, jnp.asarray(np.random.default_rng(1).integers(0, 6, 16))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def not_head(name):
    return name.endswith("kernel") and "head" not in name


def check_ranks(conv, hidden, head, count):
    for w in (conv, hidden):
        assert (excess(w, 3) < 1e-5) == (count % 4 == 0), count
    assert excess(head, 3) > 1e-2


def test_linen_training_holds_the_rank_at_restricted_steps():
    x, labels = data()
    net = LinenNet()
    params = net.init(jax.random.key(0), x)["params"]
    optimizer = restrict_rank(
        optax.adamw(1e-2), rank=3, every=4, view=last_axis_out, where=not_head
    )

    @jax.jit
    def train_step(params, state):
        loss, grads = jax.value_and_grad(
            lambda p: cross_entropy(net.apply({"params": p}, x), labels)
        )(params)
        return *step(optimizer, grads, state, params), loss

    state, losses = optimizer.init(params), []
    for count in range(1, 25):
        params, state, loss = train_step(params, state)
        losses.append(float(loss))
        check_ranks(*(params[n]["kernel"] for n in ("conv", "hidden", "head")), count)
    assert losses[-1] < 0.9 * losses[0]


def test_nnx_training_holds_the_rank_at_restricted_steps():
    x, labels = data()
    net = NNXNet(nnx.Rngs(0))
    transformation = restrict_rank(
        optax.adamw(1e-2), rank=3, every=4, view=last_axis_out, where=not_head
    )
    optimizer = nnx.Optimizer(net, transformation, wrt=nnx.Param)

    @nnx.jit
    def train_step(net, optimizer):
        loss, grads = nnx.value_and_grad(lambda net: cross_entropy(net(x), labels))(net)
        optimizer.update(net, grads)
        return loss

    losses = []
    for count in range(1, 25):
        losses.append(float(train_step(net, optimizer)))
        check_ranks(*(getattr(net, n).kernel[...] for n in ("conv", "hidden", "head")), count)
    assert losses[-1] < 0.9 * losses[0]


def test_names_are_the_same_for_linen_and_nnx():
    net = NNXNet(nnx.Rngs(0))
    linen = LinenNet().init(jax.random.key(0), jnp.ones((1, 6, 6, 3)))["params"]
    expected = {
        f"{layer}/{leaf}" for layer in ("conv", "hidden", "head") for leaf in ("kernel", "bias")
    }
    state = nnx.state(net, nnx.Param)
    for params in (linen, state, nnx.to_pure_dict(state), net):
        names = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
        assert names == expected


def test_a_dict_key_named_value_is_kept():
    params = {"attention": {"value": jnp.ones((4, 4))}}
    [(name, index, view)] = select_matrices(params, 2, where=lambda name: True)
    assert (name, index, view) == ("attention/value", 0, MatrixView((0,), (1,)))
