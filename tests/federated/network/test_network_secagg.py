"""Sums that hide their summands, between threads that talk over loopback."""

from __future__ import annotations

import importlib.util
import queue
import threading
from typing import Any

import numpy as np
import pytest

from rosler_jax.federated.network import Assignment, Pace, join_app, serve_app
from rosler_jax.federated.network.secagg import (
    Masking,
    Sum,
    SumServer,
    sum_client_app,
    sum_of,
    sum_server_app,
    summand_of,
)

flower = pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None, reason="flwr is not installed (extra: federated)"
)

WEIGHTS = [1.0, 2.5, 4.0, 0.5]


def vector_of(client: int, size: int) -> np.ndarray:
    return np.random.default_rng(client).uniform(-3.0, 3.0, size)


@pytest.mark.slow
@flower
def test_the_server_learns_the_sum_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.superlink.grid import HttpGrid

    size, sums, seen = 500, [], []
    masking = Masking(clip=4.0, max_weight=5.0)
    rounds = iter(range(2))
    pull = HttpGrid.pull_messages

    def spy(self: Any, names: Any) -> Any:
        messages = list(pull(self, names))
        seen.extend(messages)
        return messages

    monkeypatch.setattr(HttpGrid, "pull_messages", spy)

    def begin() -> Assignment | None:
        value = next(rounds, None)
        return None if value is None else Assignment(value, b"%d" % value, 4)

    def run_client(client: int) -> None:
        def work(body: bytes) -> tuple[np.ndarray, float]:
            if body == b"1" and client == 3:  # lost after the keys have been shared
                raise RuntimeError("out of memory")
            return vector_of(client, size), WEIGHTS[client]

        join_app(lambda: sum_client_app(work, client), address, poll=0.02)

    pace = Pace(timeout=20.0, min_replies=2, gather=30.0, poll=0.02)
    server = SumServer(begin, lambda value, total: sums.append(total))
    addresses: queue.Queue[str] = queue.Queue()
    threads = [
        threading.Thread(
            target=serve_app,
            args=(lambda: sum_server_app(server, masking, pace), "127.0.0.1:0"),
            kwargs={"started": addresses.put},
            daemon=True,
        )
    ]
    threads[0].start()
    address = addresses.get(timeout=30.0)
    threads += [
        threading.Thread(target=run_client, args=(client,), daemon=True) for client in range(4)
    ]
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(60.0)
        assert not thread.is_alive()
    assert [total.clients for total in sums] == [4, 3]
    for total in sums:
        clients = range(total.clients)
        truth = sum(WEIGHTS[client] * vector_of(client, size) for client in clients)
        step = masking.max_weight * 2 * masking.clip / 2**22
        np.testing.assert_allclose(total.vector, truth, atol=2 * step * total.clients)
        assert total.weight == pytest.approx(sum(WEIGHTS[: total.clients]), abs=1e-5)
    assert any(message.has_content() and message.content.metric_records for message in seen)
    for message in seen:  # neither weights nor vectors in the clear
        if message.has_error():
            continue
        counts = [
            record.get("num_examples", 1) for record in message.content.metric_records.values()
        ]
        assert set(counts) <= {1}
        assert not any(message.content.array_records.values())


def test_summands_are_clipped_and_weighted() -> None:
    masking = Masking(clip=2.0, max_weight=4.0)
    summands = [
        summand_of(np.array([1.0, -9.0]), 4.0, masking),
        summand_of(np.array([0.5, 1.0]), 1.0, masking),
    ]
    total = sum_of(np.mean(summands, 0), 2, masking)
    assert isinstance(total, Sum) and total.clients == 2
    np.testing.assert_allclose(total.vector, [4.0 * 1.0 + 0.5, 4.0 * -2.0 + 1.0])
    assert total.weight == 5.0


@pytest.mark.parametrize(
    ("vector", "weight", "reason"),
    [
        (np.zeros((2, 2)), 1.0, r"has shape \(2, 2\)"),
        (np.array([np.nan]), 1.0, "not finite"),
        (np.zeros(2), 1.5, "the weight is 1.5, but must be from 0 to 1.0"),
        (np.zeros(2), -1.0, "the weight is -1.0"),
        (np.zeros(2), float("nan"), "the weight is nan"),
    ],
)
def test_summands_that_would_spoil_the_sum(vector: np.ndarray, weight: float, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        summand_of(vector, weight, Masking())


@flower
def test_bounds_that_make_no_sense() -> None:
    server = SumServer(lambda: None, lambda value, total: None)
    for masking in (Masking(clip=0.0), Masking(max_weight=-1.0), Masking(threshold=2.0)):
        with pytest.raises(ValueError, match="must be"):
            sum_server_app(server, masking)
    with pytest.raises(ValueError, match="the sum of one client hides nothing"):
        sum_server_app(server, pace=Pace())
