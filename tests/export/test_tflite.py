"""TFLite files in LiteRT and in the interpreter of TFLite Micro, and their size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from exported_models import conv, make_model, sketched
from small_networks import CASES, graph_of, inputs_of, network_of

from rosler_jax.export._errors import ExportError
from rosler_jax.export.tflite import tflite_model, to_tflite
from rosler_jax.graph import Graph, run, trace
from rosler_jax.graph.save import load, save

pytest.importorskip("tflite", reason="the extra export is not installed")
litert = pytest.importorskip("ai_edge_litert.interpreter", reason="no LiteRT for this machine")

FLOAT = 2e-6  # float32 sums in another order
INTEGER = 2e-5  # biases have 16 bits in files of integers
SIXTEEN = 5e-4  # activations of 16 bits, layer after layer
COARSE = 2e-2  # as above, and a gaussian sketch in 8 bits


def reference(graph: Graph, x: np.ndarray) -> np.ndarray:
    return np.asarray(jax.vmap(lambda example: run(graph, [example])[0])(x))


def run_litert(data: bytes, x: np.ndarray) -> np.ndarray:
    interpreter = litert.Interpreter(model_content=data, num_threads=1)
    index = interpreter.get_input_details()[0]["index"]
    if len(x) != 1:
        interpreter.resize_tensor_input(index, x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(index, x)
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


def run_micro(data: bytes, x: np.ndarray) -> np.ndarray | None:
    """Outputs of the microcontroller's interpreter, example by example; None where it is not."""
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError:
        return None
    interpreter = runtime.Interpreter.from_bytes(data, arena_size=1 << 21)
    out = []
    for example in x:
        interpreter.set_input(example[None], 0)
        interpreter.invoke()
        out.append(interpreter.get_output(0))
    return np.concatenate(out)


def assert_near(got: np.ndarray | None, want: np.ndarray, tolerance: float) -> None:
    if got is None:  # no TFLite Micro
        return
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * max(1.0, np.abs(want).max())


def assert_runs(data: bytes, graph: Graph, x: np.ndarray, tolerance: float) -> None:
    want = reference(graph, x)
    assert_near(run_litert(data, x), want, tolerance)
    assert_near(run_litert(data, x[:1]), want[:1], tolerance)
    assert_near(run_micro(data, x[:2]), want[:2], tolerance)


@pytest.mark.parametrize("name", CASES)
def test_floats_equal_the_graph(name: str) -> None:
    graph = graph_of(name)
    assert_runs(tflite_model(graph), graph, inputs_of(name, 5), FLOAT)


@pytest.mark.parametrize("name", [name for name in CASES if name != "norms"])
@pytest.mark.parametrize("bits", [16, 8])
def test_integers_of_the_model_file_are_kept(name: str, bits: int) -> None:
    graph, x = graph_of(name, bits), inputs_of(name, 5)
    data = tflite_model(graph, bits)
    assert_runs(data, graph, x, INTEGER)
    assert_near(run_litert(data, x), np.asarray(network_of(name, bits)(x)), INTEGER)


@pytest.mark.parametrize("name", ["mlp", "groups", "seeded_srht", "seeded_rademacher"])
def test_four_bits_run_in_litert(name: str) -> None:
    graph, x = graph_of(name, 4), inputs_of(name, 5)
    want = reference(graph, x)
    assert_near(run_litert(tflite_model(graph, 4), x), want, INTEGER)


@pytest.mark.parametrize("name", CASES)
def test_activations_of_sixteen_bits(name: str) -> None:
    graph, x = graph_of(name, 32 if name == "norms" else 8), inputs_of(name, 5)
    data = tflite_model(graph, 8, np.concatenate([x, inputs_of(name, 30, 1)]))
    # Entries of these have 8 bits; norms: floats that become 8 bits here.
    coarse = "gaussian" in name or "dct" in name or name == "norms"
    assert_runs(data, graph, x, COARSE if coarse else SIXTEEN)


def test_integer_products_have_integer_operands() -> None:
    x = inputs_of("mlp", 30)
    interpreter = litert.Interpreter(model_content=tflite_model(graph_of("mlp", 8), 8, x))
    kinds = {detail["dtype"] for detail in interpreter.get_tensor_details()}
    assert {np.int8, np.int16, np.int64} <= kinds
    ops = [op["op_name"] for op in interpreter._get_ops_details()]
    assert ops.count("QUANTIZE") == ops.count("DEQUANTIZE") == 1


