"""The four MLPerf Tiny v1 reference networks in plain Flax NNX, as a user would write them.

Layer for layer as MLCommons has them in Keras (convolutions and dense layers with biases, batch
normalisation with epsilon 1e-3, padding SAME), in inference mode, except for the softmax at the end
of the three classifiers: these end with the logits. Parameters and batch statistics together are as
many as Keras counts: 78,666, 24,908, 221,794 and 269,992.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

INPUTS: dict[str, tuple[int, ...]] = {
    "resnet8": (32, 32, 3),
    "ds_cnn": (49, 10, 1),
    "mobilenet": (96, 96, 3),
    "autoencoder": (640,),
}
"""One example's shape, without the batch axis."""


def _norm(features: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(features, epsilon=1e-3, rngs=rngs)


def _conv(
    m: int, n: int, size: tuple[int, int], stride: int, rngs: nnx.Rngs, groups: int = 1
) -> nnx.Conv:
    return nnx.Conv(m, n, size, strides=(stride, stride), feature_group_count=groups, rngs=rngs)


def _separable(m: int, n: int, stride: int, rngs: nnx.Rngs) -> nnx.Sequential:
    """A depthwise 3x3 and a pointwise convolution, each normalised and rectified."""
    depthwise = _conv(m, m, (3, 3), stride, rngs, groups=m)
    pointwise = _conv(m, n, (1, 1), 1, rngs)
    return nnx.Sequential(
        depthwise, _norm(m, rngs), nnx.relu, pointwise, _norm(n, rngs), nnx.relu
    )  # fmt: skip


class _Residual(nnx.Module):
    """Two 3x3 convolutions beside the identity, or a 1x1 convolution if the shape changes."""

    def __init__(self, m: int, n: int, stride: int, rngs: nnx.Rngs) -> None:
        self.conv1 = _conv(m, n, (3, 3), stride, rngs)
        self.norm1 = _norm(n, rngs)
        self.conv2 = _conv(n, n, (3, 3), 1, rngs)
        self.norm2 = _norm(n, rngs)
        self.shortcut = None if (m, stride) == (n, 1) else _conv(m, n, (1, 1), stride, rngs)

    def __call__(self, x: Float[Array, "b h w m"]) -> Float[Array, "b h2 w2 n"]:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return nnx.relu(x + y)


def _inference(*layers: Callable[..., Array]) -> nnx.Sequential:
    model = nnx.Sequential(*layers)
    model.eval()
    return model


def resnet8(rngs: nnx.Rngs) -> nnx.Sequential:
    """Image classification, CIFAR-10: a residual network of three stacks."""
    return _inference(
        _conv(3, 16, (3, 3), 1, rngs),
        _norm(16, rngs),
        nnx.relu,
        _Residual(16, 16, 1, rngs),
        _Residual(16, 32, 2, rngs),
        _Residual(32, 64, 2, rngs),
        lambda x: nnx.avg_pool(x, (8, 8), strides=(8, 8)),
        lambda x: x.reshape(x.shape[0], -1),
        nnx.Linear(64, 10, rngs=rngs),
    )


def ds_cnn(rngs: nnx.Rngs) -> nnx.Sequential:
    """Keyword spotting: depthwise separable convolutions over 49 frames of 10 coefficients."""
    return _inference(
        _conv(1, 64, (10, 4), 2, rngs),
        _norm(64, rngs),
        nnx.relu,
        *(_separable(64, 64, 1, rngs) for _ in range(4)),
        lambda x: nnx.avg_pool(x, (24, 5), strides=(24, 5)),  # of 25 rows: as in the reference
        lambda x: x.reshape(x.shape[0], -1),
        nnx.Linear(64, 12, rngs=rngs),
    )


def mobilenet(rngs: nnx.Rngs) -> nnx.Sequential:
    """Visual wake words: MobileNetV1 of width 0.25 for 96 by 96 pixels."""
    widths = [8, 16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256]
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    return _inference(
        _conv(3, 8, (3, 3), 2, rngs),
        _norm(8, rngs),
        nnx.relu,
        *(
            _separable(m, n, stride, rngs)
            for (m, n), stride in zip(itertools.pairwise(widths), strides, strict=True)
        ),
        lambda x: jnp.mean(x, axis=(1, 2)),
        nnx.Linear(256, 2, rngs=rngs),
    )


def autoencoder(rngs: nnx.Rngs) -> nnx.Sequential:
    """Anomaly detection: a dense autoencoder of 640 features of sound."""
    widths = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128]
    hidden = [
        layer
        for m, n in itertools.pairwise(widths)
        for layer in (nnx.Linear(m, n, rngs=rngs), _norm(n, rngs), nnx.relu)
    ]
    return _inference(*hidden, nnx.Linear(128, 640, rngs=rngs))


BUILDERS: dict[str, Callable[[nnx.Rngs], nnx.Sequential]] = {
    "resnet8": resnet8,
    "ds_cnn": ds_cnn,
    "mobilenet": mobilenet,
    "autoencoder": autoencoder,
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
