"""One Flax NNX layer into one sketch layer: what :mod:`rosler_jax.sketchify` does to each layer."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from rosler_jax import initializers
from rosler_jax.factors import SeededFactors, SketchFactors, core_from_sketch, reconstruct
from rosler_jax.nn import SketchConv, SketchLinear
from rosler_jax.nn._variables import Mode, check_mode

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

Method = Literal["svd", "nystrom", "cur"]
METHODS = ("svd", "nystrom", "cur")
CANDIDATES = (nnx.Linear, nnx.Conv, nnx.LinearGeneral, nnx.Einsum, nnx.ConvTranspose)
OPTIONS = ("in_sketch", "oversampling", "sketch", "init", "gain")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What becomes of the layers whose path matches.

    Attributes:
      pattern: glob pattern on the whole dotted path of a layer, ``"encoder.layers.*"``; ``*`` goes
        across dots, and matches the model itself where that is a single layer.
      rank: ``s``; a float is a fraction of ``min(in, out)`` of the layer's (unfolded) weight.
      mode: ``"chain"``, ``"ares"`` or ``"seeded"``, as in :class:`rosler_jax.SketchLinear`.
      skip: leave these layers as they are; ``rank`` is not needed then.
      in_sketch, oversampling, sketch, init, gain: as in :class:`rosler_jax.SketchLinear`; None is
        its default.

    Raises:
      ValueError: for a rank below 1, a fraction outside ``0 < rank <= 1``, or an unknown mode.

    Example:
      >>> Rule("*.mlp.*", rank=0.125, mode="seeded").rank
      0.125
    """

    pattern: str
    rank: int | float | None = None
    mode: Mode = "chain"
    skip: bool = False
    in_sketch: int | None = None
    oversampling: int | None = None
    sketch: str | None = None
    init: Literal["glorot", "he"] | None = None
    gain: float | None = None

    def __post_init__(self) -> None:
        check_mode(self.mode)
        if self.skip:
            return
        if self.rank is None or isinstance(self.rank, bool):
            raise ValueError(f"rule {self.pattern!r} has rank {self.rank}; pass rank= or skip=True")
        if isinstance(self.rank, float) and not 0.0 < self.rank <= 1.0:
            raise ValueError(
                f"rule {self.pattern!r} has rank {self.rank}; a float is a fraction of "
                "min(in, out), pass 0 < rank <= 1, or an int"
            )
        if self.rank < 1 and not isinstance(self.rank, float):
            raise ValueError(f"rule {self.pattern!r} has rank {self.rank}; pass rank >= 1")

    def rank_of(self, m: int, n: int) -> int:
        """The rank of an ``(m, n)`` weight under this rule."""
        assert self.rank is not None
        if isinstance(self.rank, float):
            return max(1, round(self.rank * min(m, n)))
        return int(self.rank)


def is_candidate(node: Any) -> bool:
    """Whether the node is a layer with a kernel that the report should mention."""
    return isinstance(node, CANDIDATES)


def matrix_shape(layer: Any) -> tuple[int, int] | None:
    """``(m, n)`` of the unfolded kernel of one group; None for a layer of another kind."""
    if isinstance(layer, nnx.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, nnx.Conv):
        g = layer.feature_group_count
        return math.prod(layer.kernel_size) * layer.in_features // g, layer.out_features // g
    return None


def unsupported(layer: Any) -> str:
    """Why no sketch layer can stand for this one; empty if one can."""
    if type(layer) not in (nnx.Linear, nnx.Conv):
        base = isinstance(layer, nnx.Linear | nnx.Conv)
        return "a subclass, which may compute otherwise" if base else "no sketch layer for it"
    expected = 2 if isinstance(layer, nnx.Linear) else len(layer.kernel_size) + 2
    if layer.kernel[...].ndim != expected:
        return f"its kernel of shape {layer.kernel[...].shape} stacks several layers"
    if getattr(layer, "mask", None) is not None:
        return "its kernel is masked"
    custom = (
        ("dot_general", jax.lax.dot_general),
        ("conv_general_dilated", jax.lax.conv_general_dilated),
        ("promote_dtype", dtypes.promote_dtype),
        ("preferred_element_type", None),
    )
    for name, default in custom:
        if getattr(layer, name, default) is not default:
            return f"it has its own {name}"
    if isinstance(layer, nnx.Linear) and layer.precision is not None:
        return "it has its own precision"
    return ""


