"""Graphs made by hand, that the tests of the graph share."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

import rosler_kernels as rk
from rosler_jax.graph import Graph, Op, Value, Weight, Window
from rosler_jax.graph.check import out_dtypes, out_shapes
from rosler_jax.graph.kinds import (
    Affine,
    Concat,
    Conv,
    Convolve,
    Cumulative,
    Dense,
    Gather,
    KernelGrad,
    Map,
    MatMul,
    Norm,
    PatchProject,
    Pool,
    Project,
    Reduce,
    Scan,
    Scatter,
    Slice,
    Softmax,
    Take,
    Transpose,
    Unpool,
)


class Maker:
    """Adds operations one after the other; shapes and dtypes of outputs follow."""

    def __init__(self) -> None:
        self.inputs: list[Value] = []
        self.ops: list[Op] = []
        self.constants: dict[int, Weight] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.dtypes: dict[int, str] = {}
        self._ids = itertools.count()

    def _value(self, shape: Any, dtype: str) -> int:
        k = next(self._ids)
        self.shapes[k], self.dtypes[k] = tuple(shape), dtype
        return k

    def input(self, *shape: int, dtype: str = "float32") -> int:
        """A new input."""
        k = self._value(shape, dtype)
        self.inputs.append(Value(k, str(len(self.inputs)), shape, dtype))
        return k

    def constant(self, weight: Weight) -> int:
        """A stored array as a value."""
        k = self._value(weight.shape, weight.values.dtype.name)
        self.constants[k] = weight
        return k

    def add(self, cls: type[Any], *reads: int, shapes: Any = None, **attributes: Any) -> Any:
        """An operation; its output, or all of them of a scan."""
        read = tuple(self.shapes[k] for k in reads) if shapes is None else tuple(shapes)
        name = attributes.pop("name", f"{cls.__name__.lower()}{len(self.ops)}")
        bare = {"outputs": (), "out_shapes": (), "dtypes": ()}
        op = cls(name=name, inputs=reads, in_shapes=read, **bare, **attributes)
        made = tuple(out_shapes(op))
        gives = out_dtypes(op, [self.dtypes[k] for k in reads])
        outputs = tuple(self._value(shape, d) for shape, d in zip(made, gives, strict=True))
        attributes |= {"outputs": outputs, "out_shapes": made, "dtypes": gives}
        self.ops.append(cls(name=name, inputs=reads, in_shapes=read, **attributes))
        return outputs if cls is Scan else outputs[0]

    def graph(self, *outputs: int, structure: Any = None) -> Graph:
        """What has been added, with these outputs."""
        names = [""] if len(outputs) == 1 else [str(k) for k in range(len(outputs))]
        values = tuple(
            Value(k, name, self.shapes[k], self.dtypes[k])
            for k, name in zip(outputs, names, strict=True)
        )
        return Graph(tuple(self.inputs), tuple(self.ops), values, self.constants, structure)


def window(*size: int, **given: Any) -> Window:
    """A window; one step at a time, without gaps and without padding unless given."""
    ones, none = (1,) * len(size), ((0, 0),) * len(size)
    plain = {"strides": ones, "padding": none, "dilation": ones, "input_dilation": ones}
    return Window(size=size, **({"groups": 1} | plain | given))


def weight(name: str, *shape: int, seed: int = 0) -> Weight:
    """A stored array of random numbers."""
    rng = np.random.default_rng([seed, *shape])
    return Weight(name, rng.normal(size=shape).astype(np.float32))


def every_kind(*, gradients: bool = True) -> tuple[Graph, list[np.ndarray]]:
    """A graph with every kind of operation, several inputs and outputs; and inputs for it.

    Without ``gradients`` it lacks those that only the gradient of a model has.
    """
    m = Maker()
    image, ids, state = m.input(6, 5, 4), m.input(3, dtype="int32"), m.input(7)
    x = m.add(Affine, image, center=np.float32(0.25), factor=np.float32([1, 2, 0.3, 4]))
    x = m.add(
        Conv, x, name="conv", weight=weight("conv/kernel", 3, 3, 2, 8), bias=weight("conv/bias", 8),
        window=window(3, 3, padding=((1, 1), (1, 1)), groups=2),
    )  # fmt: skip
    x = m.add(Map, x, function="clamp", numbers=(-1.0, 6.0))
    same = window(3, 3, padding=((1, 1), (1, 1)), groups=4)
    top = m.add(Pool, x, function="max", window=window(2, 2, strides=(2, 2)))
    if gradients:
        kernel = m.add(KernelGrad, x, x, window=same)
        x = m.add(Convolve, x, kernel, window=same)
        x = m.add(Unpool, x, top, window=window(2, 2, strides=(2, 2)))
    x = m.add(Map, x, function="tanh")
    x = m.add(Pool, x, function="sum", window=window(2, 1, strides=(2, 1)), scale=0.5)
    patches = rk.make("rademacher", 3, 2 * 2 * 4, 5)
    x = m.add(PatchProject, x, sketch=patches, scale=0.56, window=window(2, 2, groups=2))
    x = m.add(Dense, x, shapes=[(8, 10)], name="u", weight=weight("u", 10, 4))
    omega = rk.make("sparse_sign", 5, 6, 4, nnz=2)
    bias = Weight("bias", weight("bias", 3, 6).values, (("slice", 0, 1, 2), ("reshape", (6,))))
    x = m.add(Project, x, sketch=omega, scale=1.25, transpose=True, bias=bias)
    x = m.add(Transpose, x, shapes=[(8, 2, 3)], axes=(1, 0, 2))
    x = m.add(Take, x, index=(((1, -1, 2),), ((-1, 0, 1), (0, 3, 3)), None), fill=2.0)
    x = m.add(Norm, x, shapes=[(8, 3)], center=True, epsilon=1e-5, scale=weight("norm/scale", 3))
    x = m.add(Softmax, x)
    heads = m.constant(weight("heads", 2, 4, 3))
    x = m.add(MatMul, x, heads, shapes=[(2, 4, 3), (2, 4, 3)], transpose=True)
    table = m.constant(weight("table", 9, 4))
    looked = m.add(Gather, table, ids, wrap=True)
    running = m.add(Cumulative, looked, shapes=[(1, 3, 4)], function="sum", reverse=True)
    running = m.add(Scatter, ids, m.add(Map, running, function="neg", shapes=[(3, 4)]), size=3)
    x = m.add(Concat, x, running, shapes=[(8, 4), (3, 4)], axis=0)
    start = m.add(Reduce, ids, function="argmax", axes=(0,))
    x = m.add(Slice, x, start, shapes=[(1, 11, 4), ()], size=5)
    body = Maker()
    stack, carry, row = body.input(4, 7), body.input(7), body.input(4)
    inner = body.constant(Weight("stack", weight("stack", 3, 7).values, (("slice", 0, 1, 2),)))
    moved = body.add(MatMul, row, stack, shapes=[(1, 1, 4), (1, 4, 7)], transpose=False)
    moved = body.add(Map, moved, carry, shapes=[(7,), (7,)], function="add")
    moved = body.add(Map, moved, inner, shapes=[(7,), (7,)], function="mul")
    moved = body.add(Map, moved, function="tanh")
    told = body.add(Reduce, moved, function="max", axes=(0,))
    shared = m.constant(weight("cell", 4, 7))
    last, said = m.add(
        Scan, shared, state, x, shapes=[(4, 7), (7,), (5, 4)], shared=1, carries=1, length=5,
        reverse=True, body=body.graph(moved, told),
    )  # fmt: skip
    mask = m.constant(Weight("mask", np.array([1, 0, 1, 1, 0], np.bool_)))
    finite = m.add(Map, m.add(Map, said, function="isfinite"), mask, function="and")
    graph = m.graph(last, finite, said, structure={"last": 0, "rest": [1, {"said": 2}]})
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=v.shape).astype(np.float32) for v in graph.inputs]
    inputs[1] = np.array([4, 8, 0], np.int32)
    return graph, inputs
