"""aRes-BP in two programs ends where it ends in one."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rosler_jax as rj
from rosler_jax.optim import after_switch

SWITCH = 4


class Net(nnx.Module):
    def __init__(self, mode: Any = "ares"):
        rngs = nnx.Rngs(0)
        self.conv = rj.SketchConv(
            4, 20, (3, 3), 3, strides=2, feature_group_count=2, mode=mode, rngs=rngs
        )
        self.linear = rj.SketchLinear(20, 16, 3, mode=mode, rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(nnx.relu(self.linear(nnx.relu(self.conv(x)).mean((1, 2)))))


X = jax.random.normal(jax.random.key(0), (16, 6, 6, 4))
Y = jax.random.normal(jax.random.key(1), (16, 4))
INNER = {
    "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(1e-2, 12), weight_decay=0.1),
    "clipped momentum": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, 0.9)),
    "every other step": lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
}


@partial(jax.jit, static_argnums=(0, 1))
def step(graphdef: Any, tx: Any, params: Any, rest: Any, state: Any) -> Any:
    loss = lambda params: jnp.mean((nnx.merge(graphdef, params, rest)(X) - Y) ** 2)
    grads = jax.grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.slow
@pytest.mark.parametrize("name", INNER)
def test_two_programs_end_where_one_does(name: str) -> None:
    inner = INNER[name]()
    tx = rj.ares_bp(inner, switch_step=SWITCH)
    graphdef, params, rest = nnx.split(Net(), nnx.Param, ...)
    state = tx.init(params)
    for i in range(3 * SWITCH):
        params, state = step(graphdef, tx, params, rest, state)
        if i == SWITCH + 2:  # some steps after the switch: there are moments
            chain = rj.finish(nnx.merge(graphdef, params, rest), fold=False)
            own, small, none = nnx.split(chain, nnx.Param, ...)
            carried = after_switch(state, inner, small)
            now = SWITCH + 3
    assert not jax.tree.leaves(none)
    born = nnx.state(Net("chain"), nnx.Param)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, born)
    assert jax.tree.structure(carried) == jax.tree.structure(inner.init(small))
    for _ in range(now, 3 * SWITCH):
        small, carried = step(own, inner, small, none, carried)
    one, two = nnx.merge(graphdef, params, rest), nnx.merge(own, small, none)
    np.testing.assert_allclose(two(X), one(X), atol=1e-5)
    np.testing.assert_allclose(two.linear.c[...], one.linear.c[...], atol=1e-5)
    folded = jax.eval_shape(lambda s, p: after_switch(s, inner, p), state, small)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, carried)


def test_what_it_refuses() -> None:
    inner = optax.adam(1e-2)
    tx = rj.ares_bp(inner, switch_step=SWITCH)
    params = nnx.state(Net(), nnx.Param)
    state = tx.init(params)
    with pytest.raises(ValueError, match="still to come: 0 of 4 updates"):
        after_switch(state, inner, params)
    past = state._replace(count=state.switch_step)
    with pytest.raises(ValueError, match="no 0/trace/conv/bias of shape"):
        after_switch(past, optax.sgd(0.1, 0.9), params)
