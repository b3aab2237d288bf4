"""What the NNX sketch layers have in common: their variables, made from the plan of the weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from rosler_jax.nn._fingerprint import fingerprint
from rosler_jax.nn._variables import SketchParam, SketchSeed, WeightPlan, seed_words

if TYPE_CHECKING:
    from jaxtyping import Array


NAMES = ("c", "u", "r", "parallel", "fingerprint", "bias")


class SketchModule(nnx.Module):
    """An NNX module with one sketched weight; its subclasses say what the weight does."""

    def _make_seeds(self, plan: WeightPlan, rngs: nnx.Rngs) -> Array:
        """Sets the seeds of the sketches; returns the key of the virtual matrix."""
        self.plan = plan
        self.rank, self.mode = plan.rank, plan.mode
        self.sketch, self.inner = plan.sketch, plan.inner
        key = rngs.params()
        if not plan.sketched:
            self.psi_seed = self.omega_seed = None
        else:
            self.psi_seed = SketchSeed(seed_words(rngs.params()))
            self.omega_seed = SketchSeed(seed_words(rngs.params()))
        return key

    def _make_params(
        self,
        values: dict[str, Array],
        bias_shape: tuple[int, ...] | None,
        bias_init: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Sets the parameters: factors, flag of the parallel stage, fingerprint, bias."""
        self.c = SketchParam(values["c"].astype(param_dtype)) if "c" in values else None
        self.u = SketchParam(values["u"].astype(param_dtype)) if "u" in values else None
        self.r = SketchParam(values["r"].astype(param_dtype)) if "r" in values else None
        self.parallel = SketchParam(jnp.ones((), jnp.float32)) if self.mode == "ares" else None
        self.fingerprint = (
            SketchParam(fingerprint(*self.sketches())) if self.mode == "seeded" else None
        )
        self.bias = (
            None
            if bias_shape is None
            else nnx.Param(bias_init(rngs.params(), bias_shape, param_dtype))
        )

    def _params(self) -> dict[str, Array]:
        """The parameters that there are, by name."""
        variables = {name: getattr(self, name) for name in NAMES}
        return {name: v[...] for name, v in variables.items() if v is not None}

    def sketches(self) -> tuple[Any, Any]:
        """The pair ``(Psi, Omega)`` of this layer, or ``(None, None)`` where it has no seeds."""
        psi, omega = (None if v is None else v[...] for v in (self.psi_seed, self.omega_seed))
        return self.plan.sketches(psi, omega)


def reshard(y: Array, out_sharding: Any) -> Array:
    """Lays the outputs out as asked; None leaves that to the compiler."""
    return y if out_sharding is None else jax.reshard(y, out_sharding)
