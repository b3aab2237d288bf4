"""A round: against one central step, plain loops and formulas, and how it is spread on devices.

Sums in float32 of n terms are off by ``n u`` of the sum of their sizes at most, ``u = 2^-24``;
below, ``rounding`` allows for products and means of 64 terms of a step, which none here exceeds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import own_parts
import pytest

import rosler_kernels as rk
from rosler_jax.config import TrainConfig
from rosler_jax.federated import FederatedConfig, as_clients, prepare_federated
from rosler_jax.federated._travel import arrived, travelling
from rosler_jax.federated.prepare import after_switch, begin_progress, programs
from rosler_jax.federated.run import finish
from rosler_jax.federated.simulate import federated_fit, play_round
from rosler_jax.fit import run_key
from rosler_jax.methods import METHODS
from rosler_jax.optim.check_sketches import check_sketches
from rosler_jax.tasks import cross_entropy
from rosler_jax.units import standardized

U = 2.0**-24
RNG = np.random.default_rng(0)
Y = np.repeat(np.arange(3), 30)
X = (RNG.normal(size=(3, 12))[Y] + 0.5 * RNG.normal(size=(90, 12))).astype(np.float32)
# 54 examples to train on; scored on what was held out of them.
UNEVEN = as_clients(np.split(np.random.default_rng(1).permutation(54), [3, 10, 22, 37]))
EVEN = as_clients(np.split(np.arange(48), 6))


def prepared(clients=EVEN, *, settings=None, mesh=None, at_once=None, data=(X, Y), **federation):
    """A run of tiny clients; floats as they are both ways unless said otherwise."""
    config = {
        "method": "dense", "hidden": (10,), "rank": 3, "batch_size": 8, "learning_rate": 0.2,
        "schedule": "constant", "validation": 0.25, "weight_decay": 0.05, **(settings or {}),
    }  # fmt: skip
    federated = {
        "clients": len(clients.counts), "rounds": 4, "participation": 1.0, "upload": "float32",
        "download": "float32", "reject_norm": 0.0, **federation,
    }  # fmt: skip
    return prepare_federated(
        TrainConfig(**config), FederatedConfig(**federated), data, clients=clients, mesh=mesh,
        at_once=at_once,
    )  # fmt: skip


def started(run):
    return jax.jit(run.rounds.init)(run_key(run.config.seed))


def one_round(run, came=None):
    """``(state, arrays) -> (state, asked, answers, received)``, nothing happening on the way."""

    def play(state, arrays=run.arrays, hyper=run.hyper):
        asked = run.rounds.ask(state, *map(jnp.asarray, run.clients))
        answers = run.rounds.answer(state, asked, arrays, hyper, run.units)
        messages = run.rounds.unpacked(answers.packed)
        arrived = asked.answers if came is None else jnp.asarray(came)
        state, received = run.rounds.receive(state, asked, answers, messages, arrived)
        return state, asked, answers, received

    return play


def loss_of(run, index):
    """The mean loss of examples as a function of the parameters that travel, written out."""
    x, y = run.arrays.train_x[index], run.arrays.train_y[index]

    def loss(weights, params, buffers):
        put, buffers = arrived({"params": weights, "statistics": {}}, params, buffers)
        out, _ = run.learner.apply(put, buffers, standardized(x, run.units), True)
        return cross_entropy(out, y).mean()

    return loss


def largest(tree):
    return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))


def apart(a, b):
    chex.assert_trees_all_equal_structs(a, b)
    return largest(jax.tree.map(jnp.subtract, a, b))


def rounding(rate, weights, sizes):
    """Of one step of gradient descent: of the weights, and of a mean of gradients."""
    return 64 * U * (largest(weights) + rate * largest(sizes))


# --- what a round is ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dense", "seeded", "chain"])
def test_a_round_of_whole_batches_is_one_central_step(method):
    """Clients of 8 examples, batches of 8: their mean is gradient descent on all 48."""
    run = prepared(settings={"method": method})
    state = started(run)
    new, *_, received = jax.jit(one_round(run))(state)
    weights = state.weights["params"]
    one = lambda k: jax.grad(loss_of(run, k[None]))(weights, state.params, state.buffers)
    each = jax.jit(jax.vmap(one))(jnp.arange(48))
    gradient = jax.tree.map(lambda g: g.mean(0), each)
    sizes = jax.tree.map(lambda g: jnp.abs(g).mean(0), each)
    wanted = jax.tree.map(lambda w, g: w - 0.2 * (g + 0.05 * w), weights, gradient)
    tolerance = rounding(0.2, weights, sizes)
    assert apart(new.weights["params"], wanted) < tolerance
    assert apart(weights, wanted) > 1000 * tolerance
    chex.assert_trees_all_equal(new.sent, new.weights)
    assert int(new.round) == 1
    loss = loss_of(run, jnp.arange(48))(weights, state.params, state.buffers)
    np.testing.assert_allclose(float(received.loss), float(loss), rtol=64 * U)


def plain_loop(run, state, rounds, weigh):
    """Clients one after the other, each a loop over batches as ``make_local`` says them."""
    weights, rate, decay, batch = state.weights["params"], 0.2, 0.05, run.config.batch_size
    gradient = jax.jit(
        lambda w, index: jax.grad(loss_of(run, index))(w, state.params, state.buffers)
    )
    losses = jax.jit(lambda w, index: loss_of(run, index)(w, state.params, state.buffers))
    found = []
    for now in range(rounds):
        ends, means = [], []
        for client, (row, count) in enumerate(zip(*run.clients, strict=True)):
            key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
            work = jax.random.split(jax.random.fold_in(key, now), 3)[2]
            mine = jax.random.fold_in(work, client)
            drawn = jax.random.uniform(mine, (run.federated.local_epochs, len(row)))
            own, trace, seen = weights, jax.tree.map(jnp.zeros_like, weights), []
            for order in np.asarray(drawn)[:, :count].argsort(axis=1):
                whole = -(-count // batch) * batch  # filled up from the order's beginning
                for places in np.resize(order, whole).reshape(-1, batch):
                    index = jnp.asarray(row[places])
                    seen.append(float(losses(own, index)))
                    trace = jax.tree.map(lambda m, g: 0.9 * m + g, trace, gradient(own, index))
                    own = jax.tree.map(lambda w, m: w - rate * (m + decay * w), own, trace)
            ends.append(own)
            means.append(np.mean(seen))
        share = weigh(np.asarray(run.clients.counts, float))
        weights = jax.tree.map(
            lambda *w, s=share: sum(a * b for a, b in zip(s, w, strict=True)), *ends
        )
        found.append(np.mean(means))
    return weights, found


def test_two_rounds_are_those_of_a_plain_loop_over_clients():
    """Unequal counts, two local epochs, momentum that begins anew, batches that are filled up.

    2 rounds of up to 8 steps: 16 times a step's rounding, and as much again for what steps make of
    it. That is little: without weights by counts the loop ends 100 times as far away.
    """
    run = prepared(UNEVEN, settings={"batch_size": 4}, local_epochs=2, client="momentum:0.9")
    assert sorted(run.clients.counts) == [3, 7, 12, 15, 17]
    state, play, losses = started(run), jax.jit(one_round(run)), []
    first = state
    for _ in range(2):
        state, _, _, received = play(state)
        losses.append(float(received.loss))
    wanted, means = plain_loop(run, first, 2, lambda n: n / n.sum())
    tolerance = 2 * 16 * 64 * U * 2 * largest(first.weights["params"])
    assert apart(state.weights["params"], wanted) < tolerance
    np.testing.assert_allclose(losses, means, atol=tolerance)
    other, _ = plain_loop(run, first, 2, lambda n: np.full(len(n), 1 / len(n)))
    assert apart(state.weights["params"], other) > 100 * tolerance


def test_the_order_of_a_client_is_its_own_in_every_round():
    """And whoever else is asked: its key comes of the round's and of its number alone."""
    run = prepared(UNEVEN)
    state = started(run)
    some = prepared(UNEVEN, participation=0.4)
    ask = lambda run, state: run.rounds.ask(state, *map(jnp.asarray, run.clients))
    keys = {}
    for asked in (ask(run, state), ask(some, state)):
        for client, words in zip(asked.clients, asked.work.keys, strict=True):
            keys.setdefault(int(client), set()).add(tuple(map(int, words)))
    assert len(keys) == 5 and all(len(found) == 1 for found in keys.values())
    assert len(set.union(*keys.values())) == 5
    later = ask(run, state._replace(round=state.round + 1))
    assert not {tuple(map(int, w)) for w in later.work.keys} & set.union(*keys.values())


