"""project_patches: padding, and an operation on what is padded."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from .. import _operation as operation
from .. import projection
from .._problem import Problem
from ..sketches._base import only_live
from . import _shifted
from ._geometry import Geometry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from jaxtyping import Array, Float

    from ..sketches import Sketch
    from ..sketches._base import Static

    Sizes = int | Sequence[int]


def project_patches(
    x: Float[Array, "b *spatial c"],
    sketch: Sketch,
    *,
    window: Sequence[int],
    strides: Sizes = 1,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    dilation: Sizes = 1,
    input_dilation: Sizes = 1,
    implementation: str | None = None,
) -> Float[Array, "b *out cols"]:
    """Every patch of an image times Omega; the patches are never gathered into one array.

    y_p = sum_w x_{p s + w d} Omega[w c : (w + 1) c], w over the window's pixels in C order: a
    convolution with random filters (kernel layout: window, channels in, out). Derivatives are as of
    ``project``.

    Args:
      x: images (b, *spatial, c), floating.
      sketch: rows = prod(window) c.
      window: pixels, one number a spatial dimension.
      strides: of the window.
      padding: as of ``jax.lax.conv_general_dilated``: "SAME", "VALID", "SAME_LOWER" or pairs.
      dilation: of the window.
      input_dilation: of the image.
      implementation: a key of ``rosler_kernels.IMPLEMENTATIONS``.

    Returns:
      array (b, *out, cols) of x's dtype, accumulated in float32 (or wider, if x is).

    Raises:
      TypeError: x is not floating.
      ValueError: shapes do not fit, or the implementation is unknown or cannot run.

    >>> from rosler_kernels import rademacher
    >>> x = jnp.ones((2, 8, 8, 3))
    >>> project_patches(x, rademacher(0, 27, 5), window=(3, 3), padding="SAME").shape
    (2, 8, 8, 5)
    """
    x, n = operation.floating("project_patches", x), len(window)
    if x.ndim != n + 2 or math.prod(window) * x.shape[-1] != sketch.rows:
        raise ValueError(
            f"project_patches: x {x.shape}, window {tuple(window)}, sketch rows={sketch.rows}; "
            f"expected {n} spatial dimensions and rows = prod(window) * channels"
        )
    geometry = Geometry(
        tuple(window), _sizes("strides", strides, n), _sizes("dilation", dilation, n)
    )
    x = _pad(x, geometry, padding, _sizes("input_dilation", input_dilation, n))
    params: dict[str, Any] = {
        "sketch": sketch.static(),
        "window": geometry,
        "spatial": x.shape[1:-1],
    }
    operands = (x, *sketch.arrays())
    (y,) = operation.apply(PATCHES, implementation, *operands, transpose=False, **params)
    return only_live(y, sketch)


def _sizes(name: str, value: Sizes, n: int) -> tuple[int, ...]:
    sizes = (value,) * n if isinstance(value, int) else tuple(value)
    if len(sizes) != n or min(sizes, default=1) < 1:
        raise ValueError(f"project_patches: {name}={value}; expected {n} positive numbers or one")
    return sizes


def _pad(
    x: Array,
    geometry: Geometry,
    padding: str | Sequence[tuple[int, int]],
    dilation: tuple[int, ...],
) -> Array:
    spatial = [(size - 1) * d + 1 for size, d in zip(x.shape[1:-1], dilation, strict=True)]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(spatial, geometry.reach(), geometry.strides, padding)
    config = [(low, high, d - 1) for (low, high), d in zip(padding, dilation, strict=True)]
    if all(entry == (0, 0, 0) for entry in config):
        return x
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])


def _describe(
    examples: int, x: Any, *_: Any, sketch: Static, transpose: bool, window: Geometry, spatial: Any
) -> tuple[Problem, tuple[Any, ...]]:
    name = "project_patches_transpose" if transpose else "project_patches"
    shape = (examples * math.prod(window.out(spatial)), sketch.rows, sketch.cols)
    return Problem(name, sketch.kind, x.dtype.name, shape), (sketch, x.dtype)


def _shapes(
    *_: Any, sketch: Static, transpose: bool, window: Geometry, spatial: tuple[int, ...]
) -> tuple[tuple[int, ...]]:
    if transpose:
        return ((*spatial, sketch.rows // math.prod(window.window)),)
    return ((*window.out(spatial), sketch.cols),)


def _run(
    module: ModuleType, *arrays: Array, sketch: Static, transpose: bool, window: Geometry,
    spatial: tuple[int, ...], **options: Any,
) -> tuple[Array]:  # fmt: skip
    name = "project_transpose" if transpose else "project"
    function = getattr(module, name)
    if module.__package__ != __package__:  # a kernel of the projection's
        function = functools.partial(getattr(_shifted, name), module)
    size = (spatial,) if transpose else ()
    return (function(arrays[0], sketch.sketch(*arrays[1:]), window, *size, **options),)


PATCHES = operation.define(
    "project_patches",
    __package__,
    describe=_describe,
    shapes=_shapes,
    run=_run,
    partner=lambda transpose, **_: {"transpose": not transpose},
    axes=lambda window, **_: len(window.window) + 1,
    kernels=projection.__name__,
)
