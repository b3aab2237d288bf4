"""A small transformer, for classes or for the next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from rosler_jax.models._layers import dense, dropout_of
from rosler_jax.models._sequence import step_shape, steps_of

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Shaped


class _Block(nnx.Module):
    """Attention and a perceptron, each of the normalised input and added to it."""

    def __init__(self, width: int, heads: int, dropout: float, dtype: Any, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, width, decode=False, keep_rngs=False, dtype=dtype, rngs=rngs
        )
        self.norm2 = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.up = dense(width, 4 * width, dtype=dtype, rngs=rngs)
        self.down = dense(4 * width, width, dtype=dtype, rngs=rngs)
        self.dropout = dropout_of(dropout, rngs)

    def __call__(self, x: Float[Array, "batch t d"], mask: Any) -> Float[Array, "batch t d"]:
        x = x + self.dropout(self.attention(self.norm1(x), mask=mask))
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norm2(x)))))


class _Transformer(nnx.Module):
    def __init__(
        self, embed: nnx.Embed | nnx.Linear, steps: int, outputs: int, *, width: int, heads: int,
        depth: int, frame: int, causal: bool, per_position: bool, dropout: float, dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        self.embed = embed
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (steps, width)))
        self.dropout = dropout_of(dropout, rngs)
        self.blocks = nnx.List([_Block(width, heads, dropout, dtype, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.head = dense(width, outputs, dtype=dtype, rngs=rngs)
        self.frame, self.causal, self.per_position = frame, causal, per_position

    def __call__(self, x: Shaped[Array, "batch time ..."]) -> Float[Array, "batch *steps outputs"]:
        x = self.embed(x if isinstance(self.embed, nnx.Embed) else steps_of(x, self.frame))
        steps = x.shape[1]
        x = self.dropout(x + self.position[:steps].astype(x.dtype))
        mask = jnp.tril(jnp.ones((steps, steps), bool)) if self.causal else None
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        if not self.per_position:
            x = x[:, -1] if self.causal else x.mean(axis=1)
        return self.head(x)


def transformer(
    *, input_shape: Sequence[int], outputs: int, width: int = 64, heads: int = 4, depth: int = 2,
    vocabulary: int | None = None, frame: int = 1, causal: bool = False,
    per_position: bool = False, dropout: float = 0.0, dtype: Any = None, rngs: nnx.Rngs,
) -> nnx.Module:  # fmt: skip
    """A pre-norm transformer with learnt positions, and a head on the mean over the steps.

    Args:
      input_shape: ``(time, features)``; ``(time,)`` for single numbers, or tokens (int32).
      outputs: number of them.
      width: of the steps within; the perceptrons of the blocks are four times as wide.
      heads: of the attention, a divisor of the width.
      depth: blocks.
      vocabulary: number of tokens; None if the inputs are floats.
      frame: so many consecutive steps are taken as one: 400 numbers in 20 steps of 20.
      causal: a step sees itself and those before; the head then takes the last step.
      per_position: an output for every step, ``(batch, steps, outputs)``; with ``causal`` and
        ``outputs=vocabulary`` this predicts the next token.
      dropout: rate, of the embedded steps and of what is added to them.
      dtype: of the computation; None for that of the inputs.
      rngs: draws the initial parameters.

    Raises:
      ValueError: for examples that are no sequences, a frame that leaves a rest, or heads that
        do not divide the width.

    Example:
      >>> model = transformer(
      ...     input_shape=(12,), vocabulary=50, outputs=50, causal=True, per_position=True,
      ...     width=16, rngs=nnx.Rngs(0),
      ... )
      >>> model(jnp.zeros((2, 12), jnp.int32)).shape
      (2, 12, 50)

    Vaswani et al., arXiv:1706.03762; Xiong et al., On layer normalization in the transformer
    architecture, arXiv:2002.04745.
    """  # fmt: skip
    steps, m = step_shape("transformer", input_shape, vocabulary, frame)
    if heads < 1 or width % heads:
        raise ValueError(f"heads={heads} do not divide width={width}; pass a divisor")
    embed: nnx.Embed | nnx.Linear = (
        nnx.Embed(vocabulary, width, dtype=dtype, rngs=rngs)
        if vocabulary
        else dense(m, width, dtype=dtype, rngs=rngs)
    )
    return _Transformer(
        embed, steps, outputs, width=width, heads=heads, depth=depth, frame=frame, causal=causal,
        per_position=per_position, dropout=dropout, dtype=dtype, rngs=rngs,
    )  # fmt: skip
