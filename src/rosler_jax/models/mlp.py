"""The multi-layer perceptron."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from flax import nnx

from rosler_jax.models._front import Front
from rosler_jax.models._layers import activation_of, dense, dropout_of, widths_of

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class _Mlp(nnx.Module):
    def __init__(
        self, front: Front | None, hidden: Sequence[nnx.Linear], head: nnx.Linear,
        dropout: nnx.Dropout, activation: Callable[[Array], Array],
    ) -> None:  # fmt: skip
        self.front = front
        self.hidden, self.head = nnx.List(hidden), head
        self.dropout, self.activation = dropout, activation

    def __call__(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch outputs"]:
        x = x.reshape(x.shape[0], -1)
        x = x if self.front is None else self.front(x)
        for layer in self.hidden:
            x = self.dropout(self.activation(layer(x)))
        return self.head(x)


def mlp(
    *, input_shape: Sequence[int], outputs: int, hidden: int | Sequence[int] = (1024, 1024),
    activation: str = "relu", dropout: float = 0.0, front: str | None = None, dtype: Any = None,
    rngs: nnx.Rngs,
) -> nnx.Module:  # fmt: skip
    """A multi-layer perceptron, whose layers are ``hidden.0``, ``hidden.1``, ... and ``head``.

    Args:
      input_shape: of one example, which is flattened.
      outputs: number of them.
      hidden: widths of the hidden layers.
      activation: ``"relu"``, ``"gelu"``, ``"silu"`` or ``"tanh"``.
      dropout: rate, after every hidden layer.
      front: a fixed projection of the inputs, in no bytes of a file: family and columns, as
        ``"dct:144"``, the 144 lowest cosine frequencies, or ``"pool:196"``; None for none.
      dtype: of the computation; None for that of the inputs.
      rngs: draws the initial parameters.

    Raises:
      ValueError: for an unknown activation, or a projection that the inputs do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> model = mlp(input_shape=(28, 28), outputs=10, hidden=(32, 16), rngs=nnx.Rngs(0))
      >>> model(jnp.ones((2, 28, 28))).shape
      (2, 10)
    """
    given = None if front is None else Front(front, input_shape, rngs)
    widths = (given.cols if given else math.prod(input_shape), *widths_of(hidden))
    return _Mlp(
        given,
        [dense(m, n, dtype=dtype, rngs=rngs) for m, n in itertools.pairwise(widths)],
        dense(widths[-1], outputs, dtype=dtype, rngs=rngs),
        dropout_of(dropout, rngs),
        activation_of(activation),
    )
