"""A Flower client inside this process: connects, and runs its app on what the server sends.

Started by Flower's own commands, a client runs whatever app its server sends it. This one runs
the app that it was started with, in its own process, where compiled programs and data stay.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rosler_jax.federated.network._flower import need_flower
from rosler_jax.federated.network.addresses import SECRET_HEADER, Address
from rosler_jax.federated.network.apps import CLIENT, KINDS
from rosler_jax.federated.network.rounds import BYE, WORK

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp

LOG = logging.getLogger("rosler_jax.federated")

HEARTBEAT = 10.0  # seconds, Flower's least; a client is gone after two without a sign of life
MOST_PAUSE = 5.0  # seconds between two attempts to reach the server

T = TypeVar("T")


class Road(NamedTuple):
    """How a client gets to its server.

    Attributes:
      address: the server's.
      insecure: whether to do without encryption.
      roots: certificates in PEM format to trust; None for those of the system.
      secret: what the server wants to be told; None for nothing.
      patience: seconds without the server until the client gives up; None for never.
      poll: seconds between two questions for work.
    """

    address: Address
    insecure: bool
    roots: bytes | None = None
    secret: str | None = None
    patience: float | None = None
    poll: float = 0.5


class _Unknown(Exception):
    """The server does not know this node: it has been restarted, or has given the node up."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")


class _Connection(NamedTuple):
    """A node that the server knows."""

    fleet: Any
    node: Any
    call: Callable[[Callable[[Any], Any], Any], Any]


def attend(app: ClientApp, road: Road, client: int | None = None) -> int:
    """Runs an app on what the server sends, until that says that all is done.

    Loses the server, waits for it and connects again, as often as need be.

    Args:
      app: what to run.
      road: how to get to the server.
      client: the number to go by; None for none.

    Returns:
      How many pieces of work this client was given.

    Raises:
      ImportError: if Flower is not installed, or of another version.
      ConnectionError: if the server is not there for longer than ``road.patience``, cannot be
        trusted, or refuses this client.
    """
    need_flower(launcher=True)
    rounds = 0
    contexts: dict[int, Context] = {}
    while True:
        try:
            with _connected(road) as connection:
                while (kind := _serve_one(app, connection, client, contexts, road.poll)) != BYE:
                    rounds += kind == WORK
                return rounds
        except _Unknown:
            LOG.info("the server at %s has started anew; connects again", road.address)
            time.sleep(road.poll)


def _serve_one(
    app: ClientApp,
    connection: _Connection,
    client: int | None,
    contexts: dict[int, Context],
    poll: float,
) -> str:
    """Waits for one message, answers it and gives its kind."""
    from flwr.app import Context, Error, Message, RecordDict
    from flwr.common.constant import ErrorCode

    while (message := _received(connection)) is None:
        time.sleep(poll)
    run_id, node_id = message.metadata.run_id, message.metadata.dst_node_id
    config: dict[str, Any] = {} if client is None else {CLIENT: client}
    context = contexts.get(run_id) or Context(run_id, node_id, config, RecordDict(), {})
    contexts[run_id] = context
    start = time.monotonic()
    kind = next((k for k, name in KINDS.items() if name == message.metadata.message_type), "")
    try:
        reply = app(message, context)
    except Exception as error:  # the server is told, and this client stays for the next round
        LOG.exception("the work of this round failed")
        reason = f"{type(error).__name__}: {error}"
        reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
    _send(connection, reply, time.monotonic() - start)
    return kind


def _received(connection: _Connection) -> Message | None:
    from flwr.app import Message
    from flwr.common.serde import message_from_proto
    from flwr.proto.fleet_pb2 import PullMessagesRequest
    from flwr.supercore.inflatable.inflatable_protobuf_utils import (
        make_confirm_message_received_fn_protobuf,
        make_pull_object_fn_protobuf,
    )
    from flwr.supercore.inflatable.inflatable_utils import (
        ObjectPullError,
        pull_and_inflate_object_from_tree,
    )

    fleet, node, call = connection
    response = call(fleet.PullMessages, PullMessagesRequest(node=node))
    if not response.messages_list:
        return None
    run_id = message_from_proto(response.messages_list[0]).metadata.run_id
    tree = response.message_object_trees[0]
    pull = make_pull_object_fn_protobuf(
        lambda request: call(fleet.PullObject, request), node, run_id
    )
    confirm = make_confirm_message_received_fn_protobuf(
        lambda request: call(fleet.ConfirmMessageReceived, request), node, run_id
    )
    try:
        message = pull_and_inflate_object_from_tree(tree, pull, confirm, return_type=Message)
    except ObjectPullError as error:  # the server has given this message up in the meantime
        LOG.warning("a message was lost on the way: %s", error)
        return None
    message.metadata.__dict__["_message_id"] = tree.object_id  # is no part of what was sent
    return message


