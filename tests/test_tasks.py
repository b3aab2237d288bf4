"""Tasks: losses and metrics against plain NumPy, and a run of each."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import own_parts
import pytest

from rosler_jax import load, run
from rosler_jax.config import TrainConfig
from rosler_jax.streaming import score
from rosler_jax.tasks import TASKS, losses, metric_of
from rosler_jax.units import Units

OWN = str(Path(own_parts.__file__))
RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 16)).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(np.int32) + (X[:, 1] > 0)


def config(**settings: Any) -> TrainConfig:
    defaults = {"hidden": (24,), "rank": 4, "epochs": 40, "batch_size": 32, "method": "chain"}
    return TrainConfig(**{**defaults, "learning_rate": 1e-2, **settings})


def metrics_of(task: str, outputs: Any, y: Any) -> dict[str, float]:
    return score(lambda x: x, np.asarray(outputs, np.float32), y, TASKS[task])[1]


def test_metrics_of_classes_are_those_of_their_definitions() -> None:
    y = RNG.integers(0, 3, 1500)
    outputs = np.eye(3)[y] + 0.7 * RNG.normal(size=(1500, 3))
    said = outputs.argmax(-1)
    f1 = [
        2 * ((said == k) & (y == k)).sum() / ((said == k).sum() + (y == k).sum()) for k in range(3)
    ]
    got = metrics_of("classification", outputs, y)
    assert got["accuracy"] == (said == y).mean()
    assert got["f1"] == pytest.approx(np.mean(f1), rel=1e-5)


def test_metrics_of_flags_are_those_of_their_definitions() -> None:
    y = RNG.integers(0, 2, (900, 4)).astype(np.float32)
    outputs = y - 0.5 + 0.5 * RNG.normal(size=y.shape)
    said, true = outputs > 0, y > 0
    got = metrics_of("multi-label", outputs, y)
    assert got["accuracy"] == pytest.approx((said == true).mean())
    assert got["exact"] == pytest.approx((said == true).all(-1).mean())
    f1 = 2 * (said & true).sum(0) / (said.sum(0) + true.sum(0))
    assert got["f1"] == pytest.approx(f1.mean(), rel=1e-5)


def test_metrics_of_values_are_those_of_their_definitions() -> None:
    y = (RNG.normal(size=(1100, 3)) * [1, 10, 0] + [0, 5, 2]).astype(np.float32)
    outputs = y + RNG.normal(size=y.shape)
    error = np.float32(outputs) - y
    got = metrics_of("regression", outputs, y)
    assert got["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
    assert got["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    r2 = (
        1 - (error**2).mean(0)[:2] / y.var(0)[:2]
    )  # of the third, which never varies, there is none
    assert got["r2"] == pytest.approx(r2.mean(), rel=1e-4)


def test_metrics_of_tokens_look_one_ahead() -> None:
    x = RNG.integers(0, 7, (40, 9)).astype(np.int32)
    right = np.eye(7)[np.roll(x, -1, 1)] * 20
    task = TASKS["next-token"]
    loss, got = score(lambda x: jnp.asarray(right[: len(x)], jnp.float32), x, None, task)
    assert got["accuracy"] == 1.0 and got["perplexity"] == pytest.approx(1.0, abs=1e-5)
    assert loss < 1e-5
    chance = score(lambda x: jnp.zeros((*x.shape, 7)), x, None, task)[1]
    assert chance["perplexity"] == pytest.approx(7.0, rel=1e-5)


def test_a_loss_gets_the_options_that_it_names() -> None:
    y, outputs = jnp.array([0, 1]), jnp.zeros((2, 2))
    options = {"class_weights": jnp.array([1.0, 3.0]), "label_smoothing": 0.0, "unit": 2.0}
    weighted = losses(TASKS["classification"], outputs, y, options)
    assert float(weighted[1]) == pytest.approx(3 * float(weighted[0]))
    squares = losses(TASKS["regression"], jnp.array([[4.0]]), jnp.zeros((1, 1)), options)
    assert float(squares[0]) == 4.0
    with pytest.raises(ValueError, match="metric 'auc' is unknown; this task has accuracy, f1"):
        metric_of(TASKS["classification"], "auc")


FLAGS = np.stack([X[:, 0] > 0, X[:, 1] + X[:, 2] > 0], 1).astype(np.float32)
VALUES = np.stack([1e4 + 500 * X[:, 0] - 300 * X[:, 1], 0.01 * X[:, 2]], 1).astype(np.float32)
TOKENS = np.cumsum(RNG.integers(1, 3, (400, 12)), 1).astype(np.int32) % 11
LOW_RANK = (X[:, :3] @ RNG.normal(size=(3, 16)) * np.linspace(1, 50, 16) + 7).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "data", "metric", "reaches"),
    [
        ({"metric": "f1"}, (X, LABELS), "f1", 0.8),
        ({"class_weights": "balanced"}, (X, LABELS), "accuracy", 0.8),
        ({"task": "multi-label"}, (X, FLAGS), "f1", 0.85),
        ({"task": "regression"}, (X, VALUES), "r2", 0.8),
        ({"task": "reconstruction", "noise": 0.1}, LOW_RANK, "r2", 0.8),
        ({"task": f"{OWN}:ROBUST", "data": f"{OWN}:waves"}, None, "worst", -60.0),
        (
            {
                "task": "next-token", "model": "transformer",
                "options": ("width=16", "depth=1", "causal=True", "per_position=True"),
            },
            TOKENS, "accuracy", 0.4,
        ),
    ],
    ids=lambda v: v.get("task", "classification").split(":")[-1] if isinstance(v, dict) else "",
)  # fmt: skip
def test_every_task_trains_and_its_file_scores_as_said(
    settings: dict[str, Any], data: Any, metric: str, reaches: float, tmp_path: Path
) -> None:
    settings = config(**settings)
    result = run.train(settings, tmp_path, data=data)
    found = result[f"test_{metric}"]
    assert found >= reaches if reaches > 0 else found <= -reaches, result
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    followed, how = metric_of(run.task_of(settings), settings.metric)
    scores = [float(row[f"validation_{followed}"]) for row in rows]
    best = max(scores) if how.larger_is_better else min(scores)
    assert scores[result["best_epoch"] - 1] == best
    if data is not None:  # the file speaks in the units of the data
        dataset = run.load_data(settings, data)
        y = dataset.test_y if dataset.test_y is not None else dataset.test_x
        again = np.asarray(load(tmp_path)(dataset.test_x))
        if settings.task in ("regression", "reconstruction"):
            rmse = np.sqrt(((again.reshape(y.shape) - y) ** 2).mean())
            assert result["test_rmse"] == pytest.approx(rmse, rel=1e-4)


@pytest.mark.slow
def test_units_of_targets_change_no_training(tmp_path: Path) -> None:
    """Targets in another unit: the same losses and fits, but for rounding."""
    found = []
    for name, scale in (("plain", 1.0), ("large", 1e6)):
        y = (VALUES[:, 1:] * 100 * scale).astype(np.float32)
        found.append(run.train(config(task="regression"), tmp_path / name, data=(X, y)))
    assert found[0]["test_loss"] == pytest.approx(found[1]["test_loss"], rel=1e-3)
    assert found[0]["test_r2"] == pytest.approx(found[1]["test_r2"], rel=1e-3)


def test_weights_of_classes_are_refused_where_they_do_not_fit() -> None:
    with pytest.raises(ValueError, match="class_weights '1,2' for 3 classes"):
        run.prepare(config(class_weights="1,2"), (X, LABELS))
    assert Units().class_weights is None
