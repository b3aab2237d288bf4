"""Ranks as masks: a layer of one rank, padded to a larger one, is still itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rosler_jax as rj
import rosler_kernels as rk
from rosler_jax import _ranks
from rosler_jax.linen import SketchConv, SketchDense, sketchify

KINDS = {
    "linear": (lambda **o: rj.SketchLinear(40, 36, **o), (3, 40)),
    "conv": (
        lambda **o: rj.SketchConv(8, 48, (3, 3), strides=2, feature_group_count=2, **o),
        (2, 7, 7, 8),
    ),
    "einsum": (
        lambda **o: rj.SketchEinsum("bed,edf->bef", (3, 24, 30), bias_shape=(3, 30), **o),
        (4, 3, 24),
    ),
}


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def split(model: Any) -> tuple[Any, Any, Any]:
    graphdef, params, buffers = nnx.split(model, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(buffers)


def pad(small: Any, big: Any) -> tuple[Any, Any, Any]:
    """The small model in the program of the big one."""
    (_, params, buffers), (graphdef, wide, _) = split(small), split(big)
    return graphdef, _ranks.padded(params, wide), _ranks.live(params, buffers)


def close(a: Any, b: Any, rtol: float = 2e-5) -> None:
    scale = float(jnp.max(jnp.abs(b)))
    np.testing.assert_allclose(a, b, rtol=0, atol=rtol * scale + 1e-30)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k, family in rk.FAMILIES.items() if family.nested])
@pytest.mark.parametrize(("rows", "cols", "live"), [(100, 16, 5), (200, 300, 7)])
def test_the_live_columns_are_the_smaller_sketch(
    kind: str, rows: int, cols: int, live: int
) -> None:
    if kind in ("srht", "dct"):
        rows = max(rows, cols)
    small = rk.make(kind, 7, rows, live)
    seed = jnp.array([0, 7, live], jnp.uint32)
    big = rk.make(kind, seed, rows, cols)
    omega = rk.materialize(big)
    np.testing.assert_allclose(omega[:, :live], rk.materialize(small), rtol=2e-6, atol=1e-6)
    assert not omega[:, live:].any()
    np.testing.assert_array_equal(rk.tile(big, 3, 20, 2, 6), omega[3:23, 2:8])
    x, y = normal(0, 4, rows), normal(1, 4, cols)
    u = normal(2, cols, cols)
    for implementation in ("xla", "reference"):
        how = {"implementation": implementation}
        out = rk.project(x, big, **how)
        close(out[:, :live], rk.project(x, small, **how))
        assert not out[:, live:].any()
        close(rk.project_transpose(y, big, **how), rk.project_transpose(y[:, :live], small, **how))
        chain = rk.sketch_matmul(x, big, u, big, **how)
        close(chain, rk.sketch_matmul(x, small, u[:live, :live], small, **how), 1e-4)
    image = normal(3, 2, 6, 1, rows // 2)
    window = {"window": (2, 1)}
    out = rk.project_patches(image, big, **window)
    close(out[..., :live], rk.project_patches(image, small, **window))
    assert not out[..., live:].any()


def test_what_is_not_live_costs_nothing_and_other_families_are_refused() -> None:
    sketch = rk.make("srht", jnp.array([0, 7], jnp.uint32), 100, 16)
    program = str(jax.make_jaxpr(lambda x: rk.project(x, sketch))(jnp.ones((4, 100))))
    assert sketch.live is None and program.count(" = ") == 1
    with pytest.raises(ValueError, match="sparse_sign: its columns depend on how many there are"):
        rk.make("sparse_sign", jnp.array([0, 7, 3], jnp.uint32), 100, 16)


@pytest.mark.parametrize("stage", ["seeded", "parallel", "successive"])
@pytest.mark.parametrize("name", KINDS)
def test_outputs_and_gradients_are_those_of_the_small_layer(name: str, stage: str) -> None:
    make, shape = KINDS[name]
    mode: Any = "seeded" if stage == "seeded" else "ares"
    small, big = (make(rank=rank, mode=mode, rngs=nnx.Rngs(0)) for rank in (2, 5))
    if stage == "successive":
        for layer in (small, big):
            layer.parallel[...] = jnp.zeros(())
    x = normal(1, *shape)
    target = normal(2, *small(x).shape)

    @partial(jax.jit, static_argnums=0)
    def run(graphdef: Any, params: Any, buffers: Any) -> Any:
        def loss(params: Any, x: Any) -> Any:
            y = nnx.merge(graphdef, params, buffers)(x)
            return jnp.mean((y - target) ** 2), y

        (_, y), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return y, grads

    graphdef, params, buffers = pad(small, big)
    y, (grads, dx) = run(graphdef, params, buffers)
    want, (expected, want_dx) = run(*split(small))
    close(y, want)
    close(dx, want_dx, 1e-4)
    inside = _ranks.cropped(grads, expected)
    jax.tree.map(lambda a, b: close(a, b, 1e-4), inside, expected)
    outside = jax.tree.map(lambda g, part: g - part, grads, _ranks.padded(inside, grads))
    assert not any(leaf.any() for leaf in jax.tree.leaves(outside))


def step_of(graphdef: Any, tx: Any, x: Any, y: Any) -> Any:
    def step(params: Any, buffers: Any, state: Any) -> Any:
        def loss(params: Any) -> Any:
            return jnp.mean((nnx.merge(graphdef, params, buffers)(x) - y) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return jax.jit(step), jax.jit(jax.vmap(step))


SWITCH = 8


def stacked(trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


class Net(nnx.Module):
    def __init__(self, rank: int, mode: Any):
        rngs = nnx.Rngs(0)
        self.conv = rj.SketchConv(
            6, 48, (3, 3), rank, strides=2, feature_group_count=2, mode=mode, rngs=rngs
        )
        self.linear = rj.SketchLinear(48, 40, rank, mode=mode, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.linear(nnx.relu(self.conv(x)).mean((1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ares", "seeded"])
def test_members_of_several_ranks_train_in_one_program_as_they_do_alone(mode: Any) -> None:
    x, y = normal(1, 16, 6, 6, 6), normal(2, 16, 40)
    tx: Any = optax.adam(1e-2)
    if mode == "ares":
        tx = rj.ares_bp(optax.adam(1e-2), switch_step=SWITCH)
    nets = [Net(rank, mode) for rank in (5, 2)]
    assert len({_ranks.mask_key(net) for net in nets}) == 1
    graphdef, wide, _ = split(nets[0])
    like = wide, jax.eval_shape(tx.init, wide)
    alone, members, owns = [], [], []
    for net in nets:
        own, params, buffers = split(net)
        state = tx.init(params)
        owns.append(jax.eval_shape(lambda *trees: trees, params, state))
        held = jax.device_get((params, state))
        members.append((*_ranks.padded(held, like), _ranks.live(params, buffers)))
        run, losses = step_of(own, tx, x, y)[0], []
        for _ in range(20):
            params, state, value = run(params, buffers, state)
            losses.append(value)
        alone.append(losses)
    params, state, buffers = stacked(members)
    step, together = step_of(graphdef, tx, x, y)[1], []
    for i in range(20):
        if i == SWITCH:  # a rung ends here: held at their own ranks, and padded again
            held = [
                jax.device_get(jax.tree.map(lambda a, k=k: a[k], (params, state))) for k in (0, 1)
            ]
            held = [_ranks.cropped(h, own) for h, own in zip(held, owns, strict=True)]
            params, state = stacked([_ranks.padded(h, like) for h in held])
            goes_on, _, _ = run(held[-1][0], split(nets[-1])[2], held[-1][1])  # or alone
            assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(goes_on))
        params, state, value = step(params, buffers, state)
        together.append(value)
    np.testing.assert_allclose(np.array(together).T, alone, rtol=2e-4)
    assert np.all(np.array(together)[-1] < np.array(together)[0])
    for i, net in enumerate(nets):  # and ship as they do
        own, like, seeds = split(net)
        first = jax.tree.map(lambda a, i=i: a[i], (params, buffers))
        cropped = _ranks.cropped(first, (like, seeds))
        small = nnx.merge(own, *cropped)
        close(small(x), nnx.merge(graphdef, *first)(x), 1e-4)
        assert jax.tree.map(jnp.shape, cropped) == jax.tree.map(jnp.shape, (like, seeds))


class Linen(nn.Module):
    """Layers of our own, or dense ones to sketch."""

    rank: int | None
    mode: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        if self.rank is None:
            x = nn.relu(nn.Conv(24, (3,))(x)).mean(1)
            return nn.Dense(30)(x)
        x = nn.relu(SketchConv(24, (3,), rank=self.rank, mode=self.mode)(x)).mean(1)
        return SketchDense(30, rank=self.rank, mode=self.mode)(x)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "own"), [("ares", True), ("seeded", False)])
def test_linen_layers_of_a_smaller_rank(mode: Any, own: bool) -> None:
    x = normal(1, 3, 6, 8)

    def make(rank: int, key: Any) -> tuple[Any, Any]:
        module = Linen(rank if own else None, mode)
        variables = module.init(key, x)
        if own:
            return module, variables
        rules = [rj.Rule("*", rank=rank, mode=mode, in_sketch=2 * rank)]
        return sketchify(module, variables, rules, x, rngs=nnx.Rngs(1))[:2]

    key = jax.random.key(0)
    (small, variables), (big, wide) = make(2, key), make(5, key)
    assert _ranks.mask_key((small, variables), x) == _ranks.mask_key((big, wide), x)
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    seeds = _ranks.live(params, rest)
    assert {leaf.shape for leaf in jax.tree.leaves(seeds)} == {(3,)}

    def slope(module: Any, params: Any, rest: Any) -> Any:
        run = lambda params: jnp.sum(module.apply({"params": params, **rest}, x) ** 2)
        return jax.value_and_grad(run)(params)

    padded = _ranks.padded(params, wide["params"])
    value, grads = jax.jit(lambda p, r: slope(big, p, r))(padded, seeds)
    want, expected = jax.jit(lambda p, r: slope(small, p, r))(params, rest)
    close(value, want)
    jax.tree.map(lambda a, b: close(a, b, 2e-4), _ranks.cropped(grads, params), expected)


@pytest.mark.slow
def test_linen_modules_are_sketched_under_jit_with_seeds_of_their_own() -> None:
    x = normal(1, 3, 6, 8)
    module, rule = Linen(None, None), rj.Rule("*", rank=2, mode="ares")

    def init(key: Any) -> Any:
        variables = module.init(key, x)
        return sketchify(module, variables, [rule], x, rngs=nnx.Rngs(key))[1]

    dense = module.init(jax.random.key(9), x)
    small = sketchify(module, dense, [rule], x, rngs=nnx.Rngs(9))[0]
    many = jax.jit(jax.vmap(init))(jax.random.split(jax.random.key(0), 3))
    seeds = np.asarray(many["sketch"]["Dense_0"]["psi_seed"])
    assert len(np.unique(seeds, axis=0)) == 3
    run = lambda v, p: jnp.sum(small.apply({**v, "params": p}, x) ** 2)
    # Not NaN: with its own sketches.
    grads = jax.jit(jax.vmap(jax.grad(run, argnums=1)))(many, many["params"])
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
