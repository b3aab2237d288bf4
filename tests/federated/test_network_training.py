"""A federated run over a network: both halves, with and without sockets between them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rosler_jax.config import TrainConfig
from rosler_jax.federated import FederatedConfig, as_clients, federated_fit, prepare_federated
from rosler_jax.federated.bodies import LOST, read_body
from rosler_jax.federated.device_node import device_training
from rosler_jax.federated.network.boundary import Reply
from rosler_jax.federated.node import make_secure_work, make_work, simulated_examples
from rosler_jax.federated.prepare import begin_progress, programs
from rosler_jax.federated.served import (
    _Session,
    begin_round,
    end_round,
    end_sum,
    serve_federated,
)
from rosler_jax.federated.wire import decode, encode

CONFIG = TrainConfig(
    data="clouds", hidden=(16,), method="seeded", rank=4, batch_size=8, learning_rate=0.1,
    schedule="cosine",
)  # fmt: skip
RUN = FederatedConfig(clients=4, rounds=4, participation=1.0, split="dirichlet:1")


def clouds(count=240):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, count).astype(np.int32)
    x = rng.normal(size=(3, 12))[y] + 0.4 * rng.normal(size=(count, 12))
    return x.astype(np.float32), y


def server(config=CONFIG, federated=RUN):
    nobody = as_clients([np.zeros(1, np.int32)] * federated.clients)
    run = prepare_federated(config, federated, clouds(), clients=nobody, keeps_memory=False)
    return run, programs(run), _Session(begin_progress(run)._replace(held=()), [], [])


def workers(count=4, **options):
    return [make_work(k, simulated_examples(k, clouds()), **options) for k in range(count)]


def played(run, parts, session, works, meddle=lambda now, replies: replies):
    """All rounds, handed over by hand."""
    while (assignment := begin_round(run, session)) is not None:
        assert callable(assignment.body)
        replies = [Reply(k, work(assignment.body(k))) for k, work in enumerate(works)]
        end_round(run, parts, session, meddle(assignment.round, replies))
    return session


@pytest.mark.slow
@pytest.mark.parametrize("download", ["grid:2", "float32"])
def test_a_network_makes_the_model_of_a_simulation(download):
    """To the last bit of what is sent, and so of the scores: the order of sums alone differs."""
    federated = FederatedConfig(**{**vars(RUN), "download": download})
    session = played(*server(federated=federated), workers())
    found = federated_fit(CONFIG, federated, clouds())
    for mine, other in zip(session.history, found.history, strict=True):
        assert mine["up_bytes"] == pytest.approx(other["up_bytes"], rel=0.02)
        assert mine["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-4)
    last = session.progress.state.sent, found.progress.state.sent
    for a, b in zip(*map(jax.tree.leaves, last), strict=True):
        # A number on the edge of a step may fall to the other side: one step of many.
        assert np.mean(~np.isclose(a, b, atol=1e-5)) < 0.02
    assert session.history[-1]["validation_accuracy"] > 0.8 and not session.refused


@pytest.mark.slow
def test_the_run_is_described_once_and_then_only_what_is_new_is_sent():
    run, parts, session = server()
    sizes, described = [], []
    works = workers()

    def listened(k, body):
        sizes.append(len(body))
        described.append(read_body(body).description is not None)
        return works[k](body)

    played(run, parts, session, [lambda body, k=k: listened(k, body) for k in range(4)])
    assert described == [True] * 4 + [False] * 12
    assert max(sizes[4:]) < 0.5 * min(sizes[:4])
    assert sum(row["down_bytes"] for row in session.history) == sum(sizes)


@pytest.mark.slow
def test_a_client_that_was_killed_goes_on_from_its_file(tmp_path):
    whole = played(*server(), workers())
    run, parts, session = server()
    works = workers()
    works[2] = make_work(2, simulated_examples(2, clouds()), state=tmp_path / "two.npz")
    while (assignment := begin_round(run, session)) is not None:
        if assignment.round == 2:  # a new process, which knows its file alone
            works[2] = make_work(2, simulated_examples(2, clouds()), state=tmp_path / "two.npz")
            session.has.pop(2)  # as it said hello anew
        replies = [Reply(k, work(assignment.body(k))) for k, work in enumerate(works)]
        end_round(run, parts, session, replies)
    for a, b in zip(
        *(jax.tree.leaves(s.progress.state.sent) for s in (whole, session)), strict=True
    ):
        assert np.array_equal(a, b)


@pytest.mark.slow
def test_a_client_that_lost_all_says_so_and_is_told_all():
    run, parts, session = server()
    works = workers()
    answered = []
    while (assignment := begin_round(run, session)) is not None:
        if assignment.round == 2:
            works[1] = make_work(1, simulated_examples(1, clouds()))
        replies = [Reply(k, work(assignment.body(k))) for k, work in enumerate(works)]
        answered.append([reply.body != LOST for reply in replies])
        end_round(run, parts, session, replies)
    assert answered == [[True] * 4, [True] * 4, [True, False, True, True], [True] * 4]
    assert [row["counted"] for row in session.history] == [4, 4, 3, 4] and not session.refused


@pytest.mark.slow
def test_replies_that_are_none_are_refused_and_the_round_goes_on():
    run, parts, session = server()
    form, learnt = run.rounds.forms[0], {}

    def meddle(now, replies):
        if now == 0:
            return [*replies, Reply(9, b"not a message"), replies[0]]
        header, packed = decode(replies[1].body, form)
        if now == 1:  # client 1 says that it is client 3, client 2 is a round behind
            pretended = encode(header._replace(client=3), packed, form)
            late, other = decode(replies[2].body, form)
            stale = encode(late._replace(round=0), other, form)
            return [replies[0], Reply(1, pretended), Reply(2, stale), replies[3]]
        if now == 2:  # and now 1e30 times too much
            huge = packed._replace(scales=tuple(s * np.float32(2.0**100) for s in packed.scales))
            return [replies[0], Reply(1, encode(header, huge, form)), *replies[2:]]
        learnt.update(session.progress.state.weights)
        return []

    played(run, parts, session, workers(), meddle)
    assert [(one.round, one.client, one.reason) for one in session.refused] == [
        (1, 9, "damaged"), (1, 0, "twice"), (2, 1, "wrong client"), (2, 2, "stale"),
        (3, 1, "too long"),
    ]  # fmt: skip
    assert [row["counted"] for row in session.history] == [4, 2, 3, 0]
    assert np.isfinite([row["validation_loss"] for row in session.history]).all()
    last = session.progress.state.weights  # of nobody nothing was learnt
    assert all(map(np.array_equal, *map(jax.tree.leaves, (last, learnt))))


@pytest.mark.slow
def test_masked_sums_make_the_plain_mean():
    """By exact sums, in place of Flower's: the model of clients that all weigh the same."""
    federated = FederatedConfig(**{**vars(RUN), "secure": True})
    run, parts, session = server(federated=federated)
    works = [make_secure_work(k, simulated_examples(k, clouds())) for k in range(4)]
    while (assignment := begin_round(run, session)) is not None:
        pairs = [work(assignment.body(k)) for k, work in enumerate(works)]
        total = sum(vector * weight for vector, weight in pairs)
        end_sum(run, parts, session, total, sum(weight for _, weight in pairs), 4)
    assert session.history[-1]["validation_accuracy"] > 0.8
    assert session.history[-1]["counted"] == 4