def test_who_is_asked_has_most_examples_first_and_no_work_if_it_does_not_answer():
    run = prepared(UNEVEN, drop=0.5)
    for now in range(6):
        state = started(run)._replace(round=jnp.int32(now))
        asked = run.rounds.ask(state, *map(jnp.asarray, run.clients))
        counts = run.clients.counts[np.asarray(asked.clients)]
        assert sorted(map(int, asked.clients)) == list(range(5))
        assert (np.diff(counts) <= 0).all()
        np.testing.assert_array_equal(asked.work.counts, np.where(asked.answers, counts, 0))
        np.testing.assert_array_equal(asked.work.rows, run.clients.rows[asked.clients])


@pytest.mark.slow
def test_fedprox_adds_its_gradient_and_not_its_loss():
    """Two whole-batch steps: the first is at the server's model, the second is pulled to it."""
    one = as_clients([np.arange(8)])
    run = prepared(one, local_epochs=2, proximal=0.7, settings={"weight_decay": 0.0})
    state = started(run)
    new, _, answers, _ = jax.jit(one_round(run))(state)
    loss, w0 = loss_of(run, jnp.arange(8)), state.weights["params"]
    grad = lambda w: jax.grad(loss)(w, state.params, state.buffers)
    w1 = jax.tree.map(lambda w, g: w - 0.2 * g, w0, grad(w0))
    w2 = jax.tree.map(lambda w, g, a: w - 0.2 * (g + 0.7 * (w - a)), w1, grad(w1), w0)
    tolerance = 4 * rounding(0.2, w0, grad(w0))
    assert apart(new.weights["params"], w2) < tolerance
    without = jax.tree.map(lambda w, g: w - 0.2 * g, w1, grad(w1))
    assert apart(new.weights["params"], without) > 100 * tolerance
    seen = [float(loss(w, state.params, state.buffers)) for w in (w0, w1)]
    np.testing.assert_allclose(float(answers.loss[0]), np.mean(seen), rtol=64 * U)


