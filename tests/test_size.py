"""Size reports: bytes against the file's own, operations against arithmetic that counts itself."""

from __future__ import annotations

import json
import math
import os
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported_models import conv, factors, linear, make_model, of
from flax import linen, nnx

import rosler_kernels as rk
from rosler_jax import modelfile
from rosler_jax.graph._source import TraceError
from rosler_jax.graph.count import Operations, product, projection
from rosler_jax.graph.save import load, save
from rosler_jax.modelfile import ModelFileError
from rosler_jax.nn import (
    SketchConv,
    SketchEinsum,
    SketchLinear,
    SketchLinearGeneral,
    TwoFactorLinear,
)
from rosler_jax.size import RATIOS, TOTALS, size_report

SKETCHES: dict[str, Any] = {
    "two_factor": lambda m, n, **more: TwoFactorLinear(m, n, 3, **more),
    "chain": lambda m, n, **more: SketchLinear(m, n, 3, **more),
    "seeded": lambda m, n, **more: SketchLinear(m, n, 3, mode="seeded", in_sketch=8, **more),
    "dense": nnx.Linear,
}
V1, V3 = (Path(__file__).parent / f"data_v{k}" for k in (1, 3))
X = jnp.ones((1, 20))


def abstract(build: Any) -> Any:
    """A model without its numbers: shapes are all that a report needs."""
    return nnx.eval_shape(build)


def mlp(name: str, *sizes: int) -> nnx.Sequential:
    """20-17-13-5 or other sizes, with a dense head; biases as after training."""
    *hidden, last = pairwise(sizes or (20, 17, 13, 5))
    more: Any = {"rngs": nnx.Rngs(0), "bias_init": nnx.initializers.normal(1.0)}
    layers = [f for pair in hidden for f in (SKETCHES[name](*pair, **more), nnx.relu)]
    return nnx.Sequential(*layers, nnx.Linear(*last, **more))


def convnet() -> nnx.Sequential:
    more: Any = {"rngs": nnx.Rngs(0), "bias_init": nnx.initializers.normal(1.0)}
    return nnx.Sequential(
        nnx.Conv(2, 4, (3, 3), strides=2, **more),
        nnx.relu,
        SketchConv(4, 8, (3, 2), rank=2, padding="VALID", **more),
        lambda x: nnx.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1),
        nnx.Linear(32, 3, use_bias=False, **more),
    )


# --- bytes --------------------------------------------------------------------------------------


def header_and_checksum(path: Path) -> int:
    """Bytes outside the payload, from the file's own prefix."""
    stored_header, _, _ = struct.unpack_from("<IIQ", path.read_bytes(), 8)
    return 24 + stored_header + 4


@pytest.mark.parametrize("bits", [32, 16, 8, 4, 3, 2])
@pytest.mark.parametrize("name", SKETCHES)
def test_rows_add_up_to_the_file(name: str, bits: int, tmp_path: Path) -> None:
    path = tmp_path / "model.rosler"
    save(path, mlp(name), X, bits=bits, metadata={"note": "x" * 100})
    report = size_report(tmp_path)
    assert report.file_bytes == os.path.getsize(path)
    in_header = 4 * report.total("seeds")
    assert report.header_bytes == header_and_checksum(path) - in_header
    head = report.layers[-1]
    assert (head.weights, head.biases, head.bits) == (13 * 5, 5, (bits,))
    if bits == 32:
        assert (head.scales, head.bytes) == (0, 4 * 70)
    else:  # a bfloat16 scale a column and one for the bias, which has 16 bits
        assert head.scales == 5 + 1
        assert head.bytes == math.ceil(65 * bits / 8) + 5 * 2 + 6 * 2


@pytest.mark.parametrize("path", sorted(V3.glob("*.rosler")), ids=lambda path: path.stem)
def test_rows_add_up_to_a_coded_file_with_little_around_them(path: Path) -> None:
    report = size_report(path)
    assert report.file_bytes == os.path.getsize(path)
    assert [row.bits for row in report.layers] == [(4,)] * 3
    packed = [math.ceil(row.weights / 2) + row.biases + 2 * row.scales for row in report.layers]
    assert all(row.bytes < most for row, most in zip(report.layers, packed, strict=True))
    assert report.header_bytes + 2 * report.total("scales") < 65


