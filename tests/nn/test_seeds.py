"""Parameters and the seeds that they belong to: tied, and stored together."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rosler_jax as rj
from rosler_jax import linen
from rosler_jax.nn._fingerprint import fingerprint

X = jnp.ones((2, 4, 20))
LAYERS: dict[str, Any] = {
    "linear": lambda r: rj.SketchLinear(20, 12, rank=4, mode="seeded", rngs=r),
    "conv": lambda r: rj.SketchConv(20, 12, (3,), rank=4, mode="seeded", rngs=r),
    "general": lambda r: rj.SketchLinearGeneral(20, (3, 4), rank=4, mode="seeded", rngs=r),
    "einsum": lambda r: rj.SketchEinsum("bta,ac->btc", (20, 12), 4, mode="seeded", rngs=r),
}


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_alone_are_refused_in_a_layer_of_other_seeds(name: str) -> None:
    trained, other = LAYERS[name](nnx.Rngs(0)), LAYERS[name](nnx.Rngs(1))
    call = nnx.jit(lambda model, x: model(x))
    nnx.update(other, nnx.state(trained, nnx.Param))
    with pytest.raises(ValueError, match=r"trained with other seeds than the layer has; restore"):
        other(X)
    assert bool(jnp.isnan(call(other, X)).all())
    graphdef, _, rest = nnx.split(LAYERS[name](nnx.Rngs(1)), nnx.Param, ...)
    with pytest.raises(ValueError, match="other seeds"):
        nnx.merge(graphdef, nnx.state(trained, nnx.Param), rest)(X)
    nnx.update(other, nnx.state(trained, rj.SketchState))
    np.testing.assert_array_equal(other(X), trained(X))
    np.testing.assert_array_equal(call(other, X), call(trained, X))
    # It holds the whole of the model; and new seeds on purpose are told so.
    np.testing.assert_array_equal(nnx.merge(*nnx.split(trained, rj.SketchState))(X), trained(X))
    other.psi_seed[...] = other.psi_seed[...] + 1
    other.fingerprint[...] = jnp.zeros(32)
    assert bool(jnp.isfinite(other(X)).all())


def test_linen_parameters_alone_are_refused_too() -> None:
    layer = linen.SketchDense(12, rank=4, mode="seeded")
    trained, other = (layer.init(jax.random.key(k), X) for k in range(2))
    mixed = {"params": trained["params"], "sketch": other["sketch"]}
    with pytest.raises(ValueError, match="in Linen the collection 'sketch'"):
        layer.apply(mixed, X)
    assert bool(jnp.isnan(jax.jit(layer.apply)(mixed, X)).all())
    assert bool(jnp.isfinite(layer.apply(trained, X)).all())


@pytest.mark.parametrize(
    "optimiser",
    [
        optax.adamw(0.1, weight_decay=0.5),
        optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.05)),  # signs turn, all at once
        optax.chain(optax.add_noise(1e-3, 0.5, 0), optax.sgd(0.1, momentum=0.9)),
        optax.lion(1e-2, weight_decay=0.1),
        optax.adafactor(1e-2),
    ],
    ids=["decay", "l2", "noise", "lion", "adafactor"],
)
def test_no_optimiser_parts_a_core_from_its_seeds(optimiser: Any) -> None:
    model = LAYERS["linear"](nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    loss = lambda p: jnp.mean(nnx.merge(graphdef, p, rest)(X) ** 2)

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    _, losses = jax.lax.scan(step, (params, optimiser.init(params)), length=300)
    assert bool(jnp.isfinite(losses).all()) and float(losses[-1]) < float(losses[0])


def test_fingerprints_follow_seeds_that_are_mapped_or_traced() -> None:
    def output(key: Any) -> Any:
        return LAYERS["linear"](nnx.Rngs(key))(X)

    keys = jax.random.split(jax.random.key(0), 3)
    outputs = jax.jit(jax.vmap(output))(keys)
    assert bool(jnp.isfinite(outputs).all())
    marks = np.stack([
        fingerprint(*LAYERS["linear"](nnx.Rngs(seed)).sketches()) for seed in range(64)
    ])  # fmt: skip
    # Of other seeds they agree by chance: a sum of 32 signs, four deviations at most.
    overlap = np.abs(marks @ marks.T - 32 * np.eye(64)).max()
    assert set(np.unique(marks)) == {-1.0, 1.0} and overlap < 32 * 0.75