SERVERS = {
    "fedavg:0.5": optax.sgd(0.5),
    "fedavgm:0.3": optax.sgd(0.3, momentum=0.9),
    "fedadam:0.03": optax.adam(0.03, b1=0.9, b2=0.99, eps=1e-3),
    "fedyogi:0.03": optax.yogi(0.03, b1=0.9, b2=0.99, eps=1e-3),
}


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_optimiser_gets_the_mean_change_negated(server):
    """Three rounds by hand from the messages; Adam divides by 1e-3 at least: 1 / 1e-3 roundings."""
    run = prepared(UNEVEN, server=server)
    state, play = started(run), jax.jit(one_round(run))
    tx, weights = SERVERS[server], state.weights["params"]
    opt_state = tx.init(weights)
    for _ in range(3):
        before = state
        state, asked, answers, _ = play(state)
        share = np.asarray(asked.work.counts, float) / 54
        rows = run.rounds.unpacked(answers.packed)
        mean = np.asarray(share @ np.asarray(rows, float), np.float32)
        leaves, treedef = jax.tree.flatten(before.weights["params"])
        cuts = np.cumsum([leaf.size for leaf in leaves])[:-1]
        parts = [
            -p.reshape(leaf.shape) for p, leaf in zip(np.split(mean, cuts), leaves, strict=True)
        ]
        updates, opt_state = tx.update(jax.tree.unflatten(treedef, parts), opt_state, weights)
        weights = optax.apply_updates(weights, updates)
        assert apart(state.weights["params"], weights) < 64 * U * 0.03 / 1e-3
        assert apart(state.weights["params"], before.weights["params"]) > 1e-3


def test_aggregates_and_clipping_see_the_same_messages():
    """Messages cut to a norm and divided by all who were asked, by hand; no weights by counts."""
    run = prepared(UNEVEN, clip=0.05)
    state = started(run)
    came = [True, True, False, True, True]
    new, _, answers, received = jax.jit(one_round(run, came))(state)
    rows = np.asarray(run.rounds.unpacked(answers.packed), float)
    norms = np.linalg.norm(rows, axis=1)
    assert (norms > 0.05).any()
    cut = rows * np.minimum(1, 0.05 / norms)[:, None]
    change = jax.tree.map(jnp.subtract, new.weights["params"], state.weights["params"])
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(change)])
    tolerance = 8 * U * largest(state.weights["params"])
    np.testing.assert_allclose(flat, cut[came].sum(0) / 5, atol=tolerance)
    np.testing.assert_allclose(np.asarray(received.checked.norms)[came], norms[came], rtol=64 * U)


