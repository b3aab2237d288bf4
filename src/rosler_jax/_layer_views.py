"""What the parameters of each kind of layer are: the table behind :func:`matrix_views`."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from flax import nnx

from rosler_jax._paths import role_name
from rosler_jax.nn import (
    SketchConv,
    SketchEinsum,
    SketchLinear,
    SketchLinearGeneral,
    TwoFactorLinear,
)
from rosler_jax.nn._fingerprint import SIZE
from rosler_jax.nn.einsum import view_einsum
from rosler_jax.views import MatrixView, Seen, Views, plain


class Part(NamedTuple):
    """A parameter of one layer, not stacked.

    Attributes:
      role: one of :data:`rosler_jax.views.ROLES`.
      shape: that it has in one layer.
      view: its matrices.
    """

    role: str
    shape: tuple[int, ...]
    view: MatrixView | None = None


Parts = Mapping[str, Part]


def _kernel(inputs: Sequence[int], outputs: Sequence[int], batch: Sequence[int] = ()) -> Part:
    shape = (*batch, *inputs, *outputs)
    axes = range(len(shape))
    ends = len(batch), len(batch) + len(inputs)
    view = MatrixView(
        tuple(axes[ends[0] : ends[1]]), tuple(axes[ends[1] :]), tuple(axes[: ends[0]])
    )
    return Part("matrix", shape, view)


def _bias(*shape: int) -> Part:
    return Part("bias", shape)


def _linear(layer: Any) -> Parts:
    kernel = _kernel((layer.in_features,), (layer.out_features,))
    return {"kernel": kernel, "bias": _bias(layer.out_features)}


def _linear_general(layer: Any) -> Parts:
    batch = tuple(layer.batch_axis.values())
    kernel = _kernel(layer.in_features, layer.out_features, batch)
    return {"kernel": kernel, "bias": _bias(*batch, *layer.out_features)}


def _einsum(layer: Any) -> Parts:
    shape = tuple(layer.kernel_shape)
    bias = Part("bias", () if layer.bias_shape is None else tuple(layer.bias_shape))
    try:
        seen = view_einsum(layer.einsum_str, shape)
    except ValueError:  # not of the form that has one matrix view
        return {"kernel": Part("unknown", shape), "bias": bias}
    letters = "".join(letter for letter, _ in seen.sizes)
    inputs, outputs, batch = (
        tuple(map(letters.index, part)) for part in (seen.contracted, seen.features, seen.batch)
    )
    if not inputs or not outputs:
        return {"kernel": Part("scale", shape), "bias": bias}
    return {"kernel": Part("matrix", shape, MatrixView(inputs, outputs, batch)), "bias": bias}


def _conv(layer: Any) -> Parts:
    shape = tuple(layer.kernel_shape)
    n = len(shape) - 1
    view = MatrixView(tuple(range(n)), (n,), groups=layer.feature_group_count)
    return {"kernel": Part("matrix", shape, view), "bias": _bias(layer.out_features)}


def _conv_transpose(layer: Any) -> Parts:
    shape = tuple(layer.kernel_shape)
    n = len(shape) - 1
    out = n - 1 if layer.transpose_kernel else n
    view = MatrixView(tuple(axis for axis in range(n + 1) if axis != out), (out,))
    return {"kernel": Part("matrix", shape, view), "bias": _bias(layer.out_features)}


def _embed(layer: Any) -> Parts:
    shape = (layer.num_embeddings, layer.features)
    return {"embedding": Part("table", shape, MatrixView((0,), (1,)))}


def _norm(layer: Any) -> Parts:
    size = (int(layer.num_features),)
    return {"scale": Part("scale", size), "bias": Part("bias", size)}


def _lora(layer: Any) -> Parts:
    m, s = layer.in_features, layer.lora_a.shape[-1]
    across = MatrixView((0,), (1,))
    return {
        "lora_a": Part("factor", (m, s), across),
        "lora_b": Part("factor", (s, layer.out_features), across),
    }


def _two_factor(layer: Any) -> Parts:
    m, s, n = layer.in_features, layer.rank, layer.out_features
    across = MatrixView((0,), (1,))
    factors = {"c": Part("factor", (m, s), across), "r": Part("factor", (s, n), across)}
    return {**factors, "bias": _bias(n)}


def _sketched(layer: Any, bias: tuple[int, ...], groups: int | None) -> Parts:
    """A sketch layer; without ``groups`` its factors are single matrices."""
    lead = () if groups is None else (groups,)
    across = MatrixView((0,), (1,)) if groups is None else MatrixView((1,), (2,), (0,))
    parts = {
        name: Part("factor", (*lead, *shape), across) for name, shape in layer.plan.shapes().items()
    }
    flags = {"parallel": Part("flag", ()), "fingerprint": Part("flag", (SIZE,))}
    return {**parts, **flags, "bias": Part("bias", bias)}


def _sketch_linear(layer: Any) -> Parts:
    return _sketched(layer, (layer.out_features,), None)


def _sketch_conv(layer: Any) -> Parts:
    groups, window = layer.feature_group_count, layer.kernel_size
    parts = dict(_sketched(layer, (layer.out_features,), groups))
    if "c" in parts:
        n = len(window) + 1
        view = MatrixView(tuple(range(n)), (n,), groups=groups)
        m = layer.plan.m // math.prod(window)
        parts["c"] = Part("factor", (*window, m, groups * layer.rank), view)
    return parts


def _sketch_general(layer: Any) -> Parts:
    bias = (*layer.batch_shape, *layer.out_features)
    return _sketched(layer, bias, math.prod(layer.batch_shape))


def _sketch_einsum(layer: Any) -> Parts:
    return _sketched(layer, layer.bias_shape or (), layer.view.matrix_shape()[0])


LAYERS: dict[type, Callable[[Any], Parts]] = {
    nnx.Linear: _linear,
    nnx.LinearGeneral: _linear_general,
    nnx.Einsum: _einsum,
    nnx.Conv: _conv,
    nnx.ConvTranspose: _conv_transpose,
    nnx.Embed: _embed,
    nnx.LoRA: _lora,
    nnx.LayerNorm: _norm,
    nnx.RMSNorm: _norm,
    nnx.BatchNorm: _norm,
    nnx.GroupNorm: _norm,
    nnx.InstanceNorm: _norm,
    TwoFactorLinear: _two_factor,
    SketchLinear: _sketch_linear,
    SketchConv: _sketch_conv,
    SketchLinearGeneral: _sketch_general,
    SketchEinsum: _sketch_einsum,
}
"""Every kind of layer whose parameters are known, its subclasses included: a new one is a line."""

_BY_NAME = {"bias": "bias", "scale": "scale"}


def parts_of(layer: Any) -> Parts:
    """The parameters of a layer by name; empty for a class that is not known."""
    kind = next((cls for cls in type(layer).__mro__ if cls in LAYERS), None)
    return {} if kind is None else LAYERS[kind](layer)


def stack_axes(shape: Sequence[int], single: Sequence[int]) -> tuple[int, ...] | None:
    """The axes of a stack of arrays that each have shape ``single``; None if it is none.

    Leading axes where these fit (``nnx.vmap`` and ``nn.scan`` put them there), else the first that
    do.

    Example:
      >>> stack_axes((6, 32, 8), (32, 8)), stack_axes((32, 6, 8), (32, 8)), stack_axes((4,), (8,))
      ((0,), (1,), None)
    """
    extra = len(shape) - len(single)
    if extra < 0:
        return None
    for axes in itertools.combinations(range(len(shape)), extra):
        if [size for axis, size in enumerate(shape) if axis not in axes] == list(single):
            return axes
    return None


def seen(
    name: str, shape: tuple[int, ...], layer: str, part: Part | None, why: str = "not known"
) -> Seen:
    """What a leaf was taken for, given the layer's own account of it."""
    axes = None if part is None else stack_axes(shape, part.shape)
    if part is None or axes is None or part.role == "unknown":
        return _by_name(name, shape, layer, why if part is None else f"not {part.shape}")
    stack = tuple(shape[axis] for axis in axes)
    note = f"stack of {' x '.join(map(str, stack))}" if stack else ""
    view = None if part.view is None else _stacked(part.view, axes, len(shape))
    return Seen(name, shape, layer, part.role, view, stack, note)


