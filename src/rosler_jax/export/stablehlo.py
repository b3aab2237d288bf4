"""StableHLO by ``jax.export``: one file for CPU, CUDA and TPU and for batches of any size.

Sketches stay seeds: the program regenerates them, on each platform in its own way. The file needs
JAX alone, not this library::

    import jax, pathlib

    program = jax.export.deserialize(bytearray(pathlib.Path("model.stablehlo").read_bytes()))
    y = program.call(x)  # an array (batch, *in_shape) for each input

and ``program.mlir_module_serialized`` is the portable StableHLO artifact for other compilers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax._bitpack import pack
from rosler_jax._files import replace_bytes
from rosler_jax.export._errors import ExportError
from rosler_jax.export._stored import in_integers, read_whole
from rosler_jax.graph import Graph, Weight, map_weights, run
from rosler_jax.graph.kinds import Conv, Dense, Gather, Scan
from rosler_jax.graph.weight import simplified

if TYPE_CHECKING:
    from jaxtyping import Array

PLATFORMS = ("cpu", "cuda", "tpu")
STORED: dict[int, Any] = {32: np.float32, 16: np.int16, 8: np.int8, 4: np.int8}
"""The type of the weights in the file by their bits; those of 4 lie two in a byte."""

Run = Callable[..., Any]


def to_stablehlo(graph: Graph, path: str | os.PathLike[str], *, bits: int = 32) -> int:
    """Writes a graph as a serialised JAX program.

    Args:
      graph: the model.
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
      >>> from rosler_jax.graph import trace
      >>> graph = trace(lambda x: 2 * x.sum(-1), jnp.ones((1, 2)))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = to_stablehlo(graph, f"{folder}/m.stablehlo")
      ...     load_stablehlo(f"{folder}/m.stablehlo")(jnp.ones((3, 2))).tolist()
      [4.0, 4.0, 4.0]
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
    xs = [jax.ShapeDtypeStruct((batch, *x.shape), x.dtype) for x in graph.inputs]
    return jax.export.export(jax.jit(forward(graph, bits)), platforms=PLATFORMS)(*xs)


def forward(graph: Graph, bits: int = 32) -> Run:
    """What the file computes: pure, from a batch of each input to what the model returns.

    Args:
      graph: the model.
      bits: of the weights.
    """
    whole, matrices = read_whole(graph.weights()), set(_matrices(graph))
    stored: dict[str, tuple[Weight, bool]] = {}

    def named(weight: Weight) -> Weight:
        """The same array, under a name that no other one has."""
        key = id(weight.stored)
        held = Weight(weight.name, weight.stored) if key in whole else weight
        name = f"{key} {simplified(held)}"
        if name not in stored:
            stored[name] = held, key in matrices
        return Weight(name, held.values, weight.layout if key in whole else ())

    graph = map_weights(graph, named)

    def batch(*xs: Array) -> Any:
        params = {name: _real(*each, bits) for name, each in stored.items()}
        ys = jax.vmap(lambda *xs: run(graph, xs, params))(*xs)
        return ys[0] if graph.structure is None else jax.tree.map(ys.__getitem__, graph.structure)

    return batch


def _matrices(graph: Graph) -> Iterator[int]:
    """Stored tensors, by id, of which there is much: those of products and tables."""
    for op in graph.ops:
        if isinstance(op, Dense | Conv):
            yield id(op.weight.stored)
        elif isinstance(op, Gather) and op.inputs[0] in graph.constants:
            yield id(graph.constants[op.inputs[0]].stored)
        elif isinstance(op, Scan):
            yield from _matrices(op.body)


def _real(weight: Weight, matrix: bool, bits: int) -> Array:
    """A stored array as the program makes it, from integers where the file is to have these."""
    kept = weight.integers is not None and weight.bits <= bits
    if bits == 32 or weight.values.dtype.kind in "biu" or not (matrix or kept):
        return jnp.asarray(weight.values)
    new = in_integers(weight, bits)
    assert new.integers is not None
    few = _nibbles(new.integers) if bits == 4 else jnp.asarray(new.integers.astype(STORED[bits]))
    return few.astype(jnp.float32) * new.factors


def _nibbles(values: np.ndarray) -> Array:
    """Integers of 4 bits, two in a byte: StableHLO itself would take a byte for each."""
    packed = jnp.asarray(np.frombuffer(pack(values, 4), np.int8))
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
      A function of an array ``(batch, *in_shape)`` for each input; it gives what the model returns
      with a batch axis in front, and can be jitted.

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
    given = program.in_avals
    return lambda *xs: program.call(
        *(jnp.asarray(x, aval.dtype) for x, aval in zip(xs, given, strict=True))
    )
