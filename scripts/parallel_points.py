"""Where the parallel stage is measured: a base point, and one thing changed at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import parallel_variants as variants
from bench_step import CLASSES, INPUTS


class Point(NamedTuple):
    """What is measured at: the base point, or one thing changed."""

    rank: int = 16
    length: float = 1.0  # of the parallel stage, in epochs
    sketch: str = "gaussian"
    batch: int = 128
    depth: int = 2  # hidden layers
    width: int = 512

    def hidden(self) -> list[int]:
        """The widths of the hidden layers."""
        return [self.width] * self.depth


BASE = Point()
VALUES: dict[str, list[Any]] = {
    "length": [0.1, 0.5, 1.0, 2.0, 4.0],
    "rank": [4, 8, 16, 32],
    "sketch": ["gaussian", "rademacher", "srht", "rows_uniform", "sparse_sign"],
    "batch": [32, 128, 512],
    "depth": [1, 2, 4, 8],
}
FIELDS = {"length": "parallel_epochs", "batch": "batch_size"}  # by other names in a run


def points_along(factor: str, values: Sequence[Any] | None = None) -> list[Point]:
    """The points of a factor's values."""
    return [BASE._replace(**{factor: v}) for v in values or VALUES[factor]]


def network_of(key: Any) -> Any:
    """A new network at the base point."""
    return variants.new_network(key, INPUTS, BASE.hidden(), CLASSES, BASE.rank)
