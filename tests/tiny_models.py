"""The four MLPerf Tiny v1 networks of the zoo, in inference mode and with random statistics."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Key

from rosler_jax.models import autoencoder, ds_cnn, mobilenet_v1, resnet8

INPUTS: dict[str, tuple[int, ...]] = {
    "resnet8": (32, 32, 3),
    "ds_cnn": (49, 10, 1),
    "mobilenet": (96, 96, 3),
    "autoencoder": (640,),
}
"""One example's shape, without the batch axis."""


def _inference(factory: Callable[..., nnx.Module], name: str, n: int, rngs: nnx.Rngs) -> nnx.Module:
    model = factory(input_shape=INPUTS[name], outputs=n, rngs=rngs)
    model.eval()
    return model


BUILDERS: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {
    "resnet8": functools.partial(_inference, resnet8, "resnet8", 10),
    "ds_cnn": functools.partial(_inference, ds_cnn, "ds_cnn", 12),
    "mobilenet": functools.partial(_inference, mobilenet_v1, "mobilenet", 2),
    "autoencoder": functools.partial(_inference, autoencoder, "autoencoder", 640),
}


def randomise(model: nnx.Module, key: Key[Array, ""]) -> None:
    """Gives every bias and batch normalisation values as training leaves them, in place.

    Fresh ones (0, and scale 1, mean 0, variance 1) would hide an error in folding.
    """
    for _, layer in nnx.iter_modules(model):
        key, *keys = jax.random.split(key, 5)
        bias = getattr(layer, "bias", None)
        if bias is not None:
            bias[...] = 0.2 * jax.random.normal(keys[0], bias.shape)
        if isinstance(layer, nnx.BatchNorm):
            shape = layer.mean.shape
            layer.scale[...] = jax.random.uniform(keys[1], shape, minval=0.5, maxval=1.5)
            layer.mean[...] = 0.3 * jax.random.normal(keys[2], shape)
            layer.var[...] = jax.random.uniform(keys[3], shape, minval=0.3, maxval=1.5)
