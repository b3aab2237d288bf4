"""A model whose clients train a seeded delta of it: a few numbers, wherever its weights are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from rosler_jax.delta import seeded_delta
from rosler_jax.learner import KEYS

if TYPE_CHECKING:
    from jaxtyping import Array, Key, PyTree

    from rosler_jax.learner import Learner


def delta_learner(learner: Learner, key: Key[Array, ""], k: int, seed: int) -> Learner:
    """The same model as a function of ``k`` numbers ``z``: ``W0 + P z`` of all its matrices.

    ``W0`` are the initial weights, which a key makes again anywhere; see
    :func:`rosler_jax.seeded_delta`.

    Args:
      learner: of the whole model.
      key: that the run initialises it by.
      k: how many numbers.
      seed: of the delta.

    Raises:
      ValueError: for more numbers than the matrices have.
    """
    base, buffers0 = jax.jit(learner.init)(key)
    delta = seeded_delta(base, k, seed, form="full", view=learner.views)

    def whole(params: PyTree) -> PyTree:
        return delta.apply(base, params["z"])

    def init(key: Any) -> tuple[PyTree, PyTree]:
        del key
        return {"z": delta.start()}, buffers0

    def apply(params: PyTree, buffers: PyTree, x: Array, train: bool) -> tuple[Any, PyTree]:
        return learner.apply(whole(params), buffers, x, train)

    return learner._replace(
        init=init, apply=apply, model=lambda params, buffers: learner.model(whole(params), buffers)
    )


def model_key(seed: int) -> Key[Array, ""]:
    """The key that a run of that seed initialises its model by."""
    return jax.random.split(jax.random.key(seed, impl=KEYS))[0]
