"""``export`` and ``rosler export``: files, report, limits, errors, and files that mean harm."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from exported_models import CONV_SHAPE, convnet, linear, make_model, mlp, of, pixels, reals
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rosler_jax import modelfile
from rosler_jax.cli import main
from rosler_jax.export import DTYPES, TARGETS, ExportError, Training, export
from rosler_jax.export.report import Limits, estimates, shortfall
from rosler_jax.graph.save import encoded, load, save
from rosler_jax.modelfile import ModelFileError

V1 = Path(__file__).parents[1] / "data_v1"


@pytest.fixture
def model(tmp_path):
    """A model file of a small network."""
    save(tmp_path / "model.rosler", make_model(mlp(), bits=32).graph, bits=8)
    return tmp_path / "model.rosler"


def test_writes_the_files_and_the_report(model, tmp_path):
    done = export(model, tmp_path / "edge", dtype="int8", calibration=pixels((70,), 20), board=None)
    names = {path.name for path in done.files}
    assert names == {"rosler_model.h", "rosler_model.c", "examples.npz", "size_report.json"}
    assert all(path.is_file() for path in done.files)
    assert {path.name for path in (tmp_path / "edge").iterdir()} == names  # nothing temporary
    report = json.loads((tmp_path / "edge" / "size_report.json").read_text())
    assert report == done.report
    assert report["flash"]["data_bytes"] == sum(report["flash"]["data"].values())
    assert report["dense_float32"]["data_bytes"] == 4 * (71 * 37 + 38 * 29 + 30 * 7)
    assert report["work"]["multiplications"] < report["dense_float32"]["multiplications"]
    assert "flash, model data" in done.text
    with np.load(tmp_path / "edge" / "examples.npz") as examples:
        assert examples["inputs"].dtype == np.uint8
        assert examples["outputs"].shape == (16, 7)


@pytest.mark.slow
def test_the_file_tells_the_same_network_in_every_dtype(model, tmp_path):
    network = load(model)
    x = pixels((70,), 20)
    expected = np.asarray(network(x[np.linspace(0, 19, 16).round().astype(int)]))  # from all of x
    for dtype in DTYPES:
        export(model, tmp_path / dtype, dtype=dtype, calibration=x, board=None)
        header = (tmp_path / dtype / "rosler_model.h").read_text()
        scale = float(header.split("ROSLER_OUTPUT_SCALE ")[1].split()[0])
        with np.load(tmp_path / dtype / "examples.npz") as examples:
            found = examples["outputs"].reshape(16, -1) * scale
        worst = np.abs(found - expected).max() / np.abs(expected).max()
        assert worst < {"float32": 1e-5, "int16": 2e-3, "int8": 2e-3, "int4": 0.5}[dtype]


def test_a_model_too_large_is_refused_with_what_would_fit(model, tmp_path):
    x = pixels((70,), 20)
    with pytest.raises(ExportError, match=r"\d+ more than --flash 3000; --dtype int"):
        export(model, tmp_path / "a", calibration=x, flash=3000, board=None)
    with pytest.raises(ExportError, match=r"ranks of \d+% would fit.*8 -> \d"):
        export(model, tmp_path / "b", dtype="int4", calibration=x, flash=800, board=None)
    with pytest.raises(ExportError, match="narrower network"):
        export(model, tmp_path / "c", dtype="int4", calibration=x, flash=100, board=None)
    with pytest.raises(ExportError, match=r"bytes of RAM, \d+ more than --ram 300;.*int16"):
        export(model, tmp_path / "d", calibration=x, ram=300, board=None)
    assert {path.name for path in tmp_path.iterdir()} == {"model.rosler"}  # nothing is left
    done = export(model, tmp_path / "e", dtype="int4", calibration=x, flash=1 << 20, board=None)
    graph = make_model(mlp(), bits=8).graph
    assert shortfall(done.report, Limits(), graph) is None


def test_code_that_trains_is_written_beside_it(model, tmp_path):
    how = Training(parts="head", batch=4)
    done = export(model, tmp_path / "edge", board=None, train=how)
    names = {path.name for path in done.files}
    assert {"rosler_train.h", "rosler_train.c"} < names
    training = done.report["training"]
    assert training["parts"] == "head"
    assert training["state_bytes"] >= 4 * 30 * 7
    with pytest.raises(ExportError, match="target c"):
        export(model, tmp_path / "edge", target="onnx", train=how)


@pytest.mark.parametrize("target", ["onnx", "tflite", "stablehlo"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_targets_of_one_file(model, tmp_path, target, dtype):
    pytest.importorskip({"onnx": "onnx", "tflite": "tflite", "stablehlo": "flatbuffers"}[target])
    done = export(model, tmp_path / "edge", target=target, dtype=dtype, calibration=pixels((70,)))
    (path,) = done.files
    assert path.stat().st_size == done.report["file_bytes"]
    assert path.name == f"model.{target}"


def test_an_export_that_cannot_be_written_leaves_the_one_before(model, tmp_path, monkeypatch):
    export(model, tmp_path / "edge", board=None)
    before = {path: path.read_bytes() for path in (tmp_path / "edge").iterdir()}
    write, count = Path.write_bytes, iter(range(100))

    def full(self, data):
        if next(count) % 4 == 3:
            write(self, data[:10])
            raise OSError(28, "No space left on device", str(self))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    for folder in ("edge", "new/folder"):
        with pytest.raises(OSError, match="No space left"):
            export(model, tmp_path / folder, dtype="int8", calibration=pixels((70,)), board=None)
    assert before == {path: path.read_bytes() for path in (tmp_path / "edge").iterdir()}
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("target", ["c", "tflite"])
@pytest.mark.parametrize(
    ("calibration", "says"),
    [
        (np.ones((4, 140)), r"shape \(4, 140\).*each has 140 numbers, the network takes 70"),
        (np.ones((4, 35)), "each has 35 numbers, the network takes 70"),
        (np.ones((140,)), "each has 1 numbers, the network takes 70"),
        (np.full((4, 70), np.nan), "NaN or infinity: 4 of 4, the first is number 0"),
        (np.full((2, 70), 1e300), "NaN or infinity: 2 of 2"),
        (np.ones((0, 70)), r"no calibration inputs \(shape \(0, 70\)\)"),
        (np.full((2, 70), "x"), "dtype <U1; expected real numbers"),
        (np.ones((2, 70), complex), "expected real numbers"),
        ([[1.0, 2.0], [3.0]], "expected real numbers"),
    ],
)
def test_calibration_that_does_not_fit_is_refused(model, tmp_path, target, calibration, says):
    for dtype in ("int8", "float32") if target == "c" else ("int8",):
        with pytest.raises(ExportError, match=says):
            export(model, tmp_path / "x", target=target, dtype=dtype, calibration=calibration)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("target", ["c", "tflite"])
def test_a_network_that_overflows_on_calibration_is_refused(tmp_path, target):
    standardize = of("standardize", mean=0.0, std=1e-30)
    save(tmp_path / "m.rosler", make_model([standardize, linear(3, 2)], bits=32).graph)
    options = {"calibration": 1e30 * reals((3,)), "target": target}
    with pytest.raises(ExportError, match=r": its outputs .* not finite"):
        export(tmp_path / "m.rosler", tmp_path / "x", dtype="int8", **options)
    if target == "c":
        with pytest.raises(ExportError, match=r"its outputs .* not finite|too large"):
            export(tmp_path / "m.rosler", tmp_path / "x", train=Training(dtype="fixed"), **options)
    assert not (tmp_path / "x").exists()


def test_estimates_name_their_model():
    from rosler_jax.export.report import Counted

    found = estimates(Counted("cortex-m4", 100.0, 10.0, 10.0, 0, 0))
    assert found["cycles"] == 120
    assert "estimate" in found["model"]


def test_what_cannot_be_is_refused(model, tmp_path):
    with pytest.raises(ExportError, match=r"unknown target 'rust'.*c"):
        export(model, tmp_path / "x", target="rust")
    with pytest.raises(ExportError, match=r"unknown dtype 'int9'"):
        export(model, tmp_path / "x", dtype="int9")
    with pytest.raises(ExportError, match="needs calibration inputs"):
        export(model, tmp_path / "x", dtype="int8")
    for shape in ("abc", 70, [70.5], [None], [], [0]):
        with pytest.raises(ValueError, match=r"input_shape .*; expected positive"):
            export(V1 / "vectors_8.rosler", tmp_path / "x", input_shape=shape)
    for bad in ({"momentum": None}, {"momentum": "x"}, {"clip": "x"}, {"parts": 3}, {"batch": 2.0}):
        with pytest.raises(ExportError, match=f"{next(iter(bad))} "):
            export(model, tmp_path / "x", train=Training(**bad), board=None)
    with pytest.raises(FileNotFoundError):
        export(tmp_path / "absent.rosler", tmp_path / "x")
    assert "c" in TARGETS


def test_command_line(model, tmp_path, capsys):
    np.save(tmp_path / "x.npy", pixels((70,), 20))
    common = ["export", str(model), "--out", str(tmp_path / "edge"), "--board", "none"]
    calibration = ["--calibration", str(tmp_path / "x.npy")]
    assert main([*common, "--dtype", "int8", *calibration, "--softmax", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["files"]) == 4
    assert "rosler_softmax" in (tmp_path / "edge" / "rosler_model.c").read_text()
    assert main([*common, "--dtype", "float32"]) == 0
    assert "wrote" in capsys.readouterr().out
    assert main([*common, "--dtype", "int8"]) == 1
    assert "calibration" in capsys.readouterr().err
    assert main([*common, "--flash", "0"]) == 2
    assert main([*common, "--dtype", "int5"]) == 2
    assert main([*common, "--target", "onnx", "--flash", "10"]) == 2
    assert main([*common, "--target", "onnx", "--train", "float32"]) == 2
    assert main([*common, "--clip", "1.0"]) == 2
    assert main([*common, "--train", "float32", "--parts", "head", "--clip", "1.0"]) == 0
    (tmp_path / "bad.npy").write_bytes(b"no")
    assert main([*common, "--dtype", "int8", "--calibration", str(tmp_path / "bad.npy")]) == 1
    assert "not a NumPy file" in capsys.readouterr().err
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    assert main([*common, "--dtype", "int8", "--calibration", str(tmp_path / "other.npz")]) == 2
    assert main(["export", str(tmp_path / "absent"), "--out", str(tmp_path / "edge")]) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_hostile_headers_never_crash_the_exporter(tmp_path_factory, kind):
    specs, shape = (mlp(), (70,)) if kind == "mlp" else (convnet(), CONV_SHAPE)
    small = make_model(specs, bits=8, shape=shape)
    folder = tmp_path_factory.mktemp("hostile")
    spots = [(i, key) for i, spec in enumerate(small.specs) for key in spec]

    @settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(spot=st.sampled_from(spots), value=JSON, with_int=st.integers(-3, 300) | st.none())
    def attack(spot, value, with_int):
        changed = [dict(spec) for spec in small.specs]
        i, key = spot
        changed[i][key] = value if with_int is None else with_int
        with contextlib.suppress(ModelFileError, ExportError):
            modelfile.save(folder / "bad.rosler", small.tensors, {"layers": changed}, {})
            export(folder / "bad.rosler", folder / "out", input_shape=shape, board=None)

    attack()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_are_refused(data):
    whole = encoded(make_model([linear(3, 2)], bits=8).graph)
    cut = data.draw(st.integers(0, len(whole) - 1))
    flip = data.draw(st.integers(0, len(whole) - 1))
    for bad in (whole[:cut], whole[:flip] + bytes([whole[flip] ^ 0x41]) + whole[flip + 1 :]):
        with pytest.raises(ModelFileError):
            modelfile.decode(bad)


def test_inputs_of_reals_need_no_bytes(model, tmp_path):
    export(model, tmp_path / "edge", dtype="int16", calibration=reals((70,), 20), board=None)
    assert 'ROSLER_INPUT_TYPE "int16"' in (tmp_path / "edge" / "rosler_model.h").read_text()
