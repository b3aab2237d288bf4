"""Whole runs: bytes to the last one, garbage, masks, drops, and that the same is the same."""

from __future__ import annotations

import dataclasses
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rosler_jax.config import TrainConfig
from rosler_jax.federated import FederatedConfig, as_clients, federated_fit, prepare_federated
from rosler_jax.federated import config as configs
from rosler_jax.federated.compress import Packed
from rosler_jax.federated.garbage import GARBAGE
from rosler_jax.federated.prepare import begin_progress, programs
from rosler_jax.federated.secure import sent_bytes
from rosler_jax.federated.simulate import play_round
from rosler_jax.federated.trips import is_bad
from rosler_jax.federated.wire import DOWN, UP, Form, Header, decode, encode
from rosler_jax.fit import run_key
from rosler_jax.run import RunError

U = 2.0**-24
RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 240)
X = (RNG.normal(size=(3, 12))[Y] + 0.5 * RNG.normal(size=(240, 12))).astype(np.float32)
FLOATS = {"upload": "float32", "download": "float32"}
HIDDEN, NUMBERS = 10, 12 * 10 + 10 + 10 * 3 + 3


def train_config(**settings):
    defaults = {
        "method": "dense", "hidden": (HIDDEN,), "rank": 3, "batch_size": 8,
        "schedule": "constant", "validation": 0.25,
    }  # fmt: skip
    return TrainConfig(**{**defaults, **settings})


def federation(**settings):
    return FederatedConfig(**{"clients": 10, "rounds": 4, "participation": 0.4, **settings})


def fit(settings=None, given=None, **federated):
    return federated_fit(
        train_config(**(settings or {})), federation(**federated), (X, Y), clients=given
    )


class Played:
    """Rounds one by one, with all that went through them."""

    def __init__(self, run, parts=None):
        self.run, self.parts = run, parts or programs(run)
        self.progress, self.history, self.refused = begin_progress(run), [], []
        self.asked, self.answers, self.received = [], [], []

    def round(self):
        def begin(state):
            asked, answers = self.parts.begin(state)
            self.asked.append(asked)
            self.answers.append(answers)
            return asked, answers

        def end(*args):
            found = self.parts.end(*args)
            self.received.append(found[1])
            return found

        watched = self.parts._replace(begin=begin, end=end)
        self.progress, row, more = play_round(self.run, watched, self.progress, self.history)
        self.history.append(row)
        self.refused += more
        return row

    def rounds(self, count):
        for _ in range(count):
            self.round()
        return self


def played(settings=None, given=None, **federated):
    run = prepare_federated(
        train_config(**(settings or {})), federation(**federated), (X, Y), clients=given
    )
    return Played(run)


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


# --- bytes --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", [
    {"upload": "step:2", "download": "grid:2"}, FLOATS, {"upload": "sign", "download": "bits:8"},
])  # fmt: skip
def test_messages_on_a_wire_are_the_messages(how):
    """Bytes hold all that there is: with and without them models are the same, bit for bit."""
    with_bytes, without = (fit(wire=wire, drop=0.2, **how) for wire in (True, False))
    chex.assert_trees_all_equal(with_bytes.progress.state, without.progress.state)
    chex.assert_trees_all_equal(with_bytes.progress.best_params, without.progress.best_params)
    names = set(with_bytes.history[0]) - {"seconds", "up_bytes", "down_bytes", "down_message"}
    for a, b in zip(with_bytes.history, without.history, strict=True):
        assert {k: a[k] for k in names} == {k: b[k] for k in names}
        # What is not written is told by its entropy: of tiny messages the coder's own tables are
        # a third, of floats nothing.
        slack = 1e-9 if how == FLOATS else 0.5
        assert a["up_bytes"] == pytest.approx(b["up_bytes"], rel=slack)


