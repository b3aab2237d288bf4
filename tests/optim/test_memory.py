"""No array of m x n elements in training: proven by walking the program of a whole step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jaxpr_walk import equations, sizes

from rosler_jax.nn import SketchConv, SketchLinear
from rosler_jax.optim.ares_bp import ares_bp

BATCH = 16
M, N = 512, 384
CHANNELS = 64  # a 3 x 3 window of them is 576 inputs


def _program(model, x, switch_step=2):
    """The jaxpr of loss, gradients and ares_bp update (both stages are branches in it)."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    tx = ares_bp(optax.adam(1e-2), switch_step=switch_step)

    def step(params, state, x):
        def loss(p):
            return (nnx.merge(graph, p, rest)(x) ** 2).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return value, optax.apply_updates(params, updates), state

    # jit and scan, so that the walk has to go down through both, as in a real training loop.
    def train(params, state, xs):
        def body(carry, x):
            value, *carry = jax.jit(step)(*carry, x)
            return tuple(carry), value

        return jax.lax.scan(body, (params, state), xs)

    return jax.make_jaxpr(train)(params, tx.init(params), x[None])


def _linear(mode):
    return SketchLinear(M, N, 8, mode=mode, rngs=nnx.Rngs(0)), jnp.ones((BATCH, M)), M * N


def _conv(mode):
    layer = SketchConv(CHANNELS, N, (3, 3), 8, mode=mode, rngs=nnx.Rngs(0))
    return layer, jnp.ones((BATCH, 4, 4, CHANNELS)), 9 * CHANNELS * N


@pytest.mark.parametrize("mode", ["chain", "ares", "seeded"])
@pytest.mark.parametrize("make", [_linear, _conv])
def test_no_intermediate_of_a_training_step_is_as_large_as_the_matrix(make, mode):
    model, x, full = make(mode)
    program = _program(model, x)
    found = sizes(program)
    assert found[0][0] < full, found[:3]
    names = [eqn.primitive.name for eqn in equations(program.jaxpr)]
    assert "scan" in names and "cond" in names  # both stages were walked
    if mode == "ares":
        assert "svd" in names  # and the switch


@pytest.mark.parametrize("make", ["linear", "conv"])
def test_the_walk_finds_the_full_matrix_of_a_dense_layer(make):
    rngs = nnx.Rngs(0)
    if make == "linear":
        model, x, full = nnx.Linear(M, N, rngs=rngs), jnp.ones((BATCH, M)), M * N
    else:
        model = nnx.Conv(CHANNELS, N, (3, 3), rngs=rngs)
        x, full = jnp.ones((BATCH, 4, 4, CHANNELS)), 9 * CHANNELS * N
    assert sizes(_program(model, x))[0][0] >= full


def test_the_walk_finds_a_full_matrix_hidden_in_a_branch_of_a_custom_rule():
    @jax.custom_vjp
    def product(x, c, r):
        return x @ c @ r

    def forward(x, c, r):
        return product(x, c, r), (x, c, r)

    def backward(saved, delta):
        x, c, r = saved
        g = jax.lax.cond(delta[0, 0] > 0, lambda: x.T @ delta, lambda: jnp.zeros((M, N)))
        return delta @ r.T @ c.T, g @ r.T, c.T @ g

    product.defvjp(forward, backward)
    x, c, r = jnp.ones((BATCH, M)), jnp.ones((M, 8)), jnp.ones((8, N))
    program = jax.make_jaxpr(jax.jit(jax.grad(lambda c: product(x, c, r).sum())))(c)
    assert sizes(program)[0][0] >= M * N
    assert sizes(jax.make_jaxpr(lambda: product(x, c, r))())[0][0] < M * N
