"""Models and a method of users that the tests of sweeps train, by reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optax
from flax import linen, nnx

from rosler_jax.methods import Method


class Net(linen.Module):
    """Two dense layers of Linen with batch normalisation between."""

    outputs: int

    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = linen.Dense(24, name="first")(x.reshape(len(x), -1))
        x = linen.relu(linen.BatchNorm(use_running_average=not train, name="norm")(x))
        return linen.Dense(self.outputs, name="head")(x)


def net(outputs: int) -> linen.Module:
    """The net."""
    return Net(outputs)


class Convolutions(nnx.Module):
    """Two convolutions, the mean of what they see, a dense layer."""

    def __init__(self, input_shape: Sequence[int], outputs: int, rngs: nnx.Rngs):
        self.first = nnx.Conv(input_shape[-1], 6, (3, 3), rngs=rngs)
        self.second = nnx.Conv(6, 8, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(8, outputs, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.head(x.mean((1, 2)))


# Momentum of each layer by its size: no zeros stay what they are.
method = Method(
    "chain", masks=False,
    optimizer=lambda inner, setting: optax.chain(optax.clip_by_block_rms(0.1), inner),
)  # fmt: skip
