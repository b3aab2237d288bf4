"""A run in a folder: what it writes, exact resume, and what stops it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from rosler_jax import run
from rosler_jax.config import METHODS, TrainConfig
from rosler_jax.deploy import load_network
from rosler_jax.modelfile import ModelFileError

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


@pytest.mark.parametrize("method", ["ares-bp", "chain", "restrict-rank"])
def test_resume_is_exact_bit_for_bit(method: str, data: str, tmp_path: Path) -> None:
    settings = config(data, method=method, noise=0.1, parallel_epochs=2.5, epochs=5)
    whole = run.train(settings, tmp_path / "whole")

    class Stop(Exception):
        pass

    def interrupt(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        run.train(settings, tmp_path / "parts", report=interrupt)
    resumed = run.train(None, tmp_path / "parts", resume=True)
    ours, theirs = (tmp_path / p / "model.rosler" for p in ("parts", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()
    for key in ("test_accuracy", "validation_accuracy", "best_epoch", "epochs"):
        assert resumed[key] == whole[key]


def test_early_stopping_stops(data: str, tmp_path: Path) -> None:
    settings = config(data, method="dense", epochs=60, patience=3, learning_rate=1e-2)
    result = run.train(settings, tmp_path / "out")
    assert result["epochs"] < 60
    rows = list(csv.DictReader((tmp_path / "out" / "history.csv").open()))
    accuracies = [float(row["validation_accuracy"]) for row in rows]
    assert len(rows) - (accuracies.index(max(accuracies)) + 1) == 3


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


@pytest.mark.parametrize("bits", [16, 8, 4, 3, 2])
def test_fewer_bits_make_smaller_files_that_load_to_the_same_outputs(
    bits: int, data: str, tmp_path: Path
) -> None:
    settings = config(data, method="chain", bits=bits, quantization_aware=True, epochs=6)
    result = run.train(settings, tmp_path / "out")
    loaded = load_network(tmp_path / "out" / "model.rosler")
    x = np.random.default_rng(1).normal(size=(5, 20)).astype(np.float32)
    again = load_network(tmp_path / "out" / "model.rosler").network(x)
    np.testing.assert_array_equal(np.asarray(loaded.network(x)), np.asarray(again))
    weights = (20 * 3 + 9 + 3 * 24) + (24 * 3 + 9 + 3 * 16) + 16 * 3
    assert result["file_bytes"] < weights * bits / 8 + 700  # biases, scales, header
    if bits >= 3:
        assert result["test_accuracy"] > 0.9


def test_a_hostile_spec_never_allocates(data: str, tmp_path: Path) -> None:
    from rosler_jax import modelfile

    huge = {"kind": "linear", "in_features": 10**7, "out_features": 10**7}
    modelfile.save(tmp_path / "huge.rosler", {}, {"layers": [huge]}, {})
    with pytest.raises(ModelFileError, match="do not fit"):
        load_network(tmp_path / "huge.rosler")
    modelfile.save(tmp_path / "odd.rosler", {}, {"layers": [{"kind": "eval"}]}, {})
    with pytest.raises(ModelFileError, match="unknown layer kind"):
        load_network(tmp_path / "odd.rosler")


def test_model_bytes_are_known_before_training(data: str, tmp_path: Path) -> None:
    seen = []
    result = run.train(
        config(data, method="ares-bp"), tmp_path / "out", report=lambda row: seen.append(row)
    )
    assert seen[0]["bytes"] == result["file_bytes"]
    assert jax.device_count() >= 1
