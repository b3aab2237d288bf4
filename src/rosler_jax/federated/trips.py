"""Messages on their way: written, garbled, masked, lost, and read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from rosler_jax.federated import secure
from rosler_jax.federated.compress import Packed
from rosler_jax.federated.config import FederatedConfig
from rosler_jax.federated.garbage import GARBAGE
from rosler_jax.federated.rounds import Answers, Asked, FederatedState
from rosler_jax.federated.wire import (
    UP,
    Header,
    MessageError,
    check_header,
    decode,
    encode,
)

if TYPE_CHECKING:
    pass


from rosler_jax.federated.prepare import Prepared, Programs

OFFENCES = {
    "damaged", "stale", "not finite", "wrong way", "unknown client", "wrong client", "twice",
    "no examples",
}  # fmt: skip
"""Reasons for which no honest message is refused; a long one may be honest."""


class Refused(NamedTuple):
    """A message that did not count; rounds are numbered from 1, as in the history."""

    round: int
    client: int
    reason: str
    text: str


Trip = tuple[Any, np.ndarray, tuple[float, int], list[Refused]]
"""Messages as rows, which came, bytes up and what went down beside the model, and the refused."""


def is_bad(federated: FederatedConfig) -> np.ndarray:
    """Which clients send garbage, the same in all rounds, ``(clients,)``."""
    order = np.random.default_rng([federated.seed, 1]).permutation(federated.clients)
    return order < round(federated.bad * federated.clients)


def _garbage_of(federated: FederatedConfig, now: int, client: int) -> str:
    kinds = list(GARBAGE)
    return kinds[(now + client) % len(kinds)] if federated.garbage == "all" else federated.garbage


def wire_trip(
    run: Prepared, parts: Programs, state: FederatedState, asked: Asked, answers: Answers
) -> Trip:
    """Writes each message as bytes, garbles those of bad clients, and reads what came."""
    federated, (form, _), now = run.federated, run.rounds.forms, int(state.round)
    clients, came = np.asarray(asked.clients), np.array(asked.answers)
    packed, counts, bad = as_numpy(answers.packed), run.clients.counts, is_bad(federated)
    read = jax.tree.map(np.zeros_like, packed)
    refused, up = list[Refused](), 0
    for k in np.flatnonzero(came):
        client = int(clients[k])
        header = Header(UP, now, client, int(counts[client]))
        one = jax.tree.map(lambda v, k=k: v[k], packed)
        if bad[client]:
            kind = GARBAGE[_garbage_of(federated, now, client)]
            with np.errstate(all="ignore"):
                data = kind(header, one, form, np.random.default_rng([now, client]))
        else:
            data = encode(header, one, form)
        up += len(data)
        try:
            said, found = decode(data, form)
            check_header(said, UP, now, federated.clients)
        except MessageError as error:
            came[k] = False
            refused.append(Refused(now + 1, client, error.reason, str(error)))
            continue
        for into, values in zip(jax.tree.leaves(read), jax.tree.leaves(found), strict=True):
            into[k] = values
    return parts.unpacked(read), came, (up, 0), refused


def masked_trip(
    run: Prepared, parts: Programs, state: FederatedState, asked: Asked, answers: Answers
) -> Trip:
    """Masks each message, sums those that came, and takes the masks of the sum."""
    del parts
    federated, now = run.federated, int(state.round)
    clients, came = [int(k) for k in asked.clients], np.array(asked.answers)
    exact, counts = np.asarray(answers.exact), run.clients.counts
    total = int(counts[clients].sum())
    threshold = len(clients) // 2 + 1
    made = {k: secure.make_secrets(f"{federated.seed}/{now}/{k}".encode()) for k in clients}
    keys = {k: secure.public_key(made[k]) for k in clients}
    shares = {k: secure.split_secrets(made[k], clients, threshold) for k in clients}
    sent: dict[int, np.ndarray] = {}
    lost = list[Refused]()
    for place, client in enumerate(clients):
        if came[place] and not np.isfinite(exact[place]).all():  # who diverged says nothing
            came[place] = False
            lost.append(Refused(now + 1, client, "not finite", f"client {client}: diverged"))
        if not came[place]:
            continue
        weight = int(counts[client])
        words = secure.fixed_point(exact[place], weight, total, federated.secure_range)
        words = np.append(words, np.uint32(weight))  # who came, and with what, is a sum as well
        sent[client] = secure.masked(words, client, made[client], keys)
    sizes = secure.sent_bytes(len(clients), len(sent), exact.shape[1] + 1)
    messages = np.zeros_like(exact)
    try:
        summed = secure.unmasked(sent, keys, shares, threshold)
    except secure.SecureError as error:
        came[:] = False
        return messages, came, sizes, [*lost, Refused(now + 1, -1, "too few", str(error))]
    messages[0] = secure.mean_of(summed[:-1], int(summed[-1]), total, federated.secure_range)
    return messages, came, sizes, lost


def as_numpy(packed: Packed) -> Packed:
    """The same in NumPy's arrays."""
    return jax.tree.map(np.asarray, packed)
