"""ONNX of every kind of operation, in all its forms, in onnxruntime against the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import public_models
import pytest
import tiny_models
from flax import nnx
from hand_made import Maker, every_kind, weight, window
from made_once import outputs_of
from random_graphs import MAKERS, random_graph

import rosler_kernels as rk
from rosler_jax.export._errors import ExportError
from rosler_jax.export.onnx import EMIT, onnx_model
from rosler_jax.graph import KINDS, Graph, Weight, run, trace
from rosler_jax.graph.functions import FUNCTIONS
from rosler_jax.graph.kinds import (
    Affine,
    Concat,
    Conv,
    Convolve,
    Cumulative,
    Dense,
    Gather,
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
from rosler_jax.quantization import quantize

onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra test is not installed")

TOLERANCE = 2e-5  # float32 sums in another order


def session_of(graph: Graph, bits: int = 32) -> Any:
    model = onnx_model(graph, bits)
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def drawn(graph: Graph, batch: int, high: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(batch)

    def values(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        if dtype == "float32":
            return rng.normal(size=shape).astype(np.float32)
        return rng.integers(0, 2 if dtype == "bool" else high, shape).astype(dtype)

    return [values((batch, *value.shape), value.dtype) for value in graph.inputs]


def assert_equal(
    graph: Graph, xs: list[np.ndarray] | None = None, bits: int = 32, tolerance: float = TOLERANCE
) -> None:
    session = session_of(graph, bits)
    names = [x.name for x in session.get_inputs()]
    for batch in (1, 3) if xs is None else (len(xs[0]),):
        given = drawn(graph, batch) if xs is None else xs
        wanted = jax.jit(jax.vmap(lambda *xs: run(graph, xs)))(*given)
        got = session.run(None, dict(zip(names, given, strict=True)))
        for y, want in zip(got, map(np.asarray, wanted), strict=True):
            assert y.shape == want.shape
            assert y.dtype == want.dtype
            assert (np.isnan(y) == np.isnan(want)).all()
            size = max(1.0, float(np.nan_to_num(np.abs(want), posinf=0).max(initial=0)))
            np.testing.assert_allclose(y, want, rtol=0, atol=tolerance * size)


def kinds(graph: Graph, bits: int = 32) -> list[str]:
    return [node.op_type for node in onnx_model(graph, bits).graph.node]


CASES: dict[str, Callable[[Maker], list[int]]] = {}


def case(make: Callable[[Maker], Any]) -> Callable[[Maker], Any]:
    CASES[make.__name__] = lambda m: [y] if isinstance(y := make(m), int) else list(y)
    return make


@case
def dense_of_rows_and_residual(m: Maker) -> int:
    x = m.input(5, 6)
    y = m.add(Dense, x, weight=weight("w", 6, 7), bias=weight("b", 7))
    y = m.add(Dense, m.add(Map, y, function="relu"), weight=weight("u", 7, 6))
    return m.add(Map, x, y, function="add")


def convolved(m: Maker, *shape: int, n: int = 4, **options: Any) -> int:
    x, size = m.input(*shape), options.pop("size", (3,) * (len(shape) - 1))
    kernel = weight("k", *size, shape[-1] // options.get("groups", 1), n)
    return m.add(Conv, x, weight=kernel, bias=weight("b", n), window=window(*size, **options))


@case
def conv_of_a_signal_causal_and_dilated(m: Maker) -> int:
    return convolved(m, 9, 3, padding=((4, 0),), dilation=(2,))


@case
def conv_grouped_strided(m: Maker) -> int:
    return convolved(m, 7, 6, 4, groups=2, strides=(2, 1), padding=((1, 1), (0, 2)))


@case
def conv_with_gaps(m: Maker) -> int:
    return convolved(m, 4, 3, 2, input_dilation=(2, 3), padding=((1, 1), (4, 0)))


@case
def conv_of_volumes(m: Maker) -> int:
    return convolved(m, 4, 5, 3, 2, size=(2, 3, 1))


@case
def dense_of_pixels_stays_a_convolution(m: Maker) -> int:
    x = convolved(m, 6, 5, 3)
    return m.add(Dense, x, shapes=[(12, 4)], weight=weight("w", 4, 6), bias=weight("c", 6))


def sketch(kind: str, rows: int, cols: int) -> rk.Sketch:
    more = {"nnz": 2} if kind == "sparse_sign" else {}
    return rk.make(kind, 5, rows, cols, **more)


FAMILIES = (
    "gaussian", "rademacher", "sparse_sign", "block_perm", "srht", "rows_uniform", "dct", "pool",
)  # fmt: skip


def projected(m: Maker, kind: str, first: bool) -> int:
    x = convolved(m, 6, 5, 3, n=10) if first else m.input(24, 5)
    x = m.add(Project, x, shapes=[(24, 5)], sketch=sketch(kind, 5, 3), scale=0.7, transpose=False)
    y = m.add(
        Project, x, sketch=sketch(kind, 6, 3), scale=1.3, transpose=True, bias=weight("b", 2, 6)
    )
    return m.add(Map, y, shapes=[(4, 3, 12)], function="tanh")


for _kind in FAMILIES:
    CASES[f"project {_kind}"] = lambda m, kind=_kind: [projected(m, kind, False)]
    CASES[f"project {_kind} of channels"] = lambda m, kind=_kind: [projected(m, kind, True)]
    CASES[f"patches {_kind}"] = lambda m, kind=_kind: [
        m.add(
            PatchProject, m.input(6, 5, 4), sketch=sketch(kind, 8, 5), scale=0.4,
            window=window(2, 2, strides=(2, 1), padding=((1, 0), (1, 1)), groups=2),
        )
    ]  # fmt: skip


@case
def products_of_values_and_of_constants(m: Maker) -> tuple[int, ...]:
    x, y = m.input(2, 3, 4), m.input(2, 5, 4)
    c = m.constant(weight("c", 2, 4, 5))
    scores = m.add(MatMul, x, y, transpose=True)
    return (
        m.add(MatMul, scores, y, transpose=False),
        m.add(MatMul, x, c, transpose=False),
        m.add(MatMul, c, x, shapes=[(1, 10, 4), (1, 6, 4)], transpose=True),
    )


@case
def affine_per_channel(m: Maker) -> tuple[int, ...]:
    x = convolved(m, 6, 5, 3)
    center, factor = np.float32([1, 2, 3, 4]), np.float32([0.5, 2, -1, 3])
    y = m.add(Affine, x, center=center, factor=np.float32(3))
    z = m.add(Affine, x, shapes=[(12, 4)], center=np.float32(0), factor=factor)
    return y, z, m.add(Affine, m.input(3, dtype="int32"), center=np.float32(1), factor=np.ones(()))


@case
def broadcasting_after_a_convolution(m: Maker) -> tuple[int, ...]:
    """As in squeeze and excitation: one factor for each channel of each example."""
    x = convolved(m, 6, 5, 3)
    mean = m.add(Reduce, x, function="sum", axes=(0, 1), scale=1 / 12)
    gate = m.add(Map, mean, function="sigmoid")
    y = m.add(Map, x, gate, shapes=[(4, 3, 4), (1, 1, 4)], function="mul")
    columns = m.constant(weight("c", 3, 1))
    z = m.add(Map, columns, y, function="sub")
    z = m.add(Map, z, m.constant(weight("v", 4)), function="add")
    z = m.add(Map, z, m.constant(Weight("s", np.float32(2.5))), function="mul")
    return z, m.add(Map, m.constant(weight("whole", 4, 3, 4)), y, function="max")


@case
def broadcasting_of_rows(m: Maker) -> tuple[int, ...]:
    x = m.add(Dense, m.input(3, 4), weight=weight("w", 4, 5))
    row, column = m.input(5), m.input(3, 1)
    y = m.add(Map, x, row, function="add")
    y = m.add(Map, column, y, function="mul")
    mask = m.constant(Weight("m", np.tril(np.ones((3, 5), bool))))
    low = m.constant(Weight("l", np.float32(-1e9)))
    return y, m.add(Map, mask, x, low, function="select"), m.add(Map, row, column, function="sub")


REDUCTIONS = ("sum", "max", "min", "prod", "argmax", "argmin")


@case
def reductions_of_floats(m: Maker) -> list[int]:
    x = convolved(m, 6, 5, 3)
    one = [m.add(Reduce, x, function=f, axes=(k,)) for f in REDUCTIONS for k in range(3)]
    return [*one, *(m.add(Reduce, x, function="sum", axes=a, scale=0.3) for a in ((0, 1), (0, 2)))]


@case
def reductions_of_whole_numbers(m: Maker) -> list[int]:
    x, flags = m.input(3, 4, dtype="int32"), m.input(3, 4, dtype="bool")
    found = [m.add(Reduce, x, function=f, axes=(1,)) for f in REDUCTIONS]
    return [*found, *(m.add(Reduce, flags, function=f, axes=(0,)) for f in ("all", "any"))]


POOLS: dict[str, dict[str, Any]] = {
    "plain": {"strides": (2, 2)},
    "padded": {"padding": ((1, 0), (1, 1))},
    "far padded": {"padding": ((3, 0), (0, 2))},
    "dilated": {"dilation": (2, 1)},
    "gaps": {"input_dilation": (1, 2)},
}


def pooled(m: Maker, function: str, scale: float, options: dict[str, Any]) -> list[int]:
    x = m.input(6, 5, 3)
    return [m.add(Pool, x, function=function, window=window(2, 2, **options), scale=scale)]


for _name, _options in POOLS.items():
    for _function, _scale in (("max", 1.0), ("sum", 0.25), ("sum", 1.0)):
        CASES[f"pool {_name} {_function} {_scale}"] = lambda m, f=_function, s=_scale, o=_options: (
            pooled(m, f, s, o)
        )


TAKES = {
    "cut": (((1, 1, 4),), None, ((0, 2, 2),)),
    "turned": (((5, -1, 6),), ((4, -2, 2),), None),
    "padded": (((-1, 0, 2), (0, 1, 6), (-1, 0, 1)), ((-1, 0, 1), (2, 1, 2)), None),
    "wrapped": (((5, 1, 1), (0, 1, 6), (0, 1, 2)), None, ((2, 0, 4),)),
    "spread": (((0, 1, 1), (-1, 0, 2), (1, 1, 1)), None, None),
    "filled": (None, ((-1, 0, 3),), None),
    "repeated": (((3, 0, 2),), None, ((1, 0, 3),)),
}


def taken(m: Maker, index: Any, fill: float, dtype: str) -> list[int]:
    x = m.input(6, 5, 3, dtype=dtype)
    y = m.add(Take, x, index=index, fill=fill)
    if dtype != "float32":
        return [y]
    return [y, m.add(Take, convolved(m, 6, 5, 3, n=3, size=(1, 1)), index=index, fill=fill)]


for _name, _index in TAKES.items():
    for _fill, _dtype in ((0.0, "float32"), (-np.inf, "float32"), (7, "int32")):
        CASES[f"take {_name} {_fill} {_dtype}"] = lambda m, i=_index, f=_fill, d=_dtype: taken(
            m, i, f, d
        )


@case
def transposes(m: Maker) -> tuple[int, ...]:
    x, y = m.input(2, 3, 4), convolved(m, 4, 5, 3, n=4)
    ones = m.input(1, 3, 4)
    return (
        m.add(Transpose, x, axes=(2, 0, 1)),
        m.add(Transpose, y, axes=(2, 0, 1)),
        m.add(Transpose, y, axes=(1, 2, 0)),
        m.add(Transpose, ones, axes=(1, 0, 2)),
        m.add(Transpose, m.constant(weight("c", 3, 2)), axes=(1, 0)),
    )


@case
def concatenations(m: Maker) -> tuple[int, ...]:
    x, y = m.input(4, 3, 4), convolved(m, 6, 5, 3)
    c, d = m.constant(weight("c", 1, 3, 4)), m.constant(weight("d", 2, 3, 4))
    return (
        m.add(Concat, x, y, axis=2),
        m.add(Concat, c, x, y, axis=0),
        m.add(Concat, c, d, axis=0),
    )


@case
def softmax_and_norms(m: Maker) -> tuple[int, ...]:
    x, y = m.input(5, 4), convolved(m, 6, 5, 3)
    scale, bias = weight("s", 4), weight("b", 4)
    return (
        m.add(Softmax, x),
        m.add(Softmax, y, shapes=[(12, 4)], log=True),
        m.add(Softmax, x, shapes=[(2, 10)]),
        m.add(Norm, x, center=True, epsilon=1e-5),
        m.add(Norm, y, shapes=[(12, 4)], center=True, epsilon=1e-3, scale=scale, bias=bias),
        m.add(Norm, x, center=False, epsilon=1e-6, scale=scale, bias=bias),
        m.add(Norm, x, shapes=[(1, 20)], center=False, epsilon=1e-6),
    )


@case
def gathers(m: Maker) -> list[int]:
    ids, table = m.input(5, dtype="int32"), m.input(3, 4)  # one in four is beyond the table
    negative = m.add(Map, ids, function="neg")
    stored, other = m.constant(weight("t", 3, 2)), m.constant(weight("o", 3, 1, 4))
    whole = m.constant(Weight("i", np.arange(6, dtype=np.int32).reshape(3, 2)))
    known = m.constant(Weight("k", np.array([2, 0, -1, 5], np.int32)))
    made = m.add(Map, other, function="exp")
    found = [m.add(Gather, stored, i, wrap=w) for i in (ids, negative) for w in (False, True)]
    return [
        *found,
        m.add(Gather, whole, ids, wrap=False),
        m.add(Gather, table, ids, wrap=False),
        m.add(Gather, table, known, wrap=True),
        m.add(Gather, stored, known, wrap=False),
        m.add(Gather, made, ids, shapes=[(3, 4), (5,)], wrap=False),
    ]


@case
def scattered(m: Maker) -> list[int]:
    ids, rows = m.input(6, dtype="int32"), m.input(6, 2)
    known = m.constant(Weight("k", np.array([2, 0, -1, 2, 1, 5], np.int32)))
    c = m.constant(weight("rows", 6, 2))
    back = m.add(Map, ids, function="neg")
    given = ((ids, rows), (known, rows), (ids, c), (known, c), (back, rows))
    return [m.add(Scatter, *pair, size=3) for pair in given]


@case
def convolved_with_a_kernel_that_is_computed(m: Maker) -> int:
    kernel = m.add(Map, m.constant(weight("k", 2, 3, 2, 4)), function="tanh")
    return m.add(Convolve, m.input(5, 6, 4), kernel, window=window(2, 3, groups=2))


@case
def running(m: Maker) -> list[int]:
    x, k = m.input(2, 7, 3), m.input(1, 5, 2, dtype="int32")
    return [
        m.add(Cumulative, value, function=f, reverse=r)
        for value in (x, k)
        for f in ("sum", "prod", "max", "min")
        for r in (False, True)
    ]


@case
def slices_from_a_value(m: Maker) -> list[int]:
    x, start = m.input(2, 6, 3), m.input(1, dtype="int32")
    back = m.add(Map, start, function="neg")
    known = m.constant(Weight("k", np.array([9], np.int32)))
    flat = m.add(Map, x, shapes=[(1, 12, 3)], function="exp")
    c = m.constant(weight("c", 1, 5, 2))
    cut = [m.add(Slice, v, s, size=3) for v in (x, flat, c) for s in (start, back, known)]
    return cut


def counted(length: int, reverse: bool) -> Callable[[Maker], list[int]]:
    """A loop with a counter that is the same in every example, and states that are not."""

    def make(m: Maker) -> list[int]:
        b = Maker()
        w, i, h, _, x = b.input(3), b.input(dtype="int32"), b.input(3), b.input(3), b.input(3)
        one = b.constant(Weight("one", np.int32(1)))
        y = b.add(Map, b.add(Map, x, w, function="mul"), h, function="add")
        y = b.add(Dense, y, shapes=[(1, 3)], weight=weight("cell", 3, 3))
        y = b.add(Map, y, shapes=[(3,)], function="tanh")
        i2 = b.add(Map, i, one, function="add")
        at = b.add(Map, i, function="float32")
        body = b.graph(i2, y, x, at, b.add(Map, y, at, function="add"), w)
        zero = m.constant(Weight("zero", np.zeros((), np.int32)))
        first = m.constant(weight("h", 3))
        return list(
            m.add(
                Scan, m.input(3), zero, m.input(3), first, m.input(length, 3),
                body=body, shared=1, carries=3, length=length, reverse=reverse,
            )
        )  # fmt: skip

    return make


CASES["loop"], CASES["loop backwards"] = counted(4, False), counted(3, True)


@case
def loop_without_sequences(m: Maker) -> list[int]:
    b = Maker()
    x, y = b.input(2), b.input(2)
    body = b.graph(b.add(Map, x, y, function="add"), x)
    first = m.constant(weight("x", 2))
    return list(
        m.add(Scan, first, m.input(2), body=body, shared=0, carries=2, length=5, reverse=False)
    )


@case
def loop_in_a_loop(m: Maker) -> list[int]:
    inner, outer = Maker(), Maker()
    s, x = inner.input(2), inner.input(2)
    total = inner.add(Map, s, x, function="add")
    body = inner.graph(total, inner.add(Map, total, function="sin"))
    state, rows = outer.input(2), outer.input(3, 2)
    last, said = outer.add(
        Scan, state, rows, body=body, shared=0, carries=1, length=3, reverse=True
    )
    return list(
        m.add(
            Scan, m.input(2), m.input(4, 3, 2), body=outer.graph(last, said),
            shared=0, carries=1, length=4, reverse=False,
        )
    )  # fmt: skip


@case
def outputs_that_are_inputs_constants_or_twice(m: Maker) -> list[int]:
    x, c = m.input(2, 3), m.constant(weight("c", 4))
    y = m.add(Map, x, function="exp")
    return [x, y, c, y, m.input(dtype="bool")]


@case
def channels_first_data_needs_no_transpose(m: Maker) -> int:
    """A user's NCHW input, moved to the end for the convolution."""
    x = m.add(Transpose, m.input(3, 6, 5), axes=(1, 2, 0))
    y = m.add(Conv, x, weight=weight("k", 3, 3, 3, 4), window=window(3, 3))
    return m.add(Transpose, y, axes=(2, 0, 1))


