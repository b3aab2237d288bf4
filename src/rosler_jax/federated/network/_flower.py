"""Flower, imported when it is needed and kept from looking up hosts of its own."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import re
from collections.abc import Iterator

EXTRA = "pip install 'rosler-jax[federated]'"
OLDEST, TOO_NEW = (1, 41), (1, 43)


def need_flower(launcher: bool = False) -> None:
    """Makes sure that Flower can be used, and that it reports nothing about its use.

    Args:
      launcher: whether its inner parts are needed, which change from one version to the next,
        and not only its apps and messages.

    Raises:
      ImportError: if it is missing, or of a version whose inner parts are others.
    """
    try:
        version = importlib.metadata.version("flwr")
        import flwr.supercore.telemetry as telemetry
    except ImportError as error:
        raise ImportError(
            f"federated learning over a network needs Flower (flwr); install it with {EXTRA}"
        ) from error
    if "FLWR_TELEMETRY_ENABLED" not in os.environ:  # the user's own word counts
        telemetry.FLWR_TELEMETRY_ENABLED = "0"
    if launcher and not OLDEST <= version_of(version) < TOO_NEW:
        raise ImportError(
            f"flwr is {version}, but serve and join need at least {_dotted(OLDEST)} and less than "
            f"{_dotted(TOO_NEW)}, whose inner parts they use; install it with {EXTRA}"
        )


def version_of(text: str) -> tuple[int, ...]:
    """The first two numbers of a version.

    Example:
      >>> version_of("1.42.0rc1")
      (1, 42)
    """
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@contextlib.contextmanager
def quiet_flower() -> Iterator[None]:
    """Keeps the running commentary of Flower, and of what it uses, from stderr; not warnings."""
    logs = [logging.getLogger(name) for name in ("flwr", "httpx", "uvicorn", "alembic")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)
