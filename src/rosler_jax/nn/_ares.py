"""The sketch product with aRes-BP's cotangents, once for every kind of layer.

A layer says how its input meets a thin filter (*lift*: a matrix product, or a convolution); all
the rest, the core solve, the chain and both kinds of cotangent, is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

import rosler_kernels as rk
from rosler_jax._verdict import one_or_nan
from rosler_jax.factors import core_from_sketch
from rosler_jax.nn._layouts import column_matrices

if TYPE_CHECKING:
    from jaxtyping import Array, Float

TEAR, TEAR_HALF = 0.03, 0.25
"""Relative distances of ``Psi^T C`` or ``R Omega`` from the core that are no rounding any more.

4,000 steps of SGD on float32 factors make 2e-6, 20 of Adam 0.03. Bfloat16 ones drift by themselves:
0.05 after 200 steps of SGD, 0.2 after 1,000 (with Adam 0.2 and 0.5).
"""


class Lift(Protocol):
    """How inputs meet thin filters; hashable, so that it can be a static argument."""

    def __call__(self, x: Array, filters: Array) -> Array:
        """Applies thin filters: ``(..., features, groups, k)``; bilinear in its arguments."""

    def sketch(self, x: Array, psi: rk.Sketch) -> Array:
        """Applies the random filters ``Psi``: ``(..., groups, l)``."""

    def examples(self, x: Array) -> int:
        """How many of the leading axes of ``x`` count examples: each meets the filters alone."""


def _per_group(y: Array, w: Array) -> Array:
    """Multiplies ``(..., g, a)`` by ``(g, a, b)``; a single group by a plain product.

    With the axis of one group left in, XLA transposes the activations there and back.
    """
    if w.shape[0] == 1:
        return jnp.matmul(y[..., 0, :], w[0])[..., None, :]
    return jnp.einsum("...ga,gab->...gb", y, w)


def _outer(x: Array, y: Array) -> Array:
    """Contracts all leading axes: ``(..., g, a), (..., g, b) -> (g, a, b)``."""
    if x.shape[-2] == 1:
        return rk.outer(x[..., 0, :], y[..., 0, :])[None]
    return jnp.einsum("...ga,...gb->gab", x, y)


def _effective_core(u: Array, parallel: Array) -> Array:
    """``U``: the stored one, or the pseudo-inverse of the core that the slot holds transposed."""

    def solve(slot: Array) -> Array:
        return jax.vmap(lambda a_t: core_from_sketch(a_t.T))(slot).astype(slot.dtype)

    return jax.lax.cond(parallel > 0.5, solve, lambda slot: slot, u)


def tear(dtype: Any) -> float:
    """The distance at which factors of that dtype count as torn."""
    return TEAR_HALF if jnp.finfo(dtype).bits < 32 else TEAR


def _signs(n: int) -> np.ndarray:
    """A fixed vector of random signs."""
    return np.where(np.random.default_rng(n).integers(2, size=n) > 0, 1, -1).astype(np.float32)


def _are_sketches(
    c: Array, slot: Float[Array, "g s l"], r: Float[Array, "g l n"], psi: Any, omega: Any
) -> Array:
    """Whether ``Psi^T C = A = R Omega`` still holds, tried on one vector of signs for each side."""
    most = tear(slot.dtype) ** 2 * jnp.sum(slot.astype(jnp.float32) ** 2, (1, 2))
    slot, r, c = (a.astype(jnp.float32) for a in (slot, r, column_matrices(c, slot)))
    left, right = (jnp.asarray(_signs(n)) for n in (slot.shape[2], slot.shape[1]))
    from_r = rk.project(jnp.einsum("l,gln->gn", left, r), omega)
    from_c = rk.project(jnp.einsum("gms,s->gm", c, right), psi)
    apart_r = from_r - jnp.einsum("gsl,l->gs", slot, left)
    apart_c = from_c - jnp.einsum("gsl,s->gl", slot, right)
    return jnp.all((jnp.sum(apart_r**2, 1) <= most) & (jnp.sum(apart_c**2, 1) <= most))


def ares_product(
    lift: Lift,
    x: Float[Array, "*batch m"],
    c: Array,
    u: Float[Array, "g s l"],
    r: Float[Array, "g l n"],
    parallel: Float[Array, ""],
    psi: rk.Sketch,
    omega: rk.Sketch,
) -> Float[Array, "*out g n"]:
    r"""Computes ``((x C) U) R``, with the cotangents of the stage that ``parallel`` names.

    ``parallel <= 0.5`` (successive stage): ordinary back-propagation through the chain.

    ``parallel > 0.5`` (parallel stage): the slot ``u`` holds ``A^T``, ``A = Psi^T W Omega``, and
    ``U = A^+``. With ``delta = dL/dy``, ``G = x^T delta`` (never formed), the three cotangents are
    the sketches of ``G`` by the same operators that sketched W,

    ``dC = x^T (delta Omega) = G Omega``, ``dR = (x Psi)^T delta = Psi^T G``,
    ``dA = (x Psi)^T (delta Omega) = Psi^T G Omega``,

    so that under any update linear in the gradient C, A, R stay sketches of one virtual W. The
    error goes down the chain in both stages: ``dx = ((delta R^T) U^T) C^T``.

    Not silent: a flag that is neither 0 nor 1 makes all outputs NaN; and where in the parallel
    stage ``Psi^T C`` or ``R Omega`` is off ``A`` by more than 3 % (25 % in half precision, whose
    rounding alone makes some), because something not linear has moved them, so are the gradients.

    Source: our reading of Li et al. (2021), doi 10.1038/s43588-021-00039-6.
    """
    run = partial(_ares_product, lift)
    return rk.by_example(run, x, c, u, r, parallel, psi, omega, axes=lift.examples(x))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ares_product(
    lift: Lift, x: Array, c: Array, u: Array, r: Array, parallel: Array, psi: Any, omega: Any
) -> Array:
    return _ares_forward(lift, x, c, u, r, parallel, psi, omega)[0]


def _ares_forward(
    lift: Lift, x: Array, c: Array, u: Array, r: Array, parallel: Array, psi: Any, omega: Any
) -> tuple[Array, tuple[Any, ...]]:
    a_stage = one_or_nan((parallel == 0) | (parallel == 1))
    core = _effective_core(u, parallel) * a_stage.astype(u.dtype)
    h = lift(x, c)
    y = _per_group(_per_group(h, core), r)
    return y, (x, c, u, r, core, h, parallel, psi, omega)


def _ares_backward(lift: Lift, residuals: tuple[Any, ...], delta: Array) -> tuple[Any, ...]:
    x, c, u, r, core, h, parallel, psi, omega = residuals
    delta_r = _per_group(delta, jnp.swapaxes(r, 1, 2))
    delta_h = _per_group(delta_r, jnp.swapaxes(core, 1, 2))
    pull_x, pull_c = _pullbacks(lift, x, c)

    def sketched() -> tuple[Array, Array, Array]:
        delta_omega = rk.project(delta, omega)
        x_psi = lift.sketch(x, psi)
        # Where both branches are computed (vmap), the factors of the other stage are no sketches.
        whole = one_or_nan(_are_sketches(c, u, r, psi, omega) | (parallel <= 0.5))
        d_u = jnp.swapaxes(_outer(x_psi, delta_omega), 1, 2)
        d_c, d_r = pull_c(delta_omega), _outer(x_psi, delta)
        return (
            d_c * whole.astype(d_c.dtype),
            d_u * whole.astype(d_u.dtype),
            d_r * whole.astype(d_r.dtype),
        )

    def chained() -> tuple[Array, Array, Array]:
        return pull_c(delta_h), _outer(h, delta_r), _outer(_per_group(h, core), delta)

    d_c, d_u, d_r = jax.lax.cond(parallel > 0.5, sketched, chained)
    return pull_x(delta_h), d_c, d_u, d_r, jnp.zeros_like(parallel), None, None


def _pullbacks(
    lift: Lift, x: Array, c: Array
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Transposes of the lift in its input and in its filter."""
    transpose_x = jax.vjp(lambda x: lift(x, c), x)[1]
    transpose_c = jax.vjp(lambda c: lift(x, c), c)[1]
    return (lambda ct: transpose_x(ct)[0]), (lambda ct: transpose_c(ct)[0])


_ares_product.defvjp(_ares_forward, _ares_backward)
