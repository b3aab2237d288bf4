"""A search by Optuna: batches, the study on disk, resuming."""

from __future__ import annotations

import math

import pytest

from rosler_jax.sweep import SpecError, parse, schedule, sweep
from rosler_jax.sweep import search as searches
from rosler_jax.sweep import table as tables

optuna = pytest.importorskip("optuna", reason="optuna is not installed")

AXES = {
    "learning_rate": {"log_uniform": [1e-4, 1e-1]},
    "rank": {"integer": [2, 3]},
    "label_smoothing": {"uniform": [0.0, 0.2]},
    "bits": {"grid": [4, 16]},
}


@pytest.fixture
def spec(data):
    base = {"data": data, "method": "chain", "hidden": [16], "epochs": 2, "batch_size": 32}
    objectives = ["accuracy", "file_bytes"]
    search = {"trials": 14, "batch": 5, "objectives": objectives}
    return parse({**base, "axes": AXES, "search": search})


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    monkeypatch.setattr(schedule, "choose_width", lambda *_: schedule.Cost(1, 1, 0.0, 0))


def study_of(folder):
    return optuna.load_study(study_name=searches.STUDY, storage=f"sqlite:///{folder}/optuna.db")


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.slow
def test_a_search_tells_what_it_found_and_resumes_to_the_same(spec, tmp_path):
    done = sweep(spec, out=tmp_path / "s")
    assert [row["member"] for row in done.rows] == list(range(14))
    study = study_of(tmp_path / "s")
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 14
    assert study.directions == [
        optuna.study.StudyDirection.MAXIMIZE,
        optuna.study.StudyDirection.MINIMIZE,
    ]
    for trial, row in zip(study.trials, done.rows, strict=True):
        assert trial.values == [row["validation_accuracy"], row["file_bytes"]]
        assert trial.params["learning_rate"] == row["learning_rate"]
        assert trial.params["rank"] == row["rank"]
    assert len({row["learning_rate"] for row in done.rows}) == 14

    # Stopped after every chunk, over and over.
    def stop(row):
        raise KeyboardInterrupt

    folder, begun = tmp_path / "cut", False
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            sweep(spec, out=folder, resume=begun, report=stop)
        begun = True
    # A trial that was asked for, and lost, is given up.
    study_of(folder).ask(searches.distributions(spec))
    resumed = sweep(spec, out=folder, resume=True)
    assert timeless(resumed.rows) == timeless(done.rows)
    assert timeless(tables.read_rows(folder / "table.parquet")) == timeless(done.rows)
    # And once more, with nothing to do: nothing is told twice.
    sweep(spec, out=folder, resume=True)
    states = [t.state.name for t in study_of(folder).trials]
    assert states.count("COMPLETE") == 14


@pytest.mark.slow
def test_a_member_that_diverges_is_a_failed_trial(data, tmp_path):
    axes = {"learning_rate": {"grid": [1e30]}}
    base = {"data": data, "method": "chain", "hidden": [8], "epochs": 2, "batch_size": 32}
    spec = parse({**base, "rank": 2, "axes": axes, "search": {"trials": 2, "batch": 2}})
    done = sweep(spec, out=tmp_path / "s")
    assert done.failed == 2
    assert all(math.isnan(row["test_accuracy"]) for row in done.rows)
    assert [t.state.name for t in study_of(tmp_path / "s").trials] == ["FAIL", "FAIL"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "trials is None"),
        ({"trials": 4, "batch": 0}, "batch is 0"),
        ({"trials": 4, "objectives": ["speed"]}, "objective 'speed'.*validation_f1, file_bytes"),
        ({"trials": 4, "objectives": []}, "objective 'nothing'"),
        ({"trials": 4, "sampler": "x"}, "has 'sampler'"),
    ],
)
def test_impossible_searches_are_refused(given, message):
    with pytest.raises(SpecError, match=message):
        parse({"axes": AXES, "search": given})


def test_objectives_have_the_direction_of_their_metrics():
    base = {"task": "regression", "axes": AXES}
    spec = parse({**base, "search": {"trials": 4}})
    assert spec.search.objectives == ("validation_rmse",)
    assert (spec.objectives()["validation_rmse"], spec.objectives()["validation_r2"]) == (
        False,
        True,
    )
    spec = parse({**base, "search": {"trials": 4, "objectives": ["r2", "parameters"]}})
    assert spec.search.objectives == ("validation_r2", "parameters")
    assert parse({**base, "metric": "mae", "search": {"trials": 4}}).followed() == ("mae", False)


def test_rungs_and_a_search_are_refused_together():
    with pytest.raises(SpecError, match="do not go together"):
        parse({"axes": AXES, "search": {"trials": 4}, "halving": {"rungs": [1]}})
