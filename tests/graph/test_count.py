"""Operations of a graph against the jaxpr that it computes, and the parts that they belong to."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hand_made import Maker, every_kind, weight, window

import rosler_kernels as rk
from rosler_jax.graph import Graph, Weight, run, trace
from rosler_jax.graph.count import ELSEWHERE, Operations, operations, parts
from rosler_jax.graph.kinds import (
    KINDS,
    Conv,
    Convolve,
    Dense,
    KernelGrad,
    Map,
    MatMul,
    Project,
    Scan,
)


def products(jaxpr: Any, times: int = 1) -> int:
    """Multiplications of all products that a jaxpr computes."""
    total = 0
    for eqn in jaxpr.eqns:
        out = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += times * out * math.prod(eqn.invars[0].aval.shape[k] for k in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            features = eqn.params["dimension_numbers"].rhs_spec[0]
            kernel = eqn.invars[1].aval.shape
            total += times * out * math.prod(n for k, n in enumerate(kernel) if k != features)
        inner = [v for v in eqn.params.values() if hasattr(v, "jaxpr") or hasattr(v, "eqns")]
        for body in inner:
            length = int(eqn.params.get("length", 1))
            total += products(getattr(body, "jaxpr", body), times * length)
    return total


def counted(graph: Graph) -> Operations:
    return sum((part.operations for part in parts(graph)), Operations())


class Attention(nnx.Module):
    """Attention, a depthwise and a strided convolution, a cell that is scanned."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(6, 12, (3,), strides=2, feature_group_count=3, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 12, decode=False, rngs=rngs)
        self.cell = nnx.RNN(nnx.SimpleCell(12, 5, rngs=rngs))

    def __call__(self, x: Any) -> Any:
        x = self.attention(self.conv(x))
        return self.cell(x, initial_carry=jnp.zeros((len(x), 5)))


def test_a_graph_costs_what_its_jaxpr_does() -> None:
    graph = trace(Attention(nnx.Rngs(0)), jnp.ones((2, 20, 6)))
    jaxpr = jax.make_jaxpr(lambda x: run(graph, [x]))(jnp.ones((20, 6)))
    assert counted(graph).multiplications == products(jaxpr.jaxpr) > 5_000


def one(cls: type[Any], *shapes: tuple[int, ...], **attributes: Any) -> Any:
    m = Maker()
    m.add(cls, *(m.input(*shape) for shape in shapes), **attributes)
    return m.ops[0]


WIDE = window(3, 2, padding=((1, 1), (0, 1)), strides=(2, 1), groups=2)


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (one(Dense, (5, 7), weight=weight("w", 7, 3)), (5 * 21, 5 * 18)),
        (one(Dense, (5, 7), weight=weight("w", 7, 3), bias=weight("b", 3)), (5 * 21, 5 * 21)),
        (one(Conv, (7, 5, 4), weight=weight("k", 3, 2, 2, 6), window=WIDE),
         (4 * 5 * 12 * 6, 4 * 5 * 11 * 6)),
        (one(Convolve, (7, 5, 4), (3, 2, 2, 6), window=WIDE), (4 * 5 * 12 * 6, 4 * 5 * 11 * 6)),
        # Every entry of the kernel is a sum over the positions.
        (one(KernelGrad, (7, 5, 4), (4, 5, 6), window=WIDE), (20 * 12 * 6, 19 * 12 * 6)),
        (one(MatMul, (2, 3, 4), (2, 4, 5), transpose=False), (2 * 3 * 4 * 5, 2 * 3 * 3 * 5)),
        (one(MatMul, (2, 3, 4), (2, 5, 4), transpose=True), (2 * 3 * 4 * 5, 2 * 3 * 3 * 5)),
        (one(Project, (3, 60), sketch=rk.srht(0, 60, 8), scale=1.0, transpose=False),
         (0, 3 * 6 * 64)),
        (one(Project, (3, 8), sketch=rk.gaussian(0, 60, 8), scale=1.0, transpose=True),
         (3 * 480, 3 * 420)),
        # As many nonzeros as this sketch has, not as its family has by default.
        (one(Project, (3, 60), sketch=rk.sparse_sign(0, 60, 8, nnz=2), scale=1.0, transpose=False),
         (0, 3 * (60 * 2 - 8))),
        (one(Project, (3, 60), sketch=rk.dct(0, 60, 8), scale=1.0, transpose=False),
         (3 * 480, 3 * 472)),
        # 4 frequencies of 10 pixels in 6 lines, then 6 pixels for each of 8.
        (one(Project, (3, 60), sketch=rk.dct(0, 60, 8, height=6, width=10), scale=1.0,
             transpose=False), (3 * (240 + 48), 3 * (216 + 40))),
        (one(Project, (3, 8), sketch=rk.dct(0, 60, 8, height=6, width=10), scale=1.0,
             transpose=True), (3 * (240 + 48), 3 * (180 + 24))),
        (one(Project, (3, 60), sketch=rk.pool(0, 60, 20), scale=1.0, transpose=False),
         (0, 3 * 40)),
        (one(Project, (3, 20), sketch=rk.pool(0, 60, 20), scale=1.0, transpose=True), (0, 0)),
        (one(Map, (3, 8), function="tanh"), (0, 0)),
    ],
)  # fmt: skip
def test_operations_of_one(op: Any, expected: tuple[int, int]) -> None:
    assert operations(op) == Operations(*expected)