def test_noise_is_of_the_deviation_that_is_promised():
    """On 153 numbers of five rounds: a variance of n is off by sqrt(2 / n), five times allowed."""
    quiet, loud = (prepared(clip=0.1, noise=noise) for noise in (0.0, 3.0))
    plays = [jax.jit(one_round(run)) for run in (quiet, loud)]
    state, drawn = started(quiet), []
    for now in range(5):
        at = state._replace(round=jnp.int32(now))
        a, b = (play(at)[0].weights["params"] for play in plays)
        drawn += [np.ravel(x) for x in jax.tree.leaves(jax.tree.map(jnp.subtract, a, b))]
    found = np.concatenate(drawn) / (3.0 * 0.1 / 6)
    assert abs((found**2).mean() - 1) < 5 * np.sqrt(2 / len(found))
    assert abs(found.mean()) < 5 / np.sqrt(len(found))
    assert len(np.unique(found.round(6))) > 0.98 * len(found)  # and of no number twice


# --- how it is computed -------------------------------------------------------------------------


@pytest.mark.slow
def test_chunks_change_nothing_but_rounding():
    """Also 3 of 5 clients at once, where the last chunk is filled up with clients of nothing."""
    found = {}
    for width in (1, 3, 99):
        run = prepared(UNEVEN, at_once=width, local_epochs=2)
        state, play = started(run), jax.jit(one_round(run))
        for _ in range(2):
            state, _, answers, _ = play(state)
        found[width] = state.weights["params"], answers.loss
    tolerance = 2 * 16 * 64 * U * 2 * largest(found[1][0])
    for width, (weights, loss) in found.items():
        assert apart(weights, found[1][0]) < tolerance, width
        np.testing.assert_allclose(loss, found[1][1], atol=tolerance)


ON_A_MESH = """
import sys
sys.path.insert(0, {folder!r})
import jax, numpy as np
from test_rounds import UNEVEN, U, largest, apart, one_round, prepared, started
assert jax.device_count() == 2
found = []
for mesh in (None, jax.make_mesh((2,), ("clients",))):  # of explicit axes
    run = prepared(UNEVEN, mesh=mesh, upload="bits:8")
    state, play = started(run), jax.jit(one_round(run))
    for _ in range(2):
        state, _, answers, _ = play(state)
    found.append(state.weights["params"])
for other in found[1:]:
    # Rounding may take an integer of 8 bits to the next: one step of one client of five.
    assert apart(found[0], other) < 2e-3, apart(found[0], other)
    assert apart(found[0], other) < 1e-2 * apart(found[0], started(run).weights["params"])
print("equal")
"""


@pytest.mark.slow
def test_a_mesh_of_two_devices_trains_to_the_same_numbers():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    path = os.pathsep.join(filter(None, sys.path))
    environment = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags, PYTHONPATH=path)
    program = ON_A_MESH.format(folder=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True,
        timeout=200,
    )  # fmt: skip
    assert done.stdout.strip() == "equal", done.stderr[-3000:]


@pytest.mark.parametrize("federation", [
    {"wire": True, "bad": 0.2}, {"wire": False}, {"secure": True, "upload": "float32"},
])  # fmt: skip
def test_later_rounds_compile_nothing(federation):
    """Of a run with all kinds of state: memory, a grid, momentum of the server, statistics."""
    settings = {"model": f"{own_parts.__file__}:build"}
    rounds = {"upload": "step:2", "download": "grid:2", "server": "fedadam:0.01", **federation}
    run = prepared(UNEVEN, settings=settings, drop=0.2, **rounds)
    traced = []

    def counted(name):
        function = getattr(run.rounds, name)
        return lambda *args: (traced.append(name), function(*args))[1]

    names = ("ask", "answer", "receive")
    run = run._replace(rounds=run.rounds._replace(**{name: counted(name) for name in names}))
    parts, progress, history = programs(run), begin_progress(run), []
    for _ in range(4):
        progress, row, _ = play_round(run, parts, progress, history)
        history.append(row)
    assert sorted(traced) == sorted(names)


@pytest.mark.slow
def test_whole_runs_are_vmapped_over_seeds():
    """As one by one: the functions are pure, and keys are all that differs."""
    run = prepared(UNEVEN, participation=0.6, upload="step:2", download="grid:2")
    play = one_round(run)

    def whole(seed):
        state = run.rounds.init(jax.random.key(seed, impl="threefry2x32"))

        def step(state, _):
            state, asked, _, received = play(state)
            return state, (asked.clients, received.loss)

        return jax.lax.scan(step, state, None, length=2)

    state, (clients, losses) = jax.jit(jax.vmap(whole))(jnp.arange(3))
    assert losses.shape == (3, 2) and len(np.unique(losses)) == 6
    for seed in range(3):
        alone, (asked, loss) = jax.jit(whole)(seed)
        np.testing.assert_array_equal(asked, clients[seed])
        # Rounding may carry an integer of a message to the next: two steps in twenty at most.
        np.testing.assert_allclose(loss, losses[seed], rtol=1e-2)
        chex.assert_trees_all_equal_shapes_and_dtypes(
            alone, jax.tree.map(lambda x, k=seed: x[k], state)
        )


