"""Trained sketch layers in their smallest form: the same outputs, nothing left of the training."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rosler_jax as rj
from rosler_jax.optim.ares_bp import solve_and_balance

CASES = {
    "linear": (
        lambda mode, rank: rj.SketchLinear(20, 30, rank, mode=mode, rngs=nnx.Rngs(0)),
        (3, 20), 15, nnx.Linear,
    ),
    "conv": (
        lambda mode, rank: rj.SketchConv(
            4, 12, (3, 3), rank, strides=2, padding="CIRCULAR", feature_group_count=2, mode=mode,
            rngs=nnx.Rngs(0),
        ),
        (2, 8, 8, 4), 6, nnx.Conv,
    ),
    "einsum": (
        lambda mode, rank: rj.SketchEinsum(
            "btd,dnh->btnh", (12, 4, 6), rank, bias_shape=(4, 6), mode=mode, rngs=nnx.Rngs(0)
        ),
        (2, 5, 12), 10, nnx.Einsum,
    ),
    "experts": (
        lambda mode, rank: rj.SketchEinsum(
            "bted,edf->btef", (3, 12, 10), rank, mode=mode, rngs=nnx.Rngs(0)
        ),
        (2, 5, 3, 12), 8, nnx.Einsum,
    ),
    "general": (
        lambda mode, rank: rj.SketchLinearGeneral(
            (2, 8), (4, 5), rank, axis=(-2, -1), mode=mode, rngs=nnx.Rngs(0)
        ),
        (3, 2, 8), 12, nnx.LinearGeneral,
    ),
}  # fmt: skip


def past_the_switch(layer: Any) -> Any:
    group = {name: getattr(layer, name)[...] for name in ("c", "u", "r", "parallel")}
    for name, value in jax.jit(solve_and_balance)(group).items():
        getattr(layer, name)[...] = value
    return layer


def inference(model: Any, x: Any) -> str:
    graphdef, state = nnx.split(model)
    return str(jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x))(state, x))


@pytest.mark.parametrize("mode", ("chain", "ares"))
@pytest.mark.parametrize("name", CASES)
def test_two_factors_where_they_are_smaller_and_else_the_dense_layer(name: str, mode: str) -> None:
    make, shape, large, dense = CASES[name]
    x = jax.random.normal(jax.random.key(0), shape)
    for rank in (2, large):
        layer = make(mode, rank)
        if layer.bias is not None:
            layer.bias[...] = jax.random.normal(jax.random.key(1), layer.bias[...].shape)
        layer = past_the_switch(layer) if mode == "ares" else layer
        before = sum(v.size for v in jax.tree.leaves(nnx.state(layer)))
        small = rj.finish(layer)
        scale = float(jnp.abs(layer(x)).max())
        np.testing.assert_allclose(small(x), layer(x), atol=1e-5 * scale)
        assert sum(v.size for v in jax.tree.leaves(nnx.state(small))) < before
        if rank == large:
            assert type(small) is dense
        else:
            assert type(small) is type(layer) and small.mode == "two-factor"
        text = inference(small, x)
        assert not [w for w in ("cond[", "qr[", "triangular_solve", "random") if w in text]
        assert rj.size_report(small).total("weights") == sum(
            v.size for k, v in nnx.to_pure_dict(nnx.state(small)).items() if k != "bias"
        )
    assert layer.mode == mode  # the given layer is not changed


@pytest.mark.parametrize("name", CASES)
def test_without_folding_an_ares_layer_becomes_the_chain_that_it_is(name: str) -> None:
    make, shape, *_ = CASES[name]
    x = jax.random.normal(jax.random.key(0), shape)
    layer = past_the_switch(make("ares", 2))
    chain, born = rj.finish(layer, fold=False), make("chain", 2)
    assert (chain.mode, chain.psi_seed, chain.parallel) == ("chain", None, None)
    assert shapes(chain) == shapes(born)
    np.testing.assert_array_equal(chain.c[...], layer.c[...])
    run = nnx.jit(lambda layer: layer(x))
    scale = float(jnp.abs(run(layer)).max())
    np.testing.assert_allclose(run(chain), run(layer), atol=1e-6 * scale)
    same = rj.finish(born, fold=False)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(same), nnx.state(born))


def shapes(model: Any) -> Any:
    return jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(model)))


@pytest.mark.parametrize("fold", (True, False))
@pytest.mark.parametrize(
    ("name", "rank"), [("linear", 2), ("linear", 15), ("conv", 2), ("conv", 6)]
)
def test_shapes_decide_under_jit_vmap_and_eval_shape(name: str, rank: int, fold: bool) -> None:
    make, shape, *_ = CASES[name]
    x = jax.random.normal(jax.random.key(0), shape)
    layers = [past_the_switch(make("ares", rank)), make("ares", rank)]  # one is in its stage
    graphdef = nnx.graphdef(layers[0])
    states = jax.tree.map(lambda *v: jnp.stack(v), *map(nnx.state, layers))

    def run(state: Any, x: Any) -> Any:
        small = rj.finish(nnx.merge(graphdef, state), fold=fold)
        return small(x), nnx.state(small)

    y, state = jax.jit(jax.vmap(run, (0, None)))(states, x)
    small = rj.finish(layers[0], fold=fold)
    scale = float(jnp.abs(small(x)).max())
    np.testing.assert_allclose(y[0], small(x), atol=1e-5 * scale)
    known = jax.eval_shape(run, nnx.state(layers[0]), x)[1]
    assert jax.tree.map(jnp.shape, known) == jax.tree.map(jnp.shape, nnx.state(small))
    assert jax.tree.map(lambda a: a.shape[1:], state) == jax.tree.map(jnp.shape, known)


@pytest.mark.slow
def test_stacked_layers_and_a_surplus_that_is_not_zero() -> None:
    @nnx.vmap
    def make(key: Any) -> Any:
        return rj.SketchLinear(20, 30, 3, mode="ares", rngs=nnx.Rngs(params=key))

    stack = past_the_switch(make(jax.random.split(jax.random.key(0), 4)))
    chain = rj.finish(stack, fold=False)
    assert (chain.u.shape, chain.r.shape) == ((4, 3, 3), (4, 3, 30))
    stack.u[...] = stack.u[...].at[2, 0, 5].set(1.0)
    with pytest.raises(ValueError, match="columns of U beyond its rank 3 are not zero"):
        rj.finish(stack, fold=False)


@pytest.mark.slow
def test_a_layer_after_its_switch_stores_no_zeros() -> None:
    layer = past_the_switch(rj.SketchLinear(784, 1024, 16, mode="ares", rngs=nnx.Rngs(0)))
    small = rj.finish(nnx.Sequential(layer)).layers[0]
    assert (small.c.size + small.r.size, small.psi_seed) == (16 * (784 + 1024), None)


def test_shared_layers_stay_shared_and_others_stay() -> None:
    class Twice(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.a = rj.SketchLinear(20, 20, 2, rngs=rngs)
            self.b = self.a
            self.seeded = rj.SketchLinear(20, 20, 2, mode="seeded", rngs=rngs)
            self.dense = nnx.Linear(20, 20, rngs=rngs)

    small = rj.finish(Twice(nnx.Rngs(0)))
    assert small.a is small.b and small.a.mode == "two-factor"
    assert small.seeded.mode == "seeded" and type(small.dense) is nnx.Linear


def test_what_cannot_be_folded_is_refused_by_path() -> None:
    layers = nnx.List([rj.SketchLinear(20, 20, 2, mode="ares", rngs=nnx.Rngs(0))])
    for fold in (True, False):
        with pytest.raises(ValueError, match=r"^0 is still in the parallel stage of aRes-BP"):
            rj.finish(layers, fold=fold)
    tied = nnx.List([rj.SketchLinear(20, 20, 2, rngs=nnx.Rngs(k)) for k in range(2)])
    tied[1].c = tied[0].c
    with pytest.raises(ValueError, match="0: its factors are tied to another layer's"):
        rj.finish(tied)