@pytest.mark.parametrize("upload", ["step:2", "bits:4", "float32"])
def test_bytes_up_are_those_of_the_messages(upload):
    """Encoded anew, one by one, and read again to what the server got."""
    found = played(upload=upload, download="float32", drop=0.3).rounds(3)
    counts = found.run.clients.counts
    for now, (asked, answers, row) in enumerate(
        zip(found.asked, found.answers, found.history, strict=True)
    ):
        packed, total = jax.tree.map(np.asarray, answers.packed), 0
        levels = {"step:2": 127, "bits:4": 7, "float32": 0}[upload]
        form = Form([v.shape[1:] for v in packed.values], levels)
        for place, client in enumerate(map(int, asked.clients)):
            if not asked.answers[place]:
                continue
            one = jax.tree.map(lambda v, k=place: v[k], packed)
            data = encode(Header(UP, now, client, int(counts[client])), one, form)
            header, again = decode(data, form)
            assert header == (UP, now, client, counts[client])
            chex.assert_trees_all_equal(again.values, one.values)
            total += len(data)
        assert row["up_bytes"] == total
        assert row["answered"] == int(asked.answers.sum())
    assert min(row["answered"] for row in found.history) < 4


def test_bytes_of_dense_float32_averaging():
    """``4 D`` and a frame each way: 3 bytes of magic, 1 of the way, three numbers below 128 of one
    byte each, a checksum of 4. Who is asked with the model already gets 12 bytes, and in round 1
    that is everybody: a seed makes the initial model."""
    found = fit(participation=1.0, **FLOATS)
    message = 4 * NUMBERS + 3 + 1 + 3 + 4
    assert max(found.prepared.clients.counts) < 128
    for row in found.history:
        assert row["up_bytes"] == 10 * message and row["down_message"] == message
        assert row["down_bytes"] == 10 * (12 if row["round"] == 1 else message)


@pytest.mark.parametrize("download", ["float32", "bits:16", "sign"])
def test_who_missed_rounds_gets_all_messages_or_the_whole_model(download):
    """The less of both; of floats that is never more than one message."""
    found = fit(rounds=12, upload="float32", download=download)
    synced, several = {}, 0
    sizes = [row["down_message"] for row in found.history]
    whole = 4 * NUMBERS + 11
    for row, asked in zip(found.history, asked_in(found), strict=True):
        now, total = int(row["round"]) - 1, 0
        for client in asked:
            lacking = sizes[synced.get(client, 0) : now]
            several += len(lacking) > 1 and sum(lacking) < whole
            total += min(sum(lacking), whole) if lacking else 12
            synced[client] = now
        assert row["down_bytes"] == total
    assert bool(several) == (download == "sign")


def asked_in(found):
    """Who was asked in each round."""
    run, key = found.prepared, found.progress.state.key
    states = [found.progress.state._replace(round=k, key=key) for k in range(len(found.history))]
    rows = list(map(jnp.asarray, run.clients))
    return [list(map(int, run.rounds.ask(state, *rows).clients)) for state in states]


@pytest.mark.slow
def test_a_missed_round_is_caught_up_by_the_sum_of_its_steps():
    """On a grid: one message, whose integers are the sum of those that were missed."""
    found = played(rounds=9, participation=0.2, given=as_clients(np.split(np.arange(120), 10)))
    found.rounds(9)
    shapes = [v.shape for v in found.received[0].down.values]
    form = Form(shapes, found.run.rounds.down.levels, (np.float32(1),) * len(shapes))
    downs = [[np.asarray(v) for v in received.down.values] for received in found.received]
    last, gaps = {}, Counter()
    for now, (asked, row) in enumerate(zip(found.asked, found.history, strict=True)):
        total = 0
        for client in map(int, asked.clients):
            since = last.get(client, 0)
            gaps[now - since] += 1
            missed = [
                sum((down[k].astype(int) for down in downs[since:now]), np.zeros(shape, int))
                for k, shape in enumerate(shapes)
            ]
            values = tuple(v.astype(np.int16) for v in missed)
            data = encode(Header(DOWN, now), Packed(values, form.scales), form)
            chex.assert_trees_all_equal(decode(data, form)[1].values, values)
            total += len(data)
            last[client] = now
        assert row["down_bytes"] == total
        own = encode(Header(DOWN, now + 1), Packed(tuple(downs[now]), form.scales), form)
        assert row["down_message"] == len(own)
    assert max(gaps) >= 4 and len(gaps) > 3
    steps = np.concatenate([np.ravel(v) for v in found.progress.state.grid.steps])
    for client in range(10):
        want = [sum((d[k].astype(int) for d in downs[: last.get(client, 0)]), np.zeros(s, int))
                for k, s in enumerate(shapes)]  # fmt: skip
        flat = np.concatenate([np.ravel(v) for v in want])
        np.testing.assert_array_equal(found.progress.held[client], flat)
    np.testing.assert_array_equal(
        steps, np.concatenate([np.ravel(sum(d[k] for d in downs)) for k in range(len(shapes))])
    )


