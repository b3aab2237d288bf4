"""A federated run over a network: the server's rounds, in a folder that survives being killed."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax import checkpoint
from rosler_jax.federated.bodies import LOST, Body, Description, shapes_of, write_body
from rosler_jax.federated.clients import as_clients
from rosler_jax.federated.compress import Packed
from rosler_jax.federated.local import Work
from rosler_jax.federated.network.boundary import Assignment, Reply, Server
from rosler_jax.federated.prepare import (
    Prepared,
    Progress,
    begin_progress,
    prepare_federated,
    programs,
    steps_of,
)
from rosler_jax.federated.rounds import Answers, Asked
from rosler_jax.federated.run import agreed, finish, opened, restore_round, save_round
from rosler_jax.federated.simulate import (
    Report,
    Row,
    banned,
    kept_best,
    long_ones,
    packed_steps,
    scores_of,
)
from rosler_jax.federated.trips import Refused
from rosler_jax.federated.wire import (
    DOWN,
    UP,
    Header,
    MessageError,
    check_header,
    decode,
    encode,
)
from rosler_jax.fit import method_of

if TYPE_CHECKING:
    from rosler_jax.config import TrainConfig
    from rosler_jax.federated.config import FederatedConfig
    from rosler_jax.federated.network import Pace


class _Session:
    """What the rounds of a server change: where the run is, and who has which model."""

    def __init__(self, progress: Progress, history: list[Row], refused: list[Refused]) -> None:
        self.progress, self.history, self.refused = progress, history, refused
        self.steps: dict[int, np.ndarray] = {}  # on the grid, by round
        self.has: dict[int, int] = {}  # the round whose model a client has
        self.down, self.asked, self.began = 0, 0, time.perf_counter()


def serve_federated(
    config: TrainConfig | None,
    federated: FederatedConfig | None,
    out: str | os.PathLike[str],
    address: str = "127.0.0.1:8080",
    *,
    data: Any = None,
    resume: bool = False,
    report: Report | None = None,
    pace: Pace | None = None,
    **launch: Any,
) -> dict[str, Any]:
    """Runs the server of a federated run for clients in processes of their own.

    The server's data are what it scores the model on (its validation and test splits) and what the
    units and shapes come from; nobody trains on them here. Each round is saved before the next one
    begins: a server that was killed goes on with ``resume``, and its clients find it again.

    Args:
      config, federated, out, data, resume, report: as of
        :func:`rosler_jax.federated.run.federate`. ``drop`` and ``bad`` are for simulations.
      address: host:port to listen on.
      pace: how long to wait for what; None for :class:`rosler_jax.federated.network.Pace`.
      **launch: ``certificate``, ``key``, ``insecure``, ``secret`` and ``started`` of
        :func:`rosler_jax.federated.network.serve`.

    Returns:
      What ``result.json`` holds.

    Raises:
      RunError, ValueError, OSError, ImportError: as there, and where Flower is missing.

    Example:
      >>> from rosler_jax.config import TrainConfig
      >>> from rosler_jax.federated.config import FederatedConfig
      >>> serve_federated(TrainConfig(), FederatedConfig(drop=0.1), "no/such/folder")
      Traceback (most recent call last):
      ValueError: drop and bad simulate clients; over a network they are what they are
    """
    folder = Path(out)
    config, federated = agreed(folder, config, federated, resume)
    _check_network(config, federated)
    # Who has which examples, clients know: here is one for each, that nobody trains on.
    nobody = as_clients([np.zeros(1, np.int32)] * federated.clients)
    run = prepare_federated(config, federated, data, clients=nobody, keeps_memory=False)
    with opened(run, folder, resume):
        manager = checkpoint.open_manager(folder / "checkpoints")
        try:
            session = _begun(run, manager, resume)
            _serve(run, session, manager, report, address, pace, launch)
        finally:
            manager.close()
        return finish(run, folder, session.progress, session.history, session.refused)


def _check_network(config: TrainConfig, federated: FederatedConfig) -> None:
    if federated.drop or federated.bad:
        raise ValueError("drop and bad simulate clients; over a network they are what they are")
    if method_of(config).stages:
        raise ValueError(
            f"method {config.method!r} has a stage that ends for all at once, which a network "
            "cannot promise; pass chain or seeded"
        )


def _begun(run: Prepared, manager: Any, resume: bool) -> _Session:
    progress = begin_progress(run)._replace(held=())
    found = restore_round(manager, progress) if resume else None
    return _Session(*(found or (progress, [], [])))


def _serve(
    run: Prepared, session: _Session, manager: Any, report: Report | None, address: str,
    pace: Pace | None, launch: dict[str, Any],
) -> None:  # fmt: skip
    from rosler_jax.federated.network import Pace, serve, serve_app

    parts = programs(run)

    def done(row: Row) -> None:
        save_round(manager, session.progress, session.history, session.refused)
        if report is not None:
            report(row)

    def begin() -> Assignment | None:
        return begin_round(run, session)

    if not run.federated.secure:
        server = Server(begin, lambda now, replies: done(end_round(run, parts, session, replies)))
        serve(server, address, pace=pace or Pace(), **launch)
        return
    from rosler_jax.federated.network.secagg import Masking, Sum, SumServer, sum_server_app

    def end(now: int, total: Sum) -> None:
        done(end_sum(run, parts, session, total.vector, total.weight, total.clients))

    sums = SumServer(begin, end)
    masking = Masking(clip=run.federated.secure_range)
    waits = pace or Pace(min_replies=2)
    serve_app(lambda: sum_server_app(sums, masking, waits), address, **launch)


def begin_round(run: Prepared, session: _Session) -> Assignment | None:
    """The next round: to each client what it lacks of the model."""
    now = len(session.history)
    if now >= run.federated.rounds:
        return None
    state = session.progress.state
    session.down, session.asked, session.began = 0, 0, time.perf_counter()
    grid = bool(run.rounds.down.grid)
    if grid:
        session.steps[now] = steps_of(state)
        kept = {now, *session.has.values()}
        session.steps = {k: v for k, v in session.steps.items() if k in kept}
    described = Description(run.config, run.federated, run.units, shapes_of(run.dataset))
    messages: dict[int, bytes] = {}

    def body(client: int) -> bytes:
        base = 0 if run.federated.secure or not grid else session.has.get(client, 0)
        if base not in messages:
            messages[base] = _message(run, session, now, base)
        first = run.federated.secure or client not in session.has
        data = write_body(Body(described if first else None, base, messages[base]))
        session.down += len(data)
        session.asked += 1
        return data

    return Assignment(now, body, run.federated.asked)


def _message(run: Prepared, session: _Session, now: int, base: int) -> bytes:
    form = run.rounds.forms[1]
    if run.rounds.down.grid:
        steps = session.steps[now] - (session.steps[base] if base else 0)
        packed = packed_steps(steps, session.progress.state, form)
        return encode(Header(DOWN, now), packed, form)
    values = tuple(np.asarray(x) for x in jax.tree.leaves(session.progress.state.sent))
    ones = tuple(np.float32(1) for _ in values)
    return encode(Header(DOWN, now), Packed(values, ones), form)


def end_round(run: Prepared, parts: Any, session: _Session, replies: Sequence[Reply]) -> Row:
    """Reads the replies, refuses what is none, and makes the next model of the others."""
    form, now = run.rounds.forms[0], len(session.history)
    taken: dict[int, tuple[Header, Packed]] = {}
    for reply in replies:
        if reply.body == LOST:
            session.has.pop(reply.client, None)
            continue
        try:
            header, packed = decode(reply.body, form)
            check_header(header, UP, now, run.federated.clients)
            if header.client != reply.client:
                raise MessageError(
                    "wrong client", f"client {reply.client}: says that it is {header.client}"
                )
            if header.client in taken:
                raise MessageError("twice", f"client {header.client}: a second message")
        except MessageError as error:
            session.refused.append(Refused(now + 1, reply.client, error.reason, str(error)))
            continue
        taken[header.client] = header, packed
        session.has[header.client] = now
    clients = np.array(sorted(taken), np.int32)
    before = [one for one in session.refused if one.round == now + 1]
    heard = np.ones(len(clients), bool)
    session.progress, heard, all_ = banned(run, session.progress, clients, heard, before)
    session.refused += all_[len(before) :]
    taken = {int(client): taken[int(client)] for client in clients[heard]}
    return _step(run, parts, session, taken, sum(len(reply.body) for reply in replies))


def _step(
    run: Prepared, parts: Any, session: _Session, taken: dict[int, tuple[Header, Packed]], up: int
) -> Row:
    """A round of the messages that could be read."""
    form, room = run.rounds.forms[0], max(run.federated.asked, len(taken))
    values = tuple(
        np.zeros((room, *shape), np.int16 if k < form.coded else np.float32)
        for k, shape in enumerate(form.shapes)
    )
    scales = tuple(np.ones(room, np.float32) for _ in form.shapes)
    counts, came, clients = np.zeros(room, np.int32), np.zeros(room, bool), np.zeros(room, np.int32)
    for k, (header, packed) in enumerate(taken.values()):
        for into, value in zip((*values, *scales), (*packed.values, *packed.scales), strict=True):
            into[k] = value
        counts[k], came[k], clients[k] = header.examples, True, header.client
    messages = parts.unpacked(Packed(values, scales))
    return _received(run, parts, session, messages, counts, came, clients, up)


def end_sum(
    run: Prepared, parts: Any, session: _Session, vector: np.ndarray, weight: float, clients: int
) -> Row:
    """A round of which only the sum is known."""
    room = max(run.federated.asked, clients)
    messages = np.zeros((room, len(vector)), np.float32)
    messages[0] = vector / max(weight, 1e-12)
    came = np.arange(room) < clients
    up = 4 * (len(vector) + 1) * clients
    nobody = np.zeros(room, np.int32)
    return _received(run, parts, session, messages, came.astype(np.int32), came, nobody, up)


def _received(
    run: Prepared, parts: Any, session: _Session, messages: Any, counts: np.ndarray,
    came: np.ndarray, clients: np.ndarray, up: int,
) -> Row:  # fmt: skip
    old, room = session.progress.state, len(counts)
    empty = jnp.zeros((room,), jnp.float32)
    rows = jnp.zeros((room, 1), jnp.int32)
    work = Work(jnp.zeros((room, 2), jnp.uint32), rows, jnp.asarray(counts))
    asked = Asked(jnp.asarray(clients), jnp.asarray(came), work)
    answers = Answers(Packed((), ()), (), {}, old.buffers, empty, empty)
    state, received, (loss, metrics) = parts.end(old, asked, answers, messages, jnp.asarray(came))
    if not run.federated.secure:
        session.refused += long_ones(session.progress, asked, received, came)
    scores, score = scores_of(run, int(state.round), loss, metrics, session.history)
    valid = int(np.asarray(received.checked.valid).sum())
    row: Row = {
        "round": int(state.round),
        "asked": session.asked,
        "answered": int(came.sum()),
        "counted": int(came.sum()) if run.federated.secure else valid,
        "loss": float(loss),
        **scores,
        "up_bytes": float(up),
        "down_bytes": float(session.down),
        "seconds": time.perf_counter() - session.began,
    }
    session.progress = kept_best(run, session.progress._replace(state=state), score)
    session.history.append(row)
    return row
