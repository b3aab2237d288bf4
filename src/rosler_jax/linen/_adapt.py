"""Linen layers as the NNX layers that compute the same: one table of layers serves both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from flax import nnx
from flax.linen import recurrent

from rosler_jax.linen.conv import SketchConv
from rosler_jax.linen.dense import SketchDense
from rosler_jax.nn import SketchConv as NnxSketchConv
from rosler_jax.nn import SketchLinear as NnxSketchLinear
from rosler_jax.nn.einsum import view_einsum

Path = tuple[str, ...]


class Found(NamedTuple):
    """A layer that a call of a Linen module met.

    Attributes:
      kind: its class.
      twin: the NNX layer that computes the same, its variables abstract; None for a subclass.
    """

    kind: str
    twin: Any


def _options(layer: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in (*names, "dtype", "param_dtype")}


def _dot(layer: Any) -> dict[str, Any]:
    own = layer.dot_general_cls or layer.dot_general
    return {"precision": layer.precision, "dot_general": own or jax.lax.dot_general}


def _dense(layer: Any, x: Any, **_: Any) -> Any:
    options = _options(layer, "use_bias") | _dot(layer)
    return nnx.Linear(x.shape[-1], layer.features, **options, rngs=nnx.Rngs(0))


def _dense_general(layer: Any, x: Any, **_: Any) -> Any:
    given = (layer.axis,) if isinstance(layer.axis, int) else tuple(layer.axis)
    axis = tuple(sorted(given, key=lambda a: a % x.ndim))
    batch = layer.batch_dims
    batch = (batch,) if isinstance(batch, int) else tuple(batch)
    return nnx.LinearGeneral(
        [x.shape[a] for a in axis], layer.features, axis=axis,
        batch_axis={a % x.ndim: x.shape[a] for a in batch},
        **_options(layer, "use_bias") | _dot(layer), rngs=nnx.Rngs(0),
    )  # fmt: skip


def _einsum(layer: Any, x: Any, einsum_str: str | None = None, **_: Any) -> Any:
    equation = (layer.einsum_str or einsum_str or "").replace(" ", "")
    try:
        bias = view_einsum(equation, layer.shape).bias_shape() if layer.use_bias else None
    except ValueError:  # no matrix view: left alone, its bias's shape does not matter
        bias = None
    options = _options(layer, "precision", "preferred_element_type")
    return nnx.Einsum(equation, layer.shape, bias, **options, rngs=nnx.Rngs(0))


_CONV = ("strides", "padding", "kernel_dilation", "use_bias", "mask", "precision")


def _conv(layer: Any, x: Any, **_: Any) -> Any:
    options = _options(layer, *_CONV, "input_dilation", "feature_group_count")
    own = layer.conv_general_dilated_cls or layer.conv_general_dilated
    options["conv_general_dilated"] = own or jax.lax.conv_general_dilated
    window = layer.kernel_size
    return nnx.Conv(x.shape[-1], layer.features, window, **options, rngs=nnx.Rngs(0))


def _conv_transpose(layer: Any, x: Any, **_: Any) -> Any:
    options = _options(layer, *_CONV, "transpose_kernel")
    window = layer.kernel_size
    return nnx.ConvTranspose(x.shape[-1], layer.features, window, **options, rngs=nnx.Rngs(0))


def _embed(layer: Any, x: Any, **_: Any) -> Any:
    return nnx.Embed(layer.num_embeddings, layer.features, rngs=nnx.Rngs(0))


def _dense_params(layer: Any, x: Any, **_: Any) -> Any:
    return nnx.Linear(x.shape[-1], layer.features, use_bias=layer.use_bias, rngs=nnx.Rngs(0))


_SKETCH = ("mode", "in_sketch", "oversampling", "sketch", "gain", "use_bias", "precision")


def _sketch_dense(layer: Any, x: Any, **_: Any) -> Any:
    options = _options(layer, *_SKETCH)
    return NnxSketchLinear(x.shape[-1], layer.features, layer.rank, **options, rngs=nnx.Rngs(0))


def _sketch_conv(layer: Any, x: Any, **_: Any) -> Any:
    names = (*_SKETCH, "strides", "padding", "input_dilation", "kernel_dilation")
    return NnxSketchConv(
        x.shape[-1], layer.features, layer.kernel_size, layer.rank,
        **_options(layer, *names, "feature_group_count"), rngs=nnx.Rngs(0),
    )  # fmt: skip


TWINS: dict[type, Callable[..., Any]] = {
    nn.Dense: _dense,
    nn.DenseGeneral: _dense_general,
    nn.Einsum: _einsum,
    nn.Conv: _conv,
    nn.ConvTranspose: _conv_transpose,
}
"""Layers that can be sketched, of what module and inputs: a new one is one line here."""

SEEN: dict[type, Callable[..., Any]] = {
    **TWINS,
    nn.Embed: _embed,
    recurrent.DenseParams: _dense_params,
    SketchDense: _sketch_dense,
    SketchConv: _sketch_conv,
}
"""Layers whose parameters are known, these and others."""


def layers_met(
    module: nn.Module,
    variables: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    rngs: Mapping[str, Any] | None,
) -> dict[Path, Found]:
    """The known layers that one call of a module meets, by path; nothing is computed."""
    calls: dict[Path, tuple[type, Any, Any, dict[str, Any]]] = {}

    def record(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        kind = next((cls for cls in type(layer).__mro__ if cls in SEEN), None)
        if context.method_name == "__call__" and kind is not None and layer.path not in calls:
            x = args[0] if args else kwargs["inputs"]
            more = {"einsum_str": args[1]} if len(args) > 1 else kwargs
            more = {k: v for k, v in more.items() if k == "einsum_str"}
            calls[layer.path] = (kind, layer, jax.ShapeDtypeStruct(x.shape, x.dtype), more)
        return next_fun(*args, **kwargs)

    if rngs is None:
        rngs = {name: jax.random.key(0) for name in ("params", "dropout")}
    with nn.intercept_methods(record):
        jax.eval_shape(
            lambda v: module.apply(v, *args, **kwargs, rngs=dict(rngs), mutable=True), variables
        )
    # Not inside the trace: NNX modules belong to the trace that made them.
    return {path: Found(type(call[1]).__name__, _twin(*call)) for path, call in calls.items()}


def _twin(kind: type, layer: Any, x: Any, more: dict[str, Any]) -> Any:
    """The NNX layer, abstract; None for a subclass, which may compute otherwise."""
    if kind is not type(layer):
        return None
    return nnx.eval_shape(lambda: SEEN[kind](layer, x, **more))
