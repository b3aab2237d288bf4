"""Calibration: a sample of all that a model will see, and a word on what it leaves out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import call

from rosler_jax import run
from rosler_jax.config import TrainConfig
from rosler_jax.export import ExportError, calibration_of, export, run_integer
from rosler_jax.export._calibration import draw
from rosler_jax.export.lowering import lower
from rosler_jax.graph.save import load

AMPLITUDES = np.array([1.0, 4.0, 16.0, 64.0])
COUNT = 60


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Four classes of growing amplitude, sorted by class, and a network that tells them apart."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 400)
    wave = np.sin(np.arange(12) * (1 + y[:, None] / 2) + rng.uniform(0, 6, (1600, 1)))
    x = (AMPLITUDES[y, None] * (wave + 0.1 * rng.normal(size=(1600, 12)))).astype(np.float32)
    folder = tmp_path_factory.mktemp("sorted")
    np.savez(folder / "sorted.npz", x=x, y=y)
    config = TrainConfig(
        data=str(folder / "sorted.npz"), method="chain", hidden=(32,), rank=8, epochs=8,
        batch_size=32, learning_rate=1e-2, validation=0.5,
    )  # fmt: skip
    run.train(config, folder / "run")
    return folder / "run"


def accuracies(folder, calibration):
    """Of the float network, and of its integer specification, on the test split."""
    loaded, data = load(folder), run.load_data(TrainConfig(
        data=str(folder.parent / "sorted.npz"), validation=0.5
    ))  # fmt: skip
    program = lower(loaded.graph, calibration)
    found = run_integer(program, program.quantize_input(data.test_x)).reshape(len(data.test_y), -1)
    exact = np.asarray(loaded(data.test_x))
    return [float((out.argmax(-1) == data.test_y).mean()) for out in (exact, found)]


@pytest.mark.slow
def test_sorted_data_calibrates_as_well_as_shuffled(trained):
    exact, integers = accuracies(trained, calibration_of(trained, count=COUNT))
    assert integers == pytest.approx(exact, abs=0.01) and exact > 0.95
    data = run.load_data(TrainConfig(data=str(trained.parent / "sorted.npz"), validation=0.5))
    assert (
        accuracies(trained, data.validation_x[:COUNT])[1] < exact - 0.2
    )  # why a prefix will not do


def test_the_draw_has_every_class_and_a_seed():
    y = np.r_[np.zeros(900, int), np.ones(90, int), [2]]
    chosen = draw(y, 100, seed=3)
    assert len(set(chosen.tolist())) == 100
    assert np.bincount(y[chosen]).tolist() == pytest.approx([90, 9, 1], abs=1)
    assert np.array_equal(chosen, draw(y, 100, seed=3))
    assert not np.array_equal(chosen, draw(y, 100, seed=4))
    assert sorted(draw(y, 5000, seed=0).tolist()) == list(range(991))
    assert set(y[chosen[:30]].tolist()) >= {0, 1}  # in no order of classes


@pytest.mark.slow
def test_the_report_says_what_saturates(trained, tmp_path, capsys):
    narrow = calibration_of(trained, count=COUNT) / 8
    others = calibration_of(trained, count=400, seed=1)
    done = export(
        trained, tmp_path / "n", dtype="int16", calibration=narrow, others=others, board=None
    )
    found = done.report["calibration"]
    assert found["examples"] == 400 and 0.05 < found["saturated_examples"] < 0.5
    assert 0 < found["saturated_elements"] < found["saturated_examples"]
    assert f"{found['saturated_examples']:.2%} saturate" in done.text
    other = export(
        trained, tmp_path / "t", target="tflite", dtype="int8", calibration=narrow, others=others
    )
    assert 0.05 < other.report["calibration"]["saturated_examples"] < 0.8
    assert "saturate" in other.text
    code, _, err = call(
        capsys, "export", trained, "--dtype", "int16", "--out", tmp_path / "e", "--board", "none"
    )
    assert code == 0, err
    report = json.loads((tmp_path / "e" / "size_report.json").read_text())["calibration"]
    assert report["saturated_examples"] < 0.02
    with np.load(tmp_path / "e" / "examples.npz") as examples:
        sizes = np.abs(examples["inputs"].reshape(16, -1)).max(1)
    assert sizes.max() > 8 * sizes.min()  # of small and of large classes


@pytest.mark.slow
def test_features_below_the_inputs_one_scale_are_named(tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 3)) * [1, 1, 3e4]).astype(np.float32)
    np.savez(tmp_path / "units.npz", x=x, y=np.arange(200) % 2)
    run.train(
        TrainConfig(
            data=str(tmp_path / "units.npz"), method="dense", hidden=(4,), epochs=1, batch_size=32
        ),
        tmp_path / "run",
    )
    calibration = calibration_of(tmp_path / "run", count=10)
    done = export(
        tmp_path / "run", tmp_path / "e", dtype="int16", calibration=calibration,
        others=calibration, board=None,
    )  # fmt: skip
    assert done.report["calibration"]["lost_features"] == 2
    assert "2 features vary by less than" in done.text


@pytest.mark.parametrize("shape", [(24, 6), (12,), (2, 6, 2)])
def test_calibration_of_other_features_is_refused(trained, shape):
    graph = load(trained).graph
    with pytest.raises(ExportError, match="are no examples of shape"):
        lower(graph, np.ones(shape) if shape != (2, 6, 2) else np.ones((2, 6, 3)))
