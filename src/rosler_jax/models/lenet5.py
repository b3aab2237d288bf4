"""LeNet-5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flax import nnx

from rosler_jax.models._layers import activation_of, dense, image_shape, images

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float

SIDE = 32  # of the images in the paper, whose 28 rows of digits lie in a frame of zeros


class _LeNet5(nnx.Module):
    def __init__(
        self, shape: tuple[int, int, int], outputs: int, activation: Callable[[Array], Array],
        dtype: Any, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        frame = [max(0, SIDE - side) for side in shape[:2]]
        padding = [(n // 2, n - n // 2) for n in frame]
        self.conv1 = nnx.Conv(shape[2], 6, (5, 5), padding=padding, dtype=dtype, rngs=rngs)
        self.conv2 = nnx.Conv(6, 16, (5, 5), padding="VALID", dtype=dtype, rngs=rngs)
        sides = [((max(SIDE, side) - 4) // 2 - 4) // 2 for side in shape[:2]]
        self.fc1 = dense(16 * math.prod(sides), 120, dtype=dtype, rngs=rngs)
        self.fc2 = dense(120, 84, dtype=dtype, rngs=rngs)
        self.head = dense(84, outputs, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "batch h w ..."]) -> Float[Array, "batch outputs"]:
        x = images(x)
        for conv in (self.conv1, self.conv2):
            x = nnx.max_pool(self.activation(conv(x)), (2, 2), strides=(2, 2))
        x = self.activation(self.fc1(x.reshape(x.shape[0], -1)))
        return self.head(self.activation(self.fc2(x)))


def lenet5(
    *, input_shape: Sequence[int], outputs: int, activation: str = "relu", dtype: Any = None,
    rngs: nnx.Rngs,
) -> nnx.Module:  # fmt: skip
    """LeNet-5 as it is trained today: with relu and maxima, and a softmax for its last layer.

    Two 5x5 convolutions of 6 and 16 channels, and dense layers of 120 and 84; 61,706 parameters
    for digits. A smaller image lies in a frame of zeros of 32 by 32, as in the paper.

    Args:
      input_shape: ``(height, width)`` or ``(height, width, channels)``.
      outputs: number of them.
      activation: ``"relu"``, ``"gelu"``, ``"silu"``, or ``"tanh"`` as in the paper.
      dtype: of the computation; None for that of the inputs.
      rngs: draws the initial parameters.

    Raises:
      ValueError: for examples that are no images.

    Example:
      >>> import jax.numpy as jnp
      >>> lenet5(input_shape=(28, 28), outputs=10, rngs=nnx.Rngs(0))(jnp.ones((2, 28, 28))).shape
      (2, 10)

    LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE 86, 1998.
    """
    shape = image_shape("lenet5", input_shape)
    return _LeNet5(shape, outputs, activation_of(activation), dtype, rngs)
