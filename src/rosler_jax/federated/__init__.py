"""Federated training: many clients, each with data of its own, and few bytes between them."""

from __future__ import annotations

from rosler_jax.federated.aggregate import aggregate
from rosler_jax.federated.clients import Clients, as_clients, split_clients
from rosler_jax.federated.config import FederatedConfig
from rosler_jax.federated.device import (
    DeviceCode,
    device_client,
    device_code,
    from_device,
    to_device,
)
from rosler_jax.federated.exchange import exchange
from rosler_jax.federated.prepare import prepare_federated
from rosler_jax.federated.privacy import privacy_spent
from rosler_jax.federated.rounds import FederatedState, make_rounds
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
    "exchange",
    "federated_fit",
    "from_device",
    "make_rounds",
    "prepare_federated",
    "privacy_spent",
    "split_clients",
    "to_device",
]
