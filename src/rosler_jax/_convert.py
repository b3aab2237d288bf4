"""One Flax NNX layer into one sketch layer: what :mod:`rosler_jax.sketchify` does to each layer."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

import rosler_kernels as rk
from rosler_jax._factor_metadata import lay_out
from rosler_jax._layer_views import parts_of, stack_axes
from rosler_jax.nn import SketchConv, SketchEinsum, SketchLinear, SketchLinearGeneral, _forward
from rosler_jax.nn._thin import linear_dot_general
from rosler_jax.nn._variables import Mode, check_mode
from rosler_jax.views import MatrixView

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

Method = Literal["svd", "nystrom", "cur"]
METHODS = ("svd", "nystrom", "cur")
OPTIONS = ("in_sketch", "oversampling", "sketch", "init", "gain")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What becomes of the layers whose path matches.

    Attributes:
      pattern: glob pattern on the whole dotted path of a layer, ``"encoder.layers.*"``; ``*`` goes
        across dots, and matches the model itself where that is a single layer.
      rank: ``s``; a float is a fraction of ``min(in, out)`` of the layer's (unfolded) weight.
      mode: ``"chain"``, ``"ares"``, ``"seeded"`` or ``"two-factor"``, as in
        :class:`rosler_jax.SketchLinear`.
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


class Form(NamedTuple):
    """How one kind of layer becomes a sketch layer.

    Attributes:
      make: the sketch layer, without bias: of the layer, the rank and common options.
      kernel: the layer's kernel as that of the plain layer; None where it is one.
    """

    make: Callable[..., Any]
    kernel: Callable[[Any, Array], Array] | None = None


def _linear(layer: Any, rank: int, **options: Any) -> Any:
    return SketchLinear(
        layer.in_features, layer.out_features, rank, precision=layer.precision, **options
    )


def _general(layer: Any, rank: int, **options: Any) -> Any:
    return SketchLinearGeneral(
        layer.in_features, layer.out_features, rank, axis=layer.axis, batch_axis=layer.batch_axis,
        precision=layer.precision, **options,
    )  # fmt: skip


def _einsum(layer: Any, rank: int, **options: Any) -> Any:
    del options["use_bias"]
    options["precision"] = layer.precision
    return SketchEinsum(layer.einsum_str, layer.kernel_shape, rank, **options)


def _conv(layer: Any, rank: int, **options: Any) -> Any:
    names = "strides padding input_dilation kernel_dilation feature_group_count precision"
    options |= {name: getattr(layer, name) for name in names.split()}
    return SketchConv(
        layer.in_features, layer.out_features, layer.kernel_size, rank=rank, **options
    )


def _conv_transpose(layer: Any, rank: int, **options: Any) -> Any:
    """A transposed convolution is one of inputs spread out by the strides."""
    window = layer.kernel_size
    strides, dilation = (
        (v or 1,) * len(window) if isinstance(v, int | None) else tuple(v)
        for v in (layer.strides, layer.kernel_dilation)
    )
    padding = layer.padding
    if isinstance(padding, str):
        sizes = zip(window, dilation, strides, strict=True)
        padding = [_spread_padding((k - 1) * d + 1, s, padding) for k, d, s in sizes]
    return SketchConv(
        layer.in_features, layer.out_features, window, rank=rank, padding=padding,
        input_dilation=strides, kernel_dilation=dilation, precision=layer.precision, **options,
    )  # fmt: skip


def _spread_padding(window: int, stride: int, padding: str) -> tuple[int, int]:
    """What ``jax.lax.conv_transpose`` pads the spread inputs with along one axis."""
    if padding == "SAME":
        total = window + stride - 2
        before = window - 1 if stride > window - 1 else -(-total // 2)
    else:
        total = window + stride - 2 + max(window - stride, 0)
        before = window - 1
    return before, total - before


def _unflipped(layer: Any, kernel: Array) -> Array:
    if not layer.transpose_kernel:
        return kernel
    n = kernel.ndim - 2
    return jnp.swapaxes(jnp.flip(kernel, tuple(range(n))), n, n + 1)


FORMS: dict[type, Form] = {
    nnx.Linear: Form(_linear),
    nnx.LoRALinear: Form(_linear),
    nnx.LinearGeneral: Form(_general),
    nnx.Einsum: Form(_einsum),
    nnx.Conv: Form(_conv),
    nnx.ConvTranspose: Form(_conv_transpose, _unflipped),
}
"""Every kind of layer that a sketch layer can stand for: a new one is one line here."""


def is_candidate(node: Any) -> bool:
    """Whether the node is a layer with a kernel that the report should mention."""
    return isinstance(node, tuple(FORMS))


def matrix_shape(layer: Any) -> tuple[int, int] | None:
    """``(m, n)`` of one matrix of the layer; None where its kernel has no matrix view."""
    part = parts_of(layer)["kernel"]
    return None if part.view is None else part.view.matrix_shape(part.shape)[1:]


def matrix_count(layer: Any) -> int:
    """How many matrices the layer's kernel holds: groups, experts, layers of a stack."""
    part, shape = parts_of(layer)["kernel"], layer.kernel[...].shape
    assert part.view is not None
    single = part.view.matrix_shape(part.shape)[0]
    return single * math.prod(shape) // math.prod(part.shape)