@pytest.mark.parametrize("path", sorted(V1.glob("*.rosler")), ids=lambda path: path.stem)
def test_rows_add_up_to_a_file_of_version_1(path: Path) -> None:
    shape = np.load(V1 / "examples.npz")[f"{path.stem.split('_')[0]}/inputs"].shape[1:]
    report = size_report(path, input_shape=shape)
    assert report.file_bytes == os.path.getsize(path)
    assert report.header_bytes == header_and_checksum(path)


def test_layers_count_what_they_store() -> None:
    kinds = {name: size_report(mlp(name), bits=8).layers[0] for name in SKETCHES}
    counted = {name: (row.weights, row.biases, row.seeds) for name, row in kinds.items()}
    assert counted == {
        "two_factor": (20 * 3 + 3 * 17, 17, 0),
        "chain": (20 * 3 + 3 * 3 + 3 * 17, 17, 0),
        "seeded": (8 * 3, 17, 4),
        "dense": (20 * 17, 17, 0),
    }
    assert kinds["seeded"].bytes == 8 * 3 + 3 * 2 + 17 * 2 + 2 + 2 * 8
    dense = [size_report(mlp(name), bits=8, input_shape=(20,)).layers[0] for name in SKETCHES]
    assert {row.dense_parameters for row in dense} == {21 * 17}
    assert {row.dense_bytes for row in dense} == {4 * 21 * 17}


@pytest.mark.parametrize("name", [*SKETCHES, "conv"])
def test_every_source_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    build = convnet if name == "conv" else lambda: mlp(name)
    shape = (13, 12, 2) if name == "conv" else (20,)
    model, path = build(), tmp_path / "net.rosler"
    save(path, model, jnp.ones((1, *shape)), bits=4)
    expected = size_report(path)
    for source in (str(path), modelfile.load(path), load(path)):
        assert size_report(source) == expected
    for source in (abstract(build), model):
        report = size_report(source, bits=4, input_shape=shape)
        assert report.layers == expected.layers
        assert report.header_bytes == 0 and not report.is_file


def test_no_bits_means_float32() -> None:
    network = mlp("two_factor")
    report = size_report(network, input_shape=(20,))
    assert {row.bits for row in report.layers} == {(32,)}
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(network, nnx.Param)))
    assert report.total("parameters") == parameters
    assert report.total("bytes") == 4 * parameters == report.file_bytes


def test_bits_may_differ_from_leaf_to_leaf() -> None:
    rule = lambda path: 4 if path[-1] == "c" else 8
    row, *_ = size_report(mlp("two_factor"), bits=rule).layers
    assert row.bits == (4, 8)
    assert row.bytes == math.ceil(60 * 4 / 8) + 51 + 2 * 3 * 2 + 17 * 2 + 2


# --- operations ---------------------------------------------------------------------------------


class Counted:
    """A number that counts the arithmetic done with it."""

    multiplications = additions = 0

    def __mul__(self, other: Any) -> Counted:
        Counted.multiplications += 1
        return self

    __rmul__ = __mul__

    def __add__(self, other: Any) -> Counted:
        Counted.additions += 1
        return self

    __sub__ = __add__


def counted(function: Any, n: int) -> Operations:
    """The operations of `function` on a vector of length n."""
    Counted.multiplications = Counted.additions = 0
    function(np.array([Counted() for _ in range(n)], dtype=object))
    return Operations(Counted.multiplications, Counted.additions)


def times(m: int, n: int, use_bias: bool = False) -> Any:
    """x W (+ b) by the schoolbook."""

    def apply(x: np.ndarray) -> np.ndarray:
        out = []
        for j in range(n):
            total = x[0] * Counted()
            for i in range(1, m):
                total = total + x[i] * Counted()
            out.append(total + Counted() if use_bias else total)
            assert j < n
        return np.array(out, dtype=object)

    return apply


def signed_sums(omega: np.ndarray) -> Any:
    """x Omega for entries of one magnitude: what a column has is added or subtracted."""

    def apply(x: np.ndarray) -> None:
        for column in omega.T:
            used = x[np.flatnonzero(column)]
            total = used[0]
            for value in used[1:]:
                total = total + value

    return apply


def butterflies(x: np.ndarray) -> np.ndarray:
    """The fast Walsh-Hadamard transform, padded to a power of two."""
    n = 1 << (len(x) - 1).bit_length()
    x = np.concatenate([x, np.array([Counted() for _ in range(n - len(x))], dtype=object)])
    half = 1
    while half < n:
        pairs = x.reshape(-1, 2, half)
        x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
        half *= 2
    return x


def in_turn(*functions: Any) -> Any:
    def apply(x: np.ndarray) -> np.ndarray:
        for function in functions:
            x = function(x)
        return x

    return apply


