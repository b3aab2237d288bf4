"""A network's file: what is saved loads to the same network, and what would not is not saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork, networks
from small_networks import conv, linear, of, sketched

from rosler_jax.deploy import Trained, load_network, save_network
from rosler_jax.modelfile import ModelFileError
from rosler_jax.network import Network, evaluating, split_state

EXAMPLES = int(os.environ.get("ROSLER_EXAMPLES", "12"))


def numpy_numbers(value: Any) -> Any:
    """Numbers as NumPy has them, as a user's own arithmetic gives."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        made = {k: numpy_numbers(v) for k, v in pairs}
        return made if isinstance(value, dict) else type(value)(made.values())
    kinds = {bool: bool, int: np.int64, float: np.float32}
    return kinds.get(type(value), lambda same: same)(value)


def tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: tuples(v) for k, v in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


WRITTEN = {"as it is": lambda spec: spec, "numpy": numpy_numbers, "tuples": tuples}


def saved_and_loaded(specs: list[dict[str, Any]], shape: tuple[int, ...], path: Path) -> None:
    network = Network(specs, rngs=nnx.Rngs(0))
    _, params, buffers = split_state(network)
    params = jax.tree.map(lambda p: p + jnp.linspace(-0.1, 0.1, p.size).reshape(p.shape), params)
    nnx.update(network, nnx.State(params))
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    save_network(path, Trained(specs, params, buffers), bits=32)
    loaded = load_network(path).network
    np.testing.assert_array_equal(loaded(x), evaluating(network)(x))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(network=networks(3), written=st.sampled_from(list(WRITTEN)))
def test_any_network_loads_as_it_was_saved(
    tmp_path: Path, network: RandomNetwork, written: str
) -> None:
    specs = [WRITTEN[written](spec) for spec in network.specs]
    saved_and_loaded(specs, network.shape, tmp_path / "m.rosler")


@pytest.mark.parametrize("written", WRITTEN)
def test_a_pool_of_two_sides_loads(written: str, tmp_path: Path) -> None:
    specs = [conv(1, 2, (2, 2)), of("avg_pool", window=[3, 2]), of("max_pool", window=[1, 2])]
    specs = [WRITTEN[written](spec) for spec in specs]
    saved_and_loaded(specs, (7, 9, 1), tmp_path / "m.rosler")


@pytest.mark.parametrize(
    "spec",
    [
        linear(4, 3, kernel_init=nnx.initializers.ones),
        linear(4, 3, param_dtype=jnp.bfloat16),
        linear(4, 3, unknown=1),
        linear(4, 2),
        linear(4, 3, use_bias=False),
        sketched(4, 3, 2, mode="no such"),
        of("no such"),
        {**linear(4, 3), "kind": None},
    ],
)
def test_what_would_not_load_is_not_saved(spec: dict[str, Any], tmp_path: Path) -> None:
    _, params, buffers = split_state(Network([linear(4, 3)], rngs=nnx.Rngs(0)))
    with pytest.raises(ModelFileError, match=r"m\.rosler: "):
        save_network(tmp_path / "m.rosler", Trained([spec], params, buffers), bits=8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("window", [0, -2, True, 2.0, "3", [], [2, 0], [2, 2.5], None])
def test_windows_that_are_none_are_refused_when_built(window: Any) -> None:
    with pytest.raises(ValueError, match="pass a positive whole number, or one an axis"):
        Network([of("max_pool", window=window)], rngs=nnx.Rngs(0))


def test_a_window_for_other_inputs_names_both() -> None:
    network = Network([of("max_pool", window=[25, 5])], rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"\(25, 5\) has 2 sides for 1 spatial axes"):
        network(jnp.ones((1, 50, 2)))
