"""What every kind of operation has."""

from __future__ import annotations

import dataclasses

from rosler_jax.graph.weight import Shape


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Op:
    """What all operations have.

    Attributes:
      name: unique in its graph: where it came from.
      inputs: the values that it reads; results of operations, inputs or constants of the graph.
      outputs: the values that it makes.
      in_shapes, out_shapes: in which shape it reads and writes each.
      dtypes: of the outputs: ``"float32"``, ``"int32"`` or ``"bool"``.

    Example:
      >>> import jax.numpy as jnp
      >>> from rosler_jax.graph import trace
      >>> (op,) = trace(lambda x: x.reshape(-1, 2, 3).sum(-1), jnp.ones((1, 6))).ops
      >>> isinstance(op, Op), op.inputs, op.in_shape, op.out_shape, op.dtypes
      (True, (0,), (2, 3), (2,), ('float32',))
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    in_shapes: tuple[Shape, ...]
    out_shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...] = ("float32",)

    @property
    def in_shape(self) -> Shape:
        """Shape of the first input."""
        return self.in_shapes[0]

    @property
    def out_shape(self) -> Shape:
        """Shape of the first output."""
        return self.out_shapes[0]

    @property
    def output(self) -> int:
        """The first output."""
        return self.outputs[0]
