"""The kinds of operations of a graph: coarse, and plain data.

A value is numbers in row-major order; every operation says in which shape it reads and writes them,
so that reshapes are no operations. Shapes are those of one example, without a batch axis; images
and signals are channels-last. An operation has no code: what it computes is one line of
:mod:`rosler_jax.graph.compute`, and what a target makes of it one line of that target's table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, dataclass_transform

import rosler_kernels as rk
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.op import Op as Op
from rosler_jax.graph.weight import Shape, Weight

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32


_T = TypeVar("_T")


@dataclass_transform(kw_only_default=True, frozen_default=True, eq_default=False)
def _kind(cls: type[_T]) -> type[_T]:
    return dataclasses.dataclass(frozen=True, eq=False, kw_only=True)(cls)


@_kind
class Dense(Op):
    """``y = x W + b`` on every row of ``x (rows, m)``."""

    weight: Weight
    bias: Weight | None = None


@_kind
class Window:
    """How a window slides: one entry per spatial axis; padding is with zeros (-inf for a max).

    Example:
      >>> window = Window(
      ...     size=(3,), strides=(2,), padding=((1, 0),), dilation=(1,), input_dilation=(1,)
      ... )
      >>> window.padded((8,)), window.outputs((8,))
      ((9,), (4,))
    """

    size: Shape
    strides: Shape
    padding: tuple[tuple[int, int], ...]
    dilation: Shape
    input_dilation: Shape
    groups: int = 1

    def padded(self, spatial: Shape) -> Shape:
        """Spatial sizes of the input with its gaps and its padding."""
        sizes = zip(spatial, self.input_dilation, self.padding, strict=True)
        return tuple((n - 1) * d + 1 + low + high for n, d, (low, high) in sizes)

    def outputs(self, spatial: Shape) -> Shape:
        """Spatial sizes of the output."""
        sizes = zip(self.padded(spatial), self.size, self.dilation, self.strides, strict=True)
        return tuple((n - (k - 1) * d - 1) // s + 1 for n, k, d, s in sizes)


@_kind
class Conv(Op):
    """A convolution of ``x (*spatial, c)`` with a kernel ``(*window, c / groups, n)``."""

    weight: Weight
    window: Window
    bias: Weight | None = None


@_kind
class Project(Op):
    """``y = a x Omega`` on every row of ``x (vectors, inner)``; ``a x Omega^T + b`` if transposed.

    A bias of several rows goes with the vectors in turn (groups of a convolution).
    """

    sketch: rk.Sketch
    scale: float
    transpose: bool
    bias: Weight | None = None

    @property
    def vectors(self) -> int:
        """How many vectors are projected."""
        return self.in_shape[0]


@_kind
class PatchProject(Op):
    """``y_p = a patch_p Psi``, the same sketch in every group: ``(*spatial, groups * inner)``."""

    sketch: rk.Sketch
    scale: float
    window: Window


@_kind
class MatMul(Op):
    """``z_i = x_i y_i``: ``x (b, m, k)`` with ``y (b, k, n)``, or ``(b, n, k)`` if transposed."""

    transpose: bool


@_kind
class Affine(Op):
    """``y = (x - center) * factor``, one number each or one per channel (the last axis)."""

    center: Float32[np.ndarray, "..."]
    factor: Float32[np.ndarray, "..."]


@_kind
class Map(Op):
    """An elementwise function of one to three values, broadcast against each other.

    Attributes:
      function: a key of :data:`rosler_jax.graph.functions.FUNCTIONS`.
      numbers: constants of the function, as the ends of a clamp.
    """

    function: str
    numbers: tuple[float, ...] = ()


@_kind
class Reduce(Op):
    """``scale`` times the sum, or the max, min, prod, all, any, argmax or argmin over axes."""

    function: str
    axes: tuple[int, ...]
    scale: float = 1.0


@_kind
class Pool(Op):
    """The max, or ``scale`` times the sum, under a window that slides over ``(*spatial, c)``."""

    function: str
    window: Window
    scale: float = 1.0


Run = tuple[int, int, int]


@_kind
class Take(Op):
    """Picks positions along axes: slices, strides, reverses, pads, repeats.

    Attributes:
      index: for each axis None (all of it) or runs ``(start, step, count)`` one after the other;
        a start of -1 is a run of ``fill``.
      fill: what padding holds.
    """

    index: tuple[tuple[Run, ...] | None, ...]
    fill: float = 0.0


@_kind
class Transpose(Op):
    """Axes in another order: axis ``i`` of the output is axis ``axes[i]`` of the input."""

    axes: tuple[int, ...]


@_kind
class Concat(Op):
    """Values one behind the other along an axis."""

    axis: int


@_kind
class Softmax(Op):
    """Softmax of every row of ``x (rows, n)``, or its logarithm."""

    log: bool = False


@_kind
class Norm(Op):
    """``(x - mean) / sqrt(var + epsilon)`` of every row of ``x (rows, n)``, times scale, plus bias.

    Without ``center`` it is the root mean square that divides (RMS norm).
    """

    center: bool
    epsilon: float
    scale: Weight | None = None
    bias: Weight | None = None


@_kind
class Gather(Op):
    """Rows of a table ``(v, d)`` by whole numbers ``(n,)``; those beyond it give NaN.

    With ``wrap`` negative numbers count from the end.
    """

    wrap: bool = False


@_kind
class Cumulative(Op):
    """Running sum, product, max or min along an axis of ``(outer, n, inner)``."""

    function: str
    reverse: bool


@_kind
class Slice(Op):
    """``size`` positions from a start that is a value, the middle axis of ``(outer, n, inner)``."""

    size: int


@_kind
class Convolve(Op):
    """A convolution whose kernel ``(*window, c / groups, n)`` is a value: while a model trains."""

    window: Window


@_kind
class KernelGrad(Op):
    """The cotangent ``(*window, c / groups, n)`` of a kernel, from the input and the output's.

    ``dK_w = sum_p x_{p s + w d}^T dy_p``, of each group by itself.
    """

    window: Window


@_kind
class Unpool(Op):
    """The cotangent of a max pool's input: ``dy`` goes to the first largest under each window."""

    window: Window


