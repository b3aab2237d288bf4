"""The NNX linear layer whose weight is held as sketches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
from flax import nnx

from rosler_jax.initializers import RANGE_FINDER_GAIN
from rosler_jax.nn import _forward
from rosler_jax.nn._module import SketchModule, reshard
from rosler_jax.nn._variables import Mode, drawn_kernel, plan_weight

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Num


class SketchLinear(SketchModule):
    r"""A linear layer ``y = x W + b`` whose ``W (m, n)`` is held as sketches.

    - ``mode="chain"``: ``W = C U R``, all three trained by back-propagation through the chain.
    - ``mode="ares"``: the same, born in the parallel stage of aRes-BP; train it with
      :func:`rosler_jax.ares_bp`, which ends that stage by itself.
    - ``mode="seeded"``: ``W = a Psi U Omega^T`` with ``Psi``, ``Omega`` regenerated from seeds;
      only the core ``U (in_sketch, rank)`` is trained and stored.
    - ``mode="two-factor"``: ``W = C R``, the smallest learnt form; what :func:`rosler_jax.finish`
      makes of the first two.

    A core means nothing under other seeds: store ``nnx.state(layer, rosler_jax.SketchState)``,
    which holds the seeds too, never ``nnx.Param`` alone. The parameter ``fingerprint`` of a seeded
    layer, 32 signs beside its core, says which seeds it belongs to; under others a call raises
    ValueError, and gives NaN where it is traced.

    Args:
      in_features: ``m``.
      out_features: ``n``.
      rank: ``s``, at most ``min(m, n)``.
      mode: see above.
      in_sketch: width of the input sketch of a seeded layer; default ``min(8 rank, m)``.
      oversampling: ``l - s`` of an ares layer; default ``s``.
      sketch: family of the sketches (see :data:`rosler_kernels.FAMILIES`); default ``"srht"`` for a
        seeded layer, else ``"rademacher"`` (``"gaussian"`` where the rank is more than a quarter of
        the smaller side, since small sign matrices are often singular). Two, as ``"dct/srht"``, are
        those of inputs and outputs; of images, channels last, with their size, as
        ``"dct:28x28/srht"``: a layer whose inputs are none takes the family of the outputs.
      init: variance of the virtual matrix, ``"glorot"`` or ``"he"``; default ``"he"`` if seeded.
      gain: scale of the range-finder initialisation.
      use_bias: whether to add ``b``.
      dtype: dtype of the computation; default that of inputs and parameters together.
      param_dtype: dtype of the parameters.
      bias_init: initialiser of ``b``.
      kernel_init: initialiser of a matrix that is drawn once, whole, and whose best approximation
        the layer starts from, in place of ``init`` and ``gain``; a matrix of zeros gives a layer
        that starts from zero and learns.
      precision: of all products, as in ``nnx.Linear``.
      rngs: ``params`` draws the virtual matrix and the sketches' seeds.

    Raises:
      ValueError: for a rank that does not fit or an unknown mode.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from rosler_jax import SketchParam
      >>> layer = SketchLinear(784, 1024, rank=16, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 784))).shape
      (2, 1024)
      >>> sum(p.size for p in jax.tree.leaves(nnx.state(layer, SketchParam)))
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
        kernel_init: Any = None,
        precision: Any = None,
        rngs: nnx.Rngs,
    ):
        plan = plan_weight(
            in_features, out_features, rank, mode=mode, in_sketch=in_sketch,
            oversampling=oversampling, sketch=sketch, init=init, gain=gain,
        )  # fmt: skip
        self.in_features, self.out_features, self.use_bias = in_features, out_features, use_bias
        self.dtype, self.param_dtype, self.precision = dtype, param_dtype, precision
        key = self._make_seeds(plan, rngs)
        kernel = drawn_kernel(kernel_init, (plan.m, plan.n), param_dtype)
        values = plan.factors(key, *self.sketches(), kernel)
        bias_shape = (out_features,) if use_bias else None
        self._make_params(values, bias_shape, bias_init, param_dtype, rngs)

    def __call__(
        self, x: Num[Array, "*batch m"], out_sharding: Any = None
    ) -> Float[Array, "*batch n"]:
        """Computes ``x W + b`` through the thin side."""
        y = _forward.dense(x, self._params(), self.sketches(), self.dtype, self.precision)
        return reshard(y, out_sharding)
