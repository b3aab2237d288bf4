"""TFLite, written straight from the graph: runs in LiteRT and in TFLite Micro.

Four kinds of files: floats; weights of 16, 8 or 4 bits that are read as floats (TFLite Micro has
no 4 bits); and, with calibration inputs, weights of 8 bits and activations of 16 ("16x8") or of 8,
where products are integer throughout. Layer norms, running sums and functions of two values that
TFLite has in floats alone are computed in floats there, too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from rosler_jax._files import replace_bytes
from rosler_jax.export._errors import ExportError
from rosler_jax.export._tflite_builder import Builder, Value, copied, real, reshape, value
from rosler_jax.export._tflite_file import serialize
from rosler_jax.export._tflite_kinds import batched, emitted
from rosler_jax.export.inputs import calibration_inputs
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.graph import Value as Named
from rosler_jax.graph.weight import Weight

BITS = (32, 16, 8, 4)
LARGEST = 2**31 - 1  # bytes of one flatbuffer


def to_tflite(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    bits: int = 32,
    calibration: Any = None,
    activations: int = 16,
) -> int:
    """Writes a graph as a TFLite file.

    Inputs and outputs are what the graph's are, with a batch of 1 in front that LiteRT can resize;
    the signature ``"serving_default"`` calls them ``"input"`` and ``"output"``, with the graph's
    names behind an underscore where there are several.

    Args:
      graph: the model.
      path: file to write.
      bits: of the stored weights: 32 (floats), 16, 8, or 4 (LiteRT alone). Integers of the model
        file are kept where they have no more bits.
      calibration: representative inputs, some hundreds, one array for each of the graph's inputs;
        with 8 bits activations become integers, scaled by what these inputs give. What lies beyond
        saturates.
      activations: their bits where they are integers, 16 or 8.

    Returns:
      Bytes of the file.

    Raises:
      ExportError: for unknown bits, an operation that TFLite does not have, bad calibration inputs,
        or a model of 2 GB and more.
      ImportError: if the extra is not installed.
      OSError: if the file cannot be written.

    Example:
      >>> import tempfile
      >>> from rosler_jax.graph.kinds import Dense
      >>> from rosler_jax.graph.graph import Graph, Value
      >>> from rosler_jax.graph.weight import Weight
      >>> weight = Weight("kernel", np.ones((2, 1), np.float32))
      >>> shapes = {"inputs": (0,), "outputs": (1,), "in_shapes": ((1, 2),), "out_shapes": ((1,),)}
      >>> op = Dense(name="dense", weight=weight, **shapes)
      >>> graph = Graph((Value(0, "0", (2,)),), (op,), (Value(1, "0", (1,)),))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = to_tflite(graph, f"{folder}/m.tflite")
      ...     open(f"{folder}/m.tflite", "rb").read()[4:8]
      b'TFL3'
    """
    data = tflite_model(graph, bits, calibration, activations)
    replace_bytes(path, data)
    return len(data)


def tflite_model(
    graph: Graph, bits: int = 32, calibration: Any = None, activations: int = 16
) -> bytes:
    """The file's contents; see :func:`to_tflite`."""
    _check(graph, bits, calibration, activations)
    samples = _samples(graph, calibration)
    b = Builder(bits, 32 if calibration is None else activations)
    given = [
        value(b, (1, *v.shape), sample, real=True, dtype=v.dtype)
        for v, sample in zip(graph.inputs, samples, strict=True)
    ]
    b.first = given[0]
    outputs: list[Value] = []
    for v, x in zip(graph.outputs, emitted(b, graph, given), strict=True):
        outputs.append(_output(b, v, x, [*given, *outputs]))
    data = serialize(
        b.model, _named("input", graph.inputs, given), _named("output", graph.outputs, outputs)
    )
    if len(data) > LARGEST:
        raise ExportError(
            f"the model takes {len(data)} bytes, more than a TFLite file's {LARGEST}; use fewer "
            "bits or a sketch that is stored as signs (srht, rademacher)"
        )
    return data


def _named(what: str, names: Sequence[Named], values: Sequence[Value]) -> list[tuple[str, int]]:
    """Tensors with what the signature calls them."""
    if len(names) == 1:
        return [(what, values[0].tensor)]
    return [(f"{what}_{v.name}", x.tensor) for v, x in zip(names, values, strict=True)]


def _output(b: Builder, v: Named, x: Value | Weight, taken: Sequence[Value]) -> Value:
    """An output as a tensor of its own, in its shape."""
    y = batched(b, x, v.shape) if isinstance(x, Weight) else reshape(b, real(b, x), *v.shape)
    return copied(b, y, *v.shape) if any(y.tensor == other.tensor for other in taken) else y


def _samples(graph: Graph, calibration: Any) -> list[np.ndarray | None]:
    """Calibration inputs, one array for each input."""
    if calibration is None:
        return [None] * len(graph.inputs)
    arrays = [calibration] if len(graph.inputs) == 1 else list(calibration)
    if len(graph.inputs) > 1 and len(arrays) != len(graph.inputs):
        raise ExportError(
            f"{len(arrays)} arrays of calibration inputs for {len(graph.inputs)} inputs; pass one "
            "for each, in order"
        )
    samples = [
        calibration_inputs(array, v.shape, v.dtype)
        for v, array in zip(graph.inputs, arrays, strict=True)
    ]
    if len({len(sample) for sample in samples}) > 1:
        raise ExportError(
            f"calibration inputs of {[len(sample) for sample in samples]} examples; pass as many "
            "for every input"
        )
    return list(samples)


def _check(graph: Graph, bits: int, calibration: Any, activations: int) -> None:
    try:
        import flatbuffers  # noqa: F401
        import tflite  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "writing TFLite needs the tflite and flatbuffers packages; install them with pip "
            "install rosler-jax[export]"
        ) from error
    if bits not in BITS:
        known = ", ".join(map(str, BITS))
        raise ExportError(f"bits {bits!r} cannot be written to TFLite; use one of {known}")
    if not graph.inputs:
        raise ExportError("the model takes no inputs: there is nothing to compute; give it some")
    if calibration is not None and activations not in (8, 16):
        raise ExportError(f"activations of {activations!r} bits; use 16 or 8")
    if calibration is not None and bits != 8:
        raise ExportError(
            f"calibration inputs are for weights of 8 bits with integer activations, not for "
            f"{bits}; pass bits=8, or no calibration"
        )
    size = sum(w.values.size for w in graph.weights()) * bits // 8
    if size > LARGEST:
        raise ExportError(
            f"the weights alone take {size} bytes, more than a TFLite file's {LARGEST}; use fewer "
            "bits"
        )
