"""The command line ``rosler``."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``rosler`` with these arguments.

    Args:
      argv: arguments without the program's name; None for those of the process.

    Returns:
      The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Example:
      >>> main(["size", "--bits-of-cake"])
      2
    """
    from rosler_jax.cli._main import run

    return run(argv)
