"""A graph in the making: what is held of every variable of a jaxpr, and operations as they come."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rosler_jax.graph.functions import result_dtype
from rosler_jax.graph.graph import Graph, Value
from rosler_jax.graph.kinds import Map, MatMul, Op, Reduce, Run, Take, Transpose, elements
from rosler_jax.graph.weight import Shape, Weight


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """What a variable is: a value of the graph, or known numbers.

    Attributes:
      source: a value's number; a stored array; or known numbers that are no weight (random keys).
      view: the shape in which the numbers lie.
      shape: what ``view`` is broadcast to (as NumPy does; of the same rank).
      dtype: of the numbers.
    """

    source: Any
    view: Shape
    shape: Shape
    dtype: str

    @property
    def known(self) -> bool:
        """Whether it does not depend on the inputs."""
        return not isinstance(self.source, int)

    @property
    def weight(self) -> Weight:
        """The stored array, in the shape ``view``."""
        assert isinstance(self.source, Weight)
        return self.source

    @property
    def array(self) -> Any:
        """Known numbers, broadcast."""
        if not isinstance(self.source, Weight):
            return self.source
        return np.broadcast_to(self.source.values.reshape(self.view), self.shape)

    @property
    def scalar(self) -> float | None:
        """A known number that all entries are; None where there is none."""
        if not isinstance(self.source, Weight) or self.source.values.size == 0:
            return None
        values = self.source.values
        if values.dtype.kind not in "fiub" or (
            values.size > 1 and (values != values.flat[0]).any()
        ):
            return None
        return float(values.flat[0])

    def laid(self, *step: Any) -> Held:
        """A stored array after one more step of its layout."""
        weight = self.whole_weight().then(*step)
        return Held(weight, weight.shape, weight.shape, self.dtype)

    def whole_weight(self) -> Weight:
        """The stored array in the shape that it is broadcast to."""
        weight = self.weight
        if math.prod(self.view) == math.prod(self.shape):
            return weight if weight.shape == self.shape else weight.then("reshape", self.shape)
        return Weight(weight.name, np.ascontiguousarray(self.array))


def known(array: Any, name: str) -> Held:
    """Known numbers as a stored array of that name."""
    if hasattr(array, "dtype") and str(array.dtype).startswith("key"):
        return Held(array, tuple(array.shape), tuple(array.shape), "key")
    values = np.asarray(array)
    values = values.astype(_PLAIN.get(values.dtype.kind, np.float32))
    return Held(Weight(name, values), values.shape, values.shape, dtype_name(array.dtype))


_PLAIN = {"f": np.float32, "i": np.int32, "u": np.uint32, "b": np.bool_}


def dtype_name(dtype: Any) -> str:
    """The graph's dtype for an array's: all floats are float32, all whole numbers int32."""
    kind = np.dtype(dtype).kind if not str(dtype).startswith(("bfloat", "float")) else "f"
    return {"f": "float32", "i": "int32", "u": "int32", "b": "bool"}.get(kind, str(dtype))


def squeezed(shapes: Sequence[Shape]) -> tuple[list[Shape], list[int]]:
    """Shapes of equal rank without the axes on which all are 1, and the axes that stay."""
    kept = [k for k in range(len(shapes[0])) if any(shape[k] != 1 for shape in shapes)]
    return [tuple(shape[k] for k in kept) for shape in shapes], kept


class Builder:
    """Adds operations and counts values; one for each graph."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.constants: dict[int, Weight] = {}
        self.next = 0
        self._turns: dict[Any, Transpose] = {}  # by value
        self._of_weight: dict[int, int] = {}
        self._kept: list[Weight] = []  # so that no id is used twice
        self._names: dict[str, int] = {}

    def value(self) -> int:
        """A new value."""
        self.next += 1
        return self.next - 1

    def input(self, shape: Shape, dtype: str) -> Held:
        """A new value that no operation makes."""
        return Held(self.value(), shape, shape, dtype)

    def unique(self, base: str) -> str:
        """A name that no operation has."""
        self._names[base] = self._names.get(base, 0) + 1
        return base if self._names[base] == 1 else f"{base}.{self._names[base]}"

    def constant(self, weight: Weight) -> int:
        """The value of a stored array."""
        if id(weight) not in self._of_weight:
            self._of_weight[id(weight)] = self.value()
            self._kept.append(weight)
            self.constants[self._of_weight[id(weight)]] = weight
        return self._of_weight[id(weight)]

    def read(self, held: Held) -> int:
        """The value that an operation reads."""
        return held.source if isinstance(held.source, int) else self.constant(held.weight)

    def emit(
        self, cls: type[Op], inputs: Sequence[Held], in_shapes: Sequence[Shape], out: Shape,
        *, name: str = "", dtype: str | None = None, **attributes: Any,
    ) -> Held:  # fmt: skip
        """Adds an operation of one output; inputs are read in the shapes given."""
        value, dtype = self.value(), dtype or inputs[0].dtype
        op = cls(
            name=self.unique(name or cls.__name__.lower()),
            inputs=tuple(self.read(x) for x in inputs), outputs=(value,),
            in_shapes=tuple(map(tuple, in_shapes)), out_shapes=(tuple(out),), dtypes=(dtype,),
            **attributes,
        )  # fmt: skip
        self.ops.append(op)
        if isinstance(op, Transpose):
            self._turns[value] = op
        return Held(value, tuple(out), tuple(out), dtype)

    def map(self, function: str, xs: Sequence[Held], out: Shape, numbers: Any = ()) -> Held:
        """An elementwise function."""
        views = [(1,) * (len(out) - len(x.view)) + x.view for x in xs]
        made = tuple(np.broadcast_shapes(*views))
        shapes, _ = squeezed([*views, made])
        dtype = result_dtype(function, tuple(x.dtype for x in xs))
        y = self.emit(
            Map, xs, shapes[:-1], shapes[-1], name=function, dtype=dtype,
            function=function, numbers=tuple(map(float, numbers)),
        )  # fmt: skip
        return Held(y.source, made, tuple(out), dtype)

    def whole(self, x: Held) -> Held:
        """The same numbers with no broadcast left to do."""
        if x.view == x.shape:
            return x
        if math.prod(x.view) == math.prod(x.shape):
            return dataclasses.replace(x, view=x.shape)
        if x.known:
            weight = x.whole_weight()
            return Held(weight, x.shape, x.shape, x.dtype)
        runs = [((0, 0, n),) if v == 1 != n else None for v, n in zip(x.view, x.shape, strict=True)]
        return self.take(dataclasses.replace(x, shape=x.view), runs)

    def reshape(self, x: Held, shape: Shape) -> Held:
        """A new shape for the same numbers in the same order: no operation."""
        if x.view != x.shape:
            kept = _reshaped_broadcast(x, shape)
            if kept is not None:
                return kept
        x = self.whole(x)
        if x.known:
            return x if x.shape == shape else x.laid("reshape", shape)
        return Held(x.source, shape, shape, x.dtype)

    def take(self, x: Held, index: Sequence[tuple[Run, ...] | None], fill: float = 0.0) -> Held:
        """Picks positions along axes of a value."""
        x = self.whole(x)
        full = [
            None if runs is None or elements(runs, n) == [*range(n)] else runs
            for runs, n in zip(index, x.shape, strict=True)
        ]
        out = tuple(
            n if runs is None else sum(run[2] for run in runs)
            for runs, n in zip(full, x.shape, strict=True)
        )
        if all(runs is None for runs in full):
            return x
        (inner, made), kept = squeezed([x.shape, out])
        y = self.emit(
            Take, [x], [inner], made, index=tuple(full[k] for k in kept), fill=float(fill)
        )
        return Held(y.source, out, out, x.dtype)

    def transpose(self, x: Held, axes: Sequence[int]) -> Held:
        """Axes in another order."""
        axes, out = tuple(axes), tuple(x.shape[k] for k in axes)
        if x.known:
            return self.whole(x).laid("transpose", axes) if axes != tuple(range(len(axes))) else x
        if x.view != x.shape:  # what is to be broadcast stays so
            y = self.transpose(dataclasses.replace(x, shape=x.view), axes)
            return dataclasses.replace(y, shape=out)
        kept = [k for k in axes if x.shape[k] != 1]
        if kept == sorted(kept):
            return Held(x.source, out, out, x.dtype)
        place = {k: i for i, k in enumerate(sorted(kept))}
        inner = tuple(x.shape[k] for k in sorted(kept))
        made = tuple(x.shape[k] for k in kept)
        turn = tuple(place[k] for k in kept)
        before = self._turning(x)
        if before is not None:  # one after the other: one
            turn, inner = tuple(before.axes[k] for k in turn), before.in_shape
            x = Held(before.inputs[0], inner, inner, x.dtype)
            if turn == tuple(range(len(turn))):
                return Held(x.source, out, out, x.dtype)
        y = self.emit(Transpose, [x], [inner], made, axes=turn)
        return Held(y.source, out, out, x.dtype)

    def undoes(self, x: Held, axes: Sequence[int]) -> bool:
        """Whether a transpose would take back the one that made a value."""
        kept = [k for k, n in enumerate(x.shape) if n != 1]
        op = self._turning(x)
        again = [] if op is None else [op.axes[kept.index(k)] for k in axes if k in kept]
        return op is not None and again == sorted(again)

    def _turning(self, x: Held) -> Transpose | None:
        """The transpose that made a value, if it is read in the shape that it was made in."""
        op = self._turns.get(x.source)
        same = op is not None and op.out_shape == tuple(n for n in x.shape if n != 1)
        return op if same else None

    def reduce(self, function: str, x: Held, axes: Sequence[int], dtype: str) -> Held:
        """A reduction over axes, which go."""
        x = self.whole(x)
        out = tuple(n for k, n in enumerate(x.shape) if k not in axes)
        kept = [k for k, n in enumerate(x.shape) if n != 1]
        over = [i for i, k in enumerate(kept) if k in axes]
        if not over and not function.startswith("arg"):
            return Held(x.source, out, out, x.dtype)
        inner = tuple(x.shape[k] for k in kept)
        made = tuple(n for i, n in enumerate(inner) if i not in over)
        y = self.emit(Reduce, [x], [inner], made, dtype=dtype, function=function, axes=tuple(over))
        return Held(y.source, out, out, dtype)

    def matmul(self, x: Held, y: Held, dims: tuple[int, int, int, int], transpose: bool) -> Held:
        """Products of matrices: sizes ``(b, m, k, n)``."""
        b, m, k, n = dims
        second = (b, n, k) if transpose else (b, k, n)
        return self.emit(MatMul, [x, y], [(b, m, k), second], (b, m, n), transpose=transpose)

    def graph(
        self, inputs: Sequence[Value], outputs: Sequence[Value], structure: Any = None
    ) -> Graph:
        """The graph so far."""
        return Graph(tuple(inputs), tuple(self.ops), tuple(outputs), self.constants, structure)


def _reshaped_broadcast(x: Held, shape: Shape) -> Held | None:
    """A reshape that only adds or drops axes of 1, of something that is still to be broadcast."""
    if [n for n in x.shape if n != 1] != [n for n in shape if n != 1]:
        return None
    kept = iter([v for v, n in zip(x.view, x.shape, strict=True) if n != 1])
    view = tuple(1 if n == 1 else next(kept) for n in shape)
    return Held(x.source, view, shape, x.dtype)
