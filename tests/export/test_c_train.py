"""Exported C that trains: gradients, steps, fixed point, both stages, and weights kept safe."""

from __future__ import annotations

import ast
import dataclasses
import functools
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exported_models import Specs, conv, linear, make_model, of, sketched, sketched_conv

import rosler_kernels as rk
from rosler_jax.export import firmware
from rosler_jax.export._errors import ExportError
from rosler_jax.export.c.train import (
    Parallel,
    Training,
    TrainSource,
    parallel_graph,
    write_training,
)
from rosler_jax.export.c.train import fixed as spec
from rosler_jax.export.c.train.fixed_lowering import lower_training
from rosler_jax.export.c.train.fixed_source import write_plan
from rosler_jax.export.c.train.job import Trained, train_in_c
from rosler_jax.export.c.train.memory import Node, lay_out
from rosler_jax.export.c.train.parts import parameters_of, trained_names
from rosler_jax.export.c.unit import FOLDERS
from rosler_jax.export.firmware import ToolchainError
from rosler_jax.export.firmware.host import FLAGS, SANITIZERS
from rosler_jax.export.inputs import quantized
from rosler_jax.factors import core_from_sketch
from rosler_jax.graph import Graph, Weight, compute, map_weights
from rosler_jax.graph import run as graph_run
from rosler_jax.graph.graph import op_weights
from rosler_jax.nn._ares import ares_product
from rosler_jax.nn.lifts import DenseLift

INPUTS, CLASSES = 20, 5
CE = "cross_entropy"
TOLERANCE = 5e-6  # relative, in the norm of a parameter's gradient

SEEDED = {"mode": "seeded"}
NETWORKS = {
    "every operation": [
        of("standardize", mean=0.1, std=2.0), of("flatten"), sketched(20, 24, **SEEDED), of("relu"),
        of("two_factor", in_features=24, out_features=16, rank=3), of("gelu"), sketched(16, 12, 3),
        of("tanh"), linear(12, 5),
    ],
    "dense": [linear(20, 9), of("relu"), linear(9, 5, use_bias=False)],
    "signs": [
        sketched(20, 32, sketch="rademacher", **SEEDED), of("relu"),
        sketched(32, 21, sketch="sparse_sign", **SEEDED), of("tanh"),
        sketched(21, 5, sketch="rows_uniform", **SEEDED),
    ],
    "cosines and sums": [
        sketched(20, 24, sketch="dct:4x5/pool:4x6", **SEEDED), of("relu"),
        sketched(24, 30, sketch="pool:4x3/dct:5x6", **SEEDED), of("tanh"),
        sketched(30, 5, sketch="dct", **SEEDED),
    ],
    "stored entries": [
        sketched(20, 16, sketch="block_perm", **SEEDED), of("relu"),
        sketched(16, 5, sketch="gaussian", **SEEDED),
    ],
}  # fmt: skip
"""Networks of 20 numbers and 5 classes."""

INTEGER_NETWORKS = {
    "every operation": [
        of("standardize", mean=0.1, std=2.0), sketched(20, 24, **SEEDED), of("relu"),
        of("two_factor", in_features=24, out_features=16, rank=3), of("relu"),
        sketched(16, 12, sketch="rademacher", **SEEDED), of("relu"), linear(12, 5),
    ],
    "dense": NETWORKS["dense"],
    "signs": [
        sketched(20, 30, sketch="sparse_sign", **SEEDED), of("relu"),
        sketched(30, 18, sketch="rows_uniform", **SEEDED), of("relu"),
        sketched(18, 5, sketch="block_perm", **SEEDED),
    ],
    "sums": [
        sketched(20, 30, sketch="pool:4x5/pool", **SEEDED), of("relu"),
        sketched(30, 5, sketch="pool", **SEEDED),
    ],
}  # fmt: skip

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
pytestmark = needs_gcc


def _why_no_firmware() -> str:
    try:
        firmware.find_toolchain()
    except ToolchainError as error:
        return str(error)
    return ""


needs_firmware = pytest.mark.skipif(bool(_why_no_firmware()), reason=_why_no_firmware())


def network(specs: Specs, seed: int = 0, shape: tuple[int, ...] | None = None) -> Graph:
    """The graph of layers; many tests ask for the same one."""
    return _network(repr(specs), seed, shape)


@functools.lru_cache
def _network(specs: str, seed: int, shape: tuple[int, ...] | None) -> Graph:
    specs = ast.literal_eval(specs)
    return parameters_of(make_model(specs, bits=32, shape=shape, seed=seed).graph)


