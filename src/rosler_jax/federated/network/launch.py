"""Starting the two sides: one process each, and none besides."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rosler_jax._interrupt import heard_interrupt
from rosler_jax.federated.network._flower import need_flower, quiet_flower
from rosler_jax.federated.network.addresses import (
    StrPath,
    check_secret,
    client_roots,
    parse_address,
    server_certificate,
)
from rosler_jax.federated.network.apps import check_client, client_app, server_app
from rosler_jax.federated.network.boundary import PACE, Pace, Server, Work
from rosler_jax.federated.network.superlink import superlink
from rosler_jax.federated.network.supernode import Road, attend

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp


def serve(
    server: Server,
    address: str = "127.0.0.1:8080",
    *,
    pace: Pace = PACE,
    certificate: StrPath | None = None,
    key: StrPath | None = None,
    insecure: bool = False,
    secret: str | None = None,
    started: Callable[[str], None] | None = None,
) -> None:
    """Runs a server's rounds with the clients that connect, and ends when there are no more.

    Everything is in this process: killed, it leaves nothing behind, and started again on the same
    address it goes on with the round that ``server.begin`` gives, with the clients that still run.

    Args:
      server: what to run.
      address: host:port to listen on; port 0 is any free one.
      pace: how long to wait for what.
      certificate, key: files in PEM format, to prove the server's name to the clients.
      insecure: whether to send everything unencrypted, even to other machines.
      secret: what clients must know to take part; None to let everybody in who reaches the port.
      started: called with the address once clients can connect.

    Raises:
      ImportError: if Flower is not installed, or of another version.
      ValueError, FileNotFoundError: if the options make no sense.
      OSError: if the address cannot be had.

    Example:
      >>> server = Server(begin=lambda: None, end=lambda now, replies: None)  # of no rounds
      >>> serve(server, "127.0.0.1:0", started=lambda address: print("serves at", address))
      serves at 127.0.0.1:...
    """
    serve_app(
        lambda: server_app(server, pace),
        address,
        certificate=certificate,
        key=key,
        insecure=insecure,
        secret=secret,
        started=started,
    )


def join(
    work: Work,
    address: str = "127.0.0.1:8080",
    *,
    client: int | None = None,
    root_certificates: StrPath | None = None,
    insecure: bool = False,
    secret: str | None = None,
    patience: float | None = None,
    poll: float = 0.5,
) -> int:
    """Works for a server in this process, until that has no more rounds.

    What ``work`` raises is logged and told to the server, which does without this reply. A server
    that goes away is waited for.

    Args:
      work: what to do with the body of a round.
      address: host:port of the server.
      client: a number to go by, that stays when the connection does not; None for none.
      root_certificates: file in PEM format with those to trust; None for those of the system, and
        for no encryption on this machine.
      insecure: whether to send everything unencrypted, even to other machines.
      secret: what the server wants to be told.
      patience: seconds without the server until this gives up; None for never.
      poll: seconds between two questions for work.

    Returns:
      How many pieces of work this client was given.

    Raises:
      ImportError: if Flower is not installed, or of another version.
      ValueError, FileNotFoundError: if the options make no sense.
      ConnectionError: if the server refuses, cannot be trusted, or is away for too long.

    Example:
      >>> join(lambda body: body.upper(), "server.example")
      Traceback (most recent call last):
      ValueError: the address 'server.example' is not host:port, as in 127.0.0.1:8080
    """
    return join_app(
        lambda: client_app(work, client),
        address,
        client=client,
        root_certificates=root_certificates,
        insecure=insecure,
        secret=secret,
        patience=patience,
        poll=poll,
    )


def serve_app(
    make: Callable[[], ServerApp],
    address: str = "127.0.0.1:8080",
    *,
    certificate: StrPath | None = None,
    key: StrPath | None = None,
    insecure: bool = False,
    secret: str | None = None,
    started: Callable[[str], None] | None = None,
) -> None:
    """Runs any ServerApp of Flower as ``serve`` does its own; arguments as there.

    Example:
      >>> server = Server(begin=lambda: None, end=lambda now, replies: None)
      >>> serve_app(lambda: server_app(server), "0.0.0.0:8080")
      Traceback (most recent call last):
      ValueError: 0.0.0.0:8080 is reached from other machines, but has no certificate; give
      certificate and key, or insecure=True to send everything unencrypted
    """
    where = parse_address(address)
    proof = server_certificate(where, certificate, key, insecure)
    check_secret(secret)
    need_flower(launcher=True)
    app = make()
    with quiet_flower(), superlink(where, proof, secret) as link, heard_interrupt():
        if started is not None:
            started(str(link.address))
        app(link.grid, link.context)


def join_app(
    make: Callable[[], ClientApp],
    address: str = "127.0.0.1:8080",
    *,
    client: int | None = None,
    root_certificates: StrPath | None = None,
    insecure: bool = False,
    secret: str | None = None,
    patience: float | None = None,
    poll: float = 0.5,
) -> int:
    """Runs any ClientApp of Flower as ``join`` does its own; arguments as there.

    Example:
      >>> join_app(lambda: client_app(lambda body: body.upper()), "127.0.0.1:8080", client=-1)
      Traceback (most recent call last):
      ValueError: client is -1, but must be a number from 0, or None
    """
    where = parse_address(address)
    unencrypted, roots = client_roots(where, root_certificates, insecure)
    check_secret(secret)
    check_client(client)
    if not poll > 0:
        raise ValueError(f"poll is {poll}, but must be more than 0 seconds")
    need_flower(launcher=True)
    with quiet_flower(), heard_interrupt():
        road = Road(where, unencrypted, roots, secret, patience, poll)
        return attend(make(), road, client)
