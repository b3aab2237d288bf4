"""The integer specification: near the real network, within its bounds, exact where promised."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from exported_models import (
    CONV_SHAPE,
    SIGNAL_SHAPE,
    convnet,
    make_model,
    mlp,
    pixels,
    reals,
    signal_net,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from rosler_jax.export import ExportError, lower, run_integer
from rosler_jax.export.integer import HIGH, LOW, Product, Requant, Signs
from rosler_jax.export.intops import Limited
from rosler_jax.export.lowering import fold_center, requant
from rosler_jax.graph import run_batch

NETS = {
    "mlp": (mlp(), (70,), pixels),
    "mlp, rademacher, tanh": (mlp("rademacher", "tanh"), (70,), pixels),
    "mlp, sparse, gelu": (mlp("sparse_sign", "gelu"), (70,), reals),
    "mlp, block_perm": (mlp("block_perm"), (70,), pixels),
    "mlp, dct": (mlp("dct:10x7/dct"), (70,), pixels),
    "images": (convnet(), CONV_SHAPE, pixels),
    "signals, rows": (signal_net("rows_uniform"), SIGNAL_SHAPE, reals),
}


@pytest.mark.parametrize("name", NETS)
def test_sixteen_bits_are_near_the_real_network(name):
    specs, shape, inputs = NETS[name]
    model = make_model(specs, bits=16, shape=shape)
    x = inputs(shape, 20)
    program = lower(model.graph, x, dtype="int16")
    found = run_integer(program, program.quantize_input(x)) * program.output_scale
    expected = np.asarray(run_batch(model.graph, x))
    # Each of about ten roundings is at most 2^-15 of its tensor's range, and layers amplify little.
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("dtype, bits", [("int8", 8), ("int4", 4), ("int8", 4), ("int16", 8)])
def test_weights_with_few_bits_are_not_rounded_again(dtype, bits):
    model = make_model(mlp(), bits=bits)
    x = pixels((70,), 20)
    program = lower(model.graph, x, dtype=dtype)
    expected = np.asarray(run_batch(model.graph, x))
    found = run_integer(program, program.quantize_input(x)) * program.output_scale
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()


def test_weights_with_too_many_bits_are_rounded_to_what_is_asked_for():
    model = make_model(mlp(), bits=16)
    program = lower(model.graph, pixels((70,)), dtype="int4")
    for op in program.ops:
        if isinstance(op, Product):
            assert np.abs(op.weight).max() <= 7


def _accumulators(program, x):
    """Every product's exact sums, by NumPy's big integers."""
    y = np.asarray(x, object).reshape(len(x), -1)
    for op in program.ops:
        assert isinstance(op, Product)
        acc = y @ op.weight.astype(object) + op.bias.astype(object)
        yield op, acc
        r = op.requant
        half = 2 ** (r.shift - 1)
        y = (acc * r.multiplier.astype(object) + half) // 2**r.shift
        y = np.minimum(np.maximum(y, r.low), r.high)


@pytest.mark.parametrize("dtype", ["int16", "int8"])
def test_the_specification_is_that_of_unbounded_integers_and_32_bits_hold_what_was_proved(dtype):
    specs = [
        {"kind": "linear", "in_features": 40, "out_features": 30},
        {"kind": "relu"},
        {"kind": "linear", "in_features": 30, "out_features": 5},
    ]
    model = make_model(specs, bits=16)
    program = lower(model.graph, reals((40,), 30), dtype=dtype)
    rng = np.random.default_rng(1)
    x = rng.choice(np.array([LOW, HIGH, 0, 1], np.int16), (50, 40))  # far beyond the calibration
    found = run_integer(program, x)
    wide = []
    for op, acc in _accumulators(program, x):
        reach = int(np.abs(acc).max())
        wide.append(op.wide)
        assert reach < 2**31 or op.wide
        multiplier = int(np.abs(op.requant.multiplier).max())
        assert reach * multiplier < 2**62
        last = acc, op.requant
    acc, r = last
    y = (acc * r.multiplier.astype(object) + 2 ** (r.shift - 1)) // 2**r.shift
    np.testing.assert_array_equal(np.clip(y.astype(np.int64), r.low, r.high), found)
    assert wide == ([True, True] if dtype == "int16" else [False, False])


@settings(max_examples=200, deadline=None)
@given(factor=st.floats(1e-12, 1e4), bound=st.integers(1, 2**45), acc=st.integers(-(2**45), 2**45))
def test_requantisation_is_within_half_a_unit_of_the_real_product(factor, bound, acc):
    acc = max(-bound, min(bound, acc))
    try:
        r, reach = requant(factor, bound)
    except ExportError:
        assert factor > 1 or bound * factor > 2**31 - 3  # the output would not fit 32 bits
        return
    exact = acc * factor
    m = int(r.multiplier)
    found = (acc * m + 2 ** (r.shift - 1)) >> r.shift
    assert abs(acc * m) + 2 ** (r.shift - 1) < 2**62
    # The multiplier is rounded to a half, which the accumulator magnifies.
    assert abs(found - exact) <= 0.5 + bound * 2.0 ** -(r.shift + 1) + 1e-9 * abs(exact) + 1e-6
    assert min(HIGH, abs(found)) <= reach or reach == -LOW


def test_a_relu_is_fused_and_its_output_is_never_negative():
    model = make_model(mlp(), bits=8)
    program = lower(model.graph, pixels((70,)), dtype="int8")
    lows = [op.requant.low for op in program.ops if isinstance(op, Product | Signs)]
    assert lows.count(0) == 2
    assert not any(isinstance(op, Limited) for op in program.ops)


def test_the_mean_moves_into_a_bias():
    graph = make_model(mlp(), bits=32).graph
    folded = fold_center(graph)
    assert float(folded.ops[0].center) == 0.0
    x = pixels((70,))
    np.testing.assert_allclose(run_batch(folded, x), run_batch(graph, x), atol=1e-4)
    padded = make_model(convnet(), bits=32, shape=CONV_SHAPE).graph
    assert fold_center(padded) is padded  # zeros of padding are zeros after the subtraction


def test_whole_numbers_of_a_byte_go_in_as_bytes():
    graph = make_model(mlp()).graph
    assert lower(graph, pixels((70,))).input_dtype == "uint8"
    assert lower(graph, reals((70,))).input_dtype == "int16"
    assert lower(graph, pixels((70,)), input_dtype="int16").input_dtype == "int16"
    with pytest.raises(ExportError, match="0 to 255"):
        lower(graph, reals((70,)), input_dtype="uint8")


def test_inputs_beyond_the_scale_saturate():
    program = lower(make_model(mlp()).graph, reals((70,)))
    x = np.full((1, 70), 1e9)
    assert program.quantize_input(x).max() == HIGH
    assert program.quantize_input(-x).min() == LOW


BAD = {
    "unknown dtype": ({"dtype": "int5"}, "int5.*use one of"),
    "unknown input": ({"input_dtype": "int32"}, "use uint8 or int16"),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_unknown_dtypes(case):
    options, message = BAD[case]
    with pytest.raises(ExportError, match=message):
        lower(make_model(mlp()).graph, pixels((70,)), **options)


def test_refuses_bad_calibration_and_sketches_without_integers():
    graph = make_model(mlp()).graph
    with pytest.raises(ExportError, match="no examples of shape"):
        lower(graph, np.ones((3, 71)))
    with pytest.raises(ExportError, match="NaN"):
        lower(graph, np.full((1, 70), np.nan))
    with pytest.raises(ExportError, match=r"gaussian sketch.*srht"):
        lower(make_model(mlp("gaussian")).graph, pixels((70,)))


def test_wrong_input_dtype_is_refused():
    program = lower(make_model(mlp()).graph, pixels((70,)))
    with pytest.raises(ValueError, match="expected uint8"):
        run_integer(program, np.zeros((1, 70), np.int16))


def test_requant_keeps_channels_apart():
    r, _ = requant(np.array([0.5, 0.25]), 1000)
    assert isinstance(r, Requant)
    assert r.multiplier.shape == (2,)
    assert dataclasses.replace(r, low=0).low == 0
