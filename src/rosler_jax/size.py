"""Where the bytes and the work of a model are, layer by layer, beside the dense network's."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rosler_jax import _table, modelfile
from rosler_jax._layer_views import matrix_views
from rosler_jax._paths import TRAINING_ONLY, layer_name, path_name, role_name
from rosler_jax._quantized import scale_shape
from rosler_jax.graph._source import TraceError
from rosler_jax.graph.count import ELSEWHERE, Operations, Part, parts
from rosler_jax.graph.file import put
from rosler_jax.graph.graph import Graph, op_weights
from rosler_jax.graph.quantize import quantization_plan
from rosler_jax.graph.save import graph_of_file, model_path
from rosler_jax.graph.trace import trace
from rosler_jax.graph.weight import source_name
from rosler_jax.modelfile import ModelFile, QuantizedTensor, TensorBytes
from rosler_jax.quantization import leaf_bits, scale_axes

_FLOAT32_BYTES = 4


@dataclasses.dataclass(frozen=True)
class LayerSize:
    """One layer of a :class:`SizeReport`; operations are per input, None where they are not known.

    Attributes:
      name: path of the layer in the model.
      kind: the layer in words.
      weights: numbers in its matrices and kernels.
      bits: widths in which these are stored, each once.
      biases: numbers in its bias.
      scales: scales of its quantised tensors.
      seeds: 32-bit words of seeds.
      other: all other stored numbers (normalisation, statistics).
      bytes: of all these in the model file, coded ones by their share of its stream; a seed's are
        eight, also where it is in the header.
      multiplications, additions: of products, projections and bias, for one example.
      dense_parameters, dense_bytes, dense_multiplications, dense_additions: of the dense float32
        layer with the same sizes.
    """

    name: str
    kind: str
    weights: int
    bits: tuple[int, ...]
    biases: int
    scales: int
    seeds: int
    other: int
    bytes: int
    multiplications: int | None
    additions: int | None
    dense_parameters: int | None
    dense_bytes: int | None
    dense_multiplications: int | None
    dense_additions: int | None

    @property
    def parameters(self) -> int:
        """Weights, biases and all other stored numbers but scales and seeds."""
        return self.weights + self.biases + self.other


TOTALS = (
    "parameters", "weights", "biases", "scales", "seeds", "other", "bytes", "multiplications",
    "additions", "dense_parameters", "dense_bytes", "dense_multiplications", "dense_additions",
)  # fmt: skip
RATIOS = ("parameters", "bytes", "multiplications", "additions")


@dataclasses.dataclass(frozen=True)
class SizeReport:
    """What :func:`size_report` found; prints as a table.

    Attributes:
      layers: the layers that store anything, sorted by path.
      header_bytes: bytes of the file that belong to no layer: prefix, header and checksum; 0 where
        there is no file.
      is_file: whether the source was a model file.
    """

    layers: tuple[LayerSize, ...]
    header_bytes: int
    is_file: bool

    @property
    def file_bytes(self) -> int:
        """Bytes of all layers and the header: those of the file, if there is one."""
        return self.header_bytes + sum(layer.bytes for layer in self.layers)

    def total(self, column: str) -> int | None:
        """The sum of a column of :data:`TOTALS` over all rows; None if a layer's is not known."""
        values = [getattr(layer, column) for layer in self.layers]
        extra = self.header_bytes if column == "bytes" else 0
        return None if None in values else sum(values) + extra

    def ratio(self, column: str) -> float | None:
        """The dense network's total of a column of :data:`RATIOS` over this model's."""
        mine, dense = self.total(column), self.total(f"dense_{column}")
        return None if not mine or dense is None else dense / mine

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        rows = [
            {**dataclasses.asdict(layer), "bits": list(layer.bits), "parameters": layer.parameters}
            for layer in self.layers
        ]
        return {
            "layers": rows,
            "header_bytes": self.header_bytes,
            "file_bytes": self.file_bytes if self.is_file else None,
            "total": {column: self.total(column) for column in TOTALS},
            "ratio": {column: self.ratio(column) for column in RATIOS},
        }

    def __str__(self) -> str:
        """The table, as plain text."""
        return _draw(self)


class _Source(NamedTuple):
    """A model to be reported.

    Attributes:
      tensors: what is stored, by name.
      graph: what is computed; None where the shapes of the inputs are not known.
      file_bytes: of the file, if it is one.
      stored: bytes of the tensors in the file.
    """

    tensors: Mapping[str, Any]
    graph: Graph | None
    file_bytes: int | None = None
    stored: Mapping[str, TensorBytes] | None = None


