"""Products whose weight's gradient comes from a sketch of their input: less is kept for it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

import rosler_kernels as rk
from rosler_kernels.hashing import as_seed

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int8, Key, UInt32

SKETCH, DERIVATIVE = "rosler_sketch", "rosler_derivative"
"""What is kept, by the names that checkpoint policies know it by."""
_STEPS = 254  # of a derivative in a byte

_KEPT = jax.checkpoint_policies.save_only_these_names(SKETCH, DERIVATIVE)


def sketch_policy(primitive: Any, *avals: Any, **params: Any) -> Any:
    """Keeps sketches and one-byte derivatives alone: a policy of ``jax.checkpoint``, ``nnx.remat``.

    Args:
      primitive, avals, params: of an operation of the forward pass.

    Returns:
      Whether its outputs are kept for the backward one; others are computed again.

    Example:
      >>> dot, act = sketched_dot_general(keep=1 / 4), one_byte(jax.nn.gelu)
      >>> x, w = jnp.ones((8, 4)), jnp.ones((4, 4))
      >>> block = lambda x: act(dot(x, w, (((1,), (0,)), ((), ())))).sum()
      >>> jax.grad(jax.checkpoint(block, policy=sketch_policy))(x).shape
      (8, 4)
    """
    return _KEPT(primitive, *avals, **params)


def sketched_dot_general(
    keep: float = 1 / 8, *, seed: int | Key[Array, ""] | UInt32[Array, "2"] = 0
) -> Callable[..., Array]:
    r"""A ``dot_general`` for Flax layers that keeps a sketch of its input for the backward pass.

    Of ``y = x W`` (x of b rows) the gradient ``dx = dy W^T`` is exact, and
    ``dW = (S x)^T (S dy)``, with ``S`` (``ceil(keep b)`` x b) of one random sign a column, rows
    that lie far from each other summed in one: ``E[S^T S] = I``, so dW is unbiased. Kept is ``S x``
    in place of ``x``. The variance of dW is the sum over pairs of rows i, j that fall together of
    ``||x_i dy_j^T + x_j dy_i^T||^2``.

    The signs are a function of ``seed`` and of a checksum of x: others in every step, without a key
    that has to reach the layer.

    Memory is saved where nothing else keeps ``x``: an activation function does, in a form of its
    own (see :func:`one_byte`), and a normalisation; together with ``jax.checkpoint`` and
    ``sketch_policy`` what is left is made again. Whether that pays, BENCHMARKS.md says.

    Args:
      keep: share of the rows that is kept.
      seed: an int, a PRNG key or two words.

    Returns:
      ``dot_general(lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None)``.
      Products other than of lhs's last axes with rhs's first ones, without batch axes, are
      ``jax.lax.dot_general``'s own. Reverse mode alone is differentiated.

    Raises:
      ValueError: if keep is not in (0, 1].

    Example:
      >>> from flax import nnx
      >>> rngs, dot = nnx.Rngs(0), sketched_dot_general(keep=1 / 8)
      >>> layer = nnx.Linear(16, 4, dot_general=dot, rngs=rngs)
      >>> grads = nnx.grad(lambda layer: layer(jnp.ones((64, 16))).sum())(layer)
      >>> grads["kernel"].shape
      (16, 4)

    Source: randomised products for training: Adelman et al., arXiv:1805.08079; Liu et al.
    (WTA-CRS), arXiv:2305.15265; the sketch is CountSketch with even buckets.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep {keep} is outside (0, 1]; pass the share of rows to be kept")

    def dot_general(
        lhs: Array,
        rhs: Array,
        dimension_numbers: Any,
        precision: Any = None,
        preferred_element_type: Any = None,
        **options: Any,
    ) -> Array:
        product: Callable[..., Array] = functools.partial(
            jax.lax.dot_general,
            precision=precision,
            preferred_element_type=preferred_element_type,
            **options,
        )
        (left, right), batch = dimension_numbers
        n = len(left)
        ends = tuple(a % lhs.ndim for a in left) == tuple(range(lhs.ndim - n, lhs.ndim))
        begins = tuple(a % rhs.ndim for a in right) == tuple(range(n))
        if any(map(len, batch)) or not (ends and begins) or lhs.ndim == n or keep == 1:
            return product(lhs, rhs, dimension_numbers)
        return _sketched(lhs, rhs, as_seed(seed), product, n, keep)

    return dot_general


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _sketched(
    x: Array, w: Array, seed: Array, product: Callable[..., Array], n: int, keep: float
) -> Array:
    dims = (tuple(range(x.ndim - n, x.ndim)), tuple(range(n)))
    return product(x, w, (dims, ((), ())))


