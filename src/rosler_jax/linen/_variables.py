"""The variables of a Linen sketch layer: seeds in ``"sketch"``, factors in ``"params"``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
from flax import linen as nn

from rosler_jax.initializers import RANGE_FINDER_GAIN
from rosler_jax.nn._fingerprint import fingerprint
from rosler_jax.nn._variables import Mode, WeightPlan, plan_weight, seed_words

if TYPE_CHECKING:
    from jaxtyping import Array

SEEDS = ("psi_seed", "omega_seed")


class SketchedWeight(nn.Module):
    """A Linen layer with one sketched weight: the fields that say how it is held, by keyword.

    Attributes:
      rank, mode, in_sketch, oversampling, sketch, weight_init, gain: as in :class:`SketchDense`.
    """

    _: dataclasses.KW_ONLY
    rank: int
    mode: Mode = "chain"
    in_sketch: int | None = None
    oversampling: int | None = None
    sketch: str | None = None
    weight_init: Literal["glorot", "he"] | None = None
    gain: float = RANGE_FINDER_GAIN

    def _plan(self, m: int, n: int) -> WeightPlan:
        """The plan of an ``(m, n)`` weight."""
        return plan_weight(
            m, n, self.rank, mode=self.mode, in_sketch=self.in_sketch,
            oversampling=self.oversampling, sketch=self.sketch, init=self.weight_init,
            gain=self.gain,
        )  # fmt: skip


def refuse_given(module: nn.Module, names: Sequence[str]) -> None:
    """Refuses fields of Flax's layer that act on a kernel, which a sketch layer never forms."""
    for name in names:
        if getattr(module, name) is not None:
            raise ValueError(
                f"{_path(module)}: {name} acts on a kernel, and a sketched weight is never formed; "
                "leave it out"
            )


def _path(module: nn.Module) -> str:
    return "/".join(module.path) or type(module).__name__


def layer_sketches(module: nn.Module, plan: WeightPlan) -> tuple[Any, Any]:
    """The sketches of a layer, from the seeds in ``"sketch"``; draws those at ``init``.

    Raises:
      ValueError: if ``apply`` is not given the seeds.
    """
    if not plan.sketched:
        return None, None
    if not module.has_variable("sketch", SEEDS[0]) and not module.is_mutable_collection("sketch"):
        lifted = (
            "name the collection among the variable_axes of nn.scan or nn.vmap: {'params': 0, "
            "'sketch': 0}"
        )
        given = "pass the collection 'sketch' that init returned beside 'params'; within a stack "
        raise ValueError(
            f"{_path(module)}: the seeds of its sketches are missing; "
            f"{lifted if module.is_initializing() else given + lifted}"
        )
    seeds = [
        module.variable("sketch", name, lambda: seed_words(module.make_rng("params"))).value
        for name in SEEDS
    ]
    return plan.sketches(*seeds)


def layer_params(
    module: nn.Module,
    plan: WeightPlan,
    sketches: tuple[Any, Any],
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
    first = next(iter(shapes))
    if module.is_mutable_collection("params") and not module.has_variable("params", first):
        values = make(module.make_rng("params"))

    def initial(name: str) -> Array:
        # Where there are no values the parameter exists, and Flax only compares the shape.
        if name in values:
            return values[name].astype(param_dtype)
        return jnp.zeros(shapes[name], param_dtype)

    params = {name: module.param(name, lambda _, name=name: initial(name)) for name in shapes}
    if plan.mode == "ares":
        params["parallel"] = module.param("parallel", lambda _: jnp.ones((), jnp.float32))
    if plan.mode == "seeded":
        params["fingerprint"] = module.param("fingerprint", lambda _: fingerprint(*sketches))
    if features is not None:
        params["bias"] = module.param("bias", bias_init, (features,), param_dtype)
    return params
