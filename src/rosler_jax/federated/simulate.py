"""A federated run on one machine: rounds, bytes, and what became of every message."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax.federated import secure
from rosler_jax.federated._delta_learner import delta_learner, model_key
from rosler_jax.federated._spec import choose
from rosler_jax.federated.clients import Clients, split_clients
from rosler_jax.federated.compress import Packed
from rosler_jax.federated.config import FederatedConfig
from rosler_jax.federated.garbage import GARBAGE
from rosler_jax.federated.ledger import Ledger, asked_bytes, whole_bytes
from rosler_jax.federated.optimizers import CLIENTS
from rosler_jax.federated.rounds import Answers, Asked, FederatedState, Rounds, make_rounds
from rosler_jax.federated.wire import (
    DOWN,
    UP,
    Form,
    Header,
    MessageError,
    check_header,
    decode,
    encode,
)
from rosler_jax.fit import (
    Arrays,
    evaluate,
    in_units,
    learner_of,
    method_of,
    run_key,
    task_of,
)
from rosler_jax.hyper import Hyper, hyper_of
from rosler_jax.optim._groups import map_groups
from rosler_jax.optim.ares_bp import solve_and_balance
from rosler_jax.run import RunError, config_units, load_data
from rosler_jax.tasks import Task, metric_of
from rosler_jax.units import Units, standardized

if TYPE_CHECKING:
    from rosler_jax.config import TrainConfig
    from rosler_jax.learner import Learner

Row = dict[str, float]
Report = Callable[[Row], None]
"""Called after every round with its row of the history."""


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
      held: where messages are written and the way down is on a grid, the steps that each client
        has, ``(clients, numbers)``; else empty.
    """

    state: FederatedState
    best_params: Any
    best_buffers: Any
    best_score: np.ndarray
    best_round: np.ndarray
    synced: np.ndarray
    held: Any


class Refused(NamedTuple):
    """A message that did not count; rounds are numbered from 1, as in the history."""

    round: int
    client: int
    reason: str
    text: str


