"""Measured block sizes: a table per kind of device, read from ``tuned.json``.

An entry says, for one problem on one kind of device, which block sizes were fastest and how the
kernel's time compared with XLA's. ``scripts/tune_kernels`` writes the table on the device.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ._problem import Problem

NEAR = math.log(2.0)
"""How far, in each dimension, a shape may be from a measured one: a factor of two."""

CLEAR = 1.05
"""How many times XLA's speed a kernel must have been measured at, to run unasked."""


class Tuned(NamedTuple):
    """What the table says about a problem.

    Attributes:
      wins: whether the kernel was measured to be clearly faster than XLA near this shape.
      reason: one sentence.
      blocks: the fastest block sizes near this shape; None: those that the kernel chooses.
    """

    wins: bool
    reason: str
    blocks: tuple[tuple[str, int], ...] | None = None


def is_hopper(kind: str) -> bool:
    """Whether a device kind is of NVIDIA's Hopper generation (compute capability 9.0)."""
    return any(name in kind for name in ("H100", "H200", "H800", "H20", "GH200"))


def table() -> dict[str, Any]:
    """The whole table: {implementation: {device kind: [entry, ...]}}.

    >>> sorted(table())
    ['mosaic_gpu', 'mosaic_tpu']
    """
    return _table()


@functools.cache
def _table() -> dict[str, Any]:
    text = importlib.resources.files(__package__).joinpath("tuned.json").read_text("utf-8")
    return json.loads(text)


def lookup(device_kind: str, implementation: str, problem: Problem) -> Tuned:
    """The nearest measured entry for a problem.

    Args:
      device_kind: JAX's name of the device.
      implementation: "mosaic_gpu" or "mosaic_tpu"; others have no entries.
      problem: operation, family, dtype and shape.

    Returns:
      Tuned.
    """
    where, entries = _measured(implementation, device_kind)
    if not entries:
        return Tuned(
            False,
            f"{implementation} was not measured on {device_kind}; scripts/tune_kernels measures it",
        )
    what = (problem.operation, problem.kind, problem.dtype)
    same = [e for e in entries if (e["operation"], e["kind"], e["dtype"]) == what]
    near = [(d, e) for e in same if (d := _distance(e["shape"], problem.shape)) <= NEAR]
    if not near:
        return Tuned(False, f"no measured shape of {' '.join(what)} is near {problem.shape}")
    _, best = min(near, key=lambda pair: pair[0])
    blocks = None if best["blocks"] is None else tuple(sorted(best["blocks"].items()))
    ratio = best["xla_over_kernel"]
    reason = f"measured {ratio:.2f}x XLA's speed at {tuple(best['shape'])} on {where}"
    if where != device_kind:
        reason += f", which has the multiprocessors of {device_kind}; not measured there"
    return Tuned(ratio > CLEAR, reason, blocks)


def _measured(implementation: str, device_kind: str) -> tuple[str, list[dict[str, Any]]]:
    """The kind whose measurements count, and they: a Hopper GPU has another's, if none of its own.

    Where kernels win they are bound by what a multiprocessor issues, which is alike in all of them.
    """
    devices = table().get(implementation, {})
    if device_kind in devices or not is_hopper(device_kind):
        return device_kind, devices.get(device_kind, [])
    return next(((k, e) for k, e in devices.items() if is_hopper(k)), (device_kind, []))


def _distance(a: list[int], b: tuple[int, ...]) -> float:
    return max(abs(math.log(max(x, 1) / max(y, 1))) for x, y in zip(a, b, strict=True))
