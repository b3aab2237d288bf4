"""Parameters and the seeds that they belong to: stored together, or checked."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rosler_jax
from rosler_jax import SketchLinear


def model(seed: int) -> nnx.Module:
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(
        SketchLinear(20, 12, rank=4, mode="seeded", rngs=rngs), nnx.Linear(12, 3, rngs=rngs)
    )


def test_parameters_and_seeds_restore_a_model_made_from_another_seed() -> None:
    trained, other = model(0), model(1)
    x = jnp.ones((2, 20))
    seeds = json.loads(json.dumps(rosler_jax.seeds_of(trained)))
    rosler_jax.check_seeds(trained, seeds)
    nnx.update(other, nnx.state(trained, nnx.Param))
    with pytest.raises(ValueError, match=r"layers\.0\.omega_seed, layers\.0\.psi_seed: other se"):
        rosler_jax.check_seeds(other, seeds)
    nnx.update(other, nnx.state(trained, rosler_jax.SketchState))
    rosler_jax.check_seeds(other, seeds)
    np.testing.assert_array_equal(other(x), trained(x))
    merged = nnx.merge(
        *nnx.split(trained, rosler_jax.SketchState)
    )  # it holds the whole of the model
    np.testing.assert_array_equal(merged(x), trained(x))


def test_seeds_that_are_missing_or_left_over_are_named() -> None:
    seeds = rosler_jax.seeds_of(model(0))
    with pytest.raises(ValueError, match=r"^layers\.0\.psi_seed: other"):
        rosler_jax.check_seeds(model(0), {k: v for k, v in seeds.items() if "psi" not in k})
    with pytest.raises(ValueError, match=r"^more\.psi_seed: other"):
        rosler_jax.check_seeds(model(0), {**seeds, "more.psi_seed": (0, 1)})
