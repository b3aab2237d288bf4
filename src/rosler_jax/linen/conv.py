"""The Linen convolution layer whose kernel is held as sketches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from rosler_jax.nn._variables import WeightPlan

if TYPE_CHECKING:
    from jaxtyping import Array, Float


REFUSED = ("mask", "promote_dtype", "conv_general_dilated", "conv_general_dilated_cls")


class SketchConv(SketchedWeight):
    r"""A convolution whose kernel, unfolded to a matrix, is sketched; stands for ``linen.Conv``.

    The twin of :class:`rosler_jax.SketchConv`, with the same modes and the same parameters; with
    Linen's fields in Linen's order, so that ``partial(SketchConv, rank=4)`` stands for ``Conv``.

    Attributes:
      features: ``c_out``; ``c_in`` is the last dimension of the inputs.
      kernel_size: window, one size per spatial dimension.
      strides, padding, input_dilation, kernel_dilation, feature_group_count, use_bias, dtype,
        param_dtype, precision, bias_init: as in ``linen.Conv``; all of its padding modes work.
      mask, promote_dtype, conv_general_dilated, conv_general_dilated_cls: None; they act on a
        kernel, and there is none.
      rank: ``s`` of each group, at most ``min(window c_in / g, c_out / g)``; by keyword, as all
        that follow.
      kernel_init, mode, in_sketch, oversampling, sketch, weight_init, gain: as in
        :class:`SketchDense`.

    Raises:
      ValueError: for features not divisible by the groups, a rank that does not fit, an unknown
        mode or padding, or a field that acts on a kernel, when it meets its inputs; without the
        collection ``"sketch"``.

    Example:
      >>> import jax
      >>> layer = SketchConv(32, (3, 3), rank=4, strides=2)
      >>> variables = layer.init(jax.random.key(0), jnp.ones((2, 14, 14, 8)))
      >>> layer.apply(variables, jnp.ones((2, 14, 14, 8))).shape
      (2, 7, 7, 32)

    Source: our reading of Li et al. (2021), doi 10.1038/s43588-021-00039-6.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    padding: str | int | Sequence[int | tuple[int, int]] = "SAME"
    input_dilation: int | Sequence[int] | None = 1
    kernel_dilation: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    mask: None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: Callable[..., Any] | None = None
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    promote_dtype: None = None
    conv_general_dilated: None = None
    conv_general_dilated_cls: None = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "*batch cin"]) -> Float[Array, "*out cout"]:
        """Convolves; any number of batch dimensions, none included."""
        refuse_given(self, REFUSED)
        window, groups = self._window(), self.feature_group_count
        m, n = _forward.conv_matrix_shape(window, inputs.shape[-1], self.features, groups)
        plan = self._plan(m, n)
        lift, pad_mode = _forward.layer_lift(
            window, self.padding, strides=self.strides, input_dilation=self.input_dilation,
            kernel_dilation=self.kernel_dilation, groups=groups, precision=self.precision,
        )  # fmt: skip
        sketches = layer_sketches(self, plan)
        params = layer_params(
            self,
            plan,
            sketches,
            lambda key: self._factors(key, plan, sketches),
            self._shapes(plan),
            self.features if self.use_bias else None,
            self.bias_init,
            self.param_dtype,
        )
        return _forward.conv(inputs, params, sketches, lift, pad_mode, self.dtype)

    def _window(self) -> tuple[int, ...]:
        size = self.kernel_size
        return (size,) if isinstance(size, int) else tuple(size)

    def _factors(self, key: Array, plan: WeightPlan, sketches: tuple[Any, Any]) -> dict[str, Array]:
        groups, window = self.feature_group_count, self._window()
        kernels = _forward.conv_kernels(
            self.kernel_init, window, (plan.m, plan.n), groups, self.param_dtype
        )
        values = plan.group_factors(key, groups, *sketches, kernels)
        if "c" in values:
            values["c"] = _forward.fold_window(values["c"], window)
        return values

    def _shapes(self, plan: WeightPlan) -> dict[str, tuple[int, ...]]:
        groups = self.feature_group_count
        shapes: dict[str, tuple[int, ...]] = {
            name: (groups, *shape) for name, shape in plan.shapes().items()
        }
        if "c" in shapes:
            shapes["c"] = _forward.folded_shape(plan.m, plan.rank, groups, self._window())
        return shapes
