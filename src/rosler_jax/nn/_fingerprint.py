"""A core and its seeds, tied: a leaf among the parameters that says which sketches they belong to.

A core means nothing under other seeds, and seeds are no parameters: whoever restores parameters
alone, into a model made from another key, would compute something else. So a seeded layer has a
parameter ``fingerprint``: 32 signs, a hash of its seeds. It gets no gradient, and whatever an
optimiser does to parameters of one magnitude alike (decay, an L2 term under Adam) keeps the signs,
or turns them all. Signs of other seeds agree in half of the places. A fingerprint of zeros, as
model files (which hold the seeds themselves) give it back, is of any seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

import rosler_kernels as rk
from rosler_jax._verdict import verdict
from rosler_kernels.hashing import threefry_2x32

if TYPE_CHECKING:
    from jaxtyping import Array, Float

SIZE = 32
AGREEMENT = 0.75
"""Least share of the fingerprint's sum that must be of one sign with the hash; by chance 2e-5."""
FADED = 0.05
"""Mean magnitude below which a fingerprint says nothing any more."""

_OTHER_SEEDS = (
    "the core of a seeded layer was trained with other seeds than the layer has; restore "
    "nnx.state(model, rosler_jax.SketchState) (in Linen the collection 'sketch'), not the "
    "parameters alone. If the seeds are new on purpose, set its fingerprint to zeros"
)


def fingerprint(psi: rk.Sketch, omega: rk.Sketch) -> Float[Array, "32"]:
    """The signs that stand for a pair of sketches.

    Example:
      >>> marks = fingerprint(rk.srht(1, 20, 8), rk.srht(2, 30, 4))
      >>> marks.shape, sorted({*marks.tolist()})
      ((32,), [-1.0, 1.0])
    """
    word, _ = threefry_2x32((psi.seed[0], psi.seed[1]), (omega.seed[0], omega.seed[1]))
    bits = (word >> jnp.arange(SIZE, dtype=jnp.uint32)) & jnp.uint32(1)
    return 1.0 - 2.0 * bits.astype(jnp.float32)


def checked(
    u: Float[Array, "..."], marks: Float[Array, "32"] | None, psi: rk.Sketch, omega: rk.Sketch
) -> Float[Array, "..."]:
    """The core, if its fingerprint is that of the sketches; NaN under ``jit``, else an error.

    Args:
      u: core.
      marks: fingerprint that lies beside it; None for none.
      psi, omega: the layer's sketches.

    Raises:
      ValueError: if the core was trained with other seeds, and neither is traced.
    """
    if marks is None:
        return u
    marks = jax.lax.stop_gradient(marks).astype(jnp.float32)
    total = jnp.sum(jnp.abs(marks))
    agreement = jnp.abs(jnp.sum(marks * fingerprint(psi, omega)))
    fits = (agreement >= AGREEMENT * total) | (total < FADED * SIZE)
    return u * verdict([(_OTHER_SEEDS, fits)]).astype(u.dtype)
