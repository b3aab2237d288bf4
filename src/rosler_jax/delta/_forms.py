"""The forms that the change of a matrix can have: what its numbers are, and what is made of them.

A change ``D W`` (m x n) is a function of a few numbers ``v`` and of bases that a seed, or the seed
and ``W``, make again. Those of two factors or three are ``C U R``, so that a layer can add ``((x C)
U) R`` to its output and never form them. Each is zero where ``v`` is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp

import rosler_kernels as rk

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt32

    Bases = tuple[Array, ...]
    Shape = tuple[int, int, int]
    Factors = tuple[Array, Array, Array]

FAMILY = "rademacher"  # signs: exact in every dtype, and in C
_VERA_START = 0.1  # of the vector that scales the inner axis (Kopiczko et al.)


class Form(NamedTuple):
    """A form.

    Attributes:
      size: ``(shape, rank)`` to how many numbers a stack of matrices takes.
      bases: ``(seeds, W, shape, rank)`` to what is made again of them.
      factors: ``(v, bases, shape, rank)`` to ``C (g, m, s)``, ``U (g, s, l)`` and
        ``R (g, l, n)``; None for a form that has none.
      reads_weights: whether the bases depend on ``W``.
    """

    size: Callable[[Shape, int], int]
    bases: Callable[[UInt32[Array, "4 2"], Float[Array, "g m n"], Shape, int], Bases]
    factors: Callable[[Float[Array, " d"], Bases, Shape, int], Factors] | None
    reads_weights: bool = False


def change(
    form: Form, v: Float[Array, " d"], bases: Bases, shape: Shape, rank: int
) -> Float[Array, "g m n"]:
    """The change of a stack of matrices."""
    if form.factors is None:
        return v.reshape(shape)
    c, u, r = form.factors(v, bases, shape, rank)
    return (c @ u) @ r


def _unit_columns(seed: UInt32[Array, "2"], rows: int, cols: int) -> Float[Array, "rows cols"]:
    """Random signs over the root of the rows: columns of norm one."""
    return rk.materialize(rk.make(FAMILY, seed, rows, cols)) * (cols / rows) ** 0.5


def _no_bases(seeds: Array, w: Array, shape: Shape, rank: int) -> Bases:
    return ()


def _random_sides(seeds: Array, w: Array, shape: Shape, rank: int) -> Bases:
    _, m, n = shape
    return _unit_columns(seeds[0], m, rank), _unit_columns(seeds[1], n, rank).T


def _svd_sides(seeds: Array, w: Array, shape: Shape, rank: int) -> Bases:
    """The leading singular vectors of W, signs chosen by their largest entries."""
    left, sigma, right = jnp.vectorize(rk.svd, signature="(m,n)->(m,k),(k),(k,n)")(
        w.astype(jnp.float32)
    )
    left, right = left[..., :rank], right[..., :rank, :]
    at = jnp.argmax(jnp.abs(left), axis=-2, keepdims=True)
    sign = jnp.sign(jnp.take_along_axis(left, at, axis=-2))
    scale = sigma[..., None, :rank] / jnp.linalg.norm(sigma[..., :rank], axis=-1)[..., None, None]
    return left * sign * scale * rank**0.5, right * jnp.swapaxes(sign, -1, -2)


def _sketched_sides(seeds: Array, w: Array, shape: Shape, rank: int) -> Bases:
    """Sketches of W's range and co-range, of norm sqrt(rank): products alone."""
    _, m, n = shape
    wide = w.astype(jnp.float32)
    c = wide @ _unit_columns(seeds[1], n, rank)
    r = _unit_columns(seeds[0], m, rank).T @ wide

    def scaled(a: Array) -> Array:
        norm = jnp.linalg.norm(a, axis=(-2, -1), keepdims=True)
        return a / jnp.where(norm > 0, norm, 1) * rank**0.5

    return scaled(c), scaled(r)


def _core(v: Array, bases: Bases, shape: Shape, rank: int) -> Factors:
    g = shape[0]
    left, right = (jnp.broadcast_to(a, (g, *a.shape[-2:])) for a in bases)
    return left, v.reshape(g, rank, rank), right


def _lora(v: Array, bases: Bases, shape: Shape, rank: int) -> Factors:
    g, m, n = shape
    a, b = v[: g * m * rank].reshape(g, m, rank), v[g * m * rank :].reshape(g, rank, n)
    return a + bases[0], _identities(g, rank, v), b


def _side(v: Array, bases: Bases, shape: Shape, rank: int) -> Factors:
    g, m, n = shape
    left = jnp.broadcast_to(bases[0], (g, m, rank))
    return left, _identities(g, rank, v), v.reshape(g, rank, n)


def _vera(v: Array, bases: Bases, shape: Shape, rank: int) -> Factors:
    g, m, n = shape
    inner, outer = v[: g * rank].reshape(g, rank), v[g * rank :].reshape(g, 1, n)
    left = jnp.broadcast_to(bases[0], (g, m, rank))
    core = jnp.eye(rank, dtype=v.dtype) * (inner + _VERA_START)[:, None, :]
    return left, core, bases[1] * outer


def _identities(g: int, rank: int, like: Array) -> Array:
    return jnp.broadcast_to(jnp.eye(rank, dtype=like.dtype), (g, rank, rank))


FORMS: dict[str, Form] = {
    "full": Form(lambda shape, rank: shape[0] * shape[1] * shape[2], _no_bases, None),
    "lora": Form(lambda shape, rank: shape[0] * rank * (shape[1] + shape[2]), _random_sides, _lora),
    "seeded-side": Form(lambda shape, rank: shape[0] * rank * shape[2], _random_sides, _side),
    "vera": Form(lambda shape, rank: shape[0] * (rank + shape[2]), _random_sides, _vera),
    "seeded": Form(lambda shape, rank: shape[0] * rank**2, _random_sides, _core),
    "lora-xs": Form(lambda shape, rank: shape[0] * rank**2, _svd_sides, _core, True),
    "sketched": Form(lambda shape, rank: shape[0] * rank**2, _sketched_sides, _core, True),
}
"""Every form by name: a new one is one line at the end, since files go by the order."""