@pytest.mark.parametrize(
    ("layer", "work"),
    [
        (lambda r: nnx.Linear(20, 7, rngs=r), times(20, 7, True)),
        (lambda r: nnx.Linear(20, 7, use_bias=False, rngs=r), times(20, 7)),
        (lambda r: nnx.LinearGeneral(20, (7, 2), rngs=r), times(20, 14, True)),
        (lambda r: TwoFactorLinear(20, 7, 3, rngs=r), in_turn(times(20, 3), times(3, 7, True))),
        (
            lambda r: SketchLinear(20, 7, 3, use_bias=False, rngs=r),
            in_turn(times(20, 3), times(3, 3), times(3, 7)),
        ),
        (  # l = 3 + 2 while aRes-BP trains
            lambda r: SketchLinear(20, 7, 3, mode="ares", oversampling=2, rngs=r),
            in_turn(times(20, 3), times(3, 5), times(5, 7, True)),
        ),
        (  # a transform of order 32, the core, a transform of order 16 for 9 outputs
            lambda r: SketchLinear(20, 9, 3, mode="seeded", in_sketch=8, use_bias=False, rngs=r),
            in_turn(
                lambda x: butterflies(x)[:8],
                times(8, 3),
                lambda x: butterflies(np.concatenate([x, x, x])),
            ),
        ),
    ],
)
def test_operations_of_linear_layers(layer: Any, work: Any) -> None:
    model = abstract(lambda: nnx.Sequential(layer(nnx.Rngs(0))))
    (row,) = size_report(model, input_shape=(20,)).layers
    expected = counted(work, 20)
    assert (row.multiplications, row.additions) == (
        expected.multiplications,
        expected.additions,
    )
    assert expected.additions > 0


@pytest.mark.parametrize("kind", ["rademacher", "sparse_sign", "block_perm"])
def test_operations_of_signed_projections(kind: str) -> None:
    # So many rows that no column is without an entry: the count takes that for granted.
    sketch = rk.make(kind, 0, 300, 16)
    omega = np.asarray(rk.materialize(sketch))
    assert (omega != 0).any(axis=0).all()
    assert projection(kind, 300, 16) == counted(signed_sums(omega), 300)
    transposed = projection(kind, 300, 16, transpose=True)
    assert transposed == counted(signed_sums(omega.T), 16)
    assert transposed.multiplications == 0 < transposed.additions


def test_operations_of_other_projections() -> None:
    assert projection("gaussian", 30, 4) == product(30, 4) == counted(times(30, 4), 30)
    assert projection("gaussian", 30, 4, transpose=True) == counted(times(4, 30), 4)
    assert projection("srht", 1024, 7) == counted(butterflies, 1024) == Operations(0, 10 * 1024)
    assert projection("srht", 1, 1) == Operations(0, 0)
    assert projection("rows_uniform", 30, 4) == Operations(0, 0)
    with pytest.raises(ValueError, match="unknown sketch kind 'magic'"):
        projection("magic", 3, 2)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("options", [{}, {"strides": 2}, {"padding": "VALID", "strides": (1, 3)}])
def test_operations_of_convolutions(options: dict[str, Any], groups: int) -> None:
    shape = (10, 9, 4)
    options = {**options, "feature_group_count": groups}
    dense = lambda: nnx.Conv(4, 6, (3, 2), rngs=nnx.Rngs(0), **options)
    thin = lambda: SketchConv(4, 6, (3, 2), rank=2, rngs=nnx.Rngs(0), **options)
    positions = math.prod(jax.eval_shape(lambda x: dense()(x), jnp.ones((1, *shape))).shape[1:-1])
    window, out = 3 * 2 * 4 // groups, 6 // groups
    dense_work = groups * counted(times(window, out, True), window)
    thin_work = groups * counted(
        in_turn(times(window, 2), times(2, 2), times(2, out, True)), window
    )
    for layer, work in ((dense, dense_work), (thin, thin_work)):
        model = abstract(lambda layer=layer: nnx.Sequential(layer()))
        (row,) = size_report(model, input_shape=shape).layers
        assert row.multiplications == positions * work.multiplications
        assert row.additions == positions * work.additions
        assert row.dense_multiplications == positions * dense_work.multiplications
        assert row.dense_additions == positions * dense_work.additions


