"""The subspaces of one update of an optimiser in sketch space."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import jax
import jax.numpy as jnp

from rosler_jax.optim import _bases
from rosler_jax.optim._checks import typed_key

if TYPE_CHECKING:
    from rosler_jax.optim._bases import Weight

    Array = jax.Array
    Arrays = dict[str, Array]


class Subspaces(NamedTuple):
    """The bases of an update, and how moments are taken to them from those of the last."""

    bases: Arrays
    turns: Callable[[], Arrays]  # by weight: B_old^T B_new / lost
    columns: Arrays


def _every(options: Any) -> Any:
    """Updates between refreshes."""
    return 2**31 - 1 if options.refresh is None else options.refresh


def random(state: Any, gradients: Arrays, weights: list[Weight], options: Any) -> Subspaces:
    """Of a random family: functions of the key, the weight and how often there was a refresh."""
    key, epoch = typed_key(state.key), state.count // _every(options)

    def bases(epoch: Array, dtype: Any = None) -> Arrays:
        def one(w: Weight) -> Array:
            # By its name, which masking and partitioning leave alone.
            seed = jax.random.fold_in(jax.random.fold_in(key, crc32(w.name.encode())), epoch)
            wanted = dtype or gradients[w.name].dtype
            return _bases.random(options.family, seed, w.lost, options.rank, wanted)

        return {w.name: one(w) for w in weights}

    def turns() -> Arrays:
        old, new = bases(epoch - 1, jnp.float32), bases(epoch, jnp.float32)
        return {w.name: old[w.name].T @ new[w.name] / w.lost for w in weights}

    return Subspaces(bases(epoch), turns, {})


def selected(state: Any, gradients: Arrays, weights: list[Weight], options: Any) -> Subspaces:
    """Of cosines, chosen by the gradient at every refresh."""
    begins = state.count % _every(options) == 0

    def select() -> Arrays:
        return {w.name: _bases.largest_columns(w, gradients[w.name], options.rank) for w in weights}

    def turns() -> Arrays:  # orthogonal columns: of two, the same or nothing of each other
        return {
            name: (state.columns[name][:, :, None] == new[:, None, :]).astype(jnp.float32)
            for name, new in columns.items()
        }

    columns = jax.lax.cond(begins, select, lambda: state.columns)
    bases = {
        w.name: _bases.cosine_columns(columns[w.name], w.lost, gradients[w.name].dtype)
        for w in weights
    }
    return Subspaces(bases, turns, columns)
