"""The baselines of scripts/baselines, on toy data: what their papers say that they do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "scripts"))

from baselines import deep_compression, dlrt, files, imp, library, masks, snip, svd, training

from rosler_jax.config import TrainConfig

pytestmark = pytest.mark.slow  # of the scripts of benchmarks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 500)
    x = rng.normal(120, 30, (500, 8, 8)) + 60 * np.eye(4)[y].repeat(16, 1).reshape(500, 8, 8)
    path = tmp_path_factory.mktemp("toy") / "toy.npz"
    arrays = np.clip(x, 0, 255).astype(np.uint8), y.astype(np.int32)
    names = "x_train", "y_train", "x_test", "y_test"
    parts = arrays[0][:400], arrays[1][:400], arrays[0][400:], arrays[1][400:]
    np.savez(path, **dict(zip(names, parts, strict=True)))
    return str(path)


def problem_of(data: str, **changes: Any) -> Any:
    fields = {"hidden": (24, 16), "method": "dense", "epochs": 3, "batch_size": 40}
    fields["learning_rate"] = 1e-2
    return training.prepared(TrainConfig(data=data, **{**fields, **changes}))


@pytest.fixture(scope="module")
def problem(data: str) -> Any:
    return problem_of(data)


@pytest.fixture(scope="module")
def dense(problem: Any) -> Any:
    return training.train_as_library(problem)


def test_lottery_tickets_have_the_asked_sparsity_and_stay_zero(problem: Any, dense: Any) -> None:
    found = imp.rounds(problem, dense, 0.5)
    first, _ = next(found)
    second, trained = next(found)
    counts = [np.asarray(m["hidden"][0]["kernel"]).sum() for m in (first, second)]
    assert counts == [64 * 24 // 2, 64 * 24 // 4]
    assert second["head"]["kernel"].sum() == round(0.75 * round(0.75 * 16 * 4))
    assert not np.any((second["hidden"][0]["kernel"] > 0) & (first["hidden"][0]["kernel"] == 0))
    kernel = trained.params["hidden"][0]["kernel"]
    assert np.array_equal(kernel != 0, second["hidden"][0]["kernel"] > 0)


def test_magnitude_masks_keep_the_largest() -> None:
    params = {"layer": {"kernel": np.array([[1.0, -4.0], [3.0, -2.0]]), "bias": np.zeros(2)}}
    once = imp.pruned_more(params, masks.whole(params), 0.5)
    assert once["layer"]["kernel"].tolist() == [[0, 1], [1, 0]]
    assert once["layer"]["bias"].tolist() == [1, 1]
    assert imp.pruned_more(params, once, 0.5)["layer"]["kernel"].tolist() == [[0, 1], [0, 0]]


def test_saliency_is_the_change_of_the_loss_with_a_connection(problem: Any) -> None:
    params, arrays = training.initial(problem), problem.arrays
    loss = training.loss_of(problem)
    along = jax.jit(lambda p: loss(p, arrays.train_x[:64], arrays.train_y[:64], problem.units))
    scores = snip.saliency(along, params)
    kernel = params["hidden"][0]["kernel"]
    for i, j in ((3, 2), (30, 11), (63, 23)):
        changed = [
            {**params, "hidden": {**params["hidden"], 0: {
                **params["hidden"][0], "kernel": kernel.at[i, j].multiply(1 + step)}}}
            for step in (0.05, -0.05)
        ]  # fmt: skip
        slope = abs(float(along(changed[0]) - along(changed[1]))) / 0.1
        assert scores["hidden"][0]["kernel"][i, j] == pytest.approx(slope, rel=0.05, abs=1e-5)


def test_single_shot_masks_are_global_and_kept(problem: Any) -> None:
    chosen, trained = snip.pruned_at_start(problem, 0.1)
    total = 64 * 24 + 24 * 16 + 16 * 4
    assert masks.kept(chosen) == pytest.approx(round(0.1 * total) / total)
    for name in (0, 1):
        kernel, mask = (t["hidden"][name]["kernel"] for t in (trained.params, chosen))
        assert np.array_equal(np.asarray(kernel) != 0, np.asarray(mask) > 0)


def test_factors_are_the_best_of_their_rank() -> None:
    w = np.random.default_rng(1).normal(size=(9, 7))
    c, r = svd.factors(w, 3)
    tail = np.linalg.svd(w, compute_uv=False)[3:]
    assert np.linalg.norm(w - c @ r) == pytest.approx(np.sqrt((tail**2).sum()))
    assert np.allclose(c.T @ c, r @ r.T)


def test_a_net_of_low_rank_is_its_decomposition(data: str, problem: Any, dense: Any) -> None:
    thin = problem_of(data, method="low-rank", rank=6)
    hidden = {
        name: {**part, "kernel": np.matmul(*svd.factors(part["kernel"], 6))}
        for name, part in dense.params["hidden"].items()
    }
    whole = {**dense.params, "hidden": hidden}
    params = svd.factored(whole, training.initial(thin))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8, 8)), jnp.float32)
    wanted = problem.learner.apply(whole, {}, x, False)[0]
    assert np.allclose(thin.learner.apply(params, {}, x, False)[0], wanted, atol=1e-4)
    assert svd.decomposed(thin, dense, training.initial(thin)).validation > 0.8


def _kls(key: int = 0) -> Any:
    a, b, c, x = (jax.random.normal(k, s) for k, s in zip(
        jax.random.split(jax.random.key(key), 4), ((12, 3), (3, 9), (12, 9), (64, 12)), strict=True
    ))  # fmt: skip
    target = x @ c
    loss = lambda products, rest: ((x @ products[0][0] @ products[0][1] - target) ** 2).mean()
    return loss, {0: dlrt.layer_of(a, b)}, lambda w: loss({0: (w, jnp.eye(9))}, {})


def _whole(layer: Any) -> Any:
    u, s, v, _ = layer
    return u @ s @ v.T


@pytest.mark.parametrize("tolerance", [None, 0.02])
def test_kls_keeps_bases_orthonormal_and_lowers_the_loss(tolerance: float | None) -> None:
    loss, layers, whole = _kls()
    if tolerance is not None:  # room to grow: columns that are not in use
        u, s, v, live = layers[0]
        wide = lambda w: jnp.pad(w, ((0, 0), (0, 1)))
        layers = {0: (wide(u), jnp.pad(s, (0, 1)), wide(v), jnp.pad(live, (0, 1)))}
    before = float(whole(_whole(layers[0])))
    step = jax.jit(lambda layers: dlrt.kls_step(loss, layers, {}, 0.5, tolerance)[0])
    for _ in range(30):
        layers = step(layers)
    u, _, v, live = layers[0]
    for basis in (u, v):
        assert np.allclose(basis.T @ basis, np.diag(live), atol=1e-5)
    assert whole(_whole(layers[0])) < 0.6 * before
    assert int(live.sum()) == (3 if tolerance is None else 4)


@pytest.mark.parametrize("tolerance", [None, 0.0])
def test_a_small_kls_step_is_the_projected_gradient_step(tolerance: float | None) -> None:
    jax.config.update("jax_enable_x64", True)
    try:
        loss, layers, whole = _kls()
        w, (u, _, v, _) = _whole(layers[0]), layers[0]
        g, pu, pv = jax.grad(whole)(w), u @ u.T, v @ v.T
        wanted = pu @ g + g @ pv - pu @ g @ pv
        step = jax.jit(lambda rate: dlrt.kls_step(loss, layers, {}, rate, tolerance)[0])
        apart = []
        for rate in (1e-3, 1e-4):
            new = step(rate)
            apart.append(float(jnp.linalg.norm((w - _whole(new[0])) / rate - wanted)))
        assert apart[1] < 0.2 * apart[0]  # what is left is of second order
        assert apart[1] < 1e-2 * float(jnp.linalg.norm(wanted))
    finally:
        jax.config.update("jax_enable_x64", False)


def test_a_tolerance_cuts_the_rank() -> None:
    u, _, v, _ = dlrt.layer_of(jnp.eye(8, 4), jnp.eye(4, 6))
    sizes = jnp.diag(jnp.array([4.0, 3.0, 0.1, 0.01]))
    new = dlrt.truncated(u, sizes, v, 0.05, 4)
    assert int(new[3].sum()) == 2
    assert float(jnp.linalg.norm(_whole(new) - u @ sizes @ v.T)) <= 0.05 * 5


def test_dynamical_training_learns_and_ships_its_ranks(data: str) -> None:
    thin = problem_of(data, method="low-rank", rank=6, learning_rate=0.2, epochs=6)
    found = dlrt.low_rank_trained(thin, training.initial(thin), 0.3)
    assert found.validation > 0.8
    shapes = [w.shape for w in files.matrices(files.graph_of(thin, found.params))]
    assert {rank for shape in shapes for rank in shape} >= set(dlrt.ranks(found))


def test_k_means_and_codes() -> None:
    weights = np.array([[0.9, -1.1, 0.02], [1.1, -0.9, 0.5]], np.float32)
    mask = np.array([[1, 1, 0], [1, 1, 1]], np.float32)
    codes, book = deep_compression.coded(weights, mask, 4)
    zero = int(np.flatnonzero(book == 0)[0])
    values = np.where(codes == 0, 0, book[codes.astype(int) + zero])
    assert np.allclose(values, [[1, -1, 0], [1, -1, 0.5]])
    assert codes[0, 2] == 0 and (codes != 0).sum() == 5
    assert np.array_equal(deep_compression.k_means(np.array([1.0, 1.0, 3.0]), 2), [1, 3])


@pytest.mark.slow
def test_deep_compression_files_hold_the_centroids(
    problem: Any, dense: Any, tmp_path: Path
) -> None:
    keep = {"hidden/0": 0.2, "hidden/1": 0.3, "head": 0.5}
    params, fixed, books = deep_compression.compressed(problem, problem, dense, keep, 8)
    shipped = deep_compression.shipped(problem, params, fixed, books)
    row = files.measured(problem, shipped, tmp_path / "m.rosler")
    assert row["bytes"] == (tmp_path / "m.rosler").stat().st_size
    assert row["weights"] <= 0.2 * 64 * 24 + 0.3 * 24 * 16 + 0.5 * 64 + 3
    model = files.load(tmp_path / "m.rosler")
    for name, weight in ((w.name, w) for w in deep_compression.restored(model).weights()):
        if name in books:
            assert set(np.unique(weight.values)) <= {0.0, *books[name].astype(np.float32).tolist()}
    exact = deep_compression.with_values(
        params, fixed, {name: np.float32(book) for name, book in books.items()}
    )
    whole = files.Shipped(files.graph_of(problem, exact), 32, False)
    uncoded = files.measured(problem, whole, tmp_path / "whole.rosler")
    assert abs(row["test_error"] - uncoded["test_error"]) <= 1  # biases of 16 bits


def test_files_give_the_accuracy_of_what_was_trained(
    problem: Any, dense: Any, tmp_path: Path
) -> None:
    row = files.measured(problem, library.shipped(problem, dense, 32), tmp_path / "m.rosler")
    assert row["validation_error"] == pytest.approx(100 * (1 - dense.validation), abs=1e-4)
    coded = files.measured(problem, library.shipped(problem, dense, 4, True), tmp_path / "c.rosler")
    assert coded["bytes"] < row["bytes"] / 4