# --- what rounding leaves -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_client_keeps_what_its_message_leaves_out_if_it_answered():
    """``memory + sent = trained + memory before`` number by number; others' rows stay."""
    run = prepared(UNEVEN, participation=0.8, drop=0.4, upload="step:2")
    plain = prepared(UNEVEN, participation=0.8, drop=0.4)
    state, play, exact = started(run), jax.jit(one_round(run)), jax.jit(one_round(plain))
    kept, moved, left = 0, 0, 0
    for _ in range(6):
        before = state
        state, asked, answers, _ = play(before)
        # What the clients trained, unrounded: of the same model, in the same round.
        full = plain.rounds.unpacked(exact(before._replace(memory={}))[2].packed)
        rows = np.asarray(run.rounds.unpacked(answers.packed))
        flat = lambda memory: np.concatenate(
            [np.asarray(x).reshape(5, -1) for x in jax.tree.leaves(memory)], axis=1
        )
        old, new = flat(before.memory), flat(state.memory)
        for place, client in enumerate(map(int, asked.clients)):
            if not asked.answers[place]:
                left += 1
                np.testing.assert_array_equal(new[client], old[client])
                continue
            moved += 1
            size = np.abs(full[place]).max() + np.abs(old[client]).max() + np.abs(rows[place])
            error = np.abs(new[client] + rows[place] - full[place] - old[client])
            assert (error <= 64 * U * (size + largest(before.weights))).all()
            assert np.abs(new[client]).max() > 0
        silent = set(range(5)) - set(map(int, asked.clients))
        kept += len(silent)
        for client in silent:
            np.testing.assert_array_equal(new[client], old[client])
    assert kept and moved and left


@pytest.mark.parametrize("download", ["grid:2", "step:2", "bits:4", "sign"])
def test_the_server_and_its_clients_differ_by_what_the_way_down_has_left(download):
    """``w - v`` after a round is ``(w - v)`` before the message minus the message, and no more:
    with what clients add to the server's weights, not to their own."""
    run = prepared(UNEVEN, download=download)
    state, play = started(run), jax.jit(one_round(run))
    for _ in range(4):
        before = state
        state, asked, answers, received = play(state)
        share = np.asarray(asked.work.counts, float) / 54
        mean = share @ np.asarray(run.rounds.unpacked(answers.packed), float)
        leaves = zip(
            *(
                jax.tree.leaves(tree["params"])
                for tree in (before.weights, state.weights, before.sent, state.sent)
            ),
            received.down.values, received.down.scales, strict=True,
        )  # fmt: skip
        place, tolerance = 0, 64 * U * largest(before.weights["params"])
        for w, new, v, sent, values, scale in leaves:
            step = float(scale)
            change = mean[place : place + w.size].reshape(w.shape)
            place += w.size
            np.testing.assert_allclose(new, w + change, atol=tolerance)
            np.testing.assert_allclose(sent - v, np.asarray(values, float) * step, atol=tolerance)
            if download.startswith("grid"):  # of steps that are wider in a long message
                width = step * np.gcd.reduce(np.asarray(values, int), axis=None)
                assert not width or np.abs(new - sent).max() <= width / 2 + tolerance
        assert apart(state.weights, state.sent) > 100 * tolerance


def test_small_changes_get_through_a_grid():
    """A round's change is far below half a step of the grid; many together are not.

    Without error feedback on the way down the clients' model would never move.
    """
    run = prepared(settings={"learning_rate": 2e-4}, download="grid:2")
    exact = prepared(settings={"learning_rate": 2e-4})
    state, play = started(run), jax.jit(one_round(run))
    other, plain = started(exact), jax.jit(one_round(exact))
    first = state
    for _ in range(100):
        (state, *_), (other, *_) = play(state), plain(other)
    steps = dict(zip(first.weights["params"], first.grid.scales, strict=True))
    change = jax.tree.map(jnp.subtract, other.sent, first.sent)["params"]
    one = jax.tree.map(jnp.subtract, plain(started(exact))[0].sent, first.sent)["params"]
    assert all(jnp.abs(one[name]).max() < step / 4 for name, step in steps.items())
    for name, step in steps.items():
        moved = state.sent["params"][name] - first.sent["params"][name]
        # Half a step of rounding, and what other clients' models made of the gradients.
        assert jnp.abs(moved - change[name]).max() < 0.75 * step, name
    assert any(jnp.abs(change[name]).max() > step for name, step in steps.items())


