"""The NNX convolution layer whose kernel is held as sketches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from rosler_jax.initializers import RANGE_FINDER_GAIN
from rosler_jax.nn import functional
from rosler_jax.nn._variables import (
    Mode,
    SketchParam,
    SketchSeed,
    check_mode,
    co_range_dimension,
    init_factors,
    layer_sketches,
    seed_words,
)
from rosler_jax.nn.lifts import ConvLift, conv_lift, pad_input

if TYPE_CHECKING:
    from jaxtyping import Array, Float

INPUT_PADDINGS = ("CIRCULAR", "CAUSAL", "REFLECT")


class SketchConv(nnx.Module):
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
        rngs: as in :class:`SketchLinear`.

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
        rngs: nnx.Rngs,
    ):
        check_mode(mode)
        g = feature_group_count
        if in_features % g or out_features % g:
            raise ValueError(
                f"in_features={in_features} and out_features={out_features} must both be multiples "
                f"of feature_group_count={g}"
            )
        window = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
        self.in_features, self.out_features, self.kernel_size = in_features, out_features, window
        self.rank, self.mode, self.use_bias, self.feature_group_count = rank, mode, use_bias, g
        self.dtype, self.param_dtype = dtype, param_dtype
        self.pad_mode = padding if padding in INPUT_PADDINGS else None
        self.lift: ConvLift = conv_lift(
            window,
            strides=strides,
            padding="VALID" if padding in INPUT_PADDINGS else padding,  # type: ignore[arg-type]
            input_dilation=input_dilation,
            kernel_dilation=kernel_dilation,
            groups=g,
            precision=precision,
        )
        self.sketch = sketch or ("srht" if mode == "seeded" else "gaussian")
        m, n = self.matrix_shape
        if mode == "seeded":
            self.inner = in_sketch or min(8 * rank, m)
        else:
            self.inner = co_range_dimension(rank, m, n, oversampling)
        key = rngs.params()
        if mode == "chain":
            self.psi_seed = self.omega_seed = None
        else:
            self.psi_seed = SketchSeed(seed_words(rngs.params()))
            self.omega_seed = SketchSeed(seed_words(rngs.params()))
        values = self._init_values(key, init or ("he" if mode == "seeded" else "glorot"), gain)
        self.c = SketchParam(values["c"].astype(param_dtype)) if "c" in values else None
        self.u = SketchParam(values["u"].astype(param_dtype))
        self.r = SketchParam(values["r"].astype(param_dtype)) if "r" in values else None
        self.parallel = SketchParam(jnp.ones(())) if mode == "ares" else None
        self.bias = (
            nnx.Param(bias_init(rngs.params(), (out_features,), param_dtype)) if use_bias else None
        )

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(m, n)`` of the unfolded kernel of one group."""
        g = self.feature_group_count
        return math.prod(self.kernel_size) * self.in_features // g, self.out_features // g

    def sketches(self) -> tuple[Any, Any]:
        """The pair ``(Psi, Omega)`` of this layer, or ``(None, None)`` in chain mode."""
        seeds = [None if v is None else v[...] for v in (self.psi_seed, self.omega_seed)]
        m, n = self.matrix_shape
        return layer_sketches(self.mode, self.sketch, *seeds, m, n, self.rank, self.inner)

    def _init_values(self, key: Array, init: Literal["glorot", "he"], gain: float) -> dict[str, Array]:
        """Factors of all groups; C's window unfolded again, its columns group by group."""
        psi, omega = self.sketches()
        m, n = self.matrix_shape

        def one(k: Array) -> dict[str, Array]:
            return init_factors(
                k, m, n, self.rank, self.mode, init=init, gain=gain, psi=psi, omega=omega
            )

        values = jax.vmap(one)(jax.random.split(key, self.feature_group_count))
        if "c" in values:
            shape = (*self.kernel_size, self.in_features // self.feature_group_count, -1)
            values["c"] = values["c"].transpose(1, 0, 2).reshape(shape)
        return values

    def __call__(self, x: Float[Array, "*batch cin"]) -> Float[Array, "*batch cout"]:
        """Convolves; any number of batch dimensions, none included."""
        features = len(self.kernel_size) + 1
        batch = x.shape[: x.ndim - features]
        x = x.reshape(-1, *x.shape[x.ndim - features :])
        names = [v for v in (self.c, self.u, self.r, self.bias) if v is not None]
        x, *values = dtypes.promote_dtype((x, *(v[...] for v in names)), dtype=self.dtype)
        bias = values.pop() if self.use_bias else None
        psi, omega = self.sketches()
        if self.pad_mode is not None:
            x = pad_input(x, self.lift, str(self.pad_mode))
        if self.mode == "seeded":
            y = functional.seeded_conv(x, values[0], self.lift, psi=psi, omega=omega)
        else:
            parallel = None if self.parallel is None else self.parallel[...]
            y = functional.sketch_conv(
                x, *values, self.lift, parallel=parallel, psi=psi, omega=omega
            )
        y = y if bias is None else y + jnp.reshape(bias, (1,) * (y.ndim - 1) + (-1,))
        return y.reshape(*batch, *y.shape[1:])
