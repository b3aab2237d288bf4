"""Data that do not fit the device."""

from __future__ import annotations

import math
import os

SHARE = 0.5  # of a memory that data may take: parameters, gradients and activations need room, too


def fits(dataset_bytes: int, limit: float | None = None) -> bool:
    """Whether a data set may lie on the device as a whole.

    Args:
      dataset_bytes: of its inputs as stored.
      limit: bytes that it may take; None for half of the first device's memory, or of the
        machine's where that is smaller.

    Example:
      >>> fits(1000), fits(10**18), fits(1000, limit=999)
      (True, False, False)
    """
    return dataset_bytes <= (memory_limit() if limit is None else limit)


def memory_limit() -> float:
    """Bytes that data may take on the first device: half of its memory and of the machine's."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}  # None on the CPU
    device = stats.get("bytes_limit", math.inf)
    return SHARE * min(device, _machine_memory())


def _machine_memory() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such question on this system
        return math.inf
