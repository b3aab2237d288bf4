"""ONNX files against the graph, the network and their size."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from exported_models import conv, make_model, of, sketched
from small_networks import CASES, graph_of, inputs_of, network_of

from rosler_jax.export._errors import ExportError
from rosler_jax.export.onnx import OPSETS, onnx_model, to_onnx
from rosler_jax.graph import Graph
from rosler_jax.graph import run as run_graph
from rosler_jax.graph.save import load, save

onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra test is not installed")

TOLERANCE = 2e-5  # float32 sums in another order


def run(model: bytes, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


def computed(graph: Graph, x: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(lambda x: run_graph(graph, [x])[0]))(x))


def assert_near(got: np.ndarray, want: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("name", CASES)
def test_floats_equal_the_graph_at_any_batch(name: str) -> None:
    graph = graph_of(name)
    model = onnx_model(graph)
    onnx.checker.check_model(model, full_check=True)
    for batch in (1, 5):
        x = inputs_of(name, batch)
        assert_near(run(model.SerializeToString(), x), computed(graph, x))


@pytest.mark.parametrize("name", [name for name in CASES if name != "norms"])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_integers_of_the_model_file_are_kept(name: str, bits: int) -> None:
    graph, x = graph_of(name, bits), inputs_of(name, 5)
    model = onnx_model(graph, bits)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == OPSETS[bits]
    # Biases have 16 bits: 2^-16 of the largest, after as many layers as there are.
    got = run(model.SerializeToString(), x)
    assert_near(got, computed(graph, x), 3e-4)
    assert_near(got, np.asarray(network_of(name, bits)(x)), 3e-4)


def big() -> tuple[list[int], int]:
    """Sizes of files of two factors at every width, and how many numbers the factors have."""
    graph = graph_of("factors")
    weights = sum(w.values.size for w in graph.weights())
    return [onnx_model(graph_of("factors", bits), bits).ByteSize() for bits in OPSETS], weights


def test_integer_weights_take_their_bits_in_the_file() -> None:
    (floats, *integers), weights = big()
    for bits, size in zip((16, 8, 4), integers, strict=True):
        saved = floats - size
        assert saved == pytest.approx(weights * (32 - bits) / 8, abs=600), bits
    for bits, kind in ((16, onnx.TensorProto.INT16), (8, onnx.TensorProto.INT8)):
        stored = {t.name: t for t in onnx_model(graph_of("factors"), bits).graph.initializer}
        assert stored["0/c"].data_type == kind


def test_seeded_sketches_cost_little() -> None:
    graph = graph_of("seeded_srht")
    others = sum(w.values.size for w in graph.weights())
    assert onnx_model(graph).ByteSize() < 4 * others + 6000  # nodes; the matrices take 29,000


@pytest.mark.slow
def test_a_large_seeded_layer_is_near_its_model_file(tmp_path: Path) -> None:
    graph = make_model([sketched(700, 900, 16, mode="seeded")], bits=32).graph
    shipped = save(tmp_path / "m.rosler", graph, bits=8)
    graph = load(tmp_path / "m.rosler").graph
    written = to_onnx(graph, tmp_path / "m.onnx", bits=8)
    assert written == (tmp_path / "m.onnx").stat().st_size
    assert written < shipped + 5000  # nodes, and 3 bytes for every kept column
    x = np.random.default_rng(0).normal(size=(3, 700)).astype(np.float32)
    got = run((tmp_path / "m.onnx").read_bytes(), x)
    assert_near(got, computed(graph, x), 3e-4)


def test_a_three_dimensional_convolution() -> None:
    specs = [conv(2, 4, (2, 3, 2), strides=[1, 2, 1]), of("max_pool", window=2)]
    graph = make_model(specs, bits=32, shape=(4, 9, 5, 2)).graph
    x = np.random.default_rng(0).normal(size=(2, 4, 9, 5, 2)).astype(np.float32)
    got = run(onnx_model(graph).SerializeToString(), x)
    assert_near(got, computed(graph, x))


def test_one_transpose_in_and_one_out() -> None:
    kinds = [node.op_type for node in onnx_model(graph_of("images")).graph.node]
    assert kinds.count("Transpose") == 2


def test_equal_networks_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        to_onnx(graph_of("seeded_groups"), tmp_path / name, bits=8)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("bits", [0, 3, 64, "8"])
def test_unknown_bits_name_the_others(bits: object) -> None:
    with pytest.raises(ExportError, match="use one of 32, 16, 8, 4"):
        onnx_model(graph_of("mlp"), bits)  # type: ignore[arg-type]


def test_a_folder_that_is_not_there_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        to_onnx(graph_of("mlp"), tmp_path / "none" / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_model_too_large_for_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rosler_jax.export.onnx.LARGEST", 1000)
    with pytest.raises(ExportError, match="use fewer bits"):
        to_onnx(graph_of("mlp"), "unwritten.onnx")


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"rosler-jax\[export\]"):
        onnx_model(graph_of("mlp"))
