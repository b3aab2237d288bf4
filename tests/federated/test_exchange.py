"""What travels: which mean is which, and what a table of hashes gives back."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rosler_jax.config import TrainConfig
from rosler_jax.federated._count_sketch import estimates, places, sketched
from rosler_jax.federated._travel import arrived, travelling
from rosler_jax.federated.exchanges import exchange
from rosler_jax.fit import learner_of
from rosler_jax.nn import SketchConv


def model(method, rank=4, **settings):
    config = TrainConfig(hidden=(40, 30), rank=rank, method=method, **settings)
    shape = SimpleNamespace(train_x=np.zeros((4, 50), np.float32), num_classes=3)
    learner = learner_of(config, shape)
    params, buffers = learner.init(jax.random.key(0))
    return learner, travelling(params, buffers)["params"]


def product(params, layer):
    c, r = params[f"{layer}/c"], params[f"{layer}/r"]
    u = params.get(f"{layer}/u", jnp.eye(c.shape[1]))
    return np.asarray(c, np.float64) @ np.asarray(u, np.float64) @ np.asarray(r, np.float64)


def moved(params, seed, size):
    """Clients' parameters after training: each leaf moved at random."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + size * jnp.asarray(rng.normal(size=x.shape) * np.std(x), x.dtype), params
    )


def best_of_rank(w, rank):
    left, sigma, right = np.linalg.svd(w)
    return left[:, :rank] * sigma[:rank] @ right[:rank]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["low-rank", "chain"])
def test_sketches_give_the_mean_of_the_weights(method):
    """To rounding where the mean has the rank; else close to the best factors of that rank.

    Generalised Nystroem with ``Y`` of s = rank + p columns and ``Z`` of 2 s rows errs, against the
    tail beyond rank s, by a factor sqrt(1 + s / (s - 1)) sqrt(1 + rank / (p - 1)) in the mean
    (Nakatsukasa 2020, theorem 2.2; HMT 10.5); twice that is allowed for.
    """
    learner, old = model(method)
    ex = exchange("sketches:8", old, learner.views, seed=3)
    # Clients that share the columns of C: the mean has the same rank.
    same = [{**old, "hidden/0/r": (1 + k) * old["hidden/0/r"]} for k in range(3)]
    message = jax.tree.map(lambda *x: sum(x) / 3, *(ex.send(new, old) for new in same))
    change, _ = ex.receive(message, old, ())
    new = jax.tree.map(jnp.add, old, change)
    wanted = 2 * product(old, "hidden/0")
    assert np.abs(product(new, "hidden/0") - wanted).max() < 2e-5 * np.abs(wanted).max()
    # Clients that went apart.
    clients = [moved(old, k, 0.3) for k in range(4)]
    message = jax.tree.map(lambda *x: sum(x) / 4, *(ex.send(new, old) for new in clients))
    change, _ = ex.receive(message, old, ())
    new = jax.tree.map(jnp.add, old, change)
    mean = sum(product(client, "hidden/0") for client in clients) / 4
    best = np.linalg.norm(mean - best_of_rank(mean, 4))
    found = np.linalg.norm(mean - product(new, "hidden/0"))
    assert best <= found < 2 * np.sqrt(1 + 12 / 11) * np.sqrt(1 + 4 / 7) * best
    factors = jax.tree.map(lambda *x: sum(x) / 4, *clients)
    # What is no factor is averaged as it is.
    assert np.allclose(new["head/kernel"], factors["head/kernel"], atol=1e-6)