@_kind
class Scatter(Op):
    """``(size, d)`` zeros, and rows ``(n, d)`` added at whole numbers ``(n,)`` that lie within."""

    size: int


@_kind
class Scan(Op):
    """A body that runs once for each position of the sequences, with a state.

    Inputs are what every run sees, the first state, and the sequences (first axis: positions);
    outputs are the last state and the sequences that the runs give. The body's inputs and outputs
    are in the same order.

    Attributes:
      body: of one position.
      shared: how many of the inputs every run sees.
      carries: how many are state.
      length: number of positions.
      reverse: from the last position to the first.
    """

    body: Graph
    shared: int
    carries: int
    length: int
    reverse: bool


KINDS: dict[str, type[Op]] = {
    cls.__name__: cls
    for cls in (
        Dense, Conv, Project, PatchProject, MatMul, Affine, Map, Reduce, Pool, Take, Transpose,
        Concat, Softmax, Norm, Gather, Cumulative, Slice, Scan, Convolve, KernelGrad, Unpool,
        Scatter,
    )
}  # fmt: skip
"""Every kind of operation by name: a new one is one line here, in ``compute``, in each target."""


def elements(runs: tuple[Run, ...] | None, size: int) -> list[int]:
    """The positions that runs pick along an axis; -1 for what is filled in.

    Example:
      >>> elements(((-1, 0, 2), (3, -2, 2)), 5)
      [-1, -1, 3, 1]
    """
    if runs is None:
        return list(range(size))
    return [-1 if a < 0 else a + i * step for a, step, n in runs for i in range(n)]


def runs_of(places: Sequence[int]) -> tuple[Run, ...]:
    """Positions as runs, each as long as it can be.

    Example:
      >>> runs_of([-1, -1, 0, 2, 4, 3])
      ((-1, 0, 2), (0, 2, 3), (3, 1, 1))
    """
    runs: list[Run] = []
    i = 0
    while i < len(places):
        step = 1 if i + 1 == len(places) else places[i + 1] - places[i]
        step = 0 if places[i] < 0 else 1 if i + 1 < len(places) and places[i + 1] < 0 else step
        n = 1
        while i + n < len(places) and places[i + n] == (
            places[i] + n * step if step or places[i] >= 0 else -1
        ):
            n += 1
        runs.append((places[i], 1 if n == 1 and places[i] >= 0 else step, n))
        i += n
    return tuple(runs)


def count(shape: Shape) -> int:
    """Numbers in an array of that shape."""
    return math.prod(shape)
