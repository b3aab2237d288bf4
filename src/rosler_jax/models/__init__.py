"""A small zoo of models in plain Flax NNX: what a run trains when it is given a name.

Every entry of :data:`MODELS` is a function of keyword arguments: ``input_shape`` (of one example),
``outputs``, ``dtype`` (of the computation; parameters are float32), ``rngs``, and its own options.
It gives an ordinary dense ``nnx.Module``, which :func:`rosler_jax.sketchify` makes small; the
output layer is always called ``head``.
"""

from __future__ import annotations

from collections.abc import Callable

from flax import nnx

from rosler_jax.models.autoencoder import autoencoder
from rosler_jax.models.ds_cnn import ds_cnn
from rosler_jax.models.lenet5 import lenet5
from rosler_jax.models.lstm import lstm
from rosler_jax.models.mlp import mlp
from rosler_jax.models.mobilenet_v1 import mobilenet_v1
from rosler_jax.models.resnet import resnet8, resnet20
from rosler_jax.models.transformer import transformer
from rosler_jax.models.vgg16 import vgg16

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "mlp": mlp,
    "lenet5": lenet5,
    "vgg16": vgg16,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "ds_cnn": ds_cnn,
    "mobilenet_v1": mobilenet_v1,
    "autoencoder": autoencoder,
    "lstm": lstm,
    "transformer": transformer,
}
"""Every model by name: a new one is one file and one line here."""

__all__ = [
    "MODELS",
    "autoencoder",
    "ds_cnn",
    "lenet5",
    "lstm",
    "mlp",
    "mobilenet_v1",
    "resnet8",
    "resnet20",
    "transformer",
    "vgg16",
]
