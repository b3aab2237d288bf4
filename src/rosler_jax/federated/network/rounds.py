"""Rounds over a link that loses clients: whom to ask, how long to wait, what counts."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from rosler_jax.federated.network.boundary import (
    Assignment,
    Pace,
    Reply,
    Server,
    body_for,
    check_pace,
)

LOG = logging.getLogger("rosler_jax.federated")

HELLO, WORK, BYE = "hello", "work", "bye"
GREETING = 60.0  # seconds in which a client that lives answers a hello or a bye
FAREWELL = 5.0  # seconds that the server stays for its clients to hear that all is done


class Answer(NamedTuple):
    """What came back for a message: a body, or why there is none."""

    message: str
    client: int | None = None
    body: bytes = b""
    error: str = ""


class Link(NamedTuple):
    """What rounds need of a network.

    Attributes:
      nodes: that are connected now.
      send: a kind, bodies by node and seconds until they are void; gives nodes by message.
      receive: the answers that have come to some messages; each is given once.
    """

    nodes: Callable[[], set[int]]
    send: Callable[[str, Mapping[int, bytes], float], dict[str, int]]
    receive: Callable[[Collection[str]], list[Answer]]


@dataclasses.dataclass
class Crowd:
    """The nodes that the server knows of.

    Attributes:
      clients: numbers by node, of those that have said hello.
      greeted: nodes that have not said hello yet, by message.
      busy: nodes that have not finished their work, by message.
      replaced: nodes whose client has connected anew.
    """

    clients: dict[int, int] = dataclasses.field(default_factory=dict)
    greeted: dict[str, int] = dataclasses.field(default_factory=dict)
    busy: dict[str, int] = dataclasses.field(default_factory=dict)
    replaced: set[int] = dataclasses.field(default_factory=set)


class Timing(NamedTuple):
    """A clock, so that tests need not wait."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


TIMING = Timing()


def run_rounds(server: Server, link: Link, pace: Pace, timing: Timing = TIMING) -> None:
    """Runs the server's rounds until it has no more, and tells the clients that they may go.

    A client has one piece of work at a time: one that did not answer in time is not asked again
    before it does, so a slow one delays one round, and one that died none after that.
    """
    check_pace(pace)
    crowd, gather = Crowd(), pace.gather
    while (assignment := server.begin()) is not None:
        replies = hold_round(assignment, crowd, link, pace, gather, timing)
        server.end(assignment.round, replies)
        gather = 0.0  # who is not there by now is not waited for
    say_goodbye(crowd, link, pace, timing)


def hold_round(
    assignment: Assignment,
    crowd: Crowd,
    link: Link,
    pace: Pace,
    gather: float = 0.0,
    timing: Timing = TIMING,
) -> list[Reply]:
    """Asks clients until enough have replied, or ``pace.timeout`` has passed and some have.

    Args:
      assignment: the round.
      crowd: who is known; changed.
      link: the network.
      pace: how long to wait for what.
      gather: seconds to wait for as many clients as are wanted, before fewer will do.
      timing: the clock.

    Returns:
      The replies, in the order of the clients' numbers.
    """
    replies: dict[int, Reply] = {}
    asked: set[str] = set()
    wanted = max(assignment.clients, pace.min_replies)

    def look() -> None:
        for client, answer in refresh(crowd, link):
            if answer.message not in asked:
                LOG.info("round %d: client %d answered an older one", assignment.round, client)
            elif answer.error:
                LOG.warning(
                    "round %d: client %d failed: %s", assignment.round, client, answer.error
                )
            else:
                replies[client] = Reply(client, answer.body)

    for attempt in itertools.count():
        settle = timing.now() + gather

        def come(settle: float = settle) -> bool:
            idle = len(idle_nodes(crowd, replies))
            return (
                idle >= wanted - len(replies)
                or (idle >= pace.min_replies - len(replies) and timing.now() >= settle)
                or len(replies) >= pace.min_replies  # late ones of the attempt before
            )

        until(come, look, pace, timing)
        if len(replies) >= pace.min_replies:
            break
        nodes = choose(
            idle_nodes(crowd, replies),
            wanted - len(replies),
            random.Random(f"{assignment.round} {attempt}"),
        )
        LOG.info("round %d: asks %d clients", assignment.round, len(nodes))
        bodies = {node: body_for(assignment, crowd.clients[node]) for node in nodes}
        messages = link.send(WORK, bodies, void_after(pace))
        crowd.busy.update(messages)
        asked |= messages.keys()
        deadline = timing.now() + pace.timeout

        def done(messages: Collection[str] = messages, deadline: float = deadline) -> bool:
            return crowd.busy.keys().isdisjoint(messages) or timing.now() >= deadline

        until(done, look, pace, timing)
        if len(replies) >= pace.min_replies:
            break
        # Clients that all fail at once must not be asked without end and without pause.
        timing.sleep(pause_after(attempt, pace))
        gather = 0.0
    if late := len(asked & crowd.busy.keys()):
        LOG.warning("round %d: %d clients did not answer in time", assignment.round, late)
    return sorted(replies.values())


