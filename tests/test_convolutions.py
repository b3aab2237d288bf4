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
    "precise": {"precision": "highest"},
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
    # The third, the kernel's gradient, is a product.
    assert text.count("conv_general_dilated[") >= text.count(plain) >= (1 if groups > 1 else 2)


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


SIDES = {"few outputs": (40, 2), "few inputs": (2, 40)}


@pytest.mark.parametrize("size", [(9, 8), (2, 2)])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("window", WINDOWS)
def test_products_in_the_place_of_convolutions_are_the_same(
    window: str, sides: str, size: tuple[int, int]
) -> None:
    options = {"window_strides": (1, 1), "padding": "SAME", **WINDOWS[window]}
    groups = options.get("feature_group_count", 1)
    m, n = SIDES[sides]
    x = jnp.asarray(RNG.normal(size=(3, *size, m)), jnp.float32)
    w = jnp.asarray(RNG.normal(size=(3, 3, m // groups, n)), jnp.float32)

    def loss(w: Any, x: Any) -> Any:
        out = jax.lax.conv_general_dilated(x, w, dimension_numbers=LAYOUTS["flax"], **options)
        return jnp.sin(out).sum()

    both = jax.value_and_grad(loss, (0, 1))
    found, wanted = jax.jit(canonical_convolutions(both))(w, x), jax.jit(both)(w, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    count = str(jax.make_jaxpr(canonical_convolutions(both))(w, x)).count("conv_general_dilated[")
    if window == "plain":
        assert count == (2 if size == (9, 8) else 0)
    many = jnp.stack([w, 2 * w])
    mapped = jax.jit(jax.vmap(canonical_convolutions(both), (0, None)))(many, x)
    np.testing.assert_allclose(mapped[1][0][0], wanted[1][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("window", [(2, 2), (3, 2), (1, 1)])
def test_max_pooling_gives_ties_to_the_first(window: tuple[int, int], padding: str) -> None:
    x = jnp.asarray(RNG.integers(0, 3, size=(4, 8, 7, 5)), jnp.float32)
    weights = jnp.asarray(RNG.normal(size=(5,)), jnp.float32)

    def grad(strides: tuple[int, int]) -> Any:
        pool = lambda x: nnx.max_pool(x, window, strides=strides, padding=padding)
        return jax.grad(lambda x: (pool(x) * weights).sum())

    np.testing.assert_array_equal(
        jax.jit(canonical_convolutions(grad(window)))(x), jax.jit(grad(window))(x)
    )
    stacked = jnp.stack([x, -x])
    found = jax.jit(jax.vmap(canonical_convolutions(grad(window))))(stacked)
    np.testing.assert_array_equal(found[1], grad(window)(-x))
    assert "select_and_scatter_add" not in str(
        jax.make_jaxpr(canonical_convolutions(grad(window)))(x)
    )
    overlapping = str(jax.make_jaxpr(canonical_convolutions(grad((1, 1))))(x))
    assert ("select_and_scatter_add" in overlapping) == (window != (1, 1))
