"""Which examples each client has: splits of a training set, from alike to each a world of its own.

A client holds indices, not examples: all clients read one array on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rosler_jax.federated._spec import Spec, choose

if TYPE_CHECKING:
    from jaxtyping import Int

    Parts = list[Int[np.ndarray, " count"]]

_TRIES = 100


class Clients(NamedTuple):
    """The examples of every client.

    Attributes:
      rows: indices into the training examples, ``(clients, most)``; a row goes on with its
        client's own from the start where there are fewer.
      counts: how many a client has, ``(clients,)``.

    Example:
      >>> clients = as_clients([np.array([4, 5, 6]), np.array([1])])
      >>> clients.rows.tolist(), clients.counts.tolist()
      ([[4, 5, 6], [1, 1, 1]], [3, 1])
    """

    rows: Int[np.ndarray, "clients most"]
    counts: Int[np.ndarray, " clients"]


def as_clients(parts: Parts) -> Clients:
    """Clients of the indices that each has.

    Raises:
      ValueError: if there is no client, or one has no example.

    Example:
      >>> as_clients([np.array([4, 5, 6]), np.array([1])]).counts.tolist()
      [3, 1]
      >>> as_clients([np.array([4, 5, 6]), np.array([], int)])
      Traceback (most recent call last):
      ValueError: clients [1] have no examples; each needs one at least
    """
    counts = np.array([len(part) for part in parts], np.int32)
    if not len(counts) or counts.min() < 1:
        empty = np.flatnonzero(counts == 0).tolist()
        raise ValueError(f"clients {empty} have no examples; each needs one at least")
    rows = np.stack([np.resize(part, counts.max()) for part in parts])
    return Clients(rows.astype(np.int32), counts)


def split_clients(
    how: str,
    clients: int,
    y: Any,
    *,
    count: int,
    groups: Mapping[str, Int[np.ndarray, " count"]] | None = None,
    seed: int = 0,
) -> Clients:
    """Splits training examples among clients.

    Args:
      how: of :data:`SPLITS`: ``"iid"``; ``"dirichlet:0.3"``: of each class the clients have shares
        that are Dirichlet distributed, the smaller the number, the less alike the clients;
        ``"classes:2"``: each client has so many classes; or the name of one of the ``groups``.
      clients: how many.
      y: labels of the examples, for the splits that look at them.
      count: number of examples.
      groups: by name, what each example belongs to, as ``{"recording": ..., "load": ...}``.
        Clients take whole groups where there are enough; else the largest are cut in pieces, in
        the order of their examples, so that neighbours in time stay together.
      seed: of what is random.

    Returns:
      The clients; every example is at one of them, but for ``classes``, where an example of a class
      that no client has is at none.

    Raises:
      ValueError: for an unknown split, more clients than examples, or labels that are no classes.

    Example:
      >>> y = np.arange(100) % 10
      >>> split_clients("iid", 4, y, count=100).counts.tolist()
      [25, 25, 25, 25]
      >>> two = split_clients("classes:2", 5, y, count=100)
      >>> [len(set(y[row])) for row in two.rows]
      [2, 2, 2, 2, 2]

    Source: Hsu, Qi, Brown, "Measuring the effects of non-identical data distribution for federated
    visual classification", arXiv:1909.06335; McMahan et al., arXiv:1602.05629 (classes).
    """
    if not 1 <= clients <= count:
        raise ValueError(f"clients {clients} is outside 1..{count}, the number of examples")
    rng = np.random.default_rng(seed)
    if groups and how in groups:
        return as_clients(_by_group(np.asarray(groups[how]), clients))
    known = f"; these data have groups {', '.join(groups)}" if groups else ""
    split, number = choose("split", how, SPLITS, known)
    labels = None if y is None else np.asarray(y)
    return as_clients(split(clients, labels, count, number, rng))


def _iid(clients: int, y: Any, count: int, number: float, rng: np.random.Generator) -> Parts:
    del y, number
    return [np.sort(part) for part in np.array_split(rng.permutation(count), clients)]


def _labels(how: str, y: Any) -> Int[np.ndarray, " count"]:
    if y is None or y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(f"split {how!r} needs labels of classes; pass 'iid' or a group's name")
    return np.asarray(y)


def _dirichlet(clients: int, y: Any, count: int, number: float, rng: Any) -> Parts:
    """Drawn anew until every client has something; then who has nothing gets of the largest."""
    y = _labels("dirichlet", y)
    least = min(8, count // (4 * clients))
    for _ in range(_TRIES):
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for label in np.unique(y):
            members = rng.permutation(np.flatnonzero(y == label))
            shares = rng.dirichlet(np.full(clients, number))
            cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(int)
            for part, piece in zip(parts, np.split(members, cuts), strict=True):
                part.append(piece)
        found = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, found)) >= max(least, 1):
            return found
    return _without_empty(found)


def _without_empty(parts: Parts) -> Parts:
    """Takes from the largest for those that have nothing."""
    parts = list(parts)
    for k, part in enumerate(parts):
        if not len(part):
            largest = max(range(len(parts)), key=lambda j: len(parts[j]))
            parts[k], parts[largest] = parts[largest][:1], parts[largest][1:]
    return parts


def _classes(clients: int, y: Any, count: int, number: float, rng: Any) -> Parts:
    """Each client's classes in turn from a shuffled deck, so that all are wanted alike."""
    del count
    y = _labels("classes", y)
    labels, each = np.unique(y), int(number)
    if not 1 <= each <= len(labels):
        raise ValueError(f"classes:{each}: there are {len(labels)} classes; pass 1..{len(labels)}")
    order = rng.permutation(labels)
    has = [[order[(k * each + j) % len(labels)] for j in range(each)] for k in range(clients)]
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label in labels:
        takers = [k for k, mine in enumerate(has) if label in mine]
        members = rng.permutation(np.flatnonzero(y == label))
        for k, piece in zip(takers, np.array_split(members, max(len(takers), 1)), strict=False):
            parts[k].append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def _by_group(groups: Int[np.ndarray, " count"], clients: int) -> Parts:
    """Whole groups, the largest first to who has least; or the largest cut in pieces."""
    parts = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    pieces = [1] * len(parts)
    for _ in range(clients - len(parts)):
        pieces[max(range(len(parts)), key=lambda k: len(parts[k]) / pieces[k])] += 1
    found = [
        piece
        for part, n in zip(parts, pieces, strict=True)
        for piece in np.array_split(part, n)
    ]  # fmt: skip
    if len(found) <= clients:
        return found
    bins: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for part in sorted(found, key=len, reverse=True):
        min(bins, key=lambda mine: sum(map(len, mine))).append(part)
    return [np.sort(np.concatenate(mine)) for mine in bins]


SPLITS: dict[str, Spec[Callable[..., Parts]]] = {
    "iid": Spec(_iid),
    "dirichlet": Spec(_dirichlet, 0.3, least=1e-3),
    "classes": Spec(_classes, 2, least=1),
}
"""Every split by name: a new one is one line here."""
