"""``rosler info``: what a run would run with."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata
from typing import Any

from rosler_jax.cli._command import Command, Outcome, table

PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex", "numpy", "orbax-checkpoint")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(args: argparse.Namespace) -> Outcome:
    """Gathers versions, devices and kernels."""
    from rosler_jax import __version__

    versions: dict[str, str | None] = {
        "rosler-jax": __version__,
        "python": platform.python_version(),
    }
    versions |= {name: _version(name) for name in PACKAGES}
    backend, devices = _devices()
    chosen, known, reason = _projection()
    data: dict[str, Any] = {
        "versions": versions,
        "platform": platform.platform(),
        "backend": backend,
        "devices": devices,
        "projection": chosen,
        "projection_reason": reason,
        "projection_implementations": known,
    }
    shown: list[tuple[str, object]] = [
        (name, version or "not installed") for name, version in versions.items()
    ]
    shown += [
        ("platform", data["platform"]),
        ("backend", backend),
        *((f"device {i}", device) for i, device in enumerate(devices)),
        ("projection kernel", f"{chosen} (of {', '.join(known)})"),
        ("because", reason),
    ]
    return Outcome(table(shown), data)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> tuple[str, list[str]]:
    """JAX's backend and the kinds of its devices; the reason, where JAX finds none."""
    import jax

    try:
        return jax.default_backend(), [device.device_kind for device in jax.devices()]
    except RuntimeError as error:
        return f"none: {error}", []


def _projection() -> tuple[str, list[str], str]:
    """The implementation that a projection runs by default, all there are, and the reason."""
    import rosler_kernels

    known = list(rosler_kernels.IMPLEMENTATIONS)
    try:
        choice = rosler_kernels.explain(rosler_kernels.rademacher(0, 1024, 64), (1024, 1024))
    except (RuntimeError, ValueError) as error:
        return "none", known, str(error)
    return choice.name, known, choice.reason


COMMAND = Command(
    summary="versions, devices, and which kernels would run",
    description="Shows versions, devices, and the implementation that projections would run with.",
    examples=("rosler info", "rosler info --json"),
    add_arguments=add_arguments,
    run=run,
)
