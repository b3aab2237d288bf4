"""What clipped and noisy rounds say of a client at most."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from rosler_jax.federated import FederatedConfig, privacy_spent
from rosler_jax.federated.aggregation import check_norms
from rosler_jax.federated.rounds import _combined

CONFIG = FederatedConfig(clients=1000, participation=0.02, clip=0.5, noise=1.5)


def combined(config, messages, seed=0):
    from types import SimpleNamespace

    key = random.key_data(random.key(seed, impl="threefry2x32"))
    state = SimpleNamespace(key=key, round=jnp.int32(3))
    checked = check_norms(messages, jnp.ones(len(messages), bool), None)
    return np.asarray(_combined(config, state, messages, jnp.ones(len(messages)), checked))


def test_one_client_moves_the_mean_by_two_clips_at_most():
    config = dataclasses.replace(CONFIG, noise=0.0)
    rng = np.random.default_rng(0)
    messages = rng.normal(size=(20, 30)).astype(np.float32)
    before = combined(config, jnp.asarray(messages))
    worst = 0.0
    for size in (0.0, 1.0, 1e20):
        other = messages.copy()
        other[4] = -size * messages[4]
        worst = max(worst, np.linalg.norm(combined(config, jnp.asarray(other)) - before))
    assert 1.9 * 0.5 / 20 < worst <= 2 * 0.5 / 20 * (1 + 1e-5)
    other[4] = np.nan
    moved = combined(config, jnp.asarray(other)) - before
    assert np.linalg.norm(moved) <= 0.5 / 20 * (1 + 1e-5)


def test_the_noise_has_the_deviation_that_is_accounted_for():
    """Of 20,000 numbers the deviation is known to 0.5 %: five of these are allowed for."""
    found = combined(CONFIG, jnp.zeros((20, 20_000)))
    assert found.std() == pytest.approx(1.5 * 0.5 / 20, rel=0.025)
    assert not np.array_equal(found, combined(CONFIG, jnp.zeros((20, 20_000)), seed=1))


@pytest.mark.slow
def test_epsilon():
    pytest.importorskip("dp_accounting", reason="the accountant is in the extra 'federated'")
    assert privacy_spent(CONFIG, 10) < privacy_spent(CONFIG, 200)
    more = dataclasses.replace(CONFIG, noise=3.0)
    assert privacy_spent(more, 10) < privacy_spent(CONFIG, 10)
    few = dataclasses.replace(CONFIG, participation=0.002)
    assert privacy_spent(few, 10) < privacy_spent(CONFIG, 10)
    # One round of all clients is the Gaussian mechanism of sensitivity 2: analytically, epsilon is
    # at most its bound sqrt(2 ln(1.25 / delta)) / (noise / 2), and at least half of that here.
    whole = dataclasses.replace(CONFIG, participation=1.0, noise=20.0)
    classic = math.sqrt(2 * math.log(1.25 / 1e-5)) / 10
    assert 0.5 * classic < privacy_spent(whole, 1, 1e-5) <= 1.1 * classic
    assert privacy_spent(dataclasses.replace(CONFIG, noise=0.0), 1) == math.inf
