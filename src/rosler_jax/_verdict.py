"""Complaints from inside compiled programs: an error where one can be raised, and NaN where not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


def one_or_nan(holds: Bool[Array, "..."]) -> Float[Array, "..."]:
    """1 where something holds, else NaN: as 0 / 0, so that ``jax_debug_nans`` stops here.

    Example:
      >>> one_or_nan(jnp.array([True, False])).tolist()
      [1.0, nan]
    """
    one = holds.astype(jnp.float32)
    return one / one


def verdict(claims: Iterable[tuple[str, Bool[Array, ""]]]) -> Float[Array, ""]:
    """Returns 1 if all claims hold; else raises, or under a trace returns NaN.

    Args:
      claims: pairs of the message for the case that it does not hold, and whether it does.

    Raises:
      ValueError: with the message of the first claim that is known not to hold.

    Example:
      >>> float(verdict([("two is not two", jnp.equal(2, 2))]))
      1.0
    """
    good = jnp.asarray(True)
    for message, holds in claims:
        if not isinstance(holds, jax.core.Tracer) and not bool(holds):
            raise ValueError(message)
        good = good & holds
    return one_or_nan(good)
