"""Model files of version 1: a network as a list of its layers' descriptions. They are only read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rosler_jax.graph._source import TraceError
from rosler_jax.graph.check import MAX_ELEMENTS
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.trace import trace_stored
from rosler_jax.graph.weight import Weight
from rosler_jax.nn import SketchConv, SketchLinear, TwoFactorLinear
from rosler_jax.quantization import dequantize_params

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Options = Mapping[str, Any]
    Specs = Sequence[Options]

FAULTS = (TypeError, ValueError, KeyError, IndexError, ArithmeticError, AttributeError)
"""What building and tracing layers of any JSON may raise."""


def build_graph(
    specs: Specs | None, tensors: Mapping[str, Any], input_shape: Sequence[int] | None = None
) -> Graph:
    """Builds a network from its layers' descriptions and traces it; stored integers stay.

    Args:
      specs: the layers, first to last: dicts with a ``kind`` of :data:`LAYERS`, and its options.
      tensors: named tensors of the model file, ``"2/c"``.
      input_shape: of one example; needed where convolutions come before any linear layer.

    Returns:
      The graph.

    Raises:
      TraceError: for layers that make no network, or shapes that do not fit.

    Example:
      >>> specs = [{"kind": "linear", "in_features": 2, "out_features": 3}, {"kind": "relu"}]
      >>> graph = build_graph(specs, {"0/kernel": np.ones((2, 3)), "0/bias": np.zeros(3)})
      >>> [type(op).__name__ for op in graph.ops], graph.out_shape
      (['Dense', 'Map'], (3,))
    """
    if not isinstance(specs, list) or not all(isinstance(spec, dict) for spec in specs):
        raise TraceError("it describes no model: there is no list of layers")
    shape = _input_shape(specs, input_shape)
    _check_size("the input", shape)
    stored = {f"layers/{name}": Weight(name, tensor) for name, tensor in tensors.items()}
    try:
        model = rebuild(specs, tensors)
        graph = trace_stored(model, stored, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    except TraceError:
        raise
    except FAULTS as error:
        raise TraceError(f"the network cannot run on inputs of shape {shape}: {error}") from error
    for op in graph.ops:
        for out in op.out_shapes:
            _check_size(op.name, out)
    return graph


def rebuild(specs: Specs, tensors: Mapping[str, Any]) -> nnx.Sequential:
    """The network of a file's layers and named tensors.

    Nothing is allocated for a layer before its tensors are seen to have its shapes.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: network(specs, nnx.Rngs(0))))
    named = {f"layers/{name}": tensor for name, tensor in tensors.items()}
    return nnx.merge(graphdef, dequantize_params(named, state))


def network(specs: Specs, rngs: nnx.Rngs) -> nnx.Sequential:
    """A network of such layers, as it evaluates, with its parameters drawn at random."""
    layers = []
    for i, spec in enumerate(specs):
        kind, options = spec.get("kind"), {k: v for k, v in spec.items() if k != "kind"}
        if not isinstance(kind, str) or kind not in LAYERS:
            raise TraceError(f"layer {i} is of kind {kind!r}; use one of {', '.join(LAYERS)}")
        if options.get("mode") == "ares":
            raise TraceError(
                f"layer {i} is an aRes-BP layer as it trains; finish the model first (rosler "
                "train does), which makes plain factors of it"
            )
        layers.append(LAYERS[kind](options, rngs))
    if not layers:
        raise TraceError("the network has no layers; there is nothing to trace")
    model = nnx.Sequential(*layers)
    model.eval()
    return model


# Layers.


def _standardize(options: Options, rngs: nnx.Rngs) -> Callable[[Array], Float[Array, "..."]]:
    """``(x - mean) / std`` by one number each, or one for each feature."""
    with np.errstate(over="ignore", divide="ignore"):  # refused below
        mean, std = np.asarray(options["mean"], np.float32), np.asarray(options["std"], np.float32)
        factor = (1.0 / np.asarray(options["std"], np.float64)).astype(np.float32)
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ValueError(f"mean {options['mean']}, std {options['std']}; expected finite, std > 0")
    return lambda x: (x.astype(jnp.float32) - mean) * factor


def _pool(options: Options, reduce: Callable[..., Array]) -> Callable[[Array], Array]:
    """Pooling over windows that do not overlap: one side for all spatial axes, or one for each."""
    window = options["window"]

    def apply(x: Array) -> Array:
        sides = tuple(window) if isinstance(window, list) else (window,) * (x.ndim - 2)
        if len(sides) != x.ndim - 2 or min(sides) < 1:
            raise ValueError(f"a pool's window {sides} for {x.ndim - 2} spatial axes")
        return reduce(x, sides, strides=sides)

    return apply


def _window(options: Options) -> Options:
    """JSON lists back to the tuples that convolutions want, pairs of padding among them."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return {k: tuples(v) for k, v in options.items()}


LAYERS: dict[str, Callable[[Options, nnx.Rngs], Any]] = {
    "standardize": _standardize,
    "flatten": lambda options, rngs: lambda x: x.reshape(x.shape[0], -1),
    "relu": lambda options, rngs: jax.nn.relu,
    "gelu": lambda options, rngs: jax.nn.gelu,
    "tanh": lambda options, rngs: jnp.tanh,
    "max_pool": lambda options, rngs: _pool(options, nnx.max_pool),
    "avg_pool": lambda options, rngs: _pool(options, nnx.avg_pool),
    "batch_norm": lambda options, rngs: nnx.BatchNorm(**options, rngs=rngs),
    "linear": lambda options, rngs: nnx.Linear(**options, rngs=rngs),
    "conv": lambda options, rngs: nnx.Conv(**_window(options), rngs=rngs),
    "sketch_linear": lambda options, rngs: SketchLinear(**options, rngs=rngs),
    "sketch_conv": lambda options, rngs: SketchConv(**_window(options), rngs=rngs),
    "two_factor": lambda options, rngs: TwoFactorLinear(**options, rngs=rngs),
}
"""Every kind of layer that files of version 1 have."""


# Shapes.


def _input_shape(specs: Specs, given: Sequence[int] | None) -> tuple[int, ...]:
    """The shape of one input: as given, or as the first layer with a size tells."""
    if given is not None:
        shape = tuple(given) if isinstance(given, list | tuple) else ()
        if not shape or not all(isinstance(n, int | np.integer) and n >= 1 for n in shape):
            raise TraceError(f"input_shape {given!r:.80}; expected positive sizes, as 28,28,1")
        return tuple(int(n) for n in shape)
    for spec in specs:
        if "conv" in str(spec.get("kind")) or "pool" in str(spec.get("kind")):
            break
        if "in_features" in spec:
            return _input_shape(specs, [spec["in_features"]])
    raise TraceError(
        "no layer tells the shape of the inputs; pass input_shape (--input-shape), as 28,28,1"
    )


def _check_size(name: str, shape: tuple[int, ...]) -> None:
    if min(shape, default=1) < 1 or math.prod(shape) > MAX_ELEMENTS:
        raise TraceError(
            f"{name}: an output of shape {shape}; expected 1 to {MAX_ELEMENTS} numbers"
        )