def _send(connection: _Connection, reply: Message, seconds: float) -> None:
    from flwr.app.message import remove_content_from_message
    from flwr.common.serde import message_to_proto
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        no_object_id_recompute,
    )
    from flwr.supercore.inflatable.inflatable_protobuf_utils import make_push_object_fn_protobuf
    from flwr.supercore.inflatable.inflatable_utils import ObjectPushError, push_objects

    fleet, node, call = connection
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        request = PushMessagesRequest(
            node=node,
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[get_object_tree(reply)],
            clientapp_runtime_list=[seconds],
        )
        response = call(fleet.PushMessages, request)
        push = make_push_object_fn_protobuf(
            lambda request: call(fleet.PushObject, request),
            node,
            reply.metadata.run_id,
            response.session_id,
        )
        wanted = set(response.objects_to_push)
        try:
            push_objects(get_all_nested_objects(reply), push, object_ids_to_push=wanted)
        except ObjectPushError as error:  # it took longer than the server waits
            LOG.warning("a reply was lost on the way: %s", error)


@contextlib.contextmanager
def _connected(road: Road) -> Iterator[_Connection]:
    """A node that is registered and sends signs of life; it signs off at the end."""
    import httpx
    from flwr.proto.fleet_pb2 import (
        ActivateNodeRequest,
        DeactivateNodeRequest,
        RegisterNodeFleetRequest,
        UnregisterNodeFleetRequest,
    )
    from flwr.proto.node_pb2 import Node
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    private, public = generate_key_pairs()
    name = public_key_to_bytes(public)
    interceptors: list[Any] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(private, public),
        _Secret(road.secret),
    ]
    with FleetHttpClient.from_server_address(
        str(road.address), road.insecure, road.roots, interceptors
    ) as fleet:

        def call(ask: Callable[[Any], T], request: Any) -> T:
            return _insist(lambda: ask(request), road)

        try:
            call(fleet.RegisterNode, RegisterNodeFleetRequest(public_key=name))
        except _Unknown as error:  # nobody is known yet: this is something else
            raise ConnectionError(
                f"{road.address} is no server for these clients ({error}); check the address, and "
                "that both sides have the same version"
            ) from error
        node_id = call(
            fleet.ActivateNode, ActivateNodeRequest(public_key=name, heartbeat_interval=HEARTBEAT)
        ).node_id
        node = Node(node_id=node_id)
        LOG.info("is connected to %s", road.address)
        try:
            with _heartbeat(fleet, node):
                yield _Connection(fleet, node, call)
        finally:
            with contextlib.suppress(httpx.HTTPError, RuntimeError):
                fleet.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
                fleet.UnregisterNode(UnregisterNodeFleetRequest(node_id=node_id))


class _Secret:
    """Tells the server the secret with every request."""

    def __init__(self, secret: str | None) -> None:
        self.secret = secret

    def intercept(self, context: Any, call_next: Any) -> Any:
        if self.secret is not None:
            context.request.headers[SECRET_HEADER] = self.secret
        return call_next(context)


@contextlib.contextmanager
def _heartbeat(fleet: Any, node: Any) -> Iterator[None]:
    import httpx
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest

    stop = threading.Event()

    def beat() -> None:
        request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT)
        while not stop.wait(HEARTBEAT / 2):
            # Whoever asks for work next sees what is wrong, and what to do about it.
            with contextlib.suppress(httpx.HTTPError, RuntimeError):
                fleet.SendNodeHeartbeat(request)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(HEARTBEAT)


def _insist(ask: Callable[[], T], road: Road) -> T:
    """Asks until the server answers.

    Raises:
      _Unknown: if it does not know this node.
      ConnectionError: if it refuses this client, cannot be trusted or does not come back.
    """
    import httpx

    start, pause = time.monotonic(), min(road.poll, MOST_PAUSE)
    while True:
        try:
            return ask()
        except httpx.TransportError as error:
            if "certificate" in str(error).lower() or "ssl" in str(error).lower():
                raise ConnectionError(
                    f"{road.address} cannot be trusted: {error}; check root_certificates, and "
                    "that the server has a certificate for this name"
                ) from error
            reason = str(error)
        except httpx.HTTPStatusError as error:
            response = error.response
            if SECRET_HEADER in response.headers:
                raise ConnectionError(
                    f"{road.address} refuses this client: its secret is missing or another one"
                ) from error
            if response.status_code < 500:
                raise _Unknown(response.status_code) from error
            reason = f"status {response.status_code}"
        if road.patience is not None and time.monotonic() - start >= road.patience:
            raise ConnectionError(
                f"no server at {road.address} for {road.patience:g} seconds ({reason}); start it, "
                "or check the address"
            )
        LOG.debug("no server at %s: %s", road.address, reason)
        time.sleep(pause)
        pause = min(2 * pause, MOST_PAUSE)