def test_seeded_convolution_multiplies_in_its_core_alone() -> None:
    layer = SketchConv(4, 8, (3, 3), rank=2, mode="seeded", in_sketch=16, rngs=nnx.Rngs(0))
    (row,) = size_report(nnx.Sequential(layer), input_shape=(5, 5, 4)).layers
    assert row.multiplications == 25 * 16 * 2
    # filters of 36 signs, the core, a transform of order 8, the bias
    assert row.additions == 25 * (35 * 16 + 15 * 2 + 3 * 8 + 8)


def test_a_layer_counts_as_often_as_it_is_applied() -> None:
    class Twice(nnx.Module):
        def __init__(self) -> None:
            self.inner = nnx.Linear(6, 6, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return self.inner(self.inner(x))

    report = size_report(Twice(), input_shape=(5, 6))
    assert report.total("multiplications") == 2 * 5 * 36 == report.total("dense_multiplications")
    assert report.total("weights") == 36 and report.total("dense_parameters") == 36 + 6


def test_unknown_work_is_not_guessed() -> None:
    network = abstract(convnet)
    report = size_report(network, bits=8)
    assert report.layers[0].multiplications is None
    assert report.total("multiplications") is None and report.ratio("multiplications") is None
    assert "?" in str(report) and "input_shape" in str(report)
    assert size_report(network, input_shape=(13, 12, 2)).ratio("multiplications") > 1

    row, *_ = size_report(nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0))), bits=8).layers
    assert (row.weights, row.scales, row.bytes) == (16, 5, 16 + 8 + 10)
    assert (row.multiplications, row.dense_multiplications, row.dense_bytes) == (None, None, None)


