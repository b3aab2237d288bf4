"""Residual networks for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from rosler_jax.models._layers import ConvNet, ConvNorm, dense, dropout_of, image_shape

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class _Residual(nnx.Module):
    """Two 3x3 convolutions beside the identity.

    Where the shape changes, a 1x1 convolution takes the identity's place, or the image at half the
    resolution with channels of zeros on both sides.
    """

    def __init__(
        self, m: int, n: int, stride: int, *, project: bool, dtype: Any, rngs: nnx.Rngs, **unit: Any
    ) -> None:
        self.first = ConvNorm(m, n, (3, 3), stride, dtype=dtype, rngs=rngs, **unit)
        self.second = ConvNorm(n, n, (3, 3), relu=False, dtype=dtype, rngs=rngs, **unit)
        self.shortcut = (
            nnx.Conv(m, n, (1, 1), strides=(stride, stride), dtype=dtype, rngs=rngs)
            if project and (m, stride) != (n, 1)
            else None
        )
        self.stride, self.sides = stride, ((n - m) // 2, n - m - (n - m) // 2)

    def __call__(self, x: Float[Array, "batch h w m"]) -> Float[Array, "batch h2 w2 n"]:
        y = self.second(self.first(x))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride > 1:
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), self.sides))
        return nnx.relu(x + y)


def _resnet(
    name: str, input_shape: Sequence[int], outputs: int, width: int, depth: int, dropout: float,
    *, project: bool, use_bias: bool, epsilon: float, dtype: Any, rngs: nnx.Rngs,
) -> ConvNet:  # fmt: skip
    """Three stages of ``depth`` blocks, of ``width``, twice and four times as many channels."""
    m = image_shape(name, input_shape)[2]
    unit: dict[str, Any] = {
        "use_bias": use_bias, "epsilon": epsilon, "dtype": dtype, "rngs": rngs,
    }  # fmt: skip
    stem, blocks, m = ConvNorm(m, width, (3, 3), **unit), [], width
    for stage in range(3):
        for k in range(depth):
            n, stride = width << stage, 2 if stage and not k else 1
            blocks.append(_Residual(m, n, stride, project=project, **unit))
            m = n
    head = dense(m, outputs, dtype=dtype, rngs=rngs)
    return ConvNet(stem, blocks, head, dropout_of(dropout, rngs))


def resnet8(
    *, input_shape: Sequence[int], outputs: int, width: int = 16, dropout: float = 0.0,
    dtype: Any = None, rngs: nnx.Rngs,
) -> nnx.Module:  # fmt: skip
    """ResNet-8 of MLPerf Tiny v1: three residual blocks, 78,666 numbers for CIFAR-10.

    Args:
      input_shape: ``(height, width)`` or ``(height, width, channels)``.
      outputs: number of them.
      width: channels of the first block; the others have twice and four times as many.
      dropout: rate, before the features are averaged.
      dtype: of the computation; None for that of the inputs.
      rngs: draws the initial parameters.

    Raises:
      ValueError: for examples that are no images.

    Example:
      >>> model = resnet8(input_shape=(32, 32, 3), outputs=10, width=4, rngs=nnx.Rngs(0))
      >>> model(jnp.ones((2, 32, 32, 3))).shape
      (2, 10)

    Banbury et al., MLPerf Tiny Benchmark, arXiv:2106.07597.
    """
    return _resnet(
        "resnet8", input_shape, outputs, width, 1, dropout, project=True, use_bias=True,
        epsilon=1e-3, dtype=dtype, rngs=rngs,
    )  # fmt: skip


def resnet20(
    *, input_shape: Sequence[int], outputs: int, width: int = 16, depth: int = 3,
    dropout: float = 0.0, dtype: Any = None, rngs: nnx.Rngs,
) -> nnx.Module:  # fmt: skip
    """ResNet-20 for CIFAR-10 as in its paper, with shortcuts that have no parameters.

    Args:
      input_shape: ``(height, width)`` or ``(height, width, channels)``.
      outputs: number of them.
      width: channels of the first stage; the others have twice and four times as many.
      depth: blocks a stage; 5, 7 and 9 make the paper's ResNet-32, 44 and 56.
      dropout: rate, before the features are averaged.
      dtype: of the computation; None for that of the inputs.
      rngs: draws the initial parameters.

    Raises:
      ValueError: for examples that are no images.

    Example:
      >>> def outputs(x):
      ...     return resnet20(input_shape=(32, 32, 3), outputs=10, rngs=nnx.Rngs(0))(x)
      >>> nnx.eval_shape(outputs, jnp.ones((2, 32, 32, 3))).shape
      (2, 10)

    He et al., Deep residual learning for image recognition, arXiv:1512.03385.
    """
    return _resnet(
        "resnet20", input_shape, outputs, width, depth, dropout, project=False, use_bias=False,
        epsilon=1e-5, dtype=dtype, rngs=rngs,
    )  # fmt: skip
