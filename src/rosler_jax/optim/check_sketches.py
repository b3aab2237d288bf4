"""Whether a model's aRes layers still are what aRes-BP takes them for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import rosler_kernels as rk
from rosler_jax.nn._ares import tear
from rosler_jax.nn._layouts import column_matrices
from rosler_jax.nn._module import SketchModule

if TYPE_CHECKING:
    from jaxtyping import Array


def check_sketches(model: nnx.Module) -> dict[str, float]:
    r"""Checks that aRes layers in the parallel stage hold sketches of one matrix each.

    There ``Psi^T C = A = R Omega`` must hold, ``A`` being the transposed core's slot. It holds to
    rounding when :func:`~rosler_jax.optim.ares_bp.ares_bp` trains the layer, and no longer when an
    optimiser has that is not linear in the gradient, or not the same for all factors. Call it
    outside ``jit``: before a long run, or when a loss has become NaN.

    Args:
      model: any NNX model; layers may be stacked along leading axes (``nnx.vmap``).

    Returns:
      For each layer in the parallel stage its name, and the larger of the relative distances
      ``||Psi^T C - A||_F / ||A||_F`` and ``||R Omega - A||_F / ||A||_F``; of a stack the worst.

    Raises:
      ValueError: naming the layer, if the distance is more than 3 % (25 % for parameters of half
        precision), or the flag of its stage is neither 0 nor 1.

    Example:
      >>> from rosler_jax import SketchLinear
      >>> model = nnx.Sequential(SketchLinear(20, 30, rank=4, mode="ares", rngs=nnx.Rngs(0)))
      >>> {name: distance < 1e-5 for name, distance in check_sketches(model).items()}
      {'layers/0': True}
    """
    found = {}
    for path, layer in nnx.iter_modules(model):
        # Only layers of mode "ares" have a flag.
        if not isinstance(layer, SketchModule) or layer.parallel is None:
            continue
        name = "/".join(map(str, path))
        flags = np.asarray(layer.parallel[...])
        if not np.all((flags == 0) | (flags == 1)):
            raise ValueError(
                f"the flag of the stage of layer {name!r} is {flags}, neither 0 nor 1: something "
                "other than ares_bp has moved it; train ares layers by ares_bp alone, and make "
                "the layer anew"
            )
        if np.all(flags == 0):
            continue
        found[name] = float(np.max(np.where(flags.ravel() == 1, _distances(layer), 0)))
        assert layer.u is not None  # as of every layer that has a flag
        most = tear(layer.u[...].dtype)
        if not found[name] <= most:
            raise ValueError(
                f"the sketches of layer {name!r} are torn: Psi^T C or R Omega is off the core by "
                f"{found[name]:.2g} (relative), more than {most}; an optimiser that is not linear "
                "in the gradient has moved them. Train ares layers by ares_bp, with clipping by "
                "entries or units only inside its successive=, and float32 parameters"
            )
    return found


def _distances(layer: Any) -> Array:
    """Of each layer in a stack: how far its sketches are off the core."""
    stack = layer.parallel[...].ndim

    def of_one(c: Array, slot: Array, r: Array, psi_seed: Array, omega_seed: Array) -> Array:
        psi, omega = layer.plan.sketches(psi_seed, omega_seed)
        columns = column_matrices(c, slot).astype(jnp.float32).swapaxes(1, 2)
        slot, r = (a.reshape(-1, *a.shape[-2:]).astype(jnp.float32) for a in (slot, r))
        apart = (rk.project(columns, psi) - slot, rk.project(r, omega).swapaxes(1, 2) - slot)
        size = jnp.linalg.norm(slot, axis=(1, 2)) + jnp.finfo(jnp.float32).tiny
        return jnp.max(jnp.stack([jnp.linalg.norm(d, axis=(1, 2)) / size for d in apart]))

    variables = (layer.c, layer.u, layer.r, layer.psi_seed, layer.omega_seed)
    flat = [v[...].reshape(-1, *v.shape[stack:]) for v in variables]
    return jax.jit(jax.vmap(of_one))(*flat)