@pytest.mark.parametrize("name", CASES)
def test_a_kind_equals_the_graph_at_any_batch(name: str) -> None:
    m = Maker()
    outputs = CASES[name](m)
    assert_equal(m.graph(*outputs))


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs(seed: int) -> None:
    graph, xs = random_graph(seed)
    assert_equal(graph, [np.stack([x, -0.5 * x[::-1], 0.7 * x]) for x in xs])


@pytest.mark.parametrize("kind", MAKERS)
def test_random_graphs_of_a_kind(kind: str) -> None:
    graph, xs = random_graph(2000, [kind], 4)
    assert_equal(graph, [x[None] for x in xs])


def test_every_kind_at_once() -> None:
    graph, xs = every_kind(gradients=False)
    assert set(EMIT) == set(KINDS.values())
    assert_equal(graph, [np.stack([x, x[::-1]]) for x in xs])


def test_what_only_gradients_have_is_refused() -> None:
    m = Maker()
    x = m.input(4, 4, 1)
    pooled = m.add(
        Unpool, x, m.add(Pool, x, function="max", window=window(2, 2)), window=window(2, 2)
    )
    with pytest.raises(ExportError, match="ONNX has no Unpool, which is a gradient's"):
        onnx_model(m.graph(pooled))
    m = Maker()
    y = m.add(Convolve, m.input(4, 1), m.input(2, 1, 1), window=window(2))
    with pytest.raises(ExportError, match="no convolution with a kernel for each example"):
        onnx_model(m.graph(y))