def _stacked(view: MatrixView, axes: tuple[int, ...], ndim: int) -> MatrixView:
    """The view of one layer, of an array that has the axes of the stack as well."""
    rest = [axis for axis in range(ndim) if axis not in axes]
    inputs, outputs, stack = (
        tuple(rest[axis] for axis in part) for part in (view.inputs, view.outputs, view.stack)
    )
    return MatrixView(inputs, outputs, (*axes, *stack), view.groups)


def _by_name(name: str, shape: tuple[int, ...], layer: str, why: str) -> Seen:
    """Of a layer that says nothing: what the name and the shape alone make certain."""
    view = plain(name, shape)
    role = "matrix" if view else _BY_NAME.get(role_name(name), "unknown")
    note = "by name and shape" if role != "unknown" else f"{why}; a rule may say"
    return Seen(name, shape, layer, role, view, (), note)


def ruled(rows: Iterable[Seen], rules: Mapping[str, MatrixView | None]) -> Views:
    """The rows, but for those that a rule decides.

    Raises:
      ValueError: if a rule matches no parameter, or its view does not fit one.
    """
    used: set[str] = set()

    def decide(row: Seen) -> Seen:
        pattern = next((p for p in rules if fnmatchcase(row.name, p)), None)
        if pattern is None:
            return row
        used.add(pattern)
        view = rules[pattern]
        if view is None:
            return dataclasses.replace(row, role="unknown", view=None, note="no matrix, by rule")
        view.check(row.shape, repr(row.name))
        return dataclasses.replace(row, role="matrix", view=view, note="by rule")

    decided = [decide(row) for row in rows]
    if unused := [pattern for pattern in rules if pattern not in used]:
        raise ValueError(f"rule {unused[0]!r} matches none of {[row.name for row in decided]}")
    return Views(decided)


