"""``save`` and ``load``: a model as one file, called again without the code that made it."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax import modelfile
from rosler_jax._paths import path_name
from rosler_jax._quantized import QuantizedTensor, to_numpy
from rosler_jax.graph.check import GraphError
from rosler_jax.graph.compute import run
from rosler_jax.graph.file import from_json, to_json
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.quantize import quantize_graph, storable
from rosler_jax.graph.trace import trace
from rosler_jax.graph.version1 import build_graph
from rosler_jax.modelfile import ModelFile, ModelFileError

if TYPE_CHECKING:
    from jaxtyping import Array

    Bits = int | Callable[[tuple[str, ...]], int]

MODEL = "model.rosler"


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model read from its file: called as the model that was saved.

    Attributes:
      graph: its operations, of one example.
      file: what the file holds.
    """

    graph: Graph
    file: ModelFile

    def __call__(self, *args: Any) -> Any:
        """Computes a batch.

        Args:
          *args: as the saved model took them, with a batch axis in front of every array.

        Returns:
          What the saved model returned, tuples as lists, with the batch in front.

        Raises:
          ValueError: for arguments of another structure, or other shapes.
        """
        leaves, _ = jax.tree_util.tree_flatten_with_path(args)
        xs = _checked(self.graph, [(path_name(path), x) for path, x in leaves])
        return _structured(self.graph.structure, self._compiled(self.params, xs))

    @functools.cached_property
    def params(self) -> dict[str, Array]:
        """The stored arrays by name, floats as float32."""
        stored = {weight.name: weight.stored for weight in self.graph.weights()}
        with jax.ensure_compile_time_eval():  # kept, also where the first call is being traced
            return {
                name: jnp.asarray(to_numpy(x) if isinstance(x, QuantizedTensor) else x)
                for name, x in stored.items()
            }

    @functools.cached_property
    def _compiled(self) -> Callable[..., list[Array]]:
        def batched(params: Any, xs: Sequence[Any]) -> list[Array]:
            return jax.vmap(lambda *x: run(self.graph, x, params))(*xs)

        return jax.jit(batched)


def _checked(graph: Graph, given: Sequence[tuple[str, Any]]) -> list[Any]:
    """The arguments as arrays of the dtypes that the graph takes."""
    wanted = [f"{v.name}: (batch, {str(v.shape)[1:-1].rstrip(',')})" for v in graph.inputs]
    if len(given) != len(graph.inputs):
        raise ValueError(
            f"the model takes {len(wanted)} arrays ({'; '.join(wanted)}), and is given {len(given)}"
        )
    arrays = [(name, x if hasattr(x, "dtype") else np.asarray(x)) for name, x in given]
    sizes = {x.shape[:1] for _, x in arrays}
    for (name, x), value, what in zip(arrays, graph.inputs, wanted, strict=True):
        other = len(given) > 1 and name != value.name
        rounded = value.dtype != "float32" and jnp.issubdtype(x.dtype, jnp.floating)
        if other or x.shape[1:] != value.shape or len(sizes) != 1 or rounded:
            raise ValueError(
                f"argument {name} is {x.dtype} of shape {x.shape}; the model takes "
                f"{value.dtype}, {what}, the same batch for all"
            )
    return [jnp.asarray(x, v.dtype) for (_, x), v in zip(arrays, graph.inputs, strict=True)]


def _structured(structure: Any, outputs: Sequence[Any]) -> Any:
    if structure is None:
        return outputs[0]

    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: fill(inner) for key, inner in node.items()}
        if isinstance(node, list):
            return [fill(inner) for inner in node]
        return None if node is None else outputs[node]

    return fill(structure)


