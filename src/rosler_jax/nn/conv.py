"""The NNX convolution layer whose kernel is held as sketches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
from flax import nnx

from rosler_jax.initializers import RANGE_FINDER_GAIN
from rosler_jax.nn import _forward
from rosler_jax.nn._module import SketchModule, reshard
from rosler_jax.nn._variables import Mode, plan_weight

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Num


class SketchConv(SketchModule):
    r"""A convolution whose kernel, unfolded to ``W (window c_in / g, c_out / g)``, is sketched.

    C is a convolution with ``rank`` filters, U and R are 1x1 convolutions; the modes are those of
    :class:`SketchLinear`. With ``feature_group_count = g`` each group has factors of its own.

    Args:
      in_features: ``c_in``.
      out_features: ``c_out``.
      kernel_size: window, one size per spatial dimension.
      rank: ``s`` of each group, at most ``min(window c_in / g, c_out / g)``.
      strides, padding, input_dilation, kernel_dilation, feature_group_count, precision: as in
        ``nnx.Conv``; all of its padding modes work.
      mode, in_sketch, oversampling, sketch, init, gain, use_bias, dtype, param_dtype, bias_init,
        kernel_init, rngs: as in :class:`SketchLinear`.

    Raises:
      ValueError: for features not divisible by the groups, a rank that does not fit, an unknown
        mode or padding.

    Example:
      >>> from flax import nnx
      >>> layer = SketchConv(8, 32, (3, 3), rank=4, strides=2, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 14, 14, 8))).shape
      (2, 7, 7, 32)

    Source: our reading of Li et al. (2021), doi 10.1038/s43588-021-00039-6.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        rank: int,
        strides: int | Sequence[int] | None = 1,
        *,
        padding: str | int | Sequence[int | tuple[int, int]] = "SAME",
        input_dilation: int | Sequence[int] | None = 1,
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
        precision: Any = None,
        mode: Mode = "chain",
        in_sketch: int | None = None,
        oversampling: int | None = None,
        sketch: str | None = None,
        init: Literal["glorot", "he"] | None = None,
        gain: float = RANGE_FINDER_GAIN,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        bias_init: Any = nnx.initializers.zeros_init(),
        kernel_init: Any = None,
        rngs: nnx.Rngs,
    ):
        window = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
        groups = feature_group_count
        m, n = _forward.conv_matrix_shape(window, in_features, out_features, groups)
        plan = plan_weight(
            m, n, rank, mode=mode, in_sketch=in_sketch,
            oversampling=oversampling, sketch=sketch, init=init, gain=gain,
        )  # fmt: skip
        self.in_features, self.out_features, self.kernel_size = in_features, out_features, window
        self.use_bias, self.feature_group_count = use_bias, groups
        self.dtype, self.param_dtype = dtype, param_dtype
        self.lift, self.pad_mode = _forward.layer_lift(
            window, padding, strides=strides, input_dilation=input_dilation,
            kernel_dilation=kernel_dilation, groups=groups, precision=precision,
        )  # fmt: skip
        key = self._make_seeds(plan, rngs)
        kernels = _forward.conv_kernels(kernel_init, window, (m, n), groups, param_dtype)
        values = plan.group_factors(key, groups, *self.sketches(), kernels)
        if "c" in values:
            values["c"] = _forward.fold_window(values["c"], window)
        bias_shape = (out_features,) if use_bias else None
        self._make_params(values, bias_shape, bias_init, param_dtype, rngs)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(m, n)`` of the unfolded kernel of one group."""
        return self.plan.m, self.plan.n

    def __call__(
        self, x: Num[Array, "*batch cin"], out_sharding: Any = None
    ) -> Float[Array, "*out cout"]:
        """Convolves; any number of batch dimensions, none included."""
        y = _forward.conv(x, self._params(), self.sketches(), self.lift, self.pad_mode, self.dtype)
        return reshard(y, out_sharding)
