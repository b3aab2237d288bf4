"""Random networks for property-based tests: any layers that fit one another, of any options."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from exported_models import (
    Specs,
    conv,
    factors,
    linear,
    make_model,
    of,
    sketched,
    sketched_conv,
)
from flax import nnx
from hypothesis import assume
from hypothesis import strategies as st

from rosler_jax.graph import Graph
from rosler_jax.graph.version1 import network

SIGNED = ("rademacher", "sparse_sign", "block_perm", "srht", "rows_uniform", "pool")
"""Sketches that have an integer form everywhere."""
LARGEST_SIDE = {1: 14, 2: 8, 3: 5}


class RandomNetwork(NamedTuple):
    """Layers, the shape of one input, and whether inputs are pixels of a byte."""

    specs: Specs
    shape: tuple[int, ...]
    pixels: bool


@st.composite
def vector_layers(draw: Any, m: int) -> dict[str, Any]:
    n, bias = draw(st.integers(1, 23)), draw(st.booleans())
    kind = draw(st.sampled_from(["linear", "factors", "seeded"]))
    rank = draw(st.integers(1, min(m, n)))
    if kind == "linear":
        return linear(m, n, use_bias=bias)
    if kind == "factors":
        return factors(m, n, rank, use_bias=bias)
    family, inner = draw(st.sampled_from((*SIGNED, "dct"))), draw(st.integers(rank, m))
    return sketched(m, n, rank, mode="seeded", sketch=family, in_sketch=inner, use_bias=bias)


@st.composite
def convolutions(draw: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    axes, c = len(shape) - 1, shape[-1]
    sizes = [draw(st.integers(1, min(3, n))) for n in shape[:-1]]
    groups = draw(st.sampled_from([g for g in range(1, c + 1) if c % g == 0]))
    d = groups * draw(st.integers(1, 3))
    each = st.lists(st.integers(1, 2), min_size=axes, max_size=axes)
    pair = st.lists(st.integers(0, 2), min_size=2, max_size=2)
    named = ["SAME", "VALID", "CIRCULAR", "REFLECT", *(["CAUSAL"] if axes == 1 else [])]
    options = {
        "strides": draw(each), "kernel_dilation": draw(each), "use_bias": draw(st.booleans()),
        "padding": draw(st.sampled_from(named) | st.lists(pair, min_size=axes, max_size=axes)),
        "feature_group_count": groups,
    }  # fmt: skip
    if options["padding"] not in ("CIRCULAR", "REFLECT", "CAUSAL"):
        options["input_dilation"] = draw(each)
    kind = draw(st.sampled_from(["conv", "chain", "seeded"]))
    if kind == "conv":
        return conv(c, d, sizes, **options)
    patch = math.prod(sizes) * c // groups
    rank = draw(st.integers(1, min(patch, d // groups)))
    if kind == "chain":
        return sketched_conv(c, d, sizes, rank=rank, **options)
    seeded = {"mode": "seeded", "sketch": draw(st.sampled_from(SIGNED))}
    inner = draw(st.integers(rank, patch))
    return sketched_conv(c, d, sizes, rank=rank, in_sketch=inner, **seeded, **options)


@st.composite
def next_layers(draw: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    kinds = ["relu", "gelu", "tanh", "batch_norm", "product", "product"]
    if len(shape) > 1:
        kinds += ["max_pool", "avg_pool", "flatten"]
    kind = draw(st.sampled_from(kinds))
    if kind == "product":
        return draw(vector_layers(*shape) if len(shape) == 1 else convolutions(shape))
    if kind == "batch_norm":
        return of(kind, num_features=shape[-1])
    if kind.endswith("pool"):
        sides = [draw(st.integers(1, min(3, n))) for n in shape[:-1]]
        return of(kind, window=draw(st.sampled_from([sides, min(sides)])))
    return of(kind)


def shape_after(spec: dict[str, Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """What a layer makes of a shape; discards the example if the layer does not take it."""
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    try:
        return jax.eval_shape(lambda x: network([spec], nnx.Rngs(0))(x), x).shape[1:]
    except ValueError:
        assume(False)
        raise


@st.composite
def networks(draw: Any, most_layers: int = 5) -> RandomNetwork:
    """Networks on vectors, signals, images and volumes."""
    axes = draw(st.integers(0, 3))
    if axes == 0:
        shape: tuple[int, ...] = (draw(st.integers(1, 23)),)
    else:
        shape = tuple(draw(st.integers(1, LARGEST_SIDE[axes])) for _ in range(axes)) + (
            draw(st.integers(1, 4)),
        )
    pixels = draw(st.booleans())
    specs: Specs = [of("standardize", mean=33.0, std=70.0)] if pixels else []
    first = shape
    for _ in range(draw(st.integers(1, most_layers))):
        specs.append(draw(next_layers(shape)))
        shape = shape_after(specs[-1], shape)
        assume(0 < math.prod(shape) < 2000)
    return RandomNetwork(specs, first, pixels)


def random_graph(network: RandomNetwork, bits: int, seed: int) -> Graph:
    """Random parameters, and statistics of normalisations, with so many bits in the file."""
    return make_model(network.specs, bits=bits, shape=network.shape, seed=seed).graph
