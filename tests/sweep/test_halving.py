"""Successive halving: who survives, that survivors are what they would have been, resuming."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest

from rosler_jax.sweep import SpecError, halving, parse, sweep
from rosler_jax.sweep import folder as folders
from rosler_jax.sweep import table as tables

BASE = {"hidden": [16], "method": "chain", "epochs": 3, "batch_size": 32}
AXES = {
    "learning_rate": {"grid": [1e-5, 1e-2, 1e30]},
    "rank": {"grid": [2, 4]},
    "bits": {"grid": [8, 16]},
}


@pytest.fixture
def spec(data):
    return parse({**BASE, "data": data, "axes": AXES, "halving": {"rungs": [1, 2], "keep": 0.5}})


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def same(a, b):
    return str(timeless(a)) == str(timeless(b))  # as text: NaN equals NaN


@pytest.mark.slow
def test_survivors_end_as_they_would_without_rungs(spec, tmp_path):
    done = sweep(spec, out=tmp_path / "s")
    whole = sweep(parse({**BASE, "data": spec.base["data"], "axes": AXES}), out=tmp_path / "whole")
    status = [row["status"] for row in done.rows]
    # Six trainings of two members each: three, then two survive; the rate of 1e30 diverges.
    assert status.count("done") == 4
    assert status.count("failed") == 4 == done.failed
    assert status.count("stopped") == 4
    for row, full in zip(done.rows, whole.rows, strict=True):
        assert row["member"] == full["member"]
        if row["status"] == "done":
            assert row["epochs_done"] == 3
            assert row["file_bytes"] == full["file_bytes"]
            assert row["best_epoch"] == full["best_epoch"]
            np.testing.assert_allclose(row["loss"], full["loss"], rtol=1e-4)
            # One of the 30 or 60 examples may fall on the other side.
            np.testing.assert_allclose(row["curve"], full["curve"], atol=1 / 30 + 1e-6)
        if row["status"] == "stopped":
            assert len(row["curve"]) == row["epochs_done"] < 3
            assert not math.isnan(row["test_accuracy"])


@pytest.mark.slow
def test_stopped_anywhere_a_halving_resumes_to_the_same_table(spec, tmp_path, monkeypatch):
    whole = sweep(spec, out=tmp_path / "whole")
    rungs = sorted(path.name for path in (tmp_path / "whole" / "rungs").iterdir())
    assert [name[:3] for name in rungs] == ["000", "001"]
    folder, reports = tmp_path / "cut", 0

    def stop(row):
        raise KeyboardInterrupt

    while True:
        try:
            done = sweep(spec, out=folder, resume=reports > 0, report=stop)
        except KeyboardInterrupt:
            reports += 1
            if reports > 3:  # finished chunks are reported again when resumed
                done = sweep(spec, out=folder, resume=True)
                break
    assert same(done.rows, whole.rows)
    assert same(tables.read_rows(folder / "table.parquet"), whole.rows)


@pytest.mark.slow
def test_a_damaged_rung_is_an_error_that_says_what_to_do(spec, tmp_path):
    folder = tmp_path / "s"
    sweep(spec, out=folder)
    (folder / "parts" / "001-000000.parquet").unlink()
    for path in (folder / "rungs" / "000-000000").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(folders.SweepError, match="rung's checkpoint cannot be read"):
        sweep(spec, out=folder, resume=True)


@pytest.mark.slow
def test_a_rung_that_does_not_fit_the_disk_is_an_error_before_it_is_written(
    spec, tmp_path, monkeypatch
):
    usage = type(shutil.disk_usage(tmp_path))
    with monkeypatch.context() as context:
        context.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30 - 1000, 1000))
        with pytest.raises(OSError, match="no space for a checkpoint"):
            sweep(spec, out=tmp_path / "s")
    assert not (tmp_path / "s" / "rungs").exists()
    assert {row["status"] for row in sweep(spec, out=tmp_path / "s", resume=True).rows} > {"done"}


def test_survivors_share_bits_and_exclude_the_diverged(spec):
    members = spec.configs()
    rows = [
        {
            "member": i,
            "status": "failed" if c.learning_rate > 1 else "stopped",
            "curve": [0.9 if c.rank == 4 else 0.5],
        }
        for i, c in enumerate(members)
    ]
    assert halving.survivors(spec, members, rows) == [0, 1, 2, 3, 6, 7]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rungs": []}, "rising epochs"),
        ({"rungs": [2, 1]}, "rising epochs"),
        ({"rungs": [3]}, "beyond the 3 epochs"),
        ({"rungs": [1], "keep": 1.5}, "between 0 and 1"),
        ({"rungs": [1], "factor": 3}, "has 'factor'"),
        ("fast", "expected a table"),
    ],
)
def test_impossible_rungs_are_refused(given, message):
    with pytest.raises(SpecError, match=message):
        parse({**BASE, "axes": AXES, "halving": given})
    with pytest.raises(SpecError, match="epochs is an axis"):
        parse({"method": "chain", "axes": {"epochs": {"grid": [2, 3]}}, "halving": {"rungs": [1]}})
