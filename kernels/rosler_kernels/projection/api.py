"""project and project_transpose: one operation, in its two directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from .. import _operation as operation
from ..selection import Choice, Problem

if TYPE_CHECKING:
    from types import ModuleType

    from jaxtyping import Array, Float

    from ..sketches import Sketch
    from ..sketches._base import Static


def project(
    x: Float[Array, "... rows"], sketch: Sketch, *, implementation: str | None = None
) -> Float[Array, "... cols"]:
    """x Omega along the last axis.

    E[Omega Omega^T] = I, so that inner products of projected rows are unbiased. The cotangent is
    ``project_transpose`` of the output's: exact, and Omega is regenerated for it, not kept. Reverse
    mode only; nothing is differentiated through the sketch.

    Args:
      x: floating array (..., rows).
      sketch: any sketch; its seed may be traced or mapped.
      implementation: a key of ``IMPLEMENTATIONS``; by default chosen as
        ``rosler_kernels.selection`` says.

    Returns:
      array (..., cols) of x's dtype, accumulated in float32 (or wider, if x is).

    Raises:
      TypeError: x is not floating.
      ValueError: x's last axis is not rows, or the implementation is unknown or cannot run.

    >>> from rosler_kernels import srht
    >>> project(jnp.ones((3, 784)), srht(0, 784, 256)).shape
    (3, 256)
    """
    x = _checked("project", x, sketch.rows, f"rows={sketch.rows}", sketch)
    params = {"sketch": sketch.static(), "transpose": False}
    return operation.apply(PROJECT, implementation, x, *sketch.arrays(), **params)[0]


def project_transpose(
    y: Float[Array, "... cols"], sketch: Sketch, *, implementation: str | None = None
) -> Float[Array, "... rows"]:
    """y Omega^T along the last axis.

    Args:
      y: floating array (..., cols).
      sketch: any sketch; its seed may be traced or mapped.
      implementation: as of ``project``.

    Returns:
      array (..., rows) of y's dtype, accumulated in float32 (or wider, if y is).

    Raises:
      TypeError: y is not floating.
      ValueError: y's last axis is not cols, or the implementation is unknown or cannot run.

    >>> from rosler_kernels import rademacher
    >>> project_transpose(jnp.ones((3, 16)), rademacher(0, 100, 16)).shape
    (3, 100)
    """
    y = _checked("project_transpose", y, sketch.cols, f"cols={sketch.cols}", sketch)
    params = {"sketch": sketch.static(), "transpose": True}
    return operation.apply(PROJECT, implementation, y, *sketch.arrays(), **params)[0]


def explain(
    sketch: Sketch,
    shape: tuple[int, ...],
    dtype: Any = jnp.float32,
    *,
    transpose: bool = False,
    implementation: str | None = None,
) -> Choice:
    """Which implementation a projection would run with, and why.

    Args:
      sketch: any sketch.
      shape: of the array to project.
      dtype: of that array.
      transpose: whether ``project_transpose`` is meant.
      implementation: as of ``project``.

    Returns:
      Choice: name, reason, block sizes.

    Raises:
      ValueError: an explicit choice is unknown or cannot run.

    >>> from rosler_kernels import rademacher
    >>> explain(rademacher(0, 784, 64), (128, 784), implementation="reference").reason
    'asked for'
    """
    x, params = jax.ShapeDtypeStruct(shape, dtype), {"sketch": sketch.static()}
    return operation.explain(PROJECT, implementation, x, transpose=transpose, **params)


def _checked(name: str, x: Any, size: int, what: str, sketch: Sketch) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: dtype {x.dtype}; expected a floating array, e.g. float32")
    if x.ndim < 1 or x.shape[-1] != size:
        raise ValueError(
            f"{name}: shape {x.shape}; expected a last axis of the {sketch.kind} sketch's {what}"
        )
    return x


def _name(transpose: bool) -> str:
    return "project_transpose" if transpose else "project"


def _describe(
    examples: int, x: Any, *_: Any, sketch: Static, transpose: bool
) -> tuple[Problem, tuple[Any, ...]]:
    sizes = (sketch.cols, sketch.rows) if transpose else (sketch.rows, sketch.cols)
    return Problem(_name(transpose), sketch.kind, x.dtype.name, (examples, *sizes)), (
        sketch,
        x.dtype,
    )


def _run(
    module: ModuleType, x: Array, *arrays: Array, sketch: Static, transpose: bool, **options: Any
) -> tuple[Array]:
    return (getattr(module, _name(transpose))(x, sketch.sketch(*arrays), **options),)


PROJECT = operation.define(
    "project",
    __package__,
    describe=_describe,
    shapes=lambda *_, sketch, transpose: ((sketch.rows if transpose else sketch.cols,),),
    run=_run,
    partner=lambda transpose, **_: {"transpose": not transpose},
)
