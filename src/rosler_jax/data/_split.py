"""Which examples are held out, to validate or to test on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rosler_jax.data._lazy import select
from rosler_jax.data._raw import DataError, Raw

TEST_FRACTION = 0.2
SPLIT_SEED = 5000  # fixed: a test split that a source lacks is the same whatever the run's seed


def stratified(y: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a kept and a held-out part; each class gives the same fraction of its examples.

    That is at least one, and never the last one kept: what is not trained on cannot be learnt.

    Example:
      >>> kept, held = stratified(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
      >>> len(kept), len(held)
      (6, 2)
    """
    rng = np.random.default_rng(seed)
    held = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held[members[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def parted(
    y: Any, fraction: float, seed: int, targets: str = "classes"
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a kept and a held-out part: class by class, or of other targets at random.

    Args:
      y: labels; of another kind only their number counts, so that inputs do as well.
      fraction: to hold out.
      seed: of the choice.
      targets: what y is; see :data:`rosler_jax.data._check.TARGETS`.

    Example:
      >>> [part.tolist() for part in parted(np.zeros((5, 2)), 0.4, seed=0, targets="values")]
      [[0, 1, 3], [2, 4]]
    """
    if targets == "classes":
        return stratified(np.ravel(y), fraction, seed)
    n = len(y)
    count = min(max(1, round(fraction * n)), n - 1)
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[count:]), np.sort(order[:count])


def with_test(
    x: Any, y: Any, targets: str = "classes", groups: Mapping[str, Any] | None = None
) -> Raw:
    """A whole data set, of which a fixed fifth (of each class) becomes the test split.

    Args:
      x: inputs.
      y: targets, or None.
      targets: what they are.
      groups: of all examples; see :class:`Raw`.

    Example:
      >>> raw = with_test(np.eye(10), np.arange(10) % 2)
      >>> raw.train[0].shape, sorted(raw.test[1].tolist())
      ((8, 10), [0, 1])
    """
    kept, held = parted(x if y is None else y, TEST_FRACTION, SPLIT_SEED, targets)
    train, test = (
        (select(x, rows), None if y is None else np.asarray(y)[rows]) for rows in (kept, held)
    )
    mine = None
    if groups is not None:
        for name, found in groups.items():
            if np.shape(found) != (len(x),):
                raise DataError(f"{name} of shape {np.shape(found)}; expected ({len(x)},)")
        mine = {name: np.asarray(found)[kept] for name, found in groups.items()}
    return Raw(train=train, test=test, groups=mine)


def held_out(
    name: str, y: Any, validation: float, seed: int, targets: str = "classes"
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and validation examples; arguments as of :func:`parted`.

    Raises:
      DataError: if nothing can be held out.
    """
    if not 0 < validation < 1:
        raise DataError(f"validation={validation} is no fraction between 0 and 1")
    kept, held = parted(y, validation, seed, targets)
    if not len(held):
        one = "no class has two training examples" if targets == "classes" else "one example only"
        raise DataError(f"{name}: {one}, one to validate on")
    return kept, held
