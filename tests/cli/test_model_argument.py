"""The model that a command is given: files of both versions, and functions that make models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from command_line import call
from flax import nnx

from rosler_jax import modelfile
from rosler_jax.graph.save import load, save

V1 = Path(__file__).parents[1] / "data_v1"

SOURCE = """
import jax, jax.numpy as jnp
from flax import linen, nnx

def nnx_model():
    return nnx.Sequential(nnx.Linear(30, 8, rngs=nnx.Rngs(0)), nnx.relu,
                          nnx.Linear(8, 3, rngs=nnx.Rngs(1)))

def linen_model():
    module = linen.Dense(3)
    return module, module.init(jax.random.key(0), jnp.ones((1, 30)))

def function():
    params = {"w": jnp.linspace(-1.0, 1.0, 90).reshape(30, 3)}
    return lambda params, x: jnp.tanh(x) @ params["w"], params

def tokens():
    def call(params, ids, x):
        return params["table"][ids].sum(1) + x @ params["w"]
    return call, {"table": jnp.ones((9, 4)), "w": jnp.ones((5, 4))}

def broken():
    raise RuntimeError("no weights at hand")

number = 3
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module; the working folder is its own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "users_models.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize("name", ["nnx_model", "linen_model", "function"])
@pytest.mark.parametrize("where", ["users_models.py", "users_models"])
def test_functions_are_counted_and_described(
    where: str, name: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"{where}:{name}", "--input-shape", "30"]
    report = json.loads(call(capsys, "size", *given, "--bits", "8", "--json").out)
    work = 30 * 8 + 8 * 3 if name == "nnx_model" else 90
    assert report["total"]["multiplications"] == report["total"]["weights"] == work
    assert report["layers"][0]["bits"] == [8]
    found = json.loads(call(capsys, "info", *given, "--json").out)
    assert found["inputs"] == [{"name": "0", "shape": [30], "dtype": "float32"}]
    assert [value["shape"] for value in found["outputs"]] == [[3]]
    assert found["operations"]["Dense"] == (2 if name == "nnx_model" else 1)


def test_several_inputs_and_dtypes(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["users_models.py:tokens", "--input", "7:int32", "--input", "5"]
    found = json.loads(call(capsys, "info", *given, "--json").out)
    assert [(v["shape"], v["dtype"]) for v in found["inputs"]] == [([7], "int32"), ([5], "float32")]
    text = call(capsys, "info", *given).out
    assert "input 0" in text and "int32 [7]" in text and "numbers of 32 bits" in text


@pytest.mark.parametrize(
    ("argv", "code", "reason"),
    [
        (["absent.py:build"], 2, "there is no file absent.py"),
        (["no_such_module_here:build"], 2, "No module named"),
        (["users_models.py:build"], 2, "has no 'build'"),
        (["users_models.py:number"], 2, "has no function 'number'"),
        (["users_models.py:broken"], 1, "broken() failed: RuntimeError: no weights at hand"),
        (["absent.rosler"], 1, "absent.rosler: no such folder or model file"),
        (["."], 1, "model.rosler: no such file; finish the run, or resume it"),
        (["users_models.py:nnx_model"], 2, "give the shape of an input"),
        (["users_models.py:nnx_model", "--input", "30:int64"], 2, "'int64' is no dtype"),
        (["users_models.py:nnx_model", "--input", "3x4"], 2, "3x4"),
        (["users_models.py:nnx_model", "--input-shape", "0"], 2, "expected positive sizes"),
        (["users_models.py:nnx_model", "--input", "3", "--input-shape", "3"], 2, "--input alone"),
        (["users_models.py:nnx_model", "--input-shape", "4"], 1, "30"),
    ],
)
def test_what_cannot_be_found_is_said(
    argv: list[str], code: int, reason: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = call(capsys, "info", *argv)
    assert done.code == code and done.out == ""
    assert reason in done.err.splitlines()[-1]


def test_info_of_a_file_of_version_1(capsys: pytest.CaptureFixture[str]) -> None:
    path = V1 / "series_4.rosler"
    found = json.loads(call(capsys, "info", path, "--input-shape", "19,3", "--json").out)
    assert (found["version"], found["file_bytes"]) == (1, path.stat().st_size)
    assert found["metadata"] == modelfile.load(path).metadata
    assert found["numbers"]["4 bits"] > 0
    assert call(capsys, "info", path).code == 1  # of convolutions the shape is not in the file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Inputs of three classes, the class in the first three numbers."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = rng.normal(size=(120, 6, 5)).astype(np.float32)
    x[:, 0, :3] += 2 * np.eye(3, dtype=np.float32)[y]
    arrays = {"x_train": x[:60], "y_train": y[:60], "x_test": x[60:], "y_test": y[60:]}
    np.savez(tmp_path / "toy.npz", **arrays)
    return tmp_path / "toy.npz"


def first_three(x: Any) -> Any:
    return x.reshape(len(x), -1)[:, :3] * 1.5


def accuracy(model: Any, data: Path) -> float:
    with np.load(data) as arrays:
        x, y = arrays["x_test"], arrays["y_test"]
    return float((np.asarray(model(x)).argmax(1) == y).mean())


@pytest.mark.parametrize("shape", [(6, 5), (30,)])
def test_evaluate_scores_a_graph(
    shape: tuple[int, ...], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.rosler"
    save(path, first_three, jnp.ones((2, *shape)))
    done = json.loads(call(capsys, "evaluate", path, "--data", data, "--json").out)
    wanted = accuracy(lambda x: load(path)(x.reshape(len(x), *shape)), data)
    assert math.isclose(done["test_accuracy"], wanted)
    assert done["file_bytes"] == path.stat().st_size and done["examples"] == 60
    assert "the data is not known" in call(capsys, "evaluate", path).err


def test_evaluate_scores_a_function(
    data: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_text(
        "def build():\n    return lambda _, x: x.reshape(len(x), -1)[:, :3] * 1.5, ()\n"
    )
    done = call(capsys, "evaluate", "users_models.py:build", "--data", data, "--json")
    assert math.isclose(json.loads(done.out)["test_accuracy"], accuracy(first_three, data))
    assert call(capsys, "evaluate", "users_models.py:build").code == 2


def test_evaluate_refuses_what_has_no_accuracy(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.rosler"
    save(path, nnx.Linear(7, 3, rngs=nnx.Rngs(0)), jnp.ones((2, 7)))
    done = call(capsys, "evaluate", path, "--data", data)
    assert done.code == 1 and "do not go with the model" in done.err
    save(path, lambda x: (x, first_three(x)), jnp.ones((2, 30)))
    done = call(capsys, "evaluate", path, "--data", data)
    assert done.code == 1 and "one input and one output" in done.err
    save(path, lambda x: jnp.log(-1 - jnp.abs(first_three(x))), jnp.ones((2, 30)))
    done = call(capsys, "evaluate", path, "--data", data, "--json")
    assert done.code == 1 and "toy.npz is nan; it cannot be scored" in done.err and done.out == ""
