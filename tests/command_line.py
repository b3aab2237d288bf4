"""The command `rosler` in the process of a test, which starts at once."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from rosler_jax.cli import main


class Done(NamedTuple):
    code: int
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], *argv: object) -> Done:
    """Runs `rosler argv` in this process."""
    capsys.readouterr()
    code = main([str(a) for a in argv])
    return Done(code, *capsys.readouterr())