def save(
    path: str | os.PathLike[str],
    model: Any,
    *examples: Any,
    bits: Bits = 32,
    metadata: Mapping[str, Any] | None = None,
    coded: bool = False,
    **options: Any,
) -> int:
    """Writes a model's file: its operations and its weights, so that no code of it is needed again.

    Args:
      path: where to.
      model: a graph, or what :func:`rosler_jax.graph.trace` takes.
      *examples: arguments of the model with their batch, where it is no graph.
      bits: of the weights: 32, 16, 8, 4, 3 or 2, or a function from a tensor's path to one of
        these; see :func:`rosler_jax.graph.quantize_graph`.
      metadata: JSON types, kept in the file and counted in its size.
      coded: entropy-codes the integers: the smallest file, of version 3.
      **options: of ``trace``.

    Returns:
      Bytes of the file.

    Raises:
      TraceError: for a model that has no graph.
      ModelFileError: for one that cannot be stored, or unknown bits.
      OSError: if the file cannot be written.

    Example:
      >>> import tempfile
      >>> from flax import nnx
      >>> layer, x = nnx.Linear(4, 2, rngs=nnx.Rngs(0)), jnp.ones((3, 4))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     size = save(f"{folder}/m.rosler", layer, x, bits=8)
      ...     load(f"{folder}/m.rosler")(x).shape
      (3, 2)
    """
    graph = graph_of(model, *examples, **options)
    data = encoded(graph, bits, metadata, name=str(path), coded=coded)
    modelfile.write_encoded(path, data)
    return len(data)


def encoded(
    graph: Graph,
    bits: Bits = 32,
    metadata: Mapping[str, Any] | None = None,
    *,
    name: str = "model",
    coded: bool = False,
) -> bytes:
    """The bytes of a graph's file; the same graph gives the same bytes."""
    try:
        content, tensors = to_json(quantize_graph(storable(graph), bits))
    except ValueError as error:
        raise ModelFileError(f"{name}: the model cannot be saved: {error}") from error
    return modelfile.encode(tensors, {}, metadata or {}, name=name, graph=content, coded=coded)


def graph_of(model: Any, *examples: Any, **options: Any) -> Graph:
    """The graph that a model is, has, or traces to."""
    graph = getattr(model, "graph", model)
    return graph if isinstance(graph, Graph) else trace(model, *examples, **options)


def model_path(path: str | os.PathLike[str]) -> Path:
    """The model file of a run's folder; any other path is the file itself."""
    path = Path(path)
    return path / MODEL if path.is_dir() else path


def load(path: str | os.PathLike[str], *, input_shape: Sequence[int] | None = None) -> Model:
    """Reads a model's file.

    Args:
      path: a file, or the folder of a run.
      input_shape: of one example; needed for convolutions in a file of version 1.

    Returns:
      The model, to be called on a batch.

    Raises:
      ModelFileError: for a damaged file, or one that is of no model.
      OSError: if it cannot be read.

    Example:
      >>> import tempfile, jax.numpy as jnp, rosler_jax
      >>> from flax import nnx
      >>> graph = rosler_jax.trace(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), jnp.ones((1, 4)))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     size = rosler_jax.save(f"{folder}/model.rosler", graph, bits=8)
      ...     loaded = rosler_jax.load(f"{folder}/model.rosler")
      >>> loaded(jnp.ones((5, 4))).shape
      (5, 2)
    """
    path = model_path(path)
    file = modelfile.load(path)
    return Model(graph_of_file(file, str(path), input_shape), file)


def graph_of_file(
    file: ModelFile, name: str = "model", input_shape: Sequence[int] | None = None
) -> Graph:
    """The graph that a model file holds, or describes.

    Raises:
      ModelFileError: if what it holds makes no sense.
    """
    try:
        if file.graph is not None:
            return from_json(file.graph, file.tensors)
        shape = file.spec.get("input_shape") if input_shape is None else input_shape
        return build_graph(file.spec.get("layers"), file.tensors, shape)
    except GraphError as error:
        raise ModelFileError(f"{name}: its graph makes no sense: {error}") from error
    except ModelFileError:
        raise
    except ValueError as error:
        raise ModelFileError(f"{name}: {error}") from error
