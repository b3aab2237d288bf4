"""Small convolutional nets as products of patches: several times as quick to train on CPUs.

XLA for CPUs is slow with convolutions of few channels in a loop, and with the gradient of a
window's maximum. The functions here compute what the modules do, of the same parameters; models are
written to files as the modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rosler_jax.learner import Learner


def convolved(x: Any, layer: Any, padding: int) -> Any:
    """A convolution of stride 1 with so many zeros around its inputs, and its bias."""
    height, width, _, outputs = layer["kernel"].shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    shifted = [x[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)]
    patches = jnp.concatenate(shifted, -1)
    return patches @ layer["kernel"].reshape(-1, outputs) + layer["bias"]


def pooled(x: Any, how: Callable[..., Any] = jnp.max) -> Any:
    """Windows of two by two, each in one number; what is left over at the edge counts for none."""
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return how(x.reshape(n, height // 2, 2, width // 2, 2, channels), (2, 4))


def _dense(x: Any, layer: Any) -> Any:
    return x @ layer["kernel"] + layer["bias"]


def lenet5(params: Any, x: Any) -> Any:
    """:func:`rosler_jax.models.lenet5`, of images of 28 by 28."""
    x = pooled(jax.nn.relu(convolved(x[..., None], params["conv1"], 2)))
    x = pooled(jax.nn.relu(convolved(x, params["conv2"], 0)))
    x = jax.nn.relu(_dense(x.reshape(len(x), -1), params["fc1"]))
    return _dense(jax.nn.relu(_dense(x, params["fc2"])), params["head"])


def small_conv(params: Any, x: Any) -> Any:
    """``small_conv`` of scripts/bench_models.py, of images without channels."""
    x = pooled(x[..., None], jnp.mean)
    x = pooled(jax.nn.relu(convolved(x, params["conv1"], 1)))
    x = pooled(jax.nn.relu(convolved(x, params["conv2"], 1)))
    return _dense(x.reshape(len(x), -1), params["head"])


QUICK = {"lenet5": lenet5, "small_conv": small_conv}
"""Nets by the name of their factory."""


def quick(learner: Learner, model: str) -> Learner:
    """The learner of a model with its quick form, if there is one."""
    forward = QUICK.get(model.rpartition(":")[2])
    if forward is None:
        return learner

    def apply(params: Any, buffers: Any, x: Any, train: bool) -> tuple[Any, Any]:
        return forward(params, x), buffers

    return learner._replace(apply=apply)
