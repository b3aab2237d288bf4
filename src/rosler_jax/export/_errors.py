"""What an exporter raises."""

from __future__ import annotations


class ExportError(ValueError):
    """A model that a target cannot take; the message names the layer and the alternatives.

    Example:
      >>> import jax.numpy as jnp
      >>> from rosler_jax.export import export
      >>> from rosler_jax.graph import trace
      >>> export(trace(jnp.tanh, jnp.ones((1, 4))), "edge", dtype="int8")
      Traceback (most recent call last):
      rosler_jax.export._errors.ExportError: dtype int8 needs calibration inputs to choose scales
      by; pass calibration= (--calibration FILE.npy), or export the folder of a run, whose data is
      known
    """
