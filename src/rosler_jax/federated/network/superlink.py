"""Flower's SuperLink inside this process: what the clients connect to, and the app's way to them.

Started by Flower's own commands, a SuperLink runs whatever app anybody who reaches its port sends
it, on itself and on all its clients. This one takes no apps: on its port there is only what
clients need, and it does nothing but carry the messages of the one app that it was started with.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rosler_jax.federated.network._flower import need_flower
from rosler_jax.federated.network.addresses import SECRET_HEADER, Address, Certificate

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.serverapp import Grid

FLEET = "/v1/fleet/"  # what Flower's clients ask for; its other interfaces are for operators
REFUSED = 403
STARTING = 30.0  # seconds in which an HTTP server that can start has started


class SuperLink(NamedTuple):
    """A SuperLink that runs.

    Attributes:
      address: where it listens; the port is the real one where 0 was asked for.
      grid: for a ServerApp.
      context: for a ServerApp.
    """

    address: Address
    grid: Grid
    context: Context


@contextlib.contextmanager
def superlink(
    address: Address, certificate: Certificate | None = None, secret: str | None = None
) -> Iterator[SuperLink]:
    """Runs a SuperLink on threads of this process; nothing of it is left afterwards.

    Its state is in memory: after a restart the clients connect as new ones.

    Args:
      address: where to listen; any free port for port 0.
      certificate: what to prove itself with; None for no encryption.
      secret: what clients must know; None to let everybody in.

    Raises:
      ImportError: if Flower is not installed, or of another version.
      OSError: if the address cannot be had.
      ValueError: if Flower is told to keep its state elsewhere.
    """
    need_flower(launcher=True)
    if "FLWR_DATABASE" in os.environ:
        raise ValueError(
            f"FLWR_DATABASE is {os.environ['FLWR_DATABASE']}, but this server keeps Flower's state "
            "in memory; unset it"
        )
    from flwr.superlink.main import create_app

    with listening(address) as listener:
        app = create_app()
        state = app.state.linkstate_factory.state()
        with _served(_gated(app, secret), listener, certificate), _run(state) as task:
            port = listener.getsockname()[1]
            yield SuperLink(Address(address.host, port), _grid(state, task), _context(task.run_id))


@contextlib.contextmanager
def listening(address: Address) -> Iterator[socket.socket]:
    """A socket that takes connections; a server that was killed leaves none that would block it.

    Raises:
      OSError: if the address cannot be had.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(where)
        except OSError as error:
            raise OSError(
                f"cannot listen on {address}: {error.strerror}; is a server running there already?"
            ) from error
        yield listener


def _gated(app: Any, secret: str | None) -> Any:
    """An ASGI app without the parts that are not for clients, and for those who know the secret."""

    async def gated(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if not scope["path"].startswith(FLEET):
                return await _refuse(send, 404, b"not here")
            given = dict(scope["headers"]).get(SECRET_HEADER.encode(), b"")
            if secret is not None and not hmac.compare_digest(given, secret.encode()):
                return await _refuse(send, REFUSED, b"secret")
        return await app(scope, receive, send)

    return gated


async def _refuse(send: Any, status: int, reason: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (SECRET_HEADER.encode(), reason)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason})


@contextlib.contextmanager
def _served(app: Any, listener: socket.socket, certificate: Certificate | None) -> Iterator[None]:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        ws="none",
        ssl_certfile=None if certificate is None else certificate.chain,
        ssl_keyfile=None if certificate is None else str(certificate.key),
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="superlink", daemon=True
    )
    thread.start()
    try:
        deadline = time.monotonic() + STARTING
        while thread.is_alive() and not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        if not server.started:
            raise OSError("the HTTP server did not start; its log says why")
        yield
    finally:
        server.should_exit = True
        thread.join(5)
        server.force_exit = True
        thread.join(5)


@contextlib.contextmanager
def _run(state: Any) -> Iterator[Any]:
    """A run that is going on for as long as the block lasts; gives its task."""
    from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID, SubStatus
    from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
    from flwr.supercore.heartbeat import HeartbeatSender
    from flwr.supercore.task_identity import TaskIdentity

    run_id = state.create_run(
        fab_id=None,
        fab_version=None,
        fab_hash=None,
        override_config={},
        federation_id=NOOP_FEDERATION_ID,
        federation_config=None,
        flwr_aid=NOOP_FLWR_AID,
        primary_task_type=TaskType.SERVER_APP,
    )
    task_id = state.get_run_info(run_ids=[run_id])[0].primary_task_id
    if state.claim_task(task_id) is None or not state.activate_task(task_id):
        raise RuntimeError("Flower did not start the run; is flwr of a version that is supported?")
    # Flower's messages take their sender from here; there is one run in a process.
    TaskIdentity.task_id, TaskIdentity.run_id = task_id, run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    beat = HeartbeatSender(lambda: bool(state.acknowledge_task_heartbeat(task_id)))
    beat.start()
    status = SubStatus.FAILED
    try:
        yield state.get_tasks(task_ids=[task_id])[0]
        status = SubStatus.COMPLETED
    finally:
        beat.stop()
        state.finish_task(task_id, status, "")


def _context(run_id: int) -> Context:
    from flwr.app import Context, RecordDict
    from flwr.common.constant import SUPERLINK_NODE_ID

    return Context(run_id, SUPERLINK_NODE_ID, {}, RecordDict(), {})


def _grid(state: Any, task: Any) -> Grid:
    """Flower's Grid over HTTP, with the calls made here instead."""
    from flwr.superlink.grid import HttpGrid
    from flwr.superlink.servicer.runtime import runtime_handlers as handlers

    class LocalGrid(HttpGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            # Flower would wait for minutes for the rest of a reply whose client died sending it.
            return super().pull_messages(_whole(state, set(message_ids)))

        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            # As the one that it replaces, which looks only every three seconds.
            waiting = {name for name in self.push_messages(list(messages)) if name}
            deadline = None if timeout is None else time.monotonic() + timeout
            replies: list[Message] = []
            while waiting and (deadline is None or time.monotonic() < deadline):
                come = list(self.pull_messages(waiting))
                waiting -= {message.metadata.reply_to_message_id for message in come}
                replies += come
                time.sleep(0.0 if come else 0.1)
            return replies

    calls = {
        "GetNodes": handlers.get_nodes,
        "PushMessages": handlers.push_messages,
        "PullMessages": handlers.pull_messages,
        "PushObject": handlers.push_object,
        "PullObject": handlers.pull_object,
        "ConfirmMessageReceived": handlers.confirm_message_received,
    }
    grid: Any = LocalGrid(token="none")  # which it never sends
    grid._client = SimpleNamespace(
        **{
            name: lambda request, call=call: call(request, state, task)
            for name, call in calls.items()
        },
        close=lambda: None,
    )
    grid.set_run(state.get_run_info(run_ids=[task.run_id])[0])
    return cast("Grid", grid)


def _whole(state: Any, names: Collection[str]) -> list[str]:
    """Messages whose reply is not there yet, or is there entirely."""
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from flwr.supercore.object_store import NoObjectInStoreError

    def whole(name: str) -> bool:
        reply = state.message_ins_id_to_message_res_id.get(name)
        if reply is None:
            return True
        try:
            tree = state.object_store.get_object_tree(reply)
        except NoObjectInStoreError:
            return True
        return all(state.object_store.get(part.object_id) for part in iterate_object_tree(tree))

    return [name for name in names if whole(name)]