class Federated(NamedTuple):
    """What :func:`federated_fit` gives.

    Attributes:
      progress: the last state, and the best model.
      history: a row a round.
      refused: messages that did not count.
      prepared: what was run; ``prepared.learner.model(params, buffers)`` is the model.
    """

    progress: Progress
    history: list[Row]
    refused: list[Refused]
    prepared: Prepared


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
    """
    _check_config(config, federated)
    config = clients_config(config, federated)
    dataset, task = load_data(config, data), task_of(config)
    if dataset.streams:
        raise ValueError("federated training has all clients' data on the device; these stream")
    count = len(dataset.train_x)
    if clients is None:
        clients = split_clients(
            federated.split, federated.clients, _labels(dataset), count=count,
            groups=dataset.groups, seed=federated.seed,
        )  # fmt: skip
    if len(clients.counts) != federated.clients:
        raise ValueError(f"{len(clients.counts)} clients given; the run has {federated.clients}")
    learner = learner_of(config, dataset)
    if federated.delta:
        learner = delta_learner(learner, model_key(config.seed), federated.delta, federated.seed)

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


def _labels(dataset: Any) -> Any:
    return dataset.train_y if dataset.num_classes is not None else None


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

        def predict(x: Any) -> Any:
            out, _ = run.learner.apply(params, buffers, standardized(x, units), False)
            return in_units(run.task, out, units)

        def scored() -> Any:
            return evaluate(predict, x, y, run.task, units=units)

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


def begin_progress(run: Prepared) -> Progress:
    """A run that has not begun."""
    state = jax.jit(run.rounds.init)(run_key(run.config.seed))
    params, buffers = run.rounds.model(state)
    score, zero = np.float32(-np.inf), np.int32(0)
    synced = np.zeros(run.federated.clients, np.int32)
    held: Any = ()
    if run.rounds.down.grid and run.federated.wire:
        held = np.zeros((run.federated.clients, len(_steps_of(state))), np.int32)
    return Progress(state, params, buffers, np.asarray(score), np.asarray(zero), synced, held)


def federated_fit(
    config: TrainConfig,
    federated: FederatedConfig,
    data: Any = None,
    *,
    report: Report | None = None,
    clients: Clients | None = None,
    mesh: jax.sharding.Mesh | None = None,
    at_once: int | None = None,
) -> Federated:
    """Trains a model at many simulated clients.

    Clients of a round are one vmapped axis of one compiled program. With ``federated.wire`` every
    message is written as bytes and read again, so that bytes are exact, and what is broken is
    refused as a real server would.

    Args:
      config: what a client trains: model, method, rank, batch, learning rate (its schedule is over
        rounds), seed.
      federated: how.
      data: arrays in the place of the data that the config names, see
        :func:`rosler_jax.data.load`.
      report: called after every round.
      clients: which training examples each has; None to split as the config says.
      mesh: of devices, over whose first axis the clients of a round are spread.
      at_once: clients that are trained side by side; None for what suits the device.

    Returns:
      The best model by validation and the last state, a history, and the messages that were
      refused. ``up_bytes`` and ``down_bytes`` of a row are the sums over clients in that round.

    Raises:
      ValueError: for what does not go together.

    Example:
      >>> from rosler_jax.config import TrainConfig
      >>> x = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32)
      >>> y = (x[:, 0] > 0).astype(np.int32) + 2 * (x[:, 1] > 0)
      >>> config = TrainConfig(hidden=(16,), method="seeded", rank=4, batch_size=8)
      >>> run = FederatedConfig(clients=8, rounds=5, participation=0.5, split="dirichlet:0.5")
      >>> found = federated_fit(config, run, (x, y))
      >>> [int(row["answered"]) for row in found.history], found.history[0]["up_bytes"] < 1500
      ([4, 4, 4, 4, 4], True)

    Source: McMahan et al., "Communication-efficient learning of deep networks from decentralized
    data", arXiv:1602.05629; Li et al. (FedProx), arXiv:1812.06127.
    """
    run = prepare_federated(config, federated, data, clients=clients, mesh=mesh, at_once=at_once)
    parts, progress = programs(run), begin_progress(run)
    history, refused = list[Row](), list[Refused]()
    while len(history) < federated.rounds:
        progress, row, more = play_round(run, parts, progress, history)
        run, progress, parts = after_switch(run, progress, parts)
        history, refused = [*history, row], [*refused, *more]
        if report is not None:
            report(row)
    return Federated(progress, history, refused, run)


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
        if run.federated.wire and after.rounds.down.grid:  # on which nobody has moved yet
            numbers = sum(steps.size for steps in state.grid.steps)
            held = jnp.zeros((run.federated.clients, numbers), jnp.int32)
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


def play_round(
    run: Prepared, parts: Programs, progress: Progress, history: Sequence[Row]
) -> tuple[Progress, Row, list[Refused]]:
    """One round, with its row of the history.

    Args:
      run: what is run.
      parts: its programs.
      progress: before the round; without ``wire`` the memory in its state is no more after it.
      history: of the rounds before it.
    """
    start, state, wire = time.perf_counter(), progress.state, run.federated.wire
    sizes = [int(row["down_message"]) for row in history]
    if run.federated.secure or wire:
        asked, answers = parts.begin(state)
        trip = _masked_trip if run.federated.secure else _wire_trip
        messages, came, (up, beside), refused = trip(run, parts, state, asked, answers)
        state, received, (loss, metrics) = parts.end(state, asked, answers, messages, came)
        header = Header(DOWN, int(state.round))
        down_message = len(encode(header, _numpy(received.down), _forms(run)[1]))
    else:
        asked, answers, state, received, (loss, metrics) = parts.whole(state)
        came, refused = np.asarray(asked.answers), list[Refused]()
        (up, down_message), beside = _estimated(run, asked, answers, received), 0
    if not run.federated.secure:
        refused += _long_ones(progress, asked, received, came)
    _check_diverged(run, refused, int(np.asarray(asked.answers).sum()))
    down, progress = _brought(run, progress, np.asarray(asked.clients), sizes)
    progress, down = progress._replace(state=state), down + beside
    if not run.settled and is_settled(run, int(state.round)):  # who balances factors must have them
        more, progress = _brought(
            run, progress, np.arange(run.federated.clients), [*sizes, down_message]
        )
        down += more
    scores, score = _scores(run, loss, metrics)
    if not is_scored(run.federated, int(state.round)):
        names, score = list(scores), -np.inf
        scores = {name: history[-1][name] if history else np.nan for name in names}
    answered = int(np.asarray(asked.answers).sum())
    valid = int(np.asarray(received.checked.valid).sum())
    row: Row = {
        "round": int(state.round),
        "asked": len(came),
        "answered": answered,
        "counted": int(came.sum()) if run.federated.secure else valid,
        "loss": float(received.loss),
        **scores,
        "up_bytes": float(np.sum(up)),
        "down_bytes": float(down),
        "up_information": float(np.where(asked.answers, answers.bits, 0).sum()) / 8,
        "down_information": float(received.bits) / 8 * len(came),
        "down_message": down_message,
        "seconds": time.perf_counter() - start,
    }
    return _kept(run, progress, score), row, refused


def is_scored(federated: FederatedConfig, now: Any) -> Any:
    """Whether a model is scored on validation that so many rounds have made."""
    return (now % federated.evaluate_every == 0) | (now == federated.rounds)


def _scores(run: Prepared, loss: Any, metrics: Any) -> tuple[Row, float]:
    """Columns of a row, and what the best round is chosen by; larger is better."""
    followed, metric = metric_of(run.task, run.config.metric)
    score = float(metrics[followed]) if metric.larger_is_better else -float(metrics[followed])
    named = {f"validation_{name}": float(value) for name, value in metrics.items()}
    return {"validation_loss": float(loss), **named}, score


def _check_diverged(run: Prepared, refused: Sequence[Refused], answered: int) -> None:
    """Refuses to go on where every client that means well has come to no numbers."""
    lost = [one for one in refused if one.reason == "not finite"]
    if answered and len(lost) == answered and not run.federated.bad:
        raise RunError(
            f"round {lost[0].round}: all {answered} clients came to NaN or infinity; lower the "
            f"learning rate (now {run.config.peak_learning_rate})"
        )


def _brought(
    run: Prepared, progress: Progress, clients: np.ndarray, sizes: Sequence[int]
) -> tuple[int, Progress]:
    """Bytes that bring clients to the model that the state sends, and who has it then.

    On a grid each gets all steps that it lacks as one message; else all messages that it lacks, or
    the whole model.
    """
    form = _forms(run)[1]
    if not len(progress.held):
        ledger = Ledger(progress.synced, sizes)
        total, ledger = asked_bytes(ledger, clients, whole_bytes(form))
        return total, progress._replace(synced=ledger.synced)
    now, current = int(progress.state.round), _steps_of(progress.state)
    if np.abs(current).max(initial=0) >= form.levels:
        raise ValueError(
            "a weight has grown beyond what the grid of the way down can hold, 128 times its "
            "tensor's initial size; lower the learning rate, or pass download 'step:1'"
        )
    held, synced, total = progress.held.copy(), progress.synced.copy(), 0
    known: dict[int, int] = {}
    for client in clients:
        since = int(synced[client])
        if since not in known:
            missed = current - held[client]
            packed = packed_steps(missed, progress.state, form)
            known[since] = len(encode(Header(DOWN, now), packed, form))
        total += known[since]
    held[clients], synced[clients] = current, now
    return total, progress._replace(held=held, synced=synced)


def _steps_of(state: FederatedState) -> np.ndarray:
    """The steps on the grid that the server has sent so far, in one row."""
    return np.concatenate([np.ravel(steps) for steps in state.grid.steps])


def packed_steps(steps: np.ndarray, state: FederatedState, form: Form) -> Packed:
    """A message down of these steps, with the statistics as they are."""
    shapes = form.shapes[: form.coded]
    sizes = [int(np.prod(shape, dtype=int)) for shape in shapes]
    parts = np.split(steps, np.cumsum(sizes)[:-1])
    values = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    rest = tuple(np.asarray(x) for x in jax.tree.leaves(state.sent["statistics"]))
    ones = tuple(np.float32(1) for _ in rest)
    return Packed((*(v.astype(np.int16) for v in values), *rest), (*form.scales, *ones))


def _kept(run: Prepared, progress: Progress, score: float) -> Progress:
    """Remembers the model as the clients have it, if it is the best so far; later ones win ties."""
    if not np.isfinite(score) or score < progress.best_score:
        return progress
    params, buffers = run.rounds.model(progress.state)
    return progress._replace(
        best_params=params,
        best_buffers=buffers,
        best_score=np.asarray(score, np.float32),
        best_round=np.asarray(progress.state.round, np.int32),
    )


def _forms(run: Prepared) -> tuple[Form, Form]:
    """Forms of messages up and down."""
    return run.rounds.forms


def _numpy(packed: Packed) -> Packed:
    return jax.tree.map(np.asarray, packed)


# Messages on their way.

Trip = tuple[Any, np.ndarray, tuple[float, int], list[Refused]]
"""Messages as rows, which came, bytes up and what went down beside the model, and the refused."""


def is_bad(federated: FederatedConfig) -> np.ndarray:
    """Which clients send garbage, the same in all rounds, ``(clients,)``."""
    order = np.random.default_rng([federated.seed, 1]).permutation(federated.clients)
    return order < round(federated.bad * federated.clients)


def _garbage_of(federated: FederatedConfig, now: int, client: int) -> str:
    kinds = list(GARBAGE)
    return kinds[(now + client) % len(kinds)] if federated.garbage == "all" else federated.garbage


def _wire_trip(
    run: Prepared, parts: Programs, state: FederatedState, asked: Asked, answers: Answers
) -> Trip:
    """Writes each message as bytes, garbles those of bad clients, and reads what came."""
    federated, (form, _), now = run.federated, _forms(run), int(state.round)
    clients, came = np.asarray(asked.clients), np.array(asked.answers)
    packed, counts, bad = _numpy(answers.packed), run.clients.counts, is_bad(federated)
    read = jax.tree.map(np.zeros_like, packed)
    refused, up = list[Refused](), 0
    for k in np.flatnonzero(came):
        client = int(clients[k])
        header = Header(UP, now, client, int(counts[client]))
        one = jax.tree.map(lambda v, k=k: v[k], packed)
        if bad[client]:
            kind = GARBAGE[_garbage_of(federated, now, client)]
            with np.errstate(all="ignore"):
                data = kind(header, one, form, np.random.default_rng([now, client]))
        else:
            data = encode(header, one, form)
        up += len(data)
        try:
            said, found = decode(data, form)
            check_header(said, UP, now, federated.clients)
        except MessageError as error:
            came[k] = False
            refused.append(Refused(now + 1, client, error.reason, str(error)))
            continue
        for into, values in zip(jax.tree.leaves(read), jax.tree.leaves(found), strict=True):
            into[k] = values
    return parts.unpacked(read), came, (up, 0), refused


def _masked_trip(
    run: Prepared, parts: Programs, state: FederatedState, asked: Asked, answers: Answers
) -> Trip:
    """Masks each message, sums those that came, and takes the masks of the sum."""
    del parts
    federated, now = run.federated, int(state.round)
    clients, came = [int(k) for k in asked.clients], np.array(asked.answers)
    exact, counts = np.asarray(answers.exact), run.clients.counts
    total = int(counts[clients].sum())
    threshold = len(clients) // 2 + 1
    made = {k: secure.make_secrets(f"{federated.seed}/{now}/{k}".encode()) for k in clients}
    keys = {k: secure.public_key(made[k]) for k in clients}
    shares = {k: secure.split_secrets(made[k], clients, threshold) for k in clients}
    sent: dict[int, np.ndarray] = {}
    lost = list[Refused]()
    for place, client in enumerate(clients):
        if came[place] and not np.isfinite(exact[place]).all():  # who diverged says nothing
            came[place] = False
            lost.append(Refused(now + 1, client, "not finite", f"client {client}: diverged"))
        if not came[place]:
            continue
        weight = int(counts[client])
        words = secure.fixed_point(exact[place], weight, total, federated.secure_range)
        words = np.append(words, np.uint32(weight))  # who came, and with what, is a sum as well
        sent[client] = secure.masked(words, client, made[client], keys)
    sizes = secure.sent_bytes(len(clients), len(sent), exact.shape[1] + 1)
    messages = np.zeros_like(exact)
    try:
        summed = secure.unmasked(sent, keys, shares, threshold)
    except secure.SecureError as error:
        came[:] = False
        return messages, came, sizes, [*lost, Refused(now + 1, -1, "too few", str(error))]
    messages[0] = secure.mean_of(summed[:-1], int(summed[-1]), total, federated.secure_range)
    return messages, came, sizes, lost


def _estimated(run: Prepared, asked: Asked, answers: Answers, received: Any) -> tuple[float, int]:
    """Bytes of messages that nobody wrote: of their information, with what each adds to it."""
    frame = len(encode(Header(UP, 0), Packed((), ()), Form([], 0)))
    bits = np.where(np.asarray(asked.answers), np.asarray(answers.bits), 0)
    up = float(bits.sum()) / 8 + frame * int(np.asarray(asked.answers).sum())
    return up, frame + round(float(received.bits) / 8)


def _long_ones(progress: Progress, asked: Asked, received: Any, came: np.ndarray) -> list[Refused]:
    """Messages that were read well, but not believed."""
    checked = received.checked
    valid, norms = np.asarray(checked.valid), np.asarray(checked.norms)
    finite, found = np.asarray(checked.finite), []
    for k in np.flatnonzero(came & ~valid):
        reason = "too long" if finite[k] else "not finite"
        client = int(asked.clients[k])
        text = f"client {client}: a message of norm {norms[k]:.3g}"
        found.append(Refused(int(progress.state.round) + 1, client, reason, text))
    return found
