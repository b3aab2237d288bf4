"""Cheap uniform words for rounding and for noise: a Weyl sequence with a random start."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Key, UInt32

_GOLDEN = np.uint32(2654435769)  # 2**32 over the golden ratio


def words(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
    """Multiples of the golden ratio from a random start, modulo 1, in units of ``2^-32``.

    Each is uniform over keys, and those of one key are spread evenly; a hash for each would take
    longer than what they are for.

    Example:
      >>> words(jax.random.key(0), (2, 3)).shape
      (2, 3)
    """
    index = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return index * _GOLDEN + jax.random.bits(key, (), jnp.uint32)