def test_a_delta_of_k_numbers_sends_k_numbers():
    found = fit({"method": "seeded"}, delta=20, rounds=2, **FLOATS)
    assert sum(x.size for x in jax.tree.leaves(found.prepared.rounds.up_like)) == 20
    assert found.history[0]["up_bytes"] == 4 * (4 * 20 + 11)
    z = found.progress.state.sent["params"]["z"]
    assert z.shape == (20,) and jnp.abs(z).max() > 0


# --- garbage ------------------------------------------------------------------------------------

REASONS = {
    "nan": "not finite", "huge": "too long", "stale": "stale", "shape": "damaged",
    "cut": "damaged", "random": "damaged", "noise": None, "flipped": None,
}  # fmt: skip
EASY = {"clients": 10, "participation": 1.0, "rounds": 8, "bad": 0.2}


@pytest.fixture(scope="module")
def compiled():
    """Runs that differ in garbage alone share their programs."""
    made = {}

    def get(aggregate, **settings):
        key = aggregate, *settings.items()
        if key not in made:
            made[key] = played(aggregate=aggregate, **EASY, **settings)
        run, parts = made[key].run, made[key].parts

        def play(**changes):
            federated = dataclasses.replace(run.federated, **changes)
            return Played(run._replace(federated=federated), parts).rounds(8)

        return play

    return get


@pytest.mark.slow
def test_who_sends_broken_messages_is_heard_no_more():
    """After two; those that are only long, as honest ones may be, do not count."""
    run = fit(clients=10, participation=1.0, rounds=6, bad=0.2, garbage="stale", ban_after=2)
    seen = Counter(one.reason for one in run.refused)
    assert seen == {"stale": 12} and run.progress.offences.sum() == 12
    mixed = fit(clients=10, participation=1.0, rounds=16, bad=0.2, garbage="all", ban_after=2)
    reasons = [one.reason for one in mixed.refused]
    bad = set(np.flatnonzero(is_bad(mixed.prepared.federated)).tolist())
    assert {one.client for one in mixed.refused} == bad and "banned" in reasons
    first = next(one.round for one in mixed.refused if one.reason == "banned")
    assert first <= 8 and all(row["counted"] == 8 for row in mixed.history[8:])
    long = fit(clients=10, participation=1.0, rounds=6, bad=0.2, garbage="huge", ban_after=1)
    assert {one.reason for one in long.refused} == {"too long"} and not long.progress.offences.any()


FOUR = {"clients": 4, "participation": 1.0}


def test_clients_that_all_diverge_end_the_run():
    """Their loss would be 0, and the initial model would ship."""
    with pytest.raises(RunError, match="all 4 clients came to NaN or infinity; lower the learning"):
        federated_fit(train_config(learning_rate=1e30), federation(**FOUR, rounds=3), (X, Y))


@pytest.mark.slow
def test_a_weight_that_outgrows_the_grid_is_said():
    """The grid is of 128 times the initial size, and what is beyond it would be cut."""
    with pytest.raises(ValueError, match="beyond what the grid of the way down can hold"):
        federated_fit(train_config(learning_rate=300.0), federation(**FOUR, rounds=8), (X, Y))


@pytest.mark.slow
def test_rounds_are_scored_as_often_as_asked():
    """Rows between have the last scores, and training is the same."""
    often = federated_fit(train_config(), federation(rounds=5), (X, Y))
    seldom = federated_fit(train_config(), federation(rounds=5, evaluate_every=2), (X, Y))
    a, b = ([row["validation_loss"] for row in run.history] for run in (often, seldom))
    assert np.isnan(b[0]) and b[1] == b[2] == a[1] and b[3] == a[3] and b[4] == a[4]
    for one, other in zip(
        *(jax.tree.leaves(run.progress.state) for run in (often, seldom)), strict=True
    ):
        assert np.array_equal(one, other)


