"""project and project_transpose: one operation, in its two directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from .. import _operation as operation
from .._problem import Problem
from ..selection import Choice
from ..sketches._base import only_live

if TYPE_CHECKING:
    from types import ModuleType

    from jaxtyping import Array, Float

    from ..sketches import Sketch
    from ..sketches._base import Static


def project(
    x: Float[Array, "... rows"], sketch: Sketch, *, implementation: str | None = None
) -> Float[Array, "... cols"]:
    """x Omega along the last axis.

    E[Omega Omega^T] = I, so that inner products of projected rows are unbiased. The tangent is
    that of x, projected; the cotangent is ``project_transpose`` of the output's: exact, and Omega
    is regenerated for it, not kept. Nothing is differentiated through the sketch.

    Args:
      x: floating array (..., rows).
      sketch: any sketch; its seed, and how many of its columns are live, may be traced or mapped.
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
    return only_live(_apply(x, sketch, False, implementation), sketch)


def project_transpose(
    y: Float[Array, "... cols"], sketch: Sketch, *, implementation: str | None = None
) -> Float[Array, "... rows"]:
    """y Omega^T along the last axis.

    Args:
      y: floating array (..., cols).
      sketch, implementation: as of ``project``.

    Returns:
      array (..., rows) of y's dtype.

    Raises:
      TypeError, ValueError: as of ``project``.

    >>> from rosler_kernels import rademacher
    >>> project_transpose(jnp.ones((3, 16)), rademacher(0, 100, 16)).shape
    (3, 100)
    """
    return _apply(y, sketch, True, implementation)


def explain(
    sketch: Sketch,
    shape: tuple[int, ...],
    dtype: Any = jnp.float32,
    *,
    transpose: bool = False,
    implementation: str | None = None,
) -> Choice:
    """Which implementation a projection would run with, and why: here, or on an assumed device.

    A program for several platforms, or for one that is not here, runs XLA's on each of them but
    for what was asked for: it does not know the kinds of its devices.

    Args:
      sketch, implementation: as of ``project``.
      shape, dtype: of the array to project.
      transpose: whether ``project_transpose`` is meant.

    Raises:
      ValueError: an explicit choice is unknown or cannot run.

    >>> from rosler_kernels import rademacher
    >>> explain(rademacher(0, 784, 64), (128, 784), implementation="reference").reason
    'asked for'
    """
    x, params = jax.ShapeDtypeStruct(shape, dtype), {"sketch": sketch.static()}
    return operation.explain(PROJECT, implementation, x, transpose=transpose, **params)


def _name(transpose: bool) -> str:
    return "project_transpose" if transpose else "project"


def _apply(x: Array, sketch: Sketch, transpose: bool, implementation: str | None) -> Array:
    x, what = operation.floating(_name(transpose), x), "cols" if transpose else "rows"
    if x.ndim < 1 or x.shape[-1] != getattr(sketch, what):
        raise ValueError(
            f"{_name(transpose)}: shape {x.shape}; expected a last axis of the {sketch.kind} "
            f"sketch's {what}={getattr(sketch, what)}"
        )
    x = only_live(x, sketch) if transpose else x
    params: dict[str, Any] = {"sketch": sketch.static(), "transpose": transpose}
    return operation.apply(PROJECT, implementation, x, *sketch.arrays(), **params)[0]


def _describe(
    examples: int, x: Any, *_: Any, sketch: Static, transpose: bool
) -> tuple[Problem, tuple[Any, ...]]:
    sizes = (sketch.cols, sketch.rows) if transpose else (sketch.rows, sketch.cols)
    problem = Problem(_name(transpose), sketch.kind, x.dtype.name, (examples, *sizes))
    return problem, (sketch, x.dtype)


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
