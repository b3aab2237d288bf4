"""Models of users that the tests of sweeps train, by reference."""

from __future__ import annotations

from typing import Any

from flax import linen


class Net(linen.Module):
    """Two dense layers of Linen with batch normalisation between."""

    outputs: int

    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = linen.Dense(24, name="first")(x.reshape(len(x), -1))
        x = linen.relu(linen.BatchNorm(use_running_average=not train, name="norm")(x))
        return linen.Dense(self.outputs, name="head")(x)


def build(outputs: int) -> linen.Module:
    """The net."""
    return Net(outputs)
