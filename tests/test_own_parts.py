"""One's own model, method, task and data from outside of the package; Linen; streaming."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import own_parts
import pytest
from command_line import call

from rosler_jax import load, run
from rosler_jax.config import TrainConfig
from rosler_jax.fit import learner_of
from rosler_jax.methods import METHODS

OWN = str(Path(own_parts.__file__))
RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 300)
X = (RNG.normal(size=(3, 20))[Y] + 0.4 * RNG.normal(size=(300, 20))).astype(np.float32)


def config(**settings: Any) -> TrainConfig:
    defaults = {
        "rank": 3,
        "epochs": 4,
        "batch_size": 32,
        "method": "chain",
        "model": f"{OWN}:build",
    }
    return TrainConfig(**{**defaults, **settings})


@pytest.mark.slow
def test_one_of_each_from_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model, a method, a task and a source: a file of one's own, and its names."""
    argv = ["--model", f"{OWN}:build", "--method", f"{OWN}:SIGNED", "--task", f"{OWN}:ROBUST"]
    argv += ["--data", f"{OWN}:waves", "--rank", "0.25", "--epochs", "30", "--batch-size", "32"]
    argv += ["--learning-rate", "0.01"]
    done = call(capsys, "train", *argv, "--out", str(tmp_path / "out"), "--json", "--quiet")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["metric"] == "worst" and result["test_worst"] < 40  # of values of 100 +- 22
    again = call(capsys, "evaluate", str(tmp_path / "out"), "--json")
    assert json.loads(again.out)["test_worst"] == result["test_worst"]
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stored["model"] == f"{OWN}:build"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["build", "build_linen"])
def test_every_method_trains_a_users_model(method: str, model: str, tmp_path: Path) -> None:
    settings = config(method=method, model=f"{OWN}:{model}", epochs=8, parallel_epochs=1.5)
    result = run.train(settings, tmp_path, data=(X, Y))
    assert result["test_accuracy"] > 0.4  # chance is 1/3
    dense = method == "dense"
    assert (result["parameters"] < 0.75 * result["dense_parameters"]) != dense
    dataset = run.load_data(settings, (X, Y))
    said = np.asarray(load(tmp_path)(dataset.test_x)).argmax(-1)
    assert (said == dataset.test_y).mean() == result["test_accuracy"]


def test_dropout_and_statistics_belong_to_the_state() -> None:
    dataset = run.load_data(config(), (X, Y))
    learner = learner_of(config(), dataset)
    params, buffers = learner.init(jax.random.key(0))
    x = X[:32]
    first, after = learner.apply(params, buffers, x, True)
    second, _ = learner.apply(params, after, x, True)
    assert not np.allclose(first, second)  # another mask
    still, same = learner.apply(params, buffers, x, False)
    np.testing.assert_array_equal(still, learner.apply(params, buffers, x, False)[0])
    assert same is buffers
    assert all(leaf.dtype != jax.dtypes.prng_key for leaf in jax.tree.leaves(after))


def test_rules_say_which_layers_are_sketched() -> None:
    dataset = run.load_data(config(), (X, Y))
    rows = learner_of(config(rules=("first=skip", "head=skip", "*=0.2")), dataset).report.rows
    assert {row.path: row.rank for row in rows} == {"first": None, "second": 4, "head": None}
    with pytest.raises(ValueError, match="cannot be imported"):
        learner_of(config(model="nowhere.py:build"), dataset)
    with pytest.raises(ValueError, match="model 'resnet9' is unknown; pass one of mlp"):
        config(model="resnet9")
    with pytest.raises(TypeError, match=r"gives a tuple; expected an nnx\.Module"):
        learner_of(config(model=f"{OWN}:waves"), dataset)


# --- streaming ----------------------------------------------------------------------------------


@pytest.fixture
def mapped(tmp_path: Path) -> Path:
    folder = tmp_path / "mapped"
    folder.mkdir()
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", Y)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["chain", "ares-bp"])
def test_streaming_trains_as_memory_does(method: str, mapped: Path, tmp_path: Path) -> None:
    pytest.importorskip("grain", reason="streaming needs the extra 'stream'")
    found = {}
    for how in ("always", "never"):
        settings = config(data=str(mapped), stream=how, method=method, noise=0.1)
        found[how] = run.train(settings, tmp_path / how)
    assert found["always"]["data_on"] == "host" and found["never"]["data_on"] == "device"
    losses = [
        np.genfromtxt(tmp_path / how / "history.csv", names=True, delimiter=",")["loss"]
        for how in found
    ]
    # The same order, keys and steps in another program: rounding alone, over 24 steps.
    np.testing.assert_allclose(*losses, rtol=1e-3)
    assert abs(found["always"]["test_accuracy"] - found["never"]["test_accuracy"]) <= 1 / 60 + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("how", ["always", "never"])
def test_a_killed_run_resumes_to_the_same_bytes(how: str, mapped: Path, tmp_path: Path) -> None:
    pytest.importorskip("grain", reason="streaming needs the extra 'stream'")
    argv = ["--data", str(mapped), "--model", f"{OWN}:build", "--method", "ares-bp", "--rank", "3"]
    argv += ["--epochs", "12", "--batch-size", "32", "--stream", how]
    command = [sys.executable, "-m", "rosler_jax", "train", *argv]
    subprocess.run([*command, "--out", str(tmp_path / "whole"), "--quiet"], check=True, timeout=300)
    killed = subprocess.Popen(
        [*command, "--out", str(tmp_path / "parts")], stderr=subprocess.PIPE, text=True
    )
    assert killed.stderr is not None
    for text in killed.stderr:
        if text.startswith("epoch 2/"):
            killed.send_signal(signal.SIGKILL)
            break
    killed.wait(timeout=60)
    time.sleep(0.1)
    assert not (tmp_path / "parts" / "model.rosler").exists()
    run.train(None, tmp_path / "parts", resume=True)
    whole, parts = ((tmp_path / p / "model.rosler").read_bytes() for p in ("whole", "parts"))
    assert whole == parts
