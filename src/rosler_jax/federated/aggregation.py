"""One update of many clients' updates: means, and what a few bad clients cannot move far."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rosler_jax.federated._spec import Spec, choose

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    Messages = Float[Array, "clients numbers"]
    Aggregate = Callable[[Messages, Float[Array, " clients"], Bool[Array, " clients"]], Any]


def aggregate(
    how: str,
    messages: Messages,
    weights: Float[Array, " clients"],
    valid: Bool[Array, " clients"] | None = None,
) -> Float[Array, " numbers"]:
    """Combines the messages of a round.

    Args:
      how: ``"mean"``, weighted; ``"trimmed-mean:0.2"``, of each number without that share of the
        smallest and of the largest; ``"median"`` of each number; ``"krum:0.2"``, the mean of the
        messages that lie closest to others, where up to that share may be bad;
        ``"clipped-mean:1"``, the mean of messages cut to so many times the median of their norms:
        the one for clients that differ much, as where each knows one class, whose updates the
        others take for outliers. All but the mean weigh clients alike: examples are what a client
        says that it has.
      messages: a row each, float32.
      weights: of the mean; numbers of examples.
      valid: which messages count; None for all.

    Returns:
      The combined message; zeros if none counts.

    Raises:
      ValueError: for an unknown name, or a share that it does not take.

    Example:
      >>> messages = jnp.array([[1.0], [2.0], [3.0], [1e6]])
      >>> [
      ...     aggregate(how, messages, jnp.ones(4)).tolist()
      ...     for how in ("median", "trimmed-mean:0.25")
      ... ]
      [[2.5], [2.5]]
      >>> aggregate("krum:0.25", messages, jnp.ones(4)).tolist()
      [2.0]

    Source: Yin, Chen, Ramchandran, Bartlett, "Byzantine-robust distributed learning: towards
    optimal statistical rates", arXiv:1803.01498 (median, trimmed mean); Blanchard et al., "Machine
    learning with adversaries: Byzantine tolerant gradient descent", NeurIPS 2017 (Krum; of several
    messages, Multi-Krum); Sun, Kairouz, Suresh, McMahan, "Can you really backdoor federated
    learning?", arXiv:1911.07963 (bounded norms).
    """
    row, number = choose("aggregate", how, AGGREGATES)
    count = jnp.ones(len(messages), bool) if valid is None else valid
    # A message that does not count may hold anything, and anything times 0 is not 0.
    messages = jnp.where(count[:, None], messages, 0.0)
    return row(messages, weights, count, number)


def is_robust(how: str) -> bool:
    """Whether it needs each message, which secure aggregation hides."""
    choose("aggregate", how, AGGREGATES)
    return how.partition(":")[0] != "mean"


def _mean(messages: Messages, weights: Any, valid: Any, number: float) -> Array:
    del number
    weights = jnp.where(valid, weights, 0.0)
    return weights @ messages / jnp.maximum(weights.sum(), jnp.finfo(jnp.float32).tiny)


def _by_rank(messages: Messages, valid: Any, cut: Any) -> Array:
    """Mean of the valid numbers without ``cut`` at either end, coordinate by coordinate."""
    count, cut = valid.sum(), jnp.maximum(cut, 0)
    ordered = jnp.sort(jnp.where(valid[:, None], messages, jnp.inf), axis=0)
    rank = jnp.arange(len(messages))
    kept = (rank >= cut) & (rank < count - cut)
    total = jnp.where(kept[:, None], ordered, 0.0).sum(0)
    return total / jnp.maximum(kept.sum(), 1)


def _trimmed_mean(messages: Messages, weights: Any, valid: Any, number: float) -> Array:
    del weights
    # A share of 0.2 of 10 is 2, whatever float32 makes of the product.
    cut = jnp.ceil(number * valid.sum() - 1e-4).astype(jnp.int32)
    return _by_rank(messages, valid, jnp.minimum(cut, (valid.sum() - 1) // 2))


def _median(messages: Messages, weights: Any, valid: Any, number: float) -> Array:
    del weights, number
    return _by_rank(messages, valid, (valid.sum() - 1) // 2)


def _krum(messages: Messages, weights: Any, valid: Any, number: float) -> Array:
    """Scores are sums of the squared distances to the nearest ``count - bad - 2`` others."""
    del weights
    count = valid.sum()
    bad = jnp.ceil(number * count - 1e-4).astype(jnp.int32)
    squares = (messages**2).sum(1)
    apart = squares[:, None] + squares[None, :] - 2 * messages @ messages.T
    both = valid[:, None] & valid[None, :] & ~jnp.eye(len(messages), dtype=bool)
    ordered = jnp.sort(jnp.where(both, jnp.maximum(apart, 0.0), jnp.inf), axis=1)
    near = jnp.arange(len(messages)) < jnp.maximum(count - bad - 2, 1)
    most = jnp.finfo(jnp.float32).max  # of distances that are no numbers, too
    score = jnp.where(near, jnp.nan_to_num(ordered, nan=most, posinf=most), 0.0).sum(1)
    score = jnp.where(valid, jnp.minimum(score, most), jnp.inf)
    rank = jnp.argsort(jnp.argsort(score))
    chosen = valid & (rank < jnp.maximum(count - bad, 1))
    return _mean(messages, jnp.ones_like(score), chosen, 0.0)


def _clipped_mean(messages: Messages, weights: Any, valid: Any, number: float) -> Array:
    del weights
    norms = _norms(messages)
    middle = _median(norms[:, None], None, valid, 0.0)[0]
    factor = jnp.minimum(1.0, number * middle / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny))
    return _mean(messages * factor[:, None], jnp.ones_like(norms), valid, 0.0)


def _norms(messages: Messages) -> Float[Array, " clients"]:
    largest = jnp.abs(messages).max(1, initial=0.0)
    unit = jnp.where(jnp.isfinite(largest) & (largest > 0), largest, 1.0)
    return unit * jnp.sqrt(((messages / unit[:, None]) ** 2).sum(1))  # 1e30 has no square


AGGREGATES: dict[str, Spec[Callable[..., Any]]] = {
    "mean": Spec(_mean),
    "trimmed-mean": Spec(_trimmed_mean, 0.2, most=0.49),
    "median": Spec(_median),
    "clipped-mean": Spec(_clipped_mean, 1.0, least=0.01),
    "krum": Spec(_krum, 0.2, most=0.49),
}
"""Every way by name: a new one is one line here."""


class Checked(NamedTuple):
    """What a look at the messages of a round found.

    Attributes:
      valid: which may count.
      finite: which are numbers throughout.
      norms: Euclidean norms.
    """

    valid: Bool[Array, " clients"]
    finite: Bool[Array, " clients"]
    norms: Float[Array, " clients"]


def check_norms(messages: Messages, came: Bool[Array, " clients"], most: float | None) -> Checked:
    """Refuses messages with NaN or infinities, and those far longer than the others.

    Args:
      messages: a row each.
      came: which there are.
      most: a norm may be so many times the median of those that came; None for any.

    Example:
      >>> messages = jnp.array([[1.0], [jnp.nan], [1e30], [2.0], [0.5]])
      >>> check_norms(messages, jnp.ones(5, bool), 10.0).valid.tolist()
      [True, False, False, True, True]
    """
    largest = jnp.abs(messages).max(1, initial=0.0)  # NaN of a row with NaN
    finite = jnp.isfinite(largest) & came
    norms = jnp.where(finite, _norms(messages), 0.0)
    if most is None:
        return Checked(finite, finite, norms)
    middle = _median(norms[:, None], None, finite, 0.0)[0]
    return Checked(finite & (norms <= np.float32(most) * middle), finite, norms)
