"""One training run as pure functions: it learns, is pure, vmaps, stops well."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rosler_jax import augment
from rosler_jax.config import TrainConfig, from_dict, to_dict
from rosler_jax.fit import (
    Arrays,
    Fit,
    evaluate,
    fit,
    is_settled,
    learner_of,
    make_fit,
    settle,
    steps_of,
)
from rosler_jax.hyper import hyper_of
from rosler_jax.learner import Learner
from rosler_jax.methods import METHODS
from rosler_jax.units import PLAIN

FEATURES, CLASSES = 24, 3


def blobs(n: int = 256, seed: int = 0) -> Arrays:
    """Three well separated clouds: what any method must learn."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, FEATURES))
    y = rng.integers(0, CLASSES, n)
    x = (centres[y] + 0.3 * rng.normal(size=(n, FEATURES))).astype(np.float32)
    x, y = jnp.asarray(x), jnp.asarray(y, jnp.int32)
    return Arrays(x, y, x[:64], y[:64])


def tiny(**settings: object) -> TrainConfig:
    defaults: dict[str, object] = {"hidden": (32, 16), "rank": 4, "epochs": 4, "batch_size": 32}
    return TrainConfig(**{**defaults, **settings})  # type: ignore[arg-type]


def learner(config: TrainConfig) -> Learner:
    shapes = SimpleNamespace(train_x=np.zeros((1, FEATURES), np.float32), num_classes=CLASSES)
    return learner_of(config, shapes)


def functions_of(config: TrainConfig, arrays: Arrays, jit: Any = jax.jit) -> tuple[Fit, Any]:
    """The functions of a run, and its epoch of state and arrays."""
    functions = make_fit(config, learner(config), len(arrays.train_x))
    run = jit(lambda state, arrays: functions.epoch(state, arrays, hyper_of(config), PLAIN))
    return functions, run


def run_tiny(config: TrainConfig, arrays: Arrays, seed: int = 0):
    model = learner(config)
    return jax.jit(lambda key: fit(config, model, arrays, key))(jax.random.key(seed))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(method: str) -> None:
    state, metrics = run_tiny(tiny(method=method, epochs=12), blobs())
    assert bool(metrics.finite.all())
    assert float(state.best_score) > 0.95  # chance is 1/3
    assert float(metrics.loss[-1]) < 0.8 * float(metrics.loss[0])


@pytest.mark.slow
def test_an_epoch_compiles_once() -> None:
    config, arrays = tiny(method="ares-bp", epochs=3, parallel_epochs=1.5), blobs()
    once = lambda f: jax.jit(chex.assert_max_traces(f, n=1))
    functions, epoch = functions_of(config, arrays, once)
    state = functions.init(jax.random.key(0))
    for _ in range(3):
        state, _ = epoch(state, arrays)
    flags = [layer["parallel"] for layer in state.params["hidden"].values() if "parallel" in layer]
    assert len(flags) == 2
    assert all(float(flag) == 0.0 for flag in flags)  # past the switch, in mid-epoch


@pytest.mark.slow
def test_members_under_vmap_equal_single_runs() -> None:
    config, arrays = tiny(method="chain", epochs=2), blobs()
    model = learner(config)
    keys = jax.random.split(jax.random.key(3), 3)
    many = jax.jit(jax.vmap(lambda key: fit(config, model, arrays, key)))(keys)
    one = jax.jit(lambda key: fit(config, model, arrays, key))(keys[1])
    # The same arithmetic in another order: float32 rounding grown over 16 steps of Adam.
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], many[1].loss), one[1].loss, rtol=2e-3)


def test_a_diverging_epoch_is_undone() -> None:
    config, arrays = tiny(method="chain"), blobs()
    functions, epoch = functions_of(config, arrays)
    state, _ = epoch(functions.init(jax.random.key(0)), arrays)
    bad = arrays._replace(train_x=arrays.train_x.at[0, 0].set(jnp.nan))
    after, metrics = epoch(state, bad)
    assert not bool(metrics.finite)
    chex.assert_trees_all_equal(after, state)