NUMBERS = {"clamp": (-0.5, 1.0), "power": (3.0,)}
POSITIVE = ("log", "sqrt", "rsqrt", "pow")
LOGICAL = ("and", "or", "xor", "not")


def of_function(name: str, dtype: str) -> tuple[Graph, list[np.ndarray]]:
    m, rng = Maker(), np.random.default_rng(0)
    arity = FUNCTIONS[name].arity
    dtypes = ["bool", dtype, dtype] if name == "select" else [dtype] * arity
    y = m.add(
        Map, *(m.input(50, dtype=d) for d in dtypes), function=name, numbers=NUMBERS.get(name, ())
    )
    xs = [rng.normal(0, 2, (2, 50)).astype(np.float32) for _ in dtypes]
    xs[0][:, :4] = [0.0, 1e-6, -1e-4, 80.0]
    xs[0] = np.abs(xs[0]) if name in POSITIVE else xs[0]
    if name == "log1p":
        xs[0] = np.maximum(xs[0], -0.99)
    if name in ("exp", "expm1"):
        xs[0][:, 3] = 10.0
    if dtype == "int32":
        xs = [np.rint(3 * x).clip(-9, 9) for x in xs]
        xs[0][:, 0] = -(2**31)
        xs[1:] = [np.abs(x) for x in xs[1:]] if name == "pow" else xs[1:]
    if name in ("eq", "ne"):
        xs[1][:, ::2] = xs[0][:, ::2]
    return m.graph(y), [
        (x > 0) if d == "bool" else x.astype(d) for x, d in zip(xs, dtypes, strict=True)
    ]


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in LOGICAL])
def test_functions_of_floats(name: str) -> None:
    assert_equal(*of_function(name, "float32"), tolerance=2e-6)


