"""The seeds of a model: what its parameters mean nothing without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from rosler_jax.nn._variables import SketchSeed

SketchState = nnx.Any(nnx.Param, SketchSeed)
"""A filter, in the place of ``nnx.Param``: the parameters and the seeds that they belong to."""


def seeds_of(model: Any) -> dict[str, tuple[int, ...]]:
    """The seeds of all sketches of a model, by path: plain integers, to be stored as JSON.

    Args:
      model: an NNX module whose seeds are not traced.

    Returns:
      Paths joined by dots to seed words; those of a stack of layers one after another.

    Example:
      >>> from rosler_jax import SketchLinear
      >>> layer = SketchLinear(20, 30, rank=4, mode="seeded", rngs=nnx.Rngs(0))
      >>> {path: len(words) for path, words in seeds_of(layer).items()}
      {'omega_seed': 2, 'psi_seed': 2}
    """
    flat = nnx.to_flat_state(nnx.state(model, SketchSeed))
    return {
        ".".join(map(str, path)): tuple(map(int, jax.device_get(v[...]).reshape(-1)))
        for path, v in flat
    }


def check_seeds(model: Any, seeds: Mapping[str, Sequence[int]]) -> None:
    """Refuses a model whose sketches are not those that its parameters were trained with.

    Args:
      model: an NNX module, its parameters restored.
      seeds: what :func:`seeds_of` gave for the model that was trained.

    Raises:
      ValueError: if a seed is missing, left over, or another.

    Example:
      >>> from rosler_jax import SketchLinear
      >>> layer = SketchLinear(20, 30, rank=4, mode="seeded", rngs=nnx.Rngs(0))
      >>> check_seeds(layer, seeds_of(layer))
    """
    here = seeds_of(model)
    wrong = [
        path
        for path in sorted({*here, *seeds})
        if path not in here or path not in seeds or here[path] != tuple(seeds[path])
    ]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)}: other seeds than the parameters were trained with; store and "
            "restore nnx.state(model, rosler_jax.SketchState), not nnx.Param alone"
        )