def test_best_parameters_are_those_of_the_best_epoch() -> None:
    config, arrays = tiny(method="dense", epochs=5), blobs()
    functions, epoch = functions_of(config, arrays)
    state = functions.init(jax.random.key(0))
    seen = []
    for _ in range(5):
        state, metrics = epoch(state, arrays)
        seen.append((float(metrics.validation["accuracy"]), state.params))
    best = max(range(5), key=lambda i: (seen[i][0], i))
    assert int(state.best_epoch) == best + 1
    chex.assert_trees_all_equal(state.best_params, seen[best][1])


@pytest.mark.slow
def test_nothing_from_the_parallel_stage_can_become_the_best_model() -> None:
    config, arrays = tiny(method="ares-bp", epochs=4, parallel_epochs=2.5), blobs()
    functions, epoch = functions_of(config, arrays)
    state = functions.init(jax.random.key(0))
    eligible = []
    for _ in range(4):
        state, _ = epoch(state, arrays)
        eligible.append(int(state.best_epoch) > 0)
    assert eligible == [False, False, True, True]  # the switch lies inside the third epoch


@pytest.mark.slow
def test_quantisation_aware_training_reports_the_quantised_net() -> None:
    config, arrays = tiny(method="seeded", bits=3, quantization_aware=True, epochs=12), blobs()
    state, metrics = run_tiny(config, arrays)
    from rosler_jax.quantization import fake_quantize_params

    functions, _ = functions_of(config, arrays)
    params = fake_quantize_params(state.best_params, 3)
    predict = lambda x: functions.outputs(params, state.best_buffers, x, PLAIN)
    accuracy = evaluate(predict, arrays.validation_x, arrays.validation_y)[1]["accuracy"]
    assert float(accuracy) == pytest.approx(float(state.best_score), abs=1 / 64)
    assert int(state.best_epoch) > 6  # not before quantisation began
    assert float(accuracy) > 0.9
    assert bool(metrics.finite.all())


def test_mixed_precision_keeps_float32_parameters() -> None:
    state, metrics = run_tiny(tiny(method="chain", precision="bfloat16", epochs=6), blobs())
    assert {str(x.dtype) for x in jax.tree.leaves(state.params)} == {"float32"}
    assert float(metrics.validation["accuracy"][-1]) > 0.9


@pytest.mark.parametrize("n", [1, 7, 1000, 1001])
def test_evaluate_counts_every_example_once(n: int) -> None:
    rng = np.random.default_rng(n)
    logits, y = rng.normal(size=(n, 5)).astype(np.float32), rng.integers(0, 5, n)
    loss, metrics = evaluate(lambda x: x, jnp.asarray(logits), jnp.asarray(y))
    assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(-1) == y).mean(), abs=1e-6)
    reference = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), jnp.asarray(y))
    assert float(loss) == pytest.approx(float(reference.mean()), rel=1e-5)


def test_shift_moves_and_pads() -> None:
    x = jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1).repeat(50, 0)
    out = np.asarray(augment.shift(jax.random.key(0), x, 1))[..., 0]
    padded = np.pad(np.asarray(x[0, ..., 0]), 1)
    windows = {padded[i : i + 4, j : j + 4].tobytes() for i in range(3) for j in range(3)}
    assert {image.tobytes() for image in out} == windows  # 50 draws of 9: each seen, but for 2.5 %


