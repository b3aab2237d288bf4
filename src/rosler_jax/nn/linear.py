"""The NNX linear layer whose weight is held as sketches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

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

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class SketchLinear(nnx.Module):
    r"""A linear layer ``y = x W + b`` whose ``W (m, n)`` is held as sketches.

    - ``mode="chain"``: ``W = C U R``, all three trained by back-propagation through the chain.
    - ``mode="ares"``: the same, born in the parallel stage of aRes-BP; train it with
      :func:`rosler_jax.ares_bp`, which ends that stage by itself.
    - ``mode="seeded"``: ``W = a Psi U Omega^T`` with ``Psi``, ``Omega`` regenerated from seeds; only
      the core ``U (in_sketch, rank)`` is trained and stored.

    Args:
      in_features: ``m``.
      out_features: ``n``.
      rank: ``s``, at most ``min(m, n)``.
      mode: see above.
      in_sketch: width of the input sketch of a seeded layer; default ``min(8 rank, m)``.
      oversampling: ``l - s`` of an ares layer; default ``s``.
      sketch: family of the sketches (see :data:`rosler_kernels.FAMILIES`); default ``"srht"`` for a
        seeded layer, ``"gaussian"`` otherwise.
      init: variance of the virtual matrix, ``"glorot"`` or ``"he"``; default ``"he"`` if seeded.
      gain: scale of the range-finder initialisation.
      use_bias: whether to add ``b``.
      dtype: dtype of the computation; default that of inputs and parameters together.
      param_dtype: dtype of the parameters.
      bias_init: initialiser of ``b``.
      rngs: ``params`` draws the virtual matrix and the sketches' seeds.

    Raises:
      ValueError: for a rank that does not fit or an unknown mode.

    Example:
      >>> from flax import nnx
      >>> layer = SketchLinear(784, 1024, rank=16, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 784))).shape
      (2, 1024)
      >>> sum(p.size for p in nnx.state(layer, SketchParam).flat_state().leaves)
      29184

    Source: our reading of Li et al. (2021), doi 10.1038/s43588-021-00039-6.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
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
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.mode, self.use_bias = mode, use_bias
        self.dtype, self.param_dtype = dtype, param_dtype
        self.sketch = sketch or ("srht" if mode == "seeded" else "gaussian")
        if mode == "seeded":
            self.inner = in_sketch or min(8 * rank, in_features)
        else:
            self.inner = co_range_dimension(rank, in_features, out_features, oversampling)
        key = rngs.params()
        if mode == "chain":
            self.psi_seed = self.omega_seed = None
        else:
            self.psi_seed = SketchSeed(seed_words(rngs.params()))
            self.omega_seed = SketchSeed(seed_words(rngs.params()))
        psi, omega = self.sketches()
        values = init_factors(
            key, in_features, out_features, rank, mode,
            init=init or ("he" if mode == "seeded" else "glorot"), gain=gain, psi=psi, omega=omega,
        )  # fmt: skip
        self.c = SketchParam(values["c"].astype(param_dtype)) if "c" in values else None
        self.u = SketchParam(values["u"].astype(param_dtype))
        self.r = SketchParam(values["r"].astype(param_dtype)) if "r" in values else None
        self.parallel = SketchParam(jnp.ones(())) if mode == "ares" else None
        self.bias = (
            nnx.Param(bias_init(rngs.params(), (out_features,), param_dtype)) if use_bias else None
        )

    def sketches(self) -> tuple[Any, Any]:
        """The pair ``(Psi, Omega)`` of this layer, or ``(None, None)`` in chain mode."""
        seeds = [None if v is None else v[...] for v in (self.psi_seed, self.omega_seed)]
        return layer_sketches(
            self.mode, self.sketch, *seeds, self.in_features, self.out_features, self.rank, self.inner
        )

    def __call__(self, x: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        """Computes ``x W + b`` through the thin side."""
        names = [v for v in (self.c, self.u, self.r, self.bias) if v is not None]
        x, *values = dtypes.promote_dtype((x, *(v[...] for v in names)), dtype=self.dtype)
        bias = values.pop() if self.use_bias else None
        psi, omega = self.sketches()
        if self.mode == "seeded":
            y = functional.seeded_dot(x, values[0], psi=psi, omega=omega)
        else:
            parallel = None if self.parallel is None else self.parallel[...]
            y = functional.sketch_dot(x, *values, parallel=parallel, psi=psi, omega=omega)
        return y if bias is None else y + jnp.reshape(bias, (1,) * (y.ndim - 1) + (-1,))