def examples(steps: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clusters that can be told apart, and their labels."""
    rng = np.random.default_rng(seed)
    centers = 2.0 * rng.normal(size=(CLASSES, INPUTS))
    labels = rng.integers(0, CLASSES, (steps, count))
    x = centers[labels] + 0.7 * rng.normal(size=(steps, count, INPUTS))
    return x.astype(np.float32), labels


def parameters(graph: Graph) -> dict[str, Any]:
    """A graph's parameters by name, as its operations take them."""
    out: dict[str, Any] = {}
    for op in graph.ops:
        if isinstance(op, Parallel):
            out.update(zip(op.names, (op.c, op.a.T, op.r), strict=True))
        out |= {w.name: w.values for w in op_weights(op)}
    return {name: jnp.asarray(value) for name, value in out.items()}


def run(graph: Graph, params: Mapping[str, Any], x: Any, flag: float = 1.0) -> Any:
    """The reference with parameters put in; sketched layers by the library's own training code."""
    plain = map_weights(graph, lambda w: Weight(w.name, w.values))
    if not any(isinstance(op, Parallel) for op in graph.ops):
        return jax.vmap(lambda example: graph_run(plain, [example], params)[0])(jnp.asarray(x))
    y = jnp.asarray(x)
    for op in plain.ops:
        if isinstance(op, Parallel):
            c, u, r = (params[name] for name in op.names)
            y = ares_product(
                DenseLift(),
                y.reshape(len(x), -1),
                c,
                u[None],
                r[None],
                jnp.float32(flag),
                op.psi,
                op.omega,
            )[..., 0, :]
            y = y if op.bias is None else y + params[op.bias.name]
            continue
        y = jax.vmap(lambda y, op=op: compute.COMPUTE[type(op)](op, params, y))(
            y.reshape(len(x), *op.in_shape)
        )
    return y.reshape(len(x), *graph.out_shape)


def outputs(graph: Graph, x: Any) -> Any:
    """What a graph computes of a batch."""
    return jax.jit(lambda x: run(graph, {}, x))(x)


def cross_entropy(y: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(y, labels).mean()


def squares(y: Any, targets: Any) -> Any:
    return ((y - targets) ** 2).mean()


def assert_close(found: Mapping[str, Any], wanted: Mapping[str, Any], tolerance: float) -> None:
    for name, value in wanted.items():
        value = np.asarray(value, np.float64)
        # A kernel trains as its matrix.
        found_value = found[name].reshape(value.shape)
        error = np.linalg.norm(found_value - value) / (np.linalg.norm(value) + 1e-12)
        assert error < tolerance, f"{name}: relative error {error:.2g}"


# Gradients.


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_equal_jax(name: str) -> None:
    graph = network(NETWORKS[name])
    x, labels = examples(1, 6)
    source = write_training(graph, Training(momentum=0.0))
    found = train_in_c(source, x, labels, 0.0, predict=x[0], sanitize=True)
    params = parameters(graph)
    loss, wanted = jax.jit(
        jax.value_and_grad(lambda p: cross_entropy(run(graph, p, x[0]), labels[0]))
    )(params)
    assert found.velocity.keys() == wanted.keys()
    assert_close(found.velocity, wanted, TOLERANCE)
    np.testing.assert_allclose(found.losses, [loss], rtol=1e-5)
    np.testing.assert_allclose(found.outputs, outputs(graph, x[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["every operation", "dense"])
def test_gradients_of_squares_equal_jax(name: str) -> None:
    graph = network(NETWORKS[name])
    x, _ = examples(1, 4)
    targets = np.random.default_rng(1).normal(size=(1, 4, CLASSES)).astype(np.float32)
    source = write_training(graph, Training(momentum=0.0, loss="mse", batch=4))
    found = train_in_c(source, x, targets, 0.0, sanitize=True)
    loss, wanted = jax.jit(jax.value_and_grad(lambda p: squares(run(graph, p, x[0]), targets[0])))(
        parameters(graph)
    )
    assert_close(found.velocity, wanted, TOLERANCE)
    np.testing.assert_allclose(found.losses, [loss], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sketch", ["rademacher", "gaussian", "sparse_sign"])
def test_parallel_gradients_equal_the_librarys(sketch: str) -> None:
    plain = network(NETWORKS["every operation"])
    graph = parallel_graph(plain, seed=3, sketch=sketch)
    x, labels = examples(1, 6)
    source = write_training(plain, Training(momentum=0.0, stage="parallel"), seed=3, sketch=sketch)
    found = train_in_c(source, x, labels, 0.0, predict=x[0], sanitize=True)
    wanted = jax.jit(jax.grad(lambda p: cross_entropy(run(graph, p, x[0]), labels[0])))(
        parameters(graph)
    )
    # The core's solve loses digits by its condition, on the host as in C.
    assert_close(found.velocity, wanted, 2e-5)
    assert not found.velocity["parallel"].any()
    np.testing.assert_allclose(found.outputs, outputs(plain, x[0]), rtol=2e-2, atol=2e-2)


def test_a_wrong_gradient_would_be_seen() -> None:
    """The tolerance is far below what one forgotten term changes."""
    graph = network(NETWORKS["dense"])
    x, labels = examples(1, 6)
    found = train_in_c(write_training(graph, Training(momentum=0.0)), x, labels, 0.0)
    wrong = jax.jit(jax.grad(lambda p: cross_entropy(run(graph, p, x[0, :5]), labels[0, :5])))(
        parameters(graph)
    )
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(found.velocity, wrong, TOLERANCE)


# Steps.


def trained_by_optax(
    graph: Graph, x: np.ndarray, labels: np.ndarray, tx: optax.GradientTransformation,
    trained: frozenset[str], loss: Callable[[Any, Any], Any] = cross_entropy,
) -> dict[str, Any]:  # fmt: skip
    params = parameters(graph)
    frozen = {name: value for name, value in params.items() if name not in trained}
    params = {name: value for name, value in params.items() if name in trained}
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any, x: Any, labels: Any) -> Any:
        grads = jax.grad(lambda p: loss(run(graph, {**frozen, **p}, x), labels))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for each, label in zip(x, labels, strict=True):
        params, state = step(params, state, each, label)
    return params


@pytest.mark.parametrize(
    ("parts", "clip"),
    [("all", None), ("all", 0.5), ("cores", None), ("head", 0.5), (("biases", "4/c"), None)],
)
def test_steps_equal_optax(parts: Any, clip: float | None) -> None:
    graph = network(NETWORKS["every operation"])
    x, labels = examples(8, 6)
    source = write_training(graph, Training(parts=parts, clip=clip, batch=6))
    found = train_in_c(source, x, labels, 0.05, sanitize=True)
    trained = trained_names(graph, parts)
    assert set(found.weights) == trained
    first = optax.identity() if clip is None else optax.clip_by_global_norm(clip)
    tx = optax.chain(first, optax.sgd(0.05, momentum=0.9))
    assert_close(found.weights, trained_by_optax(graph, x, labels, tx, trained), 1e-4)


def test_one_example_a_step_needs_no_velocity() -> None:
    graph = network(NETWORKS["every operation"])
    x, labels = examples(9, 1)
    source = write_training(graph, Training(momentum=0.0, batch=1))
    assert source.state_bytes == 4 * sum(field.size for field in source.fields)
    found = train_in_c(source, x, labels, 0.03, sanitize=True)
    wanted = trained_by_optax(graph, x, labels, optax.sgd(0.03), trained_names(graph, "all"))
    assert_close(found.weights, wanted, 1e-4)


@pytest.mark.slow
def test_parallel_steps_keep_sketches_of_one_matrix() -> None:
    plain = network(NETWORKS["every operation"])
    graph = parallel_graph(plain)
    x, labels = examples(8, 6)
    found = train_in_c(write_training(plain, Training(stage="parallel", clip=1.0)), x, labels, 0.02)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.02, momentum=0.9))
    wanted = trained_by_optax(graph, x, labels, tx, frozenset(parameters(graph)))
    assert_close(found.weights, wanted, 1e-3)
    for op in graph.ops:
        if isinstance(op, Parallel):
            c, u, r = (found.weights[name] for name in op.names)
            psi, omega = (np.asarray(rk.materialize(s)) for s in (op.psi, op.omega))
            moved = np.linalg.norm(u - op.a.T)
            assert moved > 1e-3
            assert np.linalg.norm(psi.T @ c - u.T) < 1e-4 * moved + 1e-5
            assert np.linalg.norm(r @ omega - u.T) < 1e-4 * moved + 1e-5


@pytest.mark.slow
def test_the_switch_keeps_the_function_and_trains_on() -> None:
    plain = network(NETWORKS["every operation"])
    graph = parallel_graph(plain)
    x, labels = examples(6, 6)
    source = write_training(plain, Training(stage="parallel"))
    still = train_in_c(source, x[:5], labels[:5], 0.0, switch=4, predict=x[0])
    assert still.weights["parallel"] == 0.0
    untouched = train_in_c(source, x[:5], labels[:5], 0.0, predict=x[0])
    np.testing.assert_allclose(still.outputs, untouched.outputs, rtol=1e-4, atol=1e-4)
    for op in graph.ops:
        if isinstance(op, Parallel):
            c, u, r = (still.weights[name] for name in op.names)
            norms = [np.linalg.norm(v) for v in (c, u, r)]
            np.testing.assert_allclose(norms, norms[0], rtol=1e-4)
            core = np.asarray(core_from_sketch(jnp.asarray(op.a)))
            np.testing.assert_allclose(
                c @ u @ r, op.c @ core @ op.r, rtol=1e-3, atol=1e-3 * np.abs(c @ u @ r).max()
            )
    # After it the factors train by the chain: the same as JAX from the weights as they are then.
    after = train_in_c(source, x, labels, 0.0, switch=4)
    params = {name: jnp.asarray(v) for name, v in after.weights.items() if name != "parallel"}
    wanted = jax.jit(jax.grad(lambda p: cross_entropy(run(graph, p, x[5], flag=0.0), labels[5])))(
        params
    )
    velocity = {k: v - 0.9 * still.velocity[k] for k, v in after.velocity.items()}
    assert_close(velocity, wanted, 1e-4)


def test_core_solve_where_the_core_loses_rank() -> None:
    """A ridge keeps it bounded, as on the host."""
    graph = network([of("two_factor", in_features=20, out_features=CLASSES, rank=2)])
    first: Any = graph.ops[0]
    values = np.repeat(first.weight.values[:, :1], 2, axis=1)  # a matrix of rank 1
    changed = dataclasses.replace(first, weight=Weight(first.weight.name, values))
    graph = dataclasses.replace(graph, ops=(changed, graph.ops[1]))
    op = parallel_graph(graph).ops[0]
    assert isinstance(op, Parallel)
    assert np.linalg.matrix_rank(op.a, tol=1e-4) == 1
    source = write_training(graph, Training(stage="parallel"))
    found = train_in_c(source, *examples(1, 2), 0.0, switch=0, sanitize=True)
    c, u, r = (found.weights[name] for name in op.names)
    wanted = op.c @ np.asarray(core_from_sketch(jnp.asarray(op.a))) @ op.r
    np.testing.assert_allclose(c @ u @ r, wanted, atol=1e-3 * np.abs(wanted).max())


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "cross_entropy or mse"),
        ({"stage": "all"}, "successive or parallel"),
        ({"dtype": "int8"}, "float32 or fixed"),
        ({"batch": 0}, "batch 0"),
        ({"momentum": 1.0}, "momentum 1.0"),
        ({"clip": 0.0}, "clip 0.0"),
        ({"parts": "2/q"}, "'2/q' is no parameter"),
        ({"parts": "cores"}, "nothing to train"),
        ({"stage": "parallel"}, "no layer has two learnt factors"),
        ({"dtype": "fixed"}, "calibration"),
        ({"dtype": "fixed", "stage": "parallel"}, "float32 only"),
    ],
)
def test_bad_options_say_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        write_training(network(NETWORKS["dense"]), Training(**options))


