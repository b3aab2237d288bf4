"""Where the bytes and the work of a model are, layer by layer, beside the dense network's."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rosler_jax import _table, modelfile
from rosler_jax._applications import Applications, applications
from rosler_jax._layer_views import matrix_views
from rosler_jax._operations import LayerCost, Operations, layer_cost
from rosler_jax._paths import TRAINING_ONLY, path_name
from rosler_jax._quantized import scale_shape
from rosler_jax.modelfile import ModelFile, ModelFileError, QuantizedTensor
from rosler_jax.network import Network
from rosler_jax.quantization import leaf_bits, scale_axes
from rosler_jax.views import Seen, Views

MODEL = "model.rosler"
_PREFIX = "layers/"  # of a Network's layers; model files leave it out
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
      bytes: of all these in the model file.
      multiplications, additions: of products, projections and bias.
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
    dense_parameters: int
    dense_bytes: int
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
    """A model to be reported: its structure (variables may be abstract) and its stored tensors.

    ``prefix`` is what the names of the tensors leave out of the model's paths.
    """

    model: Any
    tensors: Mapping[str, Any]
    file_bytes: int | None
    input_shape: Any
    views: Views
    prefix: str = ""


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
    are the same in both networks and not counted. Products that a model makes outside of the layers
    that are known (attention scores, an embedding that attends) have a row of their own, the same
    in both. Nothing is computed: shapes suffice.

    Args:
      source: a model file, the folder of a run, a :class:`rosler_jax.modelfile.ModelFile`, a
        network that was loaded from one, ``(specs, params)`` or ``(specs, params, buffers)`` as
        :class:`rosler_jax.network.Network` has them, or any NNX model.
      bits: in which a model that is no file would be stored: for its weights, or a function from a
        leaf's path; None for 32.
      input_shape: of one input of floats, without the batch; by default ``input_shape`` in the
        file's spec. Without it a linear layer counts as applied once, and the work of a convolution
        is not known.
      inputs: in its place, all arguments of one call, with their batch: arrays or
        ``jax.ShapeDtypeStruct`` of tokens, several inputs, a carry. Operations are then those of
        that call.
      kwargs: keyword arguments of that call, such as ``rngs``.

    Returns:
      The report. For a file its rows, the header's included, add up to the bytes of the file.

    Raises:
      ModelFileError: for a damaged model file, or one that is not of a Network.
      ValueError: for unknown bits, bits for a file, or inputs that the model does not take.
      TypeError: for any other source.
      OSError: if there is no such file.

    Example:
      >>> from rosler_jax import SketchLinear
      >>> layer = SketchLinear(784, 1024, rank=16, mode="seeded", rngs=nnx.Rngs(0))
      >>> report = size_report(nnx.Sequential(layer), bits=16)
      >>> report.total("weights"), report.total("seeds"), report.total("dense_parameters")
      (2048, 4, 803840)
      >>> report.layers[0].multiplications
      2048
    """
    found = _read(source, bits)
    shape = found.input_shape if input_shape is None else tuple(input_shape)
    if inputs is None and shape is not None:
        inputs = (jax.ShapeDtypeStruct((1, *shape), jnp.float32),)
    done = None if inputs is None else _applied(found, inputs, kwargs, shape)
    stacks = {row.name.rpartition("/")[0]: row.stack for row in found.views.rows}
    modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(found.model)}
    layers = [
        _layer_size(name, tensors, modules.get(path), math.prod(stacks.get(path, ())), path, done)
        for name, tensors in _by_layer(found.tensors)
        for path in (found.prefix + name,)
    ]
    if done is not None and done.products.multiplications:
        layers.append(_elsewhere(done.products))
    stored = sum(layer.bytes for layer in layers)
    header = 0 if found.file_bytes is None else found.file_bytes - stored
    return SizeReport(tuple(layers), header, found.file_bytes is not None)


