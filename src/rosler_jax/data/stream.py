"""Data that do not fit the device: whether they do, and batches of them in an order given.

A run draws its order of examples itself, as it does in memory; grain's threads read the batches
ahead. What is read does not depend on how many threads there are, and nothing need be remembered
of a stream to go on with it: the order from there on is all of its state.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rosler_jax.data._lazy import Lazy

if TYPE_CHECKING:
    from jaxtyping import Int, Num

SHARE = 0.5  # of a memory that data may take: parameters, gradients and activations need room, too
MOST_WORKERS = 8


def batches(
    x: Num[np.ndarray, "examples *features"] | Lazy,
    y: Num[np.ndarray, "examples *k"] | None,
    order: Int[np.ndarray, "steps batch"] | Sequence[Int[np.ndarray, " batch"]],
    *,
    workers: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Batches ``(x[order[i]], y[order[i]])``, one after the other, read ahead by threads.

    The order is kept whatever the number of threads. To resume at step ``k``, pass ``order[k:]``.

    Args:
      x: inputs: an array, a memory map, or lazy rows.
      y: targets, or None.
      order: the examples of each batch; batches may differ in size.
      workers: threads that read, each a batch at a time, and keep two ahead; 0 to read when asked;
        None for the processors there are, up to 8.

    Yields:
      A batch's inputs ``(batch, *features)`` and targets ``(batch, *k)``, or None.

    Raises:
      ImportError: if grain is not installed.
      DataError: of the source, if a file that it reads meanwhile is damaged.

    Example:
      >>> x, order = np.arange(10) * 10, np.array([[3, 1], [4, 1], [5, 9]])
      >>> [batch.tolist() for batch, _ in batches(x, None, order, workers=2)]
      [[30, 10], [40, 10], [50, 90]]
    """
    grain = _import_grain()
    if not len(order):
        return
    threads = min(MOST_WORKERS, os.cpu_count() or 1) if workers is None else workers

    def batch(step: int) -> tuple[np.ndarray, np.ndarray | None]:
        index = np.asarray(order[step])
        return x[index], None if y is None else y[index]

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    steps = iter(grain.MapDataset.range(len(order)).map(batch).to_iter_dataset(options))
    try:
        yield from steps
    finally:  # of a stream that is left early: its threads go with it
        steps.close()


def in_order(examples: int, batch: int) -> list[Int[np.ndarray, " _"]]:
    """The order that goes through all examples once, the last batch smaller: to evaluate.

    Example:
      >>> [index.tolist() for index in in_order(5, 2)]
      [[0, 1], [2, 3], [4]]
    """
    return [np.arange(i, min(i + batch, examples)) for i in range(0, examples, batch)]


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


def _import_grain() -> Any:
    try:
        import grain
    except ImportError as error:
        raise ImportError(
            "data that does not fit the device is read with grain: pip install "
            "'rosler-jax[stream]'; or pass stream=False to have it in memory"
        ) from error
    return grain
