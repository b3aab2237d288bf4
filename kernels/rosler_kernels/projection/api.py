"""project and project_transpose: checks, choice of implementation, exact derivatives."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from . import reference, xla

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ..sketches import Sketch

IMPLEMENTATIONS: dict[str, Any] = {"xla": xla, "reference": reference}


def project(
    x: Float[Array, "... rows"], sketch: Sketch, *, implementation: str = "xla"
) -> Float[Array, "... cols"]:
    """x Omega along the last axis.

    E[Omega Omega^T] = I, so that inner products of projected rows are unbiased. The cotangent is
    ``project_transpose`` of the output's: exact, and Omega is regenerated for it, not kept. Reverse
    mode only; nothing is differentiated through the sketch.

    Args:
      x: floating array (..., rows).
      sketch: any sketch; its seed may be traced or mapped.
      implementation: a key of ``IMPLEMENTATIONS``.

    Returns:
      array (..., cols) of x's dtype, accumulated in float32 (or wider, if x is).

    Raises:
      TypeError: x is not floating.
      ValueError: x's last axis is not rows, or the implementation is unknown.

    >>> from rosler_kernels import srht
    >>> project(jnp.ones((3, 784)), srht(0, 784, 256)).shape
    (3, 256)
    """
    x = _checked("project", x, sketch.rows, f"rows={sketch.rows}", sketch, implementation)
    return _project(implementation, False, x, sketch)


def project_transpose(
    y: Float[Array, "... cols"], sketch: Sketch, *, implementation: str = "xla"
) -> Float[Array, "... rows"]:
    """y Omega^T along the last axis.

    Args:
      y: floating array (..., cols).
      sketch: any sketch; its seed may be traced or mapped.
      implementation: a key of ``IMPLEMENTATIONS``.

    Returns:
      array (..., rows) of y's dtype, accumulated in float32 (or wider, if y is).

    Raises:
      TypeError: y is not floating.
      ValueError: y's last axis is not cols, or the implementation is unknown.

    >>> from rosler_kernels import rademacher
    >>> project_transpose(jnp.ones((3, 16)), rademacher(0, 100, 16)).shape
    (3, 100)
    """
    y = _checked("project_transpose", y, sketch.cols, f"cols={sketch.cols}", sketch, implementation)
    return _project(implementation, True, y, sketch)


def _checked(name: str, x: Any, size: int, what: str, sketch: Sketch, implementation: str) -> Array:
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"{name}: implementation {implementation!r}; expected one of {known}")
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: dtype {x.dtype}; expected a floating array, e.g. float32")
    if x.ndim < 1 or x.shape[-1] != size:
        raise ValueError(
            f"{name}: shape {x.shape}; expected a last axis of the {sketch.kind} sketch's {what}"
        )
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
@functools.partial(jax.jit, static_argnums=(0, 1))
def _project(implementation: str, transpose: bool, x: Array, sketch: Sketch) -> Array:
    module = IMPLEMENTATIONS[implementation]
    function = module.project_transpose if transpose else module.project
    flat = function(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), sketch)
    return flat.reshape(*x.shape[:-1], flat.shape[-1])


def _forward(
    implementation: str, transpose: bool, x: Array, sketch: Sketch
) -> tuple[Array, Sketch]:
    return _project(implementation, transpose, x, sketch), sketch


def _backward(
    implementation: str, transpose: bool, sketch: Sketch, cotangent: Array
) -> tuple[Array, None]:
    return _project(implementation, not transpose, cotangent, sketch), None


_project.defvjp(_forward, _backward)
