"""scale_by_sketched: against the algorithm by hand in NumPy, and what optax's users expect."""

from __future__ import annotations

import functools
import itertools
from zlib import crc32

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import rosler_jax
import rosler_kernels as rk
from rosler_jax.optim import scale_by_sketched, scale_by_sketched_adam, sketched_adamw
from rosler_jax.optim._bases import FAMILIES
from rosler_jax.views import MatrixView

RANK = 3
SHAPES = {"attention": (5, 2, 6), "grouped": (4, 10), "plain": (12, 7), "stack": (2, 9, 8)}
VIEWS = {
    "attention": MatrixView((0,), (1, 2)),
    "grouped": MatrixView((0,), (1,), groups=2),
    "plain": MatrixView((0,), (1,)),
    "stack": MatrixView((1,), (2,), stack=(0,)),
    "bias": None,
}


def normal(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def tree(seed=0, dtype=jnp.float32):
    shapes = SHAPES | {"bias": (7,)}
    return {k: normal(shape, 10 * seed + i, dtype) for i, (k, shape) in enumerate(shapes.items())}


def numbers(state):
    return sum(leaf.size for leaf in jax.tree.leaves(state))


class ByHand:
    """The algorithm on one stack of matrices, ``(g, kept, lost)``, float64."""

    def __init__(self, options, omegas):
        self.o, self.omegas, self.count = options, omegas, 0
        self.m = self.v = self.last = self.index = None
        self.steps = 0

    def columns(self, g):
        lost = g.shape[-1]
        i, u = np.arange(lost)[:, None], np.arange(lost)[None, :]
        whole = np.cos(np.pi * (2 * i + 1) * u / (2 * lost)) * np.sqrt(2 / lost)
        whole[:, 0] /= np.sqrt(2)
        if self.count % self.o["refresh"] == 0:
            norms = np.sum((g @ whole) ** 2, axis=1)
            self.index = np.sort(np.argsort(-norms, axis=-1)[:, :RANK], axis=-1)
        return np.stack([whole[:, index] for index in self.index]) * np.sqrt(lost / RANK)

    def update(self, g):
        lost, refresh = g.shape[-1], self.o["refresh"]
        before = getattr(self, "omega", None)
        if self.o["family"] == "dct_columns":
            omega = self.columns(g)
        else:
            omega = np.broadcast_to(self.omegas(self.count // refresh), (len(g), lost, RANK))
        self.omega = omega
        r = g @ omega
        if self.m is None:
            self.m, self.v = np.zeros_like(r), np.zeros_like(r)
        if self.count and self.count % refresh == 0:
            self.turn(before, omega, lost)
        self.count, self.steps = self.count + 1, self.steps + 1
        self.m = 0.9 * self.m + 0.1 * r
        self.v = 0.99 * self.v + 0.01 * r**2
        hat = self.m / (1 - 0.9**self.steps)
        n = hat / (np.sqrt(self.v / (1 - 0.99**self.steps)) + 1e-8)
        return self.limited(self.whole(g, r, n, omega, lost))

    def turn(self, old, new, lost):
        match self.o["momentum"]:
            case "restart":
                self.m, self.v, self.steps = 0 * self.m, 0 * self.v, 0
            case "project":
                turn = RANK / lost * np.swapaxes(old, 1, 2) @ new
                rest = np.maximum(0, 1 - np.sum(turn**2, axis=1, keepdims=True))
                self.m = self.m @ turn
                self.v = self.v @ turn**2 + self.v.mean(-1, keepdims=True) * rest

    def whole(self, g, r, n, omega, lost):
        if self.o["scaling"] == "combined":
            p = omega * np.sqrt(RANK / lost)
            inside, across = g @ p, np.swapaxes(p, 1, 2)
            rest = g - inside @ across
            size = functools.partial(np.linalg.norm, axis=-1, keepdims=True)
            return n @ across + rest * size(n) / size(inside)
        if self.o["scaling"] == "subspace":
            return n @ np.swapaxes(omega, 1, 2)
        over = {"channel": -1, "tensor": (-2, -1)}[self.o["scaling"]]
        size = functools.partial(np.linalg.norm, axis=over, keepdims=True)
        return g * size(n) / size(r) * np.sqrt(lost / RANK)

    def limited(self, update):
        if self.o["limit"] is None:
            return update
        norm = np.linalg.norm(update, axis=(1, 2), keepdims=True)
        if self.last is not None:
            update = update * np.minimum(1, self.o["limit"] * self.last / norm)
        self.last = np.linalg.norm(update, axis=(1, 2), keepdims=True)
        return update


def by_hand(options, seed):
    """Of the tree here: each weight's algorithm, and whether its inputs are lost."""
    found = {}
    for name in SHAPES:
        _, m, n = VIEWS[name].matrix_shape(SHAPES[name])
        along = options["along"]
        inputs = {"shorter": m <= n, "longer": m > n}.get(along, along == "inputs")
        key = jax.random.fold_in(jax.random.key(seed), crc32(name.encode()))

        def omegas(epoch, key=key, lost=m if inputs else n):
            sketch = rk.make(options["family"], jax.random.fold_in(key, epoch), lost, RANK)
            return np.asarray(rk.materialize(sketch), np.float64)

        found[name] = (ByHand(options, omegas), inputs)
    return found


def expected(weights, grads):
    out = {}
    for name, (algorithm, inputs) in weights.items():
        g = np.asarray(VIEWS[name].to_matrices(grads[name]), np.float64)
        update = algorithm.update(np.swapaxes(g, 1, 2) if inputs else g)
        update = np.swapaxes(update, 1, 2) if inputs else update
        out[name] = VIEWS[name].from_matrices(jnp.asarray(update), SHAPES[name])
    return out


CASES = [
    *itertools.product(
        ("gaussian",), ("channel", "tensor", "subspace"), ("keep", "project", "restart"),
        ("shorter",), (None, 1.01),
    ),
    *itertools.product(
        ("dct_columns",), ("channel", "subspace"), ("project", "restart"), ("longer",), (None,)
    ),
    *itertools.product(
        ("dct_columns", "gaussian"), ("combined",), ("project",), ("shorter", "longer"),
        (None, 1.01),
    ),
    *((family, "channel", "keep", "longer", 1.05) for family in ("srht", "rademacher")),
    ("rademacher", "subspace", "project", "inputs", None),
    ("rademacher", "subspace", "project", "outputs", 1.1),
]  # fmt: skip


@pytest.mark.parametrize(("family", "scaling", "momentum", "along", "limit"), CASES)
def test_follows_the_algorithm_by_hand(family, scaling, momentum, along, limit):
    options = {
        "family": family, "scaling": scaling, "momentum": momentum, "along": along,
        "limit": limit, "refresh": 3,
    }  # fmt: skip
    tx = scale_by_sketched_adam(RANK, b2=0.99, view=VIEWS, seed=5, **options)
    weights, state = by_hand(options, 5), tx.init(tree())
    update = jax.jit(tx.update)
    bias = optax.scale_by_adam(b2=0.99)
    bias_state = bias.init(tree()["bias"])
    for t in range(8):
        grads = tree(t)
        updates, state = update(grads, state)
        wanted = expected(weights, grads)
        wanted["bias"], bias_state = bias.update(grads["bias"], bias_state)
        chex.assert_trees_all_close(updates, wanted, rtol=2e-4, atol=2e-5)
    assert update._cache_size() == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scaling", ["channel", "subspace", "combined"])
def test_every_family_has_updates_of_adams_size(family, scaling):
    # Adam's first update of every number is 1 or -1: of a whole matrix, a norm of sqrt(m n). Of
    # channels it is sqrt(E[r / chi^2_r]) = sqrt(r / (r - 2)) times that with a Gaussian sketch.
    grads = {"kernel": normal((64, 96))}
    sizes = []
    for seed in range(6):
        tx = scale_by_sketched_adam(32, family=family, scaling=scaling, seed=seed)
        updates, _ = tx.update(grads, tx.init(grads))
        sizes.append(float(jnp.linalg.norm(updates["kernel"])) / np.sqrt(64 * 96))
    if scaling == "subspace" and family in ("srht", "dct_columns"):  # orthogonal columns: exactly
        np.testing.assert_allclose(sizes, 1, rtol=1e-4)
    # Of others, signs of R lie along the larger singular directions of Omega, rows come twice.
    assert 0.9 < np.mean(sizes) < 1.3


def test_norms_of_channels_are_estimated_as_theory_says():
    # ||Omega^T g||^2 / ||g||^2 of a Gaussian sketch is chi^2_r / r: mean 1, variance 2 / r.
    g = normal((40, 9), 3)
    tx = functools.partial(
        scale_by_sketched, optax.identity(), RANK, family="gaussian", scaling="subspace"
    )
    view = {"w": MatrixView((0,), (1,))}

    def first(seed):
        sketch = tx(seed=seed, view=view, along="inputs")
        updates, _ = sketch.update({"w": g}, sketch.init({"w": g}))
        return jnp.sum(updates["w"] * g, axis=0) / jnp.sum(g**2, axis=0)

    ratios = jax.vmap(first)(jnp.arange(4000))
    error = np.sqrt(2 / RANK / 4000)
    np.testing.assert_allclose(ratios.mean(0), 1, atol=5 * error)
    np.testing.assert_allclose(ratios.var(0), 2 / RANK, rtol=0.2)


def test_state_is_as_small_as_it_says():
    params = {"kernel": jnp.zeros((64, 256)), "bias": jnp.zeros(256)}
    for along, kept in (("shorter", 256), ("longer", 64)):
        tx = scale_by_sketched_adam(4, along=along, family="srht")
        state = jax.eval_shape(tx.init, params)
        # Moments; two counts of Adam and one of ours; two words of seed; one norm.
        assert numbers(state) == 2 * 4 * kept + 2 * 256 + 3 + 2 + 1
    tx = scale_by_sketched_adam(4, scaling="subspace", family="dct_columns")
    assert numbers(jax.eval_shape(tx.init, params)) == 2 * 4 * 256 + 2 * 256 + 3 + 2 + 4


@pytest.mark.parametrize("options", [
    {}, {"scaling": "channel", "family": "gaussian"},
    {"scaling": "tensor", "rank": 1, "family": "rademacher"},
    {"scaling": "subspace", "family": "srht", "refresh": 5},
    {"scaling": "subspace", "family": "dct_columns", "refresh": 5},
    {"scaling": "combined", "family": "dct_columns", "refresh": 5}, {"state_dtype": jnp.int8},
    {"state_dtype": jnp.bfloat16},
])  # fmt: skip
def test_converges_on_a_parabola(options):
    target = normal((24, 16))
    options = {"rank": 4} | options
    tx = sketched_adamw(optax.linear_schedule(0.05, 0.0, 600), weight_decay=0.0, **options)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda p: jnp.sum((p["kernel"] - target) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = {"kernel": jnp.zeros((24, 16))}
    (found, _), _ = jax.jit(
        lambda carry: jax.lax.scan(step, carry, None, 600)
    )((params, tx.init(params)))  # fmt: skip
    error = jnp.linalg.norm(found["kernel"] - target) / jnp.linalg.norm(target)
    assert error < 0.05


# What optax's users expect.


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_updates_have_the_dtype_of_the_gradients(dtype):
    tx = scale_by_sketched_adam(RANK, view=VIEWS)
    params = tree(dtype=dtype)
    updates, state = tx.update(tree(1, dtype), tx.init(params))
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.sketched.mu)} == {jnp.dtype(jnp.float32)}
    wide, _ = tx.update(jax.tree.map(lambda g: g.astype(jnp.float32), tree(1, dtype)), state)
    chex.assert_tree_all_finite(wide)


def test_bfloat16_is_close_to_float32():
    view = {k: v for k, v in VIEWS.items() if v}
    tx = scale_by_sketched_adam(RANK, view=view, family="rademacher", scaling="channel")
    grads = jax.tree.map(lambda g: g.astype(jnp.bfloat16), tree())
    del grads["bias"]  # optax's own
    first = jax.jit(lambda grads: tx.update(grads, tx.init(grads))[0])
    narrow = first(grads)
    wide = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    whole = first(wide)
    chex.assert_trees_all_close(
        jax.tree.map(lambda g: g.astype(jnp.float32), narrow), whole, rtol=2**-7, atol=1e-6
    )


@pytest.mark.slow
def test_vmapped_over_seeds_and_gradients():
    def one(seed, g):
        tx = scale_by_sketched_adam(
            RANK, view=VIEWS, seed=seed, refresh=1, family="rademacher", scaling="subspace"
        )
        _, state = tx.update(g, tx.init(g))
        return tx.update(g, state)[0]

    grads = jax.tree.map(lambda *g: jnp.stack(g), *(tree(t) for t in range(3)))
    together = jax.vmap(one)(jnp.arange(3), grads)
    for i in range(3):
        alone = one(i, jax.tree.map(lambda g, i=i: g[i], grads))
        chex.assert_trees_all_close(
            jax.tree.map(lambda g, i=i: g[i], together), alone, rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
def test_inside_multi_steps_it_counts_whole_updates():
    grads = [tree(t) for t in range(4)]
    plain = scale_by_sketched_adam(
        RANK, view=VIEWS, refresh=1, scaling="subspace", family="gaussian"
    )
    multi = optax.MultiSteps(plain, 2).gradient_transformation()
    state, reference = multi.init(grads[0]), plain.init(grads[0])
    for a, b in itertools.batched(grads, 2) if hasattr(itertools, "batched") else (
        (grads[0], grads[1]), (grads[2], grads[3])
    ):  # fmt: skip
        _, state = multi.update(a, state)
        updates, state = multi.update(b, state)
        mean = jax.tree.map(lambda x, y: (x + y) / 2, a, b)
        wanted, reference = plain.update(mean, reference)
        chex.assert_trees_all_close(updates, wanted, rtol=1e-4, atol=1e-5)


def test_under_masked_partition_inject_and_apply_if_finite():
    params, grads = tree(), tree(1)
    views = {k: v for k, v in VIEWS.items() if k == "plain"}
    view = lambda name, shape: views.get(name)

    def first(tx, grads):
        return jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params))(
            grads, params
        )

    wanted, _ = first(tx := scale_by_sketched_adam(RANK, view=view), grads)

    labels = {k: "a" if k == "plain" else "b" for k in params}
    split = optax.partition({"a": tx, "b": optax.scale_by_adam()}, labels)
    masked = optax.masked(tx, {k: k == "plain" for k in params})
    inject = optax.inject_hyperparams(scale_by_sketched_adam, static_args=("rank", "view"))(
        RANK, b1=optax.constant_schedule(0.9), view=view
    )
    finite = optax.apply_if_finite(tx, 3)
    for other in (split, inject, finite, optax.chain(optax.identity(), tx)):
        found, _ = first(other, grads)
        chex.assert_trees_all_close(found, wanted, rtol=1e-4)
    found, _ = first(masked, grads)
    chex.assert_trees_all_close(found["plain"], wanted["plain"], rtol=1e-4)
    chex.assert_trees_all_equal(found["bias"], grads["bias"])
    broken = jax.tree.map(lambda g: g * jnp.nan, grads)
    zero, after = first(finite, broken)
    chex.assert_trees_all_equal(zero, jax.tree.map(jnp.zeros_like, grads))
    assert int(after.inner_state.count) == 0


@pytest.mark.slow
def test_other_inner_optimisers():
    grads = tree(1)
    for inner in (optax.trace(0.9), optax.scale_by_rms(), optax.scale_by_lion(), optax.identity()):
        tx = scale_by_sketched(inner, RANK, view=VIEWS, scaling="subspace", refresh=1)
        update = jax.jit(tx.update)
        updates, state = update(grads, tx.init(grads))
        updates, _ = update(grads, state)
        chex.assert_tree_all_finite(updates)
    with pytest.raises(ValueError, match="momentum='project' knows the moments mu, trace, nu"):
        tx = scale_by_sketched(
            optax.scale_by_adadelta(), RANK, view=VIEWS, scaling="subspace", momentum="project"
        )
        tx.init(grads)


def test_trains_an_nnx_model_of_any_layers():
    model = nnx.MultiHeadAttention(4, 32, decode=False, rngs=nnx.Rngs(0))
    tx = sketched_adamw(3e-3, 4, view=rosler_jax.matrix_views(model))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x, y = normal((4, 6, 32)), normal((4, 6, 32), 1) * 0.3

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    moments = [leaf for leaf in jax.tree.leaves(nnx.state(optimizer)) if leaf.ndim == 3]
    assert {leaf.shape for leaf in moments} >= {(1, 32, 4)}


def test_trains_a_linen_model():
    model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(32)])
    x, y = normal((16, 32)), normal((16, 32), 1)
    params = model.init(jax.random.key(0), x)["params"]
    state = train_state.TrainState.create(
        apply_fn=model.apply, params=params, tx=sketched_adamw(3e-3, 4)
    )

    @jax.jit
    def step(state):
        loss, grads = jax.value_and_grad(
            lambda p: jnp.mean((state.apply_fn({"params": p}, x) - y) ** 2)
        )(state.params)
        return state.apply_gradients(grads=grads), loss

    losses = []
    for _ in range(60):
        state, loss = step(state)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_weights_that_are_too_small_get_the_inner_optimiser():
    tx, inner = scale_by_sketched_adam(99, view=VIEWS), optax.scale_by_adam()
    state, reference = tx.init(tree()), inner.init(tree())
    for t in range(3):
        updates, state = tx.update(tree(t), state)
        wanted, reference = inner.update(tree(t), reference)
        chex.assert_trees_all_equal(updates, wanted)
    assert numbers(state.rest) == numbers(reference)
    assert optax.tree.get(state, "mu")["plain"].shape == (12, 7)