def test_every_kind_is_counted_or_works_element_by_element() -> None:
    graph, _ = every_kind()
    by_kind = {type(op).__name__: operations(op) for op in graph.ops}
    assert by_kind.keys() == KINDS.keys()
    idle = {kind for kind, work in by_kind.items() if work == Operations()}
    assert idle == {
        "Affine", "Map", "Reduce", "Pool", "Take", "Transpose", "Concat", "Softmax", "Norm",
        "Gather", "Cumulative", "Slice", "Unpool", "Scatter",
    }  # fmt: skip


def test_factors_are_one_part_and_layers_are_not() -> None:
    m = Maker()
    x = m.input(3, 20)
    for name, a, b in (("one/c", 20, 4), ("one/r", 4, 30), ("two/kernel", 30, 6)):
        x = m.add(Dense, x, weight=weight(name, a, b), name=name)
    first, second = parts(m.graph(x))
    assert (first.layer, first.kind) == ("one", "factors 20->4->30")
    assert first.operations == 3 * Operations(20 * 4 + 4 * 30, 19 * 4 + 3 * 30)
    assert (first.dense, first.dense_weights) == (3 * Operations(600, 19 * 30), 600)
    assert (second.layer, second.kind, second.dense_weights) == ("two", "dense 30->6", 180)


def test_sketches_belong_to_the_core_beside_them() -> None:
    m = Maker()
    x = m.input(1, 40)
    for name in ("one/u", "two/u"):
        psi, omega = rk.srht(0, 40, 16), rk.srht(1, 40, 4)
        x = m.add(Project, x, sketch=psi, scale=1.0, transpose=False)
        x = m.add(Dense, x, weight=weight(name, 16, 4), name=name)
        x = m.add(Project, x, sketch=omega, scale=1.0, transpose=True)
    found = parts(m.graph(x))
    assert [(part.layer, part.sketches, part.dense_weights) for part in found] == [
        ("one", 2, 1600), ("two", 2, 1600),
    ]  # fmt: skip
    assert found[0].kind == "seeded core 16x4, srht, 40->40"
    m = Maker()
    x = m.add(Project, m.input(1, 40), sketch=rk.dct(0, 40, 16), scale=1.0, transpose=False)
    (part,) = parts(m.graph(m.add(Dense, x, weight=weight("one/u", 16, 4), name="one/u")))
    assert (part.kind, part.sketches) == ("core 16x4, dct, 40->4", 0)


def test_scans_count_their_length_and_products_of_values_have_a_part() -> None:
    body = Maker()
    row, kernel = body.input(4), body.input(4, 4)
    y = body.add(MatMul, row, kernel, shapes=[(1, 1, 4), (1, 4, 4)], transpose=False)
    m = Maker()
    x, stack = m.input(4), m.constant(Weight("stack/kernel", np.ones((3, 4, 4), np.float32)))
    graph = body.graph(body.add(Map, y, function="tanh", shapes=[(4,)]))
    (last,) = m.add(
        Scan, x, stack, shared=0, carries=1, length=3, reverse=False, body=graph
    )  # fmt: skip
    m.add(MatMul, last, last, shapes=[(1, 4, 1), (1, 1, 4)], transpose=False)
    product, scanned = parts(m.graph(last))
    assert (scanned.layer, scanned.kind) == ("stack", "3 layers of dense 4->4")
    assert scanned.operations.multiplications == 3 * 16 == scanned.dense_weights
    assert (product.layer, product.operations.multiplications) == (ELSEWHERE, 16)