def matrix_views(model: nnx.Module, rules: Mapping[str, MatrixView | None] | None = None) -> Views:
    """What each parameter of an NNX model is, and which axes of it are inputs, outputs, layers.

    Known are the layers of Flax and of this library, stacked by ``nnx.vmap`` or not, and their
    subclasses. A parameter of any other module is a matrix if it is named ``kernel`` and has two
    axes; everything else there is left alone unless a rule says what it is.

    Args:
      model: any NNX model; abstract variables will do. For Linen see
        :func:`rosler_jax.linen.matrix_views`.
      rules: glob patterns on parameters' names (``"encoder/*/kernel"``) to what they are: a
        :class:`MatrixView`, or None for no matrix. The first that matches decides.

    Returns:
      The views by name; ``print`` them to see what was taken for what.

    Raises:
      TypeError: for anything but an NNX module.
      ValueError: if a rule matches nothing, or its view does not fit.

    Example:
      >>> model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
      >>> print(matrix_views(model))
      parameter  shape  layer   taken for  inputs -> outputs  matrices  note
      ----------------------------------------------------------------------
      bias       4      Linear  bias
      kernel     8 x 4  Linear  matrix     (0) -> (1)         8 x 4
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"matrix_views reads NNX modules, got {type(model).__name__}; for a Linen module call "
            "rosler_jax.linen.matrix_views(module, variables, *inputs)"
        )
    modules = dict(nnx.iter_modules(model))
    rows = []
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        owner = modules.get(path[:-1])
        part = None if owner is None else parts_of(owner).get(str(path[-1]))
        kind = "" if owner is None else type(owner).__name__
        rows.append(seen("/".join(map(str, path)), tuple(leaf.shape), kind, part))
    return ruled(rows, rules or {})