def unsupported(layer: Any) -> str:
    """Why no sketch layer can stand for this one; empty if one can."""
    if type(layer) not in FORMS:
        return "a subclass, which may compute otherwise"
    part, shape = parts_of(layer)["kernel"], layer.kernel[...].shape
    stack = stack_axes(shape, part.shape)
    if part.view is None or stack is None:
        return f"its kernel of shape {shape} has no matrix view"
    if stack != tuple(range(len(stack))):
        return f"its kernel of shape {shape} stacks layers along axis {stack}, not in front"
    if stack and isinstance(layer, nnx.LoRALinear):
        return "a stack of LoRALinear"
    if getattr(layer, "mask", None) is not None:
        return "its kernel is masked"
    if isinstance(layer, nnx.ConvTranspose) and layer.padding == "CIRCULAR":
        return "a transposed convolution with circular padding"
    return _customised(layer)


def _customised(layer: Any) -> str:
    """Which function of its own a layer computes with; empty if none."""
    custom: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("dot_general", (jax.lax.dot_general, linear_dot_general, None)),
        ("dot_general_cls", (None,)),
        ("einsum_op", (jnp.einsum,)),
        ("conv_general_dilated", (jax.lax.conv_general_dilated,)),
        ("promote_dtype", (dtypes.promote_dtype,)),
        ("preferred_element_type", (None,)),
    )
    for name, defaults in custom:
        if getattr(layer, name, defaults[0]) not in defaults:
            return f"it has its own {name}"
    return ""


def convert(
    layer: Any, rule: Rule, rank: int, rngs: nnx.Rngs, method: Method | None, *, share_seeds: bool
) -> tuple[Any, float | None]:
    """The sketch layer for ``layer``; from its weights, with their error, if a method is given.

    A stack of layers becomes a stack of sketch layers, with sketches of their own unless
    ``share_seeds``.
    """
    part, kernel = parts_of(layer)["kernel"], layer.kernel[...]
    assert part.view is not None
    stack = kernel.shape[: kernel.ndim - len(part.shape)]
    singles: list[Any] = []
    squares = jnp.zeros(2)
    for index in itertools.product(*map(range, stack)):
        new = _make(layer, rule, rank, rngs)
        if share_seeds and singles:
            _reseed(new, singles[0], rngs)
        if method is not None:
            w = kernel[index]
            plain = FORMS[type(layer)].kernel
            w = w if plain is None else plain(layer, w)
            view = MatrixView(tuple(range(w.ndim - 1)), (w.ndim - 1,)) if plain else part.view
            squares += take_weights(new, view.to_matrices(w), rngs.params(), method)
        singles.append(new)
    new = _stacked(singles, stack)
    lay_out(new, layer.kernel, part.view)
    if layer.bias is not None:
        new.use_bias, new.bias = True, nnx.data(layer.bias)
        if isinstance(new, SketchEinsum):
            new.bias_shape = layer.bias_shape
    if isinstance(layer, nnx.LoRALinear):
        layer.lora.base_module = nnx.data(new)
        new = layer.lora
    return new, None if method is None else _relative(*squares.tolist())


