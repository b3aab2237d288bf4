"""What restrict_rank takes for a matrix, and what stands around and inside it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rosler_jax import matrix_views
from rosler_jax.optim import extract_factors, merge_factors, restrict_rank
from rosler_jax.views import MatrixView


def normal(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def low_rank(shape, rank=2, seed=0):
    """Stacks of matrices of exact rank."""
    return normal((*shape[:-1], rank), seed) @ normal((*shape[:-2], rank, shape[-1]), seed + 1)


SLOW = optax.sgd(1e-9)


def restricted(params, rank, view, inner=SLOW, **options):
    """Parameters after one restriction, with gradients of ones."""
    tx = restrict_rank(inner, rank, every=1, view=view, **options)

    @jax.jit
    def run(params):
        updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
        return optax.apply_updates(params, updates)

    return run(params)


# Fault 6: which axes are inputs.


STACKED = MatrixView((1,), (2,), stack=(0,))
HEADS = MatrixView((0,), (1, 2))
GROUPED = MatrixView((0, 1), (2,), groups=2)
EXACT = {
    "a stack of layers": (STACKED, low_rank((5, 9, 8))),
    "a query": (HEADS, low_rank((32, 32)).reshape(32, 4, 8)),
    "an output projection": (MatrixView((0, 1), (2,)), low_rank((32, 12)).reshape(4, 8, 12)),
    "a stack of queries": (
        MatrixView((1,), (2, 3), stack=(0,)),
        low_rank((3, 32, 32)).reshape(3, 32, 4, 8),
    ),
    "groups": (
        GROUPED,
        low_rank((2, 12, 6)).swapaxes(0, 1).reshape(3, 4, 12),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_matrices_of_exact_rank_stay_and_their_factors_give_them_back(name):
    view, w = EXACT[name]
    params, view = {"w": w, "bias": jnp.ones(4)}, {"w": view}
    size = float(jnp.abs(w).max())
    np.testing.assert_allclose(restricted(params, 2, view)["w"], w, atol=1e-5 * size)

    @jax.jit
    def there_and_back(params):
        factored, errors = extract_factors(params, 2, view=view)
        return merge_factors(factored), errors

    merged, errors = there_and_back(params)
    assert set(errors) == {"w"} and errors["w"] < 1e-5
    np.testing.assert_allclose(merged["w"], w, atol=1e-5 * size)


def test_factors_of_a_grouped_convolution_are_layers():
    conv = nnx.Conv(8, 12, (3,), feature_group_count=2, rngs=nnx.Rngs(0))
    params = restricted(nnx.state(conv, nnx.Param), 2, matrix_views(conv))
    factored, _ = extract_factors(params, 2, view=matrix_views(conv))
    thin = nnx.to_pure_dict(factored)["kernel"]
    x = normal((2, 7, 8))
    h = nn.Conv(4, (3,), feature_group_count=2, use_bias=False).apply(
        {"params": {"kernel": thin.c}}, x
    )
    y = jnp.einsum("btgs,gsn->btgn", h.reshape(2, 7, 2, 2), thin.r).reshape(2, 7, 12)
    nnx.update(conv, params)
    np.testing.assert_allclose(y, conv(x), atol=1e-5)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(20, 16, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.depthwise = nnx.Conv(16, 16, (3,), feature_group_count=16, rngs=rngs)
        self.norm = nnx.LayerNorm(16, rngs=rngs)

        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def stack(rngs):
            return nnx.Linear(16, 16, rngs=rngs)

        self.layers = stack(rngs)


@pytest.mark.slow
def test_the_models_own_views_leave_what_is_no_matrix_alone():
    block = Block(nnx.Rngs(0))
    params = nnx.state(block, nnx.Param)
    after = nnx.to_pure_dict(restricted(params, 2, matrix_views(block)))
    before = nnx.to_pure_dict(params)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, d in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after, before)
        )
        if d > 1e-6
    }
    kernels = {f"attend/{name}/kernel" for name in ("query", "key", "value", "out")}
    assert moved == kernels | {"layers/kernel"}
    ranks = np.linalg.matrix_rank(np.asarray(after["layers"]["kernel"]), rtol=1e-4)
    np.testing.assert_array_equal(ranks, [2, 2, 2])


def test_where_narrows_a_view():
    params = {"a": normal((3, 5, 6)), "b": normal((3, 5, 6)), "bias": normal((5, 6))}
    view = {"a": STACKED, "b": STACKED}
    after = restricted(params, 2, view, where=lambda name: name in ("a", "bias"))
    moved = {k for k in params if jnp.abs(after[k] - params[k]).max() > 1e-6}
    assert moved == {"a"}


# Fault 5: frozen inside.


def test_what_is_frozen_inside_is_not_moved():
    params = {"f": {"kernel": normal((8, 9))}, "t": {"kernel": normal((8, 9), 1)}}
    frozen = optax.partition({"f": optax.set_to_zero(), "t": optax.sgd(0.1)}, {"f": "f", "t": "t"})
    after = restricted(params, 2, None, frozen)
    np.testing.assert_array_equal(after["f"]["kernel"], params["f"]["kernel"])
    assert np.linalg.matrix_rank(np.asarray(after["t"]["kernel"]), rtol=1e-4) == 2


def loss_of(params):
    return sum(jnp.sum((w - 1.5 * normal(w.shape, 7)) ** 2) for w in jax.tree.leaves(params))


def train(tx, params, steps):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss_of)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda c: jax.lax.scan(step, c, length=steps)[0][0])((params, tx.init(params)))


def sigma_excess(w, rank=2):
    sigma = np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)
    return sigma[rank] / sigma[0]


def test_an_inner_optimiser_that_collects_gradients_ends_at_the_rank():
    inner = optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation()
    after = train(restrict_rank(inner, 2, every=4), {"kernel": normal((8, 9))}, 8)
    assert sigma_excess(after["kernel"]) < 1e-5


# Fault 4: neighbours in a chain. Fault 20: bfloat16 inside apply_if_finite.


def held():
    return restrict_rank(optax.sgd(0.1), 2, every=2)


AFTER = {
    "a rate": optax.scale(0.5),
    "weight decay": optax.add_decayed_weights(-1e-2),
    "noise": optax.add_noise(1e-3, 0.0, key=0),
}


@pytest.mark.parametrize("name", AFTER)
def test_a_link_that_changes_the_restriction_ends_the_run(name):
    tx = optax.chain(held(), AFTER[name])
    params = {"kernel": normal((8, 9)), "bias": jnp.ones(3)}
    assert np.isnan(train(tx, params, 3)["kernel"]).all()
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(jax.grad(loss_of)(params), state, params)
        params = optax.apply_updates(params, updates)
    with pytest.raises(ValueError, match="'kernel' is not where restrict_rank's restriction"):
        tx.update(params, state, params)


AROUND = {
    "collected outside": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "skipping NaN": lambda tx: optax.apply_if_finite(tx, 3),
    "masked, clipped before": lambda tx: optax.chain(
        optax.clip(1.0), optax.masked(tx, {"kernel": True, "bias": False})
    ),
}


@pytest.mark.parametrize("name", AROUND)
def test_what_may_stand_around_it_ends_at_the_rank(name):
    dtype = jnp.bfloat16 if name == "skipping NaN" else jnp.float32
    params = {"kernel": normal((8, 9), 0, dtype), "bias": jnp.ones(3, dtype)}
    after = train(AROUND[name](held()), params, 8)["kernel"]
    assert after.dtype == dtype
    assert sigma_excess(after) < (1e-5 if dtype == jnp.float32 else 2e-2)
    assert jnp.abs(after - params["kernel"]).max() > 0.1


def test_whole_weights_may_be_frozen_outside():
    params = {"f": {"kernel": normal((8, 9))}, "t": {"kernel": normal((8, 9), 1)}}
    freeze = optax.masked(optax.set_to_zero(), {"f": True, "t": False})
    after = train(optax.chain(held(), freeze), params, 4)
    np.testing.assert_array_equal(after["f"]["kernel"], params["f"]["kernel"])
    assert sigma_excess(after["t"]["kernel"]) < 1e-5