def test_layers_without_matrices_cost_nothing() -> None:
    model = nnx.Sequential(
        nnx.Linear(4, 4, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(4, rngs=nnx.Rngs(0)),
        nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
    )
    _, norm = size_report(model, bits=16).layers
    assert (norm.biases, norm.other) == (4, 12)
    assert norm.bytes == (4 * 2 + 2) * 2 + 8 * 4  # bias and scale at 16 bits, statistics float32
    # Traced, it is what ships: the norm is within the layer before it.
    (whole,) = size_report(model, bits=16, input_shape=(4,)).layers
    assert (whole.weights, whole.biases, whole.other) == (16, 4, 0)
    assert (whole.multiplications, whole.additions) == (16, 16)


# --- what it prints, what it refuses ------------------------------------------------------------


def test_table_and_dict_hold_every_row(tmp_path: Path) -> None:
    path = tmp_path / "model.rosler"
    save(path, mlp("two_factor", 784, 1024, 10), jnp.ones((1, 784)), bits=16)
    report = size_report(path)
    lines = str(report).splitlines()
    (total,) = [line for line in lines if line.startswith("total")]
    assert f"{os.path.getsize(path):,}" in total
    for row in report.layers:
        (line,) = [line for line in lines if line.split()[:1] == [row.name]]
        assert row.kind in line and f"{row.bytes:,}" in line
    assert f"{report.ratio('bytes'):.1f}x" in lines[-1]

    data = json.loads(json.dumps(report.to_dict()))
    assert data["file_bytes"] == os.path.getsize(path)
    assert set(data["total"]) == set(TOTALS) and set(data["ratio"]) == set(RATIOS)
    assert [row["bytes"] for row in data["layers"]] == [row.bytes for row in report.layers]
    dense = 785 * 1024 + 1025 * 10
    assert data["ratio"]["bytes"] == 4 * dense / os.path.getsize(path)


def test_a_layer_in_the_parallel_stage_is_no_error() -> None:
    layer = SketchLinear(20, 17, 3, mode="ares", rngs=nnx.Rngs(0))
    (row,) = size_report(layer, bits=8, input_shape=(20,)).layers
    assert (row.weights, row.seeds) == (20 * 3 + 3 * 6 + 6 * 17, 0)  # seeds only begin it


def test_wrong_sources_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.rosler"
    model = mlp("dense")
    save(path, model, X, bits=8)
    with pytest.raises(ValueError, match="has its bits already"):
        size_report(path, bits=8)
    with pytest.raises(ValueError, match="bits 5 is not supported"):
        size_report(model, bits=5)
    with pytest.raises(ValueError, match=r"does not take inputs of shape \(7,\)"):
        size_report(model, input_shape=(7,))
    with pytest.raises(TypeError, match="cannot read a int"):
        size_report(3)
    with pytest.raises(FileNotFoundError):
        size_report(tmp_path / "absent")
    damaged = path.read_bytes()[:-9]
    (tmp_path / "cut.rosler").write_bytes(damaged)
    with pytest.raises(ModelFileError, match=r"cut\.rosler: truncated"):
        size_report(tmp_path / "cut.rosler")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({}, "no list of layers"),
        ({"layers": [linear(4, 3), of("magic")]}, "layer 1 is of kind 'magic'"),
        ({"layers": [of("linear", in_features=4)]}, "missing .* 'out_features'"),
        ({"layers": [linear(4, 3)]}, r"do not fit .*unknown \['layers/2/bias', "),
        ({"layers": [factors(4, 3, 2), of("relu"), linear(3, 2)]}, r"missing \['layers/0/c', "),
        ({"layers": [conv(4, 3)]}, "pass input_shape"),
    ],
)
def test_files_whose_layers_do_not_fit(spec: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.rosler"
    tensors = make_model([linear(4, 3), of("relu"), linear(3, 2)]).tensors
    modelfile.save(path, tensors, spec, {})
    with pytest.raises(ModelFileError, match=reason):
        size_report(path)


# --- whole models --------------------------------------------------------------------------------


class Decoder(nnx.Module):
    """Tokens in, attention, a scanned stack, a carry, a tied head, and a name that collides."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(50, 16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.stack = nnx.vmap(lambda key: nnx.Linear(16, 16, rngs=nnx.Rngs(key)))(
            jax.random.split(rngs.params(), 3)
        )
        self.layers = nnx.Dict(head=nnx.Linear(8, 8, rngs=rngs))
        self.head = nnx.Linear(8, 4, rngs=rngs)
        self.drop = nnx.Dropout(0.1)
        self.cell = nnx.LSTMCell(16, 8, rngs=rngs)

    def __call__(self, tokens: Any, carry: Any, *, rngs: Any) -> Any:
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(layer: Any, x: Any) -> Any:
            return layer(x)

        x = self.drop(run(self.stack, self.attention(self.embed(tokens))), rngs=rngs)
        carry, h = self.cell(carry, x[:, -1])
        return self.embed.attend(x), self.head(self.layers["head"](h)), carry


def test_a_whole_model_is_counted_by_one_trace() -> None:
    model, batch, length = Decoder(nnx.Rngs(0)), 2, 7
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    carry = (jnp.zeros((batch, 8)), jnp.zeros((batch, 8)))
    report = size_report(model, inputs=(tokens, carry), kwargs={"rngs": nnx.Rngs(1)}, bits=8)
    rows = {row.name: row for row in report.layers}
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert report.total("parameters") == parameters  # head and layers/head are two
    assert (rows["head"].weights, rows["layers/head"].weights) == (32, 64)
    assert rows["attention/query"].multiplications == length * 16 * 16  # of one example
    assert rows["stack"].multiplications == 3 * length * 16 * 16
    assert rows["stack"].kind == "3 layers of dense 16->16"
    assert (rows["stack"].biases, rows["stack"].scales) == (48, 3 * 16 + 3)
    assert rows["stack"].dense_parameters == 3 * 16 * 17
    assert rows["cell/hi"].multiplications == 8 * 8
    assert rows["(elsewhere)"].multiplications == 2 * 4 * length * length * 4  # Q K^T, and with V
    assert rows["(elsewhere)"].dense_multiplications == rows["(elsewhere)"].multiplications
    # The table is a matrix, too, for it gives the logits.
    assert rows["embed"].multiplications == length * 16 * 50
    assert rows["embed"].dense_parameters == 16 * 50
    with pytest.raises(ValueError, match=r"does not take inputs of shape \(7,\)"):
        size_report(model, inputs=(tokens,), kwargs={"rngs": nnx.Rngs(1)})


@pytest.mark.parametrize(
    ("build", "shape", "weights", "dense", "work", "kind"),
    [
        (
            lambda r: SketchEinsum("btd,dnh->btnh", (16, 4, 8), 2, rngs=r), (5, 16),
            2 * (16 + 2 + 32), 16 * 32, 5 * 2 * (16 + 2 + 32), "factors 16->2->2->32",
        ),
        (
            lambda r: SketchLinearGeneral((4, 8), 12, 2, axis=(-2, -1), use_bias=False, rngs=r),
            (5, 4, 8), 2 * (32 + 2 + 12), 32 * 12, 5 * 2 * (32 + 2 + 12), "factors 32->2->2->12",
        ),
        (  # an output of a transposed convolution meets one in three of the window
            lambda r: nnx.ConvTranspose(4, 6, (3,), strides=3, use_bias=False, rngs=r), (7, 4),
            72, 72, 21 * 6 * 4, "conv 3 dense, 4->6",
        ),
        (
            lambda r: nnx.Einsum("zbtd,bdh->zbth", (3, 4, 5), rngs=r), (3, 2, 4),
            60, 60, 3 * 2 * 4 * 5, "3 dense 4->5",
        ),
    ],
)  # fmt: skip
def test_einsum_and_general_layers(
    build: Any, shape: Any, weights: int, dense: int, work: int, kind: str
) -> None:
    (row,) = size_report(build(nnx.Rngs(0)), input_shape=shape).layers
    assert (row.weights, row.dense_parameters, row.multiplications) == (weights, dense, work)
    assert row.kind == kind


def test_work_in_a_loop_of_unknown_length_is_refused() -> None:
    class Looped(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.ones((4, 4)))

        def __call__(self, x: Any) -> Any:
            return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ self.w[...], x)

    with pytest.raises(TraceError, match="unknown length"):
        size_report(Looped(), input_shape=(4,))


# --- graphs --------------------------------------------------------------------------------------


class Layers(nnx.Module):
    """Layers of attention-free arithmetic in a scan that has a carry, and a cell over time."""

    def __init__(self, rngs: nnx.Rngs):
        self.stack = nnx.vmap(lambda key: nnx.Linear(6, 6, rngs=nnx.Rngs(key)))(
            jax.random.split(rngs.params(), 3)
        )
        self.cell = nnx.GRUCell(6, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(layer: Any, x: Any) -> Any:
            return nnx.relu(layer(x))

        x = run(self.stack, x)
        carry = jnp.zeros((x.shape[0], 5))
        return nnx.RNN(self.cell)(x, initial_carry=carry)


@pytest.mark.parametrize("bits", [32, 8])
def test_a_file_of_a_graph_adds_up(bits: int, tmp_path: Path) -> None:
    model, x = Layers(nnx.Rngs(0)), jnp.ones((2, 40, 6))
    save(tmp_path / "m.rosler", model, x, bits=bits)
    report = size_report(tmp_path / "m.rosler")
    assert report.file_bytes == os.path.getsize(tmp_path / "m.rosler")
    assert report.header_bytes >= header_and_checksum(tmp_path / "m.rosler")
    assert report.layers == size_report(load(tmp_path / "m.rosler")).layers
    rows = {row.name: row for row in report.layers}
    assert rows["stack"].multiplications == 3 * 40 * 6 * 6
    assert rows["stack"].dense_parameters == rows["stack"].parameters == 3 * 6 * 7
    # Once for each position: the reset, update and candidate gates of input and state.
    gates = [row for name, row in rows.items() if name.startswith("cell")]
    assert sum(row.multiplications for row in gates) == 40 * 3 * (6 * 5 + 5 * 5)
    assert sum(row.weights for row in gates) == 3 * (6 * 5 + 5 * 5)


def test_sketches_are_seeds_in_the_header(tmp_path: Path) -> None:
    build = lambda: SketchLinear(60, 50, 4, mode="seeded", rngs=nnx.Rngs(0))
    save(tmp_path / "m.rosler", build(), jnp.ones((1, 60)), bits=8)
    report = size_report(tmp_path / "m.rosler")
    assert report.file_bytes == os.path.getsize(tmp_path / "m.rosler")
    (row,) = report.layers
    (live,) = size_report(build(), bits=8, input_shape=(60,)).layers
    assert (row.seeds, row.weights, row.bytes) == (live.seeds, live.weights, live.bytes)
    assert (row.seeds, row.dense_parameters) == (4, 60 * 50 + row.biases)


def test_functions_and_linen_modules_are_counted() -> None:
    def function(params: Any, x: Any) -> Any:
        return jnp.tanh(x @ params["a"]) @ params["b"]

    params = {"a": jnp.ones((4, 6)), "b": jnp.ones((6, 2))}
    report = size_report((function, params), bits=8, input_shape=(3, 4))
    assert report.total("multiplications") == 3 * (4 * 6 + 6 * 2)
    abstract_params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    assert size_report((function, abstract_params), bits=8, input_shape=(3, 4)) == report
    module = linen.Dense(7)
    variables = module.init(jax.random.key(0), jnp.ones((1, 4)))
    (row,) = size_report((module, variables), input_shape=(4,)).layers
    assert (row.weights, row.biases, row.multiplications, row.additions) == (28, 7, 28, 28)
