"""The four MLPerf Tiny v1 networks of the zoo, in inference mode and with random statistics."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key
from made_once import made_once

from rosler_jax.models import autoencoder, ds_cnn, mobilenet_v1, resnet8

INPUTS: dict[str, tuple[int, ...]] = {
    "resnet8": (32, 32, 3),
    "ds_cnn": (49, 10, 1),
    "mobilenet": (96, 96, 3),
    "autoencoder": (640,),
}
"""One example's shape, without the batch axis."""


def _inference(factory: Callable[..., nnx.Module], name: str, n: int) -> Callable[[], nnx.Module]:
    def make(rngs: nnx.Rngs) -> nnx.Module:
        model = factory(input_shape=INPUTS[name], outputs=n, rngs=rngs)
        model.eval()
        return model

    return made_once(make)


BUILDERS: dict[str, Callable[[], nnx.Module]] = {
    "resnet8": _inference(resnet8, "resnet8", 10),
    "ds_cnn": _inference(ds_cnn, "ds_cnn", 12),
    "mobilenet": _inference(mobilenet_v1, "mobilenet", 2),
    "autoencoder": _inference(autoencoder, "autoencoder", 640),
}


def randomise(model: nnx.Module, key: Key[Array, ""]) -> None:
    """Gives every bias and batch normalisation values as training leaves them, in place.

    Fresh ones (0, and scale 1, mean 0, variance 1) would hide an error in folding.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    for _, layer in nnx.iter_modules(model):
        bias = getattr(layer, "bias", None)
        if bias is not None:
            bias[...] = jnp.asarray(0.2 * rng.normal(size=bias.shape), bias.dtype)
        if isinstance(layer, nnx.BatchNorm):
            shape = layer.mean.shape
            layer.scale[...] = jnp.asarray(rng.uniform(0.5, 1.5, shape), jnp.float32)
            layer.mean[...] = jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32)
            layer.var[...] = jnp.asarray(rng.uniform(0.3, 1.5, shape), jnp.float32)