CONVNETS: dict[str, tuple[list[dict[str, Any]], tuple[int, ...]]] = {
    "signal": (
        [conv(1, 4, (3,)), of("relu"), of("max_pool", window=2), of("flatten"),
         linear(40, CLASSES)],
        (20, 1),
    ),
    "images": (
        [conv(1, 4, padding=[[1, 0], [2, 1]], strides=[1, 2], input_dilation=[2, 1]), of("tanh"),
         conv(4, 6, (2, 2), feature_group_count=2, kernel_dilation=2, use_bias=False), of("gelu"),
         of("avg_pool", window=2), of("flatten"), linear(24, CLASSES)],
        (5, 4, 1),
    ),
    "sketched": (
        [conv(1, 4), of("relu"), sketched_conv(4, 6, rank=2, feature_group_count=2), of("relu"),
         of("max_pool", window=[2, 1]), of("flatten"), linear(48, CLASSES)],
        (5, 4, 1),
    ),
    "seeded first": (
        [sketched_conv(1, 6, rank=2, in_sketch=5, **SEEDED), of("relu"), of("flatten"),
         linear(120, CLASSES)],
        (5, 4, 1),
    ),
    "seeded groups": (
        [sketched_conv(5, 10, (2,), rank=1, in_sketch=2, feature_group_count=5, **SEEDED),
         of("relu"), of("flatten"), linear(40, CLASSES)],
        (4, 5),
    ),
    "volume": (
        [conv(1, 3, (2, 2, 1), padding="SAME"), of("relu"), of("max_pool", window=2),
         of("flatten"), linear(6, CLASSES)],
        (5, 2, 2, 1),
    ),
}  # fmt: skip
"""Networks with convolutions, on inputs of 20 numbers."""


