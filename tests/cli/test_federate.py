"""``rosler federate``: its options, what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Done, call

from rosler_jax.cli._config_options import OPTIONS, flag, given_options
from rosler_jax.cli._main import build_parser
from rosler_jax.cli.federate import (
    COMMAND,
    FILES,
    HELP,
    MODEL_OPTIONS,
    OWN,
    build_federated,
    federated_options,
    result_table,
)
from rosler_jax.config import TrainConfig
from rosler_jax.federated import FederatedConfig
from rosler_jax.federated.config import to_dict

FIELDS = dataclasses.fields(FederatedConfig)
SMALL = ["--hidden", "8", "--method", "dense", "--batch-size", "16", "--clients", "4"]
SMALL += ["--participation", "0.5", "--rounds", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 160)
    x = (rng.normal(size=(3, 8))[y] + 0.4 * rng.normal(size=(160, 8))).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "clouds.npz"
    np.savez(path, x=x, y=y)
    return path


def parsed(*argv: object) -> Any:
    parser, _ = build_parser()
    return parser.parse_args(["federate", "--out", "x", *map(str, argv)])


# --- options ------------------------------------------------------------------------------------


def test_every_field_has_its_option_and_help_with_its_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And of the clients' config all but what a run on one machine alone has."""
    assert set(HELP) == {field.name for field in FIELDS}
    done = call(capsys, "federate", "--help")
    assert done.code == 0
    section = done.out.partition("\nfederation:\n")[2].partition("\n\n")[0]
    shown = re.split(r"\n  (?=--)", "\n" + section)[1:]
    said = {text.split()[0].rstrip(","): " ".join(text.split()) for text in shown}
    assert len(said) == len(FIELDS)
    for field in FIELDS:
        text = said[flag(OWN.get(field.name, field.name))]
        default = {True: "yes", False: "no"}.get(field.default, field.default)
        if not isinstance(field.default, bool):
            default = field.default
        assert text.endswith(f"(default: {default})"), text
    for name in MODEL_OPTIONS:
        assert f"\n  {flag(name)}" in done.out
    left_out = set(OPTIONS) - set(MODEL_OPTIONS)
    assert not set(MODEL_OPTIONS) - set(OPTIONS)
    # Rounds, files and stages that a federated run has not, or no option of.
    assert left_out == {
        "epochs", "epoch_examples", "stream", "rate_lambda", "budget_bytes", "min_metric",
        "teacher", "teacher_weight", "temperature", "patience", "restrict_every",
    }  # fmt: skip
    assert "rosler federate --resume" in done.out


