"""StableHLO by ``jax.export``: one file for CPU, CUDA and TPU and for batches of any size.

Sketches stay seeds: the program regenerates them. The file needs JAX alone, not this library::

    import jax, pathlib

    program = jax.export.deserialize(bytearray(pathlib.Path("model.stablehlo").read_bytes()))
    y = program.call(x)  # x float32, (batch, *in_shape)

and ``program.mlir_module_serialized`` is the portable StableHLO artifact for other compilers.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import rosler_kernels as rk
from rosler_jax.export import reference
from rosler_jax.export._errors import ExportError
from rosler_jax.export._stored import integers_of, replace_bytes
from rosler_jax.export.graph import Conv, Dense, Graph, Op, Weight

if TYPE_CHECKING:
    from jaxtyping import Array, Float

PLATFORMS = ("cpu", "cuda", "tpu")
STORED: dict[int, Any] = {32: np.float32, 16: np.int16, 8: np.int8, 4: np.int8}
"""The type of the weights in the file by their bits; those of 4 lie two in a byte."""

Run = Callable[[Any], Any]


def to_stablehlo(graph: Graph, path: str | os.PathLike[str], *, bits: int = 32) -> int:
    """Writes a graph as a serialised JAX program.

    Args:
      graph: the network.
      path: file to write.
      bits: of the stored weights: 32 (floats), 16, 8 or 4. Integers of the model file are kept
        where they have no more bits; arithmetic is in float32 throughout.

    Returns:
      Bytes of the file.

    Raises:
      ExportError: for unknown bits.
      ImportError: if the extra is not installed.
      OSError: if the file cannot be written.

    Example:
      >>> import tempfile
      >>> from rosler_jax.export.build import build_graph
      >>> specs = [{"kind": "linear", "in_features": 2, "out_features": 1}]
      >>> graph = build_graph(specs, {"0/kernel": np.ones((2, 1))})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = to_stablehlo(graph, f"{folder}/m.stablehlo")
      ...     load_stablehlo(f"{folder}/m.stablehlo")(jnp.ones((3, 2))).tolist()
      [[2.0], [2.0], [2.0]]
    """
    data = exported(graph, bits).serialize()
    replace_bytes(path, bytes(data))
    return len(data)


def exported(graph: Graph, bits: int = 32) -> jax.export.Exported:
    """The ``jax.export.Exported`` of a graph; see :func:`to_stablehlo`."""
    if bits not in STORED:
        known = ", ".join(map(str, STORED))
        raise ExportError(f"bits {bits!r} cannot be written to StableHLO; use one of {known}")
    _require_flatbuffers()
    (batch,) = jax.export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, *graph.in_shape), jnp.float32)
    # The kernels of one accelerator would not run on the others.
    with rk.use_implementation("xla"):
        return jax.export.export(jax.jit(forward(graph, bits)), platforms=PLATFORMS)(x)


def forward(graph: Graph, bits: int = 32) -> Run:
    """What the file computes: pure, on a batch.

    Example by example, since the kernels choose their way by the size of the batch, which is not
    known here.

    Args:
      graph: the network.
      bits: of the weights.
    """

    def one(x: Float[Array, "*features"]) -> Float[Array, "*out"]:
        stored = Graph(tuple(_with_integers(op, bits) for op in graph.ops))
        return reference.run(stored, x[None])[0]

    return jax.vmap(one)


def _with_integers(op: Op, bits: int) -> Op:
    if bits == 32 or not isinstance(op, Dense | Conv):
        return op
    weight = dataclasses.replace(op.weight, values=_real(op.weight, bits))
    return dataclasses.replace(op, weight=weight)


def _real(weight: Weight, bits: int) -> Any:
    """The weight as the program makes it from integers, to be traced."""
    values, scale, axis = integers_of(weight, bits)
    if axis is not None:
        others = (k for k in range(values.ndim) if k != axis % values.ndim)
        scale = np.expand_dims(scale, tuple(others))
    stored = _nibbles(values) if bits == 4 else jnp.asarray(values.astype(STORED[bits]))
    return stored.astype(jnp.float32) * scale


def _nibbles(values: np.ndarray) -> Array:
    """Integers of 4 bits, two in a byte: StableHLO itself would take a byte for each."""
    flat = np.append(values.ravel(), np.zeros(values.size % 2, np.int8)).astype(np.uint8)
    packed = jnp.asarray(((flat[0::2] & 15) | (flat[1::2] << 4)).astype(np.int8))
    pairs = jnp.stack([(packed << 4) >> 4, packed >> 4], axis=1)  # arithmetic: signs extend
    return pairs.reshape(-1)[: values.size].reshape(values.shape)


def _require_flatbuffers() -> None:
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "writing StableHLO needs the flatbuffers package; install it with pip install "
            "rosler-jax[export]"
        ) from error


def load_stablehlo(path: str | os.PathLike[str]) -> Run:
    """Reads back what :func:`to_stablehlo` wrote.

    Args:
      path: the file.

    Returns:
      A function from inputs ``(batch, *in_shape)`` to outputs ``(batch, *out_shape)``; it can be
      jitted.

    Raises:
      ExportError: if the file is damaged, or was written by an incompatible version of JAX.
      ImportError: if the extra is not installed.
      OSError: if it cannot be read.
    """
    _require_flatbuffers()
    data = Path(path).read_bytes()
    try:
        program = jax.export.deserialize(bytearray(data))
    except Exception as error:  # flatbuffers and MLIR raise whatever the damage leads to
        raise ExportError(
            f"{path}: not a StableHLO file of this library ({error}); export the model again"
        ) from error
    return lambda x: program.call(jnp.asarray(x, jnp.float32))