def test_every_kind_of_garbage_has_a_reason():
    assert set(REASONS) == set(GARBAGE)


@pytest.mark.slow
@pytest.mark.parametrize("upload", ["step:2", "float32"])
@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_refused_or_outvoted(kind, upload, compiled):
    """Two of ten send it in every round. What can be told from a message is refused, for the right
    reason and of nobody else; what cannot is cut off by a trimmed mean.

    60 examples of validation: three of them, 5 %, are allowed for.
    """
    play = compiled("trimmed-mean:0.2", upload=upload)
    clean, found = play(bad=0.0), play(garbage=kind)
    bad = set(map(int, np.flatnonzero(is_bad(found.run.federated))))
    assert len(bad) == 2 and not clean.refused
    seen = Counter((one.round, one.client) for one in found.refused)
    if REASONS[kind] is None:
        assert not seen and all(row["counted"] == 10 for row in found.history)
    else:
        assert seen == Counter((now + 1, client) for now in range(8) for client in bad)
        assert {one.reason for one in found.refused} == {REASONS[kind]}
        assert all(str(one.client) in one.text or kind in REASONS for one in found.refused)
        assert all(row["counted"] == 8 for row in found.history)
    score = lambda run: run.history[-1]["validation_accuracy"]
    assert score(clean) > 0.9 and score(found) >= score(clean) - 0.05
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.progress.state))


@pytest.mark.slow
@pytest.mark.parametrize("aggregate", ["median", "krum:0.2"])
@pytest.mark.parametrize("kind", ["huge", "flipped", "noise"])
def test_robust_aggregates_need_no_norms(kind, aggregate, compiled):
    """Without ``reject_norm`` nothing is refused, and nothing of it is heard all the same."""
    play = compiled(aggregate, upload="float32", reject_norm=0.0)
    clean, found = play(bad=0.0), play(garbage=kind)
    assert not found.refused
    score = lambda run: run.history[-1]["validation_accuracy"]
    assert score(clean) > 0.9 and score(found) >= score(clean) - 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["huge", "flipped"])
def test_a_plain_mean_is_destroyed(kind, compiled):
    """So that what the others stand means something: opposite messages, four times as long, of two
    of ten cancel the eight; of long ones the weights become as long.

    That is seen in the loss: a model of ReLUs that is 1e29 times as large has the same classes.
    """
    play = compiled("mean", reject_norm=0.0, **FLOATS)
    clean, found = play(bad=0.0), play(garbage=kind)
    last = lambda run: run.history[-1]["validation_loss"]
    assert last(clean) < 0.5
    assert not last(found) < (1e6 if kind == "huge" else 1.0)
    guarded = compiled("mean", upload="float32")(garbage="huge")
    assert last(guarded) < 0.5 and {one.reason for one in guarded.refused} == {"too long"}


@pytest.mark.slow
def test_all_kinds_take_turns_and_one_in_five_is_bad():
    federated = federation(clients=40, bad=0.2, seed=3)
    assert is_bad(federated).sum() == 8
    assert (is_bad(federated) != is_bad(dataclasses.replace(federated, seed=4))).any()
    found = played(bad=0.5, participation=1.0, garbage="all").rounds(8)
    reasons = Counter(one.reason for one in found.refused)
    # Each of 5 clients has been through all 8 kinds: 1 not finite, 1 too long, 1 stale, 3 damaged.
    assert reasons["not finite"] == 5 and reasons["stale"] == 5 and reasons["damaged"] == 15


