"""The graph computes what the network computes, and refuses what it cannot be."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from exported_models import (
    CONV_SHAPE,
    SIGNAL_SHAPE,
    convnet,
    make_model,
    mlp,
    of,
    packed,
    pixels,
    reals,
    signal_net,
)
from flax import nnx

from rosler_jax.graph import TraceError, run_batch
from rosler_jax.graph.kinds import Affine, Conv, Dense
from rosler_jax.graph.save import load, save
from rosler_jax.graph.version1 import build_graph, network

NETS = {
    "mlp": (mlp(), (70,)),
    "mlp, tanh": (mlp("rademacher", "tanh"), (70,)),
    "mlp, gaussian": (mlp("gaussian", "gelu"), (70,)),
    "images": (convnet(), CONV_SHAPE),
    "signals": (signal_net("srht"), SIGNAL_SHAPE),
    "signals, rows": (signal_net("rows_uniform"), SIGNAL_SHAPE),
}


@pytest.mark.parametrize("bits", [32, 16, 4])
@pytest.mark.parametrize("name", NETS)
def test_equals_the_network(name, bits):
    specs, shape = NETS[name]
    model = make_model(specs, bits=bits, shape=shape)
    x = pixels(shape)
    expected = np.asarray(model.network(x))
    found = np.asarray(jax.jit(lambda a: run_batch(model.graph, a))(x))
    # Both are float32 sums of at most some hundred terms, in another order.
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 8, 3])
def test_weights_keep_the_integers_of_the_file(bits):
    for specs, shape in NETS.values():
        ops = make_model(specs, bits=bits, shape=shape).graph.ops
        for weight in [op.weight for op in ops if isinstance(op, Dense | Conv)]:
            assert weight.bits == bits
            scale = weight.scale
            if weight.axis == -2:  # of the inputs, group by group
                m, n = weight.values.shape[-2:]
                groups = scale.size // m
                scale = np.repeat(scale.reshape(groups, m).T, n // groups, axis=1)
            np.testing.assert_array_equal(weight.integers * scale, weight.values)


def test_batch_norm_is_folded_into_the_product_before_it():
    rng = np.random.default_rng(0)
    w, stats = (
        rng.normal(size=(6, 4)).astype(np.float32),
        rng.normal(size=(4, 4)).astype(np.float32),
    )
    tensors = {
        "0/kernel": w, "1/mean": stats[0], "1/var": stats[1] ** 2 + 0.1, "1/scale": stats[2],
        "1/bias": stats[3], "0/bias": np.zeros(4, np.float32),
    }  # fmt: skip
    specs = [
        {"kind": "linear", "in_features": 6, "out_features": 4},
        {"kind": "batch_norm", "num_features": 4},
    ]
    graph = build_graph(specs, tensors)
    assert [type(op) for op in graph.ops] == [Dense]
    x = reals((6,))
    normal = (x @ w - stats[0]) / np.sqrt(stats[1] ** 2 + 0.1 + 1e-5) * stats[2] + stats[3]
    np.testing.assert_allclose(run_batch(graph, x), normal, rtol=2e-5, atol=2e-5)
    alone = build_graph(
        specs[1:], {k.replace("1/", "0/"): v for k, v in tensors.items() if k[0] == "1"}, (4,)
    )
    assert [type(op) for op in alone.ops] == [Affine]


BAD = {
    "unknown kind": ([{"kind": "attention"}], (4,), "kind 'attention'.*use one of"),
    "no layers": ([], (4,), "no layers"),
    "no shape": ([{"kind": "relu"}], None, "pass input_shape"),
    "convolution without a shape": (convnet(), None, "pass input_shape"),
    "wrong channels": (convnet(), (9, 9, 3), "cannot run on inputs of shape .9, 9, 3."),
    "wrong axes": (convnet(), (9, 2), "cannot run on inputs of shape .9, 2."),
    "no flatten": (mlp()[2:], (7, 10), "cannot run on inputs"),
    "bad shape": (mlp(), (0,), "positive sizes"),
    "standard deviation of zero": (
        [{"kind": "standardize", "mean": 0.0, "std": 0.0}], (4,), "std > 0"
    ),
    "mean that overflows": (
        [{"kind": "standardize", "mean": 1e39, "std": 1.0}], (4,), "finite"
    ),
    "pool too large": ([{"kind": "max_pool", "window": 9}], (4, 4, 1), "output of shape"),
    "too many numbers": ([{"kind": "relu"}], (2**16, 2**16), "expected 1 to"),
    "aRes-BP as it trains": (
        [{"kind": "sketch_linear", "mode": "ares", "in_features": 4, "out_features": 4, "rank": 1}],
        (4,),
        "finish the model first",
    ),
    "window larger than the image": (
        [{"kind": "conv", "in_features": 1, "out_features": 1, "kernel_size": [5, 5],
          "padding": "VALID"}],
        (4, 4, 1),
        "output of shape",
    ),
}  # fmt: skip


def tensors_of(specs):
    """Of a network of such layers; none where there is no such network."""
    try:
        return packed(network(specs, nnx.Rngs(0)))
    except ValueError:
        return {}


@pytest.mark.parametrize("case", BAD)
def test_refuses_with_the_reason(case):
    specs, shape, message = BAD[case]
    with pytest.raises(TraceError, match=message):
        build_graph(specs, tensors_of(specs), shape)


@pytest.mark.parametrize("window", [0, -2, 2.0, "3", [], [2], [2, 0], [2, 2.5], None])
def test_windows_that_are_none_are_refused(window):
    with pytest.raises(TraceError, match="cannot run on inputs of shape"):
        build_graph([of("max_pool", window=window)], {}, (8, 8, 1))


def test_a_batch_norm_ships_with_its_running_statistics(tmp_path):
    x = np.random.default_rng(0).normal(3, 2, (64, 6, 6, 2)).astype(np.float32)
    rngs = nnx.Rngs(0)
    norm = nnx.BatchNorm(4, rngs=rngs)
    flatten = lambda x: x.reshape(len(x), -1)
    head = nnx.Linear(144, 2, rngs=rngs)
    model = nnx.Sequential(nnx.Conv(2, 4, (3, 3), rngs=rngs), norm, nnx.relu, flatten, head)
    model.train()
    for _ in range(3):
        model(x)
    assert np.abs(norm.mean[...]).max() > 0.05  # it has seen them
    save(tmp_path / "m.rosler", model, x)
    loaded = load(tmp_path / "m.rosler")
    model.eval()
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-4)
    assert Affine not in map(type, loaded.graph.ops)
