"""One message of many: against NumPy, and against a few who mean harm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosler_jax.federated.aggregation import AGGREGATES, aggregate, check_norms


def drawn(seed, clients=9, numbers=13):
    rng = np.random.default_rng(seed)
    messages = rng.normal(size=(clients, numbers)).astype(np.float32)
    weights = rng.integers(1, 50, clients).astype(np.float32)
    valid = rng.random(clients) < 0.7
    valid[rng.integers(clients)] = True
    return messages, weights, valid


def trimmed(x, share):
    cut = min(int(np.ceil(share * len(x) - 1e-4)), (len(x) - 1) // 2)
    return np.sort(x, axis=0)[cut : len(x) - cut].mean(0)


def clipped(x, number):
    norms = np.linalg.norm(x, axis=1)
    most = number * np.median(norms)
    return (x * np.minimum(1, most / norms)[:, None]).mean(0)


def krum(x, share):
    bad = int(np.ceil(share * len(x) - 1e-4))
    apart = ((x[:, None] - x[None]) ** 2).sum(-1)
    near = max(len(x) - bad - 2, 1)
    scores = [np.sort(np.delete(row, k))[:near].sum() for k, row in enumerate(apart)]
    return x[np.argsort(scores)[: max(len(x) - bad, 1)]].mean(0)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_against_numpy_with_whoever_came(seed):
    messages, weights, valid = drawn(seed)
    garbled = np.where(valid[:, None], messages, np.nan)  # of those that do not count
    x, w = messages[valid].astype(np.float64), weights[valid].astype(np.float64)
    expected = {
        "mean": w @ x / w.sum(),
        "median": np.median(x, axis=0),
        "trimmed-mean:0.2": trimmed(x, 0.2),
        "trimmed-mean:0": x.mean(0),
        "clipped-mean:1": clipped(x, 1),
        "clipped-mean:0.5": clipped(x, 0.5),
    }
    if len(x) >= 6:  # of fewer, two that are each other's nearest have one score
        expected["krum:0.2"] = krum(x, 0.2)
    for how, wanted in expected.items():
        found = jax.jit(lambda m, w, v, how=how: aggregate(how, m, w, v))(garbled, weights, valid)
        assert np.allclose(found, wanted, atol=1e-5), how


@pytest.mark.parametrize("how", AGGREGATES)
def test_of_nobody_it_is_zeros(how):
    found = aggregate(how, jnp.full((4, 3), jnp.nan), jnp.ones(4), jnp.zeros(4, bool))
    assert np.array_equal(found, np.zeros(3))


@pytest.mark.parametrize("how", ["median", "trimmed-mean:0.2", "krum:0.2"])
@pytest.mark.parametrize("size", [3.0, 1e3, 1e8, 1e30])
def test_a_fifth_of_them_moves_it_little(how, size):
    """However far the bad ones are, the error stays of the size of the good ones' spread.

    Of 40 numbers about 1 with deviation 0.1 the mean has deviation 0.016; the median and the mean
    of the 60 % in the middle move by less than the deviation itself where a fifth lies on one side.
    """
    rng = np.random.default_rng(0)
    good = 1 + 0.1 * rng.normal(size=(40, 50))
    messages = np.concatenate([good, np.full((10, 50), -size)]).astype(np.float32)
    found = aggregate(how, jnp.asarray(messages), jnp.ones(50))
    assert np.abs(np.asarray(found) - 1).max() < 0.1
    plain = aggregate("mean", jnp.asarray(messages), jnp.ones(50))
    assert np.abs(np.asarray(plain) - 1).max() > 0.19 * size


@pytest.mark.parametrize("long", [1e3, 1e30, np.inf, np.nan])
def test_long_messages_and_those_of_no_numbers_do_not_count(long):
    messages = np.ones((5, 4), np.float32) * np.array([[1], [2], [0.5], [1.5], [1]], np.float32)
    messages[2] *= np.float32(long)
    found = check_norms(jnp.asarray(messages), jnp.ones(5, bool), 10.0)
    assert found.valid.tolist() == [True, True, False, True, True]
    assert found.finite.tolist() == [True, True, bool(np.isfinite(long)), True, True]
    nobody = check_norms(jnp.asarray(messages), jnp.zeros(5, bool), 10.0)
    assert not nobody.valid.any()
    if np.isfinite(long):
        assert check_norms(jnp.asarray(messages), jnp.ones(5, bool), None).valid.all()


@pytest.mark.parametrize(
    ("how", "message"),
    [("best", "aggregate 'best' is none of mean"), ("krum:0.6", r"0.6 is outside 0\.\.0.49")],
)
def test_errors(how, message):
    with pytest.raises(ValueError, match=message):
        aggregate(how, jnp.ones((2, 2)), jnp.ones(2))


@pytest.mark.parametrize("size", [1.0, 4.0, 1e30])
def test_clients_that_each_know_something_else_are_heard_by_a_clipped_mean(size):
    """Nine clients with a coordinate of their own, and a tenth that wants the opposite of all: the
    clipped mean keeps two thirds of every coordinate, a median nothing of any."""
    messages = np.concatenate([np.eye(9), np.full((1, 9), -size)]).astype(np.float32)
    found = np.asarray(aggregate("clipped-mean", jnp.asarray(messages), jnp.ones(10)))
    assert (found > 2 / 3 * 0.1 - 1e-6).all() and (found < 0.1).all()
    assert not np.asarray(aggregate("median", jnp.asarray(messages), jnp.ones(10))).any()
