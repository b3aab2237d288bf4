"""The graph of a network that is described layer by layer: what a file of version 1 holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax.deploy import rebuild
from rosler_jax.graph._source import TraceError
from rosler_jax.graph.check import MAX_ELEMENTS
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.trace import trace_stored
from rosler_jax.graph.weight import Weight
from rosler_jax.network import LAYERS


def build_graph(
    specs: Sequence[Mapping[str, Any]], tensors: Mapping[str, Any],
    input_shape: Sequence[int] | None = None,
) -> Graph:  # fmt: skip
    """Rebuilds a network from its layers' descriptions and traces it; stored integers stay.

    Args:
      specs: descriptions of the layers (see :mod:`rosler_jax.network`).
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
    shape = input_shape_of(specs, input_shape)
    for i, spec in enumerate(specs):
        kind = spec.get("kind")
        if not isinstance(kind, str) or kind not in LAYERS:
            raise TraceError(f"layer {i} is of kind {kind!r}; use one of {', '.join(LAYERS)}")
        if spec.get("mode") == "ares":
            raise TraceError(
                f"layer {i} is an aRes-BP layer as it trains; deploy the network first (rosler "
                "train does), which makes plain factors of it"
            )
    if not specs:
        raise TraceError("the network has no layers; there is nothing to trace")
    _check_size("the input", shape)
    stored = {f"layers/{name}": Weight(name, _plain(tensor)) for name, tensor in tensors.items()}
    example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    try:
        graph = trace_stored(rebuild(specs, tensors), stored, example)
    except TraceError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, AttributeError) as error:
        raise TraceError(f"the network cannot run on inputs of shape {shape}: {error}") from error
    for op in graph.ops:
        for out in op.out_shapes:
            _check_size(op.name, out)
    return graph


def _plain(tensor: Any) -> Any:
    return np.asarray(tensor) if hasattr(tensor, "__array__") else tensor


def _check_size(name: str, shape: tuple[int, ...]) -> None:
    if min(shape, default=1) < 1 or math.prod(shape) > MAX_ELEMENTS:
        raise TraceError(
            f"{name}: an output of shape {shape}; expected 1 to {MAX_ELEMENTS} numbers"
        )


def input_shape_of(
    specs: Sequence[Mapping[str, Any]], given: Sequence[int] | None
) -> tuple[int, ...]:
    """The shape of one input: as given, or as the first layer with a size tells.

    Raises:
      TraceError: for sizes that no input has, or layers that do not tell.
    """
    if given is not None:
        shape = tuple(given) if isinstance(given, list | tuple) else ()
        if not shape or not all(isinstance(n, int | np.integer) and n >= 1 for n in shape):
            raise TraceError(f"input_shape {given!r:.80}; expected positive sizes, as 28,28,1")
        return tuple(int(n) for n in shape)
    for spec in specs:
        if "conv" in str(spec.get("kind")) or "pool" in str(spec.get("kind")):
            raise TraceError(
                "a network with convolutions or pooling needs the shape of its inputs; pass "
                "input_shape (--input-shape), as 28,28,1"
            )
        if "in_features" in spec:
            return (int(spec["in_features"]),)
    raise TraceError("no layer tells the shape of the inputs; pass input_shape (--input-shape)")