@pytest.mark.slow
def test_on_a_grid_what_clients_have_is_start_and_whole_steps():
    """Exactly, and so it is for one who adds up the steps of all messages."""
    run = prepared(UNEVEN, download="grid:2", upload="step:2")
    state, play = started(run), jax.jit(one_round(run))
    first = state
    total = [np.zeros(x.shape, np.int64) for x in jax.tree.leaves(state.weights)]
    for _ in range(4):
        state, _, _, received = play(state)
        total = [t + np.asarray(q) for t, q in zip(total, received.down.values, strict=True)]
        for t, steps in zip(total, state.grid.steps, strict=True):
            np.testing.assert_array_equal(t, steps)
        chex.assert_trees_all_equal(state.grid.start, first.weights["params"])
        chex.assert_trees_all_equal(state.grid.scales, first.grid.scales)
        leaves = zip(
            *map(jax.tree.leaves, (state.sent["params"], first.weights["params"])), total,
            state.grid.scales, strict=True,
        )  # fmt: skip
        for sent, start, t, scale in leaves:
            wanted = np.asarray(start) + np.float32(t) * np.float32(scale)
            np.testing.assert_array_equal(np.asarray(sent), wanted)
    assert max(np.abs(t).max() for t in total) > 3


@pytest.mark.slow
def test_a_client_that_diverged_once_is_heard_again():
    """Its memory holds no NaN, which it would send for ever."""
    run = prepared(upload="step:2")
    state, play = started(run), jax.jit(one_round(run))
    bad = run.arrays._replace(train_x=run.arrays.train_x.at[:8].set(jnp.nan))
    state, asked, _, received = play(state, bad)
    place = list(map(int, asked.clients)).index(0)
    assert [bool(v) for v in received.checked.valid] == [k != place for k in range(6)]
    assert np.isfinite(received.loss)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.weights, state.memory)))
    _, _, _, received = play(state)
    assert bool(received.checked.valid.all())


