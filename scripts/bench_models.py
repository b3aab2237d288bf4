"""Models of benchmarks that are not in the zoo; ``--model scripts/bench_models.py:NAME``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import nnx


class _SmallConv(nnx.Module):
    """Pool, convolution, pool, convolution, pool, head."""

    def __init__(
        self, inputs: int, channels: Sequence[int], features: int, outputs: int, rngs: Any
    ):
        first, second = channels
        self.conv1 = nnx.Conv(inputs, first, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(first, second, (3, 3), rngs=rngs)
        self.head = nnx.Linear(features * second, outputs, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.avg_pool(x[..., None] if x.ndim == 3 else x, (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        return self.head(x.reshape(len(x), -1))


def small_conv(
    *, input_shape: Sequence[int], outputs: int, channels: Sequence[int] = (12, 24), rngs: nnx.Rngs
) -> nnx.Module:
    """A small convolutional net of images, halved three times on its way to the head."""
    height, width, *rest = input_shape
    features = (height // 8) * (width // 8)
    return _SmallConv(rest[0] if rest else 1, channels, features, outputs, rngs)


class _StridedConv(nnx.Module):
    """A convolution of stride 2, two of stride 1 with a pool behind each, head."""

    def __init__(
        self, inputs: int, channels: Sequence[int], features: int, outputs: int, rngs: Any
    ):
        first, second, third = channels
        self.conv1 = nnx.Conv(inputs, first, (5, 5), strides=(2, 2), rngs=rngs)
        self.conv2 = nnx.Conv(first, second, (3, 3), rngs=rngs)
        self.conv3 = nnx.Conv(second, third, (3, 3), rngs=rngs)
        self.head = nnx.Linear(features * third, outputs, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.conv1(x[..., None] if x.ndim == 3 else x))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.conv3(x)), (2, 2), (2, 2))
        return self.head(x.reshape(len(x), -1))


def strided_conv(
    *, input_shape: Sequence[int], outputs: int, channels: Sequence[int] = (8, 16, 16),
    rngs: nnx.Rngs,
) -> nnx.Module:  # fmt: skip
    """Three convolutions of images that see every pixel."""
    height, width, *rest = input_shape
    features = (-(-height // 2) // 4) * (-(-width // 2) // 4)
    return _StridedConv(rest[0] if rest else 1, channels, features, outputs, rngs)