# --- masks --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_masked_sums_train_as_plain_means_do(drop):
    """Weights differ by half a fixed-point step a round, and by float32's rounding of a mean of
    ten and of an addition; as much again for what a step of SGD makes of it."""
    pytest.importorskip("cryptography", reason="secure aggregation needs the extra 'federated'")
    how = {"participation": 1.0, "drop": drop, **FLOATS}
    plain, masked = fit(reject_norm=0.0, **how), fit(secure=True, **how)
    total = int(plain.prepared.clients.counts.sum())
    step = 1.0 / ((2**31 - 1) // total)
    weights = plain.progress.state.weights["params"]
    size = max(float(jnp.abs(w).max()) for w in weights.values())
    tolerance = 4 * 2 * (step / 2 + 12 * U * size)
    for name, value in weights.items():
        found = masked.progress.state.weights["params"][name]
        np.testing.assert_allclose(found, value, atol=tolerance, err_msg=name)
    for a, b in zip(plain.history, masked.history, strict=True):
        assert a["answered"] == b["answered"] == b["counted"]
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        up, down = sent_bytes(10, int(b["answered"]), NUMBERS + 1)
        assert b["up_bytes"] == up
        assert b["down_bytes"] == a["down_bytes"] + down
    assert drop == 0 or any(row["answered"] < 10 for row in plain.history)


def test_a_masked_round_of_too_few_is_skipped():
    """Six of ten are needed: rounds with fewer leave the model as it is, the next ones go on."""
    pytest.importorskip("cryptography", reason="secure aggregation needs the extra 'federated'")
    found = played(participation=1.0, drop=0.5, secure=True, rounds=8, **FLOATS)
    skipped = 0
    for _ in range(8):
        before = found.progress.state
        row = found.round()
        after = found.progress.state
        assert int(after.round) == int(before.round) + 1
        if row["answered"] >= 6:
            assert row["counted"] == row["answered"] and row["loss"] > 0
            assert jnp.abs(after.sent["params"]["head/bias"]
                           - before.sent["params"]["head/bias"]).max() > 0  # fmt: skip
            continue
        skipped += 1
        assert row["counted"] == 0
        chex.assert_trees_all_equal(after.weights, before.weights)
        chex.assert_trees_all_equal(after.sent, before.sent)
        assert found.refused[-1].reason == "too few" and found.refused[-1].client == -1
        assert (
            f"{row['answered']:.0f} of 10 clients answered; 6 are needed" in found.refused[-1].text
        )
    assert 0 < skipped < 8 and len(found.refused) == skipped


def test_masked_numbers_beyond_the_range_are_cut():
    """All of them in fact, for a range of nothing: no number of the mean passes it."""
    pytest.importorskip("cryptography", reason="secure aggregation needs the extra 'federated'")
    found = played(participation=1.0, secure=True, secure_range=1e-3, **FLOATS)
    before = found.progress.state.weights["params"]
    found.round()
    after = found.progress.state.weights["params"]
    change = max(float(jnp.abs(after[n] - before[n]).max()) for n in before)
    assert 0.9e-3 < change <= 1e-3 + 4 * U


# --- privacy, many, few -------------------------------------------------------------------------


@pytest.mark.slow
def test_clipped_and_noisy_rounds_train():
    found = fit({"learning_rate": 0.3}, clip=0.5, noise=0.1, participation=1.0, rounds=8, **FLOATS)
    assert found.history[-1]["validation_loss"] < 0.7 * found.history[0]["validation_loss"]
    loud = fit({"learning_rate": 0.3}, clip=0.5, noise=50.0, participation=1.0, rounds=8, **FLOATS)
    assert loud.history[-1]["validation_loss"] > 2 * found.history[-1]["validation_loss"]


@pytest.mark.slow
def test_two_thousand_clients_in_a_round():
    """An example each; the mean over them is one step on all, as of one client that has them."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 3000)
    x = (rng.normal(size=(3, 4))[y] + 0.5 * rng.normal(size=(3000, 4))).astype(np.float32)
    settings = train_config(hidden=(4,), batch_size=1, weight_decay=0.0)
    many = FederatedConfig(
        clients=2000, rounds=2, participation=1.0, wire=False, reject_norm=0.0, **FLOATS
    )
    clients = as_clients([np.array([k % 1800]) for k in range(2000)])
    found = federated_fit(settings, many, (x, y), clients=clients)
    assert [row["counted"] for row in found.history] == [2000, 2000]
    one = as_clients([np.arange(2000) % 1800])
    few = dataclasses.replace(many, clients=1)
    whole = federated_fit(dataclasses.replace(settings, batch_size=2000), few, (x, y), clients=one)
    # A sum of 2,000 terms in float32, twice.
    for a, b in zip(
        *(jax.tree.leaves(f.progress.state.weights) for f in (found, whole)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2 * 2000 * U)


def test_everybody_is_asked_alike():
    """Counts over 500 rounds of 5 of 20: chi-square of 19 degrees, within 5 deviations; draws of a
    round without replacement vary less by 1 - p, and by 19 / 20. Drops likewise."""
    run = played(clients=20, participation=0.25, drop=0.3).run
    state = jax.jit(run.rounds.init)(run_key(0))
    rows = list(map(jnp.asarray, run.clients))
    ask = jax.jit(jax.vmap(lambda k: run.rounds.ask(state._replace(round=k), *rows)))
    asked = ask(jnp.arange(500))
    assert all(len(set(row)) == 5 for row in np.asarray(asked.clients).tolist())
    counts = np.bincount(np.asarray(asked.clients).ravel(), minlength=20)
    chi = ((counts - 125) ** 2 / (125 * 0.75)).sum() * 19 / 20
    assert abs(chi - 19) < 5 * np.sqrt(2 * 19)
    pairs = np.zeros((20, 20))
    for row in np.asarray(asked.clients):
        pairs[np.ix_(row, row)] += 1
    off = pairs[np.triu_indices(20, 1)]
    p = 5 * 4 / (20 * 19)  # of two to be asked together
    assert abs(((off - 500 * p) ** 2).mean() / (500 * p * (1 - p)) - 1) < 5 * np.sqrt(2 / 190)
    answered = float(np.asarray(asked.answers).mean())
    assert abs(answered - 0.7) < 5 * np.sqrt(0.3 * 0.7 / 2500)


@pytest.mark.parametrize("share", [0.01, 0.26, 1.0])
def test_how_many_are_asked(share):
    found = played(participation=share).rounds(1)
    wanted = {0.01: 1, 0.26: 3, 1.0: 10}[share]
    assert found.history[0]["asked"] == wanted == len(set(map(int, found.asked[0].clients)))


# --- the same is the same -----------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_config_is_the_same_run():
    how = {"drop": 0.2, "bad": 0.2, "garbage": "all", "split": "dirichlet:0.5"}
    first, again = fit(**how), fit(**how)
    chex.assert_trees_all_equal(first.progress, again.progress)
    assert without_seconds(first.history) == without_seconds(again.history)
    assert first.refused == again.refused
    other = fit(seed=1, **how)
    assert without_seconds(first.history) != without_seconds(other.history)
    assert first.prepared.clients.counts.tolist() != other.prepared.clients.counts.tolist()


@pytest.mark.slow
def test_the_federations_seed_chooses_clients_and_drops():
    """Where who has what is given, too; the initial model is the other seed's."""
    clients = as_clients(np.split(np.arange(120), 10))
    first, other = (fit(given=clients, drop=0.5, seed=seed, rounds=6) for seed in (0, 1))
    assert asked_in(first) != asked_in(other)
    assert [r["answered"] for r in first.history] != [r["answered"] for r in other.history]
    a, b = (begin_progress(found.prepared).state.weights for found in (first, other))
    chex.assert_trees_all_equal(a, b)


@pytest.mark.slow
def test_the_best_round_is_the_last_of_the_best():
    found = fit(rounds=8)
    scores = [row["validation_accuracy"] for row in found.history]
    best = max(k for k, score in enumerate(scores, 1) if score == max(scores))
    assert int(found.progress.best_round) == best
    assert float(found.progress.best_score) == np.float32(max(scores))


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "message"), [
    ({"clients": 0}, "clients 0 is below 1"),
    ({"rounds": 0}, "rounds 0 is below 1"),
    ({"local_epochs": -1}, "local_epochs -1 is below 1"),
    ({"participation": 1.1}, r"participation 1.1 is no share; pass 0..1"),
    ({"participation": float("nan")}, "participation nan is no share"),
    ({"participation": 0.0}, "nobody would ever answer: participation must be above 0"),
    ({"drop": 1.0}, "drop below 1"),
    ({"drop": -0.1}, "drop -0.1 is no share"),
    ({"bad": 2}, "bad 2 is no share"),
    ({"proximal": -1.0}, "proximal -1.0 is negative"),
    ({"reject_norm": float("inf")}, "reject_norm inf is negative or infinite"),
    ({"clip": float("nan")}, "clip nan is negative or infinite"),
    ({"noise": -1.0}, "noise -1.0 is negative"),
    ({"delta": -1}, "delta -1 is negative"),
    ({"seed": -1}, "seed -1 is negative"),
    ({"client": "lion"}, "client 'lion' is none of sgd, momentum, adam"),
    ({"client": "momentum:1.5"}, r"client 'momentum:1.5': 1.5 is outside 0..1"),
    ({"client": "sgd:0.1"}, "sgd takes no number"),
    ({"server": "sgd"}, "server 'sgd' is none of fedavg"),
    ({"exchange": "all"}, "exchange 'all' is none of parameters, sketches, count-sketch"),
    ({"exchange": "count-sketch:2"}, r"2 is outside 0.0001..1"),
    ({"upload": "step:x"}, "upload 'step:x': step takes a number"),
    ({"upload": "bits:1"}, r"upload 'bits:1': 1 is outside 2..16"),
    ({"upload": "grid:2"}, "a grid is of weights, which are sent down"),
    ({"download": "zip"}, "download 'zip' is none of float32, bits"),
    ({"aggregate": "mode"}, "aggregate .mode. is none of mean, trimmed-mean, median"),
    ({"aggregate": "krum:0.5"}, r"aggregate 'krum:0.5': 0.5 is outside 0..0.49"),
    ({"garbage": "rude"}, "garbage 'rude' is none of all, nan, huge"),
    ({"secure": True, "aggregate": "median"}, "secure aggregation shows the server a sum alone"),
    ({"secure": True, "bad": 0.1}, "pass aggregate 'mean' and bad 0"),
    ({"secure": True, "secure_range": 0.0}, "secure_range 0.0 is no positive number"),
    ({"secure": True, "clip": 1.0}, "pass one of secure and clip"),
    ({"noise": 1.0}, "noise is in units of clip; pass a clip above 0"),
    ({"exchange": "count-sketch", "server": "fedadam"}, "count-sketch has a momentum of its own"),
])  # fmt: skip
def test_what_no_run_can_have_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FederatedConfig(**settings)


