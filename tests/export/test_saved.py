"""A network's file: what is saved loads to the same network, as files of version 1 do."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from exported_models import make_model, reals
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork, networks

from rosler_jax import modelfile
from rosler_jax.graph.quantize import quantize_graph
from rosler_jax.graph.save import load, save

EXAMPLES = int(os.environ.get("ROSLER_EXAMPLES", "12"))


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(network=networks(3), bits=st.sampled_from([32, 16, 8, 4, 3, 2]))
def test_any_network_loads_as_it_was_saved(
    tmp_path: Path, network: RandomNetwork, bits: int
) -> None:
    model = make_model(network.specs, bits=32, shape=network.shape)
    save(tmp_path / "m.rosler", model.graph, bits=bits)
    loaded = load(tmp_path / "m.rosler")
    for a, b in zip(
        quantize_graph(model.graph, bits).weights(), loaded.graph.weights(), strict=True
    ):
        assert (a.name, a.bits) == (b.name, b.bits)
        np.testing.assert_array_equal(a.values, b.values)
    if bits == 32:
        x = reals(network.shape, 2)
        expected = np.asarray(model.network(x))
        atol = 1e-5 * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(loaded(x), expected, atol=atol)


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(network=networks(3), bits=st.sampled_from([32, 16, 8, 4, 3, 2]))
def test_any_file_of_version_1_loads(tmp_path: Path, network: RandomNetwork, bits: int) -> None:
    model = make_model(network.specs, bits=bits, shape=network.shape)
    modelfile.save(tmp_path / "m.rosler", model.tensors, {"layers": model.specs}, {})
    loaded = load(tmp_path / "m.rosler", input_shape=network.shape)
    x = reals(network.shape, 2)
    expected = np.asarray(model.network(x))
    atol = 1e-5 * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(loaded(x), expected, atol=atol)
