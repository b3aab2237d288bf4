"""What defines a federated run beyond what its clients train: one frozen dataclass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from rosler_jax.federated._spec import choose
from rosler_jax.federated.aggregation import AGGREGATES, is_robust
from rosler_jax.federated.compress import COMPRESSIONS
from rosler_jax.federated.exchanges import EXCHANGES
from rosler_jax.federated.garbage import GARBAGE
from rosler_jax.federated.optimizers import CLIENTS, SERVERS

_SHARES = ("participation", "drop", "bad")


@dataclasses.dataclass(frozen=True)
class FederatedConfig:
    """A federated run, together with a :class:`rosler_jax.config.TrainConfig` for its clients.

    Attributes:
      clients: how many there are.
      rounds: of training.
      participation: share of the clients that is asked in each round, in (0, 1].
      local_epochs: passes of a client over its own data in a round.
      split: of the training data among clients, see
        :func:`~rosler_jax.federated.clients.split_clients`.
      client: its optimiser, which begins anew each round: of
        :data:`~rosler_jax.federated.optimizers.CLIENTS`, where a rate stands that worked, for
        configs that name none. Plain SGD is the default: it has nothing to learn anew each round.
      server: what is done with the mean change: of
        :data:`~rosler_jax.federated.optimizers.SERVERS`.
      proximal: weight of half the squared distance to the server's model in a client's loss
        (FedProx); 0 for none.
      exchange: what travels, see :mod:`rosler_jax.federated.exchanges`.
      upload, download: what its numbers are sent as, see
        :mod:`rosler_jax.federated.compress`.
      delta: numbers of a seeded delta that all clients train instead of the model's own; 0 for not.
      aggregate: how messages become one, see
        :func:`~rosler_jax.federated.aggregation.aggregate`.
      reject_norm: a message longer than so many times the median is refused; 0 for never.
      ban_after: a client is heard no more after so many messages that were none of its round (not
        those that were only long, which may be honest); 0 for never.
      drop: share of the asked clients that do not answer.
      bad: share of the clients that send garbage.
      garbage: what they send: of :data:`~rosler_jax.federated.garbage.GARBAGE`, or ``"all"`` in
        turn.
      secure: whether messages are masked so that the server sees their sum alone.
      secure_range: largest number of a masked message; what is beyond is cut.
      clip: Euclidean norm that a message is cut to; 0 for none.
      noise: deviation of the Gaussian noise on the sum of clipped messages, in units of ``clip``.
      wire: whether every message is written as bytes and read again, so that bytes are counted
        exactly; else they are told by the entropy of the integers, and rounds are faster.
      evaluate_every: rounds between scores on validation; rows between them have the last ones.
      seed: of split, choice of clients, drops, garbage and sketches.

    Raises:
      ValueError: naming the field, its value and what is allowed.

    Example:
      >>> FederatedConfig(clients=40, participation=0.25).asked
      10
    """

    clients: int = 100
    rounds: int = 100
    participation: float = 0.1
    local_epochs: int = 1
    split: str = "iid"
    client: str = "sgd"
    server: str = "fedavg"
    proximal: float = 0.0
    exchange: str = "parameters"
    upload: str = "step:2"
    download: str = "grid:2"
    delta: int = 0
    aggregate: str = "mean"
    reject_norm: float = 10.0
    ban_after: int = 0
    drop: float = 0.0
    bad: float = 0.0
    garbage: str = "all"
    secure: bool = False
    secure_range: float = 1.0
    clip: float = 0.0
    noise: float = 0.0
    wire: bool = True
    evaluate_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("clients", "rounds", "local_epochs", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is below 1")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is no share; pass 0..1")
        if self.participation == 0 or self.drop == 1:
            raise ValueError(
                "nobody would ever answer: participation must be above 0, drop below 1"
            )
        for name in ("proximal", "reject_norm", "ban_after", "clip", "noise", "delta", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)} is negative or infinite")
        choose("client", self.client, CLIENTS)
        choose("server", self.server, SERVERS)
        choose("exchange", self.exchange, EXCHANGES)
        choose("upload", self.upload, COMPRESSIONS)
        choose("download", self.download, COMPRESSIONS)
        choose("aggregate", self.aggregate, AGGREGATES)
        if self.garbage not in ("all", *GARBAGE):
            raise ValueError(f"garbage {self.garbage!r} is none of all, {', '.join(GARBAGE)}")
        self._check_together()

    def _check_together(self) -> None:
        if self.secure and (is_robust(self.aggregate) or self.bad):
            raise ValueError(
                f"secure aggregation shows the server a sum alone: aggregate {self.aggregate!r} "
                "and bad clients need every message; pass aggregate 'mean' and bad 0"
            )
        if self.secure and not 0 < self.secure_range < math.inf:
            raise ValueError(f"secure_range {self.secure_range} is no positive number")
        if self.secure and self.clip:
            raise ValueError(
                "clipping by the server needs every message, which secure aggregation hides; pass "
                "one of secure and clip"
            )
        if self.noise and not self.clip:
            raise ValueError("noise is in units of clip; pass a clip above 0")
        if self.upload.partition(":")[0] == "grid":
            raise ValueError("a grid is of weights, which are sent down; pass upload 'step:2', say")
        own = choose("server", self.server, SERVERS) != choose("server", "fedavg:1", SERVERS)
        if own and self.exchange.partition(":")[0] == "count-sketch":
            raise ValueError(
                f"count-sketch has a momentum of its own; server {self.server!r} -> fedavg"
            )

    @property
    def asked(self) -> int:
        """Clients that are asked in a round."""
        return max(1, round(self.participation * self.clients))


def to_dict(config: FederatedConfig) -> dict[str, Any]:
    """The config as JSON types."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> FederatedConfig:
    """The inverse of :func:`to_dict`.

    Raises:
      ValueError: for unknown fields or values that no run can have.
    """
    names = {field.name for field in dataclasses.fields(FederatedConfig)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise ValueError(f"unknown fields {', '.join(unknown)} of a federated config")
    return FederatedConfig(**values)
