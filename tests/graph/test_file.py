"""Graphs in model files: what is saved comes back, of version 1, too; nonsense is refused."""

from __future__ import annotations

import copy
import json
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported_models import conv, factors, linear, make_model, of, sketched, sketched_conv
from flax import nnx
from hand_made import Maker, every_kind, weight
from hypothesis import given, settings
from hypothesis import strategies as st

import rosler_kernels as rk
from rosler_jax import modelfile
from rosler_jax.graph import KINDS, Graph, Weight, run
from rosler_jax.graph.check import GraphError, check
from rosler_jax.graph.file import from_json, to_json
from rosler_jax.graph.kinds import Affine, Dense, Map, Norm, Project
from rosler_jax.graph.quantize import quantize_graph
from rosler_jax.graph.save import encoded, graph_of_file, load, save
from rosler_jax.graph.version1 import LAYERS
from rosler_jax.modelfile import ModelFileError, QuantizedTensor

V1, V2 = (Path(__file__).parents[1] / f"data_v{k}" for k in (1, 2))


def again(graph: Graph) -> Graph:
    """The graph through the bytes of a file, which are the same when it is saved once more."""
    data = encoded(graph)
    read = graph_of_file(modelfile.decode(data))
    assert encoded(read) == data
    return read


def assert_same(graph: Graph, read: Graph, inputs: Any) -> None:
    for a, b in zip(run(graph, inputs), run(read, inputs), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)


# --- what is saved comes back -------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 16, 8, 4, 3, 2])
def test_every_kind_comes_back(bits: int) -> None:
    graph, inputs = every_kind()
    assert {type(op).__name__ for op in graph.ops} == set(KINDS)
    graph = quantize_graph(graph, bits)
    read = again(graph)
    assert_same(graph, read, inputs)
    assert read.structure == graph.structure
    for a, b in zip(graph.weights(), read.weights(), strict=True):
        assert (a.name, a.layout, a.bits) == (b.name, b.layout, b.bits)


def test_coded_integers_compute_the_same(tmp_path: Path) -> None:
    graph, inputs = every_kind()
    graph = quantize_graph(graph, 4)
    size = save(tmp_path / "m.rosler", graph, coded=True)
    model = load(tmp_path / "m.rosler")
    assert model.file.version == 3 and size < len(encoded(graph)) - 100
    assert_same(graph, model.graph, inputs)
    assert encoded(model.graph, coded=True) == (tmp_path / "m.rosler").read_bytes()


def test_a_loaded_model_is_called_as_the_one_that_was_saved(tmp_path: Path) -> None:
    graph, inputs = every_kind()
    size = save(tmp_path / "m.rosler", graph, bits=8, metadata={"note": "ü"})
    model = load(tmp_path / "m.rosler")
    assert size == (tmp_path / "m.rosler").stat().st_size == model.file.file_bytes
    assert (model.file.version, model.file.metadata) == (2, {"note": "ü"})
    batch = [np.stack([x, x]) for x in inputs]
    out = model(*batch)
    expected = run(quantize_graph(graph, 8), inputs)
    assert list(out) == ["last", "rest"]
    found = [out["last"], out["rest"][0], out["rest"][1]["said"]]
    for y, wanted in zip(found, expected, strict=True):
        for row in np.asarray(y):
            np.testing.assert_allclose(row, wanted, rtol=1e-5, atol=1e-6)


