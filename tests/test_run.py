"""A run in a folder: what it writes, exact resume, and what stops it."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from in_parts import train_in_parts

from rosler_jax import checkpoint, load, run, save
from rosler_jax._folder import locked
from rosler_jax.config import TrainConfig
from rosler_jax.export import calibration_of
from rosler_jax.graph.kinds import Affine
from rosler_jax.methods import METHODS

pytest.importorskip("orbax.checkpoint", reason="runs need the extra 'cli'")
pytest.importorskip("matplotlib", reason="runs need the extra 'cli'")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = (rng.normal(size=(3, 20))[y] + 0.4 * rng.normal(size=(300, 20))).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "clouds.npz"
    np.savez(path, x=x, y=y)
    return str(path)


def config(data: str, **settings: object) -> TrainConfig:
    defaults: dict[str, object] = {"hidden": (24, 16), "rank": 3, "epochs": 4, "batch_size": 32}
    return TrainConfig(**{"data": data, **defaults, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_writes_everything_and_the_file_scores_as_said(
    method: str, data: str, tmp_path: Path
) -> None:
    result = run.train(config(data, method=method), tmp_path / "out")
    out = tmp_path / "out"
    assert json.loads((out / "result.json").read_text()) == result
    assert result["file_bytes"] == (out / "model.rosler").stat().st_size
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((out / "history.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    again = run.evaluate_folder(out)
    assert again["test_accuracy"] == result["test_accuracy"]
    assert result["dense_parameters"] == 21 * 24 + 25 * 16 + 17 * 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ares-bp", "chain", "restrict-rank"])
def test_resume_is_exact_bit_for_bit(method: str, data: str, tmp_path: Path) -> None:
    settings = config(data, method=method, noise=0.1, parallel_epochs=2.5, epochs=5)
    whole = run.train(settings, tmp_path / "whole")
    resumed = train_in_parts(settings, tmp_path / "parts", 2)
    ours, theirs = (tmp_path / p / "model.rosler" for p in ("parts", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()
    for key in ("test_accuracy", "validation_accuracy", "best_epoch", "epochs"):
        assert resumed[key] == whole[key]


@pytest.mark.slow
def test_early_stopping_stops(data: str, tmp_path: Path) -> None:
    settings = config(data, method="dense", epochs=60, patience=3, learning_rate=1e-2)
    result = run.train(settings, tmp_path / "out")
    assert result["epochs"] < 60
    rows = list(csv.DictReader((tmp_path / "out" / "history.csv").open()))
    accuracies = [float(row["validation_accuracy"]) for row in rows]
    assert len(rows) - (accuracies.index(max(accuracies)) + 1) == 3


@pytest.mark.slow
def test_divergence_stops_and_keeps_the_last_good_state(data: str, tmp_path: Path) -> None:
    settings = config(data, method="dense", learning_rate=1e30, schedule="constant")
    with pytest.raises(run.RunError, match="no longer finite in epoch 1"):
        run.train(settings, tmp_path / "out")
    assert not (tmp_path / "out" / "result.json").exists()


def test_a_folder_belongs_to_one_run(data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(run.RunError, match="no run to resume"):
        run.train(None, out, resume=True)
    run.train(config(data, method="dense", epochs=2), out)
    with pytest.raises(run.RunError, match="already holds a run"):
        run.train(config(data, method="dense", epochs=2), out)
    with pytest.raises(run.RunError, match=r"another config.*rank: 3 -> 2"):
        run.train(config(data, method="dense", epochs=2, rank=2), out, resume=True)


def test_a_damaged_checkpoint_is_named(data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run.train(config(data, method="dense", epochs=2), out)
    for path in (out / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises((run.RunError, ValueError), match="checkpoint"):
        run.train(None, out, resume=True)


def test_image_augmentation_of_vectors_is_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(run.RunError, match="augment images"):
        run.train(config(data, method="dense", shift=1), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 8, 4, 3, 2])
def test_fewer_bits_make_smaller_files_that_load_to_the_same_outputs(
    bits: int, data: str, tmp_path: Path
) -> None:
    settings = config(data, method="chain", bits=bits, quantization_aware=True, epochs=12)
    result = run.train(settings, tmp_path / "out")
    loaded = load(tmp_path / "out")
    x = np.random.default_rng(1).normal(size=(5, 20)).astype(np.float32)
    again = load(tmp_path / "out" / "model.rosler")(x)
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(again))
    weights = (20 * 3 + 9 + 3 * 24) + (24 * 3 + 9 + 3 * 16) + 16 * 3
    assert result["file_bytes"] < weights * bits / 8 + 700  # biases, scales, header
    if bits >= 3:
        assert result["test_accuracy"] > 0.9


@pytest.mark.slow
def test_model_bytes_are_known_before_training(data: str, tmp_path: Path) -> None:
    seen = []
    result = run.train(
        config(data, method="ares-bp"), tmp_path / "out", report=lambda row: seen.append(row)
    )
    assert seen[0]["bytes"] == result["file_bytes"]
    assert jax.device_count() >= 1


# --- what a run is tied to ----------------------------------------------------------------------


def small(data: str, **settings: object) -> TrainConfig:
    return config(data, **{"method": "chain", "hidden": (8,), "epochs": 2, **settings})


@pytest.mark.slow
def test_a_run_resumes_with_its_own_data_alone(data: str, tmp_path: Path) -> None:
    copy, out = tmp_path / "copy.npz", tmp_path / "out"
    arrays = dict(np.load(data))
    np.savez(copy, **arrays)
    run.train(small(str(copy)), out)
    digest = json.loads((out / "data.json").read_text())["digest"]
    np.savez(copy, **{**arrays, "x": arrays["x"] + 1})
    with pytest.raises(run.RunError, match=f"other data.*{digest}.*put the old data back"):
        run.train(None, out, resume=True)
    with pytest.raises(run.RunError, match=f"other data.*{digest}.*name it"):
        run.evaluate_folder(out)
    run.evaluate_folder(out, data=str(copy))  # named, it is scored as it is
    np.savez_compressed(copy, **arrays)  # the same numbers in another file
    run.train(None, out, resume=True)
    (out / "data.json").unlink()
    with pytest.raises(run.RunError, match="not known"):
        run.train(None, out, resume=True)


@pytest.mark.slow
def test_a_second_process_is_refused_by_the_first_ones_number(data: str, tmp_path: Path) -> None:
    seen = []

    def meanwhile(row: dict[str, float]) -> None:
        for resume in (False, True):
            try:
                run.train(small(data, epochs=3), tmp_path / "out", resume=resume)
            except run.RunError as error:
                seen.append(str(error))

    held = tmp_path / "held"
    held.mkdir()
    with locked(held, "run"), pytest.raises(run.RunError, match=rf"process {os.getpid()} on "):
        run.train(small(data), held)
    assert not (held / "config.json").exists()
    run.train(small(data), tmp_path / "out", report=meanwhile)
    assert "already holds a run" in seen[0] and "another config" in seen[1]
    (held / "lock").write_text("1 on a machine that is gone\n")  # of a process that was killed
    run.train(small(data), held)


@pytest.mark.slow
def test_a_full_disk_is_one_line(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import resource

    out, soft = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    settings = small(data, hidden=(512, 64), method="dense")
    writing = checkpoint.writing

    @contextlib.contextmanager
    def limited(*arguments: Any) -> Iterator[None]:
        with writing(*arguments):
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, soft[1]))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, soft)

    monkeypatch.setattr(checkpoint, "writing", limited)
    with pytest.raises(OSError, match=r"checkpoint cannot be written: .*make room and resume"):
        run.train(settings, out)
    assert "Traceback" not in capfd.readouterr().err
    monkeypatch.setattr(checkpoint, "writing", writing)
    assert run.train(None, out, resume=True)["epochs"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y * 2), r"5 classes, but the model's outputs have shape \(3,\)"),
        (lambda x, y: (x[:, :15], y), r"shape \(15,\), 15 numbers.*takes 20 numbers"),
    ],
)
def test_data_that_does_not_fit_a_model_is_refused(
    change: Any, message: str, data: str, tmp_path: Path
) -> None:
    run.train(small(data), tmp_path / "out")
    other = tmp_path / "other.npz"
    x, y = change(*(np.load(data)[name] for name in "xy"))
    np.savez(other, x=x, y=y)
    for call in (run.evaluate_folder, calibration_of):
        with pytest.raises(run.RunError, match=message):
            call(tmp_path / "out", data=str(other))


def test_a_file_of_a_graph_is_calibrated_with_named_data(data: str, tmp_path: Path) -> None:
    run.train(small(data), tmp_path / "out")
    save(tmp_path / "graph.rosler", load(tmp_path / "out").graph, bits=8)
    drawn = calibration_of(tmp_path / "graph.rosler", data, count=9)
    np.testing.assert_array_equal(drawn, calibration_of(tmp_path / "out", data, count=9))


# --- units --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_units_cost_no_accuracy(data: str, tmp_path: Path) -> None:
    arrays = dict(np.load(data))
    units = np.where(np.arange(20) == 4, 1e5, 1.0).astype(np.float32)
    shown = {}
    for name, unit in (("plain", 1.0), ("volts", 1e-6), ("mixed", units)):
        path = tmp_path / f"{name}.npz"
        np.savez(path, x=(arrays["x"] * unit).astype(np.float32), y=arrays["y"])
        settings = small(str(path), noise=0.1, epochs=8, learning_rate=1e-2)
        shown[name] = run.train(settings, tmp_path / name)["test_accuracy"]
        first = load(tmp_path / name).graph.ops[0]
        assert isinstance(first, Affine) and first.factor.ndim == (name == "mixed")
    assert shown["volts"] == shown["plain"] > 0.85
    assert shown["mixed"] >= shown["plain"] - 0.05
