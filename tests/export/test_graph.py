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
    pixels,
    reals,
    signal_net,
)
from flax import nnx

from rosler_jax._paths import path_name
from rosler_jax.config import TrainConfig
from rosler_jax.deploy import Trained, load_network, save_network
from rosler_jax.fit import Arrays, make_fit
from rosler_jax.graph import TraceError, run_batch
from rosler_jax.graph.kinds import Affine, Conv, Dense
from rosler_jax.graph.layers import build_graph
from rosler_jax.network import Network, split_state

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
        "deploy the network first",
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
        _, params, buffers = split_state(Network(specs, rngs=nnx.Rngs(0)))
    except ValueError:
        return {}
    return {
        path_name(path).removeprefix("layers/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path([params, buffers])[0]
        for path in [path[1:]]
        if "fingerprint" not in path_name(path)
    }


@pytest.mark.parametrize("case", BAD)
def test_refuses_with_the_reason(case):
    specs, shape, message = BAD[case]
    with pytest.raises(TraceError, match=message):
        build_graph(specs, tensors_of(specs), shape)


def test_a_trained_batch_norm_ships_with_its_running_statistics(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (64, 6, 6, 2)).astype(np.float32)
    y = (x.mean((1, 2, 3)) > 3).astype(np.int32)
    specs = [
        {"kind": "conv", "in_features": 2, "out_features": 4, "kernel_size": [3, 3]},
        {"kind": "batch_norm", "num_features": 4},
        {"kind": "relu"},
        {"kind": "flatten"},
        {"kind": "linear", "in_features": 144, "out_features": 2},
    ]
    config = TrainConfig(method="dense", hidden=(4,), batch_size=16, epochs=3)
    functions = make_fit(config, specs, len(x))
    state = functions.init(jax.random.key(0))
    for _ in range(3):
        state, _ = jax.jit(functions.epoch)(state, Arrays(x, y, x, y))
    assert np.abs(np.asarray(state.buffers["layers"][1]["mean"])).max() > 0.05  # it has learnt
    expected = functions.logits(state.params, state.buffers, x)
    params, buffers = jax.device_get((state.params, state.buffers))
    save_network(tmp_path / "m.rosler", Trained(specs, params, buffers), bits=32)
    loaded = load_network(tmp_path / "m.rosler")
    np.testing.assert_allclose(loaded.network(x), expected, atol=1e-5)
    graph = build_graph(loaded.specs, loaded.file.tensors, (6, 6, 2))
    assert Affine not in map(type, graph.ops)
    np.testing.assert_allclose(run_batch(graph, x), expected, atol=1e-4)