# --- buffers ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", ["build", "build_linen"])
def test_statistics_are_averaged_and_counters_go_on(model):
    """Batch norm's mean and variance are in messages, weighted by counts as all else."""
    run = prepared(UNEVEN, settings={"model": f"{own_parts.__file__}:{model}", "batch_size": 4})
    state, play = started(run), jax.jit(one_round(run))
    statistics = state.weights["statistics"]
    assert sorted(name.rsplit("/", 1)[-1] for name in statistics) == ["mean", "var"]
    numbers = sum(x.size for x in jax.tree.leaves(state.weights))
    asked = run.rounds.ask(state, *map(jnp.asarray, run.clients))
    answers = run.rounds.answer(state, asked, run.arrays, run.hyper, run.units)
    rows = np.asarray(run.rounds.unpacked(answers.packed), float)
    assert rows.shape == (5, numbers)
    new, *_ = play(state)
    share = np.asarray(asked.work.counts, float) / 54
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.weights)])
    got = np.concatenate([np.ravel(x) for x in jax.tree.leaves(new.weights)])
    np.testing.assert_allclose(got, flat + share @ rows, atol=64 * U * np.abs(flat).max())
    assert apart(new.weights["statistics"], statistics) > 1e-3
    params, buffers = run.rounds.model(new)
    chex.assert_trees_all_equal(travelling(params, buffers), new.sent)
    counters = lambda tree: [
        x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jnp.floating)
    ]
    old, after = counters(state.buffers), counters(new.buffers)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(old, after, strict=True))
    again, *_ = play(new)
    third = counters(again.buffers)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(after, third, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("upload", ["step:2", "bits:8", "top:0.1"])
@pytest.mark.parametrize("download", ["grid:2", "step:1"])
def test_statistics_are_not_rounded(upload, download):
    """A variance that is rounded may come out negative, and then all is NaN: they go as floats,
    both ways, and after a round are what they are without rounding of the weights, but for the
    order of sums in another program."""
    scales = np.float32(10.0) ** np.arange(-3, 9, dtype=np.float32)  # of the inputs
    options = {
        "settings": {"model": f"{own_parts.__file__}:build", "batch_size": 4},
        "data": (X * scales, Y),
    }
    run = prepared(UNEVEN, upload=upload, download=download, **options)
    plain = prepared(UNEVEN, **options)
    like = travelling(*jax.eval_shape(run.learner.init, run_key(0)))
    count = len(like["statistics"])
    up, down = run.rounds.forms
    assert up.floats == down.floats == count > 0 and up.coded == len(up.shapes) - count
    state, *_ = jax.jit(one_round(run))(started(run))
    floats, *_ = jax.jit(one_round(plain))(started(plain))
    wanted = floats.sent["statistics"]
    chex.assert_trees_all_close(state.sent["statistics"], wanted, rtol=1e-4, atol=64 * U)
    for _ in range(3):
        state, _, _, received = jax.jit(one_round(run))(state)
    chex.assert_trees_all_equal(state.sent["statistics"], state.weights["statistics"])
    assert all(
        (np.asarray(v) >= 0).all() for k, v in state.sent["statistics"].items() if "var" in k
    )
    assert received.checked.valid.all()


def test_restricted_ranks_hold_after_every_round():
    """The server restricts the mean: that of matrices of rank 3 has any rank."""
    run = prepared(settings={"method": "restrict-rank", "restrict_every": 1})
    state, play = started(run), jax.jit(one_round(run))
    for _ in range(2):
        state, *_ = play(state)
        kernel = np.asarray(state.weights["params"]["hidden/0/kernel"])
        sigma = np.linalg.svd(kernel, compute_uv=False)
        assert sigma[3] < 1e-5 * sigma[0] < sigma[2]


# --- nobody -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("federation", [
    {}, {"server": "fedadam:0.1"}, {"upload": "step:2", "download": "grid:2"},
    {"exchange": "count-sketch:0.5"}, {"clip": 0.1, "noise": 1.0}, {"aggregate": "krum:0.2"},
    {"aggregate": "median", "reject_norm": 10.0},
])  # fmt: skip
def test_a_round_without_answers_changes_nothing_but_its_number(federation):
    run = prepared(**federation)
    state, play = started(run), jax.jit(one_round(run))
    state, *_ = play(state)
    nobody = jax.jit(one_round(run, np.zeros(6, bool)))
    new, _, _, received = nobody(state)
    chex.assert_trees_all_equal(new.weights, state.weights)
    chex.assert_trees_all_equal(new.opt_state, state.opt_state)
    chex.assert_trees_all_equal(new.exchange, state.exchange)
    assert int(new.round) == int(state.round) + 1 and float(received.loss) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(new))
    assert not received.checked.valid.any()
    moved, *_ = play(new)
    assert apart(moved.weights, new.weights) > 1e-4


# --- methods ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_ships(method, tmp_path):
    """The file computes what validation saw; but for restrict-rank, whose ranks are cut last."""
    settings = TrainConfig(
        method=method, hidden=(10,), rank=3, batch_size=8, schedule="constant", parallel_epochs=2,
        epochs=4, validation=0.25, bits=32,
    )  # fmt: skip
    both = {"upload": "float32", "download": "float32"}
    found = federated_fit(settings, FederatedConfig(clients=4, rounds=4, **both), (X, Y))
    losses = [row["validation_loss"] for row in found.history]
    assert losses[-1] < losses[0] and all(row["counted"] == 1 for row in found.history)
    result = finish(found.prepared, tmp_path, found.progress, found.history, found.refused)
    best = found.history[int(found.progress.best_round) - 1]
    assert result["best_round"] == found.progress.best_round
    if method != "restrict-rank":
        assert result["validation_accuracy"] == pytest.approx(best["validation_accuracy"])
    assert (result["parameters"] < 12 * 10 + 10 + 33) == (method != "dense")