def test_a_config_and_its_json_are_the_same():
    config = federation(secure=True, upload="float32", drop=0.25)
    assert configs.from_dict(configs.to_dict(config)) == config
    with pytest.raises(ValueError, match="unknown fields colour, size of a federated config"):
        configs.from_dict({"size": 1, "colour": 2, "rounds": 3})


@pytest.mark.parametrize(("settings", "federated", "message"), [
    ({"method": "restrict-rank"}, {"delta": 5}, "a seeded delta of a model by 'restrict-rank'"),
    ({"method": "ares-bp"}, {"delta": 5}, "a seeded delta of a model by 'ares-bp'"),
    ({"rate_lambda": 0.01}, {}, "does not rate-code its model"),
    ({"budget_bytes": 1000}, {}, "does not rate-code its model"),
    ({"quantization_aware": True}, {"delta": 5}, "not trained through the quantiser"),
    ({}, {"bad": 0.1, "wire": False}, "bad clients garble bytes; pass wire=True"),
    ({"stream": "always"}, {}, "these stream"),
    ({}, {"clients": 500}, r"clients 500 is outside 1..145"),
    ({}, {"exchange": "sketches"}, "this model has none"),
    ({}, {"split": "recording"}, "split 'recording' is none of iid, dirichlet, classes"),
    ({}, {"split": "classes:9"}, "there are 3 classes"),
    ({"method": "ares-bp"}, {"rounds": 1}, "parallel_epochs=1.0; expected above 0 and below"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(settings, federated, message):
    with pytest.raises(ValueError, match=message):
        prepare_federated(train_config(**settings), federation(**federated), (X, Y))


def test_given_clients_are_as_many_as_the_run_has():
    with pytest.raises(ValueError, match="3 clients given; the run has 10"):
        prepare_federated(
            train_config(), federation(), (X, Y), clients=as_clients(np.split(np.arange(120), 3))
        )


def test_a_delta_has_no_more_numbers_than_the_model():
    with pytest.raises(ValueError, match=str(12 * HIDDEN + 3 * HIDDEN)):
        prepare_federated(train_config(), federation(delta=10**6), (X, Y))
