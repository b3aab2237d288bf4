"""The Walsh-Hadamard transform as one matrix product, and the matrix itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from ..products import wide_dot

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def matrix(bits: int) -> np.ndarray:
    """H of order 2^bits, float32: H[i, c] = (-1)^popcount(i & c)."""
    h = np.ones((1, 1), np.float32)
    for _ in range(bits):
        h = np.block([[h, h], [h, -h]])
    return h


def transform(x: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """x H."""
    return wide_dot(x, jnp.asarray(matrix(x.shape[1].bit_length() - 1))).astype(x.dtype)
