"""Parts that several models share: layers as the zoo sets them, checks of an example's shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from rosler_jax.nn._thin import linear_dot_general

if TYPE_CHECKING:
    from jaxtyping import Array, Float

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nnx.relu, "gelu": nnx.gelu, "silu": nnx.silu, "tanh": jnp.tanh,
}  # fmt: skip


def activation_of(name: str) -> Callable[[Array], Array]:
    """The function of that name.

    Raises:
      ValueError: for an unknown name.

    Example:
      >>> float(activation_of("relu")(jnp.array(-1.0)))
      0.0
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; pass one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def widths_of(hidden: int | Sequence[int]) -> tuple[int, ...]:
    """Widths of layers, given as one number or several.

    Example:
      >>> widths_of(64), widths_of([32, 16])
      ((64,), (32, 16))
    """
    return (hidden,) if isinstance(hidden, int) else tuple(hidden)


def image_shape(model: str, input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Height, width and channels of an image; one without channels has one.

    Raises:
      ValueError: for what is no image.

    Example:
      >>> image_shape("lenet5", (28, 28)), image_shape("lenet5", (32, 32, 3))
      ((28, 28, 1), (32, 32, 3))
    """
    shape = (*input_shape, 1) if len(input_shape) == 2 else tuple(input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f"{model} takes images, (height, width) or (height, width, channels); an example of "
            f"shape {tuple(input_shape)} is none: reshape it, or take mlp"
        )
    return shape[0], shape[1], shape[2]


def images(x: Float[Array, "batch h w ..."]) -> Float[Array, "batch h w channels"]:
    """The same images, with an axis of channels."""
    return x[..., None] if x.ndim == 3 else x


def dense(m: int, n: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer; a thin one (a head) has its gradient in the order that a CPU likes."""
    return nnx.Linear(m, n, dtype=dtype, dot_general=linear_dot_general, rngs=rngs)


def dropout_of(rate: float, rngs: nnx.Rngs) -> nnx.Dropout:
    """Dropout, which holds a stream of keys only if there is something to drop."""
    return nnx.Dropout(rate, rngs=rngs if rate else None)


def norm(n: int, *, epsilon: float, dtype: Any, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch normalisation; its running statistics settle within some 50 steps of training."""
    return nnx.BatchNorm(n, momentum=0.9, epsilon=epsilon, dtype=dtype, rngs=rngs)


class ConvNorm(nnx.Module):
    """A convolution (padding SAME), batch normalisation, and relu unless told otherwise."""

    def __init__(
        self, m: int, n: int, size: tuple[int, int], stride: int = 1, *, groups: int = 1,
        use_bias: bool = True, relu: bool = True, epsilon: float = 1e-3, dtype: Any, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        self.conv = nnx.Conv(
            m, n, size, strides=(stride, stride), feature_group_count=groups, use_bias=use_bias,
            dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.norm = norm(n, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.relu = relu

    def __call__(self, x: Float[Array, "batch h w m"]) -> Float[Array, "batch h2 w2 n"]:
        x = self.norm(self.conv(x))
        return nnx.relu(x) if self.relu else x


class Separable(nnx.Module):
    """A depthwise 3x3 and a pointwise convolution, each normalised and rectified."""

    def __init__(self, m: int, n: int, stride: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        self.depthwise = ConvNorm(m, m, (3, 3), stride, groups=m, dtype=dtype, rngs=rngs)
        self.pointwise = ConvNorm(m, n, (1, 1), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w m"]) -> Float[Array, "batch h2 w2 n"]:
        return self.pointwise(self.depthwise(x))


class ConvNet(nnx.Module):
    """A first convolution, blocks, one average over the map, and a dense head.

    Args:
      stem, blocks, head: of the network.
      dropout: of the features, before the average.
      window: of the average; None for the whole map.
    """

    def __init__(
        self, stem: ConvNorm, blocks: Iterable[nnx.Module], head: nnx.Linear, dropout: nnx.Dropout,
        window: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        self.stem, self.blocks, self.head = stem, nnx.List(blocks), head
        self.dropout, self.window = dropout, window

    def __call__(self, x: Float[Array, "batch h w ..."]) -> Float[Array, "batch outputs"]:
        x = self.stem(images(x))
        for block in self.blocks:
            x = block(x)
        x = self.dropout(x)
        if self.window is None:
            return self.head(x.mean(axis=(1, 2)))
        x = nnx.avg_pool(x, self.window, strides=x.shape[1:3])  # so large that one window fits
        return self.head(x.reshape(x.shape[0], -1))
