"""Sums of clients' vectors by Flower's SecAgg+: the server learns the sum, and no summand.

Each vector is clipped, rounded to 22 bits and masked; the masks cancel in the sum, also when some
clients die on the way. A round takes four exchanges.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rosler_jax.federated.network._flower import need_flower
from rosler_jax.federated.network.apps import (
    BODY,
    answer_queries,
    check_client,
    link_of,
)
from rosler_jax.federated.network.boundary import Assignment, Pace, body_for, check_pace
from rosler_jax.federated.network.rounds import (
    TIMING,
    Crowd,
    Link,
    Timing,
    choose,
    idle_nodes,
    pause_after,
    refresh,
    say_goodbye,
    until,
)

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from jaxtyping import Float

LOG = logging.getLogger("rosler_jax.federated")

LEVELS = 2**22  # that a value is rounded to
MOST_CLIENTS = 2**32 // LEVELS - 1  # whose sum fits the 32 bits that it is taken in
CLIP, MOST = "clip", "max_weight"


class Sum(NamedTuple):
    """What a round's clients gave together.

    Attributes:
      vector: the sum of weight times vector.
      weight: the sum of the weights; divided by it, the vector is the mean.
      clients: how many took part.
    """

    vector: Float[np.ndarray, " size"]
    weight: float
    clients: int


class SumServer(NamedTuple):
    """The server's side: ``begin`` as of ``Server``, ``end`` takes a round's number and sum."""

    begin: Callable[[], Assignment | None]
    end: Callable[[int, Sum], None]


SumWork = Callable[[bytes], tuple["Float[np.ndarray, ' size']", float]]
"""A client's side: the body of a round in, a vector and its weight out."""


class Masking(NamedTuple):
    """How vectors are rounded and masked.

    Attributes:
      clip: values are clipped to this size; they are rounded to 2 clip / 2**22.
      max_weight: the largest weight that a client may have.
      threshold: share of the clients that must stay to the end for the sum to be unmasked; as
        many, working together with the server, could unmask one.
    """

    clip: float = 8.0
    max_weight: float = 1.0
    threshold: float = 0.5


MASKING, SUM_PACE = Masking(), Pace(min_replies=2)


def sum_server_app(
    server: SumServer,
    masking: Masking = MASKING,
    pace: Pace = SUM_PACE,
) -> ServerApp:
    """A Flower ServerApp whose rounds are sums that hide their summands; for ``serve_app``.

    Args:
      server: what to run.
      masking: how vectors are rounded and masked.
      pace: how long to wait for what; ``timeout`` is of each of the four exchanges.

    Raises:
      ImportError: if Flower is not installed.
      ValueError: if the pace or the masking makes no sense.
    """
    need_flower()
    from flwr.serverapp import ServerApp

    check_pace(pace)
    check_masking(masking)
    if pace.min_replies < 2:
        raise ValueError(
            f"min_replies is {pace.min_replies}, but the sum of one client hides nothing; "
            "ask for at least 2"
        )
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        link, timing, gather, crowd = link_of(grid), TIMING, pace.gather, Crowd()
        while (assignment := server.begin()) is not None:
            if assignment.clients > MOST_CLIENTS:
                raise ValueError(
                    f"round {assignment.round} wants {assignment.clients} clients, but a sum "
                    f"takes at most {MOST_CLIENTS}"
                )
            for attempt in itertools.count():
                # Everybody says hello anew: who died, or is still at work, is not waited for.
                crowd = Crowd()
                nodes = _ready(assignment, crowd, link, pace, gather, timing, attempt)
                total = _secure_sum(assignment, crowd, nodes, grid, context, masking, pace)
                if total is not None:
                    server.end(assignment.round, total)
                    break
                LOG.warning("round %d: the sum failed; tries again", assignment.round)
                timing.sleep(pause_after(attempt, pace))
            gather = 0.0
        say_goodbye(crowd, link, pace, timing)

    return app


def sum_client_app(work: SumWork, client: int | None = None) -> ClientApp:
    """A Flower ClientApp that gives masked vectors; for ``join_app``.

    Args:
      work: what to do with the body of a round.
      client: its number, as in ``client_app``.

    Raises:
      ImportError: if Flower is not installed.
      ValueError: if the number is negative.
    """
    need_flower()
    import flwr.compat.common.recorddict_compat as compat
    from flwr.app import Message
    from flwr.client.mod import secaggplus_mod
    from flwr.clientapp import ClientApp
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters

    check_client(client)
    app = ClientApp()

    @app.train(mods=[secaggplus_mod])
    def train(message: Message, context: Context) -> Message:
        config: Any = compat.recorddict_to_fitins(message.content, keep_input=True).config
        vector, weight = work(config[BODY])
        summand = summand_of(vector, weight, Masking(config[CLIP], config[MOST]))
        # Of one weight for all, which Flower would send in the clear.
        result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([summand]), 1, {})
        return Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)

    answer_queries(app, client)
    return app