@pytest.mark.slow
def test_mean_factors_of_the_parallel_stage_are_those_of_the_mean_weight():
    """One step of each client moves its W by its own gradient: C, A and R, each averaged by the
    server, have moved by the sketches of the mean gradient, which is had from the dense W here.

    It goes through a pseudo-inverse of the core, of condition below 100: 100 roundings of a step.
    """
    settings = {
        "method": "ares-bp", "parallel_epochs": 2, "epochs": 4, "clip_norm": 1e6, "momentum": 0.0,
        "parallel_learning_rate": 0.2, "batch_size": 17,
    }  # fmt: skip
    # Batches of 17 see the clients' few examples again and again: 17 of each, in turn.
    clients = as_clients([np.arange(17), np.arange(17, 34), np.arange(34, 51)])
    run = prepared(clients, settings=settings)
    state = started(run)
    layer = run.learner.model(state.params, state.buffers).hidden[0]
    psi, omega = map(rk.materialize, layer.sketches())
    old = {k.rsplit("/", 1)[-1]: v for k, v in state.weights["params"].items() if "hidden" in k}
    assert sorted(old) == ["bias", "c", "r", "u"]
    core = jnp.linalg.pinv(old["u"].T)
    assert np.linalg.cond(old["u"]) < 100
    x = standardized(run.arrays.train_x, run.units)[:51]

    def loss(w):
        h = jax.nn.relu(x @ w + old["bias"])
        head = state.weights["params"]
        return cross_entropy(h @ head["head/kernel"] + head["head/bias"], run.arrays.train_y[:51])

    w = old["c"] @ core @ old["r"]
    step = -0.2 * jax.grad(lambda w: loss(w).mean())(w)
    play = jax.jit(one_round(run))
    new, *_ = play(state)
    wanted = {"c": step @ omega, "r": psi.T @ step, "u": (psi.T @ step @ omega).T}
    for name, change in wanted.items():
        found = new.weights["params"][f"hidden/0/{name}"] - old[name]
        tolerance = 100 * rounding(0.2, old[name], change)
        np.testing.assert_allclose(found, change, atol=tolerance, err_msg=name)
        assert jnp.abs(change).max() > 20 * tolerance, name
    for _ in range(2):
        new, *_ = play(new)
    distances = check_sketches(run.learner.model(*run.rounds.model(new)))
    assert max(distances.values()) < 1e-4  # 4,000 steps make 2e-6 where cores are well conditioned


def switched(download):
    settings = TrainConfig(
        method="ares-bp", hidden=(10,), rank=3, batch_size=8, schedule="constant", epochs=6,
        parallel_epochs=2, validation=0.25, learning_rate=1e-3,
    )  # fmt: skip
    both = {"upload": "float32", "download": download}
    federated = FederatedConfig(clients=5, rounds=6, participation=0.4, **both)
    run = prepare_federated(settings, federated, (X, Y), clients=UNEVEN)
    progress, parts, history = begin_progress(run), programs(run), []
    while len(history) < 2:
        progress, row, _ = play_round(run, parts, progress, history)
        history.append(row)
    return run, progress, parts, history


@pytest.mark.slow
def test_the_switch_keeps_the_function_and_everybody_gets_the_model():
    """C, the solved core and R compute what the sketches did, to rounding through the core's
    pseudo-inverse; the bytes of the round are those of bringing everybody to the same model."""
    run, progress, parts, history = switched("float32")
    after, moved, programs_ = after_switch(run, progress, parts)
    assert after.settled and not run.settled
    x = standardized(run.arrays.validation_x, run.units)
    before, _ = run.learner.apply(*run.rounds.model(progress.state), x, False)
    now, _ = after.learner.apply(*after.rounds.model(moved.state), x, False)
    np.testing.assert_allclose(now, before, atol=1e-4 * np.abs(before).max())
    assert int(moved.state.round) == 2 == int(moved.best_round)
    np.testing.assert_array_equal(moved.synced, [2] * 5)
    # Round 1 asks two who have the initial model; round 2 two others, or the same, and then all:
    # who lacks both messages gets the model once.
    whole = history[0]["down_message"]
    assert history[0]["down_bytes"] == 2 * 12 and history[1]["down_message"] == whole
    assert history[1]["down_bytes"] == 2 * whole + 5 * whole
    again = after_switch(after, moved, programs_)
    assert again[0] is after and again[1] is moved
    progress, row, refused = play_round(after, programs_, moved, history)
    assert row["validation_loss"] < 1.05 * history[1]["validation_loss"] and not refused
    assert row["down_bytes"] == 2 * 12  # everybody has the model already


@pytest.mark.slow
def test_a_grid_begins_anew_with_the_switch():
    """Its steps are those of chains, of which there are fewer."""
    run, progress, parts, history = switched("grid:0.01")
    assert not len(progress.held)  # sketches that are rounded come apart: they went as floats
    after, progress, parts = after_switch(run, progress, parts)
    numbers = sum(x.size for x in jax.tree.leaves(progress.state.weights))
    assert progress.held.shape == (5, numbers) and not progress.held.any()
    for _ in range(2):
        progress, row, _ = play_round(after, parts, progress, history)
        history.append(row)
    steps = np.concatenate([np.ravel(x) for x in progress.state.grid.steps])
    assert np.abs(steps).max() > 0 and steps.shape == (numbers,)
