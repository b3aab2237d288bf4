from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_max_traces
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from rosler_jax.modelfile import to_numpy
from rosler_jax.quantization import (
    QuantizedTensor,
    channel_axis,
    dequantize,
    dequantize_params,
    fake_quantize,
    fake_quantize_params,
    leaf_bits,
    quantize,
    quantize_params,
)

INTEGER_BITS = (2, 3, 4, 8, 16)
SHAPES = [((7,), None), ((33, 8), -1), ((8, 33), 0), ((3, 3, 5, 6), -1), ((1, 1), 0)]


def normal(seed, shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def channels_first(x, axis):
    """(channels, rest) as float64."""
    x = np.asarray(x, np.float64)
    if axis is None:
        return x.reshape(1, -1)
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


@pytest.mark.parametrize("bits", INTEGER_BITS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_integers_and_scales(bits, shape, axis):
    x = normal(bits, shape)
    q = quantize(x, bits, axis)
    levels = 2 ** (bits - 1) - 1
    assert q.shape == shape and q.bits == bits
    assert q.values.dtype == (jnp.int16 if bits == 16 else jnp.int8)
    assert int(jnp.abs(q.values).max()) <= levels
    assert q.scale.shape == (() if axis is None else (shape[axis],))
    scale = np.atleast_1d(np.asarray(q.scale))
    assert not (scale.view(np.uint32) & 0xFFFF).any()  # bfloat16 numbers
    values, reference = channels_first(q.values, axis), channels_first(x, axis)
    exact = np.clip(reference / scale[:, None].astype(np.float64), -levels, levels)
    # The reciprocal and the product round once each: 2 * 2**-24 relative, at most 32767 in size.
    assert np.abs(values - exact).max() <= 0.5 + 2 * 2.0**-24 * levels
    if bits > 4:  # nothing is clipped, and rounding the scale up costs at most a bfloat16 step
        smallest = np.abs(reference).max(1) / levels
        assert (scale >= smallest * (1 - 2.0**-19)).all()
        assert (scale <= smallest * (1 + 2.0**-7)).all()


@pytest.mark.parametrize("bits", (2, 3, 4))
def test_clipping_scale_is_near_the_best(bits):
    x = normal(0, (400, 6))
    error = channels_first(x - dequantize(quantize(x, bits)), 1)
    found = (error**2).mean(1)
    levels = 2 ** (bits - 1) - 1
    rows = channels_first(x, 1)
    best = np.full(6, np.inf)
    for factor in np.linspace(0.1, 1.0, 400):
        scale = factor * np.abs(rows).max(1, keepdims=True) / levels
        quantized = np.clip(np.round(rows / scale), -levels, levels) * scale
        best = np.minimum(best, ((rows - quantized) ** 2).mean(1))
    # The grid's ratio 0.87 leaves the scale within 7 % of the best one (half of it), where a flat
    # minimum costs a few per cent; on these, the largest magnitude as scale costs 24 % and more.
    assert (found <= 1.08 * best).all()
    largest = np.abs(rows).max(1, keepdims=True) / levels
    naive = np.clip(np.round(rows / largest), -levels, levels) * largest
    assert (found < 0.85 * ((rows - naive) ** 2).mean(1)).all()


def test_error_falls_with_bits():
    x = normal(1, (128, 16))
    errors = [float(jnp.mean((x - dequantize(quantize(x, b))) ** 2)) for b in INTEGER_BITS]
    assert all(a > 3 * b for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("bits", (*INTEGER_BITS, 32))
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_fake_quantize_is_what_is_deployed(bits, shape, axis):
    x = normal(bits + 1, shape)
    deployed = np.asarray(dequantize(quantize(x, bits, axis)))
    eager = fake_quantize(x, bits, axis)
    jitted = jax.jit(lambda x: fake_quantize(x, bits, axis))(x)
    traced = jax.jit(lambda x, b: fake_quantize(x, b, axis))(x, jnp.int32(bits))
    for value in (eager, jitted, traced, to_numpy(quantize(x, bits, axis))):
        np.testing.assert_array_equal(np.asarray(value), deployed)


def test_the_choice_of_scale_survives_a_larger_program():
    # 2,000 channels, inside a fused forward and backward pass: near ties in the clipping search
    # must fall the same way, or training and deployment would use different weights.
    w = normal(2, (50, 2000))
    x = normal(3, (4, 50))

    def loss(w):
        used = fake_quantize(jnp.tanh(w) * 2, 3)
        return jnp.sum(jax.nn.relu(x @ used) ** 2), used

    (_, used), _ = jax.jit(jax.value_and_grad(loss, has_aux=True))(w)
    deployed = dequantize(quantize(jax.jit(lambda w: jnp.tanh(w) * 2)(w), 3))
    np.testing.assert_array_equal(np.asarray(used), np.asarray(deployed))


def test_large_tensors_search_the_same_scales():
    # Above 2**16 elements the candidates are tried one after the other.
    x = normal(4, (1100, 64))
    whole = quantize(x, 4)
    for j in (0, 63):
        one = quantize(x[:, j : j + 1], 4)
        np.testing.assert_array_equal(
            np.asarray(one.values), np.asarray(whole.values[:, j : j + 1])
        )
        assert one.scale[0] == whole.scale[j]


@pytest.mark.parametrize("bits", (2, 8, 32))
def test_straight_through_gradient(bits):
    x, weights = normal(5, (6, 4)), normal(6, (6, 4))

    def loss(x, b):
        return jnp.sum(weights * fake_quantize(x, b) ** 2)

    expected = np.asarray(2 * weights * fake_quantize(x, bits))
    for gradient in (
        jax.grad(loss)(x, bits),
        jax.jit(jax.grad(loss), static_argnums=1)(x, bits),
        jax.jit(jax.grad(loss))(x, jnp.int32(bits)),
    ):
        np.testing.assert_allclose(np.asarray(gradient), expected, rtol=1e-6)
    _, tangent = jax.jvp(lambda x: fake_quantize(x, bits), (x,), (weights,))
    np.testing.assert_array_equal(np.asarray(tangent), np.asarray(weights))


def test_vmap_over_tensors_and_over_bits():
    stack = normal(7, (3, 9, 4))
    batched = jax.vmap(lambda x: fake_quantize(x, 4, 0))(stack)
    one_by_one = jnp.stack([fake_quantize(x, 4, 0) for x in stack])
    np.testing.assert_array_equal(np.asarray(batched), np.asarray(one_by_one))

    stacked = jax.vmap(lambda x: quantize(x, 4, 0))(stack)
    restored = jax.vmap(dequantize)(stacked)
    np.testing.assert_array_equal(np.asarray(restored), np.asarray(one_by_one))

    widths = jnp.array((*INTEGER_BITS, 32))
    swept = jax.vmap(lambda b: fake_quantize(stack[0], b))(widths)
    for b, value in zip((*INTEGER_BITS, 32), swept, strict=True):
        np.testing.assert_array_equal(np.asarray(value), np.asarray(fake_quantize(stack[0], b)))

    gradient = jax.vmap(jax.grad(lambda x: jnp.sum(fake_quantize(x, 2) ** 2)))(stack)
    np.testing.assert_allclose(
        np.asarray(gradient), 2 * np.asarray(jax.vmap(lambda x: fake_quantize(x, 2))(stack))
    )


def test_one_compilation_serves_all_bits():
    @jax.jit
    @assert_max_traces(n=1)
    def quantized(x, bits):
        return fake_quantize(x, bits)

    for seed, bits in enumerate((2, 4, 16, 32)):
        quantized(normal(seed, (5, 3)), jnp.int32(bits))


@pytest.mark.parametrize("dtype", (jnp.float16, jnp.bfloat16, jnp.float32))
def test_dtypes(dtype):
    x = normal(8, (12, 5)).astype(dtype)
    with jax.numpy_dtype_promotion("strict"):
        value = fake_quantize(x, 4)
    assert value.dtype == dtype
    deployed = dequantize(quantize(x, 4), dtype)
    np.testing.assert_array_equal(
        np.asarray(value.astype(jnp.float32)), np.asarray(deployed.astype(jnp.float32))
    )


@settings(max_examples=40, deadline=None)
@given(
    exponent=st.integers(-140, 127),
    bits=st.sampled_from(INTEGER_BITS),
    seed=st.integers(0, 10_000),
)
def test_any_magnitude(exponent, bits, seed):
    # One shape, so that there are few compilations; the magnitudes are what is varied.
    raw = np.random.default_rng(seed).uniform(-1, 1, (4, 3)) * 2.0**exponent
    x = jnp.asarray(raw, jnp.float32)
    q = quantize(x, bits)
    value = np.asarray(dequantize(q), np.float64)
    assert np.isfinite(value).all() and (np.asarray(q.scale) > 0).all()
    error = np.abs(value - np.asarray(x, np.float64)).max()
    if -98 <= exponent <= 99:
        # Within half a step of the largest scale that the search considers (rounded up).
        largest = np.abs(raw).max()
        assert error <= largest * (0.51 / (2 ** (bits - 1) - 1) if bits > 4 else 1.0)
    elif exponent < -98:
        assert error <= 2.0**-100
    np.testing.assert_array_equal(np.asarray(fake_quantize(x, bits), np.float64), value)


@pytest.mark.parametrize("bits", INTEGER_BITS)
def test_zero_channels_and_empty_arrays(bits):
    x = normal(9, (6, 3)).at[:, 1].set(0.0)
    q = quantize(x, bits)
    assert not np.asarray(q.values[:, 1]).any() and np.isfinite(np.asarray(q.scale)).all()
    assert quantize(jnp.zeros((0, 3)), bits).shape == (0, 3)
    assert fake_quantize(jnp.zeros((4, 0)), bits).shape == (4, 0)


@pytest.mark.parametrize("bits", INTEGER_BITS)
@pytest.mark.parametrize("bad", (np.nan, np.inf, -np.inf))
def test_non_finite_weights_stay_visible(bits, bad):
    x = normal(10, (6, 3)).at[2, 1].set(bad)
    for value in (fake_quantize(x, bits), dequantize(quantize(x, bits))):
        finite = np.isfinite(np.asarray(value))
        assert not finite[:, 1].any() and finite[:, [0, 2]].all()


def test_wrong_arguments():
    x = jnp.ones((3, 2))
    for bits in (5, 0, 1, 64, 4.0, "4"):
        with pytest.raises(ValueError, match="pass one of 2, 3, 4, 8, 16, 32"):
            quantize(x, bits)
    with pytest.raises(ValueError, match="bits 7 is not supported"):
        fake_quantize(x, 7)
    with pytest.raises(ValueError, match="axis 2 is outside an array of 2 dimensions"):
        quantize(x, 4, axis=2)


def test_pytree():
    q = quantize(normal(11, (4, 2)), 4)
    assert len(jax.tree.leaves(q)) == 2
    through = jax.jit(lambda q: q)(q)
    assert isinstance(through, QuantizedTensor) and (through.bits, through.axis) == (4, 1)


def test_the_rank_axis_carries_the_scales():
    assert channel_axis(("fc", "c"), (784, 8)) == 1
    assert channel_axis(("fc", "u"), (8, 16)) == 1
    assert channel_axis("fc/r", (8, 1024)) == 0
    assert channel_axis("r", (1, 1, 8, 64)) == 2
    assert channel_axis("c", (3, 3, 16, 8)) == 3
    assert channel_axis(("conv", "kernel"), (3, 3, 16, 32)) == 3
    assert channel_axis("bias", (64,)) is None
    assert channel_axis("scale", (64,)) is None


def test_leaf_bits():
    assert leaf_bits(("a", "kernel"), (2, 2), 3) == 3
    assert leaf_bits(("a", "bias"), (2,), 3) == 16
    assert leaf_bits(("a", "bias"), (2,), 32) == 32
    assert leaf_bits(("a", "var"), (2,), 3) == 32
    assert leaf_bits(("a", "temperature"), (), 3) == 32
    assert int(leaf_bits(("a", "bias"), (2,), jnp.int32(2))) == 16
    assert int(leaf_bits(("a", "bias"), (2,), jnp.int32(32))) == 32


def example_params(parallel=0.0):
    return {
        "layers": {
            0: {
                "c": normal(0, (20, 4)),
                "u": normal(1, (4, 8)),
                "r": normal(2, (8, 12)),
                "bias": normal(3, (12,)),
                "parallel": jnp.float32(parallel),
            },
            1: {"kernel": normal(4, (12, 5)), "bias": normal(5, (5,))},
        },
        "temperature": jnp.float32(1.5),
        "seed": jnp.array([1, 2], jnp.uint32),
    }


def test_params_training_equals_deployment():
    params = example_params()
    tensors = quantize_params(params, 4)
    assert set(tensors) == {
        *(f"layers/0/{leaf}" for leaf in ("c", "u", "r", "bias")),
        *("layers/1/kernel", "layers/1/bias", "temperature", "seed"),
    }
    assert tensors["layers/0/r"].axis == 0 and tensors["layers/0/r"].scale.shape == (8,)
    assert tensors["layers/0/bias"].bits == 16 and tensors["layers/0/bias"].axis is None
    restored = dequantize_params(tensors, like=params)
    for faked in (
        fake_quantize_params(params, 4),
        jax.jit(lambda p: fake_quantize_params(p, 4))(params),
        jax.jit(fake_quantize_params)(params, jnp.int32(4)),
    ):
        assert jax.tree.structure(faked) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, faked, restored)
    assert not np.array_equal(restored["layers"][0]["c"], params["layers"][0]["c"])
    assert restored["seed"].dtype == jnp.uint32


def test_bits_by_path():
    def rule(path):
        return 2 if path[-1] == "kernel" else 32 if path[-1] == "bias" else 8

    bits = {
        name: t.bits
        for name, t in quantize_params(example_params(), rule).items()
        if name[0] == "l"
    }
    assert bits["layers/1/kernel"] == 2 and bits["layers/0/c"] == 8
    assert bits["layers/0/bias"] == 32


def test_thirty_two_bits_change_nothing():
    params = example_params()
    restored = dequantize_params(quantize_params(params, 32), like=params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    jax.tree.map(np.testing.assert_array_equal, fake_quantize_params(params, 32), params)


def test_the_parallel_stage_is_left_alone():
    params = example_params(parallel=1.0)
    faked = jax.jit(lambda p: fake_quantize_params(p, 2))(params)
    for leaf in ("c", "u", "r", "bias"):
        np.testing.assert_array_equal(faked["layers"][0][leaf], params["layers"][0][leaf])
    assert faked["layers"][0]["parallel"] == 1.0
    expected = fake_quantize(params["layers"][1]["kernel"], 2)
    np.testing.assert_array_equal(faked["layers"][1]["kernel"], expected)
    with pytest.raises(ValueError, match=r"layers/0/parallel is positive.*past the stage switch"):
        quantize_params(params, 2)


def test_nnx_state():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(6, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)])

    net = Net(nnx.Rngs(0))
    graph, state = nnx.split(net)
    tensors = quantize_params(state, 4)
    assert set(tensors) == {f"layers/{i}/{leaf}" for i in (0, 1) for leaf in ("kernel", "bias")}
    restored = nnx.merge(graph, dequantize_params(tensors, like=state))
    trained = nnx.merge(graph, fake_quantize_params(state, 4))
    x = normal(0, (5, 6))
    for a, b in zip(restored.layers, trained.layers, strict=True):
        np.testing.assert_array_equal(
            np.asarray(a(x[:, : a.in_features])), b(x[:, : b.in_features])
        )
    assert quantize_params(nnx.to_pure_dict(state), 4).keys() == tensors.keys()


def test_tensors_that_do_not_fit():
    params = {"fc": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones((2,))}}
    tensors = quantize_params(params, 8)
    with pytest.raises(ValueError, match=r"missing \['fc/bias'\]"):
        dequantize_params({"fc/kernel": tensors["fc/kernel"]}, like=params)
    with pytest.raises(ValueError, match=r"unknown \['other'\]"):
        dequantize_params({**tensors, "other": np.ones(2)}, like=params)
    with pytest.raises(
        ValueError, match=r"'fc/kernel' has shape \(3, 2\), the model expects \(2, 2\)"
    ):
        dequantize_params(tensors, {"fc": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2,))}})
    with pytest.raises(ValueError, match="two leaves are named 'a/b'"):
        quantize_params({"a": {"b": jnp.ones((2, 2))}, "a/b": jnp.ones((2, 2))}, 8)
