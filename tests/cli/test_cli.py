"""The command line: what it writes, what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Done, call

from rosler_jax.cli import main
from rosler_jax.cli._command import Outcome
from rosler_jax.cli._config_options import OPTIONS, build_config, flag, given_options
from rosler_jax.cli._main import COMMANDS, build_parser
from rosler_jax.config import BITS, METHODS, TrainConfig, to_dict

ROOT = Path(__file__).resolve().parents[2]
FILES = {"model.rosler", "result.json", "config.json", "history.csv", "curves.png"}
KEYS = {
    "test_accuracy", "validation_accuracy", "parameters", "file_bytes", "dense_parameters",
    "dense_bytes", "compression", "train_seconds", "jax_version", "device", "seed",
}  # fmt: skip
SMALL = ["--hidden", "32", "--rank", "4", "--batch-size", "32", "--seed", "3"]


@dataclasses.dataclass(frozen=True)
class Run:
    folder: Path
    data: Path
    printed: dict[str, Any]
    progress: str


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes that differ in their mean: easy, but not without errors."""
    rng = np.random.default_rng(0)
    y = np.arange(600) % 3
    x = rng.normal(100 + 12 * y[:, None, None], 40, (600, 6, 5)).clip(0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    np.savez(path, x_train=x[:450], y_train=y[:450], x_test=x[450:], y_test=y[450:])
    return path


def arguments(data: Path) -> list[str]:
    return ["--data", str(data), *SMALL, "--method", "chain", "--bits", "8", "--epochs", "2"]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One finished run; its stdout and stderr as a user's terminal would get them."""
    folder = tmp_path_factory.mktemp("runs") / "deep" / "run"
    with (
        contextlib.redirect_stdout(open_text(folder.parents[1] / "out")) as out,
        contextlib.redirect_stderr(open_text(folder.parents[1] / "err")) as err,
    ):
        code = main(["train", *arguments(data), "--out", str(folder), "--json"])
    for stream in (out, err):
        stream.seek(0)
    printed, progress = out.read(), err.read()
    assert code == 0, progress
    return Run(folder, data, json.loads(printed), progress)


def open_text(path: Path) -> Any:
    return path.open("w+", encoding="utf-8")


# --- training -----------------------------------------------------------------------------------


def test_train_writes_everything(trained: Run) -> None:
    assert {path.name for path in trained.folder.iterdir()} >= FILES
    result = json.loads((trained.folder / "result.json").read_text())
    assert set(result) >= KEYS
    assert result["file_bytes"] == os.path.getsize(trained.folder / "model.rosler")
    # 30 -> 32 -> 3, with biases
    assert result["dense_parameters"] == 31 * 32 + 33 * 3
    assert result["dense_bytes"] == 4 * result["dense_parameters"]
    assert result["compression"] == result["dense_bytes"] / result["file_bytes"]
    # as two factors of rank 4
    assert result["parameters"] == 4 * (30 + 32) + 32 + 33 * 3
    assert result["seed"] == 3
    assert result["test_accuracy"] > 0.5  # three classes: chance is 1/3
    assert (trained.folder / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_train_prints_json_alone_and_progress_on_stderr(trained: Run) -> None:
    result = json.loads((trained.folder / "result.json").read_text())
    assert {key: trained.printed[key] for key in result} == result
    assert trained.printed["out"] == str(trained.folder)
    assert set(trained.printed["files"]) == FILES
    lines = [line for line in trained.progress.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert all(word in lines[-1] for word in ("2/2", "loss", "accuracy", "bytes"))
    assert f"{result['file_bytes']:,}"[:3] in lines[-1]


def test_config_is_what_was_asked_for(trained: Run) -> None:
    config = json.loads((trained.folder / "config.json").read_text())
    expected = to_dict(
        TrainConfig(
            data=str(trained.data), hidden=(32,), rank=4, batch_size=32, seed=3, method="chain",
            bits=8, epochs=2,
        )
    )  # fmt: skip
    assert config == expected


def test_evaluate_gives_the_results_accuracy(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((trained.folder / "result.json").read_text())
    for path in (trained.folder, trained.folder / "model.rosler"):
        done = call(capsys, "evaluate", path, "--data", trained.data, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["test_accuracy"] == result["test_accuracy"]
    done = call(capsys, "evaluate", trained.folder)
    assert f"{result['test_accuracy']:.2%}" in done.out
    assert done.out.rstrip().endswith(str(trained.folder))


@pytest.mark.slow
def test_interrupted_run_resumes_to_the_same_file(
    trained: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @contextlib.contextmanager
    def interrupting(epochs: int, metric: str, quiet: bool) -> Iterator[Any]:
        def report(row: dict[str, float]) -> None:
            raise KeyboardInterrupt

        yield report

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("rosler_jax.cli.train.progress", interrupting)
        done = call(capsys, "train", *arguments(trained.data), "--out", folder)
    assert done.code == 130
    assert done.out == ""
    assert f"rosler train --resume {folder}" in done.err
    assert not (folder / "model.rosler").exists()

    done = call(capsys, "train", "--resume", folder, "--quiet")
    assert done.code == 0, done.err
    assert "epoch " not in done.err
    assert done.out.rstrip().endswith(str(folder))
    whole, resumed = (f / "model.rosler" for f in (trained.folder, folder))
    assert whole.read_bytes() == resumed.read_bytes()


def test_interrupt_before_the_run_says_that_nothing_is_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rosler_jax.cli.train.progress", stop)
    done = call(capsys, "train", *arguments(data), "--out", tmp_path / "run")
    assert done.code == 130
    assert "nothing was written" in done.err


@pytest.mark.slow
def test_default_method_ships_what_it_scored(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", data, *SMALL, "--epochs", 2]
    done = call(capsys, "train", *options, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "compression" in done.out and done.out.rstrip().endswith(str(tmp_path / "run"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert f"{result['test_accuracy']:.2%}" in done.out
    assert result["method"] == TrainConfig().method
    done = call(capsys, "evaluate", tmp_path / "run", "--json")
    assert json.loads(done.out)["test_accuracy"] == result["test_accuracy"]


# --- size and info ------------------------------------------------------------------------------


def test_size_accounts_for_every_byte(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "size", trained.folder, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    size = os.path.getsize(trained.folder / "model.rosler")
    assert report["file_bytes"] == report["total"]["bytes"] == size
    assert sum(row["bytes"] for row in report["layers"]) + report["header_bytes"] == size
    result = json.loads((trained.folder / "result.json").read_text())
    assert report["total"]["parameters"] == result["parameters"]
    assert report["total"]["dense_parameters"] == result["dense_parameters"]
    done = call(capsys, "size", trained.folder / "model.rosler")
    assert f"{size:,}" in done.out


def test_info_names_versions_devices_and_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    import jax

    import rosler_kernels

    done = call(capsys, "info", "--json")
    assert done.code == 0, done.err
    info = json.loads(done.out)
    assert info["versions"]["jax"] == jax.__version__
    assert {"jaxlib", "flax", "optax", "rosler-jax", "python"} <= set(info["versions"])
    assert len(info["devices"]) == len(jax.devices())
    assert info["projection"] in rosler_kernels.IMPLEMENTATIONS
    assert jax.__version__ in call(capsys, "info").out


# --- options ------------------------------------------------------------------------------------


def test_every_config_field_has_an_option() -> None:
    assert set(OPTIONS) == {field.name for field in dataclasses.fields(TrainConfig)}


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        done = call(capsys, name, "--help")
        assert done.code == 0
        options = ["--json", "--debug", "--help", "examples:", "exit codes:", f"rosler {name}"]
        assert all(option in done.out for option in options)
    done = call(capsys, "train", "--help")
    for name in OPTIONS:
        assert f"\n  {flag(name)}" in done.out
    plain = " ".join(done.out.split()).replace("- ", "-")
    assert ", ".join(METHODS) in plain and ", ".join(map(str, BITS)) in plain
    overview = call(capsys, "--help").out
    assert all(f"\n    {name} " in overview for name in COMMANDS)


VALUES: dict[str, tuple[str, Any]] = {
    "hidden": ("8,16,8", (8, 16, 8)),
    "data": ("some/folder", "some/folder"),
    "manual_dir": ("some/files", "some/files"),
    "target": ("price,size", ("price", "size")),
    "image_size": ("32,48", (32, 48)),
    "data_options": ("features=fft,window=64", ("features=fft", "window=64")),
    "stream": ("always", "always"),
    "task": ("regression", "regression"),
    "metric": ("f1", "f1"),
    "class_weights": ("balanced", "balanced"),
    "model": ("my_models.py:build", "my_models.py:build"),
    "options": ("width=32,depth=2", ("width=32", "depth=2")),
    "rank": ("0.25", 0.25),
    "rules": ("conv1=skip,*=0.25", ("conv1=skip", "*=0.25")),
    "method": ("seeded", "seeded"),
    "standardize": ("features", "features"),
    "bits": ("3", 3),
    "precision": ("bfloat16", "bfloat16"),
    "schedule": ("cosine", "cosine"),
    "sketch": ("rademacher", "rademacher"),
    "epochs": ("7", 7),
    "teacher": ("runs/big", "runs/big"),
    "budget_bytes": ("2KB", 2000),
}


@pytest.mark.parametrize("field", dataclasses.fields(TrainConfig), ids=lambda field: field.name)
def test_option_sets_its_field_and_no_other(field: dataclasses.Field[Any]) -> None:
    if isinstance(field.default, bool):
        given, expected = [flag(field.name)], True
    else:
        text, expected = VALUES.get(field.name, ("0.25", 0.25))
        if field.type in ("int", "int | None"):
            text, expected = VALUES.get(field.name, ("5", 5))
        given = [flag(field.name), text]
    parser, _ = build_parser()
    options = given_options(parser.parse_args(["train", "--out", "x", *given]))
    assert options == {field.name: expected}
    assert type(options[field.name]) is type(expected)
    changed = TrainConfig(**{field.name: expected})
    assert build_config(options) == changed != TrainConfig()


@pytest.mark.parametrize(
    ("name", "expected"), [("learning_rate", None), ("patience", None), ("hidden", ())]
)
def test_none_is_a_value(name: str, expected: object) -> None:
    parser, _ = build_parser()
    args = parser.parse_args(["train", "--out", "x", flag(name), "none"])
    assert given_options(args) == {name: expected}


# --- failure ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "COMMAND"),
        (["bake"], "bake"),
        (["train", "--out", "x", "--method", "magic"], "magic"),
        (["train", "--out", "x", "--data"], "--data"),
        (["train", "--out", "x", "--rank", "0"], "rank=0"),
        (["train", "--out", "x", "--model", "resnet9"], "resnet9"),
        (["train", "--out", "x", "--rules", "*=high"], "high"),
        (["train", "--out", "x", "--rank", "four"], "four"),
        (["train", "--out", "x", "--bits", "5"], "5"),
        (["train", "--out", "x", "--hidden", "8,,8"], "8,,8"),
        (["train", "--out", "x", "--sketch", "rows_norm"], "rows_norm"),
        (["train", "--out", "x", "--sketch", "dct:28/srht"], "dct/pool:HEIGHTxWIDTH"),
        (["train", "--out", "x", "--method", "ares-bp", "--epochs", "1"], "parallel_epochs"),
        (["train", "--rank", "4"], "--out"),
        (["train", "--resume", "x", "--rank", "4"], "--rank"),
        (["train", "--resume", "x", "--out", "y"], "--out"),
        (["train", "--out", "x", "--ran", "4"], "--ran"),
        (["size"], "MODEL"),
        (["size", "x", "--input-shape", "28x28"], "28x28"),
    ],
)
def test_wrong_usage_exits_with_2(
    argv: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(capsys, *argv)
    assert done.code == 2
    assert done.out == ""
    assert reason in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def assert_fails(done: Done, *words: str) -> None:
    """Exit code 1, and one line on stderr that holds these words."""
    assert done.code == 1, done.err
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if ": error: " in line]
    assert len(lines) == 1 and "Traceback" not in done.err
    assert all(word in lines[0] for word in words), lines[0]


def test_data_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "absent.npz"
    done = call(capsys, "train", "--data", path, *SMALL, "--out", tmp_path / "run", "--json")
    assert_fails(done, str(path))


def test_truncated_gzip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "idx"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "t10k"):
        images = rng.integers(0, 256, (64, 4, 4), np.uint8)
        labels = (np.arange(64) % 3).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            packed = gzip.compress(header + array.tobytes())
            (folder / f"{split}-{kind}-ubyte.gz").write_bytes(packed)
    damaged = folder / "train-images-idx3-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    done = call(capsys, "train", "--data", folder, *SMALL, "--out", tmp_path / "run")
    assert_fails(done, damaged.name)


@pytest.mark.parametrize("command", ["evaluate", "size"])
def test_damaged_model_file(
    command: str, trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((trained.folder / "model.rosler").read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "model.rosler"
    path.write_bytes(content)
    (tmp_path / "config.json").write_bytes((trained.folder / "config.json").read_bytes())
    assert_fails(call(capsys, command, tmp_path), str(path), "checksum")


@pytest.mark.parametrize("command", [["evaluate"], ["size"], ["train", "--resume"]])
def test_folder_without_a_run(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_fails(call(capsys, *command, tmp_path / "nothing"), "nothing")


def test_folder_that_holds_a_run_is_not_overwritten(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained.folder / "model.rosler").stat()
    done = call(capsys, "train", *arguments(trained.data), "--out", trained.folder)
    assert_fails(done, str(trained.folder), "resume")
    assert (trained.folder / "model.rosler").stat() == before


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "size", tmp_path / "absent.rosler", "--debug")
    assert done.code == 1
    assert "Traceback" in done.err and "absent.rosler" in done.err.splitlines()[-1]


def test_a_bug_is_told_from_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(args: object) -> Any:
        raise KeyError("oops")

    monkeypatch.setitem(COMMANDS, "info", COMMANDS["info"]._replace(run=broken))
    assert_fails(call(capsys, "info"), "internal error", "oops", "--debug")


def test_evaluate_refuses_data_of_other_classes(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(trained.data) as arrays:
        more = {**arrays, "y_test": arrays["y_test"] + 2}
    np.savez(tmp_path / "more.npz", **more)
    done = call(capsys, "evaluate", trained.folder, "--data", tmp_path / "more.npz", "--json")
    assert_fails(done, "more.npz has 5 classes", "(3,)")


def test_json_has_no_nan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = Outcome("", {"loss": float("nan"), "rows": [{"best": -float("inf")}]})
    monkeypatch.setitem(COMMANDS, "info", COMMANDS["info"]._replace(run=lambda args: odd))
    done = call(capsys, "info", "--json")
    assert json.loads(done.out) == {"loss": None, "rows": [{"best": None}]}


@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_a_field_is_finite(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "train", "--out", "x", f"--noise={value}")
    assert done.code == 2 and "noise" in done.err


# --- as a program -------------------------------------------------------------------------------


def python(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([before, str(ROOT / "src"), str(ROOT / "kernels")])
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_module_runs_as_a_program(trained: Run) -> None:
    done = python("-m", "rosler_jax", "size", str(trained.folder), "--json")
    assert done.returncode == 0, done.stderr
    size = os.path.getsize(trained.folder / "model.rosler")
    assert json.loads(done.stdout)["file_bytes"] == size


def test_an_interrupt_while_importing_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("raise KeyboardInterrupt")  # as Ctrl-C there does
    code = "import sys, rosler_command; sys.exit(rosler_command.main())"
    done = python("-c", code, "size", "x", before=str(tmp_path))
    assert done.returncode == 130, done.stderr
    assert done.stderr == "rosler: error: interrupted before anything was done\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"rosler": "rosler_command:main"}


def test_help_loads_nothing_heavy() -> None:
    done = python(
        "-c",
        "import sys\n"
        "from rosler_jax.cli import main\n"
        "code = main(['train', '--help'])\n"
        "heavy = {'matplotlib', 'orbax', 'tensorflow_datasets', 'rosler_jax.run'}\n"
        "sys.exit(code or ' '.join(heavy & set(sys.modules)) or 0)",
    )
    assert done.returncode == 0, done.stderr
