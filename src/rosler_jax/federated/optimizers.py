"""Optimisers of clients and server, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from rosler_jax.federated._spec import Spec


class Client(NamedTuple):
    """A client's optimiser.

    Attributes:
      make: of learning rate, decoupled weight decay and the number that its name comes with.
      rate: that worked, where none is given; None for that of the method.
    """

    make: Callable[[Any, Any, float], optax.GradientTransformation]
    rate: float | None = None


Server = Callable[[float], optax.GradientTransformation]


def _adam(rate: Any, decay: Any, number: float) -> optax.GradientTransformation:
    del number
    return optax.adamw(rate, weight_decay=decay)


def _sgd(rate: Any, decay: Any, momentum: float | None) -> optax.GradientTransformation:
    return optax.chain(
        optax.trace(momentum) if momentum else optax.identity(),
        optax.add_decayed_weights(decay),
        optax.scale_by_learning_rate(rate),
    )


CLIENTS: dict[str, Spec[Client]] = {
    "sgd": Spec(Client(lambda rate, decay, number: _sgd(rate, decay, None), 0.1)),
    "momentum": Spec(Client(_sgd, 0.05), 0.9, most=1.0),
    "adam": Spec(Client(_adam)),
}
"""Every client's optimiser by name: a new one is one line here."""

SERVERS: dict[str, Spec[Server]] = {
    "fedavg": Spec(lambda rate: optax.sgd(rate), 1.0),
    "fedavgm": Spec(lambda rate: optax.sgd(rate, momentum=0.9), 1.0),
    "fedadam": Spec(lambda rate: optax.adam(rate, b2=0.99, eps=1e-3), 0.01),
    "fedyogi": Spec(lambda rate: optax.yogi(rate, b2=0.99, eps=1e-3), 0.01),
}
"""Of the rate that a name comes with; the gradient that they get is the mean change, negated.

Source: Reddi et al., "Adaptive federated optimization", arXiv:2003.00295.
"""
