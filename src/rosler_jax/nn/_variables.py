"""Variable types of the NNX sketch layers, and what linear and convolution layers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import rosler_kernels as rk
from flax import nnx

from rosler_jax import initializers
from rosler_jax.factors import check_rank

if TYPE_CHECKING:
    from jaxtyping import Array, Key

Mode = Literal["chain", "ares", "seeded"]
MODES = ("chain", "ares", "seeded")
FactorInit = Callable[..., dict[str, jax.Array]]


class SketchParam(nnx.Param):
    """A trainable factor of a sketched weight: select with ``wrt=SketchParam``."""


class SketchSeed(nnx.Variable):
    """The two seed words of a sketch: data, not trained; vmap over it to vary the sketch."""


def seed_words(key: Key[Array, ""]) -> Array:
    """The seed of a sketch, as two uint32 words, from a typed key."""
    return jax.random.bits(key, (2,), jnp.uint32)


def check_mode(mode: str) -> None:
    """Refuses an unknown layer mode."""
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; pass one of {', '.join(map(repr, MODES))}")


def co_range_dimension(rank: int, m: int, n: int, oversampling: int | None) -> int:
    """The number ``l`` of rows of R: ``rank + oversampling``, by default ``2 rank``, if they fit."""
    wanted = rank + (rank if oversampling is None else oversampling)
    return max(rank, min(wanted, m, n))


def init_factors(
    key: Key[Array, ""],
    m: int,
    n: int,
    rank: int,
    mode: Mode,
    *,
    init: Literal["glorot", "he"],
    gain: float,
    psi: rk.Sketch | None,
    omega: rk.Sketch | None,
) -> dict[str, Array]:
    """Initial factors of one ``(m, n)`` weight in the given mode, by parameter name."""
    check_rank(rank, m, n)
    if mode == "seeded":
        assert psi is not None and omega is not None
        return {"u": initializers.seeded(key, psi, omega, init=init).u}
    if mode == "ares":
        assert psi is not None and omega is not None
        f = initializers.ares_sketches(key, psi, omega, init=init, gain=gain)
    else:
        f = initializers.range_finder(key, m, n, rank, init=init, gain=gain)
    return {"c": f.c, "u": f.u, "r": f.r}


def layer_sketches(
    mode: Mode,
    kind: str,
    psi_seed: Array | None,
    omega_seed: Array | None,
    m: int,
    n: int,
    rank: int,
    inner: int,
) -> tuple[rk.Sketch | None, rk.Sketch | None]:
    """The sketches ``Psi (m -> inner)`` and ``Omega (n -> rank)`` of a layer; none in a plain chain."""
    if mode == "chain":
        return None, None
    return rk.make(kind, psi_seed, m, inner), rk.make(kind, omega_seed, n, rank)
