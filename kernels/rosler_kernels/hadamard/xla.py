"""The Walsh-Hadamard transform as products with small Hadamard matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from ..products import wide_dot, widen
from .reference import matrix

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_FACTOR_BITS = 6  # largest Kronecker factor: H_64


def transform(x: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """x H_n, n = 2^bits, by H_n = H_a (x) H_b (x) ...: n (a + b + ...) products, not n^2.

    Each step transforms the lowest bits of the index and moves them to the top; after the last all
    are back in place. Plain matrix products and transposes: XLA's CPU back end is fastest at these.
    """
    wide = widen(x)
    bits = x.shape[1].bit_length() - 1
    count = max(1, -(-bits // _FACTOR_BITS))
    for k in range(count):
        part = (bits + k) // count
        rest, order = 1 << (bits - part), 1 << part
        h = jnp.asarray(matrix(part))
        folded = wide_dot(wide.reshape(x.shape[0] * rest, order), h)
        wide = jnp.swapaxes(folded.reshape(x.shape[0], rest, order), 1, 2).reshape(x.shape)
    return wide.astype(x.dtype)
