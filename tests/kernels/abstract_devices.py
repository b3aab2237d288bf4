"""Devices that are not there, to lower kernels for."""

from __future__ import annotations

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

H100 = "NVIDIA H100 80GB HBM3"


def mesh_of(platform: str, kind: str, size: int, axis: str) -> AbstractMesh:
    """A mesh of so many devices of a kind, divided by the compiler."""
    named = {"platform": platform} if jax.__version_info__ >= (0, 10, 1) else {}
    device = AbstractDevice(device_kind=kind, num_cores=1, **named)
    return AbstractMesh((size,), (axis,), (AxisType.Auto,), abstract_device=device)
