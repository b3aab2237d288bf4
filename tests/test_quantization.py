from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_max_traces
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from rosler_jax.graph import Graph, Value, Weight, Window
from rosler_jax.graph.kinds import Conv, Dense, Gather, Map, MatMul, Scan
from rosler_jax.graph.quantize import quantize_graph
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


# --- graphs -------------------------------------------------------------------------------------


def weight(name, *shape, layout=()):
    values = np.random.default_rng([1, *shape]).normal(size=shape).astype(np.float32)
    return Weight(name, values, layout)


def dense(x, w, rows, m, n, out, **more):
    return Dense(
        name=f"{w.name}{out}", inputs=(x,), outputs=(out,), in_shapes=((rows, m),),
        out_shapes=((rows, n),), weight=w, **more,
    )  # fmt: skip


def relu(x, n, out):
    return Map(
        name=f"relu{out}", inputs=(x,), outputs=(out,), in_shapes=((n,),), out_shapes=((n,),),
        function="relu",
    )  # fmt: skip


def graph_of(ops, m, n, constants=None):
    last = ops[-1].outputs[0]
    return Graph((Value(0, "0", (m,)),), tuple(ops), (Value(last, "", (n,)),), constants or {})


def planned(graph, bits=4):
    """Bits and axes of every tensor, and one scale for each output where there is one."""
    made = quantize_graph(graph, bits)
    for before, after in zip(graph.weights(), made.weights(), strict=True):
        assert (before.name, before.layout) == (after.name, after.layout)
        expected = quantize(before.stored, after.bits, after.stored.axis)
        np.testing.assert_array_equal(after.stored.values, expected.values)
        np.testing.assert_array_equal(after.stored.scale, expected.scale)
    return {w.name: (w.bits, w.stored.axis) for w in made.weights()}


def test_what_a_tensor_is_used_for_says_its_bits_and_axes():
    bias = weight("bias", 2, 3, layout=(("reshape", (6,)),))
    heads = weight("heads", 5, 2, 3, layout=(("reshape", (5, 6)),))
    out = weight("out", 2, 3, 7, layout=(("reshape", (6, 7)),))
    turned = weight("turned", 9, 7, layout=(("transpose", (1, 0)),))
    ops = [
        dense(0, heads, 1, 5, 6, 1, bias=bias), relu(1, 6, 2), dense(2, out, 1, 6, 7, 3),
        relu(3, 7, 4), dense(4, turned, 1, 7, 9, 5),
    ]  # fmt: skip
    assert planned(graph_of(ops, 5, 9)) == {
        "heads": (4, (1, 2)),  # one for each output of each head
        "bias": (16, None),
        "out": (4, 2),  # heads are summed over
        "turned": (4, 0),
    }


def test_layers_of_a_stack_have_scales_of_their_own():
    stack, biases = weight("stack", 3, 4, 4), weight("biases", 3, 4)
    ops, x = [], 0
    for k in range(3):
        w = Weight("stack", stack.stored, (("slice", 0, k, k + 1), ("reshape", (4, 4))))
        b = Weight("biases", biases.stored, (("slice", 0, k, k + 1), ("reshape", (4,))))
        ops += [dense(x, w, 1, 4, 4, 2 * k + 1, bias=b), relu(2 * k + 1, 4, 2 * k + 2)]
        x = 2 * k + 2
    assert planned(graph_of(ops, 4, 4)) == {"stack": (4, (0, 2)), "biases": (16, 0)}


def test_the_rank_carries_the_scales_of_the_last_factor():
    c, u, r = weight("c", 20, 3), weight("u", 3, 3), weight("r", 3, 30)
    ops = [dense(0, c, 1, 20, 3, 1), dense(1, u, 1, 3, 3, 2), dense(2, r, 1, 3, 30, 3)]
    found = {"c": (4, 1), "u": (4, 1), "r": (4, 0)}
    assert planned(graph_of(ops, 20, 30)) == found
    # With a function between, or another reader, the scales could not be moved to the product.
    ops[2:] = [relu(2, 3, 4), dense(4, r, 1, 3, 30, 3)]
    assert planned(graph_of(ops, 20, 30)) == found | {"r": (4, 1)}
    ops[2:] = [dense(2, r, 1, 3, 30, 3)]
    both = graph_of(ops, 20, 30)
    both = dataclasses.replace(both, outputs=(*both.outputs, Value(2, "2", (3,))), structure=[0, 1])
    assert planned(both) == found | {"r": (4, 1)}


