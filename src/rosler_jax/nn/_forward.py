"""What a layer does to its inputs, given its factors by name; the same for NNX and for Linen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.nnx.nn import dtypes

from rosler_jax._paths import TRAINING_ONLY
from rosler_jax.nn import functional
from rosler_jax.nn._fingerprint import checked
from rosler_jax.nn._variables import drawn_kernel
from rosler_jax.nn.lifts import ConvLift, conv_lift, pad_input

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Num

    import rosler_kernels as rk

INPUT_PADDINGS = ("CIRCULAR", "CAUSAL", "REFLECT")
Sketches = tuple["rk.Sketch | None", "rk.Sketch | None"]


def promote(x: Array, params: Mapping[str, Array], dtype: Any) -> tuple[Array, dict[str, Array]]:
    """Brings inputs and parameters to one dtype; what only training needs stays as it is."""
    names = [name for name in params if name not in TRAINING_ONLY]
    x, *values = dtypes.promote_dtype((x, *(params[name] for name in names)), dtype=dtype)
    return x, {**params, **dict(zip(names, values, strict=True))}


def with_precision(precision: Any, function: Callable[..., Array], *args: Any) -> Array:
    """``function(*args)``, with every product of it and of its derivative in that precision.

    Args:
      precision: a ``jax.lax.Precision``, its name, or a pair of equal ones, as Flax's layers take
        it; None for JAX's default.
      function: of arrays and pytrees of arrays.
      *args: its arguments.

    Raises:
      ValueError: for a pair of two precisions, or an unknown name.
    """
    if precision is None:
        return function(*args)
    first, *others = precision if isinstance(precision, tuple) else (precision,)
    if any(other != first for other in others):
        raise ValueError(f"precision {precision}: a chain of products has one; pass one for both")
    name = first.name.lower() if isinstance(first, jax.lax.Precision) else first

    @jax.custom_vjp
    def run(*args: Any) -> Array:
        with jax.default_matmul_precision(name):
            return function(*args)

    def forward(*args: Any) -> tuple[Array, Any]:
        with jax.default_matmul_precision(name):
            return jax.vjp(function, *args)

    def backward(pullback: Any, cotangent: Array) -> Any:
        with jax.default_matmul_precision(name):
            return pullback(cotangent)

    run.defvjp(forward, backward)
    return run(*args)


class Learnt(NamedTuple):
    """A weight of learnt factors, ``C U R``; no U in a layer of two."""

    c: Array
    u: Array | None
    r: Array
    parallel: Array | None
    psi: rk.Sketch | None
    omega: rk.Sketch | None

    @property
    def factors(self) -> tuple[Array, Array | None, Array]:
        """C, U and R."""
        return self.c, self.u, self.r

    @property
    def stage(self) -> dict[str, Any]:
        """What says how its cotangents are computed."""
        return {"parallel": self.parallel, "psi": self.psi, "omega": self.omega}


class Seeded(NamedTuple):
    """A weight whose core alone is learnt, its outer factors two sketches."""

    core: Array
    psi: rk.Sketch
    omega: rk.Sketch


def weight_of(params: Mapping[str, Array], sketches: Sketches) -> Learnt | Seeded:
    """The weight that a layer's parameters stand for; those without ``c`` are a seeded one's."""
    psi, omega = sketches
    if "c" in params:
        factors = params["c"], params.get("u"), params["r"]
        return Learnt(*factors, params.get("parallel"), psi, omega)
    assert psi is not None
    assert omega is not None
    return Seeded(checked(params["u"], params.get("fingerprint"), psi, omega), psi, omega)


def _add_bias(y: Array, params: Mapping[str, Array]) -> Array:
    return y + jnp.reshape(params["bias"], (1,) * (y.ndim - 1) + (-1,)) if "bias" in params else y


def _check_inputs(x: Array, ndim: int, features: int) -> None:
    """Refuses inputs with too few axes, or with another number of features than the layer's."""
    if x.ndim < ndim or x.shape[-1] != features:
        raise ValueError(
            f"inputs of shape {x.shape} do not fit; pass at least {ndim} axes, the last of them "
            f"with in_features={features}"
        )


def dense(
    x: Num[Array, "*batch m"],
    params: Mapping[str, Array],
    sketches: Sketches,
    dtype: Any,
    precision: Any = None,
) -> Float[Array, "*batch n"]:
    """A linear layer; without ``c`` among its parameters it is a seeded one."""
    x, params = promote(jnp.asarray(x), params, dtype)
    psi, _ = sketches
    _check_inputs(x, 1, params["c"].shape[0] if psi is None else psi.rows)
    weight = weight_of(params, sketches)
    return _add_bias(with_precision(precision, _dense, x, weight), params)


