"""Layers that add a delta's thin product to their own output, in the manner of LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from rosler_jax import _convert, _replace
from rosler_jax._convert import Rule
from rosler_jax.delta._forms import FORMS
from rosler_jax.delta.seeded_delta import SeededDelta
from rosler_jax.nn import SketchLinear

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from rosler_jax.delta.seeded_delta import Tuned

LAYERS = (nnx.Linear, nnx.LinearGeneral, nnx.Einsum)


class DeltaParam(nnx.Variable[Any]):
    """The numbers of a delta: what ``nnx.Optimizer(model, tx, wrt=DeltaParam)`` trains.

    Example:
      >>> z = DeltaParam(jnp.zeros(20))
      >>> z.shape, isinstance(z, nnx.Param)  # wrt=nnx.Param leaves it alone
      ((20,), False)
    """


class DeltaBasis(nnx.Variable[Any]):
    """What seed and base model make of a delta; never trained, in no file."""


class Injected(nnx.Module):
    """A layer with a delta beside it: ``base(x) + ((x C) U) R``, the factors functions of ``z``.

    Attributes:
      base: the layer as it was.
      z: the numbers of the whole delta, shared by all its layers.
      weight: which of its weights this is.

    Example:
      >>> from rosler_jax.delta import seeded_delta
      >>> def make():
      ...     model = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
      ...     return inject(model, seeded_delta(model, form="lora-xs", rank=2))
      >>> layer = nnx.eval_shape(make)
      >>> type(layer).__name__, type(layer.base).__name__, layer.weight.name, layer.z.shape
      ('Injected', 'Linear', 'kernel', (4,))
    """

    def __init__(self, base: Any, z: DeltaParam, delta: SeededDelta, weight: Tuned):
        self.base, self.z = base, z
        self.weight, self.plan = nnx.static(weight), nnx.static(delta.plan)
        self.bases = nnx.List([DeltaBasis(a) for a in delta.bases[weight.name]])
        rule = Rule("*", delta.plan.rank, mode="chain")
        side = _convert._make(base, rule, delta.plan.rank, nnx.Rngs(0))
        graphdef, state = nnx.split(side)
        self.side = nnx.static(graphdef)
        self.kinds = nnx.static(
            tuple((str(path[0]), type(v)) for path, v in nnx.to_flat_state(state))
        )
        self.single = isinstance(side, SketchLinear)

    def __call__(self, x: Float[Array, "..."], *args: Any, **options: Any) -> Float[Array, "..."]:
        """The layer's output for ``x``, and the delta's."""
        bases = {self.weight.name: tuple(basis[...] for basis in self.bases)}
        found = SeededDelta(self.plan, bases).factors(self.weight, self.z[...])
        assert found is not None
        factors = [a[0] if self.single else a for a in found]
        values = dict(zip(("c", "u", "r"), factors, strict=True))
        dtype = self.base.param_dtype
        state = nnx.State({k: kind(values[k].astype(dtype)) for k, kind in self.kinds})
        y = self.base(x, *args, **options)
        return y + nnx.merge(self.side, state)(x, *args, **options).astype(y.dtype)


def inject(model: nnx.Module, delta: SeededDelta, z: Float[Array, " k"] | None = None) -> Any:
    """The model with a delta's thin products beside its layers.

    It computes what ``delta.apply(model, z)`` does without forming a change of a weight: a step
    costs the thin products, and keeps no gradient of a weight's size. All layers share one variable
    of k numbers, ``DeltaParam``.

    Args:
      model: an NNX model; it is not changed.
      delta: of a form that has factors, of ``nnx.Linear``, ``nnx.LinearGeneral`` and ``nnx.Einsum``
        layers.
      z: its numbers; zeros by default.

    Returns:
      The new model.

    Raises:
      ValueError: for a delta without factors, or one that changes other layers, or stacks of them.

    Example:
      >>> import jax, optax
      >>> from rosler_jax.delta import inject, seeded_delta
      >>> model = nnx.MultiHeadAttention(4, 32, decode=False, rngs=nnx.Rngs(0))
      >>> tuned = inject(model, seeded_delta(model, 64, form="lora", rank=2))
      >>> optimizer = nnx.Optimizer(tuned, optax.adam(1e-2), wrt=DeltaParam)
      >>> loss = lambda m: (m(jnp.ones((1, 3, 32))) ** 2).mean()
      >>> @nnx.jit
      ... def step(tuned, optimizer):
      ...     grads = nnx.grad(loss, argnums=nnx.DiffState(0, DeltaParam))(tuned)
      ...     optimizer.update(tuned, grads)
      >>> step(tuned, optimizer)
      >>> [v.shape for v in jax.tree.leaves(nnx.state(tuned, DeltaParam))]
      [(64,)]
    """
    if FORMS[delta.plan.form].factors is None:
        raise ValueError(f"form {delta.plan.form!r} has no factors; use delta.apply")
    copy, left = nnx.clone(model), {weight.name: weight for weight in delta.plan.weights}
    shared = DeltaParam(delta.start() if z is None else jnp.asarray(z))

    def decide(layer: Any, path: str) -> Any:
        weight = left.get(f"{path.replace('.', '/')}/kernel".lstrip("/"))
        if weight is None:
            return layer
        if layer.kernel[...].ndim != len(_convert.parts_of(layer)["kernel"].shape):
            raise ValueError(f"{weight.name!r} is of a stack of layers; use delta.apply")
        del left[weight.name]
        return Injected(layer, shared, delta, weight)

    new = _replace.replace(copy, lambda node: type(node) in LAYERS, decide)
    if left:
        raise ValueError(
            f"{sorted(left)[0]!r} is not of a Linear, LinearGeneral or Einsum layer; leave it out "
            "of wrt, or use delta.apply"
        )
    return new