def _forward(
    x: Array, w: Array, seed: Array, product: Callable[..., Array], n: int, keep: float
) -> Any:
    key = jnp.stack([seed[0] ^ _checksum(x), seed[1]])
    rows = x.reshape(-1, math.prod(x.shape[x.ndim - n :]))
    kept = checkpoint_name(summed(rows, key, keep), SKETCH)
    return _sketched(x, w, seed, product, n, keep), (kept, key, w)


def _backward(product: Any, n: int, keep: float, residuals: Any, dy: Array) -> Any:
    kept, key, w = residuals
    out = w.ndim - n
    dims = (tuple(range(dy.ndim - out, dy.ndim)), tuple(range(n, w.ndim)))
    dx = product(dy, w, (dims, ((), ())))
    rows = dy.reshape(-1, math.prod(w.shape[n:]))
    dw = rk.outer(kept, summed(rows, key, keep).astype(kept.dtype)).reshape(w.shape)
    return dx.astype(kept.dtype), dw.astype(w.dtype), np.zeros((2,), jax.dtypes.float0)


_sketched.defvjp(_forward, _backward)


def summed(
    rows: Float[Array, "b m"], key: UInt32[Array, "2"], keep: float
) -> Float[Array, "kept m"]:
    """``S x``: rows j, j + kept, j + 2 kept, ... with random signs, added up."""
    b, m = rows.shape
    kept = max(1, math.ceil(keep * b))
    groups = -(-b // kept)
    signs = rk.materialize(rk.rademacher(key, b, 1)).astype(rows.dtype)
    padded = jnp.pad(rows * signs, ((0, groups * kept - b), (0, 0)))
    return padded.reshape(groups, kept, m).sum(0)


def _checksum(x: Array) -> UInt32[Array, ""]:
    """Of the bits of an array: another one in every step."""
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
    return jnp.sum(words, dtype=jnp.uint32)


def one_byte(
    activation: Callable[[Array], Array], bounds: tuple[float, float] | None = None
) -> Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]:
    """An elementwise activation that keeps its derivative in a byte for the backward pass.

    Forward it is ``activation``. Backward it multiplies by the derivative, rounded to the nearest
    of 255 evenly spaced numbers: an error of at most ``(high - low) / 508``. Input and output are
    not kept.

    Args:
      activation: elementwise, as ``nnx.gelu``.
      bounds: ``(low, high)`` of its derivative; those on -20 .. 20 by default.

    Returns:
      The activation.

    Raises:
      ValueError: if the bounds are none.

    Example:
      >>> gelu = one_byte(jax.nn.gelu)
      >>> exact, found = (jax.grad(lambda x: f(x).sum()) for f in (jax.nn.gelu, gelu))
      >>> x = jnp.linspace(-3, 3, 50)
      >>> bool(jnp.abs(found(x) - exact(x)).max() < 0.003)
      True
    """

    def slope(x: Array) -> Array:
        return jax.jvp(activation, (x,), (jnp.ones_like(x),))[1]

    @functools.cache
    def ends() -> tuple[float, float]:
        if bounds is not None:
            return bounds
        with jax.ensure_compile_time_eval():
            found = slope(jnp.linspace(-20.0, 20.0, 8001))
            return float(found.min()), float(found.max())

    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"bounds {bounds} are none; pass (low, high) with low < high")

    @jax.custom_vjp
    def apply(x: Array) -> Array:
        return activation(x)

    def forward(x: Array) -> tuple[Array, Int8[Array, "*shape"]]:
        low, high = ends()
        level = (slope(x).astype(jnp.float32) - low) / (high - low) * _STEPS
        code = jnp.clip(jnp.round(level), 0, _STEPS) - _STEPS / 2
        return activation(x), checkpoint_name(code.astype(jnp.int8), DERIVATIVE)

    def backward(code: Int8[Array, "*shape"], dy: Array) -> tuple[Array]:
        low, high = ends()
        slope = (code.astype(jnp.float32) + _STEPS / 2) * ((high - low) / _STEPS) + low
        return ((dy * slope.astype(dy.dtype)),)

    apply.defvjp(forward, backward)
    return apply
