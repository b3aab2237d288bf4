r"""What clipped and noisy rounds say of any one client at most: (epsilon, delta).

A round takes ``asked`` of ``clients`` at random, cuts each message to the norm ``clip``, and adds
Gaussian noise of deviation ``noise clip`` to their sum. Two fleets are neighbours where one client
is replaced by another: the sum then moves by ``2 clip`` at most, so that the noise is ``noise / 2``
in units of that. The rounds' privacy losses are composed by Google's accountant (Renyi
differential privacy of sampling without replacement).

Source: McMahan, Ramage, Talwar, Zhang, "Learning differentially private recurrent language models",
arXiv:1710.06963; Wang, Balle, Kasiviswanathan, "Subsampled Renyi differential privacy and
analytical moments accountant", arXiv:1808.00087.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rosler_jax.federated.config import FederatedConfig


def privacy_spent(config: FederatedConfig, rounds: int, delta: float | None = None) -> float:
    """Epsilon of so many rounds, of one client's data against another's.

    Args:
      config: of a run with ``clip`` and ``noise``.
      rounds: done.
      delta: probability that more is said; None for 1 / (10 clients).

    Returns:
      Epsilon; infinite without noise.

    Raises:
      ImportError: without ``dp-accounting``.

    Example:
      >>> from rosler_jax.federated.config import FederatedConfig
      >>> config = FederatedConfig(clients=1000, participation=0.02, clip=1.0, noise=2.0)
      >>> 0 < privacy_spent(config, 10) < privacy_spent(config, 100) < 20
      True
    """
    if not config.clip or not config.noise:
        return math.inf
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError as error:
        raise ImportError(
            "the privacy that is spent needs dp-accounting: pip install 'rosler-jax[federated]'"
        ) from error
    accountant = rdp.RdpAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE
    )
    one = dp_accounting.GaussianDpEvent(config.noise / 2)
    taken = dp_accounting.SampledWithoutReplacementDpEvent(config.clients, config.asked, one)
    accountant.compose(taken, rounds)
    return float(accountant.get_epsilon(1 / (10 * config.clients) if delta is None else delta))