def size_report(
    source: Any,
    *,
    bits: int | Callable[[tuple[str, ...]], int] | None = None,
    input_shape: Sequence[int] | None = None,
    inputs: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> SizeReport:
    """Counts weights, bytes and operations per layer, of a model and of its dense counterpart.

    The dense counterpart has the same layer sizes, in float32. Operations are those of products,
    projections and biases for one input, by the thin side; activations, pooling and normalisation
    are the same in both networks and not counted. Products of two computed values (attention
    scores) have a row of their own, the same in both. A layer counts as often as it is applied, in
    a scan at every position. Nothing is computed: shapes suffice.

    Args:
      source: a model file, the folder of a run, a :class:`rosler_jax.modelfile.ModelFile`, what
        was loaded from one, a graph, an NNX model, a Linen ``(module, variables)``, or ``(function,
        params)``. Parameters may be ``jax.ShapeDtypeStruct``.
      bits: in which a model that is no file would be stored: for its weights, or a function from a
        tensor's path; None for 32.
      input_shape: of one input of floats, without the batch; by default what the file says. Where
        it is not known of a model, neither is the work.
      inputs: in its place, all arguments of one call, with their batch: arrays or
        ``jax.ShapeDtypeStruct`` of tokens, several inputs, a carry. Operations are those of one
        example, whatever the batch.
      kwargs: keyword arguments of that call.

    Returns:
      The report. For a file its rows, the header's included, add up to the bytes of the file.

    Raises:
      ModelFileError: for a damaged model file.
      TraceError: for a model that has no graph.
      ValueError: for unknown bits, bits for a file, or inputs that the model does not take.
      TypeError: for any other source.
      OSError: if there is no such file.

    Example:
      >>> from flax import nnx
      >>> from rosler_jax import SketchLinear
      >>> layer = SketchLinear(784, 1024, rank=16, mode="seeded", rngs=nnx.Rngs(0))
      >>> report = size_report(nnx.Sequential(layer), bits=16, input_shape=(784,))
      >>> report.total("weights"), report.total("seeds"), report.total("dense_parameters")
      (2048, 4, 803840)
      >>> report.layers[0].multiplications
      2048
    """
    if inputs is None and input_shape is not None:
        inputs = (jax.ShapeDtypeStruct((1, *input_shape), jnp.float32),)
    found = _read(source, bits, None if inputs is None else tuple(inputs), kwargs)
    layers = _rows(found)
    stored = sum(layer.bytes for layer in layers)
    header = 0 if found.file_bytes is None else found.file_bytes - stored
    return SizeReport(tuple(layers), header, found.file_bytes is not None)


# Sources.


def _read(source: Any, bits: Any, inputs: Any, kwargs: Any) -> _Source:
    file = getattr(source, "file", source)
    if isinstance(file, str | os.PathLike):
        path = model_path(file)
        return _from_file(modelfile.load(path), str(path), bits, inputs)
    if isinstance(file, ModelFile):
        return _from_file(file, "model file", bits, inputs)
    if isinstance(source, Graph):
        return _from_graph(source, bits)
    known = isinstance(source, nnx.Module) or (isinstance(source, tuple) and len(source) == 2)
    if not known:
        raise TypeError(
            f"size_report cannot read a {type(source).__name__}; pass a path, a ModelFile, a "
            "graph, an NNX model, (module, variables), or (function, params)"
        )
    return _from_model(source, bits, inputs, kwargs)


def _from_file(file: ModelFile, name: str, bits: Any, inputs: Any) -> _Source:
    if bits is not None:
        raise ValueError(f"{name} has its bits already; pass bits only for a model that is no file")
    shape = None if inputs is None else inputs[0].shape[1:]
    graph = graph_of_file(file, name, shape)
    return _Source(file.tensors, graph, file.file_bytes, file.stored)


def _from_graph(graph: Graph, bits: Any) -> _Source:
    planned = quantization_plan(graph, 32 if bits is None else bits)
    tensors: dict[str, Any] = {}
    for weight in graph.weights():
        put(weight.name, weight.stored, tensors)
    return _Source({k: _zeros(*planned[id(stored)]) for k, stored in tensors.items()}, graph)


def _from_model(source: Any, bits: Any, inputs: Any, kwargs: Any) -> _Source:
    if inputs is None:
        return _Source(_stored(source, bits), None)
    model = _generic(source)
    try:
        return _from_graph(trace(model, *inputs, **kwargs), bits)
    except TraceError:
        raise
    except (TypeError, ValueError, IndexError, AssertionError) as error:
        shapes = ", ".join(str(np.shape(x)[1:]) for x in jax.tree.leaves(inputs))
        raise ValueError(f"the model does not take inputs of shape {shapes}: {error}") from error


def _generic(source: Any) -> Any:
    """The model with numbers that no rewriting leaves out, as it does a bias of zeros."""

    def filled(leaf: Any) -> Any:
        if not hasattr(leaf, "dtype"):
            return leaf
        abstract = isinstance(leaf, jax.ShapeDtypeStruct)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0) if abstract and not leaf.shape else leaf
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or not leaf.shape:
            return np.zeros(leaf.shape, leaf.dtype) if abstract else leaf
        if not abstract and np.ptp(np.asarray(leaf, np.float32)) > 0:
            return leaf
        numbers = np.linspace(0.5, 1.5, math.prod(leaf.shape), dtype=np.float32)
        return jnp.asarray(numbers.reshape(leaf.shape), leaf.dtype)

    if isinstance(source, nnx.Module):
        graphdef, state = nnx.split(source)
        return nnx.merge(graphdef, jax.tree.map(filled, state))
    module, state = source
    return module, jax.tree.map(filled, state)


