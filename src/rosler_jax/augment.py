"""Simple augmentation of a batch of images, pure and on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key


def shift(key: Key[Array, ""], x: Array, pixels: int) -> Array:
    """Shifts each image by up to ``pixels`` rows and columns, filling with zeros.

    Args:
      key: typed PRNG key.
      x: images, shape ``(batch, height, width)`` or ``(batch, height, width, channels)``.
      pixels: largest shift.

    Example:
      >>> shift(jax.random.key(0), jnp.ones((2, 4, 4)), 1).shape
      (2, 4, 4)
    """
    pad = [(0, 0)] + [(pixels, pixels)] * 2 + [(0, 0)] * (x.ndim - 3)
    padded = jnp.pad(x, pad)
    corner = jax.random.randint(key, (x.shape[0], 2), 0, 2 * pixels + 1)

    def crop(image: Array, start: Array) -> Array:
        where = (start[0], start[1], *([jnp.zeros((), start.dtype)] * (image.ndim - 2)))
        return jax.lax.dynamic_slice(image, where, x.shape[1:])

    return jax.vmap(crop)(padded, corner)


def flip(key: Key[Array, ""], x: Array) -> Array:
    """Mirrors each image left to right with probability one half.

    Example:
      >>> flip(jax.random.key(0), jnp.ones((2, 4, 4))).shape
      (2, 4, 4)
    """
    mirrored = jax.random.bernoulli(key, 0.5, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(mirrored, jnp.flip(x, axis=2), x)


def noise(key: Key[Array, ""], x: Array, stddev: float | Array) -> Float[Array, "..."]:
    """Adds Gaussian noise, of one deviation or one for each feature; the result is float32.

    Example:
      >>> noise(jax.random.key(0), jnp.zeros((2, 3), jnp.uint8), 1.0).dtype
      dtype('float32')
    """
    unit = jnp.broadcast_to(jnp.asarray(stddev, jnp.float32), x.shape)
    return x.astype(jnp.float32) + unit * jax.random.normal(key, x.shape)