def test_groups_share_the_scales_of_the_rank():
    window = Window(
        size=(1,), strides=(1,), padding=((0, 0),), dilation=(1,), input_dilation=(1,), groups=2
    )
    cores = weight("u", 2, 3, 3, layout=(("transpose", (1, 0, 2)), ("reshape", (1, 3, 6))))
    op = Conv(
        name="u", inputs=(0,), outputs=(1,), in_shapes=((5, 6),), out_shapes=((5, 6),),
        weight=cores, window=window,
    )  # fmt: skip
    graph = Graph((Value(0, "0", (5, 6)),), (op,), (Value(1, "", (5, 6)),))
    assert planned(graph) == {"u": (4, 2)}


def test_a_tied_table_has_the_scales_of_its_product():
    table = weight("table", 9, 4)
    turned = Weight("table", table.stored, (("transpose", (1, 0)),))
    look = Gather(
        name="look", inputs=(9, 0), outputs=(1,), in_shapes=((9, 4), (2,)), out_shapes=((2, 4),)
    )
    ids = (Value(0, "0", (2,), "int32"),)
    alone = Graph(ids, (look,), (Value(1, "", (2, 4)),), {9: table})
    assert planned(alone) == {"table": (4, 1)}
    logits = dense(1, turned, 2, 4, 9, 2)
    tied = Graph(ids, (look, logits), (Value(2, "", (2, 9)),), {9: table})
    assert planned(tied) == {"table": (4, 0)}
    stored = {id(w.stored) for w in quantize_graph(tied, 4).weights()}
    assert len(stored) == 1


def test_stacks_that_a_scan_goes_through():
    body = Graph(
        (Value(0, "0", (4,)), Value(1, "1", (4, 4)), Value(2, "2", (4,))),
        (
            MatMul(name="m", inputs=(0, 1), outputs=(3,), in_shapes=((1, 1, 4), (1, 4, 4)),
                   out_shapes=((1, 1, 4),), transpose=False),
            Map(name="b", inputs=(3, 2), outputs=(4,), in_shapes=((4,), (4,)),
                out_shapes=((4,),), function="add"),
        ),
        (Value(4, "0", (4,)),),
    )  # fmt: skip
    scan = Scan(
        name="s", inputs=(0, 1, 2), outputs=(3,), in_shapes=((4,), (3, 4, 4), (3, 4)),
        out_shapes=((4,),), body=body, shared=0, carries=1, length=3, reverse=False,
    )  # fmt: skip
    constants = {1: weight("stack", 3, 4, 4), 2: weight("biases", 3, 4)}
    graph = graph_of([scan], 4, 4, constants)
    assert planned(graph) == {"stack": (4, (0, 2)), "biases": (16, 0)}


def test_what_stays_exact_and_bits_by_name():
    mask, number = Weight("mask", np.array([True, False])), Weight("n", np.int32([3, 4]))
    one = Weight("one", np.float32(0.5))
    add = lambda a, b, out: Map(
        name=f"add{out}", inputs=(a, b), outputs=(out,), in_shapes=((2,), (2,)), function="add",
        out_shapes=((2,),), dtypes=("float32",),
    )  # fmt: skip
    w = weight("a/w", 2, 2)
    ops = [dense(0, w, 1, 2, 2, 4), add(4, 1, 5), add(5, 2, 6)]
    graph = graph_of(ops, 2, 2, {1: mask, 2: number, 3: one})
    made = {weight.name: weight.stored for weight in quantize_graph(graph, 4).weights()}
    assert made["mask"] is mask.stored and made["n"] is number.stored and made["one"] is one.stored
    rule = lambda path: 8 if path == ("a", "w") else 32
    made = {weight.name: weight for weight in quantize_graph(graph, rule).weights()}
    assert made["a/w"].bits == 8
    assert quantize_graph(graph, 32) is graph
    again = quantize_graph(quantize_graph(graph, 8), 4)  # what is integers already stays so
    assert {weight.name: weight.bits for weight in again.weights()}["a/w"] == 8
    with pytest.raises(ValueError, match="bits 5 is not supported"):
        quantize_graph(graph, 5)