@pytest.mark.parametrize("name", CONVNETS)
def test_gradients_of_convolutions_equal_jax(name: str) -> None:
    specs, shape = CONVNETS[name]
    graph = network(specs, shape=shape)
    x, labels = examples(1, 6)
    source = write_training(graph, Training(momentum=0.0))
    found = train_in_c(source, x, labels, 0.0, predict=x[0], sanitize=True)
    images = x[0].reshape(-1, *shape)
    loss, wanted = jax.jit(
        jax.value_and_grad(lambda p: cross_entropy(run(graph, p, images), labels[0]))
    )(parameters(graph))
    assert found.velocity.keys() == wanted.keys()
    assert_close(found.velocity, wanted, TOLERANCE)
    np.testing.assert_allclose(found.losses, [loss], rtol=1e-5)
    np.testing.assert_allclose(found.outputs, outputs(graph, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"momentum": 0.0, "batch": 1}, {"momentum": 0.9, "batch": 3}])
@pytest.mark.parametrize("parts", ["all", ("2/c", "6/kernel")])
def test_convolutions_train_as_with_optax(options: dict[str, Any], parts: Any) -> None:
    specs, shape = CONVNETS["sketched"]
    graph = network(specs, shape=shape)
    x, labels = examples(9, options["batch"])
    found = train_in_c(
        write_training(graph, Training(parts=parts, **options)), x, labels, 0.03, sanitize=True
    )
    tx = optax.sgd(0.03, momentum=options["momentum"])
    images = x.reshape(*x.shape[:2], *shape)
    trained = trained_names(graph, parts)
    assert_close(found.weights, trained_by_optax(graph, images, labels, tx, trained), 1e-4)


@pytest.mark.parametrize("dtype", ["float32", "fixed"])
def test_what_follows_frozen_convolutions_trains(dtype: str) -> None:
    specs, shape = CONVNETS["signal"]
    graph = network(specs, shape=shape)
    x, labels = examples(4, 6)
    if dtype == "float32":
        source = write_training(graph, Training(parts="head", batch=6))
        found = train_in_c(source, x, labels, 2.0**-5, sanitize=True)
        weights, tolerance = found.weights, 1e-4
    else:
        plan = lower_training(graph, x.reshape(-1, INPUTS), Training(parts="head", batch=6))
        q = np.stack([plan.prefix.quantize_input(each).reshape(6, -1) for each in x])
        found = train_in_c(write_plan(plan), q, labels, 5, sanitize=True)
        weights, tolerance = found.weights, 1e-2
    images = x.reshape(*x.shape, 1)
    tx = optax.sgd(2.0**-5, momentum=0.9)
    wanted = trained_by_optax(graph, images, labels, tx, trained_names(graph, "head"))
    assert_close(weights, wanted, tolerance)


