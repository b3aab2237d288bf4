"""What a layer does to its inputs, given its factors by name; the same for NNX and for Linen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax.nnx.nn import dtypes

from rosler_jax.nn import functional
from rosler_jax.nn.lifts import ConvLift, conv_lift, pad_input

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    import rosler_kernels as rk

INPUT_PADDINGS = ("CIRCULAR", "CAUSAL", "REFLECT")
Sketches = tuple["rk.Sketch | None", "rk.Sketch | None"]


def promote(x: Array, params: Mapping[str, Array], dtype: Any) -> tuple[Array, dict[str, Array]]:
    """Brings inputs and parameters to one dtype; the flag of the parallel stage stays as it is."""
    names = [name for name in params if name != "parallel"]
    x, *values = dtypes.promote_dtype((x, *(params[name] for name in names)), dtype=dtype)
    return x, {**params, **dict(zip(names, values, strict=True))}


def _factors(params: Mapping[str, Array]) -> tuple[Array, Array | None, Array]:
    """C, U and R; no U in a layer of two factors."""
    return params["c"], params.get("u"), params["r"]


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
    x: Float[Array, "*batch m"], params: Mapping[str, Array], sketches: Sketches, dtype: Any
) -> Float[Array, "*batch n"]:
    """A linear layer; without ``c`` among its parameters it is a seeded one."""
    x, params = promote(jnp.asarray(x), params, dtype)
    psi, omega = sketches
    _check_inputs(x, 1, params["c"].shape[0] if psi is None else psi.rows)
    if "c" in params:
        flag = params.get("parallel")
        y = functional.sketch_dot(x, *_factors(params), parallel=flag, psi=psi, omega=omega)
    else:
        assert psi is not None
        assert omega is not None
        y = functional.seeded_dot(x, params["u"], psi=psi, omega=omega)
    return _add_bias(y, params)


def batched(
    x: Float[Array, "*batch g m"], params: Mapping[str, Array], sketches: Sketches
) -> Float[Array, "*batch g n"]:
    """A matrix of its own for each entry of the last axis but one; no bias."""
    psi, omega = sketches
    if "c" in params:
        flag = params.get("parallel")
        return functional.sketch_batched_dot(
            x, *_factors(params), parallel=flag, psi=psi, omega=omega
        )
    assert psi is not None
    assert omega is not None
    return functional.seeded_batched_dot(x, params["u"], psi=psi, omega=omega)


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


def conv(
    x: Float[Array, "*batch cin"],
    params: Mapping[str, Array],
    sketches: Sketches,
    lift: ConvLift,
    pad_mode: str | None,
    dtype: Any,
) -> Float[Array, "*batch cout"]:
    """A convolution layer over any number of batch dimensions, none included."""
    psi, omega = sketches
    filters = math.prod(params["c"].shape[:-1]) if psi is None else psi.rows
    features = len(lift.spatial) + 1
    _check_inputs(x, features, lift.groups * filters // math.prod(lift.spatial))
    batch = x.shape[: x.ndim - features]
    x, params = promote(x.reshape(math.prod(batch), *x.shape[x.ndim - features :]), params, dtype)
    if pad_mode is not None:
        x = pad_input(x, lift, pad_mode)
    if "c" in params:
        c, u, r = _factors(params)
        flag = params.get("parallel")
        y = functional.sketch_conv(x, c, u, r, lift, parallel=flag, psi=psi, omega=omega)
    else:
        assert psi is not None
        assert omega is not None
        y = functional.seeded_conv(x, params["u"], lift, psi=psi, omega=omega)
    y = _add_bias(y, params)
    return y.reshape(*batch, *y.shape[1:])