def _relative(residual: float, norm: float) -> float:
    """``||W - C U R|| / ||W||`` from their squares; of nothing but zeros, 0."""
    return math.sqrt(residual / norm) if norm > 0 else float(residual > 0)


def _make(layer: Any, rule: Rule, rank: int, rngs: nnx.Rngs) -> Any:
    """A new sketch layer in the place of one layer, its bias left out."""
    given = {name: getattr(rule, name) for name in OPTIONS if getattr(rule, name) is not None}
    return FORMS[type(layer)].make(
        layer, rank, mode=rule.mode, dtype=layer.dtype, param_dtype=layer.param_dtype,
        use_bias=False, rngs=rngs, **given,
    )  # fmt: skip


def _reseed(new: Any, like: Any, rngs: nnx.Rngs) -> None:
    """Gives a new layer the sketches of another, and factors that were made with them."""
    if not new.plan.sketched:
        return
    new.psi_seed[...], new.omega_seed[...] = like.psi_seed[...], like.omega_seed[...]
    if new.fingerprint is not None:
        new.fingerprint[...] = like.fingerprint[...]
    groups = new.u[...].shape[0] if new.u[...].ndim == 3 else None
    if groups is None:
        values = new.plan.factors(rngs.params(), *new.sketches())
    else:
        values = new.plan.group_factors(rngs.params(), groups, *new.sketches())
    _set_factors(new, values)


def _stacked(layers: list[Any], stack: tuple[int, ...]) -> Any:
    """One module that holds the variables of several, as ``nnx.vmap`` makes it."""
    if not stack:
        return layers[0]
    graphdef, _ = nnx.split(layers[0])
    states = [nnx.state(layer) for layer in layers]
    state = jax.tree.map(lambda *v: jnp.stack(v).reshape(*stack, *v[0].shape), *states)
    return nnx.merge(graphdef, state)


def take_weights(
    new: Any, matrices: Float[Array, "g m n"], key: Key[Array, ""], method: Method
) -> Float[Array, "2"]:
    """Sets the factors of a sketch layer from the matrices that it is to stand for.

    Returns:
      ``||W - C U R||_F^2`` and ``||W||_F^2``, over all matrices.
    """
    keys = jax.random.split(key, matrices.shape[0])
    plan, sketches = new.plan, new.sketches()
    factors = [
        plan.approximation(w, k, *sketches, method) for w, k in zip(matrices, keys, strict=True)
    ]
    stack = {name: jnp.stack([f[name] for f in factors]) for name in plan.shapes()}
    if isinstance(new, SketchLinear):
        stack = {name: value[0] for name, value in stack.items()}
    _set_factors(new, stack)
    wide = matrices.astype(rk.accumulator(matrices.dtype))
    approx = jnp.stack([plan.represented(f, *sketches) for f in factors])
    return jnp.stack([jnp.sum((wide - approx) ** 2), jnp.sum(wide**2)])


def _set_factors(new: Any, values: dict[str, Array]) -> None:
    """Sets factors ``(g, ...)``, of a linear layer without the axis of groups, in its layout."""
    if isinstance(new, SketchConv) and "c" in values:
        values = values | {"c": _forward.fold_window(values["c"], new.kernel_size)}
    for name, value in values.items():
        getattr(new, name)[...] = value.astype(new.param_dtype)
