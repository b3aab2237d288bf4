"""Small networks with every kind of layer, that the exporters' tests share."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rosler_jax.deploy import Trained, deploy, pack, rebuild
from rosler_jax.graph import Graph
from rosler_jax.graph.layers import build_graph
from rosler_jax.network import Network, split_state

FAMILIES = ("gaussian", "rademacher", "sparse_sign", "block_perm", "srht", "rows_uniform")
DENSE_FAMILY = "gaussian"


def linear(m: int, n: int, **more: Any) -> dict[str, Any]:
    return {"kind": "linear", "in_features": m, "out_features": n, **more}


def sketched(m: int, n: int, rank: int = 4, **more: Any) -> dict[str, Any]:
    return {"kind": "sketch_linear", "in_features": m, "out_features": n, "rank": rank, **more}


def conv(c: int, d: int, size: tuple[int, ...] = (3, 3), **more: Any) -> dict[str, Any]:
    sizes = {"in_features": c, "out_features": d, "kernel_size": list(size)}
    return {"kind": "conv", **sizes, **more}


def sketched_conv(c: int, d: int, size: tuple[int, ...] = (3, 3), **more: Any) -> dict[str, Any]:
    return {**conv(c, d, size, **more), "kind": "sketch_conv", "rank": more.pop("rank", 3), **more}


def of(kind: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, **more}


STANDARDIZE = of("standardize", mean=33.0, std=70.0)
SEEDED = {"mode": "seeded"}

Case = tuple[list[dict[str, Any]], tuple[int, ...]]

CASES: dict[str, Case] = {
    "mlp": (
        [STANDARDIZE, of("flatten"), linear(35, 13), of("relu"), sketched(13, 17, 5), of("tanh"),
         linear(17, 3, use_bias=False)],
        (5, 7, 1),
    ),
    "factors": ([sketched(41, 39, 6), of("gelu"), linear(39, 4)], (41,)),
    "images": (
        [STANDARDIZE, conv(2, 6), of("relu"), of("max_pool", window=2),
         conv(6, 5, (2, 3), padding="VALID", strides=[2, 1]), of("gelu"),
         of("avg_pool", window=[1, 2]), of("flatten"), linear(20, 3)],
        (11, 13, 2),
    ),
    "groups": (
        [conv(4, 8, feature_group_count=2, kernel_dilation=2), of("tanh"),
         sketched_conv(8, 12, feature_group_count=4, strides=2), of("relu"),
         conv(12, 12, feature_group_count=12, padding=[[2, 1], [0, 1]])],
        (9, 7, 4),
    ),
    "series": (
        [conv(3, 5, (4,), padding="CAUSAL"), of("relu"), of("max_pool", window=3),
         sketched_conv(5, 6, (3,)), of("avg_pool", window=2), of("flatten"), linear(18, 4)],
        (19, 3),
    ),
    "gaps": (
        [conv(2, 3, input_dilation=[2, 3], padding=[[1, 1], [4, 0]]), of("relu"),
         conv(3, 2, (2, 2), input_dilation=2, padding=[[0, 1], [2, 0]])],
        (5, 4, 2),
    ),
    "wrap": (
        [conv(2, 3, padding="CIRCULAR"), of("tanh"), conv(3, 2, padding="CIRCULAR")], (5, 6, 2)
    ),
    "reflect": ([conv(2, 3, (5,), padding="REFLECT"), of("relu")], (9, 2)),
    "norms": (
        [of("batch_norm", num_features=2), conv(2, 4), of("batch_norm", num_features=4),
         of("relu"), of("batch_norm", num_features=4)],
        (5, 5, 2),
    ),
    "seeded_groups": (
        [sketched_conv(4, 6, feature_group_count=2, in_sketch=5, **SEEDED), of("relu"),
         of("max_pool", window=2), of("flatten"), sketched(96, 33, 5, **SEEDED)],
        (8, 9, 4),
    ),
    **{
        f"seeded_{family}": (
            [STANDARDIZE, of("flatten"), sketched(77, 50, 6, sketch=family, **SEEDED), of("relu"),
             sketched(50, 64, 5, sketch=family, **SEEDED)],
            (11, 7, 1),
        )
        for family in FAMILIES
    },
    **{
        f"seeded_conv_{family}": (
            [sketched_conv(3, 8, sketch=family, in_sketch=6, **SEEDED), of("gelu"),
             conv(8, 2, padding="VALID")],
            (7, 6, 3),
        )
        for family in FAMILIES
    },
}  # fmt: skip


@functools.lru_cache
def trained(name: str) -> tuple[Trained, tuple[int, ...]]:
    """Parameters drawn at random, biases and statistics too, as a deployed network."""
    specs, shape = CASES[name]
    kinds = [spec for spec in specs if spec["kind"] != "batch_norm"]
    _, params, buffers = split_state(Network(kinds, rngs=nnx.Rngs(0)))
    keys = iter(jax.random.split(jax.random.key(1), 100))

    def moved(leaf: Any) -> Any:
        zero = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim == 1
        return leaf + 0.3 * jax.random.normal(next(keys), leaf.shape) if zero else leaf

    params = jax.tree.map(moved, params)
    return deploy(Trained(kinds, params, buffers)), shape


@functools.lru_cache
def graph_of(name: str, bits: int = 32) -> Graph:
    """A case as a graph, its weights with so many bits in the model file."""
    if any(spec["kind"] == "batch_norm" for spec in CASES[name][0]):
        return _with_norms(name, bits)
    network, shape = trained(name)
    return build_graph(network.specs, pack(network, bits), shape)


def _with_norms(name: str, bits: int) -> Graph:
    """Batch normalisation is known to the graph alone."""
    network, shape = trained(name)
    packed, tensors = pack(network, bits), {}
    specs, k = CASES[name][0], 0
    rng = np.random.default_rng(3)
    for i, spec in enumerate(specs):
        if spec["kind"] == "batch_norm":
            n = spec["num_features"]
            tensors[f"{i}/mean"] = rng.normal(size=n).astype(np.float32)
            tensors[f"{i}/var"] = rng.uniform(0.5, 2, n).astype(np.float32)
            tensors[f"{i}/scale"] = rng.normal(1, 0.3, n).astype(np.float32)
            tensors[f"{i}/bias"] = rng.normal(size=n).astype(np.float32)
            continue
        tensors |= {
            f"{i}/{key.split('/', 1)[1]}": tensor
            for key, tensor in packed.items()
            if key.startswith(f"{k}/")
        }
        k += 1
    return build_graph(specs, tensors, shape)


def network_of(name: str, bits: int = 32) -> Network:
    """The network that a model file with so many bits gives back."""
    network, _ = trained(name)
    return rebuild(network.specs, pack(network, bits))


def inputs_of(name: str, batch: int, seed: int = 0) -> np.ndarray:
    """Inputs in the range that the case's first layer expects."""
    specs, shape = CASES[name]
    rng = np.random.default_rng(seed)
    if specs[0]["kind"] == "standardize":
        return rng.integers(0, 256, (batch, *shape)).astype(np.float32)
    return rng.normal(size=(batch, *shape)).astype(np.float32)
