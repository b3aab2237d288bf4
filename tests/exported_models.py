"""Small random networks for the tests of exporters: every kind of layer, quantised.

A list of layers as files of version 1 have it is their short form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from rosler_jax._layer_views import matrix_views
from rosler_jax._paths import path_name
from rosler_jax.graph import Graph, version1
from rosler_jax.quantization import quantize_params

Specs = list[dict[str, Any]]


def of(kind: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, **more}


def linear(m: int, n: int, **more: Any) -> dict[str, Any]:
    return of("linear", in_features=m, out_features=n, **more)


def factors(m: int, n: int, rank: int = 4, **more: Any) -> dict[str, Any]:
    return of("two_factor", in_features=m, out_features=n, rank=rank, **more)


def sketched(m: int, n: int, rank: int = 4, **more: Any) -> dict[str, Any]:
    return of("sketch_linear", in_features=m, out_features=n, rank=rank, **more)


def conv(c: int, d: int, size: Sequence[int] = (3, 3), **more: Any) -> dict[str, Any]:
    return of("conv", in_features=c, out_features=d, kernel_size=list(size), **more)


def sketched_conv(c: int, d: int, size: Sequence[int] = (3, 3), **more: Any) -> dict[str, Any]:
    return {"rank": 3, **conv(c, d, size, **more), "kind": "sketch_conv"}


class Model(NamedTuple):
    """A network, its tensors in a file of version 1, its graph, and what that file stands for."""

    specs: Specs
    tensors: dict[str, Any]
    graph: Graph
    network: Any


def weights(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Kernels and factors that keep the size of what they multiply."""
    return rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))


DRAWN = {
    "u": lambda rng, shape: rng.normal(size=shape) / np.sqrt(shape[-2]),
    "r": lambda rng, shape: rng.normal(size=shape) / np.sqrt(shape[-2]),
    "bias": lambda rng, shape: rng.normal(0, 0.3, shape),
    "mean": lambda rng, shape: rng.normal(size=shape),
    "var": lambda rng, shape: rng.uniform(0.5, 2.0, shape),
    "scale": lambda rng, shape: rng.uniform(-2.0, 2.0, shape),
    "psi_seed": lambda rng, shape: rng.integers(0, 2**32, shape),
    "omega_seed": lambda rng, shape: rng.integers(0, 2**32, shape),
    "fingerprint": lambda rng, shape: np.zeros(shape),  # of any seeds
}


def make_model(
    specs: Specs, *, bits: int = 16, shape: Sequence[int] | None = None, seed: int = 0
) -> Model:
    """A network with random parameters, biases and statistics included.

    NumPy draws them: what the layers draw with is compiled for every shape.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: version1.network(specs, nnx.Rngs(0))))
    rng = np.random.default_rng(seed)

    def drawn(path: Any, leaf: Any) -> Any:
        draw = DRAWN.get(path_name(path).rpartition("/")[2], weights)
        return draw(rng, leaf.shape).astype(leaf.dtype)

    state = jax.tree_util.tree_map_with_path(drawn, state)
    tensors = packed(nnx.merge(graphdef, state), bits)
    graph = version1.build_graph(specs, tensors, shape)
    return Model(specs, tensors, graph, version1.rebuild(specs, tensors))


def packed(network: nnx.Module, bits: int = 32) -> dict[str, Any]:
    """The tensors that a file of version 1 has of a network, its weights with so many bits."""
    _, params, rest = nnx.split(network, nnx.Param, ...)
    tensors = quantize_params(nnx.to_pure_dict(params), bits, matrix_views(network))
    tensors |= {path_name(path): x for path, x in jax.tree_util.tree_flatten_with_path(rest)[0]}
    return {name.removeprefix("layers/"): jax.device_get(x) for name, x in tensors.items()}


def mlp(seeded_sketch: str = "srht", activation: str = "relu") -> Specs:
    """Standardised inputs, a seeded layer, learnt factors, a dense head."""
    return [
        {"kind": "standardize", "mean": 33.0, "std": 70.0},
        {"kind": "flatten"},
        {"kind": "sketch_linear", "in_features": 70, "out_features": 37, "rank": 8,
         "mode": "seeded", "in_sketch": 33, "sketch": seeded_sketch},
        {"kind": activation},
        factors(37, 29, 5),
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