VALUES: dict[str, tuple[str, Any]] = {
    "split": ("dirichlet:0.1", "dirichlet:0.1"), "client": ("adam", "adam"),
    "server": ("fedadam:0.1", "fedadam:0.1"), "exchange": ("count-sketch:0.1", "count-sketch:0.1"),
    "upload": ("bits:4", "bits:4"), "download": ("sign", "sign"), "aggregate": ("median", "median"),
    "garbage": ("huge", "huge"), "noise": ("0.5", 0.5),
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_option_sets_its_field_and_no_other(field: dataclasses.Field[Any]) -> None:
    name = flag(OWN.get(field.name, field.name))
    if isinstance(field.default, bool):
        expected: Any = not field.default
        given = [name if expected else name.replace("--", "--no-", 1)]
    else:
        text, expected = VALUES.get(field.name, ("0.25", 0.25))
        if field.type == "int":
            text, expected = "7", 7
        given = [name, text]
    args = parsed(*given)
    options = federated_options(args)
    assert options == {field.name: expected} and not given_options(args)
    assert type(options[field.name]) is type(expected)
    together = {"clip": 1.0} if field.name == "noise" else {}
    changed = build_federated({**options, **together})
    assert changed == FederatedConfig(**options, **together) != FederatedConfig(**together)


def test_options_of_two_configs_do_not_mix() -> None:
    """``noise`` and ``seed`` are of both: the clients' keep their names."""
    args = parsed("--noise", 0.1, "--privacy-noise", 2, "--clip", 1, "--seed", 5)
    assert given_options(args) == {"noise": 0.1, "seed": 5}
    assert federated_options(args) == {"noise": 2.0, "clip": 1.0}
    args = parsed("--federated-seed", 3)
    assert not given_options(args) and federated_options(args) == {"seed": 3}


def test_examples_parse() -> None:
    parser, _ = build_parser()
    for line in COMMAND.examples:
        args = parser.parse_args(line.split()[1:])
        if args.network is None and args.resume is None:
            build_federated(federated_options(args))
            TrainConfig(**given_options(args))


# --- wrong usage --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--out", "x", "--clients", "0"], "clients 0 is below 1"),
        (["--out", "x", "--clients", "many"], "'many' is not a whole number"),
        (["--out", "x", "--participation", "1.5"], "participation 1.5 is no share"),
        (["--out", "x", "--participation=nan"], "participation nan is no share"),
        (["--out", "x", "--drop", "half"], "'half' is not a number"),
        (["--out", "x", "--upload", "zip"], "upload 'zip' is none of float32, bits, sign"),
        (["--out", "x", "--upload", "bits:64"], "64 is outside 2..16"),
        (["--out", "x", "--upload", "grid"], "a grid is of weights"),
        (["--out", "x", "--server", "adam"], "server 'adam' is none of fedavg"),
        (["--out", "x", "--garbage", "rude"], "garbage 'rude' is none of all"),
        (["--out", "x", "--privacy-noise", "1"], "pass a clip above 0"),
        (["--out", "x", "--secure", "--bad", "0.1"], "secure aggregation shows the server a sum"),
        (["--out", "x", "--rank", "0"], "rank=0"),
        (["--out", "x", "--epochs", "3"], "--epochs"),
        (["--out", "x", "--method", "ares-bp", "--rounds", "1"], "parallel_epochs=1.0"),
        (
            ["--out", "x", "--method", "ares-bp", "--rounds", "9", "--parallel-epochs", "9"],
            "below epochs=9",
        ),
        (["--out", "x", "--network", "peer"], "peer"),
        (["--rounds", "3"], "name a folder for the run: --out DIR (or --resume DIR)"),
        (["--resume", "x", "--rounds", "3"], "leave out --rounds"),
        (["--resume", "x", "--no-wire"], "leave out --wire"),
        (["--resume", "x", "--privacy-noise", "3"], "leave out --privacy-noise"),
        (["--resume", "x", "--federated-seed", "3"], "leave out --federated-seed"),
        (["--resume", "x", "--seed", "3", "--out", "y"], "leave out --seed, --out"),
        (["--network", "client", "--rounds", "3"], "leave out --rounds"),
        (["--network", "client"], "--client-number N"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_line(
    argv: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(capsys, "federate", *argv)
    assert done.code == 2 and done.out == ""
    lines = [line for line in done.err.splitlines() if ": error: " in line]
    assert len(lines) == 1 and reason in lines[0], done.err
    assert done.err.splitlines()[-1] == lines[0] and "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_a_long_parallel_stage_is_of_rounds(data: Path, tmp_path: Path) -> None:
    """Not of the epochs that a config has by default, of which there are ten here."""
    args = parsed("--method", "ares-bp", "--rounds", 100, "--parallel-epochs", 20)
    from rosler_jax.cli import federate

    seen = {}

    def stop(config: Any, federated: Any, *rest: Any, **named: Any) -> Any:
        seen.update(config=config, federated=federated)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("rosler_jax.federated.run.federate", stop)
        federate.run(args)
    assert (seen["config"].epochs, seen["config"].parallel_epochs) == (100, 20.0)
    assert seen["federated"] == FederatedConfig(rounds=100)


def assert_fails(done: Done, *words: str) -> None:
    """Exit code 1, and one line on stderr that holds these words."""
    assert done.code == 1 and done.out == "", done
    lines = [line for line in done.err.splitlines() if ": error: " in line]
    assert len(lines) == 1 and "Traceback" not in done.err
    assert all(word in lines[0] for word in words), lines[0]


def test_what_fails_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ["federate", *SMALL, "--out", out, "--data"]
    assert_fails(call(capsys, *argv, tmp_path / "no.npz"), "no.npz")
    assert_fails(call(capsys, *argv, data, "--clients", 999), "clients 999 is outside")
    assert_fails(call(capsys, *argv, data, "--split", "load"), "split 'load' is none of")
    assert_fails(call(capsys, *argv, data, "--exchange", "sketches"), "this model has none")
    assert_fails(call(capsys, *argv, data, "--bad", 0.5, "--no-wire"), "pass wire=True")
    assert_fails(call(capsys, "federate", "--resume", out), str(out), "no such file")
    assert not out.exists()


# --- runs ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_json_alone_on_stdout_and_a_line_a_round_on_stderr(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ["federate", "--data", data, *SMALL, "--federated-seed", 2, "--drop", 0.25]
    done = call(capsys, *argv, "--out", out, "--json")
    assert done.code == 0, done.err
    printed, result = json.loads(done.out), json.loads((out / "result.json").read_text())
    assert {key: printed[key] for key in result} == result
    assert printed["out"] == str(out) and printed["files"] == list(FILES)
    lines = [line for line in done.err.splitlines() if line.startswith("round ")]
    pattern = (
        r"round (\d)/2: loss [\d.]+, validation [\d.]+, \d of 2 clients, [\d,]+ bytes up, "
        r"[\d,]+ down, [\d.]+ s"
    )
    found = [re.fullmatch(pattern, line) for line in lines]
    assert [match and match[1] for match in found] == ["1", "2"], done.err
    config = json.loads((out / "config.json").read_text())
    assert (config["epochs"], config["seed"], config["learning_rate"]) == (2, 0, 0.1)
    wanted = FederatedConfig(clients=4, participation=0.5, rounds=2, seed=2, drop=0.25)
    assert json.loads((out / "federated.json").read_text()) == to_dict(wanted)
    again = call(capsys, "federate", "--resume", out, "--quiet")
    assert again.code == 0 and "round " not in again.err
    assert result_table(result).splitlines()[0] in again.out
    assert again.out.rstrip().endswith(f"into\n{out}")
    assert f"{round(result['up_bytes']):,}" in again.out
    assert_fails(call(capsys, *argv, "--out", out), "already holds a run")


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def interrupting(rounds: int, metric: str, quiet: bool) -> Iterator[Any]:
        def report(row: dict[str, float]) -> None:
            raise KeyboardInterrupt

        yield report

    out = tmp_path / "out"
    argv = ["federate", "--data", data, *SMALL, "--out", out]
    with monkeypatch.context() as patch:
        patch.setattr("rosler_jax.cli.federate.rounds_progress", interrupting)
        done = call(capsys, *argv)
    assert done.code == 130 and done.out == ""
    assert done.err.splitlines()[-1].endswith(
        f"interrupted; go on with: rosler federate --resume {out}"
    )
    assert (out / "checkpoints").exists() and not (out / "model.rosler").exists()
    done = call(capsys, "federate", "--resume", out)
    assert done.code == 0 and (out / "model.rosler").exists()
    rounds = [line for line in done.err.splitlines() if line.startswith("round ")]
    assert len(rounds) == 1 and rounds[0].startswith("round 2/2:")


def test_interrupted_before_the_run_nothing_is_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rosler_jax.federated.run.prepare_federated", stop)
    done = call(capsys, "federate", "--data", data, *SMALL, "--out", tmp_path / "out")
    assert done.code == 130 and "nothing was written" in done.err
    assert not (tmp_path / "out").exists()


def test_the_table_tells_refused_messages_and_privacy() -> None:
    result = {
        "metric": "accuracy", "test_accuracy": 0.5, "validation_accuracy": 0.25, "best_round": 3,
        "rounds": 9, "clients": 40, "numbers_sent": 1234, "up_bytes": 5678.0, "down_bytes": 9.0,
        "dense_fedavg_bytes": 10**6, "times_fewer_bytes": 17.25, "refused": {"stale": 3, "cut": 1},
        "file_bytes": 99, "train_seconds": 1.0, "device": "cpu", "jax_version": "1", "seed": 0,
        "epsilon": None,
    }  # fmt: skip
    text = result_table(result)
    assert "epsilon" not in text and "3 of 9" in text and "17.2x" in text and "1,234" in text
    assert re.search(r"messages refused +3 stale, 1 cut\n", text)
    text = result_table({**result, "refused": {}, "epsilon": 2.345})
    assert re.search(r"messages refused +none\n", text) and text.endswith("epsilon 2.35")
