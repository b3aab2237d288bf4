"""Where the bytes and the work of a model are, layer by layer, beside the dense network's."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rosler_jax import modelfile
from rosler_jax._operations import LayerCost, Operations, layer_cost
from rosler_jax._paths import path_name
from rosler_jax.modelfile import ModelFile, ModelFileError, QuantizedTensor
from rosler_jax.network import Network
from rosler_jax.quantization import channel_axis, leaf_bits

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
    """A model to be reported: its structure (variables may be abstract) and its stored tensors."""

    model: Any
    tensors: Mapping[str, Any]
    file_bytes: int | None
    input_shape: Any


def size_report(
    source: Any,
    *,
    bits: int | Callable[[tuple[str, ...]], int] | None = None,
    input_shape: Sequence[int] | None = None,
) -> SizeReport:
    """Counts weights, bytes and operations per layer, of a model and of its dense counterpart.

    The dense counterpart has the same layer sizes, in float32. Operations are those of products,
    projections and biases for one input, by the thin side; activations, pooling and normalisation
    are the same in both networks and not counted. Nothing is computed: shapes suffice.

    Args:
      source: a model file, the folder of a run, a :class:`rosler_jax.modelfile.ModelFile`, a
        network that was loaded from one, ``(specs, params)`` or ``(specs, params, buffers)`` as
        :class:`rosler_jax.network.Network` has them, or any NNX model.
      bits: in which a model that is no file would be stored: for its weights, or a function from a
        leaf's path; None for 32.
      input_shape: of one input, without the batch; by default ``input_shape`` in the file's spec.
        Without either a linear layer counts as applied once, and the work of a convolution is not
        known.

    Returns:
      The report. For a file its rows, the header's included, add up to the bytes of the file.

    Raises:
      ModelFileError: for a damaged model file, or one that is not of a Network.
      ValueError: for unknown bits, bits for a file, or an input shape that the model does not take.
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
    outputs = None if shape is None else _outputs(found.model, shape)
    modules = {path_of(path): module for path, module in nnx.iter_modules(found.model)}
    layers = tuple(
        _layer_size(name, tensors, modules.get(name), outputs)
        for name, tensors in _by_layer(found.tensors)
    )
    stored = sum(layer.bytes for layer in layers)
    header = 0 if found.file_bytes is None else found.file_bytes - stored
    return SizeReport(layers, header, found.file_bytes is not None)


def path_of(path: Sequence[Any]) -> str:
    """The name of a module in the report: its path, without the list that holds a Network's layers.

    Example:
      >>> path_of(("layers", 2))
      '2'
    """
    return "/".join(map(str, path)).removeprefix(_PREFIX)


# Sources.


def _read(source: Any, bits: Any) -> _Source:
    if isinstance(source, nnx.Module):
        return _from_model(source, bits)
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
    expected = {key: tensor.shape for key, tensor in _from_model(model, None).tensors.items()}
    actual = {key: tuple(tensor.shape) for key, tensor in file.tensors.items()}
    if expected != actual:
        wrong = sorted(key for key, _ in expected.items() ^ actual.items())
        raise ModelFileError(f"{name}: tensors and layers do not fit: {', '.join(wrong)}")
    return _Source(model, file.tensors, file.file_bytes, file.spec.get("input_shape"))


def _from_model(model: Any, bits: Any) -> _Source:
    _, *states = nnx.split(model, nnx.Param, nnx.RngState, ...)
    params, _, buffers = states
    tensors = _stored(nnx.to_pure_dict(params), nnx.to_pure_dict(buffers), bits)
    return _Source(model, tensors, None, None)


def _from_parts(specs: Any, params: Any, buffers: Any = None, *, bits: Any) -> _Source:
    return _Source(_abstract(specs), _stored(params, buffers or {}, bits), None, None)


def _abstract(specs: Any) -> Any:
    return nnx.eval_shape(lambda: Network(specs, rngs=nnx.Rngs(0)))