@pytest.mark.slow
def test_clients_whose_factors_turned_have_the_same_weight_and_no_mean_of_factors():
    """``C T`` and ``T^-1 R`` is one W for any T: sketches see that, a mean of factors cannot."""
    learner, old = model("low-rank")
    ex, rng = exchange("sketches:4", old, learner.views), np.random.default_rng(0)
    clients = []
    for _ in range(4):
        turn = np.linalg.qr(rng.normal(size=(4, 4)))[0].astype(np.float32)
        c, r = old["hidden/0/c"] @ turn, turn.T @ old["hidden/0/r"]
        clients.append({**old, "hidden/0/c": c, "hidden/0/r": r})
    message = jax.tree.map(lambda *x: sum(x) / 4, *(ex.send(new, old) for new in clients))
    change, _ = ex.receive(message, old, ())
    new = jax.tree.map(jnp.add, old, change)
    wanted = product(old, "hidden/0")
    assert np.abs(product(new, "hidden/0") - wanted).max() < 2e-5 * np.abs(wanted).max()
    factors = jax.tree.map(lambda *x: sum(x) / 4, *clients)
    assert np.linalg.norm(product(factors, "hidden/0") - wanted) > 0.5 * np.linalg.norm(wanted)


@pytest.mark.parametrize("method", ["low-rank", "chain"])
def test_nothing_changes_where_nothing_changed(method):
    """And factors stay where they are: a server's change is small where the weights' is.

    Of two factors after one exchange: it balances them.
    """
    learner, old = model(method)
    ex = exchange("sketches", old, learner.views)
    both = jax.jit(lambda new, old: ex.receive(ex.send(new, old), old, ()))
    if method == "low-rank":
        first, _ = both(old, old)
        balanced = jax.tree.map(jnp.add, old, first)
        wanted = product(old, "hidden/0")
        assert np.abs(product(balanced, "hidden/0") - wanted).max() < 2e-5 * np.abs(wanted).max()
        c, r = balanced["hidden/0/c"], balanced["hidden/0/r"]
        assert np.allclose(c.T @ c, r @ r.T, atol=1e-4)
        old = balanced
    change, _ = both(old, old)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(change)) < 1e-4
    near = moved(old, 1, 1e-3)
    change, _ = both(near, old)
    wanted = jax.tree.map(jnp.subtract, near, old)
    size = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted))
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(change)) < 5 * size


@pytest.mark.slow
def test_sketches_of_convolutions_are_those_of_their_matrices():
    from flax import nnx

    from rosler_jax import matrix_views
    from rosler_jax.learner import split_state

    layer = SketchConv(6, 8, (3, 3), rank=4, mode="chain", rngs=nnx.Rngs(0))
    params = travelling(split_state(layer)[1], {})["params"]
    ex = exchange("sketches:4", params, matrix_views(layer))
    new = {**params, "c": 2 * params["c"]}
    change, _ = ex.receive(ex.send(new, params), params, ())
    made = jax.tree.map(jnp.add, params, change)
    flat = lambda p: p["c"].reshape(-1, 4) @ p["u"].reshape(4, 4) @ p["r"].reshape(4, 8)
    assert np.allclose(flat(made), 2 * flat(params), atol=1e-5)


def test_the_mean_of_seeded_cores_is_the_mean_of_the_weights():
    """Exactly, in exact numbers: W is linear in U. Here to float32's rounding."""
    learner, old = model("seeded")
    params, buffers = learner.init(jax.random.key(0))
    x = jnp.eye(50)
    clients = [moved({"hidden/0/u": old["hidden/0/u"]}, k, 0.5) for k in range(3)]

    def first_layer(core):
        whole = {"params": {**old, **core}, "statistics": {}}
        held = learner.model(*arrived(whole, params, buffers))
        return np.asarray(held.hidden[0](x) - held.hidden[0](0 * x), np.float64)

    mean_weights = sum(map(first_layer, clients)) / 3
    mean_core = jax.tree.map(lambda *u: sum(u) / 3, *clients)
    assert np.abs(first_layer(mean_core) - mean_weights).max() < 2e-6 * np.abs(mean_weights).max()


@pytest.mark.parametrize("method", ["seeded", "dense", "ares-bp"])
def test_sketches_of_what_has_no_learnt_factors_are_refused(method):
    learner, params = model(method)
    with pytest.raises(ValueError, match="is of layers with learnt factors c and r"):
        exchange("sketches", params, learner.views)