def _dense(x: Array, weight: Learnt | Seeded) -> Array:
    if isinstance(weight, Seeded):
        return functional.seeded_dot(x, weight.core, psi=weight.psi, omega=weight.omega)
    return functional.sketch_dot(x, *weight.factors, **weight.stage)


def batched(x: Float[Array, "*batch g m"], weight: Learnt | Seeded) -> Float[Array, "*batch g n"]:
    """A matrix of its own for each entry of the last axis but one; no bias."""
    if isinstance(weight, Seeded):
        return functional.seeded_batched_dot(x, weight.core, psi=weight.psi, omega=weight.omega)
    return functional.sketch_batched_dot(x, *weight.factors, **weight.stage)


def layer_lift(
    window: tuple[int, ...], padding: str | int | Sequence[int | tuple[int, int]], **options: Any
) -> tuple[ConvLift, str | None]:
    """A convolution layer's lift, and the padding mode that changes its input first, if any."""
    pad_mode = padding if isinstance(padding, str) and padding in INPUT_PADDINGS else None
    if pad_mode == "CAUSAL" and len(window) != 1:
        raise ValueError(f"causal padding is for 1-D convolution; this one is {len(window)}-D")
    return conv_lift(window, padding=padding if pad_mode is None else "VALID", **options), pad_mode


def conv_matrix_shape(
    window: Sequence[int], in_features: int, out_features: int, groups: int
) -> tuple[int, int]:
    """``(m, n)`` of the unfolded kernel of one group; refuses features that do not divide."""
    if groups < 1 or in_features % groups or out_features % groups:
        raise ValueError(
            f"in_features={in_features} and out_features={out_features} must both be multiples "
            f"of feature_group_count={groups}"
        )
    return math.prod(window) * in_features // groups, out_features // groups


def folded_shape(m: int, rank: int, groups: int, window: Sequence[int]) -> tuple[int, ...]:
    """Shape of the thin filters of all groups, ``(*window, c_in / g, g s)``."""
    return (*window, m // math.prod(window), groups * rank)


def fold_window(c: Float[Array, "g m s"], window: Sequence[int]) -> Array:
    """Column factors of all groups as thin filters: window unfolded, columns group by group."""
    g, m, s = c.shape
    return c.transpose(1, 0, 2).reshape(folded_shape(m, s, g, window))


def conv_kernels(
    kernel_init: Callable[..., Array] | None,
    window: Sequence[int],
    shape: tuple[int, int],
    groups: int,
    dtype: Any,
) -> Callable[[Array], Array] | None:
    """Draws the unfolded kernels ``(g, m, n)`` that Flax's initialiser would give a convolution."""
    m, n = shape
    whole = folded_shape(m, n, groups, window)
    return drawn_kernel(kernel_init, whole, dtype, lambda w: w.reshape(m, groups, n).swapaxes(0, 1))


def conv(
    x: Num[Array, "*batch cin"],
    params: Mapping[str, Array],
    sketches: Sketches,
    lift: ConvLift,
    pad_mode: str | None,
    dtype: Any,
) -> Float[Array, "*out cout"]:
    """A convolution layer over any number of batch dimensions, none included."""
    psi, _ = sketches
    filters = math.prod(params["c"].shape[:-1]) if psi is None else psi.rows
    features = len(lift.spatial) + 1
    _check_inputs(x, features, lift.groups * filters // math.prod(lift.spatial))
    batch = x.shape[: x.ndim - features]
    x, params = promote(x.reshape(math.prod(batch), *x.shape[x.ndim - features :]), params, dtype)
    if pad_mode is not None:
        x = pad_input(x, lift, pad_mode)
    weight = weight_of(params, sketches)
    y = with_precision(lift.precision, partial(_conv, lift), x, weight)
    return _add_bias(y, params).reshape(*batch, *y.shape[1:])


def _conv(lift: ConvLift, x: Array, weight: Learnt | Seeded) -> Array:
    if isinstance(weight, Seeded):
        return functional.seeded_conv(x, weight.core, lift, psi=weight.psi, omega=weight.omega)
    return functional.sketch_conv(x, *weight.factors, lift, **weight.stage)
