"""Small networks with every kind of layer, that the exporters' tests share."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from exported_models import (
    Model,
    Specs,
    conv,
    factors,
    linear,
    make_model,
    of,
    sketched,
    sketched_conv,
)

from rosler_jax.graph import Graph

FAMILIES = (
    "gaussian", "rademacher", "sparse_sign", "block_perm", "srht", "rows_uniform", "dct", "pool",
)  # fmt: skip
STANDARDIZE = of("standardize", mean=33.0, std=70.0)
SEEDED = {"mode": "seeded"}

CASES: dict[str, tuple[Specs, tuple[int, ...]]] = {
    "mlp": (
        [STANDARDIZE, of("flatten"), linear(35, 13), of("relu"), factors(13, 17, 5), of("tanh"),
         linear(17, 3, use_bias=False)],
        (5, 7, 1),
    ),
    "factors": ([factors(41, 39, 6), of("gelu"), linear(39, 4)], (41,)),
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
        f"seeded_{family}_images": (
            [STANDARDIZE, of("flatten"),
             sketched(144, 60, 6, sketch=f"{family}:8x6/{family}:6x10", in_sketch=36, **SEEDED),
             of("relu"), linear(60, 3)],
            (8, 6, 3),
        )
        for family in ("dct", "pool")
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
def model_of(name: str, bits: int = 32) -> Model:
    """A case, its weights with so many bits in the model file."""
    specs, shape = CASES[name]
    return make_model(specs, bits=bits, shape=shape)


def graph_of(name: str, bits: int = 32) -> Graph:
    """Its graph."""
    return model_of(name, bits).graph


def network_of(name: str, bits: int = 32) -> Any:
    """The network that its file gives back."""
    return model_of(name, bits).network


def inputs_of(name: str, batch: int, seed: int = 0) -> np.ndarray:
    """Inputs in the range that the case's first layer expects."""
    specs, shape = CASES[name]
    rng = np.random.default_rng(seed)
    if specs[0]["kind"] == "standardize":
        return rng.integers(0, 256, (batch, *shape)).astype(np.float32)
    return rng.normal(size=(batch, *shape)).astype(np.float32)
