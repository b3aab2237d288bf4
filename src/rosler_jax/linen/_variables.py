"""The variables of a Linen sketch layer: seeds in ``"sketch"``, factors in ``"params"``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import linen as nn

from rosler_jax.nn._variables import WeightPlan, seed_words

if TYPE_CHECKING:
    from jaxtyping import Array

SEEDS = ("psi_seed", "omega_seed")


def layer_sketches(module: nn.Module, plan: WeightPlan) -> tuple[Any, Any]:
    """The sketches of a layer, from the seeds in ``"sketch"``; draws those at ``init``.

    Raises:
      ValueError: if ``apply`` is not given the seeds.
    """
    if not plan.sketched:
        return None, None
    if not module.has_variable("sketch", SEEDS[0]) and not module.is_mutable_collection("sketch"):
        raise ValueError(
            f"{module.name or type(module).__name__}: the seeds are missing; pass the collection "
            "'sketch' that init returned beside 'params'"
        )
    seeds = [
        module.variable("sketch", name, lambda: seed_words(module.make_rng("params"))).value
        for name in SEEDS
    ]
    return plan.sketches(*seeds)


def layer_params(
    module: nn.Module,
    plan: WeightPlan,
    make: Callable[[Array], dict[str, Array]],
    shapes: dict[str, tuple[int, ...]],
    features: int | None,
    bias_init: Callable[..., Array],
    param_dtype: Any,
) -> dict[str, Array]:
    """The parameters of a layer by name; ``make`` gives the factors, all from one key, at ``init``.

    ``features`` is the length of the bias, None for no bias.
    """
    values: dict[str, Array] = {}
    if module.is_mutable_collection("params") and not module.has_variable("params", next(iter(shapes))):
        values = make(module.make_rng("params"))

    def initial(name: str) -> Array:
        # Where there are no values the parameter exists, and Flax only compares the shape.
        if name in values:
            return values[name].astype(param_dtype)
        return jnp.zeros(shapes[name], param_dtype)

    params = {name: module.param(name, lambda _, name=name: initial(name)) for name in shapes}
    if plan.mode == "ares":
        params["parallel"] = module.param("parallel", lambda _: jnp.ones((), jnp.float32))
    if features is not None:
        params["bias"] = module.param("bias", bias_init, (features,), param_dtype)
    return params
