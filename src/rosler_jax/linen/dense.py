"""The Linen linear layer whose weight is held as sketches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import linen as nn

from rosler_jax.linen._variables import (
    SketchedWeight,
    layer_params,
    layer_sketches,
    refuse_given,
)
from rosler_jax.nn import _forward
from rosler_jax.nn._variables import drawn_kernel

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class SketchDense(SketchedWeight):
    r"""A linear layer ``y = x W + b`` whose ``W (m, n)`` is sketched; stands for ``linen.Dense``.

    The twin of :class:`rosler_jax.SketchLinear`, with the same modes and the same parameters; with
    Linen's fields in Linen's order, so that ``partial(SketchDense, rank=4)`` stands for ``Dense``.

    Attributes:
      features: ``n``; ``m`` is the last dimension of the inputs.
      use_bias, dtype, param_dtype, precision, bias_init: as in ``linen.Dense``.
      kernel_init: initialiser of a matrix that is drawn once, whole, and whose best approximation
        the layer starts from; None for a virtual matrix, never formed.
      promote_dtype, dot_general, dot_general_cls: None; they act on a kernel, and there is none.
      rank: ``s``, at most ``min(m, n)``; by keyword, as all that follow.
      mode, in_sketch, oversampling, sketch, gain: as in :class:`rosler_jax.SketchLinear`.
      weight_init: what is ``init`` there; in Linen that is the name of a method.

    Raises:
      ValueError: for a rank that does not fit, an unknown mode or a field that acts on a kernel,
        when it meets its inputs; without the collection ``"sketch"``.

    Example:
      >>> import jax
      >>> layer = SketchDense(30, rank=4, mode="ares")
      >>> variables = layer.init(jax.random.key(0), jnp.ones((2, 20)))
      >>> jax.tree.map(jnp.shape, variables["params"])
      {'bias': (30,), 'c': (20, 4), 'parallel': (), 'r': (8, 30), 'u': (4, 8)}
      >>> layer.apply(variables, jnp.ones((2, 20))).shape
      (2, 30)

    Source: our reading of Li et al. (2021), doi 10.1038/s43588-021-00039-6.
    """

    features: int
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: Callable[..., Any] | None = None
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    promote_dtype: None = None
    dot_general: None = None
    dot_general_cls: None = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        """Computes ``x W + b`` through the thin side."""
        refuse_given(self, ("promote_dtype", "dot_general", "dot_general_cls"))
        plan = self._plan(inputs.shape[-1], self.features)
        sketches = layer_sketches(self, plan)
        kernel = drawn_kernel(self.kernel_init, (plan.m, plan.n), self.param_dtype)
        params = layer_params(
            self,
            plan,
            sketches,
            lambda key: plan.factors(key, *sketches, kernel),
            dict(plan.shapes()),
            self.features if self.use_bias else None,
            self.bias_init,
            self.param_dtype,
        )
        return _forward.dense(inputs, params, sketches, self.dtype, self.precision)