@pytest.mark.slow
def test_microcontrollers_among_the_clients():
    """Two of four train by the exported C code, here on this machine, and the model is learnt."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    works = workers()
    for k in (1, 3):
        works[k] = make_work(k, simulated_examples(k, clouds()), train=device_training())
    session = played(*server(), works)
    assert session.history[-1]["validation_accuracy"] > 0.8
    assert [row["counted"] for row in session.history] == [4] * 4 and not session.refused


def test_a_device_steps_by_sgd_alone():
    federated = FederatedConfig(**{**vars(RUN), "client": "adam"})
    run, _, session = server(federated=federated)
    work = make_work(0, simulated_examples(0, clouds()), train=device_training())
    assignment = begin_round(run, session)
    assert assignment is not None and callable(assignment.body)
    with pytest.raises(ValueError, match="C code steps by plain SGD; client 'adam'"):
        work(assignment.body(0))


@pytest.mark.parametrize(
    ("config", "federated", "message"),
    [
        (CONFIG, {"drop": 0.1}, "drop and bad simulate clients"),
        (TrainConfig(method="ares-bp"), {}, "a stage that ends for all at once"),
    ],
)
def test_what_a_network_cannot_do(tmp_path, config, federated, message):
    with pytest.raises(ValueError, match=message):
        serve_federated(config, FederatedConfig(**federated), tmp_path / "out", data=clouds())


# Real processes.


@pytest.fixture
def data(tmp_path):
    x, y = clouds()
    np.savez(tmp_path / "clouds.npz", x=x, y=y)
    return tmp_path / "clouds.npz"


def started(folder, name, *args):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    with (folder / f"{name}.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "rosler_jax", "federate", *map(str, args)],
            stdout=log, stderr=log, env=env,
        )  # fmt: skip


def wait_for(condition, what, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


@pytest.mark.slow
def test_a_server_and_clients_are_killed_and_the_run_ends_well(data, tmp_path):
    """Three clients; one dies for good, one comes back, the server dies and resumes."""
    pytest.importorskip("flwr", reason="a network needs the extra 'federated'")
    pytest.importorskip("orbax.checkpoint", reason="runs need the extra 'cli'")
    address, out, rounds = "127.0.0.1:18473", tmp_path / "run", 8
    shared = ("--network", "server", "--address", address, "--timeout", 25, "--gather", 120)
    new = (
        "--data", data, "--clients", 3, "--participation", 1, "--rounds", rounds, "--method",
        "seeded", "--rank", 4, "--hidden", 16, "--batch-size", 8, "--learning-rate", 0.1,
        "--split", "dirichlet:1", "--out", out,
    )  # fmt: skip
    log = tmp_path / "server.log"

    def client(k):
        return started(
            tmp_path, f"client{k}", "--network", "client", "--address", address,
            "--client-number", k, "--state", tmp_path / f"{k}.npz", "--give-up", 240,
        )  # fmt: skip

    def done(count):
        return lambda: f"round {count}/" in log.read_text()

    processes = [started(tmp_path, "server", *shared, *new), *map(client, range(3))]
    try:
        wait_for(done(2), "two rounds")
        processes[3].send_signal(signal.SIGKILL)
        wait_for(done(4), "rounds go on without a client")
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        processes.append(client(2))
        processes[0] = started(tmp_path, "server", *shared, "--resume", out)
        assert processes[0].wait(timeout=240) == 0, log.read_text()
        for process in (processes[1], processes[2], processes[4]):
            assert process.wait(timeout=60) == 0
    finally:
        for process in processes:
            process.kill()
    rows = (out / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(k + 1) for k in range(rounds)]
    assert (out / "model.rosler").exists()
    text = log.read_text()
    assert text.count(f"round 1/{rounds}") == 1 and "test accuracy" in text
    counted = [row.split(",")[3] for row in rows[1:]]
    assert {"2", "3"} <= set(counted), text  # it was missed, and not waited for for ever
    assert Path(out / "checkpoints").exists()
