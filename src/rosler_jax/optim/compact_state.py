"""An optimiser's state in 16 or 8 bits between its updates, rounded so that averages stay right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rosler_jax import _weyl
from rosler_jax.optim._checks import key_words, typed_key

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int8, Key, UInt32

_LEVELS = 127
OCTAVE = 5
"""Magnitudes an octave, each 1.15 times the last: 8 bits span 25 octaves below the largest number
of a row. Of squares, that tells gradients apart that differ by 6,000."""
_LEAST_EXPONENT = -100  # the smallest magnitude is then a normal float32
_NAN = -128  # exponent of a row in which something is not finite


class Coded(NamedTuple):
    """An array in 8 bits a number: ``sign(code) 2^(exponent + (|code| - 127) / 5)``."""

    codes: Int8[Array, "*shape"]
    exponent: Int8[Array, "*rows 1"]  # of the smallest power of two that no entry of a row exceeds


class CompactState(NamedTuple):
    """State of :func:`compact_state`."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=jnp.int32; updates done so far
    key: jax.Array  # shape=(2,), dtype=jnp.uint32; seed of the rounding, constant
    inner_state: Any


def compact_state(
    inner: optax.GradientTransformation,
    dtype: Any,
    *,
    seed: int | Key[Array, ""] | UInt32[Array, "2"] = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Holds the state of any optimiser in fewer bits between updates.

    Every floating array of ``inner``'s state that has an axis is rounded after an update and
    widened before the next. Rounding is stochastic, ``E[round(v)] = v``: a moving average whose
    steps are smaller than the distance of two numbers, as that of Adam's squares in bfloat16, still
    goes where it should, in expectation.

    ``bfloat16`` takes 2 bytes a number. ``int8`` takes one, and one a row: along the last axis
    magnitudes are powers of ``2^(1/5)`` times the row's largest, rounded up to a power of two.
    Numbers more than 25 octaves below become the smallest magnitude, and none becomes zero: a
    square that did would make a step without bounds. A row that is not finite becomes NaN.

    Args:
      inner: any optax transformation.
      dtype: ``bfloat16`` or ``int8``.
      seed: of the rounding: an int, a PRNG key or two uint32 words. May be traced.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      ValueError: for another dtype.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> params = {"kernel": jnp.ones((64, 64))}
      >>> def size(tx):
      ...     leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
      ...     return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
      >>> size(optax.adam(1e-3)), size(compact_state(optax.adam(1e-3), jnp.int8))
      (32772, 8336)

    Source: states of 8 bits by rows are those of Dettmers et al., arXiv:2110.02861, with another
    table of numbers; stochastic rounding of Gupta et al., arXiv:1502.02551.
    """
    dtype = check_dtype(dtype)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> CompactState:
        key = key_words(seed)
        coded = encode(inner.init(params), dtype, typed_key(key))
        return CompactState(jnp.zeros([], jnp.int32), key, coded)

    def update_fn(
        updates: optax.Updates,
        state: CompactState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, CompactState]:
        held = decode(state.inner_state)
        found, new = inner.update(updates, held, params, **extra_args)
        updates = as_dtypes_of(found, updates)
        count = optax.safe_increment(state.count)
        coded = encode(new, dtype, jax.random.fold_in(typed_key(state.key), count))
        return updates, CompactState(count, state.key, coded)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def check_dtype(dtype: Any) -> jnp.dtype:
    """The dtype of a state.

    Raises:
      ValueError: if it is neither bfloat16 nor int8.
    """
    known = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.int8))
    if (found := jnp.dtype(dtype)) not in known:
        raise ValueError(f"a state cannot be held in {found}; pass bfloat16 or int8")
    return found


def encode(state: Any, dtype: jnp.dtype, key: Key[Array, ""]) -> Any:
    """A state with its floating arrays rounded; those without axes stay."""
    leaves, treedef = jax.tree.flatten(state)
    rounded = _to_log8 if dtype == jnp.dtype(jnp.int8) else _to_bfloat16
    coded = [
        rounded(leaf, jax.random.fold_in(key, i)) if _is_held(leaf) else leaf
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, coded)


def decode(state: Any) -> Any:
    """The state, its floating arrays in float32."""
    return jax.tree.map(_widened, state, is_leaf=lambda node: isinstance(node, Coded))


def as_dtypes_of(updates: Any, gradients: Any) -> Any:
    """Updates in the dtypes of the gradients: moments in float32 would make float32 of all."""
    return jax.tree.map(lambda u, g: u.astype(g.dtype), updates, gradients)


def _is_held(leaf: Any) -> bool:
    return jnp.ndim(leaf) > 0 and jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size > 0


def _widened(leaf: Any) -> Any:
    if isinstance(leaf, Coded):
        return _from_log8(leaf)
    return leaf.astype(jnp.float32) if _is_held(leaf) else leaf


def _to_bfloat16(x: Float[Array, "*shape"], key: Key[Array, ""]) -> Array:
    """Up with the probability of what is cut off, since 16 random bits carry over."""
    words = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    noise = _weyl.words(key, x.shape) >> 16
    carried = jax.lax.bitcast_convert_type((words + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    # Of infinity and NaN the carry would make others.
    return jnp.where(jnp.isfinite(x), carried, x.astype(jnp.float32)).astype(jnp.bfloat16)


def _to_log8(x: Float[Array, "*shape"], key: Key[Array, ""]) -> Coded:
    size = jnp.abs(x.astype(jnp.float32))
    top = jnp.max(size, axis=-1, keepdims=True)
    exponent = jnp.clip(jnp.ceil(jnp.log2(top)), _LEAST_EXPONENT, 127.0)
    level = _LEVELS + (jnp.log2(size) - exponent) * OCTAVE
    low = jnp.clip(jnp.floor(level), 1, _LEVELS - 1)
    below, above = _magnitude(low, exponent), _magnitude(low + 1, exponent)
    uniform = (_weyl.words(key, x.shape) >> 8).astype(jnp.float32) * np.float32(2.0**-24)
    up = uniform < (size - below) / (above - below)
    code = jnp.where(size > 0, (low + up) * jnp.sign(x), 0.0)
    exponent = jnp.where(jnp.isfinite(top), exponent, _NAN)
    return Coded(code.astype(jnp.int8), exponent.astype(jnp.int8))


def _from_log8(coded: Coded) -> Float[Array, "*shape"]:
    code, exponent = coded.codes.astype(jnp.float32), coded.exponent.astype(jnp.float32)
    x = jnp.sign(code) * _magnitude(jnp.abs(code), exponent)
    return jnp.where(exponent == _NAN, jnp.nan, x)


def _magnitude(level: Array, exponent: Array) -> Array:
    return jnp.exp2(exponent + (level - _LEVELS) / OCTAVE)