def test_count_sketches_add_and_find_the_large_ones():
    rng, at = np.random.default_rng(0), places(5000, 300, seed=1)
    a, b = (jnp.asarray(rng.normal(size=5000) * 0.01, jnp.float32) for _ in range(2))
    b = b.at[jnp.array([17, 4000])].set(jnp.array([7.0, -5.0]))
    both = sketched(a, at) + sketched(b, at)
    assert np.allclose(both, sketched(a + b, at), atol=1e-5)
    found = np.asarray(estimates(both, at))
    assert set(np.argsort(-np.abs(found))[:2]) == {17, 4000}
    # 17 numbers share a place: their sum has deviation 0.01 sqrt(2 * 17) = 0.06.
    assert abs(found[17] - 7) < 0.3 and abs(found[4000] + 5) < 0.3


def test_hashes_spread_evenly_and_signs_are_fair():
    """Counts of 60,000 numbers in 100 places: chi-square of 99 degrees, within 5 deviations."""
    at = places(60_000, 100, seed=5)
    for where, sign in zip(np.asarray(at.where), np.asarray(at.sign), strict=True):
        chi = ((np.bincount(where, minlength=100) - 600) ** 2 / 600).sum()
        assert abs(chi - 99) < 5 * np.sqrt(2 * 99)
        assert abs(sign.mean()) < 5 / np.sqrt(60_000)
    assert (np.asarray(at.where[0]) != np.asarray(at.where[1])).mean() > 0.95


@pytest.mark.slow
def test_a_count_sketch_keeps_what_is_not_read():
    """Where nothing was read the table is all that was sent; where it was read it is empty."""
    params = {"w": jnp.zeros(200)}
    ex = exchange("count-sketch:0.6", params, {})
    update = {"w": jnp.asarray(np.random.default_rng(0).normal(size=200), jnp.float32)}
    message, at = ex.send(update, params), places(200, 40, seed=0)
    change, state = ex.receive(message, params, ex.init(params))
    assert np.count_nonzero(change["w"]) == 10  # a quarter of a row's places
    read = np.asarray(sketched((change["w"] != 0).astype(jnp.float32), at)) != 0
    assert 0 < read.mean() < 0.3
    for kept in (state.error, state.momentum):
        assert np.array_equal(kept, np.where(read, 0.0, message["table"]))


@pytest.mark.slow
def test_the_largest_numbers_of_many_updates_come_through():
    """Three numbers that all clients send stand out of noise: after rounds of it they have moved by
    what was sent, times 1 / (1 - momentum), within a fifth; all else has hardly moved."""
    rng, params = np.random.default_rng(0), {"w": jnp.zeros(2000)}
    ex = exchange("count-sketch:0.9", params, {})  # few share two places with a large one
    state, moved, receive = ex.init(params), np.zeros(2000), jax.jit(ex.receive)
    steady = np.zeros(2000)
    steady[[5, 700, 1999]] = [1.0, -2.0, 1.5]
    for _ in range(60):
        new = {"w": jnp.asarray(steady + 0.01 * rng.normal(size=2000), jnp.float32)}
        change, state = receive(ex.send(new, params), params, state)
        moved += np.asarray(change["w"])
    assert set(np.argsort(-np.abs(moved))[:3]) == {5, 700, 1999}
    # What is read empties the momentum at its places: such a number moves by what was just sent.
    share = moved[[5, 700, 1999]] / (60 * steady[[5, 700, 1999]])
    assert (share > 0.8).all() and (share < 12).all()
    assert np.abs(np.delete(moved, [5, 700, 1999])).max() < 0.1 * np.abs(moved[5])


def test_seeds_and_marks_do_not_travel():
    _, params = model("seeded")
    assert sorted(params) == [
        "head/bias", "head/kernel", "hidden/0/bias", "hidden/0/u", "hidden/1/bias", "hidden/1/u",
    ]  # fmt: skip
