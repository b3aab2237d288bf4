"""From a deployed network to its graph of plain operations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rosler_jax._quantized import FLOAT_BITS
from rosler_jax.export._errors import ExportError
from rosler_jax.export.graph import (
    MAX_ELEMENTS,
    Affine,
    Conv,
    Dense,
    Graph,
    Op,
    Shape,
    Weight,
)
from rosler_jax.export.layers import LAYERS, Layer, Tensors
from rosler_jax.graph.layers import build_graph as build_graph


def old_graph(
    specs: Sequence[Mapping[str, Any]], tensors: Tensors, input_shape: Sequence[int] | None = None
) -> Graph:
    """Turns a deployed network into operations.

    Batch normalisation is folded into the product before it, where there is one.

    Args:
      specs: descriptions of the layers (see :mod:`rosler_jax.network`).
      tensors: named tensors of the model file, ``"2/c"``; checked against the specs before
        (:func:`rosler_jax.deploy.load_network` does).
      input_shape: of one example; needed where convolutions come before any linear layer.

    Returns:
      The graph.

    Raises:
      ExportError: for a layer that cannot be exported, shapes that do not fit, or arrays of more
        than 2^31 - 1 numbers.

    Example:
      >>> specs = [{"kind": "linear", "in_features": 2, "out_features": 3}, {"kind": "relu"}]
      >>> graph = old_graph(specs, {"0/kernel": np.ones((2, 3)), "0/bias": np.zeros(3)})
      >>> [type(op).__name__ for op in graph.ops], graph.out_shape
      (['Dense', 'Activate'], (3,))
    """
    shape = _input_shape(specs, input_shape)
    ops: list[Op] = []
    for i, spec in enumerate(specs):
        kind = spec.get("kind")
        if not isinstance(kind, str) or kind not in LAYERS:
            raise ExportError(
                f"layer {i} is of kind {kind!r}, which cannot be exported; use one of "
                f"{', '.join(LAYERS)}"
            )
        for op in _operations(i, spec, tensors, shape):
            _check_size(op)
            ops.append(op)
            shape = op.out_shape
    if not ops:
        raise ExportError("the network has no layers; there is nothing to export")
    return Graph(tuple(_fold_affine(ops)))


def _operations(i: int, spec: Mapping[str, Any], tensors: Tensors, shape: Shape) -> list[Op]:
    """A layer's operations; a description that makes no sense is an error with the layer's name."""
    try:
        return LAYERS[spec["kind"]](Layer(i, spec, tensors), shape)
    except ExportError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, AttributeError) as error:
        raise ExportError(f"layer {i} {dict(spec)!r:.200} cannot be exported: {error}") from error


def _input_shape(specs: Sequence[Mapping[str, Any]], given: Sequence[int] | None) -> Shape:
    if given is not None:
        shape = tuple(given) if isinstance(given, list | tuple) else ()
        if not shape or not all(isinstance(n, int | np.integer) and n >= 1 for n in shape):
            raise ExportError(f"input_shape {given!r:.80}; expected positive sizes, as 28,28,1")
        return tuple(int(n) for n in shape)
    for spec in specs:
        if "conv" in str(spec.get("kind")) or "pool" in str(spec.get("kind")):
            raise ExportError(
                "a network with convolutions or pooling needs the shape of its inputs; pass "
                "input_shape (--input-shape), as 28,28,1"
            )
        if "in_features" in spec:
            return (int(spec["in_features"]),)
    raise ExportError("no layer tells the shape of the inputs; pass input_shape (--input-shape)")


def _check_size(op: Op) -> None:
    if min(op.out_shape) < 1 or math.prod(op.out_shape) > MAX_ELEMENTS:
        raise ExportError(
            f"{op.name}: an output of shape {op.out_shape}; expected 1 to {MAX_ELEMENTS} numbers"
        )


def _fold_affine(ops: Sequence[Op]) -> list[Op]:
    """Puts an affine map into the product before it."""
    out: list[Op] = []
    for op in ops:
        before = out[-1] if out else None
        if isinstance(op, Affine) and isinstance(before, Dense | Conv):
            out[-1] = _scaled(before, op)
        else:
            out.append(op)
    return out


def _scaled(op: Dense | Conv, affine: Affine) -> Op:
    n = op.out_shape[-1]
    factor = np.broadcast_to(affine.factor, (n,)).astype(np.float32)
    w = op.weight
    values = (w.values * factor).astype(np.float32)
    if w.integers is not None and w.axis != -2:
        scale = (np.broadcast_to(w.scale, (n,)) * factor).astype(np.float32)
        signs = np.where(scale < 0, -1, 1)  # a scale stays positive: the integers take the sign
        integers = (w.integers * signs).astype(w.integers.dtype)
        weight = dataclasses.replace(
            w, values=values, integers=integers, scale=np.abs(scale), axis=-1
        )
    else:
        ones = np.ones((), np.float32)
        weight = Weight(w.name, values, None, ones, None, FLOAT_BITS)
    bias = np.zeros(n, np.float32) if op.bias is None else op.bias
    shifted = ((bias - affine.center) * factor).astype(np.float32)
    return dataclasses.replace(op, weight=weight, bias=shifted)