def _stored(source: Any, bits: Any) -> dict[str, Any]:
    """The tensors that a model's parameters would be, by names and shapes alone."""
    is_module = isinstance(source, nnx.Module)
    state = nnx.to_pure_dict(nnx.state(source, nnx.Not(nnx.RngState))) if is_module else source[1]
    views = matrix_views(source) if is_module else {}
    tensors: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        name = path_name(keys)
        path = tuple(name.split("/"))
        if path[-1] in TRAINING_ONLY:
            continue
        width, axes, seen = 32, None, views.get(name)
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.shape:
            asked = 32 if bits is None else bits
            width = int(leaf_bits(path, leaf.shape, asked, None if seen is None else seen.role))
            axes = None if width == 32 else scale_axes(path, leaf.shape, seen)
        tensors[name] = _zeros(leaf, width, axes)
    return tensors


def _zeros(stored: Any, width: int, axes: Any) -> Any:
    """A tensor of these shapes, all zero: it takes no memory."""
    if isinstance(stored, QuantizedTensor) and stored.bits == width:
        return stored
    floats = isinstance(stored, QuantizedTensor) or jnp.issubdtype(stored.dtype, jnp.floating)
    if not floats:
        return np.broadcast_to(np.zeros((), np.dtype(stored.dtype)), stored.shape)
    values = np.broadcast_to(np.int8(0), stored.shape)
    scale = np.ones(scale_shape(tuple(stored.shape), axes), np.float32)
    return QuantizedTensor(values, scale, width, axes)


# Rows.