def test_nothing_of_a_weight_that_has_no_gradient():
    tx = scale_by_sketched_adam(RANK, view=VIEWS)
    zeros = jax.tree.map(jnp.zeros_like, tree())
    update = jax.jit(tx.update)
    updates, state = update(zeros, tx.init(zeros))
    chex.assert_trees_all_equal(updates, zeros)
    updates, _ = update(tree(1), state)  # and after it, no division by the zero norm
    chex.assert_tree_all_finite(updates)


@pytest.mark.parametrize(("options", "message"), [
    ({"rank": 0}, "rank 0 is too small"), ({"family": "pool"}, "family 'pool' is unknown"),
    ({"scaling": "row"}, "scaling 'row'"), ({"momentum": "x"}, "momentum 'x'"),
    ({"along": "x"}, "along 'x'"), ({"refresh": 0}, "refresh 0"),
    ({"state_dtype": jnp.float16}, "cannot be held in float16"),
])  # fmt: skip
def test_refuses_options_that_it_does_not_know(options, message):
    with pytest.raises(ValueError, match=message):
        scale_by_sketched_adam(**{"rank": 2} | options)


def test_refuses_a_state_of_other_parameters():
    tx = scale_by_sketched_adam(RANK)
    state = tx.init({"a": {"kernel": jnp.ones((8, 9))}})
    with pytest.raises(ValueError, match="of 'a/kernel' the state holds sketches of"):
        tx.update({"a": {"kernel": jnp.ones((8, 19))}}, state)
    with pytest.raises(ValueError, match="holds sketches of nothing"):
        few = scale_by_sketched_adam(RANK, view=lambda name, shape: VIEWS[name])
        few.update(tree(), few.init({"bias": jnp.ones(7)}))
    with pytest.raises(ValueError, match="at most 46340"):
        long = {"kernel": jax.ShapeDtypeStruct((50_000, 50_001), jnp.float32)}
        jax.eval_shape(scale_by_sketched_adam(1, family="dct_columns").init, long)