def pause_after(attempt: int, pace: Pace) -> float:
    """Seconds before the next attempt at a round: more each time, as long as a round at most.

    Example:
      >>> pause_after(0, Pace(poll=0.5)), pause_after(3, Pace(poll=0.5))
      (0.5, 4.0)
    """
    return min(2.0 ** min(attempt, 30) * pace.poll, pace.timeout)


def until(done: Callable[[], bool], look: Callable[[], None], pace: Pace, timing: Timing) -> None:
    """Looks again and again until it is done."""
    look()
    while not done():
        timing.sleep(pace.poll)
        look()


def idle_nodes(crowd: Crowd, without: Collection[int] = ()) -> list[int]:
    """Nodes that may be asked, in the order of their clients' numbers.

    Example:
      >>> idle_nodes(Crowd(clients={101: 2, 102: 0, 103: 1}, busy={"m": 103}))
      [102, 101]
    """
    busy = set(crowd.busy.values())
    nodes = [n for n, client in crowd.clients.items() if n not in busy and client not in without]
    return sorted(nodes, key=lambda node: crowd.clients[node])


def choose(nodes: Sequence[int], count: int, chooser: random.Random) -> list[int]:
    """So many of some nodes, all alike.

    Example:
      >>> choose([101, 102], 3, random.Random(0))
      [101, 102]
    """
    return list(nodes) if len(nodes) <= count else chooser.sample(nodes, count)


def refresh(crowd: Crowd, link: Link) -> list[tuple[int, Answer]]:
    """Learns who has come, who has gone and what was answered; gives work's answers by client."""
    waiting = [*crowd.greeted, *crowd.busy]
    answers = []
    for answer in link.receive(waiting) if waiting else ():
        if (node := crowd.greeted.pop(answer.message, None)) is not None:
            if not answer.error:
                welcome(crowd, node, node if answer.client is None else answer.client)
        elif (node := crowd.busy.pop(answer.message, None)) is not None:
            answers.append((crowd.clients.get(node, node), answer))
    nodes = link.nodes() - crowd.replaced
    forget(crowd, crowd.clients.keys() - nodes)  # not before: who left may have answered
    if new := nodes - crowd.clients.keys() - set(crowd.greeted.values()):
        crowd.greeted.update(link.send(HELLO, dict.fromkeys(new, b""), GREETING))
    return answers


def welcome(crowd: Crowd, node: int, client: int) -> None:
    """Takes a node in; an older node of the same client is one that has died."""
    older = {n for n, number in crowd.clients.items() if number == client and n != node}
    if older:
        LOG.warning("client %d has connected anew; its older connection is dropped", client)
    forget(crowd, older)
    crowd.replaced |= older
    crowd.clients[node] = client
    LOG.info("client %d is here", client)


def forget(crowd: Crowd, nodes: Collection[int]) -> None:
    """Drops nodes and whatever they were to answer."""
    for node in list(nodes):
        crowd.clients.pop(node, None)
    for waiting in (crowd.greeted, crowd.busy):
        for message in [m for m, node in waiting.items() if node in nodes]:
            del waiting[message]


def say_goodbye(crowd: Crowd, link: Link, pace: Pace, timing: Timing) -> None:
    """Tells the clients that all is done; those that work hear it if they finish soon."""
    told = link.send(BYE, dict.fromkeys(crowd.clients, b""), GREETING) if crowd.clients else {}
    deadline = timing.now() + FAREWELL
    while told and timing.now() < deadline:
        for answer in link.receive(list(told)):
            told.pop(answer.message, None)
        if told:
            timing.sleep(pace.poll)


def void_after(pace: Pace) -> float:
    """Seconds after which work is given up, so that a client that lost it is asked again."""
    return 4.0 * pace.timeout + GREETING