def _rows(found: _Source) -> list[LayerSize]:
    """One row for each layer that stores or computes anything, layer 10 after layer 9."""
    done = None if found.graph is None else parts(found.graph)
    layer_of = {name: part.layer for part in done or () for name in part.held}
    readers = {} if found.graph is None else _readers(found.graph)
    sizes = found.stored or modelfile.bytes_of(found.tensors)
    groups: dict[str, dict[str, Any]] = {part.layer: {} for part in done or ()}
    for name, tensor in found.tensors.items():
        groups.setdefault(layer_of.get(name, layer_name(name)), {})[name] = tensor
    return [
        _row(name, groups[name], None if done is None else [p for p in done if p.layer == name],
             readers, sizes)
        for name in sorted(groups, key=_natural)
    ]  # fmt: skip


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sorts layer 10 after layer 9, and what is of no layer last."""
    if name == ELSEWHERE:
        return [(2, name)]
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split("/")]


def _readers(graph: Graph) -> dict[str, str]:
    """What kind of operation reads each stored array."""
    found: dict[str, str] = {}
    for op in graph.ops:
        read = (graph.constants[k] for k in op.inputs if k in graph.constants)
        found |= {weight.name: type(op).__name__.lower() for weight in (*read, *op_weights(op))}
    return found


def _row(
    name: str, tensors: Mapping[str, Any], done: Sequence[Part] | None, readers: Mapping[str, str],
    sizes: Mapping[str, TensorBytes],
) -> LayerSize:  # fmt: skip
    """The row of a layer: what it stores, and the parts of the graph that it computes."""
    count = {"weights": 0, "biases": 0, "scales": 0, "seeds": 0, "other": 0}
    bits: set[int] = set()
    alone = 0  # numbers in matrices that no product reads: tables, positions
    once = {_key(part): part for part in done or ()}  # a layer that is applied twice is stored once
    multiplied = {weight.source for part in once.values() for weight in part.weights}
    for path, tensor in tensors.items():
        group, size = _group(role_name(path), tensor), math.prod(tensor.shape)
        count[group] += size
        if isinstance(tensor, QuantizedTensor):
            count["scales"] += 0 if tensor.bits == 32 else int(np.size(tensor.scale))
        if group == "weights":
            bits |= {getattr(tensor, "bits", 32)}
            alone += 0 if source_name(path) in multiplied else size
    stored = sum(sizes[path].total for path in tensors)
    if not count["seeds"]:  # in the graph itself, not in tensors as files of version 1 have them
        count["seeds"] = 2 * sum(part.sketches for part in once.values())
        stored += 4 * count["seeds"]
    work = dense = parameters = None
    kinds = [*dict.fromkeys(readers[path] for path in tensors if path in readers)]
    if done is not None:
        work = sum((part.operations for part in done), Operations())
        dense = sum((part.dense for part in done), Operations())
        whole = sum(part.dense_weights for part in once.values()) + alone
        parameters = whole + count["biases"] + count["other"]
        kinds = _kinds(name, once.values()) or kinds
    return LayerSize(
        name=name,
        kind="; ".join(kinds),
        **count,
        bits=tuple(sorted(bits)),
        bytes=stored,
        multiplications=None if work is None else work.multiplications,
        additions=None if work is None else work.additions,
        dense_parameters=parameters,
        dense_bytes=None if parameters is None else _FLOAT32_BYTES * parameters,
        dense_multiplications=None if dense is None else dense.multiplications,
        dense_additions=None if dense is None else dense.additions,
    )


def _kinds(name: str, done: Iterable[Part]) -> list[str]:
    """A layer's parts in words; those that are alike are layers of a stack."""
    found = Counter(part.kind for part in done if part.kind)
    one = name == ELSEWHERE
    return [k if n == 1 or one else f"{n} layers of {k}" for k, n in found.items()]


def _key(part: Part) -> Any:
    return tuple((weight.name, weight.layout) for weight in part.weights) or id(part)


def _group(leaf: str, tensor: Any) -> str:
    leaf = source_name(leaf).partition(".")[0]  # as tracing names what it has changed
    if leaf.endswith("seed"):
        return "seeds"
    if leaf == "bias":
        return "biases"
    floats = isinstance(tensor, QuantizedTensor) or tensor.dtype.kind == "f"
    return "weights" if floats and len(tensor.shape) >= 2 else "other"


# The table.

_COLUMNS = (
    "layer", "kind", "weights", "bits", "biases", "scales", "seeds", "other", "bytes",
    "mults", "adds", "dense bytes", "dense mults", "dense adds",
)  # fmt: skip


def _draw(report: SizeReport) -> str:
    rows = [[*map(_cell, _values(layer))] for layer in report.layers]
    if report.is_file:
        header = ["", "header, checksum", *[""] * 6, _cell(report.header_bytes)]
        rows.append([*header, *[""] * (len(_COLUMNS) - len(header))])
    totals = [report.total(c) for c in ("weights", "biases", "scales", "seeds", "other", "bytes",
              "multiplications", "additions", "dense_bytes", "dense_multiplications",
              "dense_additions")]  # fmt: skip
    cells = [*map(_cell, totals)]
    rows.append(["total", "", cells[0], "", *cells[1:]])
    table = [list(_COLUMNS), *rows]
    if not report.total("other"):
        at = _COLUMNS.index("other")
        table = [row[:at] + row[at + 1 :] for row in table]
    text = _table.draw(table[0], table[1:-1], table[-1], left=(0, 1))
    lines = [text, "", _ratios(report)]
    if None in totals:
        lines.append("?: not known without the input's shape (input_shape)")
    return "\n".join(lines)


def _values(layer: LayerSize) -> tuple[Any, ...]:
    return (
        layer.name, layer.kind, layer.weights, ",".join(map(str, layer.bits)), layer.biases,
        layer.scales, layer.seeds, layer.other, layer.bytes, layer.multiplications, layer.additions,
        layer.dense_bytes, layer.dense_multiplications, layer.dense_additions,
    )  # fmt: skip


def _cell(value: Any) -> str:
    if value is None:
        return "?"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _ratios(report: SizeReport) -> str:
    parts = []
    for column in RATIOS:
        ratio = report.ratio(column)
        parts.append(f"{column} {'?' if ratio is None else f'{ratio:.1f}x'}")
    return "dense (float32) over this: " + ", ".join(parts)
