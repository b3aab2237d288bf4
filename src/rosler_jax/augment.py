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


def warp(
    key: Key[Array, ""],
    x: Array,
    *,
    rotate: float | Array = 0.0,
    zoom: float | Array = 0.0,
    elastic: float | Array = 0.0,
) -> Float[Array, "..."]:
    """Rotates, scales and bends each image at random, filling with zeros; the result is float32.

    Every pixel is read, bilinearly, where a random affine map and a smooth random displacement (of
    a grid of 5 x 5 normal numbers, interpolated) send it.

    Args:
      key: typed PRNG key.
      x: images, shape ``(batch, height, width)`` or ``(batch, height, width, channels)``.
      rotate: largest angle, degrees.
      zoom: largest relative change of width and of height, each of its own.
      elastic: deviation of the displacement, pixels.

    Example:
      >>> image = jnp.ones((1, 8, 8)).at[:, :, :4].set(0.0)
      >>> bool(jnp.allclose(warp(jax.random.key(0), image), image, atol=1e-6))
      True
      >>> turned = warp(jax.random.key(0), image, rotate=90.0)
      >>> bool(jnp.allclose(turned, image, atol=0.1))
      False

    Source: Simard, Steinkraus, Platt, "Best practices for convolutional neural networks applied to
    visual document analysis", ICDAR 2003 (elastic distortion).
    """
    n, h, w = x.shape[:3]
    k_angle, k_zoom, k_elastic = jax.random.split(key, 3)
    angle = jnp.deg2rad(rotate) * jax.random.uniform(k_angle, (n, 1, 1), minval=-1.0)
    scale = 1 + zoom * jax.random.uniform(k_zoom, (2, n, 1, 1), minval=-1.0)
    coarse = elastic * jax.random.normal(k_elastic, (2, n, 5, 5))
    bend = jax.image.resize(coarse, (2, n, h, w), "cubic")
    row, column = jnp.meshgrid(*(jnp.arange(k) - (k - 1) / 2 for k in (h, w)), indexing="ij")
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    at = jnp.stack([cos * row - sin * column, sin * row + cos * column]) * scale + bend
    return _read_at(x.astype(jnp.float32), at[0] + (h - 1) / 2, at[1] + (w - 1) / 2)


def _read_at(x: Array, row: Array, column: Array) -> Array:
    """Images read at fractional places, bilinearly, zero outside."""
    read = lambda image, r, c: jax.scipy.ndimage.map_coordinates(image, [r, c], 1)  # noqa: E731
    if x.ndim == 3:
        return jax.vmap(read)(x, row, column)
    channels = jax.vmap(read, in_axes=(-1, None, None), out_axes=-1)
    return jax.vmap(channels)(x, row, column)
