"""project and project_transpose: checks, choice of implementation, exact derivatives."""

from __future__ import annotations

import functools
import importlib
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ..selection import IMPLEMENTATIONS, Choice, Problem, backend_options, choose
from ..sharding import by_example

if TYPE_CHECKING:
    from types import ModuleType

    from jaxtyping import Array, Float

    from ..sketches import Sketch


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
    choice = _choose(sketch, x.shape, x.dtype, False, implementation)
    return by_example(functools.partial(_project, choice, False), x, sketch)


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
    choice = _choose(sketch, y.shape, y.dtype, True, implementation)
    return by_example(functools.partial(_project, choice, True), y, sketch)


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
    return _choose(sketch, shape, jnp.dtype(dtype), transpose, implementation)


def _checked(name: str, x: Any, size: int, what: str, sketch: Sketch) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: dtype {x.dtype}; expected a floating array, e.g. float32")
    if x.ndim < 1 or x.shape[-1] != size:
        raise ValueError(
            f"{name}: shape {x.shape}; expected a last axis of the {sketch.kind} sketch's {what}"
        )
    return x


def _choose(
    sketch: Sketch, shape: tuple[int, ...], dtype: Any, transpose: bool, implementation: str | None
) -> Choice:
    sizes = (sketch.cols, sketch.rows) if transpose else (sketch.rows, sketch.cols)
    problem = Problem(
        "project_transpose" if transpose else "project",
        sketch.kind,
        jnp.dtype(dtype).name,
        (math.prod(shape[:-1]), *sizes),
    )

    def unsupported(module: str) -> str | None:
        check = getattr(_module(module), "unsupported", None)
        return None if check is None else check(sketch, dtype)

    return choose(problem, implementation, unsupported)


def _module(name: str) -> ModuleType:
    # On first use: Pallas' back ends take a second to import.
    return importlib.import_module(f"{__package__}.{name}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
@functools.partial(jax.jit, static_argnums=(0, 1))
def _project(choice: Choice, transpose: bool, x: Array, sketch: Sketch) -> Array:
    module = _module(IMPLEMENTATIONS[choice.name].module)
    function = module.project_transpose if transpose else module.project
    options = backend_options(choice, getattr(module, "Blocks", None))
    flat = function(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), sketch, **options)
    return flat.reshape(*x.shape[:-1], flat.shape[-1])


def _forward(choice: Choice, transpose: bool, x: Array, sketch: Sketch) -> tuple[Array, Sketch]:
    return _project(choice, transpose, x, sketch), sketch


def _backward(
    choice: Choice, transpose: bool, sketch: Sketch, cotangent: Array
) -> tuple[Array, None]:
    # Block sizes were tuned for the other direction; the kernel's own fit both.
    back = Choice(choice.name, choice.reason)
    return _project(back, not transpose, cotangent, sketch), None


_project.defvjp(_forward, _backward)
