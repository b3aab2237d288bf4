"""What a sequence may look like: steps of features, single numbers, or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Shaped


def step_shape(
    model: str, input_shape: Sequence[int], vocabulary: int | None, frame: int
) -> tuple[int, int]:
    """How many steps an example has, and how many numbers a step (none that are tokens).

    Raises:
      ValueError: for what is no sequence, or is not cut into frames without a rest.

    Example:
      >>> step_shape("lstm", (400,), None, 20), step_shape("lstm", (12,), 50, 1)
      ((20, 20), (12, 0))
    """
    shape = tuple(input_shape)
    if len(shape) not in (1, 2) or min(shape) < 1 or (vocabulary and len(shape) != 1):
        wanted = "(time,) with a vocabulary" if vocabulary else "(time, features) or (time,)"
        raise ValueError(f"{model} takes sequences, {wanted}, not examples of shape {shape}")
    if frame < 1 or shape[0] % frame or (vocabulary and frame > 1):
        rest = "tokens are not cut into frames" if vocabulary else f"{shape[0]} steps do not fit"
        raise ValueError(f"{model} with frame={frame}: {rest}; pass 1, or a divisor of the steps")
    return shape[0] // frame, 0 if vocabulary else frame * (shape[1] if len(shape) == 2 else 1)


def steps_of(x: Shaped[Array, "batch time ..."], frame: int) -> Float[Array, "batch steps m"]:
    """Steps of ``frame`` consecutive ones each, flattened.

    Raises:
      ValueError: for whole numbers, which are tokens.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"steps of {x.dtype}; pass floats, or vocabulary=... where they are tokens"
        )
    return x.reshape(x.shape[0], x.shape[1] // frame, -1)