def test_what_has_no_statements_of_its_own_trains_by_its_gradient() -> None:
    specs = [conv(1, 2, (3,)), conv(2, 2, (3,), padding="CIRCULAR"), of("flatten"), linear(40, 5)]
    graph = network(specs, shape=(INPUTS, 1))
    x, labels = examples(1, 3)
    source = write_training(graph, Training(momentum=0.0))
    assert "rosler_train_backward" not in source.source
    found = train_in_c(source, x, labels, 0.0, sanitize=True)
    images = x[0].reshape(-1, INPUTS, 1)
    wanted = jax.jit(jax.grad(lambda p: cross_entropy(run(graph, p, images), labels[0])))(
        parameters(graph)
    )
    assert_close(found.velocity, wanted, TOLERANCE)


def test_what_does_not_train_names_the_layer() -> None:
    with pytest.raises(ExportError, match="tanh does not train in fixed point"):
        lower_training(network(NETWORKS["signs"]), np.ones((2, INPUTS)))
    with pytest.raises(ExportError, match="train together"):
        write_training(
            network(NETWORKS["every operation"]), Training(stage="parallel", parts="head")
        )


def test_weights_that_are_not_finite_are_refused() -> None:
    graph = network(NETWORKS["dense"])
    first: Any = graph.ops[0]
    weight = Weight(first.weight.name, np.full_like(first.weight.values, np.nan))
    graph = dataclasses.replace(
        graph, ops=(dataclasses.replace(first, weight=weight), *graph.ops[1:])
    )
    with pytest.raises(ExportError, match="0/kernel: holds NaN"):
        write_training(graph)


def test_a_wrong_label_or_count_changes_nothing() -> None:
    graph = network(NETWORKS["dense"])
    source = write_training(graph, Training(batch=4))
    x, labels = examples(2, 4)
    labels[0, 3] = CLASSES
    labels[1, 0] = -1
    found = train_in_c(source, x, labels, 0.1, sanitize=True)
    assert found.losses.tolist() == [-1.0, -1.0]
    assert_close(found.weights, parameters(graph), 1e-9)


@pytest.mark.parametrize("dtype", ["float32", "fixed"])
def test_training_goes_on_from_given_weights(dtype: str) -> None:
    graph = network(INTEGER_NETWORKS["every operation"])
    x, labels = examples(6, 4)
    calibration, rate = (x.reshape(-1, INPUTS), 4) if dtype == "fixed" else (None, 0.05)
    # Without momentum the weights are all that a step leaves to the next one.
    source = write_training(
        graph, Training(batch=4, momentum=0.0, dtype=dtype), calibration=calibration
    )
    x = quantized(x, source.scales[0], "int16") if dtype == "fixed" else x
    whole = train_in_c(source, x, labels, rate, predict=x[0])
    half = train_in_c(source, x[:3], labels[:3], rate)
    rest = train_in_c(
        source, x[3:], labels[3:], rate, weights=half.flat, predict=x[0], sanitize=True
    )
    assert (half.flat != whole.flat).any()
    np.testing.assert_array_equal(rest.flat, whole.flat)
    np.testing.assert_array_equal(rest.outputs, whole.outputs)
    with pytest.raises(ValueError, match=r"trains \d+ numbers, one behind the other"):
        train_in_c(source, x, labels, rate, weights=half.flat[1:])


# Fixed point.


