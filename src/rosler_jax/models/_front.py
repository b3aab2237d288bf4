"""A fixed projection of the inputs, before the first layer that learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flax import nnx

import rosler_kernels as rk
from rosler_jax.factors import input_scale
from rosler_jax.nn import SketchSeed
from rosler_jax.nn._families import Kind, kind_of
from rosler_jax.nn._variables import seed_words

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Front(nnx.Module):
    """Flat inputs through a sketch, ``x Psi sqrt(cols / rows)``: nothing learns, nothing is stored.

    Args:
      front: family and columns, ``"dct:144"``; families on images take theirs from the shape.
      input_shape: of one example: an image, channels last, or anything else.
      rngs: draws the seed, which ``dct`` and ``pool`` do not read.

    Raises:
      ValueError: for an unknown family, or columns that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> front = Front("dct:144", (28, 28), nnx.Rngs(0))
      >>> front(jnp.ones((2, 784))).shape
      (2, 144)
    """

    def __init__(self, front: str, input_shape: Sequence[int], rngs: nnx.Rngs) -> None:
        word, _, cols = front.rpartition(":")
        if not cols.isdecimal():
            raise ValueError(f"front {front!r}; expected FAMILY:COLUMNS, as dct:144")
        kind = kind_of(word)
        if rk.family(kind.name).separable and len(input_shape) in (2, 3):
            kind = Kind(kind.name, (input_shape[0], input_shape[1]))
        self.family, self.size = kind
        self.rows, self.cols = math.prod(input_shape), int(cols)
        self.seed = SketchSeed(seed_words(rngs.params()))
        self._sketch()

    def _sketch(self) -> rk.Sketch:
        return Kind(self.family, self.size).make(self.seed[...], self.rows, self.cols)

    def __call__(self, x: Float[Array, "batch rows"]) -> Float[Array, "batch cols"]:
        sketch = self._sketch()
        return rk.project(x, sketch) * input_scale(sketch)