WHOLE = (
    "relu", "neg", "abs", "sign", "clamp", "power", "add", "sub", "mul", "div", "rem", "max",
    "min", "eq", "ne", "lt", "le", "gt", "ge", "select", "float32", "int32", "bool", "isfinite",
)  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_functions_of_whole_numbers(name: str) -> None:
    assert_equal(*of_function(name, "int32"), tolerance=0)


@pytest.mark.parametrize(
    "name", [*LOGICAL, "eq", "ne", "max", "min", "add", "mul", "select", "float32", "int32"]
)
def test_functions_of_truth_values(name: str) -> None:
    assert_equal(*of_function(name, "bool"), tolerance=0)


@pytest.mark.parametrize("name", ["expm1", "log1p", "tanh", "erf", "cbrt"])
def test_functions_are_precise_near_zero(name: str) -> None:
    m = Maker()
    graph = m.graph(m.add(Map, m.input(60), function=name))
    x = np.geomspace(1e-12, 1.0, 60, dtype=np.float32) * np.float32([[1], [-0.9]])
    got = session_of(graph).run(None, {"input": x})[0]
    want = np.asarray(jax.vmap(lambda x: run(graph, [x])[0])(x))
    np.testing.assert_allclose(got, want, rtol=2e-6)


def test_not_finite_numbers_pass_through() -> None:
    m = Maker()
    x = m.input(4)
    names = ("relu", "gelu", "sigmoid", "silu", "softplus", "expm1", "log1p", "isfinite", "clamp")
    ys = [m.add(Map, x, function=f, numbers=NUMBERS.get(f, ())) for f in names]
    assert_equal(m.graph(*ys), [np.float32([[np.nan, np.inf, 2, np.nan]])])


