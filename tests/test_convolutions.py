"""Convolutions whose axes are put in order compute the same, differentiated and mapped."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rosler_jax._convolutions import canonical_convolutions

RNG = np.random.default_rng(0)
LAYOUTS = {"images first": ("NCHW", "OIHW", "NCHW"), "flax": ("NHWC", "HWIO", "NHWC")}
WINDOWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"window_strides": (2, 1)},
    "dilated": {"rhs_dilation": (2, 1)},
    "transposed": {"lhs_dilation": (1, 2), "padding": ((1, 1), (1, 0))},
    "grouped": {"feature_group_count": 2},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", WINDOWS)
def test_gradients_are_the_same_in_fast_order(layout: str, window: str) -> None:
    options = {"window_strides": (1, 1), "padding": "SAME", **WINDOWS[window]}
    groups = options.get("feature_group_count", 1)
    axes = {"N": 2, "H": 9, "W": 8, "C": 4}
    x = jnp.asarray(RNG.normal(size=[axes[k] for k in LAYOUTS[layout][0]]), jnp.float32)
    axes = {"O": 6, "I": 4 // groups, "H": 3, "W": 2}
    w = jnp.asarray(RNG.normal(size=[axes[k] for k in LAYOUTS[layout][1]]), jnp.float32)

    def loss(w: Any, x: Any) -> Any:
        out = jax.lax.conv_general_dilated(x, w, dimension_numbers=LAYOUTS[layout], **options)
        return jnp.sin(jax.nn.relu(out)).sum(), {"out": out, "none": None}

    both = jax.value_and_grad(loss, (0, 1), has_aux=True)
    found, wanted = jax.jit(canonical_convolutions(both))(w, x), jax.jit(both)(w, x)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    text = str(jax.make_jaxpr(canonical_convolutions(both))(w, x))
    plain = "lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2)"
    assert text.count("conv_general_dilated[") >= text.count(plain) >= (1 if groups > 1 else 3)


def test_models_under_vmap_and_without_convolutions() -> None:
    class Net(nnx.Module):
        def __init__(self) -> None:
            self.conv = nnx.Conv(2, 4, (3, 3), rngs=nnx.Rngs(0))
            self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=nnx.Rngs(0))
            self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return self.head(nnx.gelu(self.norm(self.conv(x))).mean((1, 2)))

    graph, params, rest = nnx.split(Net(), nnx.Param, ...)
    x = jnp.asarray(RNG.normal(size=(5, 6, 6, 2)), jnp.float32)

    def loss(params: Any, x: Any) -> Any:
        return (nnx.merge(graph, params, rest)(x) ** 2).mean()

    many = jax.tree.map(lambda v: jnp.stack([v, 0.5 * v]), params)
    once = chex.assert_max_traces(canonical_convolutions(jax.grad(loss)), n=1)
    step = jax.jit(jax.vmap(once, (0, None)))
    wanted = jax.vmap(jax.grad(loss), (0, None))(many, x)
    for a, b in zip(jax.tree.leaves(step(many, x)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    step(jax.tree.map(lambda v: v + 1, many), x)
