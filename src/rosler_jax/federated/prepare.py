"""A federated run ready to go: its data, its functions, its programs, and where it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax.federated._delta_learner import delta_learner, model_key
from rosler_jax.federated._spec import choose
from rosler_jax.federated.clients import Clients, split_clients
from rosler_jax.federated.compress import Packed
from rosler_jax.federated.config import FederatedConfig
from rosler_jax.federated.optimizers import CLIENTS
from rosler_jax.federated.rounds import Answers, Asked, FederatedState, Rounds, make_rounds
from rosler_jax.fit import (
    Arrays,
    evaluate,
    learner_of,
    method_of,
    outputs_of,
    run_key,
    task_of,
)
from rosler_jax.hyper import Hyper, hyper_of
from rosler_jax.optim._groups import map_groups
from rosler_jax.optim.ares_bp import solve_and_balance
from rosler_jax.run import config_units, load_data
from rosler_jax.tasks import Task
from rosler_jax.units import Units

if TYPE_CHECKING:
    from rosler_jax.config import TrainConfig
    from rosler_jax.learner import Learner


_HELD_BYTES = 2**30  # at most, for what is only estimated by it


class Prepared(NamedTuple):
    """A federated run ready to go.

    Attributes:
      config: what clients train; its ``epochs`` are the rounds.
      federated: the run.
      dataset, task, learner, units, hyper, arrays: as of a run on one machine.
      clients: which examples each has.
      rounds: the pure functions.
      build: makes them of a learner, and of whether the parallel stage is over.
      settled: whether it is.
    """

    config: TrainConfig
    federated: FederatedConfig
    dataset: Any
    task: Task
    learner: Learner
    units: Units
    hyper: Hyper
    arrays: Arrays
    clients: Clients
    rounds: Rounds
    build: Callable[[Learner, bool], Rounds]
    settled: bool = False


class Progress(NamedTuple):
    """Where a run is: all that it needs to go on.

    Attributes:
      state: of clients and server.
      best_params, best_buffers: of the best round by validation, as the clients had them.
      best_score, best_round: of it; larger is better.
      synced: the round whose model each client has last got; 0 for the initial one.
      held: where the way down is on a grid, the steps that each client has, ``(clients,
        numbers)``; empty elsewhere, or where messages are not written and that were too much.
      offences: how many broken messages each client has sent.
    """

    state: FederatedState
    best_params: Any
    best_buffers: Any
    best_score: np.ndarray
    best_round: np.ndarray
    synced: np.ndarray
    held: Any
    offences: np.ndarray


def prepare_federated(
    config: TrainConfig,
    federated: FederatedConfig,
    data: Any = None,
    *,
    clients: Clients | None = None,
    keeps_memory: bool = True,
    mesh: jax.sharding.Mesh | None = None,
    at_once: int | None = None,
) -> Prepared:
    """Loads and splits the data, and builds the functions of a federated run.

    Args:
      config, federated: the run.
      data: arrays in the place of the data that the config names.
      clients: which training examples each has; None to split them as the config says.
      keeps_memory: see :func:`~rosler_jax.federated.rounds.make_rounds`.
      mesh: of devices, over whose first axis the clients of a round are spread.
      at_once: clients that are trained side by side.

    Raises:
      ValueError: for what does not go together.

    Example:
      >>> from rosler_jax.config import TrainConfig
      >>> x, y = np.eye(100, 12), np.arange(100) % 2
      >>> federated = FederatedConfig(clients=4, rounds=5)
      >>> run = prepare_federated(TrainConfig(hidden=(8,), rank=2), federated, (x, y))
      >>> len(run.dataset.train_x), run.clients.counts.tolist(), run.config.epochs
      (72, [18, 18, 18, 18], 5)
    """
    _check_config(config, federated)
    config = clients_config(config, federated)
    dataset, task = load_data(config, data), task_of(config)
    if dataset.streams:
        raise ValueError("federated training has all clients' data on the device; these stream")
    count = len(dataset.train_x)
    if clients is None:
        clients = clients_of(dataset, federated)
    if len(clients.counts) != federated.clients:
        raise ValueError(f"{len(clients.counts)} clients given; the run has {federated.clients}")
    learner = federated_learner(config, federated, dataset)

    def build(learner: Learner, settled: bool) -> Rounds:
        how = federated
        if method_of(config).stages and not settled:  # rounding would tear the sketches apart
            how = dataclasses.replace(federated, upload="float32", download="float32")
        return make_rounds(
            config, how, learner, count, settled=settled, keeps_memory=keeps_memory,
            mesh=mesh, at_once=at_once,
        )  # fmt: skip

    splits = dataset.train_x, dataset.train_y, dataset.validation_x, dataset.validation_y
    arrays = Arrays(*jax.tree.map(jnp.asarray, splits))
    units, hyper = config_units(config, dataset), hyper_of(config)
    return Prepared(
        config, federated, dataset, task, learner, units, hyper, arrays, clients,
        build(learner, False), build,
    )  # fmt: skip


def clients_config(config: TrainConfig, federated: FederatedConfig) -> TrainConfig:
    """What clients train: rounds are its epochs, and its rate is known."""
    rate = choose("client", federated.client, CLIENTS)[0].rate
    given = config.learning_rate
    return dataclasses.replace(
        config, epochs=federated.rounds, learning_rate=rate if given is None else given
    )


def clients_of(dataset: Any, federated: FederatedConfig) -> Clients:
    """Which training examples of a data set each client of a run has."""
    labels = dataset.train_y if dataset.num_classes is not None else None
    return split_clients(
        federated.split, federated.clients, labels, count=len(dataset.train_x),
        groups=dataset.groups, seed=federated.seed,
    )  # fmt: skip


def federated_learner(config: TrainConfig, federated: FederatedConfig, dataset: Any) -> Learner:
    """The model of a run, or its seeded delta; of a data set, or what has its shapes."""
    learner = learner_of(config, dataset)
    if not federated.delta:
        return learner
    return delta_learner(learner, model_key(config.seed), federated.delta, federated.seed)


def _check_config(config: TrainConfig, federated: FederatedConfig) -> None:
    method = method_of(config)
    if federated.delta and (method.stages or method.thin):
        raise ValueError(f"a seeded delta of a model by {config.method!r}: pass dense or seeded")
    if config.rate_coded or config.budget_bytes is not None:
        raise ValueError("federated training does not rate-code its model; leave these options out")
    if federated.delta and config.quantization_aware:
        raise ValueError("a seeded delta is not trained through the quantiser; pass one of both")
    linear = federated.server.partition(":")[0] in ("fedavg", "fedavgm") and not federated.noise
    if method.stages and not (linear and federated.aggregate == "mean"):
        raise ValueError(
            "the parallel stage of ares-bp stands what is linear in the updates alone: server "
            f"{federated.server!r}, aggregate {federated.aggregate!r} and noise {federated.noise} "
            "are not; pass fedavg and mean, or method chain"
        )
    if federated.bad and not federated.wire:
        raise ValueError("bad clients garble bytes; pass wire=True")


class Programs(NamedTuple):
    """The compiled parts of a round.

    Attributes:
      begin: ``state -> (Asked, Answers)``.
      end: ``(state, asked, answers, messages, came) -> (state, Received, (loss, metrics))``.
      whole: both, where nothing happens to messages on their way; takes the state's memory away.
      unpacked: packed messages as rows.
    """

    begin: Callable[..., tuple[Asked, Answers]]
    end: Callable[..., Any]
    whole: Callable[..., Any]
    unpacked: Callable[[Packed], Any]


def programs(run: Prepared) -> Programs:
    """Compiles nothing yet: that is done at the first round."""
    rounds, units, federated = run.rounds, run.units, run.federated
    rows, counts = map(jnp.asarray, run.clients)

    def begin(state: FederatedState, arrays: Arrays, rows: Any, counts: Any) -> Any:
        asked = rounds.ask(state, rows, counts)
        return asked, rounds.answer(state, asked, arrays, run.hyper, units)

    def end(
        state: FederatedState, asked: Asked, answers: Answers, messages: Any, came: Any, x: Any,
        y: Any,
    ) -> Any:  # fmt: skip
        state, received = rounds.receive(state, asked, answers, messages, came)
        params, buffers = rounds.model(state)

        def scored() -> Any:
            return scored_on(run, params, buffers, x, y)

        nothing = lambda: jax.tree.map(jnp.zeros_like, jax.eval_shape(scored))  # noqa: E731
        return state, received, jax.lax.cond(is_scored(federated, state.round), scored, nothing)

    def whole(memory: Any, rest: FederatedState, arrays: Arrays, rows: Any, counts: Any) -> Any:
        state = rest._replace(memory=memory)
        asked, answers = begin(state, arrays, rows, counts)
        messages = rounds.unpacked(answers.packed)
        x, y = arrays.validation_x, arrays.validation_y
        found = end(state, asked, answers, messages, asked.answers, x, y)
        return asked, answers._replace(packed=Packed((), ()), memory={}), *found

    x, y = run.arrays.validation_x, run.arrays.validation_y
    # Of many clients the memory is by far the largest: rows are set in it, and it is not copied.
    jit_begin, jit_end, jit_whole = jax.jit(begin), jax.jit(end), jax.jit(whole, donate_argnums=0)
    return Programs(
        lambda state: jit_begin(state, run.arrays, rows, counts),
        lambda *args: jit_end(*args, x, y),
        lambda state: jit_whole(state.memory, state._replace(memory={}), run.arrays, rows, counts),
        jax.jit(rounds.unpacked),
    )


def scored_on(run: Prepared, params: Any, buffers: Any, x: Any, y: Any) -> Any:
    """Loss and metrics of a model on some data; see :func:`rosler_jax.evaluation.evaluate`."""

    def predict(x: Any) -> Any:
        return outputs_of(run.task, run.learner, params, buffers, x, run.units)

    return evaluate(predict, x, y, run.task, units=run.units)


def holds(federated: FederatedConfig, rounds: Rounds) -> bool:
    """Whether it is known what each client has of the grid: where that is no matter of memory."""
    numbers = sum(math.prod(shape) for shape in rounds.forms[1].shapes)
    small = 2 * federated.clients * numbers < _HELD_BYTES
    return bool(rounds.down.grid) and (federated.wire or small)


def begin_progress(run: Prepared) -> Progress:
    """A run that has not begun."""
    state = jax.jit(run.rounds.init)(run_key(run.config.seed))
    params, buffers = run.rounds.model(state)
    score, zero = np.float32(-np.inf), np.int32(0)
    synced = np.zeros(run.federated.clients, np.int32)
    held: Any = ()
    if holds(run.federated, run.rounds):
        held = np.zeros((run.federated.clients, len(steps_of(state))), np.int16)
    offences = np.zeros(run.federated.clients, np.int32)
    return Progress(
        state, params, buffers, np.asarray(score), np.asarray(zero), synced, held, offences
    )


def is_settled(run: Prepared, rounds: int) -> bool:
    """Whether aRes-BP's parallel stage is over after so many rounds."""
    return method_of(run.config).stages and rounds >= max(1, round(run.config.parallel_epochs))


