"""A run that is stopped after an epoch, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rosler_jax import run
from rosler_jax.config import TrainConfig


class _Stop(Exception):
    pass


def train_in_parts(config: TrainConfig, folder: Path, epochs: int) -> dict[str, Any]:
    """What the run ends with that was stopped after so many epochs."""

    def interrupt(row: dict[str, float]) -> None:
        if row["epoch"] == epochs:
            raise _Stop

    with pytest.raises(_Stop):
        run.train(config, folder, report=interrupt)
    return run.train(None, folder, resume=True)
