"""The thin product: the same values and gradients as ``x @ w``, whatever the leading axes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rosler_jax.nn._thin import THIN, linear_dot_general, thin_dot
from rosler_jax.nn.lifts import conv_lift


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_values_and_gradients_are_those_of_a_product(lead: tuple[int, ...]) -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, w = jnp.asarray(rng.normal(size=(*lead, 7))), jnp.asarray(rng.normal(size=(7, 3)))

        def gradients(product):  # of a function that is not linear, and once more of those
            first = jax.grad(lambda x, w: jnp.sum(product(x, w) ** 3), argnums=(0, 1))
            second = jax.grad(lambda w: sum(jnp.sum(g**2) for g in first(x, w)))
            return product(x, w), first(x, w), second(w)

        ours, plain = gradients(thin_dot), gradients(jnp.matmul)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("examples", [1, 2, 3, 6])  # XLA aborts on two or three if they are thin
def test_vmap_of_grad_and_narrow_dtypes(examples: int) -> None:
    x = jax.random.normal(jax.random.key(0), (4, examples, 8))
    w = jax.random.normal(jax.random.key(1), (4, 8, 2))

    def gradients(product):
        grad = jax.grad(lambda w, x: jnp.sum(jnp.sin(product(x, w))), argnums=(0, 1))
        return jax.jit(jax.vmap(grad))(w, x)

    for ours, plain in zip(gradients(thin_dot), gradients(jnp.matmul), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)
    narrow = thin_dot(x[0].astype(jnp.bfloat16), w[0].astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16


@pytest.mark.parametrize("features", [10, THIN, THIN + 1])
def test_a_linear_layer_is_the_same_with_it(features: int) -> None:
    plain = nnx.Linear(100, features, rngs=nnx.Rngs(0))
    thin = nnx.Linear(100, features, dot_general=linear_dot_general, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(2), (5, 100))
    np.testing.assert_allclose(thin(x), plain(x), rtol=1e-5, atol=1e-5)
    graph, state = nnx.split(thin)
    gradient = jax.grad(lambda state: nnx.merge(graph, state)(x).sum())
    assert ("optimization_barrier" in str(jax.make_jaxpr(gradient)(state))) == (features <= THIN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": 0}, r"strides \(0, 0\); pass 2 positive"),
        ({"kernel_dilation": (1, 0)}, r"kernel_dilation \(1, 0\); pass 2 positive"),
        ({"strides": (1,)}, r"strides \(1,\); pass 2 positive"),
        ({"padding": ((1, 2, 3), (0, 0))}, "pass 2 numbers or pairs"),
        ({"padding": ((1,), (0, 0))}, "pass 2 numbers or pairs"),
        ({"padding": (1,)}, "pass 2 numbers or pairs"),
    ],
)
def test_bad_windows_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conv_lift((3, 3), **options)  # type: ignore[arg-type]
