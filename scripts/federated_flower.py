"""Flower's simulation in this process, without Ray, of the same task as a run of this library.

A client app trains a client by this library's own compiled passes over its examples, which lie on
the device; it gets and gives the model's float32 numbers as an ``ArrayRecord``. Flower's FedAvg is
the server. So what differs is how clients are brought to the processor, not what they compute.

Flower's own backend is Ray, which starts processes; here the client app is called in Flower's
worker threads, which is faster. ``FLOWER`` has Flower's pauses as they come, and shorter.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax.federated._travel import arrived, travelling
from rosler_jax.federated.local import Work, make_local
from rosler_jax.federated.prepare import Prepared, scored_on
from rosler_jax.federated.rounds import client_key, round_keys
from rosler_jax.fit import run_key

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

Weights = dict[str, Any]
"""What travels of a model, by name."""


class Setup(NamedTuple):
    """How Flower runs.

    Attributes:
      workers: threads that clients train in; 0 for the server's own, with neither queue nor store.
      pause: seconds between looks for new messages and for answers; Flower's are 0.1.
    """

    workers: int
    pause: float = 0.1


FLOWER: dict[str, Setup] = {
    "Flower, as it comes": Setup(os.cpu_count() or 1),
    "Flower, 1 worker, pauses of 10 ms": Setup(1, 0.01),
    "Flower, 1 worker, pauses of 1 ms": Setup(1, 0.001),
    "Flower, 2 workers, pauses of 10 ms": Setup(2, 0.01),
    "Flower's apps and messages alone": Setup(0),
}


class Parts(NamedTuple):
    """A task, for who drives clients one by one.

    Attributes:
      start: initial weights.
      train: ``(weights, round, client) -> (weights, loss)``; compiled, of one client.
      score: ``weights ->`` validation accuracy; compiled.
      counts: examples of each client.
      asked: clients a round.
    """

    start: Weights
    train: Callable[[Weights, int, int], tuple[Weights, Any]]
    score: Callable[[Weights], Any]
    counts: np.ndarray
    asked: int


def parts_of(run: Prepared) -> Parts:
    """The parts of a run of this library: the same model, split, keys and learning rates."""
    params, buffers = jax.jit(run.learner.init)(jax.random.split(run_key(run.config.seed))[0])
    words = run.rounds.init(run_key(run.config.seed)).key
    local = make_local(run.config, run.federated, run.learner, len(run.arrays.train_x))
    rows, counts = map(jnp.asarray, run.clients)
    like = travelling(params, buffers)

    def whole(weights: Weights) -> Any:
        return arrived({k: dict(_named(weights, k)) for k in like}, params, buffers)

    def train(weights: Weights, now: Any, client: Any, arrays: Any, rows: Any) -> Any:
        key = client_key(round_keys(words, now)[2], client)
        work = Work(key[None], rows[client][None], counts[client][None])
        done = local(*whole(weights), work, now, arrays, run.hyper, run.units)
        one = jax.tree.map(lambda x: x[0], (done.params, done.buffers))
        return flat(travelling(*one)), done.loss[0]

    def score(weights: Weights, x: Any, y: Any) -> Any:
        at, buffers = whole(weights)
        return scored_on(run, at, buffers, x, y)[1]["accuracy"]

    jit_train, jit_score = jax.jit(train), jax.jit(score)
    x, y = run.arrays.validation_x, run.arrays.validation_y
    return Parts(
        flat(like),
        lambda weights, now, client: jit_train(weights, now, client, run.arrays, rows),
        lambda weights: jit_score(weights, x, y),
        np.asarray(run.clients.counts),
        run.federated.asked,
    )


def flat(weights: dict[str, dict[str, Any]]) -> Weights:
    """Names of two parts as one: ``params:hidden/0/u``."""
    return {f"{part}:{k}": v for part, of in weights.items() for k, v in of.items()}


def _named(weights: Weights, part: str) -> Iterable[tuple[str, Any]]:
    return ((k.split(":", 1)[1], v) for k, v in weights.items() if k.split(":", 1)[0] == part)


class Played(NamedTuple):
    """Rounds that were played: seconds of each, the accuracy at the end, and the last weights."""

    seconds: list[float]
    accuracies: list[float]
    weights: Weights


def plain_rounds(parts: Parts, rounds: int, seed: int = 0) -> Played:
    """A loop over clients, one compiled call each; means on the device."""
    rng, weights = np.random.default_rng(seed), parts.start
    add = jax.jit(lambda sums, new, weight: jax.tree.map(lambda a, b: a + weight * b, sums, new))
    seconds = list[float]()
    for now in range(rounds):
        begin = time.perf_counter()
        chosen = rng.permutation(len(parts.counts))[: parts.asked]
        share = parts.counts[chosen] / parts.counts[chosen].sum()
        sums = jax.tree.map(jnp.zeros_like, weights)
        for client, weight in zip(chosen, share, strict=True):
            new, _ = parts.train(weights, now, client)
            sums = add(sums, new, weight)
        weights = jax.block_until_ready(sums)
        seconds.append(time.perf_counter() - begin)
    accuracies = [float(parts.score(weights))]
    return Played(seconds, accuracies, weights)


def flower_rounds(parts: Parts, rounds: int, setup: Setup) -> Played:
    """Rounds of Flower's FedAvg over its own simulation."""
    from flwr.app import ArrayRecord
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    logging.getLogger("flwr").setLevel(logging.ERROR)  # not before: importing sets it
    clocks, accuracies = list[float](), list[float]()
    ends: list[Any] = []
    server = ServerApp()

    def score(now: int, arrays: Any) -> None:
        clocks.append(time.perf_counter())
        if now == rounds:
            weights = {k: v.numpy() for k, v in arrays.items()}
            accuracies.append(float(parts.score(weights)))

    @server.main()
    def main(grid: Any, context: Any) -> None:
        del context
        strategy = FedAvg(
            fraction_train=parts.asked / len(parts.counts), fraction_evaluate=0.0,
            min_train_nodes=1, min_available_nodes=len(parts.counts),
        )  # fmt: skip
        arrays = ArrayRecord(_arrays(parts.start))
        ends.append(strategy.start(grid, arrays, num_rounds=rounds, evaluate_fn=score))

    clients = len(parts.counts)
    (_simulate if setup.workers else _call)(server, _client_app(parts), clients, setup)
    weights = {k: v.numpy() for k, v in ends[0].arrays.items()}
    return Played(np.diff(clocks).tolist(), accuracies, weights)


