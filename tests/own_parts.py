"""A user's own model, method, task and data source, one of each, outside of the package."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from rosler_jax.methods import Method
from rosler_jax.tasks import Metric, Task


class Residual(nnx.Module):
    """Two layers beside the identity, batch normalisation between them, and a head."""

    def __init__(self, width: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(len(x), -1)
        return self.head(x + self.dropout(self.second(nnx.relu(self.norm(self.first(x))))))


def build(input_shape: Sequence[int], outputs: int, rngs: nnx.Rngs) -> nnx.Module:
    """The model: what any factory is given by name, it may leave out."""
    return Residual(int(np.prod(input_shape)), outputs, rngs)


class InLinen(linen.Module):
    """The same kind of model in Linen."""

    outputs: int

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.reshape(len(x), -1)
        h = linen.Dense(32, name="hidden")(x)
        h = linen.BatchNorm(use_running_average=not train)(h)
        h = linen.Dropout(0.1, deterministic=not train)(nnx.relu(h))
        return linen.Dense(self.outputs, name="head")(h)


def build_linen(outputs: int) -> linen.Module:
    """A factory of a Linen module: it needs no keys."""
    return InLinen(outputs)


SIGNED = Method(
    mode="chain",
    rate=1e-3,
    optimizer=lambda inner, setting: optax.chain(optax.clip_by_global_norm(0.5), inner),
)
"""A method: chains, trained with clipped gradients."""


def huber(outputs: jax.Array, y: jax.Array, unit: jax.Array) -> jax.Array:
    """A loss that is linear far away, in deviations of the targets."""
    return optax.huber_loss((outputs - y) / unit).mean(-1)


ROBUST = Task(
    loss=huber,
    metrics={"worst": Metric(lambda out, y: jnp.abs(out - y).max(-1), larger_is_better=False)},
    outputs=lambda data: data.train_y.shape[-1],
    targets="values",
    scaled=True,
)
"""A task: regression with another loss and another metric."""


def waves(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A data source: 16 numbers, and two values to be told of them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, 16)).astype(np.float32)
    y = np.stack([100 + 20 * x[:, 0] - 10 * x[:, 1], x[:, 2] * 3], 1)
    return x, y.astype(np.float32)
