"""Products with a sketched weight gradient: exact elsewhere, unbiased there, and what is kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from rosler_jax.nn import one_byte, sketch_policy, sketched_dot_general
from rosler_jax.nn.sketched_dot_general import summed


def normal(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def gradients(dot, x, w, dims=(((1,), (0,)), ((), ()))):
    return jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(dot(x, w, dims))), (0, 1)))(x, w)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_outputs_and_gradients_of_inputs_are_exact(rows, dtype):
    x, w = normal((rows, 12), 0, dtype), normal((12, 7), 1, dtype)
    dims = (((1,), (0,)), ((), ()))
    dot = sketched_dot_general(1 / 4)
    np.testing.assert_array_equal(dot(x, w, dims), jax.lax.dot_general(x, w, dims))
    found, wanted = gradients(dot, x, w), gradients(jax.lax.dot_general, x, w)
    np.testing.assert_allclose(
        found[0].astype(jnp.float32),
        wanted[0].astype(jnp.float32),
        rtol=1e-2 if dtype == jnp.bfloat16 else 1e-5,
        atol=1e-5,
    )
    assert found[1].dtype == dtype
    if rows == 1:  # nothing to be summed: exact but for the sign's square
        np.testing.assert_allclose(
            found[1].astype(jnp.float32), wanted[1].astype(jnp.float32), rtol=1e-2
        )


def test_the_gradient_of_the_weight_is_unbiased_with_the_variance_that_is_said():
    x, w = normal((24, 5)), normal((5, 4), 1)
    dims = (((1,), (0,)), ((), ()))
    _, wanted = gradients(jax.lax.dot_general, x, w)

    def one(seed):
        return gradients(sketched_dot_general(1 / 4, seed=seed), x, w)[1]

    runs = jax.jit(jax.vmap(one))(jnp.arange(4000))
    dy = np.cos(np.asarray(jax.lax.dot_general(x, w, dims)))
    pairs = [(i, j) for i in range(24) for j in range(i) if (i - j) % 6 == 0]
    x = np.asarray(x)
    variance = sum((np.outer(x[i], dy[j]) + np.outer(x[j], dy[i])) ** 2 for i, j in pairs)
    error = np.abs(runs.mean(0) - wanted) / np.sqrt(variance / 4000)
    assert error.max() < 5
    np.testing.assert_allclose(runs.var(0), variance, rtol=0.2)


def test_signs_change_with_the_data_and_nothing_else():
    w = normal((5, 4))
    grad = jax.jit(lambda x: gradients(sketched_dot_general(1 / 8), x, w)[1])
    x = normal((32, 5), 2)
    np.testing.assert_array_equal(grad(x), grad(x))
    key = jnp.asarray([1, 2], jnp.uint32)
    whole = summed(jnp.eye(16), key, 1 / 4)
    assert whole.shape == (4, 16)
    np.testing.assert_array_equal(np.abs(whole).sum(0), 1)
    np.testing.assert_array_equal(np.abs(whole).sum(1), 4)
    moved = x.at[0, 0].add(1e-6)
    ratio = grad(moved) / grad(x)
    assert np.abs(ratio - 1).max() > 0.01


def test_in_the_layers_of_flax():
    dot, x = sketched_dot_general(1 / 4), normal((8, 6, 12))
    rngs = nnx.Rngs(0)
    layers = (
        nnx.Linear(12, 7, dot_general=dot, rngs=rngs),
        nnx.LinearGeneral((12,), (2, 3), dot_general=dot, rngs=rngs),
        nnx.LinearGeneral((6, 12), (5,), axis=(-2, -1), dot_general=dot, rngs=rngs),
    )

    @nnx.jit
    def gradients_and_outputs(layer):
        return nnx.grad(lambda layer: (jnp.sum((y := layer(x)) ** 2), y), has_aux=True)(layer)

    for layer in layers:
        exact = nnx.clone(layer)
        exact.dot_general = jax.lax.dot_general
        (found, outputs), (wanted, expected) = map(gradients_and_outputs, (layer, exact))
        np.testing.assert_allclose(outputs, expected, rtol=1e-5)
        np.testing.assert_allclose(found["bias"], wanted["bias"], rtol=1e-4)
        assert found["kernel"].shape == wanted["kernel"].shape
        assert not np.allclose(found["kernel"], wanted["kernel"])
    dense = linen.Dense(7, dot_general=dot)
    variables = dense.init(jax.random.key(0), x)
    grads = jax.jit(jax.grad(lambda v: jnp.sum(dense.apply(v, x) ** 2)))(variables)
    assert grads["params"]["kernel"].shape == (12, 7)


def test_other_products_are_as_they_were():
    dot = sketched_dot_general(1 / 4)
    batched = (((2,), (1,)), ((0,), (0,)))
    x, w = normal((3, 8, 5)), normal((3, 5, 4))
    for dims, a, b in ((batched, x, w), ((((0,), (0,)), ((), ())), x, normal((3, 5)))):
        found, wanted = gradients(dot, a, b, dims), gradients(jax.lax.dot_general, a, b, dims)
        for f, g in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(f, g)


def kept(function, *args):
    """Bytes that the backward pass gets of the forward one, arguments left out."""
    _, pull = jax.vjp(function, *args)
    given = {id(leaf) for leaf in jax.tree.leaves(args)}
    return sum(
        a.nbytes for a in jax.tree.leaves(pull) if hasattr(a, "nbytes") and id(a) not in given
    )


def test_what_is_kept():
    x, w, v = normal((256, 32)), normal((32, 128)), normal((128, 32))
    dims = (((1,), (0,)), ((), ()))

    def block(dot, act):
        return lambda x: jnp.sum(dot(act(dot(x * 2, w, dims)), v, dims))

    plain = kept(block(jax.lax.dot_general, jax.nn.gelu), x)
    ours = block(sketched_dot_general(1 / 8), one_byte(jax.nn.gelu))
    less = kept(ours, x)
    weights = w.nbytes + v.nbytes
    # An eighth of what the second product takes; of the activation a byte a number.
    assert less <= 128 * 256 // 8 * 4 + 32 * 256 // 8 * 4 + 128 * 256 + weights + 64
    assert plain >= 128 * 256 * 4 + weights
    policy = jax.checkpoint(ours, policy=sketch_policy)
    np.testing.assert_allclose(jax.grad(policy)(x), jax.grad(ours)(x), rtol=1e-5)


@pytest.mark.parametrize("name", ["gelu", "silu", "relu", "tanh", "softplus", "elu"])
def test_derivatives_in_a_byte(name):
    activation = getattr(jax.nn, name)
    x = normal((512,)) * 3
    ours = one_byte(activation)
    np.testing.assert_array_equal(ours(x), activation(x))
    found, wanted = (jax.grad(lambda x, f=f: jnp.sum(f(x)))(x) for f in (ours, activation))
    tolerance = 1.4 / 508 + 1e-6
    np.testing.assert_allclose(found, wanted, atol=tolerance)
    if name == "relu":
        np.testing.assert_array_equal(found, wanted)
    under = jax.jit(jax.vmap(jax.grad(lambda x: ours(x))))(x)
    np.testing.assert_allclose(under, found, atol=1e-6)


def test_refuses():
    for keep in (0, 1.5):
        with pytest.raises(ValueError, match="outside"):
            sketched_dot_general(keep)
    with pytest.raises(ValueError, match="bounds"):
        one_byte(jnp.sin, (1.0, 1.0))
