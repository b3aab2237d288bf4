"""What families on images share: a product along the rows of an image, then one along its columns.

A vector of ``rows`` numbers is an image of ``height`` x ``width`` with the channels last, as it
lies in memory; where no size is given it is one column, height = rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ._base import Sketch, check_range, new_sketch

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Array, Float, Int


class Image(NamedTuple):
    """How the rows of a sketch lie."""

    height: int
    width: int
    channels: int


class Separable(NamedTuple):
    """Omega on one channel: column k is left[:, u] right[:, v]^T, where places[k] = u b + v.

    Attributes:
      left: float32 (height, a), with the scale.
      right: float32 (width, b).
      places: which of the a b products are columns, in their order.
    """

    left: Float[Array, "height a"]
    right: Float[Array, "width b"]
    places: Int[np.ndarray, "n"]


def image_sketch(kind: str, rows: int, cols: int, height: int | None, width: int | None) -> Sketch:
    """A checked sketch of images, or of vectors; no seed makes it another one."""
    if height is None and width is None:
        sketch = new_sketch(kind, 0, rows, cols)
    else:
        if height is None or width is None or height < 1 or width < 1:
            raise ValueError(f"{kind}: height={height}, width={width}; pass both, 1 or more")
        if rows % (height * width):
            raise ValueError(
                f"{kind}: rows={rows}; expected a multiple of height x width = {height} x {width}"
            )
        sketch = new_sketch(kind, 0, rows, cols, height=height, width=width)
    check_range(kind, "cols", cols, 1, rows, "no more than rows")
    return sketch


def image_of(sketch: Sketch) -> Image:
    """How its rows lie."""
    if not sketch.params:
        return Image(sketch.rows, 1, 1)
    height, width = sketch.param("height"), sketch.param("width")
    return Image(height, width, sketch.rows // (height * width))
