"""Small random networks for the tests of exporters: every kind of layer, deployed and quantised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from rosler_jax.deploy import Trained, deploy, pack, rebuild
from rosler_jax.graph import Graph
from rosler_jax.graph.layers import build_graph
from rosler_jax.network import Network, split_state

Specs = list[dict[str, Any]]


class Model(NamedTuple):
    """A deployed network, its graph, and the function that its file stands for."""

    specs: Specs
    tensors: Mapping[str, Any]
    graph: Graph
    network: Any


def make_model(
    specs: Specs, *, bits: int = 16, shape: Sequence[int] | None = None, seed: int = 0
) -> Model:
    """A network with random parameters, biases included."""
    _, params, buffers = split_state(Network(specs, rngs=nnx.Rngs(seed)))
    rng = np.random.default_rng(seed)
    params = jax.tree_util.tree_map_with_path(
        lambda path, p: (
            rng.normal(0, 0.3, p.shape).astype(np.float32) if path[-1].key == "bias" else p
        ),
        params,
    )
    trained = deploy(Trained(specs, params, buffers))
    tensors = {k: jax.device_get(v) for k, v in pack(trained, bits).items()}
    return Model(
        trained.specs,
        tensors,
        build_graph(trained.specs, tensors, shape),
        rebuild(trained.specs, tensors),
    )


def mlp(seeded_sketch: str = "srht", activation: str = "relu") -> Specs:
    """Standardised inputs, a seeded layer, learnt factors, a dense head."""
    return [
        {"kind": "standardize", "mean": 33.0, "std": 70.0},
        {"kind": "flatten"},
        {"kind": "sketch_linear", "in_features": 70, "out_features": 37, "rank": 8,
         "mode": "seeded", "in_sketch": 33, "sketch": seeded_sketch},
        {"kind": activation},
        {"kind": "sketch_linear", "in_features": 37, "out_features": 29, "rank": 5},
        {"kind": activation},
        {"kind": "linear", "in_features": 29, "out_features": 7},
    ]  # fmt: skip


def convnet() -> Specs:
    """Grouped, strided, dilated, padded in every way; learnt, seeded and dense kernels; pooling."""
    return [
        {"kind": "standardize", "mean": 30.0, "std": 80.0},
        {"kind": "sketch_conv", "in_features": 2, "out_features": 12, "kernel_size": [3, 3],
         "rank": 3, "feature_group_count": 2, "padding": "CIRCULAR"},
        {"kind": "relu"},
        {"kind": "sketch_conv", "in_features": 12, "out_features": 16, "kernel_size": [3, 3],
         "rank": 3, "mode": "seeded", "in_sketch": 8, "feature_group_count": 2, "strides": 2},
        {"kind": "gelu"},
        {"kind": "conv", "in_features": 16, "out_features": 6, "kernel_size": [3, 3],
         "input_dilation": 2, "padding": [[1, 1], [2, 0]]},
        {"kind": "tanh"},
        {"kind": "max_pool", "window": 2},
        {"kind": "conv", "in_features": 6, "out_features": 5, "kernel_size": [2, 2],
         "kernel_dilation": 2, "padding": "REFLECT"},
        {"kind": "relu"},
        {"kind": "avg_pool", "window": 2},
        {"kind": "flatten"},
        {"kind": "linear", "in_features": 20, "out_features": 4},
    ]  # fmt: skip


CONV_SHAPE = (9, 9, 2)


def signal_net(sketch: str) -> Specs:
    """Convolutions along one axis, the first of them seeded."""
    return [
        {"kind": "sketch_conv", "in_features": 3, "out_features": 10, "kernel_size": [5], "rank": 3,
         "mode": "seeded", "in_sketch": 6, "sketch": sketch, "padding": "CAUSAL"},
        {"kind": "relu"},
        {"kind": "avg_pool", "window": 3},
        {"kind": "sketch_conv", "in_features": 10, "out_features": 8, "kernel_size": [3], "rank": 2,
         "strides": 2},
        {"kind": "flatten"},
        {"kind": "linear", "in_features": 24, "out_features": 3},
    ]  # fmt: skip


SIGNAL_SHAPE = (17, 3)


def volume_net() -> Specs:
    """Convolutions along three axes: grouped, strided, dilated, padded by copies; pooling."""
    return [
        {"kind": "standardize", "mean": 30.0, "std": 80.0},
        {"kind": "conv", "in_features": 2, "out_features": 4, "kernel_size": [3, 2, 3],
         "padding": "CIRCULAR", "kernel_dilation": [1, 2, 1], "feature_group_count": 2},
        {"kind": "tanh"},
        {"kind": "max_pool", "window": 2},
        {"kind": "sketch_conv", "in_features": 4, "out_features": 6, "kernel_size": [2, 2, 2],
         "rank": 2, "mode": "seeded", "in_sketch": 8, "strides": [1, 2, 1],
         "input_dilation": [2, 1, 1]},
        {"kind": "gelu"},
        {"kind": "sketch_conv", "in_features": 6, "out_features": 3, "kernel_size": [1, 3, 2],
         "rank": 3, "padding": [[0, 0], [2, 1], [1, 1]]},
        {"kind": "avg_pool", "window": 2},
        {"kind": "flatten"},
        {"kind": "linear", "in_features": 6, "out_features": 4},
    ]  # fmt: skip


VOLUME_SHAPE = (5, 7, 6, 2)


def pixels(shape: Sequence[int], count: int = 5, seed: int = 0) -> np.ndarray:
    """Whole numbers from 0 to 255, as float32."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.float32)


def reals(shape: Sequence[int], count: int = 5, seed: int = 0) -> np.ndarray:
    """Standard normal numbers, float32."""
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)
