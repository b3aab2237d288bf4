"""From a user's module to a file, to a call without its code, and to C: the whole way."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from made_once import outputs_of
from public_models import MODELS
from tiny_models import BUILDERS, INPUTS, randomise
from user_models import USER_MODELS

import rosler_jax
from rosler_jax.export import export
from rosler_jax.export.firmware import ToolchainError, find_toolchain, run_firmware, run_host
from rosler_jax.graph import Graph

KEY = jax.random.key(0)
FORMS = ("dense", "sketched")


@functools.cache
def tiny(name: str, form: str) -> tuple[Any, Graph, np.ndarray]:
    """A network of the Tiny benchmark, its graph, and inputs."""
    model = BUILDERS[name]()
    if form == "sketched":
        rules = [rosler_jax.Rule("**", rank=0.25)]
        model = rosler_jax.finish(rosler_jax.sketchify(model, rules, rngs=nnx.Rngs(1))[0])
    randomise(model, jax.random.key(1))
    model.eval()
    x = np.asarray(jax.random.normal(KEY, (4, *INPUTS[name])), np.float32)
    return model, rosler_jax.trace(model, x), x


def assert_close(got: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        size = float(np.abs(b).max()) or 1.0
        np.testing.assert_allclose(np.asarray(a) / size, np.asarray(b) / size, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", BUILDERS)
def test_tiny_models_are_saved_loaded_and_equal(name: str, form: str, tmp_path: Path) -> None:
    model, graph, x = tiny(name, form)
    rosler_jax.save(tmp_path / "m.rosler", graph)
    assert_close(rosler_jax.load(tmp_path / "m.rosler")(x), outputs_of(model, x))


@pytest.mark.parametrize("name", [*MODELS, *USER_MODELS])
def test_models_of_users_are_saved_loaded_and_equal(name: str, tmp_path: Path) -> None:
    if name in MODELS:
        model = MODELS[name][0]()
        call, inputs = model, MODELS[name][1](KEY)
    else:
        model, call, inputs, _ = USER_MODELS[name](KEY)
    rosler_jax.save(tmp_path / "m.rosler", model, *inputs)
    assert_close(rosler_jax.load(tmp_path / "m.rosler")(*inputs), outputs_of(call, *inputs))


@pytest.mark.parametrize("name", USER_MODELS)
def test_models_of_users_in_float_c(name: str, tmp_path: Path) -> None:
    model, _, inputs, _ = USER_MODELS[name](KEY)
    graph = rosler_jax.trace(model, *inputs)
    export(graph, tmp_path, board=None)
    if len(graph.inputs) > 1 or len(graph.outputs) > 1:
        return  # its C is run by the tests of C; the program that feeds models has one of each
    examples = np.load(tmp_path / "examples.npz")
    got = run_host(tmp_path, examples["inputs"])
    assert_close(got.reshape(examples["outputs"].shape), examples["outputs"])


C = [("float32", 16), ("int16", 16), ("int8", 16), ("int8", 8)]
# Of the two large ones those that take least time; all were run by hand.
CASES = [
    *((n, form, *numbers) for n in ("ds_cnn", "autoencoder") for form in FORMS for numbers in C),
    *((n, "dense", "int8", 8) for n in ("resnet8", "mobilenet")),
]


@pytest.mark.parametrize(("name", "form", "dtype", "activations"), CASES)
def test_tiny_models_in_c(
    name: str, form: str, dtype: str, activations: int, tmp_path: Path
) -> None:
    _, graph, x = tiny(name, form)
    export(graph, tmp_path, dtype=dtype, activations=activations, calibration=x, board=None)
    examples = np.load(tmp_path / "examples.npz")
    got = run_host(tmp_path, examples["inputs"]).reshape(examples["outputs"].shape)
    if dtype == "float32":
        assert_close(got, examples["outputs"])
    else:
        np.testing.assert_array_equal(got, examples["outputs"])


@pytest.mark.parametrize(("form", "activations"), [("dense", 8), ("sketched", 16)])
@pytest.mark.parametrize("name", ["ds_cnn", "autoencoder"])
def test_tiny_models_on_the_emulated_core(
    name: str, form: str, activations: int, tmp_path: Path
) -> None:
    try:
        find_toolchain()
    except ToolchainError as error:
        pytest.skip(str(error))
    _, graph, x = tiny(name, form)
    export(graph, tmp_path, dtype="int8", activations=activations, calibration=x[:2], board=None)
    examples = np.load(tmp_path / "examples.npz")
    got = run_firmware(tmp_path, examples["inputs"], board="cortex-m4").outputs
    np.testing.assert_array_equal(got.reshape(examples["outputs"].shape), examples["outputs"])