def summand_of(
    vector: Float[np.ndarray, " size"], weight: float, masking: Masking
) -> Float[np.ndarray, " sums"]:
    """What a client adds to the sum: its weighted vector and, behind it, its weight.

    Raises:
      ValueError: if it is no vector, not finite, or its weight is not within bounds.

    Example:
      >>> summand_of(np.array([1.0, -2.0]), 0.5, Masking(clip=8.0)).tolist()
      [0.5, -1.0, 4.0]
    """
    vector = np.asarray(vector, np.float64)
    if vector.ndim != 1:
        raise ValueError(f"the vector has shape {vector.shape}, but must have one dimension")
    if not np.isfinite(vector).all():
        raise ValueError("the vector is not finite, and would spoil the sum; leave this round out")
    if not 0.0 <= weight <= masking.max_weight:
        raise ValueError(f"the weight is {weight}, but must be from 0 to {masking.max_weight}")
    share = weight / masking.max_weight
    clipped = np.clip(vector, -masking.clip, masking.clip)
    return np.append(share * clipped, share * masking.clip)


def sum_of(mean: Float[np.ndarray, " sums"], clients: int, masking: Masking) -> Sum:
    """The sum, by the mean of the summands.

    Example:
      >>> sum_of(np.array([0.5, -1.0, 4.0]), 2, Masking(clip=8.0))
      Sum(vector=array([ 1., -2.]), weight=1.0, clients=2)
    """
    total = np.asarray(mean, np.float64) * clients * masking.max_weight
    return Sum(total[:-1], float(total[-1] / masking.clip), clients)


def check_masking(masking: Masking) -> None:
    """Refuses bounds that leave nothing.

    Raises:
      ValueError: naming what is wrong.
    """
    for name in ("clip", "max_weight"):
        if not 0 < getattr(masking, name) < float("inf"):
            raise ValueError(f"{name} is {getattr(masking, name)}, but must be more than 0")
    if not 0 < masking.threshold <= 1:
        raise ValueError(f"threshold is {masking.threshold}, but must be a share of the clients")


def _ready(
    assignment: Assignment,
    crowd: Crowd,
    link: Link,
    pace: Pace,
    gather: float,
    timing: Timing,
    attempt: int,
) -> list[int]:
    wanted = max(assignment.clients, pace.min_replies)
    # Nobody is known at first: those who are connected get a moment to answer.
    settle = timing.now() + max(gather, min(pace.timeout, 2.0))

    def come() -> bool:
        idle = len(idle_nodes(crowd))
        return idle >= wanted or (idle >= pace.min_replies and timing.now() >= settle)

    def look() -> None:
        refresh(crowd, link)

    until(come, look, pace, timing)
    chooser = random.Random(f"{assignment.round} {attempt}")
    return choose(idle_nodes(crowd), wanted, chooser)


def _secure_sum(
    assignment: Assignment,
    crowd: Crowd,
    nodes: Sequence[int],
    grid: Grid,
    context: Context,
    masking: Masking,
    pace: Pace,
) -> Sum | None:
    """One run of Flower's workflow; None if too many clients were lost on the way."""
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.common import FitIns, Parameters, parameters_to_ndarrays
    from flwr.server.compat.legacy_context import LegacyContext
    from flwr.server.workflow import SecAggPlusWorkflow
    from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key

    found: list[Sum] = []

    def configure(server_round: int, parameters: Any, client_manager: Any) -> list[Any]:
        def instructions(node: int) -> FitIns:
            body = body_for(assignment, crowd.clients[node])
            bounds = {CLIP: float(masking.clip), MOST: float(masking.max_weight)}
            return FitIns(Parameters([], ""), {BODY: body, **bounds})

        return [(SimpleNamespace(node_id=node), instructions(node)) for node in nodes]

    def aggregate(server_round: int, results: list[Any], failures: list[Any]) -> tuple[None, Any]:
        if len(results) >= pace.min_replies:
            (mean,) = parameters_to_ndarrays(results[0][1].parameters)  # the same in all
            found.append(sum_of(mean, len(results), masking))
        return None, {}

    strategy: Any = SimpleNamespace(configure_fit=configure, aggregate_fit=aggregate)
    manager: Any = SimpleNamespace(num_available=lambda: len(nodes))
    workflow = SecAggPlusWorkflow(
        num_shares=1.0,  # every client holds a part of every other's key
        reconstruction_threshold=float(masking.threshold),
        max_weight=1.0,
        clipping_range=float(masking.clip),
        quantization_range=LEVELS,
        timeout=pace.timeout,
    )
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord(
        {Key.CURRENT_ROUND: assignment.round}
    )
    context.state.array_records[MAIN_PARAMS_RECORD] = ArrayRecord()
    workflow(grid, LegacyContext(context, None, strategy, manager))
    return found[0] if found else None
