"""A model as a graph of plain operations: what a file holds and every target starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from rosler_jax.graph.op import Op
from rosler_jax.graph.weight import Shape, Weight

_T = TypeVar("_T")


class Value(NamedTuple):
    """An input or an output of a graph.

    Attributes:
      id: of the value.
      name: where it is in the arguments, or in what the model returns: ``"0"``, ``"1/h"``.
      shape: of one example.
      dtype: ``"float32"``, ``"int32"`` or ``"bool"``.

    Example:
      >>> import jax.numpy as jnp
      >>> from rosler_jax.graph import trace
      >>> x = jnp.ones((1, 3))
      >>> graph = trace(lambda pair: pair["left"] - pair["right"], {"left": x, "right": x})
      >>> [(value.name, value.shape, value.dtype) for value in graph.inputs]
      [('0/left', (3,), 'float32'), ('0/right', (3,), 'float32')]
    """

    id: int
    name: str
    shape: Shape
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Operations, each after those whose results it reads.

    Attributes:
      inputs: in the order of the arguments' leaves.
      ops: the operations.
      outputs: what the model returns; a value may be an input or a constant.
      constants: stored arrays that operations read as values, by value.
      structure: of what the model returns: None for one array, else nested lists and dicts whose
        leaves count the outputs.

    Example:
      >>> import jax.numpy as jnp
      >>> from rosler_jax.graph import trace
      >>> graph = trace(lambda x: {"mean": (x @ jnp.ones((4, 2))).mean(-1)}, jnp.ones((8, 4)))
      >>> [type(op).__name__ for op in graph.ops], [weight.shape for weight in graph.weights()]
      (['Dense', 'Reduce'], [(4, 2)])
      >>> graph.in_shape, graph.out_shape, graph.structure
      ((4,), (), {'mean': 0})
    """

    inputs: tuple[Value, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Value, ...]
    constants: Mapping[int, Weight] = dataclasses.field(default_factory=dict)
    structure: Any = None

    @property
    def in_shape(self) -> Shape:
        """Shape of the first input."""
        return self.inputs[0].shape

    @property
    def out_shape(self) -> Shape:
        """Shape of the first output."""
        return self.outputs[0].shape

    def weights(self) -> list[Weight]:
        """All stored arrays, in order, those of bodies among them."""
        return [*self.constants.values(), *(w for op in self.ops for w in op_weights(op))]

    def consumers(self) -> dict[int, list[Op]]:
        """Which operations read each value."""
        found: dict[int, list[Op]] = {}
        for op in self.ops:
            for value in op.inputs:
                found.setdefault(value, []).append(op)
        return found

    def producers(self) -> dict[int, Op]:
        """Which operation makes each value."""
        return {value: op for op in self.ops for value in op.outputs}

    def dtypes(self) -> dict[int, str]:
        """The dtype of each value."""
        found = {value.id: value.dtype for value in self.inputs}
        found |= {k: weight.dtype for k, weight in self.constants.items()}
        return found | {k: d for op in self.ops for k, d in zip(op.outputs, op.dtypes, strict=True)}


def _held(op: Op, kind: type[_T]) -> dict[str, _T]:
    """The fields of an operation that hold one of a kind."""
    fields = ((field.name, getattr(op, field.name)) for field in dataclasses.fields(op))
    return {name: value for name, value in fields if isinstance(value, kind)}


def op_vectors(op: Op) -> list[Weight]:
    """The stored arrays that an operation itself holds."""
    return list(_held(op, Weight).values())


def op_weights(op: Op) -> Iterator[Weight]:
    """The stored arrays of one operation, those of a body among them."""
    for body in _held(op, Graph).values():
        yield from body.weights()
    yield from op_vectors(op)


def with_weights(op: Op, change: Any) -> Op:
    """An operation with every stored array changed by a function of the array."""
    new: dict[str, Any] = {name: change(value) for name, value in _held(op, Weight).items()}
    new |= {name: map_weights(body, change) for name, body in _held(op, Graph).items()}
    return dataclasses.replace(op, **new) if new else op


def map_weights(graph: Graph, change: Any) -> Graph:
    """A graph with every stored array changed by a function of the array.

    Example:
      >>> import jax.numpy as jnp
      >>> from rosler_jax.graph import run, trace
      >>> graph = trace(lambda x: x @ jnp.eye(2), jnp.ones((1, 2)))
      >>> twice = map_weights(graph, lambda w: Weight(w.name, 2 * w.values))
      >>> run(twice, [jnp.ones(2)])[0].tolist()
      [2.0, 2.0]
    """
    return dataclasses.replace(
        graph,
        ops=tuple(with_weights(op, change) for op in graph.ops),
        constants={k: change(weight) for k, weight in graph.constants.items()},
    )
