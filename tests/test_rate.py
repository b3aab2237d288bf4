"""Rate-coded training: the entropy model, integers as they ship, budgets, teachers, sweeps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import own_parts
import pytest
from command_line import call
from in_parts import train_in_parts

from rosler_jax import augment, load, rate_coded, run
from rosler_jax._quantized import QuantizedTensor, to_numpy
from rosler_jax.config import TrainConfig
from rosler_jax.graph import Graph, trace
from rosler_jax.graph.quantize import with_integers
from rosler_jax.rate import decaying, in_steps, lifted, nats
from rosler_jax.sweep import SweepError, sweep
from rosler_jax.sweep.runner import model_folder

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 600)
X = (RNG.normal(size=(3, 20))[Y] + 0.4 * RNG.normal(size=(600, 20))).astype(np.float32)


def config(**settings: Any) -> TrainConfig:
    defaults = {"hidden": (24, 16), "rank": 3, "epochs": 6, "batch_size": 32, "method": "dense"}
    return TrainConfig(**{**defaults, "bits": 8, "rate_lambda": 0.05, **settings})


# The entropy model.


@pytest.mark.parametrize("width", [0.05, 0.3, 1.0, 20.0])
def test_rates_are_those_of_a_laplace_distribution(width: float) -> None:
    x = np.concatenate([np.linspace(-4, 4, 33), [0.5, -0.5, 0.0]])

    def below(x: np.ndarray) -> np.ndarray:
        return np.where(
            x < 0, np.exp(np.minimum(x, 0) / width) / 2, 1 - np.exp(-np.abs(x) / width) / 2
        )

    # By symmetry on the left, where float64 keeps the tail.
    left = -np.abs(x)
    expected = -np.log(below(left + 0.5) - below(left - 0.5))
    found = nats(jnp.asarray(x, jnp.float32), jnp.log(jnp.float32(width)))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    gradient = jax.vmap(jax.grad(nats), (0, None))(jnp.asarray(x, jnp.float32), jnp.log(width))
    assert np.isfinite(np.asarray(gradient)).all()


def test_the_smooth_rate_is_the_mean_over_noise() -> None:
    w = {"w": jnp.linspace(-1, 1, 1000)}
    coded = rate_coded(w)
    keys = jax.random.split(jax.random.key(0), 64)
    found = np.asarray(jax.jit(jax.vmap(coded.bits))(keys))
    u = (np.arange(512) + 0.5) / 512 - 0.5
    x = np.asarray(in_steps(w["w"], coded.log_steps["w"]))[:, None] + u
    width = coded.log_widths["w"]
    exact = float(nats(jnp.asarray(x, jnp.float32), width).mean(1).sum()) / np.log(2)
    # Every sample spreads its noise evenly: far closer than the 64 of independent noise would be.
    assert found.mean() == pytest.approx(exact, rel=1e-3)
    assert found.std() / exact < 5e-3


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_weights_are_what_the_file_holds(bits: int) -> None:
    params = {"a": {"kernel": jax.random.normal(jax.random.key(0), (30, 7))}, "b": jnp.zeros(5)}
    coded = rate_coded(params, bits=bits)
    weights = jax.jit(lambda coded: coded.weights)(coded)
    for name, value in (("a/kernel", weights["a"]["kernel"]), ("b", weights["b"])):
        tensor = coded.tensors[name]
        assert np.array_equal(to_numpy(tensor), value)
        assert np.abs(tensor.values).max() <= 2 ** (bits - 1) - 1
        assert tensor.bits == bits


def test_gradients_pass_rounding_and_reach_the_step() -> None:
    w = jnp.array([0.1, -0.26, 0.5, 40.0])
    coded = rate_coded({"w": w}, bits=4)
    coded = dataclasses.replace(coded, log_steps={"w": jnp.log(jnp.float32(0.125))})
    g = jnp.array([1.0, 2.0, 3.0, 4.0])
    found = jax.grad(lambda coded: coded.weights["w"] @ g)(coded)
    assert found.params["w"].tolist() == [1, 2, 3, 0]  # the last is clipped
    scaled = np.array([0.8, -2.08, 4.0, 40 / 0.125])
    q = np.array([1, -2, 4, 7])
    expected = (np.where(np.arange(4) < 3, q - scaled, 7) * g).sum() * 0.125  # by log s: times s
    assert float(found.log_steps["w"]) == pytest.approx(float(expected), rel=1e-5)


def test_under_jit_vmap_and_grad_once_compiled() -> None:
    params = {"kernel": jax.random.normal(jax.random.key(0), (6, 5, 4))}
    many = jax.vmap(lambda w: rate_coded({"kernel": w}))(params["kernel"])

    def loss(coded: Any, key: Any) -> Any:
        return (coded.weights["kernel"] ** 2).sum() + coded.bits(key)

    once = chex.assert_max_traces(loss, n=1)
    every = jax.jit(jax.vmap(jax.value_and_grad(once)))
    keys = jax.random.split(jax.random.key(1), 6)
    values, gradients = every(many, keys)
    every(jax.tree.map(lambda a: a + 1e-3, many), keys)
    one = jax.tree.map(lambda a: a[2], many)
    value, gradient = jax.value_and_grad(loss)(one, keys[2])
    assert float(values[2]) == pytest.approx(float(value), rel=1e-5)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a[2], b, rtol=1e-4, atol=1e-4)


def test_steps_do_not_decay_and_optimiser_states_are_lifted() -> None:
    params = {"w": jnp.ones((3, 2)), "steps": jnp.zeros((), jnp.int32)}
    coded, tx = rate_coded(params), optax.adamw(0.1, weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, coded)
    updates, _ = tx.update(zeros, tx.init(coded), decaying(coded))
    assert float(updates.log_steps["w"]) == 0 and (np.asarray(updates.params["w"]) < 0).all()
    found, wanted = lifted(tx.init(params), params, coded), tx.init(coded)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    with pytest.raises(ValueError, match="no parameter is coded"):
        rate_coded({"steps": jnp.zeros((), jnp.int32)})
    with pytest.raises(ValueError, match="bits 16"):
        rate_coded(params, bits=16)


# Integers in graphs.


def test_folded_factors_become_scales() -> None:
    q = RNG.integers(-3, 4, (8, 5)).astype(np.int8)
    q[:, 3] = 0
    known = QuantizedTensor(q, np.float32(0.25), 4, None)
    factors = np.array([1.0, -2.0, 0.3, 1.7, 1e-3], np.float32)
    stored = to_numpy(known) * factors

    def graph_of(w: np.ndarray) -> Graph:
        return trace((lambda p, x: x @ p["w"], {"w": w}), np.ones((1, 8), np.float32))

    (weight,) = with_integers(graph_of(stored), {"w": known}).weights()
    assert isinstance(weight.stored, QuantizedTensor)
    np.testing.assert_allclose(to_numpy(weight.stored), stored, rtol=2**-8)
    (same,) = with_integers(graph_of(to_numpy(known)), {"w": known}).weights()
    assert same.stored is known
    (other,) = with_integers(graph_of(stored + 0.01), {"w": known}).weights()
    assert isinstance(other.stored, np.ndarray)  # nothing is lost: it is quantised as ever


# Runs.


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "chain", "low-rank", "seeded", "ares-bp"])
def test_a_coded_run_ships_its_integers(method: str, tmp_path: Path) -> None:
    settings = config(method=method, parallel_epochs=1.5, epochs=12, rate_lambda=0.02)
    result = run.train(settings, tmp_path, data=(X, Y))
    assert result["test_accuracy"] > 0.9
    model = load(tmp_path)
    coded = [w.stored for w in model.graph.weights() if isinstance(w.stored, QuantizedTensor)]
    assert coded and all(stored.bits == 8 and stored.axis is None for stored in coded)
    rows = run.evaluate_folder(tmp_path, data=save_npz(tmp_path))
    assert rows["file_bytes"] == result["file_bytes"] == (tmp_path / run.MODEL).stat().st_size
    plain = run.train(
        config(method=method, rate_lambda=0.0, epochs=2), tmp_path / "plain", data=(X, Y)
    )
    assert result["file_bytes"] < 0.8 * plain["file_bytes"]


def save_npz(folder: Path) -> str:
    np.savez(folder / "data.npz", x=X, y=Y)
    return str(folder / "data.npz")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["build", "build_linen"])
def test_a_users_model_is_coded(model: str, tmp_path: Path) -> None:
    own = str(Path(own_parts.__file__))
    settings = config(model=f"{own}:{model}", hidden=None, method="chain", epochs=10)
    result = run.train(dataclasses.replace(settings, rate_lambda=0.01), tmp_path, data=(X, Y))
    assert result["test_accuracy"] > 0.8
    graph = load(tmp_path).graph
    assert sum(isinstance(w.stored, QuantizedTensor) for w in graph.weights()) > 3


@pytest.mark.slow
def test_normalised_convolutions_keep_their_integers(tmp_path: Path) -> None:
    """Their factors are folded into the kernels, whose integers get them as scales."""
    x = RNG.normal(size=(300, 8, 8, 1)).astype(np.float32)
    y = (x[:, :4].mean((1, 2, 3)) > x[:, 4:].mean((1, 2, 3))).astype(np.int32)
    settings = config(
        model="resnet8", options=("width=4",), hidden=None, epochs=5, rate_lambda=0.001,
        learning_rate=1e-2,
    )  # fmt: skip
    result = run.train(settings, tmp_path, data=(x, y))
    kernels = [w for w in load(tmp_path).graph.weights() if len(w.shape) == 4]
    stored = [w.stored for w in kernels]
    assert all(isinstance(k, QuantizedTensor) and k.bits == 8 for k in stored)
    assert any(k.axis == 3 for k in stored)
    assert abs(result["validation_accuracy"] - final_validation(tmp_path, result)) <= 2 / 24


def final_validation(folder: Path, result: dict[str, Any]) -> float:
    """What training saw of the epoch that was kept."""
    rows = (folder / "history.csv").read_text().splitlines()
    at = rows[0].split(",").index("validation_accuracy")
    return float(rows[result["best_epoch"]].split(",")[at])


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"stream": "always"}, {"budget_bytes": 500}])
def test_resume_is_exact(settings: dict[str, Any], tmp_path: Path) -> None:
    given = config(data=save_npz(tmp_path), **settings)
    run.train(given, tmp_path / "whole")
    train_in_parts(given, tmp_path / "parts", 3)
    ours, theirs = (tmp_path / p / run.MODEL for p in ("parts", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_a_budget_is_kept_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_npz(tmp_path)
    for budget in (300, 400):
        settings = config(data=data, rate_lambda=0.0, budget_bytes=budget, epochs=30)
        result = run.train(settings, tmp_path / str(budget))
        assert 0.75 * budget < result["file_bytes"] <= budget
        assert result["test_accuracy"] > 0.9
    argv = ["--data", data, "--hidden", "24", "--method", "dense", "--epochs", "4", "--quiet"]
    done = call(capsys, "train", *argv, "--budget", "0.1KB", "--out", str(tmp_path / "small"))
    assert done.code == 1 and "more than the budget of 100" in done.err


@pytest.mark.slow
def test_the_smallest_file_of_a_metric(tmp_path: Path) -> None:
    settings = config(rate_lambda=0.0, min_metric=0.9, epochs=12)
    result = run.train(settings, tmp_path / "least", data=(X, Y))
    assert result["validation_accuracy"] >= 0.9
    usual = run.train(config(epochs=12, rate_lambda=0.006), tmp_path / "usual", data=(X, Y))
    assert result["file_bytes"] < usual["file_bytes"]


@pytest.mark.slow
def test_a_teacher_is_imitated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_npz(tmp_path)
    teacher = run.train(config(data=data, rate_lambda=0.0, epochs=10), tmp_path / "teacher")
    assert teacher["test_accuracy"] > 0.95
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, x=X, y=np.where(RNG.random(len(Y)) < 0.5, Y, RNG.permutation(Y)))
    argv = ["--data", str(wrong), "--hidden", "16", "--method", "dense", "--epochs", "12"]
    argv += ["--learning-rate", "0.01"]
    argv += ["--batch-size", "32", "--teacher", str(tmp_path / "teacher"), "--teacher-weight", "1"]
    done = call(capsys, "train", *argv, "--out", str(tmp_path / "pupil"), "--json", "--quiet")
    assert done.code == 0, done.err
    found = run.evaluate_folder(tmp_path / "pupil", data=data)
    assert found["test_accuracy"] > 0.95  # it saw none of the labels, of which a third is wrong
    assert json.loads(done.out)["test_accuracy"] < 0.8


def test_what_cannot_be_coded_is_refused() -> None:
    with pytest.raises(ValueError, match="rate coding quantises itself"):
        config(quantization_aware=True)
    with pytest.raises(ValueError, match="restrict-rank"):
        config(method="restrict-rank")
    with pytest.raises(ValueError, match="none beside budget_bytes"):
        config(budget_bytes=100, min_metric=0.9)
    with pytest.raises(ValueError, match="teacher_weight"):
        config(teacher_weight=1.5)


# Sweeps.


@pytest.mark.slow
def test_members_of_a_sweep_are_runs(tmp_path: Path) -> None:
    axes = {"rate_lambda": {"grid": [0.02, 0.1]}, "rank": {"grid": [2, 3]}}
    base = config(method="chain", hidden=(16,), epochs=4)
    done = sweep(axes, (X, Y), base, out=tmp_path / "sweep", models=True)
    sizes = [
        (model_folder(tmp_path / "sweep", i) / "model.rosler").stat().st_size for i in range(4)
    ]
    assert sizes == [row["file_bytes"] for row in done.rows]
    assert [row["status"] for row in done.rows] == ["done"] * 4
    assert len({row["program"] for row in done.rows}) == 2  # lambda is data, a rank is not
    for row in done.rows[:2]:
        settings = dataclasses.replace(base, rate_lambda=row["rate_lambda"], rank=row["rank"])
        result = run.train(settings, tmp_path / str(row["member"]), data=(X, Y))
        assert row["file_bytes"] == pytest.approx(result["file_bytes"], rel=0.01)
        assert row["test_accuracy"] == pytest.approx(result["test_accuracy"], abs=0.02)
    with pytest.raises(SweepError, match="budget_bytes"):
        sweep(axes, (X, Y), dataclasses.replace(base, budget_bytes=500), out=tmp_path / "no")
    with pytest.raises(SweepError, match="after its switch"):
        sweep(axes, (X, Y), dataclasses.replace(base, method="ares-bp"), out=tmp_path / "no")


# Augmentation.


@pytest.mark.parametrize("shape", [(4, 9, 11), (2, 8, 8, 3)])
def test_warped_images_are_images(shape: tuple[int, ...]) -> None:
    x = jnp.asarray(RNG.integers(0, 255, shape), jnp.uint8)
    same = augment.warp(jax.random.key(0), x)
    np.testing.assert_allclose(same, x, atol=1e-3)
    quarter = augment._read_at(x.astype(jnp.float32), *map(jnp.asarray, _turned(shape)))
    np.testing.assert_allclose(quarter, np.flip(np.asarray(x, np.float32), (1, 2)), atol=1e-3)
    bent = augment.warp(jax.random.key(1), x, rotate=20.0, zoom=0.2, elastic=1.0)
    assert bent.shape == x.shape and bent.dtype == jnp.float32
    assert float(bent.min()) >= 0 and float(bent.max()) <= 255
    assert not np.allclose(bent[0], bent[1])


def _turned(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Places that turn images by half a turn."""
    rows, columns = np.meshgrid(*(np.arange(n)[::-1] for n in shape[1:3]), indexing="ij")
    return tuple(
        np.broadcast_to(a, (shape[0], *a.shape)).astype(np.float32) for a in (rows, columns)
    )  # type: ignore[return-value]
