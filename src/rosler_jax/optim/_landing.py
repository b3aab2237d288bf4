"""Did the weights land where the last update took them? And what to do where they did not.

A transformation sees its own updates, not what other links of a chain make of them. So it keeps a
few entries of each weight that has to land exactly, and looks again with the next update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import rosler_kernels as rk

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, PyTree

ENTRIES = 64
ROUNDINGS = 4  # of sum and update, in programs that fuse them differently
NOISE = 128 * float(np.finfo(np.float32).eps)
"""Of the weight's size: what a decomposition of the restricted weight, put back, may change."""


class Landing(NamedTuple):
    """Some entries of ``k`` weights before an update, and after it as it was emitted."""

    before: Float[Array, "k entries"]
    after: Float[Array, "k entries"]


@jax.jit
def note(weights: Sequence[Array], updates: Sequence[Array]) -> Landing:
    """Notes where ``updates`` take ``weights``, by the arithmetic of ``optax.apply_updates``."""
    before = [_entries(w) for w in weights]
    steps = [_entries(u) for u in updates]
    after = [
        (b.astype(_wide(b, u)) + u.astype(_wide(b, u))).astype(b.dtype)
        for b, u in zip(before, steps, strict=True)
    ]
    return Landing(_rows(before), _rows(after))


def landed(
    weights: Sequence[Array], landing: Landing, *, or_dropped: bool
) -> list[Bool[Array, ""]]:
    """Of each weight: whether it is where it was taken; ``or_dropped``: or where it was before.

    Weights that are not finite are left to whoever looks at losses.
    """
    results = []
    for w, before, after in zip(weights, landing.before, landing.after, strict=True):
        now = _entries(w).astype(after.dtype)
        slack = ROUNDINGS * float(jnp.finfo(w.dtype).eps) * (jnp.abs(before) + jnp.abs(after))
        slack = slack + NOISE * jnp.sqrt(jnp.mean(after**2))
        arrived = ~jnp.any(jnp.abs(now - after) > slack)
        results.append(arrived | jnp.all(now == before) if or_dropped else arrived)
    return results


def enforce(verdict: Float[Array, ""], updates: PyTree) -> PyTree:
    """The updates times 1, or times NaN."""
    return jax.tree.map(lambda u: u * verdict.astype(u.dtype) if _is_floating(u) else u, updates)


def _is_floating(x: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.inexact))


def _wide(*arrays: Array) -> jnp.dtype:
    return rk.accumulator(*(a.dtype for a in arrays))


def _rows(samples: Sequence[Array]) -> Array:
    dtype = _wide(*samples)
    return jnp.stack([s.astype(dtype) for s in samples]) if samples else jnp.zeros((0, ENTRIES))


def _entries(w: Array) -> Float[Array, "entries"]:
    """Evenly spaced entries of a weight, wherever they lie on a mesh."""
    w = jnp.asarray(w)
    flat = np.linspace(0, w.size - 1, ENTRIES).round().astype(np.int32)
    index = tuple(jnp.asarray(i, jnp.int32) for i in np.unravel_index(flat, w.shape))
    on_mesh = AxisType.Explicit in jax.typeof(w).sharding.mesh.axis_types
    return w.at[index].get(mode="promise_in_bounds", out_sharding=P() if on_mesh else None)