def settled(run: Prepared) -> tuple[Prepared, Callable[[Progress], Progress]]:
    """The run after the parallel stage, in which mean factors were factors of the mean weight.

    Returns:
      The run of chains, and what a progress becomes: every client balances the factors that it has
      by itself, so that nothing is sent.
    """
    learner, convert = run.learner.settled()
    after = run._replace(learner=learner, rounds=run.build(learner, True), settled=True)

    def converted(progress: Progress) -> Progress:
        old = progress.state
        params, buffers = run.rounds.model(old)
        params, buffers = convert(map_groups(solve_and_balance, params), buffers)
        begun = after.rounds.begin(params, buffers)
        state = begun._replace(round=old.round, key=old.key)
        score = jnp.full((), -jnp.inf, jnp.float32)
        held: Any = ()
        if holds(run.federated, after.rounds):  # on which nobody has moved yet
            numbers = sum(steps.size for steps in state.grid.steps)
            held = jnp.zeros((run.federated.clients, numbers), jnp.int16)
        best: dict[str, Any] = {"best_score": score, "best_round": old.round}
        return progress._replace(
            state=state, best_params=params, best_buffers=buffers, held=held, **best
        )

    return after, converted


def after_switch(
    run: Prepared, progress: Progress, parts: Programs
) -> tuple[Prepared, Progress, Programs]:
    """The run, its progress and its programs as they go on after a round."""
    if run.settled or not is_settled(run, int(progress.state.round)):
        return run, progress, parts
    run, converted = settled(run)
    return run, on_host(jax.jit(converted)(progress)), programs(run)


def on_host(progress: Progress) -> Progress:
    """The same, with what rounds count in NumPy's arrays."""
    return Progress(*progress[:3], *jax.tree.map(np.asarray, progress[3:]))


def is_scored(federated: FederatedConfig, now: Any) -> Any:
    """Whether a model is scored on validation that so many rounds have made."""
    return (now % federated.evaluate_every == 0) | (now == federated.rounds)


def steps_of(state: FederatedState) -> np.ndarray:
    """The steps on the grid that the server has sent so far, in one row."""
    return np.concatenate([np.ravel(steps) for steps in state.grid.steps])
