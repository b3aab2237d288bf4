"""``python -m rosler_jax``: the same as ``rosler``."""

from __future__ import annotations

import sys

from rosler_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
