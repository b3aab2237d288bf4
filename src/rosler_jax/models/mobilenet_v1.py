"""MobileNetV1."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from flax import nnx

from rosler_jax.models._layers import ConvNet, ConvNorm, Separable, dense, dropout_of, image_shape

CHANNELS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


def mobilenet_v1(
    *, input_shape: Sequence[int], outputs: int, width: float = 0.25, dropout: float = 0.0,
    dtype: Any = None, rngs: nnx.Rngs,
) -> nnx.Module:  # fmt: skip
    """MobileNetV1; at a width of 0.25 that of MLPerf Tiny v1, 221,794 numbers for two classes.

    Args:
      input_shape: ``(height, width)`` or ``(height, width, channels)``; 96 by 96 by 3 there.
      outputs: number of them.
      width: channels, as a multiple of those of the paper.
      dropout: rate, before the features are averaged.
      dtype: of the computation; None for that of the inputs.
      rngs: draws the initial parameters.

    Raises:
      ValueError: for examples that are no images, or a width without channels.

    Example:
      >>> import jax.numpy as jnp
      >>> def outputs(x):
      ...     return mobilenet_v1(input_shape=(32, 32, 3), outputs=2, rngs=nnx.Rngs(0))(x)
      >>> nnx.eval_shape(outputs, jnp.ones((2, 32, 32, 3))).shape
      (2, 2)

    Howard et al., MobileNets, arXiv:1704.04861; Banbury et al., arXiv:2106.07597.
    """
    channels = image_shape("mobilenet_v1", input_shape)[2]
    widths = [int(n * width) for n in CHANNELS]
    if widths[0] < 1:
        raise ValueError(f"width {width} leaves no channel; pass at least {1 / CHANNELS[0]}")
    return ConvNet(
        ConvNorm(channels, widths[0], (3, 3), 2, dtype=dtype, rngs=rngs),
        [
            Separable(m, n, stride, dtype=dtype, rngs=rngs)
            for (m, n), stride in zip(itertools.pairwise(widths), STRIDES, strict=True)
        ],
        dense(widths[-1], outputs, dtype=dtype, rngs=rngs),
        dropout_of(dropout, rngs),
    )
