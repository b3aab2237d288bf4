"""A federated run in a folder: what it writes, exact resume after any round, and what stops it."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call

from rosler_jax import checkpoint, load
from rosler_jax._folder import locked
from rosler_jax.config import TrainConfig
from rosler_jax.federated import FederatedConfig
from rosler_jax.federated.run import federate
from rosler_jax.run import RunError, train

pytest.importorskip("orbax.checkpoint", reason="runs need the extra 'cli'")
pytest.importorskip("matplotlib", reason="runs need the extra 'cli'")

FILES = {
    "model.rosler", "result.json", "config.json", "federated.json", "history.csv", "refused.csv",
    "curves.png", "data.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 240)
    x = (rng.normal(size=(3, 12))[y] + 0.4 * rng.normal(size=(240, 12))).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "clouds.npz"
    np.savez(path, x=x, y=y)
    return str(path)


def config(data: str, **settings: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "hidden": (10,), "rank": 3, "batch_size": 8, "method": "dense", "validation": 0.25,
    }  # fmt: skip
    return TrainConfig(**{"data": data, **defaults, **settings})


def federation(**settings: Any) -> FederatedConfig:
    defaults: dict[str, Any] = {"clients": 6, "rounds": 4, "participation": 0.5, "drop": 0.2}
    return FederatedConfig(**{**defaults, **settings})


def history(folder: Path) -> list[dict[str, str]]:
    """Rows of the file, but for what a clock has to do with."""
    with (folder / "history.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same(ours: Path, theirs: Path) -> None:
    """Two folders of one run, bit for bit."""
    for name in ("model.rosler", "config.json", "federated.json", "refused.csv"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert history(ours) == history(theirs)
    results = [json.loads((f / "result.json").read_text()) for f in (ours, theirs)]
    for result in results:
        del result["train_seconds"]
    assert results[0] == results[1]


class _Stop(Exception):
    pass


def cut(after: int) -> Any:
    """What stops a run when a round is over and saved."""

    def report(row: dict[str, float]) -> None:
        if row["round"] == after:
            raise _Stop

    return report


# --- what is written ----------------------------------------------------------------------------


def test_a_run_writes_everything_and_the_file_scores_as_said(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    seen: list[dict[str, float]] = []
    how = federation(bad=0.34, drop=0.0, participation=1.0, garbage="cut")
    result = federate(config(data, method="chain"), how, out, report=seen.append)
    assert {path.name for path in out.iterdir()} >= FILES
    assert json.loads((out / "result.json").read_text()) == result
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = history(out)
    assert [int(row["round"]) for row in rows] == [1, 2, 3, 4] == [row["round"] for row in seen]
    for way in ("up_bytes", "down_bytes"):
        assert result[way] == sum(float(row[way]) for row in rows) == sum(r[way] for r in seen)
    dense = 12 * 10 + 10 + 10 * 3 + 3
    assert result["dense_bytes"] == 4 * dense
    assert result["dense_fedavg_bytes"] == 4 * dense * 4 * (6 + 6)
    fewer = result["dense_fedavg_bytes"] / (result["up_bytes"] + result["down_bytes"])
    assert result["times_fewer_bytes"] == fewer > 1
    assert result["numbers_sent"] == 3 * (12 + 3 + 10) + 10 + 10 * 3 + 3
    assert result["parameters"] == 3 * (12 + 10) + 10 + 10 * 3 + 3  # as two factors
    assert result["file_bytes"] == (out / "model.rosler").stat().st_size
    assert result["clients"] == 6 and result["rounds"] == 4 and result["epsilon"] is None
    best = float(rows[result["best_round"] - 1]["validation_accuracy"])
    assert best == max(float(row["validation_accuracy"]) for row in rows)
    with (out / "refused.csv").open() as file:
        refused = list(csv.DictReader(file))
    assert len(refused) == 8 and result["refused"] == {"damaged": 8}
    assert Counter(row["reason"] for row in refused) == result["refused"]
    assert len({row["client"] for row in refused}) == 2
    # 16 bits a weight: of 60 examples of validation two may change sides.
    assert abs(result["validation_accuracy"] - best) < 2.5 / 60
    done = call(capsys, "evaluate", out, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["test_accuracy"] == result["test_accuracy"]
    done = call(capsys, "size", out, "--json")
    assert json.loads(done.out)["file_bytes"] == result["file_bytes"]


@pytest.mark.slow
def test_a_federated_model_is_exported(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federate(config(data), federation(rounds=1), tmp_path / "out")
    argv = ["export", tmp_path / "out", "--out", tmp_path / "edge", "--board", "none"]
    done = call(capsys, *argv, "--dtype", "int8")  # whose scales are of the run's own data
    assert done.code == 0, done.err
    assert (tmp_path / "edge" / "rosler_model.c").exists() or list((tmp_path / "edge").iterdir())


@pytest.mark.slow
def test_ares_bp_runs_through_its_switch(data: str, tmp_path: Path) -> None:
    """With the default compression of both ways, of which the grid begins anew."""
    settings = TrainConfig(data=data, method="ares-bp", hidden=(10,), rank=3, batch_size=8)
    result = federate(settings, FederatedConfig(clients=6, rounds=8, participation=1.0), tmp_path)
    losses = [float(row["validation_loss"]) for row in history(tmp_path)]
    assert result["best_round"] > 1
    assert losses[-1] < 0.7 * losses[0] and not result["refused"]
    assert load(tmp_path)(np.zeros((2, 12), np.float32)).shape == (2, 3)


@pytest.mark.slow
def test_what_is_said_of_a_client_is_in_the_result(data: str, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting", reason="privacy needs the extra 'federated'")
    from rosler_jax.federated import privacy_spent

    how = federation(clip=0.5, noise=2.0, drop=0.0)
    result = federate(config(data), how, tmp_path)
    assert result["epsilon"] == privacy_spent(how, 4) > privacy_spent(how, 3) > 0
    clipped = federate(config(data), federation(clip=0.5, rounds=1), tmp_path / "clipped")
    assert clipped["epsilon"] is None


@pytest.mark.slow
def test_divergence_stops_and_says_what_to_do(data: str, tmp_path: Path) -> None:
    # One step each, of a size whose product with that of the next layer is no float32.
    settings = config(data, learning_rate=1e25, schedule="constant", batch_size=64)
    how = federation(upload="float32", download="float32")
    with pytest.raises(RunError, match=r"no longer finite in round 1.*Lower the learning rate"):
        federate(settings, how, tmp_path)
    assert not (tmp_path / "result.json").exists()
    with pytest.raises(RunError, match=r"no longer finite in round 1"):
        federate(None, None, tmp_path, resume=True)


# --- resume -------------------------------------------------------------------------------------

RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Memory of clients, steps on the grid that each holds, refused rows.
    "garbage": ({}, {"bad": 0.5, "participation": 0.7}),
    # A grid that begins anew after round 1, with another model.
    "switch": ({"method": "ares-bp"}, {"upload": "float32"}),
    # Momentum of the server; messages that nobody writes.
    "no wire": ({}, {"wire": False, "server": "fedadam:0.01"}),
    "table": ({}, {"exchange": "count-sketch:0.5", "upload": "bits:8"}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_resume_is_exact_bit_for_bit(name: str, data: str, tmp_path: Path) -> None:
    """Cut after every round, the last one among them; or once."""
    settings, how = config(data, **RUNS[name][0]), federation(**RUNS[name][1])
    federate(settings, how, tmp_path / "whole")
    if name == "garbage":
        assert len((tmp_path / "whole" / "refused.csv").read_text().splitlines()) > 2
    out = tmp_path / "pieces"
    for after in {"garbage": (1, 2, 3, 4), "switch": (1, 2)}.get(name, (2,)):
        with pytest.raises(_Stop):
            federate(settings, how, out, resume=out.exists(), report=cut(after))
        assert not (out / "model.rosler").exists()
    federate(None, None, out, resume=True)
    assert_same(out, tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_never_finished_a_round_resumes(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rosler_jax.federated.run.play_round", stop)
        with pytest.raises(KeyboardInterrupt):
            federate(config(data), federation(rounds=2), tmp_path / "cut")
    federate(None, None, tmp_path / "cut", resume=True)
    federate(config(data), federation(rounds=2), tmp_path / "whole")
    assert_same(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_program_resumes_to_the_same_bytes(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a signal that nobody can catch, in the midst of a round."""
    argv = ["--data", data, "--method", "dense", "--hidden", "10", "--batch-size", "8"]
    argv += ["--clients", "6", "--participation", "0.5", "--drop", "0.2", "--rounds", "16"]
    out, whole = tmp_path / "parts", tmp_path / "whole"
    killed = subprocess.Popen(
        [sys.executable, "-m", "rosler_jax", "federate", *argv, "--out", str(out)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert killed.stderr is not None
    said = []
    for text in killed.stderr:
        said.append(text)
        if text.startswith("round 3/"):
            killed.send_signal(signal.SIGKILL)
            break
    assert killed.wait(timeout=60) == -signal.SIGKILL, "".join(said)
    assert not (out / "model.rosler").exists()
    done = call(capsys, "federate", "--resume", out)
    assert done.code == 0, done.err
    first = next(line for line in done.err.splitlines() if line.startswith("round "))
    assert 3 < int(first.removeprefix("round ").partition("/")[0]) < 16
    done = call(capsys, "federate", *argv, "--out", whole, "--quiet")
    assert done.code == 0 and "round" not in done.err
    assert_same(out, whole)


# --- what a run is tied to ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_belongs_to_one_run(data: str, tmp_path: Path) -> None:
    out, settings, how = tmp_path / "out", config(data), federation(rounds=2)
    with pytest.raises(RunError, match=r"federated.json: no such file.*holds no federated run"):
        federate(None, None, out, resume=True)
    assert not out.exists()
    for missing in ((None, how), (settings, None)):
        with pytest.raises(RunError, match="a new run needs a"):
            federate(*missing, out)
    federate(settings, how, out)
    before = (out / "model.rosler").stat()
    with pytest.raises(RunError, match="already holds a run; resume it"):
        federate(settings, how, out)
    with pytest.raises(RunError, match=r"another config.*rank: 3 -> 2"):
        federate(config(data, rank=2), None, out, resume=True)
    with pytest.raises(RunError, match="holds a federated run with another config"):
        federate(None, federation(rounds=2, drop=0.3), out, resume=True)
    assert (out / "model.rosler").stat() == before
    federate(settings, how, out, resume=True)  # the same again is no other


def test_a_run_of_rosler_train_is_no_federated_one(data: str, tmp_path: Path) -> None:
    train(config(data, epochs=1), tmp_path)
    with pytest.raises(RunError, match="holds no federated run"):
        federate(None, None, tmp_path, resume=True)
    with pytest.raises(RunError, match="already holds a run"):
        federate(config(data), federation(), tmp_path)


@pytest.mark.slow
def test_a_second_process_is_refused_by_the_first_ones_number(data: str, tmp_path: Path) -> None:
    with (
        locked(tmp_path, "run"),
        pytest.raises(RunError, match=rf"another process is running.*process {os.getpid()} on "),
    ):
        federate(config(data), federation(rounds=1), tmp_path)
    assert not {"config.json", "federated.json"} & {path.name for path in tmp_path.iterdir()}
    seen: list[str] = []

    def meanwhile(row: dict[str, float]) -> None:
        for how in (None, federation(rounds=1)):
            with pytest.raises(RunError, match=rf"process {os.getpid()} on "):
                federate(None, how, tmp_path, resume=True)
            seen.append("refused")

    federate(config(data), federation(rounds=1), tmp_path, report=meanwhile)
    assert seen == ["refused"] * 2
    assert load(tmp_path)(np.zeros((2, 12), np.float32)).shape == (2, 3)


@pytest.mark.slow
def test_a_run_resumes_with_its_own_data_alone(data: str, tmp_path: Path) -> None:
    copy, out = tmp_path / "copy.npz", tmp_path / "out"
    arrays = dict(np.load(data))
    np.savez(copy, **arrays)
    with pytest.raises(_Stop):
        federate(config(str(copy)), federation(), out, report=cut(2))
    np.savez(copy, **{**arrays, "x": arrays["x"] + 1})
    with pytest.raises(RunError, match=r"was begun with other data.*put the old data back"):
        federate(None, None, out, resume=True)
    np.savez_compressed(copy, **arrays)  # the same numbers in another file
    assert federate(None, None, out, resume=True)["rounds"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"federated.json: not a config of rosler federate"),
        ('{"rounds": 3, "colour": 1}', "unknown fields colour"),
        ('{"rounds": -3}', "rounds -3 is below 1"),
        ('{"rounds": "many"}', "not a config of rosler federate"),
        ("[1]", "not a config of rosler federate"),
    ],
)
def test_a_damaged_config_is_named(text: str, message: str, data: str, tmp_path: Path) -> None:
    (tmp_path / "federated.json").write_text(text)
    with pytest.raises(RunError, match=message):
        federate(None, None, tmp_path, resume=True)


