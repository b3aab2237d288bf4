"""The NNX linear layer of two plain factors: what a sketched layer is folded to, and a baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

import rosler_kernels as rk
from rosler_jax.factors import check_rank
from rosler_jax.initializers import glorot_stddev
from rosler_jax.nn._thin import thin_dot
from rosler_jax.nn._variables import SketchParam

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Num


class TwoFactorLinear(nnx.Module):
    r"""A linear layer ``y = (x C) R + b``: the smallest learnt low-rank form.

    Initialised as the truncated SVD of a Glorot matrix would be in distribution: orthonormal
    singular vectors, singular values split evenly, the product scaled to Glorot's variance of the
    kept part.

    Args:
      in_features: ``m``.
      out_features: ``n``.
      rank: ``s``, at most ``min(m, n)``.
      use_bias, dtype, param_dtype, bias_init, rngs: as in :class:`SketchLinear`.

    Raises:
      ValueError: if the rank does not fit.

    Example:
      >>> from flax import nnx
      >>> TwoFactorLinear(20, 30, rank=4, rngs=nnx.Rngs(0))(jnp.ones((2, 20))).shape
      (2, 30)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        bias_init: Any = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        check_rank(rank, in_features, out_features)
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.use_bias, self.dtype, self.param_dtype = use_bias, dtype, param_dtype
        orthogonal = jax.nn.initializers.orthogonal()
        # The leading singular values of a Glorot matrix: just under sqrt(m) + sqrt(n) deviations.
        sigma = glorot_stddev(in_features, out_features) * (in_features**0.5 + out_features**0.5)
        root = jnp.sqrt(jnp.asarray(sigma, param_dtype))
        wide = rk.accumulator(param_dtype)  # no QR in half precision
        c = orthogonal(rngs.params(), (in_features, rank), wide).astype(param_dtype)
        r = orthogonal(rngs.params(), (rank, out_features), wide).astype(param_dtype)
        self.c, self.r = SketchParam(root * c), SketchParam(root * r)
        self.bias = (
            nnx.Param(bias_init(rngs.params(), (out_features,), param_dtype)) if use_bias else None
        )

    def __call__(self, x: Num[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        """Computes ``(x C) R + b``."""
        names = [v for v in (self.c, self.r, self.bias) if v is not None]
        x, c, r, *bias = dtypes.promote_dtype((x, *(v[...] for v in names)), dtype=self.dtype)
        y = thin_dot(x, c) @ r
        return y + jnp.reshape(bias[0], (1,) * (y.ndim - 1) + (-1,)) if bias else y
