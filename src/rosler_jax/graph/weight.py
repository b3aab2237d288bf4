"""The stored numbers of a graph: a tensor of the file, and how an operation lays it out."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from rosler_jax._quantized import FLOAT_BITS, QuantizedTensor, carrying, to_numpy

if TYPE_CHECKING:
    from jaxtyping import Float32, Integer

Shape = tuple[int, ...]
Layout = tuple[tuple[Any, ...], ...]
"""Steps from a stored tensor to the array that an operation takes: ``("reshape", shape)``,
``("transpose", axes)``, ``("slice", axis, start, stop)``, ``("reverse", axes)``."""


def lay_out(array: Any, layout: Layout) -> Any:
    """An array after the steps of a layout; NumPy's or JAX's.

    Raises:
      ValueError: for a step that does not fit.

    Example:
      >>> lay_out(np.arange(6).reshape(2, 3), (("transpose", (1, 0)), ("slice", 0, 1, 3))).tolist()
      [[1, 4], [2, 5]]
    """
    for step, *rest in layout:
        if step == "reshape":
            array = array.reshape(rest[0])
        elif step == "transpose":
            array = array.transpose(rest[0])
        elif step == "slice":
            axis, start, stop = rest
            array = array[(slice(None),) * axis + (slice(start, stop),)]
        elif step == "reverse":
            array = array[
                tuple(slice(None, None, -1 if k in rest[0] else 1) for k in range(array.ndim))
            ]
        else:
            raise ValueError(
                f"a layout has the step {step!r}; expected reshape, transpose, slice or reverse"
            )
    return array


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """A stored array as an operation takes it: of a matrix the last axis is the output's.

    Attributes:
      name: of the tensor: its path in the model.
      stored: the tensor: floats or integers as they are, or quantised.
      layout: steps from there to the operation's array.
    """

    name: str
    stored: QuantizedTensor | np.ndarray
    layout: Layout = ()

    @functools.cached_property
    def values(self) -> np.ndarray:
        """What a float export computes with: float32 (or the integers of an array of integers)."""
        whole = to_numpy(self.stored) if isinstance(self.stored, QuantizedTensor) else self.stored
        return np.ascontiguousarray(lay_out(whole, self.layout))

    @property
    def shape(self) -> Shape:
        """The laid out array's shape."""
        return tuple(self.values.shape)

    @property
    def bits(self) -> int:
        """Of the stored integers; 32 for floats."""
        return self.stored.bits if isinstance(self.stored, QuantizedTensor) else FLOAT_BITS

    @functools.cached_property
    def integers(self) -> Integer[np.ndarray, "..."] | None:
        """With ``scale`` the same numbers as the file holds them; None if it has floats."""
        if not isinstance(self.stored, QuantizedTensor) or self.bits == FLOAT_BITS:
            return None
        return np.ascontiguousarray(lay_out(np.asarray(self.stored.values), self.layout))

    @functools.cached_property
    def _scales(self) -> tuple[np.ndarray, int | None]:
        if self.integers is None:
            return np.ones((), np.float32), None
        stored = self.stored
        assert isinstance(stored, QuantizedTensor)
        others = tuple(k for k in range(len(stored.shape)) if k not in carrying(stored.axis))
        scale = np.expand_dims(np.asarray(stored.scale, np.float32), others)
        laid = lay_out(np.broadcast_to(scale, stored.shape), self.layout)
        varying = [k for k in range(laid.ndim) if (laid != laid.take([0], k)).any()]
        if not varying:
            return laid.ravel()[:1].reshape(()).copy(), None
        if len(varying) > 1:
            raise ValueError(f"{self.name}: scales vary along the axes {varying}; expected one")
        index = tuple(slice(None) if k == varying[0] else 0 for k in range(laid.ndim))
        return np.ascontiguousarray(laid[index]), varying[0] - laid.ndim

    @property
    def scale(self) -> Float32[np.ndarray, "..."]:
        """One number, or one per index of ``axis``."""
        return self._scales[0]

    @property
    def axis(self) -> int | None:
        """The axis that carries the scales, counted from the end; None for one scale."""
        return self._scales[1]

    def then(self, *step: Any) -> Weight:
        """The same tensor, laid out one step further."""
        return Weight(self.name, self.stored, (*self.layout, step))