def convert(
    layer: nnx.Linear | nnx.Conv, rule: Rule, rank: int, rngs: nnx.Rngs, method: Method | None
) -> tuple[SketchLinear | SketchConv, float | None]:
    """The sketch layer for ``layer``; from its weights, with their error, if a method is given."""
    given = {name: getattr(rule, name) for name in OPTIONS if getattr(rule, name) is not None}
    options: dict[str, Any] = dict(
        mode=rule.mode, dtype=layer.dtype, param_dtype=layer.param_dtype, use_bias=False, rngs=rngs
    )
    new: SketchLinear | SketchConv
    if isinstance(layer, nnx.Conv):
        names = "strides padding input_dilation kernel_dilation feature_group_count precision"
        options |= {name: getattr(layer, name) for name in names.split()}
        options["kernel_size"] = layer.kernel_size
        new = SketchConv(layer.in_features, layer.out_features, rank=rank, **options, **given)
    else:
        new = SketchLinear(layer.in_features, layer.out_features, rank, **options, **given)
    if layer.bias is not None:
        new.use_bias, new.bias = True, nnx.data(layer.bias)
    error = None if method is None else _take_weights(new, layer, rngs.params(), method)
    return new, error


def _take_weights(
    new: SketchLinear | SketchConv,
    layer: nnx.Linear | nnx.Conv,
    key: Key[Array, ""],
    method: Method,
) -> float:
    """Sets the factors of ``new`` from the kernel of ``layer``; returns the relative error."""
    groups = new.feature_group_count if isinstance(new, SketchConv) else 1
    kernel = layer.kernel[...]
    w = jnp.moveaxis(kernel.reshape(-1, groups, kernel.shape[-1] // groups), 1, 0)
    keys = jax.random.split(key, groups)
    factors = [_factors(matrix, new, k, method) for matrix, k in zip(w, keys, strict=True)]
    stack = {name: jnp.stack([getattr(f, name) for f in factors]) for name in _names(new)}
    if isinstance(new, SketchConv):
        if "c" in stack:
            window = (*new.kernel_size, new.in_features // groups, -1)
            stack["c"] = stack["c"].transpose(1, 0, 2).reshape(window)
    else:
        stack = {name: value[0] for name, value in stack.items()}
    for name, value in stack.items():
        getattr(new, name)[...] = value.astype(new.param_dtype)
    wide = w.astype(jnp.promote_types(w.dtype, jnp.float32))
    approx = jnp.stack([_represented(f, new.mode) for f in factors])
    return float(jnp.linalg.norm(wide - approx) / jnp.linalg.norm(wide))


def _names(layer: SketchLinear | SketchConv) -> tuple[str, ...]:
    return ("u",) if layer.mode == "seeded" else ("c", "u", "r")


def _factors(
    w: Float[Array, "m n"], layer: SketchLinear | SketchConv, key: Key[Array, ""], method: Method
) -> SketchFactors | SeededFactors:
    """Factors of one group's matrix, in the form that the layer's parameters take."""
    psi, omega = layer.sketches()
    if layer.mode == "seeded":
        return initializers.seeded_from_dense(w, psi, omega)
    if layer.mode == "ares":
        return initializers.ares_from_dense(w, psi, omega, key)
    return initializers.from_dense(w, layer.rank, key, method=method)


def _represented(f: SketchFactors | SeededFactors, mode: str) -> Float[Array, "m n"]:
    """The matrix that such parameters stand for; in the parallel stage ``u`` holds ``A^T``."""
    if mode == "ares" and isinstance(f, SketchFactors):
        f = SketchFactors(c=f.c, u=core_from_sketch(f.u.T), r=f.r)
    return reconstruct(f)
