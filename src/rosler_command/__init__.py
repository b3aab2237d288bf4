"""The program ``rosler``: a module of its own, so that Ctrl-C while it imports ends it quietly."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> int:
    """Runs ``rosler`` with the arguments of the process; gives the exit code."""
    try:
        from rosler_jax.cli import main as run  # takes seconds: JAX comes with it

        return run()
    except KeyboardInterrupt:
        print("rosler: error: interrupted before anything was done", file=sys.stderr)
        return INTERRUPTED