def _applied(
    found: _Source, inputs: Sequence[Any], kwargs: Mapping[str, Any], shape: Any
) -> Applications:
    try:
        done = applications(found.model, inputs, kwargs)
    except (TypeError, ValueError, IndexError, AssertionError) as error:
        what = "these inputs" if shape is None else f"inputs of shape {tuple(shape)}"
        raise ValueError(f"the model does not take {what}: {error}") from error
    return done._replace(outputs={k.replace(".", "/"): n for k, n in done.outputs.items()})


# Sources.


def _read(source: Any, bits: Any) -> _Source:
    if isinstance(source, nnx.Module):
        return _from_model(source, bits, _PREFIX if isinstance(source, Network) else "")
    file = getattr(source, "file", source)
    if isinstance(file, str | os.PathLike):
        path = Path(file)
        path = path / MODEL if path.is_dir() else path
        return _from_file(modelfile.load(path), str(path), bits)
    if isinstance(file, ModelFile):
        return _from_file(file, "model file", bits)
    if isinstance(source, tuple) and len(source) in (2, 3):
        return _from_parts(*source, bits=bits)
    raise TypeError(
        f"size_report cannot read a {type(source).__name__}; pass a path, a ModelFile, an NNX "
        f"model, or (specs, params) of a Network"
    )


def _from_file(file: ModelFile, name: str, bits: Any) -> _Source:
    if bits is not None:
        raise ValueError(f"{name} has its bits already; pass bits only for a model that is no file")
    specs = file.spec.get("layers")
    if not isinstance(specs, list) or not all(isinstance(spec, dict) for spec in specs):
        raise ModelFileError(f"{name}: its spec has no list of layers; save it with save_network")
    try:
        model = _abstract(specs)
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise ModelFileError(f"{name}: its layers cannot be built: {error}") from error
    whole = _from_model(model, None, _PREFIX)
    expected = {key: tensor.shape for key, tensor in whole.tensors.items()}
    actual = {key: tuple(tensor.shape) for key, tensor in file.tensors.items()}
    if expected != actual:
        wrong = sorted(key for key, _ in expected.items() ^ actual.items())
        raise ModelFileError(f"{name}: tensors and layers do not fit: {', '.join(wrong)}")
    shape = file.spec.get("input_shape")
    return _Source(model, file.tensors, file.file_bytes, shape, whole.views, _PREFIX)


def _from_model(model: Any, bits: Any, prefix: str) -> _Source:
    _, *states = nnx.split(model, nnx.Param, nnx.RngState, ...)
    params, _, buffers = map(nnx.to_pure_dict, states)
    views = matrix_views(model)
    tensors = _stored(params, buffers, bits, views, prefix)
    return _Source(model, tensors, None, None, views, prefix)


def _from_parts(specs: Any, params: Any, buffers: Any = None, *, bits: Any) -> _Source:
    model = _abstract(specs)
    views = matrix_views(model)
    tensors = _stored(params, buffers or {}, bits, views, _PREFIX)
    return _Source(model, tensors, None, None, views, _PREFIX)


def _abstract(specs: Any) -> Any:
    return nnx.eval_shape(lambda: Network(specs, rngs=nnx.Rngs(0)))


def _stored(params: Any, buffers: Any, bits: Any, views: Views, prefix: str) -> dict[str, Any]:
    """The tensors of a model file of these shapes, all zero; they take no memory."""
    tensors: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = path_name(keys)
        if name.rsplit("/", 1)[-1] in TRAINING_ONLY:
            continue
        tensors[name] = _zeros(name, leaf, 32 if bits is None else bits, views.get(name))
    for keys, leaf in jax.tree_util.tree_flatten_with_path(buffers)[0]:
        tensors[path_name(keys)] = _plain(leaf)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _zeros(name: str, leaf: Any, bits: Any, seen: Seen | None) -> Any:
    if not leaf.shape or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return _plain(leaf)
    path = tuple(name.split("/"))
    width = leaf_bits(path, leaf.shape, bits, None if seen is None else seen.role)
    axis = None if width == 32 else scale_axes(path, leaf.shape, seen)
    values = np.broadcast_to(np.int8(0), leaf.shape)
    scale = np.ones(scale_shape(leaf.shape, axis), np.float32)
    return QuantizedTensor(values, scale, int(width), axis)