def test_data_that_lie_channels_first_stay_so() -> None:
    m = Maker()
    found = kinds(m.graph(*CASES["channels_first_data_needs_no_transpose"](m)))
    assert found == ["Conv", "Identity"]


def test_products_of_rows_need_no_reshapes_between_them() -> None:
    m = Maker()
    found = kinds(m.graph(*CASES["dense_of_rows_and_residual"](m)))
    assert found == ["Reshape", "Gemm", "Relu", "Gemm", "Add", "Reshape", "Identity"]


def tied(bits: int) -> Graph:
    """A table that is also the head, in the file's bits: read in two layouts."""
    table = weight("embed/embedding", 40, 16)
    if bits != 32:
        stored = jax.tree.map(np.asarray, quantize(jnp.asarray(table.stored), bits, -1))
        table = Weight(table.name, stored)
    m = Maker()
    x = m.add(Gather, m.constant(table), m.input(5, dtype="int32"), wrap=False)
    x = m.add(Map, x, function="tanh")
    scored = m.add(Dense, x, weight=table.then("transpose", (1, 0)))
    flat = m.constant(table.then("reshape", (640,)))
    return m.graph(scored, m.add(Reduce, flat, function="max", axes=(0,)))


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_a_tied_tensor_is_stored_once(bits: int) -> None:
    graph = tied(bits)
    assert_equal(graph, bits=bits)
    large = [t for t in onnx_model(graph, bits).graph.initializer if np.prod(t.dims) >= 640]
    assert [t.name for t in large] == ["embed/embedding"]


