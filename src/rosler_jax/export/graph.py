"""A trained network as a list of plain operations: what every exporter starts from.

An operation has its shapes, its stored numbers as NumPy arrays, and no code: each target of
:mod:`rosler_jax.export` says what it makes of it. Shapes are those of one example, without a batch
axis; images are channels-last.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

import rosler_kernels as rk

if TYPE_CHECKING:
    from jaxtyping import Float32, Integer

Shape = tuple[int, ...]
MAX_ELEMENTS = 2**31 - 1
"""More numbers in one array than this are refused: exported code counts in 32 bits."""


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """A stored matrix or kernel; the last axis is the output's, the last but one the input's.

    Attributes:
      name: in the model file, ``"2/c"``.
      values: float32, what a float export computes with.
      integers: with ``scale`` the same numbers as the file holds them; None if it has floats.
      scale: float32, one number, or one per index of ``axis``.
      axis: the axis that carries the scales: -1, -2, or None for one scale.
      bits: of the integers; 32 for floats.
    """

    name: str
    values: Float32[np.ndarray, "*window m n"]
    integers: Integer[np.ndarray, "*window m n"] | None
    scale: Float32[np.ndarray, "..."]
    axis: int | None
    bits: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Op:
    """What all operations have: a name that tells the layer, and the shapes of one example."""

    name: str
    in_shape: Shape
    out_shape: Shape


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Affine(Op):
    """``y = (x - center) * factor``, one number each or one per channel (the last axis)."""

    center: Float32[np.ndarray, "..."]
    factor: Float32[np.ndarray, "..."]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Dense(Op):
    """``y = x W + b`` on a vector."""

    weight: Weight
    bias: Float32[np.ndarray, "n"] | None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Window:
    """How a window slides: one entry per spatial dimension; padding is with zeros."""

    size: Shape
    strides: Shape
    padding: tuple[tuple[int, int], ...]
    dilation: Shape
    input_dilation: Shape
    groups: int

    def padded(self, spatial: Shape) -> Shape:
        """Spatial sizes of the input with its gaps and its padding."""
        sizes = zip(spatial, self.input_dilation, self.padding, strict=True)
        return tuple((n - 1) * d + 1 + low + high for n, d, (low, high) in sizes)

    def outputs(self, spatial: Shape) -> Shape:
        """Spatial sizes of the output."""
        sizes = zip(self.padded(spatial), self.size, self.dilation, self.strides, strict=True)
        return tuple((n - (k - 1) * d - 1) // s + 1 for n, k, d, s in sizes)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Conv(Op):
    """A convolution with kernel ``(*window, c_in / groups, c_out)``."""

    weight: Weight
    bias: Float32[np.ndarray, "n"] | None
    window: Window


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Project(Op):
    """``y = a x Omega`` along the last axis; ``y = a x Omega^T + b`` if transposed.

    The last axis may hold several vectors one behind the other (groups of a convolution).
    """

    sketch: rk.Sketch
    scale: float
    transpose: bool
    bias: Float32[np.ndarray, "n"] | None = None

    @property
    def vectors(self) -> int:
        """How many vectors are projected."""
        inner = self.sketch.cols if self.transpose else self.sketch.rows
        return math.prod(self.in_shape) // inner


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PatchProject(Op):
    """``y_p = a patch_p Psi``, the same sketch in every group: ``(*spatial, groups * inner)``."""

    sketch: rk.Sketch
    scale: float
    window: Window


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Activate(Op):
    """An elementwise function: relu, gelu (tanh form) or tanh."""

    kind: str


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Pool(Op):
    """``max`` or ``mean`` over windows that do not overlap; a remainder is left out."""

    kind: str
    window: Shape


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Pad(Op):
    """Pads the spatial axes by ``widths``, ``"wrap"`` or ``"reflect"``."""

    mode: str
    widths: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Flatten(Op):
    """A new shape for the same numbers in the same order."""


def is_relu(ops: Sequence[Op], i: int) -> bool:
    """Whether operation i, if there is one, is a relu: products take it in."""
    op = ops[i] if i < len(ops) else None
    return isinstance(op, Activate) and op.kind == "relu"


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Operations in order, each fed by the one before.

    Attributes:
      ops: at least one.
    """

    ops: tuple[Op, ...]

    @property
    def in_shape(self) -> Shape:
        """Shape of one input."""
        return self.ops[0].in_shape

    @property
    def out_shape(self) -> Shape:
        """Shape of one output."""
        return self.ops[-1].out_shape

    def weights(self) -> list[Weight]:
        """All stored matrices, in order."""
        return [op.weight for op in self.ops if isinstance(op, Dense | Conv)]
