"""Populations and sweeps on disk: equal to single runs, isolated, durable."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from command_line import call

from rosler_jax import data as datasets
from rosler_jax import load
from rosler_jax import run as runs
from rosler_jax.config import TrainConfig
from rosler_jax.fit import task_of
from rosler_jax.graph import run_batch
from rosler_jax.graph.quantize import quantize_graph
from rosler_jax.sweep import (
    Built,
    SweepError,
    hosts,
    load_examples,
    make_plan,
    parse,
    runner,
    schedule,
    ship,
    sweep,
    trainings,
)
from rosler_jax.sweep import folder as folders
from rosler_jax.sweep import table as tables
from rosler_jax.sweep.examples import read_examples

SPEC = {
    "hidden": [16],
    "method": "chain",
    "epochs": 2,
    "axes": {
        "learning_rate": {"grid": [1e-3, 1e-2]},
        "rank": {"grid": [2, 4]},
        "bits": {"grid": [8, 16]},
    },
}
TIMES = ("seconds",)


@pytest.fixture
def spec(data):
    return parse({**SPEC, "data": data, "batch_size": 32})


def same_rows(a, b):
    strip = lambda row: {k: v for k, v in row.items() if k not in TIMES}
    return [strip(r) for r in a] == [strip(r) for r in b]


OWN = str(Path(__file__).parent / "own.py")
CASES = {
    "chain": {"method": "chain"},
    "low-rank": {"method": "low-rank"},
    "ares-bp": {"method": "ares-bp", "epochs": 3, "parallel_epochs": 1.5},
    "seeded": {"method": "seeded", "sketch": "gaussian"},
    "restrict-rank": {"method": "restrict-rank"},
    "dense": {"method": "dense", "class_weights": "balanced"},
    "own method": {"method": f"{OWN}:method", "learning_rate": 1e-2},
    "quantised": {"method": "chain", "quantization_aware": True, "bits": 8, "quantize_from": 0.4},
    "lstm": {"method": "chain", "model": "lstm", "options": ("frame=5",)},
    "linen": {"method": "seeded", "model": f"{OWN}:net"},
    "regression": {"method": "chain", "task": "regression", "metric": "mae"},
    "reconstruction": {"method": "low-rank", "task": "reconstruction"},
    "resnet": {"method": "chain", "model": "resnet8", "options": ("width=8",)},
    "seeded convolutions": {"method": "seeded", "model": f"{OWN}:Convolutions"},
}  # fmt: skip
"""What members are; their ranks are masks, but those of restrict-rank and the method of one's own.
"""
NORMALISED = ("linen", "resnet")


def members_of(case, data):
    """Three members that differ in rank, numbers and seed; and the arrays."""
    base = {"hidden": (16,), "epochs": 2, "batch_size": 32, "data": "arrays"} | CASES[case]
    images = case in ("resnet", "seeded convolutions")
    low, high = {"resnet": (2, 3), "seeded convolutions": (1, 2)}.get(case, (2, 4))
    config = TrainConfig(**base)
    smooth = {"label_smoothing": 0.1} if config.task == "classification" else {}
    members = [
        dataclasses.replace(config, rank=r, learning_rate=lr, noise=n, seed=s, **smooth)
        for r, lr, n, s in ((low, 1e-3, 0.1, 0), (high, 1e-2, 0.2, 3), (low, 3e-3, 0.3, 3))
    ]
    arrays = dict(np.load(data))
    x, y = arrays["x"], arrays["y"]
    if images:
        x = np.pad(x, ((0, 0), (0, 5))).reshape(-1, 5, 5, 1)
    if config.task == "regression":
        y = np.stack([x[:, 0] + 5, x[:, 1] * 100], 1)
    return members, (x, y)


def trained(members, arrays, width):
    """The rows of members that train together, and of each the graph of its trained model."""
    built = Built(load_examples(members[0], arrays))
    rows, graphs = {}, {}
    for group in make_plan(members, built):
        population = trainings.population_of(group, built, width, 1)
        data = [trainings.member_of(c, group, built) for c in group.trainings]
        out = trainings.run(population, data, group.config.epochs)
        jobs = [ship.Job(c, k) for k, c in enumerate(group.trainings)]
        found = runner.results(jobs, out, group, built, width)
        for (config, k), row in zip(jobs, found, strict=True):
            graph = ship.graph_of(ship.Job(config, k), out.state, built)
            rows[config], graphs[config] = row, quantize_graph(graph, config.bits)
    return [rows[c] for c in members], [graphs[c] for c in members]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_member_equals_a_run_of_its_own(case, data, tmp_path):
    width = 4 if case in ("chain", "ares-bp") else 1
    members, arrays = members_of(case, data)
    rows, graphs = trained(members, arrays, width)
    # The first, whose rank is padded, tells enough of most.
    chosen = list(zip(members, rows, graphs, strict=True))[: 3 if case == "chain" else 1]
    for k, (config, got, graph) in enumerate(chosen):
        want = runs.train(config, tmp_path / str(k), data=arrays)
        assert got["file_bytes"] == want["file_bytes"]
        assert got["parameters"] == want["parameters"]
        assert got["compression"] == want["compression"]
        for name in task_of(config).metrics:
            for split, examples in (("test", 60), ("validation", 24)):
                a, b = (row[f"{split}_{name}"] for row in (got, want))
                # The same sums in another order: rounding alone, over some twenty updates; one
                # example may fall on the other side.
                slack = {"accuracy": 1 / examples, "f1": 3 / examples, "r2": 1e-3}.get(name, 0)
                assert abs(a - b) <= slack + 1e-3 * abs(b) + 1e-9, (split, name)
        with (tmp_path / str(k) / "history.csv").open() as file:
            (*_, last) = csv.DictReader(file)
        np.testing.assert_allclose(got["loss"], float(last["loss"]), rtol=1e-4)
        if got["best_epoch"] == want["best_epoch"]:
            file = load(tmp_path / str(k) / "model.rosler").graph
            outs = [np.asarray(run_batch(g, arrays[0][:50])) for g in (graph, file)]
            slack = 1e-2 if case in NORMALISED else 2e-3
            np.testing.assert_allclose(*outs, atol=slack * (1 + np.abs(outs[1]).max()))
            for a, b in zip(graph.weights(), file.weights(), strict=True):
                assert a.name == b.name
                # A bias before a normalisation has no gradient but rounding, which Adam scales up.
                slack = 1e-2 if case in NORMALISED and a.name.endswith("bias") else 5e-4
                np.testing.assert_allclose(a.values, b.values, rtol=1e-3, atol=slack)


def test_a_member_that_diverges_touches_no_other(data):
    base = TrainConfig(data=data, method="chain", hidden=(16,), rank=2, epochs=2, batch_size=32)
    good = [dataclasses.replace(base, seed=s) for s in (0, 1)]
    bad = dataclasses.replace(base, seed=2, learning_rate=1e30)
    built = Built(load_examples(base))
    (group,) = make_plan([*good, bad], built)
    population = trainings.population_of(group, built, 1, 1)
    both = [
        trainings.run(population, [trainings.member_of(c, group, built) for c in configs], 2)
        for configs in ((good[0], bad, good[1]), good)
    ]
    with_bad, alone = both
    assert with_bad.history.finite.tolist()[1] != [True, True]
    for a, b in zip(jax.tree.leaves(with_bad), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(a[[0, 2]], b)


def test_a_sweep_writes_a_row_a_member(spec, tmp_path, monkeypatch):
    seen, programs, whole = [], [], ship.scoring
    score = lambda *given: programs.append(given) or whole(*given)
    monkeypatch.setattr(ship, "scoring", score)
    done = sweep(spec, out=tmp_path / "s", report=seen.append, models=True)
    assert len(programs) == 1  # ranks and bits are data
    assert done.failed == 0
    rows = tables.read_rows(tmp_path / "s" / "table.parquet")
    assert [row["member"] for row in rows] == list(range(8))
    assert list(rows[0])[:5] == ["member", "learning_rate", "rank", "bits", "status"]
    assert rows[1]["file_bytes"] > rows[0]["file_bytes"]  # 16 bits over 8
    for row in rows[:4]:
        model = runner.model_folder(tmp_path / "s", row["member"])  # as a run's folder is
        assert (model / "model.rosler").stat().st_size == row["file_bytes"]
        found = runs.evaluate_folder(model)["test_accuracy"]
        assert found == pytest.approx(row["test_accuracy"], abs=1 / 60)
    assert len(rows[0]["curve"]) == 2
    assert seen[-1]["done"] == seen[-1]["total"] == 8
    config = json.loads(rows[3]["config"])
    assert (config["rank"], config["bits"]) == (4, 16)


@pytest.mark.slow
def test_the_plan_is_told_before_anything_runs(spec, tmp_path):
    told = []

    def planned(lines):
        told.append(lines)
        assert not (tmp_path / "s" / "parts").exists()

    sweep(spec, out=tmp_path / "s", planned=planned)
    ((program, summary),) = told
    assert "mlp 16, chain, rank up to 4, 2 epochs: 8 members, 4 trainings" in program
    assert summary.startswith("8 members, ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "axes"),
    [
        ("seeded", {"hidden": [[8], [8, 8]], "bits": [4, 16]}),
        ("ares-bp", {"sketch": ["rademacher", "sparse_sign"]}),
        ("chain", {"method": ["chain", "low-rank", "dense"]}),
    ],
)
def test_sketches_stages_and_architectures_are_axes(method, axes, data, tmp_path):
    base = {"data": data, "hidden": [8], "rank": 2, "epochs": 2, "batch_size": 32, "method": method}
    base = {k: v for k, v in base.items() if k not in axes}
    grids = {name: {"grid": values} for name, values in axes.items()}
    done = sweep({**base, "axes": grids}, out=tmp_path / "s")
    assert {row["status"] for row in done.rows} == {"done"}
    found = [tuple(row[name] for name in axes) for row in done.rows]
    cells = [[json.dumps(v) if isinstance(v, list) else v for v in vs] for vs in axes.values()]
    assert found == list(itertools.product(*cells))
    assert len({row["file_bytes"] for row in done.rows}) > 1 or method == "ares-bp"


REGRESSION = """
data = {data!r}
task = "regression"
metric = "mae"
hidden = [16]
method = "chain"
epochs = 3
batch_size = 32
halving = {{ rungs = [1], keep = 0.5 }}
[axes]
learning_rate = {{ grid = [1e-4, 3e-2] }}
rank = {{ grid = [2, 4] }}
bits = {{ grid = [4, 16] }}
"""


@pytest.mark.slow
def test_a_sweep_follows_any_metric_in_its_direction(data, tmp_path, capsys):
    x = np.load(data)["x"]
    np.savez(tmp_path / "r.npz", x=x, y=np.stack([x[:, 0] + 5, x[:, 1] * 100], 1))
    path, folder = tmp_path / "sweep.toml", tmp_path / "s"
    path.write_text(REGRESSION.format(data=str(tmp_path / "r.npz")))
    code, out, err = call(capsys, "sweep", path, "--out", folder)
    assert code == 0, err
    assert out.split()[4:6] == ["validation_mae", "test_mae"]
    rows = tables.read_rows(folder / "table.parquet")
    assert {f"{s}_{m}" for s in ("test", "validation") for m in ("mae", "rmse", "r2")} < {*rows[0]}
    # The larger rate learns more in the first epoch, whatever the rank.
    assert [row["status"] for row in rows] == ["stopped"] * 4 + ["done"] * 4
    best = min(rows, key=lambda row: (row["validation_mae"], row["file_bytes"]))
    assert out.splitlines()[1].split()[0] == str(best["member"])
    assert all(np.diff(row["curve"]).max() < 0 for row in rows[4:])
    bound = 1.05 * max(row["validation_mae"] for row in rows[4:])
    code, out, err = call(capsys, "sweep", "best", folder, "--at-least", bound, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["file_bytes"] == min(row["file_bytes"] for row in rows[4:])
    assert found["validation_mae"] <= bound
    code, _, err = call(capsys, "sweep", "best", folder, "--at-least", 0.0)
    assert code == 1 and "no member" in err


@pytest.mark.slow
def test_arrays_are_swept_and_resumed_with_themselves_alone(data, tmp_path):
    arrays = dict(np.load(data))
    x, y = arrays["x"], arrays["y"]
    base = TrainConfig(method="chain", hidden=(8,), epochs=1, batch_size=32)
    axes = {"rank": {"grid": [1, 2]}}
    done = sweep(axes, (x, y), base, out=tmp_path / "s")
    assert [row["status"] for row in done.rows] == ["done", "done"]
    assert json.loads(done.rows[0]["config"])["data"] == "arrays"
    again = sweep(axes, (x, y), base, out=tmp_path / "s", resume=True)
    assert same_rows(again.rows, done.rows)
    with pytest.raises(SweepError, match="arrays had the digest"):
        sweep(axes, (x + 1, y), base, out=tmp_path / "s", resume=True)


@pytest.mark.slow
def test_a_failed_member_is_a_row(data, tmp_path):
    axes = {"learning_rate": {"grid": [1e-3, 1e30]}}
    source = {"data": data, "method": "chain", "hidden": [8], "rank": 2, "epochs": 2, "axes": axes}
    done = sweep(parse({**source, "batch_size": 32}), out=tmp_path / "s")
    assert [row["status"] for row in done.rows] == ["done", "failed"]
    assert done.failed == 1


@pytest.mark.slow
def test_a_sweep_of_which_all_failed_says_why(data, tmp_path, capsys):
    path = tmp_path / "sweep.toml"
    path.write_text(TOML.format(data=data).replace("[1e-3, 1e-2], n = 6", "[1e29, 1e30], n = 2"))
    code, out, err = call(capsys, "sweep", path, "--out", tmp_path / "s", "--quiet")
    assert (code, out) == (1, "")
    assert "all members failed: 4 of 4 members: loss or parameters no longer finite in" in err
    assert "the first is member 0, learning_rate=" in err
    rows = tables.read_rows(tmp_path / "s" / "table.parquet")
    assert all(row["reason"].startswith("loss or parameters") for row in rows)


@pytest.mark.slow
def test_a_sweep_resumes_with_its_own_data_alone(spec, data, tmp_path, monkeypatch, capsys):
    path = tmp_path / "copy.npz"
    arrays = dict(np.load(data))
    np.savez(path, **arrays)
    source = {**spec.source, "data": str(path)}
    sweep(source, out=tmp_path / "s")
    np.savez(path, **{**arrays, "y": arrays["y"][::-1]})
    with pytest.raises(SweepError, match=r"other data: .*copy\.npz had the digest"):
        sweep(source, out=tmp_path / "s", resume=True)
    code, _, err = call(capsys, "sweep", "best", tmp_path / "s")
    assert code == 1 and "other data" in err
    monkeypatch.setattr(hosts, "exchange", lambda rows: [*rows, {"digest": "another"}])
    with pytest.raises(SweepError, match="not the same on all hosts"):
        sweep(source, out=tmp_path / "new")


@pytest.mark.slow
def test_a_member_of_a_table_equals_a_run_of_its_own(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    units = np.where(np.arange(20) == 4, 1e5, 1e-4)
    x = ((rng.normal(size=(300, 20)) + np.eye(3, 20)[y] * 2) * units).astype(np.float32)
    np.savez(tmp_path / "table.npz", x=x, y=y)
    config = TrainConfig(
        data=str(tmp_path / "table.npz"), method="chain", hidden=(16,), rank=4, epochs=3,
        batch_size=32, noise=0.1, learning_rate=1e-2,
    )  # fmt: skip
    want = runs.train(config, tmp_path / "run")
    (row,) = sweep({"rank": {"grid": [4]}}, config=config, out=tmp_path / "s").rows
    assert row["file_bytes"] == want["file_bytes"]
    assert abs(row["test_accuracy"] - want["test_accuracy"]) <= 1 / 60 + 1e-9
    assert want["test_accuracy"] > 0.4


@pytest.mark.slow
def test_interrupted_and_resumed_is_the_table_of_an_undisturbed_sweep(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "MAX_CHUNK", 1)
    monkeypatch.setattr(schedule, "choose_width", lambda *_: schedule.Cost(1, 1, 0.0, 0))
    whole = sweep(spec, out=tmp_path / "whole")
    parts = sorted((tmp_path / "whole" / "parts").iterdir())
    assert len(parts) > 1

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(spec, out=tmp_path / "cut", report=stop)
    assert len(list((tmp_path / "cut" / "parts").iterdir())) == 1
    with pytest.raises(SweepError, match="already holds this sweep"):
        sweep(spec, out=tmp_path / "cut")
    resumed = sweep(spec, out=tmp_path / "cut", resume=True)
    assert same_rows(resumed.rows, whole.rows)
    # And with nothing left to do.
    assert same_rows(sweep(spec, out=tmp_path / "cut", resume=True).rows, whole.rows)


@pytest.mark.slow
def test_a_changed_spec_a_second_process_and_a_damaged_part_are_refused(spec, tmp_path):
    folder = tmp_path / "s"
    sweep(spec, out=folder)
    other = parse({**spec.source, "epochs": 3})
    for resume in (True, False):
        with pytest.raises(SweepError, match="epochs: 2 -> 3"):
            sweep(other, out=folder, resume=resume)
    with folders.locked(folder), pytest.raises(SweepError, match="another process"):
        sweep(spec, out=folder, resume=True)
    with pytest.raises(SweepError, match="no sweep to resume"):
        sweep(spec, out=tmp_path / "nothing", resume=True)
    (part, *_) = (folder / "parts").iterdir()
    part.write_bytes(b"half a file")
    with pytest.raises(ValueError, match="not a Parquet table"):
        sweep(spec, out=folder, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        sweep(spec, out=tmp_path / "file" / "s")


def test_members_of_two_data_sets_are_refused(data, tmp_path):
    axes = {"data": {"grid": [data, "mnist5k"]}}
    with pytest.raises(SweepError, match="differ in data"):
        sweep(parse({"method": "chain", "axes": axes}), out=tmp_path / "s")


TOML = """
data = {data!r}
hidden = [16]
method = "chain"
epochs = 2
batch_size = 32
[axes]
learning_rate = {{ log_uniform = [1e-3, 1e-2], n = 6 }}
rank = {{ grid = [2, 4] }}
"""


def rosler(*arguments):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "rosler_jax", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_the_command_survives_kill_9_and_finds_the_best(data, tmp_path, capsys, monkeypatch):
    path = tmp_path / "sweep.toml"
    path.write_text(TOML.format(data=data))
    code, out, err = call(capsys, "sweep", path, "--dry-run")
    assert code == 0, err
    assert "12 members, 12 trainings" in out
    assert "nothing was run" in out

    folder = tmp_path / "s"
    monkeypatch.setenv("ROSLER_SWEEP_CHUNK_SECONDS", "0.0001")
    command = [sys.executable, "-m", "rosler_jax", "sweep", path, "--out", folder]
    process = subprocess.Popen(
        [*map(str, command)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.time() + 240
    while not (folder / "parts").exists() and time.time() < deadline and process.poll() is None:
        time.sleep(0.01)
    second = rosler("sweep", "--resume", folder)
    if process.poll() is None:  # else it ended before the second had its data
        assert second.returncode == 1
        assert "another process is running this sweep" in second.stderr
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / "changed.toml").write_text(TOML.format(data=data).replace("[16]", "[24]"))
    code, _, err = call(capsys, "sweep", tmp_path / "changed.toml", "--resume", folder)
    assert code == 1
    assert "hidden: [16] -> [24]" in err
    resumed = rosler("sweep", "--resume", folder, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["members"] == 12
    code, out, err = call(capsys, "sweep", path, "--out", tmp_path / "whole")
    assert code == 0, err
    assert "12 members, 0 failed" in out
    a, b = (tables.read_rows(f / "table.parquet") for f in (folder, tmp_path / "whole"))
    widths = [
        [cost[0] for cost in json.loads((f / "stages/000.json").read_text())["plan"]["costs"]]
        for f in (folder, tmp_path / "whole")
    ]
    if widths[0] == widths[1]:
        assert same_rows(a, b)
    (folder / "table.parquet").unlink()  # as in a sweep that has not ended yet
    code, out, err = call(capsys, "sweep", "best", folder, "--min-accuracy", 0, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["file_bytes"] == min(row["file_bytes"] for row in a)
    assert (folder / "best" / "model.rosler").exists()
    code, _, err = call(capsys, "sweep", "best", folder, "--at-least", 1.01)
    assert code == 1
    assert "no member" in err


LIMITED = """
import resource, sys
from rosler_jax import sweep
from rosler_jax.cli import main
spec, out, limit = sys.argv[1:]
sweep.schedule.choose_width = lambda *_: sweep.schedule.Cost(1, 1, 0.0, 0)
write = sweep.table.write_rows
def limited(path, rows):
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), soft[1]))
    try:
        write(path, rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
sweep.table.write_rows = limited
sys.exit(main(["sweep", spec, "--out", out]))
"""


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_corrupts_nothing(data, tmp_path, capsys):
    path, folder = tmp_path / "sweep.toml", tmp_path / "s"
    path.write_text(TOML.format(data=data))
    command = [sys.executable, "-c", LIMITED, str(path), str(folder)]
    run = lambda limit: subprocess.run(
        [*command, limit], capture_output=True, text=True, timeout=300, check=False
    )
    full = run("1000")  # bytes that a file may have: as on a disk that is full in the middle of it
    assert full.returncode == 1
    assert "error:" in full.stderr
    assert "Traceback" not in full.stderr
    assert list((folder / "parts").iterdir()) == []
    code, out, err = call(capsys, "sweep", "--resume", folder, "--json")
    assert code == 0, err
    assert json.loads(out)["members"] == 12


def test_a_folder_that_cannot_be_written_is_refused(spec, tmp_path, monkeypatch):
    folder = tmp_path / "s"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="cannot be written; choose another"):
        sweep(spec, out=folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("s.toml",),
        ("s.toml", "--resume", "d", "--out", "o"),
        ("best",),
        ("s.toml", "d", "--out", "o"),
    ],
)
def test_wrong_usage_has_exit_code_2(arguments, capsys):
    code, _, err = call(capsys, "sweep", *arguments)
    assert code == 2
    assert "error:" in err


def test_examples_with_a_validation_split_of_their_own_keep_it(data):
    raw = datasets.read(data)
    x, y = raw.train
    fixed = raw._replace(train=(x[:100], y[:100]), validation=(x[100:150], y[100:150]))
    part = read_examples("toy", fixed, TrainConfig()).part(TrainConfig())
    assert part.train.tolist() == list(range(100))
    assert part.validation.tolist() == list(range(100, 150))
