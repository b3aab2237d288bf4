"""Flower apps of the two sides, for our launchers or for any deployment of Flower."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from rosler_jax.federated.network._flower import need_flower
from rosler_jax.federated.network.boundary import PACE, Pace, Server, Work, check_pace
from rosler_jax.federated.network.rounds import BYE, HELLO, WORK, Answer, Link, run_rounds

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

RECORD, BODY, CLIENT = "rosler", "body", "client"
KINDS = {HELLO: "query.hello", WORK: "train", BYE: "query.bye"}
"""Flower's message types, by what we send."""


def server_app(server: Server, pace: Pace = PACE) -> ServerApp:
    """A Flower ServerApp that runs a server's rounds.

    Args:
      server: what to run.
      pace: how long to wait for what.

    Raises:
      ImportError: if Flower is not installed.
      ValueError: if the pace makes no sense.

    Example:
      >>> server = Server(begin=lambda: None, end=lambda now, replies: None)
      >>> type(server_app(server, Pace(min_replies=5))).__name__
      'ServerApp'
    """
    need_flower()
    from flwr.serverapp import ServerApp

    check_pace(pace)
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run_rounds(server, link_of(grid), pace)

    return app


def client_app(work: Work, client: int | None = None) -> ClientApp:
    """A Flower ClientApp that does a client's work.

    Args:
      work: what to do with the body of a round.
      client: its number, that it keeps from one connection to the next; None for that which
        the node's configuration gives as ``client``, or else for none.

    Raises:
      ImportError: if Flower is not installed.
      ValueError: if the number is negative.

    Example:
      >>> type(client_app(lambda body: body.upper(), client=3)).__name__
      'ClientApp'
    """
    need_flower()
    from flwr.clientapp import ClientApp

    check_client(client)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return reply_to(message, {BODY: work(body_of(message))})

    answer_queries(app, client)
    return app


def check_client(client: int | None) -> None:
    """Refuses numbers that are none of a client.

    Raises:
      ValueError: if it is negative.
    """
    if client is not None and client < 0:
        raise ValueError(f"client is {client}, but must be a number from 0, or None")


def answer_queries(app: ClientApp, client: int | None) -> None:
    """Lets an app say who it is, and take leave."""

    @app.query(HELLO)
    def hello(message: Message, context: Context) -> Message:
        number = context.node_config.get(CLIENT) if client is None else client
        return reply_to(message, {} if number is None else {CLIENT: int(number)})

    @app.query(BYE)
    def bye(message: Message, context: Context) -> Message:
        return reply_to(message, {})


def reply_to(message: Message, values: Mapping[str, Any]) -> Message:
    """A message back."""
    from flwr.app import ConfigRecord, Message, RecordDict

    return Message(RecordDict({RECORD: ConfigRecord(dict(values))}), reply_to=message)


def body_of(message: Message) -> bytes:
    """The bytes in a message."""
    body = message.content[RECORD][BODY]
    if not isinstance(body, bytes):
        raise TypeError(f"the message's body is a {type(body).__name__}, but must be bytes")
    return body


def link_of(grid: Grid) -> Link:
    """What rounds need of a network, by a Grid of Flower."""
    from flwr.app import ConfigRecord, Message, RecordDict

    def send(kind: str, bodies: Mapping[int, bytes], void: float) -> dict[str, int]:
        records = {n: RecordDict({RECORD: ConfigRecord({BODY: b})}) for n, b in bodies.items()}
        messages = [Message(r, node, KINDS[kind], ttl=void) for node, r in records.items()]
        identities = grid.push_messages(messages)
        # A node that has just gone takes no message, and has no identity in its place.
        return {name: node for name, node in zip(identities, bodies, strict=True) if name}

    def receive(names: Collection[str]) -> list[Answer]:
        return [answer_of(message) for message in grid.pull_messages(list(names))]

    return Link(lambda: set(grid.get_node_ids()), send, receive)


def answer_of(message: Message) -> Answer:
    """What a message says that came back."""
    name = message.metadata.reply_to_message_id
    if message.has_error():
        return Answer(name, error=message.error.reason or f"Flower error {message.error.code}")
    try:
        record = message.content[RECORD]
        client, body = record.get(CLIENT), record.get(BODY, b"")
    except KeyError:
        return Answer(name, error="the reply is none of this app's")
    if not isinstance(body, bytes) or not (client is None or isinstance(client, int)):
        return Answer(name, error="the reply is none of this app's")
    return Answer(name, client, body)
