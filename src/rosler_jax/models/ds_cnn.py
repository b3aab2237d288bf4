"""The depthwise separable network of MLPerf Tiny."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import nnx

from rosler_jax.models._layers import ConvNet, ConvNorm, Separable, dense, dropout_of, image_shape


def ds_cnn(
    *, input_shape: Sequence[int], outputs: int, width: int = 64, depth: int = 4,
    dropout: float = 0.0, dtype: Any = None, rngs: nnx.Rngs,
) -> nnx.Module:  # fmt: skip
    """DS-CNN of MLPerf Tiny v1, for spoken words: 24,908 numbers for 49 frames of 10 coefficients.

    Args:
      input_shape: ``(height, width)`` or ``(height, width, channels)``; time runs along the height.
      outputs: number of them.
      width: channels.
      depth: depthwise separable blocks after the first convolution, of 10 by 4.
      dropout: rate, before the features are averaged; the reference trains with 0.4 there and
        0.2 after the first convolution.
      dtype: of the computation; None for that of the inputs.
      rngs: draws the initial parameters.

    Raises:
      ValueError: for examples that are no images.

    Example:
      >>> import jax.numpy as jnp
      >>> ds_cnn(input_shape=(49, 10), outputs=12, rngs=nnx.Rngs(0))(jnp.ones((2, 49, 10))).shape
      (2, 12)

    Zhang et al., Hello Edge, arXiv:1711.07128; Banbury et al., arXiv:2106.07597.
    """
    h, w, channels = image_shape("ds_cnn", input_shape)
    return ConvNet(
        ConvNorm(channels, width, (10, 4), 2, dtype=dtype, rngs=rngs),
        [Separable(width, width, 1, dtype=dtype, rngs=rngs) for _ in range(depth)],
        dense(width, outputs, dtype=dtype, rngs=rngs),
        dropout_of(dropout, rngs),
        (max(1, h // 2), max(1, w // 2)),  # of 25 rows the reference leaves out the last
    )