def real_targets(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """What a regression might be asked for: a vector for each class, and noise."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(CLASSES, CLASSES))[labels] + 0.1 * rng.normal(
        size=(*labels.shape, CLASSES)
    )


@pytest.mark.parametrize("name", INTEGER_NETWORKS)
@pytest.mark.parametrize("parts, loss", [("all", CE), ("head", CE), ("all", "mse")])
def test_fixed_point_equals_its_specification_bit_for_bit(name: str, parts: str, loss: str) -> None:
    graph = network(INTEGER_NETWORKS[name])
    x, labels = examples(12, 7)
    plan = lower_training(graph, x.reshape(-1, INPUTS), Training(parts=parts, batch=7, loss=loss))
    if loss == "mse":
        labels = plan.quantize_target(real_targets(labels))
    q = np.stack([plan.prefix.quantize_input(each).reshape(7, -1) for each in x])
    found = train_in_c(write_plan(plan), q, labels, 4, predict=q[0], sanitize=True)
    state, losses = spec.begin_fixed(plan), []
    for each, label in zip(q, labels, strict=True):
        state, lost = spec.train_fixed(plan, state, each, label, 4)
        losses.append(lost)
    for p in plan.parameters():
        np.testing.assert_array_equal(
            found.weights[p.name], state.weights[p.name] * 2.0**-p.fraction
        )
        np.testing.assert_array_equal(found.velocity[p.name], state.velocity[p.name])
    assert found.losses.tolist() == losses
    np.testing.assert_array_equal(found.outputs, spec.predict_fixed(plan, state, q[0]))


@pytest.mark.slow
@pytest.mark.parametrize("loss", [CE, "mse"])
def test_fixed_point_follows_float(loss: str) -> None:
    graph = network(INTEGER_NETWORKS["every operation"])
    x, labels = examples(12, 7)
    # Targets within twice the outputs that calibration saw, or they saturate.
    targets = labels if loss == CE else 0.2 * real_targets(labels)
    plan = lower_training(graph, x.reshape(-1, INPUTS), Training(batch=7, loss=loss))
    q = np.stack([plan.prefix.quantize_input(each).reshape(7, -1) for each in x])
    state = spec.begin_fixed(plan)
    for each, target in zip(
        q, targets if loss == CE else plan.quantize_target(targets), strict=True
    ):
        state, _ = spec.train_fixed(plan, state, each, target, 5)
    tx = optax.sgd(2.0**-5, momentum=0.9)
    names = trained_names(graph, "all")
    wanted = trained_by_optax(
        graph, x, targets, tx, names, cross_entropy if loss == CE else squares
    )
    start = parameters(graph)
    for p in plan.parameters():
        moved = np.linalg.norm(wanted[p.name] - start[p.name])
        apart = np.linalg.norm(state.weights[p.name] * 2.0**-p.fraction - wanted[p.name])
        assert apart < 0.05 * moved, f"{p.name}: {apart:.3g} apart, moved {moved:.3g}"


@pytest.mark.slow
@pytest.mark.parametrize("seed, loss", [(0, CE), (1, CE), (2, CE), (3, "mse")])
def test_fixed_point_saturates_alike(seed: int, loss: str) -> None:
    """Inputs far beyond calibration and the largest learning rate: the same bits still."""
    graph = network(INTEGER_NETWORKS["signs"], seed)
    x, labels = examples(6, 3, seed)
    x_small = 0.05 * x.reshape(-1, INPUTS)
    plan = lower_training(graph, x_small, Training(batch=3, momentum=0.99, loss=loss))
    if loss == "mse":
        labels = plan.quantize_target(1e3 * real_targets(labels))
    q = np.random.default_rng(seed).integers(-(2**15), 2**15, x.shape).astype(np.int16)
    found = train_in_c(write_plan(plan), q, labels, 0, predict=q[0], sanitize=True)
    state = spec.begin_fixed(plan)
    for each, label in zip(q, labels, strict=True):
        state, _ = spec.train_fixed(plan, state, each, label, 0)
    flat = np.concatenate([state.weights[p.name].T.ravel() for p in plan.parameters()])
    np.testing.assert_array_equal(found.flat, flat)
    np.testing.assert_array_equal(found.outputs, spec.predict_fixed(plan, state, q[0]))


# Weights kept.

STORE = """\
#include <stdio.h>
#include <string.h>
#include "rosler_train.h"

static unsigned char bytes[2 * ROSLER_SLOT_BYTES], kept[sizeof bytes];
static long budget; /* bytes until the power fails */
static int torn;    /* whether the byte that it fails at is left with some bits only */
static int whole; /* whether it then holds what it should after all */
static int worn = -1; /* offset of a byte that keeps a bit flipped */

static int put(void *context, uint32_t offset, const void *data, uint32_t size) {
    const unsigned char *from = data;
    uint32_t i;
    (void)context;
    for (i = 0; i < size; ++i) {
        if (offset + i >= sizeof bytes) return 1;
        if (budget == 0) {
            if (torn) bytes[offset + i] &= 0xF0;
            if (torn) bytes[offset + i] |= (unsigned char)(from[i] & 15);
            whole = torn && bytes[offset + i] == from[i];
            return 1;
        }
        --budget;
        bytes[offset + i] = from[i];
        if ((int)(offset + i) == worn) bytes[offset + i] ^= 4;
    }
    return 0;
}

static int get(void *context, uint32_t offset, void *data, uint32_t size) {
    (void)context;
    if (offset > sizeof bytes || size > sizeof bytes - offset) return 1;
    memcpy(data, bytes + offset, size);
    return 0;
}

static void set(rosler_state *s, int n) {
    int i;
    for (i = 0; i < ROSLER_TRAIN_WEIGHTS; ++i) s->weights[i] = @NUMBER@(n * 1000 + i);
}

static int is(const rosler_state *s, int n) {
    static rosler_state other;
    set(&other, n);
    return memcmp(s->weights, other.weights, sizeof other.weights) == 0;
}

#define CHECK(what) do { if (!(what)) { printf("line %d, cut %ld: %s\\n", __LINE__, cut, #what); \\
    return 1; } } while (0)

