"""The dense autoencoder of MLPerf Tiny."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flax import nnx

from rosler_jax.models._layers import dense, norm, widths_of

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class _Autoencoder(nnx.Module):
    def __init__(self, widths: Sequence[int], outputs: int, dtype: Any, rngs: nnx.Rngs) -> None:
        pairs = list(itertools.pairwise(widths))
        self.hidden = nnx.List([dense(m, n, dtype=dtype, rngs=rngs) for m, n in pairs])
        self.norms = nnx.List([norm(n, epsilon=1e-3, dtype=dtype, rngs=rngs) for n in widths[1:]])
        self.head = dense(widths[-1], outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch outputs"]:
        x = x.reshape(x.shape[0], -1)
        for layer, normed in zip(self.hidden, self.norms, strict=True):
            x = nnx.relu(normed(layer(x)))
        return self.head(x)


def autoencoder(
    *, input_shape: Sequence[int], outputs: int | None = None,
    hidden: int | Sequence[int] = (128, 128, 128, 128), code: int = 8, dtype: Any = None,
    rngs: nnx.Rngs,
) -> nnx.Module:  # fmt: skip
    """The dense autoencoder of MLPerf Tiny v1, for anomalies in sound: 640 features, a code of 8.

    Args:
      input_shape: of one example, which is flattened.
      outputs: as many as inputs, or None.
      hidden: widths from the input to the code; the way back has them in reverse.
      code: width of the narrowest layer.
      dtype: of the computation; None for that of the inputs.
      rngs: draws the initial parameters.

    Returns:
      A model that gives the flattened example again, ``(batch, inputs)``.

    Raises:
      ValueError: for another number of outputs than of inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> autoencoder(input_shape=(640,), rngs=nnx.Rngs(0))(jnp.ones((2, 640))).shape
      (2, 640)

    Banbury et al., MLPerf Tiny Benchmark, arXiv:2106.07597.
    """
    inputs, widths = math.prod(input_shape), widths_of(hidden)
    if outputs not in (None, inputs):
        raise ValueError(
            f"autoencoder gives its input again, {inputs} numbers, not outputs={outputs}; leave "
            "outputs out, or take mlp"
        )
    return _Autoencoder((inputs, *widths, code, *reversed(widths)), inputs, dtype, rngs)
