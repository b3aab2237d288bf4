"""Options: those on which shapes depend, and seeds."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Key, UInt32

F = TypeVar("F", bound=Callable[..., Any])


def static_int(name: str, value: Any, least: int) -> int:
    """Returns ``value`` as a Python int of at least ``least``.

    Raises:
      TypeError: if it is no int. A ``jax.Array`` is refused even when it is concrete: whether it is
        would depend on whether the caller has jitted.
      ValueError: if it is below ``least``.
    """
    if isinstance(value, (bool, jax.Array)) or not hasattr(value, "__index__"):
        raise TypeError(
            f"{name} must be a Python int, got {value!r} ({type(value).__name__}); "
            "under optax.inject_hyperparams name it in static_args"
        )
    value = operator.index(value)
    if value < least:
        raise ValueError(f"{name} {value} is too small; pass {name}>={least}")
    return value


def whole_number(name: str, value: Any, least: int) -> Any:
    """Returns ``value``, a whole number, which may be traced and then is not checked.

    Raises:
      TypeError, ValueError: as :func:`static_int`, or for an array that is no integer scalar.
    """
    if isinstance(value, jax.Array):
        if value.ndim or not jnp.issubdtype(value.dtype, jnp.integer):
            shape = f"{value.dtype}{list(value.shape)}"
            raise TypeError(f"{name} must be an integer scalar, got {shape}")
        return value
    return static_int(name, value, least)


def one_of(name: str, value: Any, known: Sequence[str]) -> str:
    """Returns ``value``, one of the names that an option knows.

    Raises:
      ValueError: if it is none of them.
    """
    if value not in known:
        raise ValueError(f"{name} {value!r} is unknown; pass one of {', '.join(known)}")
    return str(value)


def with_options_of(inner: Callable[..., Any]) -> Callable[[F], F]:
    """Decorates a function that hands ``**options`` on: its signature names them.

    ``optax.inject_hyperparams`` goes by signatures, as ``help`` does.
    """

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = {p.name for p in kept}
        handed = inspect.signature(inner).parameters.values()
        more = [p for p in handed if p.kind is p.KEYWORD_ONLY and p.name not in names]
        function.__signature__ = own.replace(parameters=[*kept, *more])  # type: ignore[attr-defined]
        return function

    return decorate


def key_words(seed: int | Key[Array, ""] | UInt32[Array, "2"]) -> UInt32[Array, "2"]:
    """Two seed words: plain numbers, so that the state can be saved, compared and vmapped."""
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return jax.random.bits(seed, (2,), jnp.uint32)
    if jnp.shape(seed) == (2,):
        return jnp.asarray(seed, jnp.uint32)
    if jnp.ndim(seed):
        raise ValueError(
            f"seed has shape {jnp.shape(seed)}; pass an int, a PRNG key or two uint32 words"
        )
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def typed_key(words: UInt32[Array, "2"]) -> Key[Array, ""]:
    """The PRNG key of two seed words."""
    return jax.random.wrap_key_data(words, impl="threefry2x32")