int main(void) {
    static rosler_state s, fresh;
    const rosler_storage storage = {put, get, 0};
    const long all = ROSLER_SLOT_BYTES;
    long cut = -1;
    uint32_t sequence = 77;
    int i, slot, done;

    rosler_train_begin(&fresh);
    for (i = 0; i < 3; ++i) { /* storage that holds nothing, or rubbish */
        memset(bytes, i == 0 ? 0 : i == 1 ? 0xFF : 0x5A, sizeof bytes);
        set(&s, 9);
        CHECK(rosler_train_load(&s, &storage, &sequence) == -1 && sequence == 77);
        CHECK(memcmp(s.weights, fresh.weights, sizeof s.weights) == 0);
    }
    for (torn = 0; torn < 2; ++torn) {
        for (cut = 0; cut <= all; ++cut) { /* of the first save: the built-in weights or these */
            memset(bytes, 0xFF, sizeof bytes);
            set(&s, 1);
            budget = cut;
            slot = rosler_train_save(&s, &storage);
            CHECK(slot == (cut == all ? 0 : -1));
            done = cut == all || (cut == all - 1 && whole);
            set(&s, 9);
            slot = rosler_train_load(&s, &storage, 0);
            CHECK(slot == done - 1);
            CHECK(done ? is(&s, 1) : !memcmp(s.weights, fresh.weights, sizeof s.weights));
        }
    }
    for (i = 1; i <= 3; ++i) { /* slots take turns */
        budget = all;
        set(&s, i);
        memset(bytes, 0, i == 1 ? sizeof bytes : 0);
        CHECK(rosler_train_save(&s, &storage) == (i + 1) % 2);
        CHECK(rosler_train_load(&s, &storage, &sequence) == (i + 1) % 2);
        CHECK(sequence == (uint32_t)i && is(&s, i));
    }
    memcpy(kept, bytes, sizeof bytes);
    for (torn = 0; torn < 2; ++torn) {
        for (cut = 0; cut <= all; ++cut) { /* of a later save: the last ones or these */
            memcpy(bytes, kept, sizeof bytes);
            set(&s, 4);
            budget = cut;
            slot = rosler_train_save(&s, &storage);
            CHECK(slot == (cut == all ? 1 : -1));
            done = cut == all || (cut == all - 1 && whole);
            set(&s, 9);
            CHECK(rosler_train_load(&s, &storage, &sequence) == done);
            CHECK(sequence == (done ? 4u : 3u) && is(&s, done ? 4 : 3));
            set(&s, 5); /* and the next save goes well */
            budget = all;
            CHECK(rosler_train_save(&s, &storage) == !done);
            CHECK(rosler_train_load(&s, &storage, &sequence) >= 0 && is(&s, 5));
        }
    }
    memcpy(bytes, kept, sizeof bytes);
    for (cut = 0; cut < 8 * all; ++cut) { /* any flipped bit of the newest: the one before */
        bytes[cut / 8] ^= (unsigned char)(1 << cut % 8);
        CHECK(rosler_train_load(&s, &storage, &sequence) == 1 && sequence == 2 && is(&s, 2));
        bytes[cut / 8] ^= (unsigned char)(1 << cut % 8);
    }
    for (cut = all; cut < 2 * all; ++cut) { /* of the other one: no matter */
        bytes[cut] ^= 0x10;
        CHECK(rosler_train_load(&s, &storage, &sequence) == 0 && sequence == 3 && is(&s, 3));
        bytes[cut] ^= 0x10;
    }
    for (worn = (int)all; worn < (int)(2 * all); ++worn) { /* a bad cell is noticed at the save */
        cut = worn;
        memcpy(bytes, kept, sizeof bytes);
        set(&s, 4);
        budget = all;
        CHECK(rosler_train_save(&s, &storage) == -1);
        CHECK(rosler_train_load(&s, &storage, &sequence) == 0 && is(&s, 3));
    }
    return 0;
}
"""


@pytest.mark.parametrize("dtype", ["float32", "fixed"])
def test_power_may_fail_at_any_byte(tmp_path: Path, dtype: str) -> None:
    graph = network([linear(INPUTS, CLASSES)])
    x, _ = examples(4, 8)
    calibration = x.reshape(-1, INPUTS) if dtype == "fixed" else None
    source = write_training(graph, Training(dtype=dtype), calibration=calibration)
    (tmp_path / "rosler_train.h").write_text(source.header)
    (tmp_path / "rosler_train.c").write_text(source.source)
    number = "(float)" if dtype == "float32" else "(int32_t)"
    (tmp_path / "store.c").write_text(STORE.replace("@NUMBER@", number))
    command = ["gcc", *FLAGS, *SANITIZERS, "rosler_train.c", "store.c", "-o", "store", "-lm"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    done = subprocess.run(
        [str(tmp_path / "store")], capture_output=True, text=True, timeout=120,
        env={"ASAN_OPTIONS": "detect_leaks=0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_weights_of_another_network_are_not_taken() -> None:
    def number(source: TrainSource) -> str:
        return next(line for line in source.header.splitlines() if "TRAIN_MODEL 0x" in line)

    graph = network(NETWORKS["dense"])
    same = write_training(network(NETWORKS["dense"], seed=1))
    assert number(write_training(graph)) == number(same)  # the same network, trained otherwise
    assert number(write_training(graph)) != number(write_training(graph, Training(parts="head")))


# The whole file.


@pytest.mark.skipif(shutil.which("clang") is None, reason="no clang")
@pytest.mark.parametrize("name", NETWORKS)
def test_clang_has_no_warnings_and_the_same_result(name: str) -> None:
    graph = network(NETWORKS[name])
    x, labels = examples(3, 6)
    source = write_training(graph)
    one, other = (train_in_c(source, x, labels, 0.05, compiler=c) for c in ("gcc", "clang"))
    assert_close(other.weights, one.weights, 1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("clang") is None, reason="no clang")
@pytest.mark.parametrize("options", [{"dtype": "fixed"}, {"stage": "parallel", "clip": 1.0}])
def test_clang_builds_fixed_point_and_the_parallel_stage(options: dict[str, Any]) -> None:
    graph = network(INTEGER_NETWORKS["every operation"])
    x, labels = examples(3, 6)
    calibration = x.reshape(-1, INPUTS) if "dtype" in options else None
    source = write_training(graph, Training(**options), calibration=calibration)
    rate = 5 if calibration is not None else 0.02
    q = 1000 * x if calibration is not None else x
    one, other = (train_in_c(source, q, labels, rate, compiler=c) for c in ("gcc", "clang"))
    assert_close(other.weights, one.weights, 1e-5)


def test_it_goes_beside_the_inference_code(tmp_path: Path) -> None:
    from rosler_jax.export.c.source import write_c

    graph = network(NETWORKS["every operation"])
    train, infer = write_training(graph), write_c(graph)
    for name, text in (
        ("rosler_train.h", train.header), ("rosler_train.c", train.source),
        ("rosler_model.h", infer.header), ("rosler_model.c", infer.source),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    (tmp_path / "main.c").write_text(
        '#include "rosler_model.h"\n#include "rosler_train.h"\n'
        "static rosler_state s;\nstatic rosler_train_arena a;\nstatic rosler_arena b;\n"
        "static float x[ROSLER_INPUT_SIZE], y[ROSLER_OUTPUT_SIZE], z[ROSLER_OUTPUT_SIZE];\n"
        "int main(void) { int i; rosler_train_begin(&s); rosler_train_predict(&s, &a, x, y);\n"
        "rosler_predict(x, z, &b); for (i = 0; i < ROSLER_OUTPUT_SIZE; ++i)\n"
        "{ if (y[i] < z[i] || y[i] > z[i]) return 1; }\nreturn 0; }\n"
    )
    sources = ["main.c", "rosler_train.c", "rosler_model.c"]
    subprocess.run(["gcc", *FLAGS, *sources, "-o", "both", "-lm"], cwd=tmp_path, check=True)
    assert subprocess.run([str(tmp_path / "both")], timeout=60).returncode == 0


def test_templates_have_names_of_their_own() -> None:
    names = [path.name for folder in FOLDERS for path in folder.glob("*.c")]
    assert len(names) == len(set(names))


def test_outputs_that_backward_reads_are_not_written_over() -> None:
    def node(**more: Any) -> Node:
        text = lambda w: ""
        return Node(forward=text, backward=text, out_bytes=40, error_bytes=40, **more)

    keeps = node(keeps_output=True, in_place=True)
    layout = lay_out([node(keeps_input=True), keeps, keeps, node()], 0, "float")
    assert layout.wires[1].y == layout.wires[0].y  # what a product wrote nobody reads again
    assert layout.wires[2].y != layout.wires[1].y
    assert layout.wires[0].x == "x"
    assert layout.wires[0].dx == ""


# On the emulated board.


@pytest.mark.slow
@needs_firmware
def test_fine_tuning_on_the_emulated_board_equals_this_machine() -> None:
    graph = network(INTEGER_NETWORKS["every operation"])
    x, labels = examples(25, 6)
    shifted, shifted_labels = 1.6 * x[5:] - 1.0, labels[5:]
    source = write_training(graph, Training(batch=6))
    rate = 0.03
    test, test_labels = shifted[-5:].reshape(-1, INPUTS), shifted_labels[-5:].ravel()

    def accuracy(run: Trained) -> float:
        return float((run.outputs.argmax(1) == test_labels).mean())

    before = train_in_c(source, shifted[:0], shifted_labels[:0], rate, predict=test)
    board = train_in_c(
        source, shifted[:15], shifted_labels[:15], rate, predict=test, board="cortex-m4"
    )
    host = train_in_c(source, shifted[:15], shifted_labels[:15], rate, predict=test)
    assert accuracy(board) > accuracy(before) + 0.2
    # expf and logf are another library's; the rest is the same arithmetic in the same order.
    np.testing.assert_allclose(board.flat, host.flat, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(board.outputs, host.outputs, rtol=1e-3, atol=1e-4)
    assert len(board.step_instructions) == 15
    assert min(board.step_instructions) > 0

    plan = lower_training(graph, shifted.reshape(-1, INPUTS), Training(batch=6))
    q = np.stack([plan.prefix.quantize_input(each).reshape(6, -1) for each in shifted[:15]])
    asked = plan.prefix.quantize_input(test).reshape(len(test), -1)
    fixed_source = write_plan(plan)
    runs = [
        train_in_c(fixed_source, q, shifted_labels[:15], 5, predict=asked, board=where)
        for where in ("cortex-m4", None)
    ]
    np.testing.assert_array_equal(runs[0].flat, runs[1].flat)
    np.testing.assert_array_equal(runs[0].outputs, runs[1].outputs)
    assert accuracy(runs[0]) > accuracy(before) + 0.2
