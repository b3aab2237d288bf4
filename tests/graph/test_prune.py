"""Idle units are left out, and nothing else changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rosler_jax import Graph, trace
from rosler_jax.graph import run_batch
from rosler_jax.graph.prune import pruned
from rosler_jax.graph.quantize import quantize_graph

RNG = np.random.default_rng(0)


class Net(nnx.Module):
    """Two convolutions, a pool, two factors and a head."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.a = nnx.Conv(2, 6, (3, 3), rngs=rngs)
        self.b = nnx.Conv(6, 5, (3, 3), rngs=rngs)
        self.c = nnx.Linear(2 * 2 * 5, 4, use_bias=False, rngs=rngs)
        self.d = nnx.Linear(4, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.max_pool(nnx.relu(self.a(x)), (2, 2), (2, 2))
        x = nnx.avg_pool(nnx.relu(self.b(x)), (2, 2), (2, 2))
        x = self.d(self.c(x.reshape(len(x), -1)))
        return self.head(jnp.tanh(x))


def net_with_idle_units() -> Net:
    net = Net()

    def zero(layer: Any, index: Any, name: str = "kernel") -> None:
        value = getattr(layer, name)
        value[...] = value[...].at[index].set(0.0)

    for layer in (net.a, net.b, net.d, net.head):
        layer.bias[...] = jnp.asarray(RNG.normal(size=layer.bias.shape), jnp.float32)
    zero(net.a, (..., jnp.array([1, 3])))  # nothing leads to them
    net.a.bias[...] = net.a.bias[...].at[jnp.array([1, 3])].set(jnp.array([-0.5, 0.5]))
    zero(net.b, (slice(None), slice(None), 4))  # nothing reads it
    rows = np.arange(20).reshape(4, 5)[:, 2]
    zero(net.c, rows)  # nor this one, at any of four places
    zero(net.c, (..., 0))  # a rank that is nothing
    zero(net.d, (..., 5))
    zero(net.d, 5, "bias")
    zero(net.d, (..., 6))  # but its bias is something
    return net


def graph_of() -> Graph:
    return trace(net_with_idle_units(), np.ones((1, 8, 8, 2), np.float32))


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_the_model_computes_the_same_with_fewer_units(bits: int) -> None:
    graph = quantize_graph(graph_of(), bits)
    small = pruned(graph)
    shapes = [weight.shape for weight in small.weights() if len(weight.shape) > 1]
    # 1 of 6: relu of a negative bias is nothing, of a positive one it is.
    assert shapes == [(3, 3, 2, 4), (3, 3, 4, 4), (16, 3), (3, 7), (7, 3)]
    x = RNG.normal(size=(5, 8, 8, 2)).astype(np.float32)
    np.testing.assert_allclose(run_batch(small, x), run_batch(graph, x), rtol=1e-5, atol=1e-6)
    for weight in small.weights():
        assert weight.bits == (bits if len(weight.shape) > 1 or bits == 32 else 16)


def test_what_is_alive_stays() -> None:
    graph = trace(Net(), np.ones((1, 8, 8, 2), np.float32))
    assert pruned(graph) is graph

    def residual(p: Any, x: Any) -> Any:
        hidden = jax.nn.relu(x @ p["w"])
        return hidden @ p["v"] + hidden

    w = np.zeros((4, 4), np.float32)
    params = {"w": w, "v": w + 0}
    graph = trace((residual, params), np.ones((1, 4), np.float32))
    assert pruned(graph) is graph  # read twice
    both = trace((lambda p, x: x @ p["w"] @ p["w"], params), np.ones((1, 4), np.float32))
    assert pruned(both) is both  # one weight in two places
    graph = trace((lambda p, x: x @ p["w"] @ p["v"], params), np.ones((1, 4), np.float32))
    assert [weight.shape for weight in pruned(graph).weights()] == [(4, 1), (1, 4)]