def _arrays(weights: Weights) -> dict[str, Any]:
    from flwr.app import Array

    return {name: Array(np.asarray(value)) for name, value in weights.items()}


def _client_app(parts: Parts) -> Any:
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message: Any, context: Any) -> Any:
        client = int(context.node_config["partition-id"])
        now = int(message.content["config"]["server-round"]) - 1
        weights = {name: array.numpy() for name, array in message.content["arrays"].items()}
        new, loss = parts.train(weights, now, client)
        metrics: Any = {"num-examples": int(parts.counts[client]), "loss": float(loss)}
        content: Any = {"arrays": ArrayRecord(_arrays(new)), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    return app


# Flower's inner parts, of version 1.42: they have no public way around Ray.


def _here(run_id: int = 1) -> None:
    """Says to Flower's messages who sends them."""
    from flwr.common.constant import SUPERLINK_NODE_ID
    from flwr.supercore.task_identity import TaskIdentity

    identity: Any = TaskIdentity
    identity.task_id = identity.run_id = run_id
    identity.node_id = SUPERLINK_NODE_ID


def _server_context() -> Any:
    from flwr.app import Context, RecordDict
    from flwr.common.constant import SUPERLINK_NODE_ID

    return Context(1, SUPERLINK_NODE_ID, {}, RecordDict(), {})


def _simulate(server: Any, client: Any, clients: int, setup: Setup) -> None:
    """What ``flwr.simulation.run_simulation`` does, with threads in the place of Ray."""
    from flwr.proto.task_pb2 import Task
    from flwr.server.superlink.fleet.vce import vce_api
    from flwr.server.superlink.fleet.vce.metrics import VceMetrics
    from flwr.server.superlink.linkstate import LinkStateFactory
    from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supercore.run import Run
    from flwr.superlink.federation import NoOpFederationManager
    from flwr.superlink.grid import InMemoryGrid

    store = ObjectStoreFactory()
    factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), store)
    state: Any = factory.state()
    run = Run.create_empty(run_id=1)
    run.primary_task_id, run.federation_id = 1, NOOP_FEDERATION_ID
    state.run_ids[1], state.task_store[1] = RunRecord(run=run), Task(task_id=1, run_id=1)
    _here()
    grid = InMemoryGrid(factory, pull_interval=setup.pause)
    grid.set_run(run)
    stop, failures = _eager_event(setup.pause), list[BaseException]()
    nodes = vce_api._register_nodes(clients, factory)
    stores = vce_api._register_node_info_stores(nodes, run)

    def serve() -> None:
        try:
            server(grid, _server_context())
        except BaseException as error:
            failures.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=serve)
    thread.start()
    backend = _backend(setup.workers)
    vce_api.run_api(lambda: client, lambda: backend, nodes, factory, stores, stop, VceMetrics())
    thread.join()
    if failures:
        raise failures[0]


def _eager_event(pause: float) -> threading.Event:
    """Whoever waits for it does not wait longer than that."""

    class Eager(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return super().wait(None if timeout is None else min(timeout, pause))

    return Eager()


def _backend(workers: int) -> Any:
    """Calls the client app in the thread that asks for it."""
    from flwr.server.superlink.fleet.vce.backend import Backend

    class InProcess(Backend):
        def build(self, app_fn: Callable[[], Any]) -> None:
            self.app = app_fn()

        @property
        def num_workers(self) -> int:
            return workers

        def is_worker_idle(self) -> bool:
            return True

        def terminate(self) -> None:
            pass

        def process_message(self, message: Any, context: Any) -> Any:
            return self.app(message, context), context

    return InProcess({})


def _call(server: Any, client: Any, clients: int, setup: Setup) -> None:
    """The least that Flower's apps and messages take: no queue, no store, no thread."""
    from flwr.app import Context, RecordDict
    from flwr.superlink.grid import InMemoryGrid

    del setup
    contexts = {
        node: Context(1, node, {"partition-id": node - 2}, RecordDict(), {})
        for node in range(2, 2 + clients)
    }

    class Direct(InMemoryGrid):
        def __init__(self) -> None:
            pass

        def get_node_ids(self) -> Iterable[int]:
            return list(contexts)

        def send_and_receive(
            self, messages: Iterable[Any], *, timeout: float | None = None
        ) -> Sequence[Any]:
            del timeout
            return [client(m, contexts[m.metadata.dst_node_id]) for m in messages]

    _here()
    server(Direct(), _server_context())
