"""Federated training: many clients, each with data of its own, and few bytes between them.

Modules are imported when their names are first asked for: options of the command line come from
the config alone, and need nothing that trains.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rosler_jax.federated.aggregation import aggregate
    from rosler_jax.federated.clients import Clients, as_clients, split_clients
    from rosler_jax.federated.config import FederatedConfig
    from rosler_jax.federated.device import (
        DeviceCode,
        device_client,
        device_code,
        from_device,
        to_device,
    )
    from rosler_jax.federated.device_node import device_training
    from rosler_jax.federated.exchanges import exchange
    from rosler_jax.federated.node import make_work, own_examples
    from rosler_jax.federated.prepare import prepare_federated
    from rosler_jax.federated.privacy import privacy_spent
    from rosler_jax.federated.rounds import FederatedState, make_rounds
    from rosler_jax.federated.run import federate
    from rosler_jax.federated.served import serve_federated
    from rosler_jax.federated.simulate import Federated, federated_fit
    from rosler_jax.federated.wire import MessageError

__all__ = [
    "Clients",
    "DeviceCode",
    "Federated",
    "FederatedConfig",
    "FederatedState",
    "MessageError",
    "aggregate",
    "as_clients",
    "device_client",
    "device_code",
    "device_training",
    "exchange",
    "federate",
    "federated_fit",
    "from_device",
    "make_rounds",
    "make_work",
    "own_examples",
    "prepare_federated",
    "privacy_spent",
    "serve_federated",
    "split_clients",
    "to_device",
]

_MODULES = {
    "aggregation": ("aggregate",),
    "clients": (
        "Clients",
        "as_clients",
        "split_clients",
    ),
    "config": ("FederatedConfig",),
    "device": (
        "DeviceCode",
        "device_client",
        "device_code",
        "from_device",
        "to_device",
    ),
    "exchanges": ("exchange",),
    "prepare": ("prepare_federated",),
    "privacy": ("privacy_spent",),
    "rounds": (
        "FederatedState",
        "make_rounds",
    ),
    "simulate": (
        "Federated",
        "federated_fit",
    ),
    "wire": ("MessageError",),
    "device_node": ("device_training",),
    "node": ("make_work", "own_examples"),
    "run": ("federate",),
    "served": ("serve_federated",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
