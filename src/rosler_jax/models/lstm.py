"""Long short-term memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from rosler_jax.models._layers import dense, dropout_of, widths_of
from rosler_jax.models._sequence import step_shape, steps_of

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Shaped


class _Lstm(nnx.Module):
    def __init__(
        self, embed: nnx.Embed | None, widths: Sequence[int], outputs: int, *, frame: int,
        per_position: bool, dropout: float, dtype: Any, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        self.embed, self.widths = embed, tuple(widths[1:])
        cells = [
            nnx.OptimizedLSTMCell(m, n, dtype=dtype, rngs=rngs)
            for m, n in itertools.pairwise(widths)
        ]
        self.layers = nnx.List([nnx.RNN(cell, rngs=False) for cell in cells])
        self.dropout = dropout_of(dropout, rngs)
        self.head = dense(widths[-1], outputs, dtype=dtype, rngs=rngs)
        self.frame, self.per_position, self.dtype = frame, per_position, dtype

    def __call__(self, x: Shaped[Array, "batch time ..."]) -> Float[Array, "batch *steps outputs"]:
        x = steps_of(x, self.frame) if self.embed is None else self.embed(x)
        for layer, width in zip(self.layers, self.widths, strict=True):
            start = jnp.zeros((x.shape[0], width), self.dtype or x.dtype)
            x = self.dropout(layer(x, initial_carry=(start, start)))
        return self.head(x if self.per_position else x[:, -1])


def lstm(
    *, input_shape: Sequence[int], outputs: int, hidden: int | Sequence[int] = (64,),
    vocabulary: int | None = None, frame: int = 1, per_position: bool = False,
    dropout: float = 0.0, dtype: Any = None, rngs: nnx.Rngs,
) -> nnx.Module:  # fmt: skip
    r"""Layers of long short-term memory, and a head on the last step.

    ``i, f, o = sigma(W x + V h + b)``, ``g = tanh(...)``, ``c <- f c + i g``, ``h <- o tanh(c)``.

    Args:
      input_shape: ``(time, features)``; ``(time,)`` for single numbers, or tokens (int32).
      outputs: number of them.
      hidden: widths of the layers.
      vocabulary: number of tokens; None if the inputs are floats. Tokens are embedded in vectors
        of the first layer's width.
      frame: so many consecutive steps are taken as one: 400 numbers in 20 steps of 20.
      per_position: an output for every step, ``(batch, steps, outputs)``, as for the next token.
      dropout: rate, after every layer.
      dtype: of the computation; None for that of the inputs.
      rngs: draws the initial parameters.

    Raises:
      ValueError: for examples that are no sequences, or a frame that leaves a rest.

    Example:
      >>> model = lstm(input_shape=(400,), frame=20, outputs=10, hidden=16, rngs=nnx.Rngs(0))
      >>> model(jnp.ones((2, 400))).shape
      (2, 10)

    Hochreiter & Schmidhuber, Neural Computation 9(8), 1997.
    """
    widths = widths_of(hidden)
    _, m = step_shape("lstm", input_shape, vocabulary, frame)
    embed = nnx.Embed(vocabulary, widths[0], dtype=dtype, rngs=rngs) if vocabulary else None
    return _Lstm(
        embed, (m or widths[0], *widths), outputs, frame=frame, per_position=per_position,
        dropout=dropout, dtype=dtype, rngs=rngs,
    )  # fmt: skip