@pytest.mark.parametrize(
    ("stored", "bits"), [(2, 4), (3, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
)
def test_integers_of_the_file_are_kept_whatever_the_layout(stored: int, bits: int) -> None:
    """A stack of layers has scales along two axes; each layer reads its part of it."""
    x = jax.random.normal(jax.random.key(0), (2, 6, 6))
    stack = Weight("stack", jax.tree.map(np.asarray, quantize(x, stored, (0, 2))))
    m = Maker()
    y = m.input(6)
    for k in range(2):
        layer = stack.then("slice", 0, k, k + 1).then("reshape", (6, 6))
        y = m.add(Dense, y, shapes=[(1, 6)], weight=layer)
    whole = m.add(Reduce, m.constant(stack), function="sum", axes=(0, 1))
    graph = m.graph(y, whole)
    assert_equal(graph, bits=bits)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_floats_are_quantised_to_the_bits_asked_for(bits: int) -> None:
    model = nnx.Sequential(nnx.Linear(32, 48, rngs=nnx.Rngs(0)), jnp.tanh)
    graph = trace(model, jnp.ones((1, 32)))
    assert_equal(graph, bits=bits, tolerance=6.0 * 2.0**-bits)
    saved = onnx_model(graph).ByteSize() - onnx_model(graph, bits).ByteSize()
    assert saved == pytest.approx(32 * 48 * (32 - bits) / 8, abs=500)


@pytest.mark.parametrize("name", public_models.MODELS)
def test_public_models(name: str) -> None:
    build, args = public_models.MODELS[name]
    model, examples = build(), args(jax.random.key(0))
    session = session_of(trace(model, *examples))
    for batch in (1, 3):
        xs = [np.asarray(x[:batch]) for x in examples]
        names = [x.name for x in session.get_inputs()]
        (got,) = session.run(None, dict(zip(names, xs, strict=True)))
        want = np.asarray(outputs_of(model, *xs))
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max())


TINY = {"resnet8": 23, "ds_cnn": 23, "mobilenet": 58, "autoencoder": 20}
"""Nodes: the layers, and one transposition (or a reshape) in and none out."""


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_tiny_models(name: str) -> None:
    model = tiny_models.BUILDERS[name]()
    tiny_models.randomise(model, jax.random.key(0))
    graph = trace(model, jnp.ones((1, *tiny_models.INPUTS[name])))
    assert_equal(graph)
    found = kinds(graph)
    assert len(found) == TINY[name]
    assert found.count("Transpose") == (name in ("resnet8", "mobilenet"))