def test_weights_are_arguments_of_what_is_compiled(tmp_path: Path) -> None:
    # Baked in, a network of 100 MB would be compiled with 100 MB of constants.
    m = Maker()
    y = m.add(Dense, m.input(1, 64), weight=weight("w", 64, 64))
    save(tmp_path / "m.rosler", m.graph(y))
    model = load(tmp_path / "m.rosler")
    jaxpr = jax.make_jaxpr(lambda p, x: model._compiled(p, [x]))(model.params, jnp.ones((2, 1, 64)))
    inner = [eqn.params["jaxpr"] for eqn in jaxpr.eqns if "jaxpr" in eqn.params]
    assert inner and all(np.size(c) < 64 for j in (jaxpr, *inner) for c in j.consts)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), r"takes 2 arrays \(0: \(batch, 3\); 1: \(batch, 2\)\), and is given 0"),
        ((np.ones((4, 3)), np.ones((4, 2))), "argument 1 is float64 of shape"),
        ((np.ones((4, 2)), np.ones((4, 2), np.int32)), r"argument 0 is float64 of shape \(4, 2\)"),
        ((np.ones((4, 3)), np.ones((5, 2), np.int32)), "the same batch for all"),
        (([np.ones((4, 3))], np.ones((4, 2), np.int32)), "argument 0/0"),
    ],
)
def test_wrong_arguments_are_refused(args: Any, message: str, tmp_path: Path) -> None:
    m = Maker()
    x, k = m.input(3), m.input(2, dtype="int32")
    y = m.add(Map, m.add(Map, k, function="float32"), function="exp")
    save(tmp_path / "m.rosler", m.graph(x, y, structure=[0, 1]))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "m.rosler")(*args)


def test_tensors_are_stored_once_and_names_are_told_apart() -> None:
    m = Maker()
    x = m.input(1, 4)
    shared = weight("w", 4, 4)
    turned = shared.then("transpose", (1, 0))
    other = Weight("w", shared.values + 1)
    for k, w in enumerate((shared, turned, other)):
        x = m.add(Dense, x, weight=w, name=f"dense{k}")
    graph = m.graph(x)
    _, tensors = to_json(graph)
    assert list(tensors) == ["w", "w.1"]
    assert_same(graph, again(graph), [np.ones((1, 4), np.float32)])


def test_names_that_are_numbered_already_are_no_trap() -> None:
    m = Maker()
    x = m.input(1, 4)
    for k, name in enumerate(("w", "w.2", "w", "w")):  # the third would be w.2
        values = weight(name, 4, 4).values + min(k, 2)
        x = m.add(Dense, x, weight=Weight(name, values), name=f"dense{k}")
    graph = m.graph(x)
    assert list(to_json(graph)[1]) == ["w", "w.2", "w.3"]
    assert_same(graph, again(graph), [np.ones((1, 4), np.float32)])


@pytest.mark.parametrize("kind", [k for k in rk.FAMILIES])
def test_every_sketch_is_a_seed_and_a_shape(kind: str) -> None:
    options = {"w": jnp.asarray(weight("w", 30, 3).values)} if rk.family(kind).weighted else {}
    sketch = rk.make(kind, 0xFFFFFFFE, 30, 8, **options)
    m = Maker()
    graph = m.graph(m.add(Project, m.input(2, 30), sketch=sketch, scale=0.1, transpose=False))
    assert_same(graph, again(graph), [np.random.default_rng(1).normal(size=(2, 30))])
    if not options:
        assert to_json(graph)[1] == {}


@pytest.mark.parametrize(
    "values",
    [
        [0.1, 1 / np.float32(78.5676), -0.0, 3e-39, 1e38],
        [np.finfo(np.float32).max, np.finfo(np.float32).min],
        np.float32(1.0) / np.float32([33.32, 78.57, 0.001]),
        np.random.default_rng(0).normal(size=100),
        1 / np.round(np.random.default_rng(0).uniform(1, 99, 100), 2),
    ],
)
def test_numbers_come_back_to_the_bit(values: Any) -> None:
    values = np.asarray(values, np.float32)
    for array in (values, values[:1], values[0].reshape(())):
        m = Maker()
        x = m.input(2, array.size)
        graph = m.graph(m.add(Affine, x, center=np.zeros((), np.float32), factor=array))
        (op,) = again(graph).ops
        assert isinstance(op, Affine)
        assert op.factor.dtype == np.float32 and op.factor.shape == array.shape
        assert op.factor.tobytes() == array.tobytes()