def big(bits: int, **layer: Any) -> Graph:
    return make_model([sketched(700, 900, 16, **layer)], bits=bits).graph


@pytest.mark.slow
def test_integer_weights_take_their_bits_in_the_file() -> None:
    sizes = {bits: len(tflite_model(big(bits), bits)) for bits in (32, 16, 8, 4)}
    for bits in (16, 8, 4):
        saved = (700 + 16 + 900) * 16 * (32 - bits) / 8
        assert sizes[32] - sizes[bits] == pytest.approx(saved, abs=2000)


def test_a_large_seeded_layer_is_not_written_out(tmp_path: Path) -> None:
    shipped = save(tmp_path / "m.rosler", big(32, mode="seeded"), bits=8)
    graph = load(tmp_path / "m.rosler").graph
    x = np.random.default_rng(0).normal(size=(20, 700)).astype(np.float32)
    for calibration, activation in ((None, 1), (x, 2)):
        size = to_tflite(graph, tmp_path / "m", bits=8, calibration=calibration)
        assert size == (tmp_path / "m").stat().st_size
        # Signs, indices and, with integers, biases of 8 bytes; the matrices would take 102,400.
        assert size < shipped + 1600 * activation + 4 * 1040 + 6 * 900 + 6000
    assert_runs((tmp_path / "m").read_bytes(), graph, x[:5], SIXTEEN)


def test_a_signature_names_input_and_output() -> None:
    interpreter = litert.Interpreter(model_content=tflite_model(graph_of("images")))
    run = interpreter.get_signature_runner("serving_default")
    x = inputs_of("images", 1)
    want = reference(graph_of("images"), x)
    assert_near(run(input=x)["output"], want, FLOAT)


def volume(**more: Any) -> Graph:
    return make_model([conv(2, 4, (2, 3, 2), **more)], bits=32, shape=(4, 9, 5, 2)).graph


def test_a_three_dimensional_convolution_runs_in_litert() -> None:
    graph = volume(strides=[1, 2, 1])
    x = np.random.default_rng(0).normal(size=(2, 4, 9, 5, 2)).astype(np.float32)
    assert_near(run_litert(tflite_model(graph), x), reference(graph, x), FLOAT)


@pytest.mark.parametrize(("graph", "bits"), [(volume(feature_group_count=2), 32), (volume(), 8)])
def test_what_tflite_does_not_have_names_the_layer(graph: Graph, bits: int) -> None:
    with pytest.raises(ExportError, match=r"0/kernel: .*3-D.*\(onnx, stablehlo\)"):
        tflite_model(graph, bits)


def test_a_network_that_only_reshapes_runs() -> None:
    graph = trace(lambda x: x.reshape(len(x), -1), np.zeros((1, 6), np.float32))
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    assert_near(run_litert(tflite_model(graph), x), x, 0.0)


@pytest.mark.parametrize("bits", [0, 2, "8"])
def test_unknown_bits_name_the_others(bits: Any) -> None:
    with pytest.raises(ExportError, match="use one of 32, 16, 8, 4"):
        tflite_model(graph_of("mlp"), bits)


def test_calibration_goes_with_eight_bits() -> None:
    with pytest.raises(ExportError, match="pass bits=8"):
        tflite_model(graph_of("mlp"), 4, inputs_of("mlp", 3))


@pytest.mark.parametrize(
    ("calibration", "says"),
    [(np.ones((3, 4)), "no examples of shape"), (np.full((2, 5, 7, 1), np.nan), "NaN"), ([], "no")],
)
def test_bad_calibration_inputs_are_refused(calibration: Any, says: str) -> None:
    with pytest.raises(ExportError, match=says):
        tflite_model(graph_of("mlp"), 8, calibration)


def test_a_model_too_large_for_a_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for limit in (100, 3000):  # before and after it is written
        monkeypatch.setattr("rosler_jax.export.tflite.LARGEST", limit)
        with pytest.raises(ExportError, match="use fewer bits"):
            to_tflite(graph_of("mlp"), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tflite", None)
    with pytest.raises(ImportError, match=r"rosler-jax\[export\]"):
        tflite_model(graph_of("mlp"))
