"""Data that the tests of sweeps share."""

from __future__ import annotations

import numpy as np
import pytest

from rosler_jax.config import TrainConfig
from rosler_jax.sweep import Built, load_examples


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """300 examples of three classes that a small net learns in part."""
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = rng.normal(size=(300, 20)).astype(np.float32) + np.eye(3, 20)[y] * 2
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    np.savez(path, x=x, y=y)
    return str(path)


@pytest.fixture(scope="session")
def built(data):
    """The same, and the models of them that any test has built."""
    return Built(load_examples(TrainConfig(data=data)))
