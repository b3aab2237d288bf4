"""VGG-16 for small images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flax import nnx

from rosler_jax.models._layers import (
    ConvNorm,
    dense,
    dropout_of,
    image_shape,
    images,
    widths_of,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
"""Of each stage: the channels, in multiples of the first's, and how many convolutions."""


class _Vgg16(nnx.Module):
    def __init__(
        self, channels: int, hidden: Sequence[int], outputs: int, width: int, dropout: float,
        dtype: Any, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        stages, m = [], channels
        for multiple, depth in STAGES:
            units = []
            for _ in range(depth):
                n = multiple * width
                units.append(ConvNorm(m, n, (3, 3), epsilon=1e-5, dtype=dtype, rngs=rngs))
                m = n
            stages.append(nnx.List(units))
        self.stages, widths = nnx.List(stages), (m, *hidden)
        self.hidden = nnx.List(
            [dense(m, n, dtype=dtype, rngs=rngs) for m, n in itertools.pairwise(widths)]
        )
        self.head = dense(widths[-1], outputs, dtype=dtype, rngs=rngs)
        self.dropout = dropout_of(dropout, rngs)

    def __call__(self, x: Float[Array, "batch h w ..."]) -> Float[Array, "batch outputs"]:
        x = images(x)
        for stage in self.stages:
            for unit in stage:
                x = unit(x)
            x = nnx.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        x = x.mean(axis=(1, 2))
        for layer in self.hidden:
            x = self.dropout(nnx.relu(layer(x)))
        return self.head(x)


def vgg16(
    *, input_shape: Sequence[int], outputs: int, width: int = 64,
    hidden: int | Sequence[int] = (512,), dropout: float = 0.0, dtype: Any = None, rngs: nnx.Rngs,
) -> nnx.Module:  # fmt: skip
    """VGG-16 as it is used for images of 32 by 32: 13 normalised 3x3 convolutions, dense layers.

    The paper's three dense layers of 4,096 are for images of 224 by 224. With ``hidden=()`` the
    averaged features go to the head at once: 14,728,266 parameters for CIFAR-10.

    Args:
      input_shape: ``(height, width)`` or ``(height, width, channels)``.
      outputs: number of them.
      width: channels of the first stage; the last has eight times as many.
      hidden: widths of the dense layers before the head.
      dropout: rate, after every hidden dense layer.
      dtype: of the computation; None for that of the inputs.
      rngs: draws the initial parameters.

    Raises:
      ValueError: for examples that are no images.

    Example:
      >>> import jax.numpy as jnp
      >>> model = vgg16(input_shape=(32, 32, 3), outputs=10, width=4, rngs=nnx.Rngs(0))
      >>> model(jnp.ones((2, 32, 32, 3))).shape
      (2, 10)

    Simonyan & Zisserman, arXiv:1409.1556.
    """
    channels = image_shape("vgg16", input_shape)[2]
    return _Vgg16(channels, widths_of(hidden), outputs, width, dropout, dtype, rngs)