def test_same_graph_gives_same_bytes() -> None:
    assert encoded(every_kind()[0], 4) == encoded(every_kind()[0], 4)


def test_traced_models_come_back(tmp_path: Path) -> None:
    class Tied(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.embed = nnx.Embed(40, 16, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
            self.norm = nnx.LayerNorm(16, rngs=rngs)

        def __call__(self, ids: Any) -> Any:
            x = jnp.take(self.embed.embedding[...], ids, axis=0, mode="clip")
            x = x + self.attention(self.norm(x))
            return {"logits": x @ self.embed.embedding[...].T, "mean": (x.mean(1),)}

    model, ids = Tied(), jnp.arange(14).reshape(2, 7) % 40
    save(tmp_path / "m.rosler", model, ids)
    loaded = load(tmp_path / "m.rosler")(ids)
    expected = model(ids)
    np.testing.assert_allclose(loaded["logits"], expected["logits"], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(loaded["mean"][0], expected["mean"][0], rtol=2e-5, atol=2e-6)


SMALL = {
    "chain": [linear(64, 48), of("relu"), sketched(48, 40, 6), of("tanh"), linear(40, 5)],
    "seeded": [sketched(64, 48, 6, mode="seeded", in_sketch=16), of("relu"), linear(48, 5)],
    "factors": [factors(64, 48), of("gelu"), linear(48, 5, use_bias=False)],
    "images": [
        conv(4, 6), of("relu"), of("max_pool", window=2), sketched_conv(6, 8), of("relu"),
        of("flatten"), linear(32, 5),
    ],
    "patches": [
        sketched_conv(4, 6, mode="seeded", in_sketch=9), of("relu"), of("avg_pool", window=2),
        of("flatten"), linear(24, 5),
    ],
}  # fmt: skip


@pytest.mark.parametrize("bits", [32, 8, 3])
@pytest.mark.parametrize("name", SMALL)
def test_files_are_no_larger_than_descriptions_of_layers(name: str, bits: int) -> None:
    specs = [of("standardize", mean=33.25, std=70.125), *SMALL[name]]
    shape = (4, 4, 4) if "conv" in specs[1]["kind"] else (64,)
    floats, packed = (make_model(specs, bits=b, shape=shape) for b in (32, bits))
    described = modelfile.encode(packed.tensors, {"layers": specs}, {})
    assert len(encoded(floats.graph, bits)) <= len(described)


# --- files of version 1 -------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(V1.glob("*.rosler")), ids=lambda path: path.stem)
def test_version_1_computes_what_it_computed(path: Path) -> None:
    name, bits = path.stem.split("_")
    examples = np.load(V1 / "examples.npz")
    x = examples[f"{name}/inputs"]
    model = load(path, input_shape=x.shape[1:])
    assert model.file.version == 1
    expected = examples[f"{name}/outputs_{bits}"]
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)
    if int(bits) < 32:
        kept = {weight.bits for weight in model.graph.weights() if weight.integers is not None}
        assert int(bits) in kept


@pytest.mark.parametrize("path", sorted(V1.glob("*_[348].rosler")), ids=lambda path: path.stem)
def test_version_1_may_be_saved_as_version_2(path: Path, tmp_path: Path) -> None:
    x = np.load(V1 / "examples.npz")[f"{path.stem.split('_')[0]}/inputs"]
    model = load(path, input_shape=x.shape[1:])
    assert save(tmp_path / "new.rosler", model) <= path.stat().st_size
    again, before = load(tmp_path / "new.rosler")(x), np.asarray(model(x))
    # A scale that had to become a bfloat16 number moved by at most 2^-7 of it.
    np.testing.assert_allclose(again, before, atol=2**-5 * np.abs(before).max())


def test_version_1_files_have_every_kind_of_layer() -> None:
    specs = [modelfile.load(path).spec["layers"] for path in V1.glob("*_8.rosler")]
    assert {spec["kind"] for layers in specs for spec in layers} == set(LAYERS)


@pytest.mark.parametrize("bits", [32, 8, 3])
def test_version_2_stays_readable(bits: int) -> None:
    # Written when version 2 began, with every kind of operation: what it means must not change.
    examples = np.load(V2 / "examples.npz")
    graph = load(V2 / f"every_{bits}.rosler").graph
    inputs = [examples[f"input{k}"] for k in range(len(graph.inputs))]
    for k, y in enumerate(run(graph, inputs)):
        expected = examples[f"output{k}_{bits}"]
        assert y.dtype == expected.dtype
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


# --- what makes no sense ------------------------------------------------------------------------


def small() -> tuple[list[Any], dict[str, Any]]:
    """``relu(x W + b)`` of a vector, then a norm."""
    m = Maker()
    x = m.add(Dense, m.input(1, 3), weight=weight("w", 3, 4), bias=weight("b", 4), name="w")
    x = m.add(Map, x, function="relu", shapes=[(4,)])
    x = m.add(Norm, x, shapes=[(1, 4)], center=True, epsilon=1e-5)
    return to_json(m.graph(x))


def changed(at: tuple[Any, ...], value: Any) -> tuple[list[Any], dict[str, Any]]:
    """The small graph with something else at a place of its JSON."""
    content, tensors = small()
    node = content
    for step in at[:-1]:
        node = node[step]
    if at[-1] == len(node):
        node.append(value)
    else:
        node[at[-1]] = value
    return content, tensors


def test_the_small_graph_is_as_the_tests_expect() -> None:
    content, tensors = small()
    assert json.dumps(content, separators=(",", ":")) == (
        '[[[[1,3]]],[["Dense",1,0,1],["Map",1,"relu"],["Norm",1,true,1e-05]],[[1,[1,4]]]]'
    )
    from_json(content, tensors)


DEEP: list[Any] = []
for _ in range(400):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        ((1, 0, 0), "Eval", "operation 0, .*there is no kind 'Eval'"),
        ((1, 0, 0), None, "there is no kind None"),
        ((1, 0, 1), 0, "it reads 0 values back, and there are 1"),
        ((1, 0, 1), 2, "it reads 2 values back"),
        ((1, 0, 1), -1, "-1 is not a whole number"),
        ((1, 0, 1), [1, 1], "it reads 1 values"),
        ((1, 0, 1), [], "at least one value"),
        ((1, 0, 2), 7, "there is no tensor 7"),
        ((1, 0, 2), True, "True is not a whole number"),
        ((1, 0, 2), [0, ["t", 0, 0]], "a layout orders"),
        ((1, 0, 2), [0, ["r", 5, 5]], "a layout reshapes"),
        ((1, 0, 2), [0, ["s", 0, 0, 9]], "a layout takes 0:9"),
        ((1, 0, 2), [0, ["s", 0]], "a slice of"),
        ((1, 0, 2), [0, ["x"]], "no step 'x'"),
        ((1, 0, 2), [0, ["t", 1, 0]], "a vector of 3 is wanted, not"),
        ((1, 0, 3), 0, "a vector of 4"),
        ((1, 0, 4), {"in": [[3, 1]]}, "rows of 1 with a matrix"),
        ((1, 0, 4), {"in": [[2, 3]]}, "reads value 0 of 3 numbers in shape"),
        ((1, 0, 4), {"in": [[2**31, 3]]}, "more than 2147483647 numbers"),
        ((1, 0, 4), {"on": 1}, "unknown"),
        ((1, 0, 4), {"dtypes": ["float64"]}, "dtypes"),
        ((1, 0, 4), {"dtypes": []}, "0 dtypes of 1 outputs"),
        ((1, 1, 2), "system", "there is no function 'system'"),
        ((1, 1, 2), "add", "add takes 2 values"),
        ((1, 1, 3), [1.0], "relu takes 0 numbers"),
        ((1, 1, 3), [1e999], "inf is not a finite number"),
        ((1, 1, 3), {"name": "w"}, "two operations are named 'w'"),
        ((1, 2, 2), 1, "1 is not true or false"),
        ((1, 2, 3), "x", "'x' is not a finite number"),
        ((1, 2), ["Norm", 1], "center|epsilon is missing"),
        ((1, 2), ["Norm"], "operation 2"),
        ((1, 2), ["Norm", 1, True, 1, None, None, 1, 1], "attributes of"),
        ((1, 2), 3, "3 is not a list"),
        ((0, 0), [[2**31]], "more than 2147483647 numbers"),
        ((0, 0), [[2**20, 2**20]], "more than 2147483647 numbers"),
        ((0, 0), [[10**80]], "not a whole number"),
        ((0, 0), [[0, 3]], "has no numbers"),
        ((0, 0), [[1, 3], "complex64"], "has the dtype 'complex64'"),
        ((2, 0), 0, "reads 0 values back"),
        ((2, 0), 9, "reads 9 values back"),
        ((2, 0), [1, [2, 4]], "output '' of shape"),
        ((3,), 5, "5 is not a list"),
        ((3,), [[0, 1]], "1 is not a list"),
        ((4,), 1, "a structure with 1 for 1 outputs"),
        ((4,), [DEEP, 1], "nested too deep|a structure with 1"),
        ((5,), 1, "a graph of 6 entries"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said(at: Any, value: Any, message: str) -> None:
    if at in ((3,), (4,), (5,)):
        content, tensors = small()
        content += [None] * (at[0] - len(content))
        content, at = [*content, value], at
    else:
        content, tensors = changed(at, value)
    with pytest.raises(GraphError, match=message):
        from_json(content, tensors)


def one(cls: str, given: list[list[int]], *attributes: Any) -> list[Any]:
    """A graph of one operation that reads all inputs."""
    reads = list(range(len(given), 0, -1))
    return [[[shape] for shape in given], [[cls, reads, *attributes]], [1]]


RELU = [[[[2]]], [["Map", 1, "relu"]], [1]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (one("Take", [[4]], [[0, 1, 9]]), "positions"),
        (one("Take", [[4]], [[-2, 1, 2]]), "positions"),
        (one("Take", [[4]], [[3, -1, 5]]), "positions"),
        (one("Take", [[4]], [[-1, 0, 2**31]]), "more than 2147483647 numbers"),
        (one("Take", [[4]], [[0, 1]]), "a start, a step and a count"),
        (one("Take", [[4]], []), "0 axes of"),
        (one("Transpose", [[4, 2]], [0, 0]), "axes"),
        (one("Transpose", [[4, 2]], [0]), "axes"),
        (one("Reduce", [[4, 2]], "sum", []), "axes"),
        (one("Reduce", [[4, 2]], "argmax", [0, 1]), "one axis"),
        (one("Reduce", [[4, 2]], "mean", [0]), "no reduction 'mean'"),
        (one("Concat", [[4, 2], [4, 3]], 0), "one behind the other"),
        (one("Concat", [[4, 2], [4]], 1), "one behind the other"),
        (one("MatMul", [[2, 3, 4], [2, 3, 4]]), "matrices"),
        (one("MatMul", [[2, 3, 4], [1, 3, 4]], True), "matrices"),
        (one("Map", [[3], [2]], "add"), "do not broadcast"),
        (one("Map", [[2**16, 1], [1, 2**16]], "add"), "more than 2147483647 numbers"),
        (one("Pool", [[4, 1]], "max", [[9]]), "does not fit"),
        (one("Pool", [[4, 1]], "max", [[2], [0]]), "sizes of at least 1"),
        (one("Pool", [[4, 1]], "max", [[2, 2]]), "over 1 axes"),
        (one("Pool", [[4, 1]], "max", [[2], None, [[1]]]), "over 1 axes"),
        (one("Pool", [[4]], "max", [[2]]), "no spatial axes"),
        (one("Pool", [[4, 1]], "max", [[2], None, [[0, 2**32 - 1]]]), "padded to more than"),
        (one("Pool", [[4, 4]], "max", [[2], None, None, None, None, 2]), "a pool has no groups"),
        (one("Project", [[1, 4]], ["srht", 4, 2, 0]), "not a whole number"),
        (one("Project", [[1, 4]], ["srht", 4, 2, 0, 2**32]), "is not a whole number from 0 to"),
        (one("Project", [[1, 4]], ["magic", 4, 2, 0, 0]), "unknown sketch kind 'magic'"),
        (one("Project", [[1, 4]], ["srht", 4, 0, 0, 0]), "cols=0"),
        (one("Project", [[4]], ["srht", 4, 2, 0, 0], 1, True, {"in": [[1, 4]]}), "vectors of 4"),
        (one("Project", [[1, 4]], ["sparse_sign", 4, 2, 0, 0, [["nnz", 9]]]), "nnz=9"),
        (one("Project", [[1, 4]], ["dct", 4, 2, 0, 0, [["height", 3], ["width", 3]]]), "3 x 3"),
        (one("Project", [[1, 4]], ["dct", 4, 2, 0, 0, [["height", 2]]]), "width=None"),
        (one("Project", [[1, 4]], ["pool", 2**30, 2**29 - 3, 0, 0,
                                   [["height", 2**15], ["width", 2**15]]]), "pool: cols="),
        (one("Project", [[1, 4]], ["rows_norm", 4, 2, 0, 0]), "operation 0"),
        (one("Gather", [[4, 2], [3]]), "not whole numbers"),
        (one("Slice", [[1, 4, 1], [1]], 2), "not whole numbers"),
        (one("Cumulative", [[1, 4, 1]], "mean"), "no running 'mean'"),
        (one("Affine", [[4]], [1, 2, 3], 1), "numbers of shape"),
        (one("Affine", [[4]], 0, "/0"), "divided by 0"),
        (one("Affine", [[4]], 0, "3"), "is not a number"),
        (one("Affine", [[4]], 0, 3.5e38), "3.5e.38 is not a finite number of float32"),
        (one("Affine", [[4]], [0, -(2**128)] * 2, 1), "is not a finite number of float32"),
        (one("Affine", [[4]], 0, "/1e-39"), "e.39 is not a finite number of float32"),
        (one("Affine", [[4]], 0, ["/", 1, 2, 3, 5e-324]), "inf is not a finite number"),
        (one("Affine", [[4]], 0, 10**400), "is not a finite number"),
        (one("Affine", [[4]], 0, "/x"), "operation 0"),
        (one("Scan", [[3, 2]], RELU, 0, 0, 4), "the body takes"),
        (one("Scan", [[3, 2]], RELU, 0, 1, 3), "the body takes"),
        (one("Scan", [[3, 2]], RELU, 1, 1, 3), "for a body of 1"),
        (one("Scan", [[3, 2]], RELU, 0, 0, 0), "0 times"),
        (one("Scan", [[2]], [[[[2]]], [["Reduce", 1, "sum", [0]]], [1]], 0, 1, 3), "a carry of"),
    ],
)  # fmt: skip
def test_operations_that_make_no_sense_are_said(content: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        from_json(content, {})


def test_scans_within_scans_end() -> None:
    content = RELU
    for depth in range(12):
        nested = copy.deepcopy(one("Scan", [[2]], content, 0, 1, 1))
        if depth < 8:
            from_json(nested, {})
        else:
            with pytest.raises(GraphError, match="more than 8 deep"):
                from_json(nested, {})
        content = nested


def test_tensors_of_no_use_and_of_other_kinds_are_refused() -> None:
    content, tensors = small()
    with pytest.raises(GraphError, match="that no operation uses: more"):
        from_json(content, {**tensors, "more": np.ones(3, np.float32)})
    with pytest.raises(GraphError, match="'w' holds no float32"):
        from_json(content, {**tensors, "w": np.ones((3, 4), np.int32)})


def test_a_file_whose_graph_makes_no_sense_is_named(tmp_path: Path) -> None:
    content, tensors = changed((1, 0, 0), "Eval")
    path = tmp_path / "odd.rosler"
    path.write_bytes(modelfile.encode(tensors, {}, {}, graph=content))
    with pytest.raises(ModelFileError, match=r"odd\.rosler: its graph makes no sense: operation 0"):
        load(path)


# Anything may stand anywhere: an error of ours, or a graph that checks out.

ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.integers(-(2**70), 2**70)
    | st.floats() | st.text(max_size=3)
    | st.sampled_from([*KINDS, "relu", "sum", "srht", "float32", "r", "/"]),
    lambda inner: st.lists(inner, max_size=5)
    | st.dictionaries(st.sampled_from(["in", "dtypes", "name", "x"]), inner, max_size=2),
    max_leaves=8,
)  # fmt: skip


def places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in JSON."""
    steps: Any = node.items() if isinstance(node, dict) else ()
    steps = enumerate(node) if isinstance(node, list) else steps
    return [at, *(place for step, inner in steps for place in places(inner, (*at, step)))]


WHOLE, TENSORS = to_json(every_kind()[0])
PLACES = [place for place in places(WHOLE) if place]


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_forged_graphs(data: Any) -> None:
    content = copy.deepcopy(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        node, at = content, data.draw(st.sampled_from(PLACES))
        try:
            for step in at[:-1]:
                node = node[step]
            node[at[-1]] = data.draw(ANY)
        except (TypeError, KeyError, IndexError):
            continue  # gone with an earlier change
    check_survives(content)


def check_survives(content: Any) -> None:
    tracemalloc.start()
    try:
        graph = from_json(content, TENSORS)
    except GraphError:
        graph = None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2**22
    if graph is not None:
        check(graph)
        assert encoded(graph) == encoded(graph_of_file(modelfile.decode(encoded(graph))))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_with_a_correct_checksum(data: Any) -> None:
    text = json.dumps(WHOLE, separators=(",", ":"))
    damaged = list(text)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.sampled_from('0123-,[]"'))
    try:
        content = json.loads("".join(damaged))
    except ValueError:
        return
    check_survives(content)


FILE = encoded(every_kind()[0], 4)


def resign(data: bytearray) -> bytes:
    """The same bytes with a correct checksum."""
    return bytes(data[:-4]) + struct.pack("<I", zlib.crc32(data[:-4]))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_files_with_a_correct_checksum(data: Any) -> None:
    damaged = bytearray(FILE)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(FILE) - 5))] = data.draw(st.integers(0, 255))
    tracemalloc.start()
    try:
        graph_of_file(modelfile.decode(resign(damaged)))
    except ModelFileError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 * modelfile.MAX_HEADER_BYTES + 100 * len(FILE)


def test_truth_values_take_a_bit_each() -> None:
    mask = np.random.default_rng(0).random((5, 7)) < 0.5
    stored = modelfile.bytes_of({"mask": mask})["mask"]
    assert stored.total == 5
    read = modelfile.decode(modelfile.encode({"mask": mask}, {}, {}, graph=[]))
    np.testing.assert_array_equal(read.tensors["mask"], mask)
    whole = bytearray(modelfile.encode({"mask": mask}, {}, {}, graph=[]))
    whole[-5] |= 0x80
    with pytest.raises(ModelFileError, match="the filling bits after the last value are not zero"):
        modelfile.decode(resign(whole))
    with pytest.raises(ModelFileError, match="has dtype bool"):
        modelfile.encode({"mask": mask}, {}, {})


def test_integers_survive_the_file() -> None:
    m = Maker()
    y = m.add(Dense, m.input(1, 6), weight=weight("w", 6, 4))
    graph = quantize_graph(m.graph(y), 4)
    (kept,), (read,) = graph.weights(), again(graph).weights()
    assert isinstance(read.stored, QuantizedTensor)
    np.testing.assert_array_equal(kept.integers, read.integers)
    np.testing.assert_array_equal(kept.scale, read.scale)
