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


def simplified(weight: Weight) -> Layout:
    """The layout of a weight in fewer steps: two of a kind are one, and those to no effect none.

    Example:
      >>> table = Weight("embed", np.zeros((3, 2), np.float32))
      >>> simplified(table.then("transpose", (1, 0)).then("transpose", (1, 0)))
      ()
    """
    shape: Shape = tuple(weight.stored.shape)
    found: list[tuple[tuple[Any, ...], Shape]] = []  # steps, and the shapes before them
    for kind, *rest in weight.layout:
        if found and found[-1][0][0] == kind in ("reshape", "transpose"):
            (_, before), shape = found.pop()
            rest = [tuple(before[k] for k in rest[0])] if kind == "transpose" else rest
        after = lay_out(np.broadcast_to(np.int8(0), shape), ((kind, *rest),)).shape
        if kind == "transpose":
            idle = tuple(rest[0]) == tuple(range(len(shape)))
        else:
            idle = kind != "reverse" and after == shape
        if not idle:
            found.append(((kind, *rest), shape))
        shape = after
    return tuple(step for step, _ in found)


_COMPUTED = "*"


def computed(name: str) -> str:
    """The name of numbers that tracing has computed from a tensor of that name.

    Example:
      >>> computed("hidden/u"), computed(computed("hidden/u"))
      ('hidden/u*', 'hidden/u*')
    """
    return f"{source_name(name)}{_COMPUTED}"


def source_name(name: str) -> str:
    """The name of the tensor that numbers of that name were computed from, or are.

    Example:
      >>> source_name("hidden/u*"), source_name("hidden/u")
      ('hidden/u', 'hidden/u')
    """
    return name.rstrip(_COMPUTED)


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """A stored array as an operation takes it: of a matrix the last axis is the output's.

    Attributes:
      name: of the tensor: its path in the model.
      stored: the tensor: floats or integers as they are, or quantised.
      layout: steps from there to the operation's array.

    Example:
      >>> kernel = Weight("hidden/kernel", np.arange(6, dtype=np.float32).reshape(2, 3))
      >>> kernel.then("transpose", (1, 0)).values.tolist()
      [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
      >>> kernel.shape, kernel.dtype, kernel.bits
      ((2, 3), 'float32', 32)
    """

    name: str
    stored: QuantizedTensor | np.ndarray
    layout: Layout = ()

    @functools.cached_property
    def values(self) -> np.ndarray:
        """What a float export computes with: float32 (or the integers of an array of integers)."""
        whole = to_numpy(self.stored) if isinstance(self.stored, QuantizedTensor) else self.stored
        return np.asarray(lay_out(whole, self.layout), order="C")

    @property
    def source(self) -> str:
        """The name of the tensor that it was computed from; its own where it is one."""
        return source_name(self.name)

    @property
    def shape(self) -> Shape:
        """The laid out array's shape."""
        return tuple(self.values.shape)

    @property
    def dtype(self) -> str:
        """Of the values."""
        quantized = isinstance(self.stored, QuantizedTensor)
        return "float32" if quantized else str(np.asarray(self.stored).dtype.name)

    @property
    def bits(self) -> int:
        """Of the stored integers; 32 for floats."""
        return self.stored.bits if isinstance(self.stored, QuantizedTensor) else FLOAT_BITS

    @functools.cached_property
    def integers(self) -> Integer[np.ndarray, "..."] | None:
        """With ``scale`` the same numbers as the file holds them; None if it has floats."""
        if not isinstance(self.stored, QuantizedTensor) or self.bits == FLOAT_BITS:
            return None
        return np.asarray(lay_out(np.asarray(self.stored.values), self.layout), order="C")

    @functools.cached_property
    def factors(self) -> np.ndarray:
        """The scales, to be multiplied with ``integers``: axes that carry none have size 1."""
        stored = self.stored
        if self.integers is None or not isinstance(stored, QuantizedTensor):
            return np.ones((), np.float32)
        others = tuple(k for k in range(len(stored.shape)) if k not in carrying(stored.axis))
        scale = np.expand_dims(np.asarray(stored.scale, np.float32), others)
        laid = lay_out(np.broadcast_to(scale, stored.shape), self.layout)
        for k in range(laid.ndim):
            one = laid.take([0], k)
            laid = laid if (laid != one).any() else one
        return np.asarray(laid, order="C")

    @functools.cached_property
    def _scales(self) -> tuple[np.ndarray, int | None]:
        varying = [k for k, n in enumerate(self.factors.shape) if n > 1]
        if len(varying) > 1:
            raise ValueError(f"{self.name}: scales vary along the axes {varying}; expected one")
        if not varying:
            return self.factors.reshape(()).copy(), None
        return self.factors.ravel(), varying[0] - self.factors.ndim

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
