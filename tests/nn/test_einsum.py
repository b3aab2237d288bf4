"""SketchEinsum and SketchLinearGeneral: against Flax's layers with the kernel written out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from written_out import matrices, matrix, params_of

from rosler_jax import SketchConv, SketchEinsum, SketchLinear, SketchLinearGeneral, ares_bp
from rosler_jax.nn.einsum import view_einsum

MODES = ("chain", "ares", "seeded")


def weight(layer: Any) -> np.ndarray:
    """The matrices ``(g, m, n)`` of a layer."""
    return matrices(params_of(layer), layer.sketches())


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


# Compiling dominates, so that all weights here are (1, 6, 8) or (2, 6, 8).
# Last: kernel axes in the order (batch, contracted, features) as they come out of the matrices, and
# the permutation that brings those to the kernel's own order.
EINSUMS = [
    ("nta,hab->nthb", (2, 6, 4), (2, 7, 6), (2, 4), ("ahb", (1, 0, 2))),
    ("...ha,hab->...hb", (2, 6, 8), (3, 7, 2, 6), (2, 8), ("hab", (0, 1, 2))),
    ("nab,cbga->ngc", (4, 3, 2, 2), (6, 2, 3), None, ("bacg", (2, 0, 3, 1))),
    ("aib...,bjik->k...aj", (3, 4, 2, 2), (5, 2, 3, 4), (2, 4), ("bijk", (0, 2, 1, 3))),
]


@pytest.mark.parametrize(
    ("case", "mode"),
    [(EINSUMS[i], mode) for i, mode in enumerate(MODES + ("chain",))]
    + [(EINSUMS[1], "chain"), (EINSUMS[1], "seeded")],
)
def test_einsum_is_flaxs_with_the_kernel_written_out(case: Any, mode: Any) -> None:
    equation, kernel_shape, x_shape, bias_shape, (letters, order) = case
    make = dict(bias_shape=bias_shape, bias_init=nnx.initializers.normal(1.0))
    layer = SketchEinsum(equation, kernel_shape, 2, mode=mode, rngs=nnx.Rngs(1), **make)
    plain = nnx.Einsum(equation, kernel_shape, rngs=nnx.Rngs(1), **make)
    kernel = equation.split("->")[0].split(",")[1]
    sizes = dict(zip(kernel, kernel_shape, strict=True))
    w = weight(layer).reshape([sizes[k] for k in letters]).transpose(order)
    assert w.shape == kernel_shape
    plain.kernel[...] = jnp.asarray(w, jnp.float32)
    if bias_shape is not None:
        plain.bias[...] = layer.bias[...]
    x = normal(2, *x_shape)
    expected = plain(x)
    got = layer(x)
    assert got.shape == expected.shape
    # Two chains of float32 products; the core of an ares layer is solved with some loss.
    scale = float(jnp.max(jnp.abs(expected)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4 * scale)


GENERAL = [
    (dict(in_features=6, out_features=(2, 4)), (3, 7, 6)),
    (dict(in_features=(2, 3), out_features=8, axis=(1, -1)), (3, 2, 4, 3)),
    (dict(in_features=(2, 3), out_features=(2, 4), axis=(-2, -1), batch_axis={0: 2}), (2, 7, 2, 3)),
    (dict(in_features=6, out_features=8, axis=2, batch_axis={0: 2, 1: 1}), (2, 1, 6, 4)),
]


@pytest.mark.parametrize(
    ("options", "x_shape", "mode"),
    [
        (*case, mode)
        for case, mode in zip(GENERAL, ("chain", "seeded", "ares", "chain"), strict=True)
    ],
)
def test_linear_general_is_flaxs_with_the_kernel_written_out(
    options: Any, x_shape: Any, mode: Any
) -> None:
    bias = dict(bias_init=nnx.initializers.normal(1.0))
    layer = SketchLinearGeneral(**options, rank=2, mode=mode, **bias, rngs=nnx.Rngs(1))
    plain = nnx.LinearGeneral(**options, rngs=nnx.Rngs(1))
    plain.kernel[...] = jnp.asarray(weight(layer), jnp.float32).reshape(plain.kernel.shape)
    assert layer.bias.shape == plain.bias.shape
    plain.bias[...] = layer.bias[...]
    x = normal(2, *x_shape)
    expected = plain(x)
    got = layer(x)
    assert got.shape == expected.shape
    scale = float(jnp.max(jnp.abs(expected)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4 * scale)


def test_parallel_cotangents_are_sketches_of_the_gradient() -> None:
    layer = SketchEinsum("nha,hab->nhb", (2, 6, 8), 2, mode="ares", rngs=nnx.Rngs(0))
    x, delta = normal(1, 5, 2, 6), normal(2, 5, 2, 8)
    grads = nnx.grad(lambda layer: jnp.vdot(layer(x), delta))(layer)
    psi, omega = map(matrix, layer.sketches())
    g = np.einsum("nha,nhb->hab", np.asarray(x, np.float64), np.asarray(delta, np.float64))
    np.testing.assert_allclose(grads["c"][...], g @ omega, atol=1e-4)
    np.testing.assert_allclose(grads["r"][...], psi.T @ g, atol=1e-4)
    a = np.swapaxes(psi.T @ g @ omega, 1, 2)
    np.testing.assert_allclose(grads["u"][...], a, atol=1e-4)


def test_ares_bp_trains_through_the_switch() -> None:
    layer = SketchEinsum("nha,hab->nhb", (2, 6, 8), 2, mode="ares", rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    x = normal(1, 32, 2, 6)
    w = normal(2, 2, 6, 2) @ normal(3, 2, 2, 8) / 4
    y = jnp.einsum("nha,hab->nhb", x, w)
    tx = ares_bp(optax.sgd(0.1), switch_step=3)
    state = tx.init(params)

    def loss(params: Any) -> jax.Array:
        return jnp.mean((nnx.merge(graph, params, rest)(x) - y) ** 2)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    losses, flags = [], []
    for _ in range(200):
        params, state, value = step(params, state)
        losses.append(float(value))
        flags.append(float(params["parallel"][...]))
    assert flags[0] == 1.0
    assert flags[-1] == 0.0
    assert losses[-1] < 0.5 * losses[0]
    assert all(np.isfinite(losses))


def test_attention_with_sketched_projections() -> None:
    # nnx.MultiHeadAttention passes out_sharding to its projections.
    attention = nnx.MultiHeadAttention(2, 6, 8, decode=False, rngs=nnx.Rngs(0))
    for name in ("query", "key", "value"):
        setattr(attention, name, SketchLinearGeneral(6, (2, 4), rank=2, rngs=nnx.Rngs(1)))
    assert attention(normal(0, 3, 5, 6)).shape == (3, 5, 6)


def test_outputs_are_laid_out_as_asked() -> None:
    linear = SketchLinear(6, 8, rank=2, rngs=nnx.Rngs(0))
    conv = SketchConv(2, 8, (3,), rank=2, rngs=nnx.Rngs(0))
    general = SketchLinearGeneral(6, (2, 4), rank=2, rngs=nnx.Rngs(0))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        for layer, shape, axes in ((linear, (4, 6), 2), (conv, (2, 5, 2), 3), (general, (4, 6), 3)):
            spec = jax.sharding.PartitionSpec("data", *(None,) * (axes - 1))
            y = layer(jnp.ones(shape), out_sharding=spec)
            assert jax.typeof(y).sharding.spec == spec


def test_dtype() -> None:
    layer = SketchLinearGeneral(6, (2, 4), rank=2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert layer(jnp.ones((3, 6))).dtype == jnp.bfloat16
    assert layer.c.dtype == jnp.float32


@pytest.mark.parametrize(
    ("equation", "shape", "message"),
    [
        ("ab,bc", (2, 3), "not of the form"),
        ("ab,bc,cd->ad", (2, 3), "not of the form"),
        ("ab,...c->ac", (2, 3), "belongs in both"),
        ("...b,bc->c", (2, 3), "belongs in both"),
        ("ab,bb->a", (2, 2), "name every axis once"),
        ("ab,b1->a1", (2, 2), "name every axis once"),
        ("ab,bc->ac", (2, 3, 4), "has 3 axes"),
        ("ab,bc->a", (2, 3), "must be in two places"),
        ("ab,bc->acd", (2, 3), "must be in two places"),
    ],
)
def test_refuses_an_equation(equation: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        view_einsum(equation, shape)


def test_refuses_what_does_not_fit() -> None:
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match="bias_shape"):
        SketchEinsum("ab,bc->ac", (6, 8), 2, bias_shape=(4,), rngs=rngs)
    with pytest.raises(ValueError, match="rank 5 is outside"):
        SketchEinsum("ab,bc->ac", (4, 5), 5, rngs=rngs)
    with pytest.raises(ValueError, match="unknown mode"):
        SketchEinsum("ab,bc->ac", (6, 8), 2, mode="full", rngs=rngs)  # type: ignore[arg-type]
    layer = SketchEinsum("ab,bc->ac", (6, 8), 2, rngs=rngs)
    with pytest.raises(ValueError, match="do not have the axes"):
        layer(jnp.ones((2, 3, 6)))
    with pytest.raises(ValueError, match="the kernel has 6"):
        layer(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="differ in length"):
        SketchLinearGeneral((4, 5), 6, 2, rngs=rngs)
    with pytest.raises(ValueError, match="must be the leading axes"):
        SketchLinearGeneral(4, 6, 2, batch_axis={1: 3}, rngs=rngs)
    with pytest.raises(ValueError, match="does not fit inputs of 1 axes"):
        SketchLinearGeneral((2, 3), 8, 2, axis=(-2, -1), rngs=rngs)(jnp.ones(3))
