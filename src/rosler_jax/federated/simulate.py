"""A federated run on one machine: rounds, bytes, and what became of every message."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from rosler_jax.federated.clients import Clients
from rosler_jax.federated.compress import Packed
from rosler_jax.federated.config import FederatedConfig
from rosler_jax.federated.ledger import Ledger, asked_bytes, whole_bytes
from rosler_jax.federated.prepare import (
    Prepared,
    Programs,
    Progress,
    after_switch,
    begin_progress,
    is_scored,
    is_settled,
    prepare_federated,
    programs,
    steps_of,
)
from rosler_jax.federated.rounds import Answers, Asked, FederatedState
from rosler_jax.federated.trips import OFFENCES, Refused, as_numpy, masked_trip, wire_trip
from rosler_jax.federated.wire import (
    DOWN,
    UP,
    Form,
    Header,
    encode,
    information,
)
from rosler_jax.run import RunError
from rosler_jax.tasks import metric_of

if TYPE_CHECKING:
    from rosler_jax.config import TrainConfig

Row = dict[str, float]

Report = Callable[[Row], None]
"""Called after every round with its row of the history."""


class Federated(NamedTuple):
    """What :func:`federated_fit` gives.

    Attributes:
      progress: the last state, and the best model.
      history: a row a round.
      refused: messages that did not count.
      prepared: what was run; ``prepared.learner.model(params, buffers)`` is the model.

    Example:
      >>> from rosler_jax.config import TrainConfig
      >>> x, y = np.eye(100, 12), np.arange(100) % 2
      >>> federated = FederatedConfig(clients=4)
      >>> run = prepare_federated(TrainConfig(hidden=()), federated, (x, y))
      >>> found = Federated(begin_progress(run), [], [], run)  # as it is before the first round
      >>> best = found.progress.best_params, found.progress.best_buffers
      >>> found.prepared.learner.model(*best)(x[:5]).shape
      (5, 2)
    """

    progress: Progress
    history: list[Row]
    refused: list[Refused]
    prepared: Prepared


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
    start, state = time.perf_counter(), progress.state
    sizes = [Sent(row["down_message"], row["down_message_information"]) for row in history]
    if run.federated.secure or run.federated.wire:
        asked, answers = parts.begin(state)
        trip = masked_trip if run.federated.secure else wire_trip
        messages, came, (up, beside), refused = trip(run, parts, state, asked, answers)
        progress, came, refused = banned(run, progress, np.asarray(asked.clients), came, refused)
        state, received, (loss, metrics) = parts.end(state, asked, answers, messages, came)
        header = Header(DOWN, int(state.round))
        down_message = len(encode(header, as_numpy(received.down), run.rounds.forms[1]))
    else:
        asked, answers, state, received, (loss, metrics) = parts.whole(state)
        came, refused = np.asarray(asked.answers), list[Refused]()
        (up, down_message), beside = _estimated(run, asked, answers, received), 0
    if not run.federated.secure:
        refused += long_ones(progress, asked, received, came)
    scores, score = scores_of(run, int(state.round), loss, metrics, history)
    _check_diverged(run, refused, int(np.asarray(asked.answers).sum()))
    down, progress = _brought(run, progress, np.asarray(asked.clients), sizes)
    progress, down = progress._replace(state=state), down.plus(Sent(beside, beside))
    message = Sent(down_message, float(received.bits) / 8)
    if not run.settled and is_settled(run, int(state.round)):  # who balances factors must have them
        more, progress = _brought(
            run, progress, np.arange(run.federated.clients), [*sizes, message]
        )
        down = down.plus(more)
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
        "down_bytes": float(down.size),
        "up_information": float(np.where(asked.answers, answers.bits, 0).sum()) / 8,
        "down_information": float(down.information),
        "down_message": message.size,
        "down_message_information": message.information,
        "seconds": time.perf_counter() - start,
    }
    return kept_best(run, progress, score), row, refused


def scores_of(
    run: Prepared, now: int, loss: Any, metrics: Any, history: Sequence[Row]
) -> tuple[Row, float]:
    """Columns of a row, and what the best round is chosen by; larger is better.

    Of a round that is not scored those of the last one that was, and no claim to be the best.
    """
    named = {"validation_loss": float(loss)}
    named |= {f"validation_{name}": float(value) for name, value in metrics.items()}
    if not is_scored(run.federated, now):
        return {name: history[-1][name] if history else np.nan for name in named}, -np.inf
    followed, metric = metric_of(run.task, run.config.metric)
    score = named[f"validation_{followed}"]
    return named, score if metric.larger_is_better else -score


def _check_diverged(run: Prepared, refused: Sequence[Refused], answered: int) -> None:
    """Refuses to go on where every client that means well has come to no numbers."""
    lost = [one for one in refused if one.reason == "not finite"]
    if answered and len(lost) == answered and not run.federated.bad:
        raise RunError(
            f"round {lost[0].round}: all {answered} clients came to NaN or infinity; lower the "
            f"learning rate (now {run.config.peak_learning_rate})"
        )


def banned(
    run: Prepared, progress: Progress, clients: np.ndarray, came: np.ndarray,
    refused: Sequence[Refused],
) -> tuple[Progress, np.ndarray, list[Refused]]:  # fmt: skip
    """Counts broken messages, and leaves out who has sent too many of them.

    Args:
      run: what is run.
      progress: with the offences before the round.
      clients: who was asked.
      came: whose message could be read.
      refused: the messages that could not.
    """
    most, now = run.federated.ban_after, int(progress.state.round) + 1
    out = [] if not most else [
        k for k in np.flatnonzero(came) if progress.offences[clients[k]] >= most
    ]  # fmt: skip
    came = came.copy()
    came[out] = False
    said = [
        Refused(now, int(clients[k]), "banned", f"client {clients[k]}: sent {most} broken messages")
        for k in out
    ]  # fmt: skip
    offences = progress.offences.copy()
    for one in refused:
        if one.reason in OFFENCES and 0 <= one.client < len(offences):
            offences[one.client] += 1
    return progress._replace(offences=offences), came, [*refused, *said]


class Sent(NamedTuple):
    """Bytes, as they are sent, and the information in them."""

    size: float
    information: float

    def plus(self, other: Sent) -> Sent:
        """The sum."""
        return Sent(self.size + other.size, self.information + other.information)


def _brought(
    run: Prepared, progress: Progress, clients: np.ndarray, sizes: Sequence[Sent]
) -> tuple[Sent, Progress]:
    """Bytes that bring clients to the model that the state sends, and who has it then.

    On a grid each gets all steps that it lacks as one message; else all messages that it lacks, or
    the whole model.

    Args:
      run: what is run.
      progress: before the round.
      clients: who is to have it.
      sizes: of the server's messages after each round so far.
    """
    form = run.rounds.forms[1]
    if not len(progress.held):
        whole, both = whole_bytes(form), list[float]()
        for part in zip(*sizes, strict=True) if sizes else ((), ()):
            bytes_, ledger = asked_bytes(Ledger(progress.synced, list(part)), clients, whole)
            both.append(bytes_)
        return Sent(*both), progress._replace(synced=ledger.synced)
    now, current = int(progress.state.round), steps_of(progress.state)
    if np.abs(current).max(initial=0) >= form.levels:
        raise ValueError(
            "a weight has grown beyond what the grid of the way down can hold, 128 times its "
            "tensor's initial size; lower the learning rate, or pass download 'step:1'"
        )
    frame = whole_bytes(Form([], 0))
    held, synced, total = progress.held.copy(), progress.synced.copy(), Sent(0, 0)
    known: dict[int, Sent] = {}
    for client in clients:
        since = int(synced[client])
        if since not in known:
            missed = current - held[client]
            packed = packed_steps(missed, progress.state, form)
            said = information(packed, form) / 8
            size = frame + said
            if run.federated.wire or run.federated.secure:
                size = len(encode(Header(DOWN, now), packed, form))
            known[since] = Sent(size, said)
        total = total.plus(known[since])
    held[clients], synced[clients] = current, now
    return total, progress._replace(held=held, synced=synced)


def packed_steps(steps: np.ndarray, state: FederatedState, form: Form) -> Packed:
    """A message down of these steps, with the statistics as they are."""
    shapes = form.shapes[: form.coded]
    sizes = [int(np.prod(shape, dtype=int)) for shape in shapes]
    parts = np.split(steps, np.cumsum(sizes)[:-1])
    values = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    rest = tuple(np.asarray(x) for x in jax.tree.leaves(state.sent["statistics"]))
    ones = tuple(np.float32(1) for _ in rest)
    return Packed((*(v.astype(np.int16) for v in values), *rest), (*form.scales, *ones))


def kept_best(run: Prepared, progress: Progress, score: float) -> Progress:
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


def _estimated(run: Prepared, asked: Asked, answers: Answers, received: Any) -> tuple[float, int]:
    """Bytes of messages that nobody wrote: of their information, with what each adds to it."""
    frame = len(encode(Header(UP, 0), Packed((), ()), Form([], 0)))
    bits = np.where(np.asarray(asked.answers), np.asarray(answers.bits), 0)
    up = float(bits.sum()) / 8 + frame * int(np.asarray(asked.answers).sum())
    return up, frame + round(float(received.bits) / 8)


def long_ones(progress: Progress, asked: Asked, received: Any, came: np.ndarray) -> list[Refused]:
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