def test_a_damaged_checkpoint_is_named(data: str, tmp_path: Path) -> None:
    with pytest.raises(_Stop):
        federate(config(data), federation(), tmp_path, report=cut(1))
    for path in (tmp_path / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises((RunError, ValueError), match="checkpoint"):
        federate(None, None, tmp_path, resume=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import resource

    out, soft = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    settings, writing = config(data, hidden=(300,), method="dense"), checkpoint.writing
    calls: list[int] = []

    @contextlib.contextmanager
    def limited(*arguments: Any) -> Iterator[None]:
        calls.append(1)
        with writing(*arguments):
            if len(calls) < 2:  # the first round's is written
                yield
                return
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, soft[1]))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, soft)

    monkeypatch.setattr(checkpoint, "writing", limited)
    with pytest.raises(OSError, match=r"checkpoint cannot be written: .*make room and resume"):
        federate(settings, federation(), out)
    assert "Traceback" not in capfd.readouterr().err
    monkeypatch.setattr(checkpoint, "writing", writing)
    federate(None, None, out, resume=True)
    federate(settings, federation(), tmp_path / "whole")
    assert_same(out, tmp_path / "whole")


def test_a_folder_that_cannot_be_is_named(data: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        federate(config(data), federation(), tmp_path / "file")
    with pytest.raises(OSError, match="file"):
        federate(config(data), federation(), tmp_path / "file" / "out")


def test_bad_data_leave_no_folder(data: str, tmp_path: Path) -> None:
    for settings, how, message in (
        (config(str(tmp_path / "absent.npz")), federation(), "absent.npz"),
        (config(data), federation(clients=10**4), "clients 10000 is outside"),
        (config(data), federation(split="load"), "split 'load'"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            federate(settings, how, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_groups_of_a_file_split_its_clients(tmp_path: Path) -> None:
    """Recordings of a machine: every client has whole ones, and its data none of another's."""
    rng = np.random.default_rng(0)
    y, recording = rng.integers(0, 2, 120), np.repeat(np.arange(6), 20)
    x = rng.normal(size=(120, 4)).astype(np.float32) + y[:, None]
    np.savez(tmp_path / "data.npz", x=x, y=y, groups=recording)
    how = federation(clients=3, rounds=1, split="groups", participation=1.0)
    result = federate(config(str(tmp_path / "data.npz"), hidden=(8,)), how, tmp_path / "out")
    assert result["clients"] == 3 and result["rounds"] == 1


@pytest.mark.slow
def test_a_run_that_is_scored_seldom_begins(data: str, tmp_path: Path) -> None:
    """Before the first score there is none, which is no divergence."""
    result = federate(config(data), federation(rounds=3, evaluate_every=2), tmp_path / "out")
    assert result["best_round"] in (2, 3)
    scores = [float(row["validation_loss"]) for row in history(tmp_path / "out")]
    assert np.isnan(scores[0]) and np.isfinite(scores[1:]).all()
