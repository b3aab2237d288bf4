"""Bytes that go down: a client that was not asked for a while has messages to catch up on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rosler_jax.federated.compress import Packed
from rosler_jax.federated.wire import DOWN, Form, Header, encode


class Ledger(NamedTuple):
    """Who has which model.

    Attributes:
      synced: of each client, the round after which its model is; 0 for the initial model, which a
        seed makes.
      sizes: bytes of the server's message after each round.
    """

    synced: np.ndarray
    sizes: Sequence[float]


def asked_bytes(
    ledger: Ledger, clients: np.ndarray, whole: int, asking: int = 12
) -> tuple[float, Ledger]:
    """Bytes to those who are asked: all messages that they lack, or the whole model if less.

    Args:
      ledger: before the round; its number of sizes is the number of rounds done.
      clients: who is asked.
      whole: bytes of the whole model.
      asking: bytes that ask a client who has the model already.

    Example:
      >>> ledger = Ledger(np.array([0, 2]), [100, 150])
      >>> asked_bytes(ledger, np.array([0, 1]), whole=1000)
      (262.0, Ledger(synced=array([2, 2]), sizes=[100, 150]))
      >>> asked_bytes(ledger, np.array([0]), whole=180)[0]
      180.0
    """
    done, synced, total = len(ledger.sizes), ledger.synced.copy(), 0.0
    for client in clients:
        lacking = sum(ledger.sizes[int(synced[client]) : done])
        total += min(lacking, whole) if lacking else asking
        synced[client] = done
    return total, Ledger(synced, ledger.sizes)


def whole_bytes(form: Form) -> int:
    """Bytes of the whole model as float32 numbers, in a message.

    Example:
      >>> whole_bytes(Form([(10, 10), (10,)], 127))
      451
    """
    frame = len(encode(Header(DOWN, 0), Packed((), ()), Form([], 0)))
    return frame + 4 * sum(math.prod(shape) for shape in form.shapes)
