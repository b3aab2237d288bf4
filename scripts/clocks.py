"""Seconds of a call: by the wall, many in a row, and by the device's own record of its kernels."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

Call = Callable[[int], Any]
"""From an input's number to a result that may not be ready yet."""

SECONDS = 0.05  # about how long one timing takes: as many calls as fit


def wall(call: Call, count: int, inputs: int) -> float:
    """Mean seconds of ``count`` calls in a row over rotating inputs."""
    start = time.perf_counter()
    for i in range(count):
        result = call(i % inputs)
    result.block_until_ready()
    return (time.perf_counter() - start) / count


def seconds(call: Call, count: int, inputs: int) -> float:
    """Of a call: the device's kernels where it tells, else by the wall."""
    return on_device(call, count, inputs) or wall(call, count, inputs)


def fitting(call: Call, inputs: int, most: int = 1000) -> int:
    """How many calls take about ``SECONDS``, after a warm-up."""
    wall(call, inputs, inputs)
    return max(1, min(most, int(SECONDS / wall(call, 1, inputs))))


def on_device(call: Call, count: int, inputs: int) -> float | None:
    """Mean seconds that the kernels of a call take on an NVIDIA GPU, launches left out.

    By CUPTI, as the profiler of Pallas' Mosaic GPU reads it; None where there is none.
    """
    if jax.default_backend() != "gpu":
        return None
    from jax.experimental.mosaic.gpu import profiler

    cupti = getattr(profiler.mosaic_gpu_lib, "_mosaic_gpu_ext", None)
    if cupti is None:
        return None
    call(0).block_until_ready()
    cupti._cupti_init()
    try:
        for result in [call(i % inputs) for i in range(count)]:
            result.block_until_ready()
    finally:
        kernels = cupti._cupti_get_timings(True)
    return sum(milliseconds for _, milliseconds in kernels) / count / 1e3 if kernels else None
