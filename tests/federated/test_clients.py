"""Which examples each client has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosler_jax.federated import as_clients, split_clients


def held(clients):
    """All examples that clients have, a client's own once."""
    return np.concatenate([row[:n] for row, n in zip(*clients, strict=True)])


@settings(max_examples=40, deadline=None)
@given(
    how=st.sampled_from(["iid", "dirichlet:0.1", "dirichlet:10", "site"]),
    clients=st.integers(1, 30), count=st.integers(30, 300), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_example_is_at_one_client(how, clients, count, seed):
    y = np.random.default_rng(seed).integers(0, 7, count)
    groups = {"site": np.arange(count) // 11}
    found = split_clients(how, clients, y, count=count, groups=groups, seed=seed)
    assert found.rows.shape == (clients, found.counts.max()) and found.counts.min() >= 1
    assert np.array_equal(np.sort(held(found)), np.arange(count))
    # A short row goes on with its client's own.
    for row, n in zip(*found, strict=True):
        assert set(row) == set(row[:n])


def test_the_smaller_the_number_the_less_alike():
    y = np.arange(20_000) % 10

    def purity(how):
        rows = split_clients(how, 50, y, count=len(y), seed=1)
        return np.mean([np.bincount(y[r[:n]]).max() / n for r, n in zip(*rows, strict=True)])

    assert purity("iid") < 0.16 < purity("dirichlet:1") < purity("dirichlet:0.1")
    assert purity("dirichlet:0.1") > 0.5


def test_classes():
    y = np.arange(1000) % 10
    found = split_clients("classes:3", 20, y, count=1000)
    assert all(len(set(y[row])) == 3 for row in found.rows)
    assert len(np.unique(held(found))) == len(held(found)) == 1000
    few = split_clients("classes:1", 4, y, count=1000)  # six classes are at none
    assert len({y[row][0] for row in few.rows}) == 4


def test_groups_stay_whole_or_are_cut_in_time():
    site = np.repeat([0, 1, 2], [50, 20, 30])
    three = split_clients("site", 3, None, count=100, groups={"site": site})
    assert sorted(three.counts.tolist()) == [20, 30, 50]
    two = split_clients("site", 2, None, count=100, groups={"site": site})
    assert sorted(two.counts.tolist()) == [50, 50]
    five = split_clients("site", 5, None, count=100, groups={"site": site})
    for row, n in zip(*five, strict=True):
        assert len(set(site[row[:n]])) == 1 and (np.diff(row[:n]) == 1).all()


def test_a_split_repeats_and_a_seed_changes_it():
    y = np.arange(500) % 5
    one, same, other = (split_clients("dirichlet:0.3", 9, y, count=500, seed=s) for s in (3, 3, 4))
    assert np.array_equal(one.rows, same.rows)
    assert not np.array_equal(held(one), held(other))


@pytest.mark.parametrize(
    ("how", "clients", "y", "message"),
    [
        ("alike", 3, None, "split 'alike' is none of iid, dirichlet, classes"),
        ("iid", 0, None, r"clients 0 is outside 1\.\.20"),
        ("iid", 21, None, r"clients 21 is outside 1\.\.20"),
        ("iid:3", 2, None, "iid takes no number"),
        ("dirichlet:0", 2, np.zeros(20, int), r"0 is outside 0\.001\.\.inf"),
        ("dirichlet:x", 2, np.zeros(20, int), "takes a number, as dirichlet:0.3"),
        ("dirichlet:1", 2, np.zeros(20), "needs labels of classes"),
        ("classes:4", 2, np.arange(20) % 3, "there are 3 classes"),
    ],
)  # fmt: skip
def test_errors(how, clients, y, message):
    with pytest.raises(ValueError, match=message):
        split_clients(how, clients, y, count=20)


def test_a_client_without_examples():
    with pytest.raises(ValueError, match=r"clients \[1\] have no examples"):
        as_clients([np.array([1]), np.array([], int)])
