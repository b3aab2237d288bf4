"""What a transport of rounds carries between its two sides: bytes, and who they are from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

Work = Callable[[bytes], bytes]
"""A client's side: the body of a round in, the reply out; what it raises counts as no reply."""


class Assignment(NamedTuple):
    """One round, as the server wants it.

    Attributes:
      round: its number; the transport only passes it back.
      body: what the clients get, the same for all or by the client's number.
      clients: how many of the connected clients to ask; fewer are asked if there are fewer.

    Example:
      >>> body_for(Assignment(0, lambda client: b"for %d" % client, 2), 7)
      b'for 7'
    """

    round: int
    body: bytes | Callable[[int], bytes]
    clients: int


class Reply(NamedTuple):
    """What one client answered in a round.

    Attributes:
      client: the number that it joined with, or that of its node, which changes with every
        connection, if it joined without one.
      body: the bytes that its work returned.

    Example:
      >>> Reply(client=3, body=b"21").client
      3
    """

    client: int
    body: bytes


class Server(NamedTuple):
    """The server's side.

    Attributes:
      begin: the next round, or None when all are done; asked again after every ``end``, and after
        a restart.
      end: takes a round's number and replies; a server that is to survive being killed saves its
        state before it returns.

    Example:
      >>> kept = []
      >>> rounds = iter([Assignment(0, b"20", 2)])
      >>> server = Server(lambda: next(rounds, None), lambda now, replies: kept.extend(replies))
      >>> assignment = server.begin()
      >>> server.end(assignment.round, [Reply(3, b"21")])
      >>> kept, server.begin()
      ([Reply(client=3, body=b'21')], None)
    """

    begin: Callable[[], Assignment | None]
    end: Callable[[int, Sequence[Reply]], None]


class Pace(NamedTuple):
    """How long the server waits for what.

    Attributes:
      timeout: seconds for the replies of a round; then it goes on with those that came.
      min_replies: without which a round is not over: more clients are asked, or waited for.
      gather: seconds, at the first round only, for as many clients as are wanted.
      poll: seconds between looks at what has come.

    Example:
      >>> Pace(timeout=30.0, min_replies=5)
      Pace(timeout=30.0, min_replies=5, gather=60.0, poll=0.2)
    """

    timeout: float = 600.0
    min_replies: int = 1
    gather: float = 60.0
    poll: float = 0.2


PACE = Pace()


def body_for(assignment: Assignment, client: int) -> bytes:
    """The body of a round for one client."""
    return assignment.body if isinstance(assignment.body, bytes) else assignment.body(client)


def check_pace(pace: Pace) -> None:
    """Refuses waits that would never end or never begin.

    Raises:
      ValueError: naming what is wrong.

    Example:
      >>> check_pace(Pace(timeout=0))
      Traceback (most recent call last):
      ValueError: timeout is 0, but must be more than 0 seconds
    """
    for name in ("timeout", "poll"):
        if not getattr(pace, name) > 0:
            raise ValueError(f"{name} is {getattr(pace, name)}, but must be more than 0 seconds")
    if not pace.gather >= 0:
        raise ValueError(f"gather is {pace.gather}, but must be at least 0 seconds")
    if pace.min_replies < 1:
        raise ValueError(f"min_replies is {pace.min_replies}, but a round needs at least 1")