def _stored(params: Any, buffers: Any, bits: Any) -> dict[str, Any]:
    """The tensors of a model file of these shapes, all zero; they take no memory."""
    tensors: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = path_name(keys)
        if name.rsplit("/", 1)[-1] == "parallel":  # the stage of aRes-BP: files hold none
            continue
        tensors[name] = _zeros(name, leaf, 32 if bits is None else bits)
    for keys, leaf in jax.tree_util.tree_flatten_with_path(buffers)[0]:
        tensors[path_name(keys)] = _plain(leaf)
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def _zeros(name: str, leaf: Any, bits: Any) -> Any:
    if not leaf.shape or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return _plain(leaf)
    width = leaf_bits(tuple(name.split("/")), leaf.shape, bits)
    axis = None if width == 32 else channel_axis(name, leaf.shape)
    values = np.broadcast_to(np.int8(0), leaf.shape)
    scale = np.ones(() if axis is None else (leaf.shape[axis],), np.float32)
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


def _outputs(model: Any, input_shape: Sequence[int]) -> dict[str, int]:
    """How many numbers each module gives for one input, all its calls together."""

    class Output(nnx.Variable):
        pass

    graphdef, state = nnx.split(model)

    def record(state: Any, x: Any) -> Any:
        merged = nnx.merge(graphdef, state)
        return nnx.to_pure_dict(nnx.capture(merged, Output, method_outputs=Output)(x)[1])

    try:
        x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
        captured = jax.eval_shape(record, state, x)
    except (TypeError, ValueError, IndexError, AssertionError) as error:
        raise ValueError(
            f"the model does not take inputs of shape {tuple(input_shape)}: {error}"
        ) from error
    totals: dict[str, int] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(captured)[0]:
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        if "__call__" in names:
            name = path_of(names[: names.index("__call__")])
            totals[name] = totals.get(name, 0) + math.prod(leaf.shape)
    return totals


def _layer_size(
    name: str, tensors: Mapping[str, Any], module: Any, outputs: Mapping[str, int] | None
) -> LayerSize:
    count = {"weights": 0, "biases": 0, "scales": 0, "seeds": 0, "other": 0}
    bits: set[int] = set()
    for leaf, tensor in tensors.items():
        group = _group(leaf, tensor)
        count[group] += math.prod(tensor.shape)
        if isinstance(tensor, QuantizedTensor):
            count["scales"] += 0 if tensor.bits == 32 else int(np.size(tensor.scale))
            bits |= {tensor.bits} if group == "weights" else set()
    cost = None if module is None else layer_cost(module)
    if cost is not None and cost.weights != count["weights"]:
        cost = None  # stacked or shared weights: not the layer that its class says
    mine, dense = _work(cost, count["weights"], None if outputs is None else outputs.get(name, 0))
    weights = count["weights"] if cost is None else cost.dense_weights
    parameters = weights + count["biases"] + count["other"]
    return LayerSize(
        name=name,
        kind=type(module).__name__ if cost is None else cost.kind,
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


def _group(leaf: str, tensor: Any) -> str:
    if leaf.endswith("seed"):
        return "seeds"
    if leaf == "bias":
        return "biases"
    is_weight = isinstance(tensor, QuantizedTensor) and len(tensor.shape) >= 2
    return "weights" if is_weight else "other"


def _work(
    cost: LayerCost | None, weights: int, outputs: int | None
) -> tuple[Operations | None, Operations | None]:
    """Operations of a layer and of its dense counterpart for one input, None where not known."""
    if cost is None:
        # What holds no matrix works element by element, and that is not counted.
        return (None, None) if weights else (Operations(0, 0), Operations(0, 0))
    if outputs is None:
        return (None, None) if cost.spatial else (cost.operations, cost.dense_operations)
    positions = outputs // cost.outputs
    return positions * cost.operations, positions * cost.dense_operations


# The table.

_COLUMNS = (
    "layer", "kind", "weights", "bits", "biases", "scales", "seeds", "other", "bytes",
    "mults", "adds", "dense bytes", "dense mults", "dense adds",
)  # fmt: skip
_LEFT = 2


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
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < _LEFT else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    rule = "  ".join("-" * width for width in widths)
    lines = [lines[0], rule, *lines[1:-1], rule, lines[-1], "", _ratios(report)]
    if None in totals:
        lines.append("?: not known; a convolution's work needs the input's shape (input_shape)")
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
