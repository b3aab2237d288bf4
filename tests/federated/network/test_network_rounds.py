"""Whom rounds ask and wait for, over a network of our own on a clock of our own."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence

import pytest

from rosler_jax.federated.network import Assignment, Pace, Reply, Server
from rosler_jax.federated.network.rounds import (
    BYE,
    HELLO,
    WORK,
    Answer,
    Crowd,
    Link,
    Timing,
    hold_round,
    refresh,
    run_rounds,
)

NEVER = float("inf")


@dataclasses.dataclass
class Network:
    """Nodes that answer after a while, or never.

    Attributes:
      here: seconds for a piece of work, by node that is connected.
      names: clients' numbers by node.
      plan: what happens at what time.
    """

    here: dict[int, float] = dataclasses.field(default_factory=dict)
    names: dict[int, int] = dataclasses.field(default_factory=dict)
    plan: dict[float, Callable[[], object]] = dataclasses.field(default_factory=dict)
    failing: set[int] = dataclasses.field(default_factory=set)
    sent: list[tuple[str, int, bytes]] = dataclasses.field(default_factory=list)
    coming: dict[str, tuple[float, Answer]] = dataclasses.field(default_factory=dict)
    time: float = 0.0
    names_of_messages: itertools.count[int] = dataclasses.field(default_factory=itertools.count)

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        assert self.time < 10_000, "waits for ever"
        for when in sorted(self.plan):
            if when <= self.time:
                self.plan.pop(when)()

    def send(self, kind: str, bodies: Mapping[int, bytes], void: float) -> dict[str, int]:
        messages = {}
        for node, body in bodies.items():
            self.sent.append((kind, node, body))
            if node not in self.here:
                continue
            name = f"message {next(self.names_of_messages)}"
            messages[name] = node
            seconds = self.here[node] if kind == WORK or self.here[node] == NEVER else 0.0
            answer = Answer(name, self.names.get(node), body + b"!")
            if node in self.failing and kind == WORK:
                answer = Answer(name, error="broken")
            self.coming[name] = self.time + seconds, answer
        return messages

    def receive(self, names: Collection[str]) -> list[Answer]:
        come = [name for name in names if self.coming[name][0] <= self.time]
        return [self.coming.pop(name)[1] for name in come]

    def asked(self) -> list[int]:
        return [node for kind, node, _ in self.sent if kind == WORK]

    @property
    def link(self) -> Link:
        return Link(lambda: set(self.here), self.send, self.receive)

    @property
    def timing(self) -> Timing:
        return Timing(lambda: self.time, self.sleep)


def network(*seconds: float) -> Network:
    """Clients 0, 1, … on the nodes 100, 101, … with the time that they take."""
    nodes = range(100, 100 + len(seconds))
    return Network(dict(zip(nodes, seconds, strict=True)), {node: node - 100 for node in nodes})


def hold(net: Network, crowd: Crowd, clients: int, pace: Pace, gather: float = 0.0) -> list[int]:
    assignment = Assignment(5, b"body", clients)
    replies = hold_round(assignment, crowd, net.link, pace, gather, net.timing)
    assert all(reply.body == b"body!" for reply in replies)
    return [reply.client for reply in replies]


def test_a_round_is_over_as_soon_as_all_have_replied() -> None:
    net = network(1.0, 2.0, 3.0)
    assert hold(net, Crowd(), 3, Pace(timeout=100.0, poll=0.5), gather=10.0) == [0, 1, 2]
    assert 3.0 <= net.time <= 4.0


def test_so_many_are_asked_as_are_wanted_and_each_can_be() -> None:
    counts = dict.fromkeys(range(4), 0)
    for value in range(200):
        net = network(0.0, 0.0, 0.0, 0.0)
        crowd = Crowd(clients=dict(net.names))
        assignment = Assignment(value, b"", 2)
        for reply in hold_round(assignment, crowd, net.link, Pace(), 0.0, net.timing):
            counts[reply.client] += 1
    assert sum(counts.values()) == 400 and min(counts.values()) > 70


def test_who_is_late_is_left_out_and_not_asked_before_it_is_done() -> None:
    net, crowd, pace = network(1.0, 25.0), Crowd(), Pace(timeout=10.0, poll=0.5)
    assert hold(net, crowd, 2, pace, gather=5.0) == [0]
    assert 10.0 <= net.time <= 12.0
    assert hold(net, crowd, 2, pace) == [0]  # at once: the late one is not waited for
    assert net.time <= 15.0 and net.asked() == [100, 101, 100]
    net.sleep(25.0)
    net.here[101] = 1.0
    assert hold(net, crowd, 2, pace) == [0, 1]  # it has finished, and its old answer is dropped


def test_who_has_died_is_not_waited_for_once_that_is_known() -> None:
    net, crowd = network(1.0, NEVER), Crowd(clients={100: 0, 101: 1})
    net.plan[4.0] = lambda: net.here.pop(101)
    assert hold(net, crowd, 2, Pace(timeout=100.0, poll=0.5)) == [0]
    assert net.time <= 5.0 and crowd.clients == {100: 0} and not crowd.busy


def test_a_round_waits_for_the_replies_that_it_needs() -> None:
    net, crowd = network(1.0), Crowd()
    net.plan[40.0] = lambda: (net.here.update({107: 1.0}), net.names.update({107: 7}))
    assert hold(net, crowd, 2, Pace(timeout=10.0, min_replies=2, poll=0.5)) == [0, 7]
    assert 40.0 <= net.time <= 43.0


def test_replies_that_came_are_kept_when_more_are_asked_for() -> None:
    net, crowd = network(1.0, NEVER), Crowd(clients={100: 0, 101: 1})
    net.plan[30.0] = lambda: (net.here.update({102: 1.0}), net.names.update({102: 2}))
    assert hold(net, crowd, 2, Pace(timeout=10.0, min_replies=2, poll=0.5)) == [0, 2]
    assert net.asked() == [100, 101, 102]


def test_a_late_reply_still_counts_while_the_round_lasts() -> None:
    net, crowd = network(1.0, 15.0), Crowd(clients={100: 0, 101: 1})
    assert hold(net, crowd, 2, Pace(timeout=10.0, min_replies=2, poll=0.5)) == [0, 1]
    assert 15.0 <= net.time <= 16.0


def test_clients_that_fail_are_asked_again_but_with_pauses() -> None:
    net, crowd = network(0.0), Crowd(clients={100: 0})
    net.failing.add(100)
    net.plan[60.0] = lambda: net.failing.clear()
    assert hold(net, crowd, 1, Pace(timeout=50.0, poll=0.5)) == [0]
    assert len(net.asked()) < 12


def test_only_the_first_round_gathers() -> None:
    net, ended = network(1.0), []
    net.plan[20.0] = lambda: (net.here.update({101: 1.0}), net.names.update({101: 1}))
    rounds = iter(range(3))

    def begin() -> Assignment | None:
        value = next(rounds, None)
        return None if value is None else Assignment(value, lambda n: b"for %d" % n, 3)

    def end(value: int, replies: Sequence[Reply]) -> None:
        ended.append((value, [(reply.client, reply.body) for reply in replies]))

    pace = Pace(timeout=10.0, gather=30.0, poll=0.5)
    run_rounds(Server(begin, end), net.link, pace, net.timing)
    both = [(0, b"for 0!"), (1, b"for 1!")]
    assert ended == [(0, both), (1, both), (2, both)]
    assert 30.0 <= net.time <= 40.0
    assert [node for kind, node, _ in net.sent if kind == BYE] == [100, 101]


def test_a_client_that_connects_anew_replaces_its_old_node() -> None:
    net, crowd = network(1.0, NEVER), Crowd(clients={100: 0, 101: 1})
    net.plan[3.0] = lambda: (net.here.update({109: 1.0}), net.names.update({109: 1}))
    assert hold(net, crowd, 2, Pace(timeout=100.0, poll=0.5)) == [0]
    assert net.time <= 5.0  # the dead one's reply is not waited for any more
    assert crowd.clients == {100: 0, 109: 1}
    refresh(crowd, net.link)
    assert [node for kind, node, _ in net.sent if kind == HELLO] == [109]


def test_a_client_without_a_number_goes_by_its_node() -> None:
    net = Network({104: 0.0})
    assert hold(net, Crowd(), 1, Pace()) == [104]


@pytest.mark.parametrize(
    ("pace", "reason"),
    [
        (Pace(timeout=-1.0), "timeout is -1.0"),
        (Pace(timeout=float("nan")), "timeout is nan"),
        (Pace(poll=0.0), "poll is 0.0"),
        (Pace(gather=-1.0), "gather is -1.0"),
        (Pace(min_replies=0), "min_replies is 0"),
    ],
)
def test_a_pace_that_makes_no_sense(pace: Pace, reason: str) -> None:
    server = Server(lambda: None, lambda value, replies: None)
    with pytest.raises(ValueError, match=reason):
        run_rounds(server, Network().link, pace)