def test_flip_mirrors_about_half() -> None:
    x = jnp.arange(6.0).reshape(1, 2, 3).repeat(400, 0)
    out = np.asarray(augment.flip(jax.random.key(1), x))
    mirrored = (out == np.asarray(x)[:, :, ::-1]).all((1, 2))
    assert ((out == np.asarray(x)).all((1, 2)) ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / 20  # five standard deviations of 400 coins


def test_noise_has_the_asked_deviation() -> None:
    out = augment.noise(jax.random.key(2), jnp.zeros((100, 100), jnp.uint8), 3.0)
    assert float(out.std()) == pytest.approx(3.0, rel=5 / np.sqrt(2 * 10_000))


def test_config_round_trip_and_refusals() -> None:
    config = tiny(method="seeded", in_sketch=12)
    assert from_dict(to_dict(config)) == config
    with pytest.raises(ValueError, match="rank=0"):
        tiny(rank=0)
    with pytest.raises(ValueError, match="method 'magic' is unknown"):
        tiny(method="magic")
    with pytest.raises(ValueError, match="parallel_epochs"):
        tiny(method="ares-bp", epochs=1, parallel_epochs=1.0)
    with pytest.raises(ValueError, match="unknown config field"):
        from_dict({"ranks": 3})


def test_batch_larger_than_the_data_is_refused() -> None:
    config = tiny(batch_size=1000)
    with pytest.raises(ValueError, match="batch_size 1000 exceeds the 256"):
        make_fit(config, learner(config), 256)


def test_an_epoch_may_take_some_of_the_examples() -> None:
    arrays = blobs()
    count = arrays.train_x.shape[0]
    config = tiny(method="dense", epochs=3, batch_size=8, epoch_examples=24)
    functions, epoch = functions_of(config, arrays)
    state = functions.init(jax.random.key(0))
    orders = []
    for _ in range(2):
        orders.append(np.asarray(functions.parts.begin(state).order))
        state, _ = epoch(state, arrays)
    assert [order.shape for order in orders] == [(3, 8)] * 2
    assert all(len(np.unique(order)) == 24 for order in orders)
    assert (orders[0] != orders[1]).any()  # drawn anew
    whole = tiny(method="dense", batch_size=8, epoch_examples=10 * count)
    assert steps_of(whole, count) == count // 8
    with pytest.raises(ValueError, match="exceeds the 4 examples of an epoch"):
        steps_of(tiny(batch_size=8, epoch_examples=4), count)


@pytest.mark.slow
def test_a_run_is_the_same_whatever_keys_jax_makes_by_default() -> None:
    from rosler_jax.fit import run_key

    config, arrays = tiny(method="chain", epochs=1), blobs()
    model = learner(config)
    run = lambda: jax.jit(lambda key: fit(config, model, arrays, key)[0].params)(run_key(0))
    want = run()
    with jax.default_prng_impl("rbg"):
        jax.tree.map(np.testing.assert_array_equal, run(), want)
        jax.eval_shape(lambda key: fit(config, model, arrays, key), jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("quantization_aware", [False, True])
def test_two_programs_end_where_one_does(quantization_aware: bool) -> None:
    settings = {"parallel_epochs": 1.5, "epochs": 4, "bits": 8, "quantize_from": 0.75}
    config = tiny(method="ares-bp", quantization_aware=quantization_aware, **settings)
    arrays, model = blobs(), learner(config)
    count = len(arrays.train_x)
    functions, epoch = functions_of(config, arrays)
    start = functions.init(jax.random.key(0))
    one = start
    for _ in range(4):
        one, last = epoch(one, arrays)
    assert [is_settled(config, count, n) for n in range(4)] == [False, False, True, True]
    chain, after, convert = settle(config, model, count)
    two = start
    for _ in range(2):
        two, _ = epoch(two, arrays)
    two = convert(two)
    run = jax.jit(lambda state: after.epoch(state, arrays, hyper_of(config), PLAIN))
    for _ in range(2):
        two, ends = run(two)
    # The same steps without columns that are zero: rounding alone, over 16 of them.
    chex.assert_trees_all_close(ends, last, rtol=2e-3)
    shipped = [
        METHODS["ares-bp"].ship(m, s.best_params, s.best_buffers, not quantization_aware)
        for m, s in ((model, one), (chain, two))
    ]
    outputs = [np.asarray(m(arrays.validation_x)) for m in shipped]
    np.testing.assert_allclose(*outputs, rtol=1e-2, atol=1e-2)
    assert not any("seed" in str(path) for path, _ in jax.tree.leaves_with_path(two.buffers))
