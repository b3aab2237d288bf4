"""The one functional core behind every NNX and Linen sketch layer.

Every function takes inputs and factors, and returns outputs; none holds state. ``parallel`` and the
two sketches are given only while aRes-BP trains (see :mod:`rosler_jax.optim.ares_bp`); without them
a product is the plain chain, differentiated as usual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

import rosler_kernels as rk
from rosler_jax.factors import input_scale
from rosler_jax.nn._ares import ares_product
from rosler_jax.nn._thin import thin_dot
from rosler_jax.nn.lifts import BatchedLift, ConvLift, DenseLift

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from rosler_jax.nn._ares import Lift


def sketch_dot(
    x: Float[Array, "*batch m"],
    c: Float[Array, "m s"],
    u: Float[Array, "s l"] | None,
    r: Float[Array, "l n"],
    *,
    parallel: Float[Array, ""] | None = None,
    psi: rk.Sketch | None = None,
    omega: rk.Sketch | None = None,
) -> Float[Array, "*batch n"]:
    r"""Multiplies by a sketched matrix: ``y = ((x C) U) R``.

    Args:
      x: inputs, shape ``(..., m)``.
      c: column factor, shape ``(m, s)``.
      u: core, shape ``(s, l)``; in the parallel stage the transposed core matrix ``A^T``; None for
        a layer of two factors, ``y = (x C) R``.
      r: row factor, shape ``(l, n)``.
      parallel: scalar, 1 in the parallel stage of aRes-BP, 0 after it; None for the plain chain.
      psi: co-range sketch ``m -> l``; needed with ``parallel``.
      omega: range sketch ``n -> s``; needed with ``parallel``.

    Returns:
      Outputs, shape ``(..., n)``, dtype of the inputs and factors.

    Raises:
      ValueError: if only some of ``parallel``, ``psi``, ``omega`` are given.

    Example:
      >>> import jax.numpy as jnp
      >>> sketch_dot(jnp.ones((2, 5)), jnp.ones((5, 1)), jnp.ones((1, 1)), jnp.ones((1, 3))).shape
      (2, 3)

    Source: our reading of Li et al. (2021), doi 10.1038/s43588-021-00039-6.
    """
    if u is None:
        x, c, r = _promote(x, c, r)
        return thin_dot(x, c) @ r
    if parallel is None:
        x, c, u, r = _promote(x, c, u, r)
        return rk.sketch_matmul(x, c, u, r)
    if psi is None or omega is None:
        raise ValueError("the parallel stage needs both sketches; pass psi= and omega= as well")
    y = ares_product(DenseLift(), x, c, u[None], r[None], parallel, psi, omega)
    return y[..., 0, :]


def seeded_dot(
    x: Float[Array, "*batch m"],
    u: Float[Array, "s_in s_out"],
    *,
    psi: rk.Sketch,
    omega: rk.Sketch,
) -> Float[Array, "*batch n"]:
    r"""Multiplies by a matrix of which only the core is stored: ``y = a ((x Psi) U) Omega^T``.

    ``a = sqrt(s_in / m)``. The gradient ``dU = a (x Psi)^T (delta Omega)`` needs only the sketched
    input to be kept.

    Args:
      x: inputs, shape ``(..., m)``.
      u: core, shape ``(s_in, s_out)``.
      psi: input sketch ``m -> s_in``.
      omega: output sketch ``n -> s_out``.

    Returns:
      Outputs, shape ``(..., n)``.

    Example:
      >>> import jax.numpy as jnp, rosler_kernels as rk
      >>> psi, omega = rk.srht(1, 20, 8), rk.srht(2, 30, 4)
      >>> seeded_dot(jnp.ones((2, 20)), jnp.ones((8, 4)), psi=psi, omega=omega).shape
      (2, 30)
    """
    x, u = _promote(x, u)
    return rk.sketch_matmul(x, psi, u * jnp.asarray(input_scale(psi), u.dtype), omega)


def _promote(*arrays: Array) -> list[Array]:
    """The same arrays in their common dtype."""
    dtype = jnp.result_type(*arrays)
    return [a.astype(dtype) for a in arrays]


def _grouped_product(
    lift: Lift,
    x: Array,
    c: Array,
    u: Float[Array, "g s l"] | None,
    r: Float[Array, "g l n"],
    parallel: Float[Array, ""] | None,
    psi: rk.Sketch | None,
    omega: rk.Sketch | None,
) -> Float[Array, "*batch g n"]:
    if parallel is None and r.shape[0] == 1:  # as einsum has it, the result comes transposed
        z = lift(x, c).squeeze(-2)
        return jnp.expand_dims((z if u is None else z @ u[0]) @ r[0], -2)
    if u is None:
        return jnp.einsum("...gs,gsn->...gn", lift(x, c), r)
    if parallel is None:
        return jnp.einsum("...gs,gsl,gln->...gn", lift(x, c), u, r, optimize=[(0, 1), (0, 1)])
    if psi is None or omega is None:
        raise ValueError("the parallel stage needs both sketches; pass psi= and omega= as well")
    return ares_product(lift, x, c, u, r, parallel, psi, omega)


def sketch_batched_dot(
    x: Float[Array, "*batch g m"],
    c: Float[Array, "g m s"],
    u: Float[Array, "g s l"] | None,
    r: Float[Array, "g l n"],
    *,
    parallel: Float[Array, ""] | None = None,
    psi: rk.Sketch | None = None,
    omega: rk.Sketch | None = None,
) -> Float[Array, "*batch g n"]:
    r"""Multiplies by ``g`` sketched matrices, entry by entry: ``y_i = ((x_i C_i) U_i) R_i``.

    Args:
      x: inputs, shape ``(..., g, m)``.
      c: column factors, shape ``(g, m, s)``.
      u: cores, shape ``(g, s, l)``; ``A^T`` of each in the parallel stage; None for two factors.
      r: row factors, shape ``(g, l, n)``.
      parallel: as in :func:`sketch_dot`.
      psi: co-range sketch ``m -> l``, the same for all.
      omega: range sketch ``n -> s``, the same for all.

    Returns:
      Outputs, shape ``(..., g, n)``.

    Raises:
      ValueError: if ``parallel`` comes without both sketches.

    Example:
      >>> import jax.numpy as jnp
      >>> c, u, r = jnp.ones((3, 5, 1)), jnp.ones((3, 1, 1)), jnp.ones((3, 1, 4))
      >>> sketch_batched_dot(jnp.ones((2, 3, 5)), c, u, r).shape
      (2, 3, 4)
    """
    return _grouped_product(BatchedLift(), x, c, u, r, parallel, psi, omega)


def seeded_batched_dot(
    x: Float[Array, "*batch g m"],
    u: Float[Array, "g s_in s_out"],
    *,
    psi: rk.Sketch,
    omega: rk.Sketch,
) -> Float[Array, "*batch g n"]:
    """Multiplies each of ``g`` inputs by a seeded matrix: own cores, the same two sketches.

    Args:
      x: inputs, shape ``(..., g, m)``.
      u: cores, shape ``(g, s_in, s_out)``.
      psi: input sketch ``m -> s_in``.
      omega: output sketch ``n -> s_out``.

    Returns:
      Outputs, shape ``(..., g, n)``.

    Example:
      >>> import jax.numpy as jnp, rosler_kernels as rk
      >>> psi, omega = rk.srht(1, 20, 8), rk.srht(2, 30, 4)
      >>> seeded_batched_dot(jnp.ones((2, 3, 20)), jnp.ones((3, 8, 4)), psi=psi, omega=omega).shape
      (2, 3, 30)
    """
    return _seeded_product(BatchedLift(), x, u, psi, omega)


def _seeded_product(
    lift: Lift, x: Array, u: Float[Array, "g s_in s_out"], psi: rk.Sketch, omega: rk.Sketch
) -> Float[Array, "*batch g n"]:
    z = lift.sketch(x, psi) * jnp.asarray(input_scale(psi), x.dtype)
    return rk.project_transpose(jnp.einsum("...ga,gab->...gb", z, u), omega)


def sketch_conv(
    x: Float[Array, "batch *spatial cin"],
    c: Float[Array, "*window cin_g sg"],
    u: Float[Array, "g s l"] | None,
    r: Float[Array, "g l n"],
    lift: ConvLift,
    *,
    parallel: Float[Array, ""] | None = None,
    psi: rk.Sketch | None = None,
    omega: rk.Sketch | None = None,
) -> Float[Array, "batch *out gn"]:
    r"""Convolves with a sketched kernel: ``s`` thin filters, then two 1x1 convolutions.

    The kernel is the matrix ``W (k_h k_w c_in / g, n)`` of each group; C is its column factor with
    the window unfolded again.

    Args:
      x: inputs, shape ``(batch, *spatial, c_in)``.
      c: thin filters, shape ``(*window, c_in / g, g s)``.
      u: core of each group, shape ``(g, s, l)``; ``A^T`` in the parallel stage; None for two
        factors.
      r: row factor of each group, shape ``(g, l, c_out / g)``.
      lift: strides, padding, dilation and groups.
      parallel: as in :func:`sketch_dot`.
      psi: co-range sketch of the unfolded window, ``k_h k_w c_in / g -> l``.
      omega: range sketch ``c_out / g -> s``.

    Returns:
      Outputs, shape ``(batch, *spatial, c_out)``.

    Raises:
      ValueError: if ``parallel`` comes without both sketches.

    Example:
      >>> import jax.numpy as jnp
      >>> from rosler_jax.nn.lifts import conv_lift
      >>> c, u, r = jnp.ones((3, 3, 4, 2)), jnp.ones((1, 2, 2)), jnp.ones((1, 2, 8))
      >>> sketch_conv(jnp.ones((1, 5, 5, 4)), c, u, r, conv_lift((3, 3))).shape
      (1, 5, 5, 8)
    """
    y = _grouped_product(lift, x, c, u, r, parallel, psi, omega)
    return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])


def seeded_conv(
    x: Float[Array, "batch *spatial cin"],
    u: Float[Array, "g s_in s_out"],
    lift: ConvLift,
    *,
    psi: rk.Sketch,
    omega: rk.Sketch,
) -> Float[Array, "batch *out gn"]:
    """Convolves with fixed random filters, mixes by the stored core, expands by a seeded sketch.

    Example:
      >>> import jax.numpy as jnp, rosler_kernels as rk
      >>> from rosler_jax.nn.lifts import conv_lift
      >>> psi, omega = rk.rademacher(1, 36, 8), rk.srht(2, 8, 4)
      >>> seeded_conv(
      ...     jnp.ones((1, 5, 5, 4)), jnp.ones((1, 8, 4)), conv_lift((3, 3)), psi=psi, omega=omega
      ... ).shape
      (1, 5, 5, 8)
    """
    y = _seeded_product(lift, x, u, psi, omega)
    return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])