def _plain(leaf: Any) -> np.ndarray:
    dtype = np.dtype(leaf.dtype) if np.dtype(leaf.dtype).kind in "iuf" else np.dtype("f4")
    return np.broadcast_to(np.zeros((), dtype), leaf.shape)


# Layers.


def _by_layer(tensors: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Groups tensors by the layer that holds them, in the order of the layers' first tensors."""
    groups: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition("/")
        groups.setdefault(layer, {})[leaf] = tensor
    # In a file all parameters come before all seeds and statistics.
    yield from sorted(groups.items(), key=lambda item: _natural(item[0]))


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sorts layer 10 after layer 9."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split("/")]


def _layer_size(
    name: str, tensors: Mapping[str, Any], module: Any, stack: int, path: str,
    done: Applications | None,
) -> LayerSize:  # fmt: skip
    """The row of the layer at ``path``: ``stack`` layers in one, applied as ``done`` says."""
    count = {"weights": 0, "biases": 0, "scales": 0, "seeds": 0, "other": 0}
    bits: set[int] = set()
    for leaf, tensor in tensors.items():
        group = _group(leaf, tensor)
        count[group] += math.prod(tensor.shape)
        if isinstance(tensor, QuantizedTensor):
            count["scales"] += 0 if tensor.bits == 32 else int(np.size(tensor.scale))
            bits |= {tensor.bits} if group == "weights" else set()
    cost = None if module is None else layer_cost(module)
    if cost is not None and stack * cost.weights != count["weights"]:
        cost = None  # not the layer that its class says
    mine, dense = _work(cost, count["weights"], stack, path, done)
    weights = count["weights"] if cost is None else stack * cost.dense_weights
    parameters = weights + count["biases"] + count["other"]
    kind = type(module).__name__ if cost is None else cost.kind
    return LayerSize(
        name=name,
        kind=kind if stack == 1 else f"{stack} layers of {kind}",
        **count,
        bits=tuple(sorted(bits)),
        bytes=sum(size.total for size in modelfile.bytes_of(tensors).values()),
        multiplications=None if mine is None else mine.multiplications,
        additions=None if mine is None else mine.additions,
        dense_parameters=parameters,
        dense_bytes=_FLOAT32_BYTES * parameters,
        dense_multiplications=None if dense is None else dense.multiplications,
        dense_additions=None if dense is None else dense.additions,
    )


def _elsewhere(products: Operations) -> LayerSize:
    """The row of the products that no known layer makes."""
    both = (products.multiplications, products.additions)
    return LayerSize(
        "(elsewhere)", "products of the model", 0, (), 0, 0, 0, 0, 0, *both, 0, 0, *both
    )


def _group(leaf: str, tensor: Any) -> str:
    if leaf.endswith("seed"):
        return "seeds"
    if leaf == "bias":
        return "biases"
    is_weight = isinstance(tensor, QuantizedTensor) and len(tensor.shape) >= 2
    return "weights" if is_weight else "other"


def _work(
    cost: LayerCost | None, weights: int, stack: int, path: str, done: Applications | None
) -> tuple[Operations | None, Operations | None]:
    """Operations of a layer and of its dense counterpart for one input, None where not known."""
    if done is not None and not done.known:
        return None, None
    if cost is None:
        # What holds no matrix works element by element, and that is not counted; the products of
        # what does are counted among the model's own.
        return (None, None) if weights and done is None else (Operations(0, 0), Operations(0, 0))
    if done is None:
        once = None if cost.spatial else stack
    else:
        once = done.outputs.get(path, 0) // cost.outputs
    return (None, None) if once is None else (once * cost.operations, once * cost.dense_operations)


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
        lines.append("?: not known without the input's shape (input_shape), or in a while_loop")
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
