"""The packed model file: safe to load, versioned, checksummed, readable from C; no JAX needed.

Layout, everything little endian::

    offset  size  what
    0       4     b"ROSL"
    4       2     format version, uint16: 1 or 2; 3 is below
    6       2     reserved, zero
    8       4     H, bytes of the stored header, uint32
    12      4     bytes of the header once inflated, uint32 (at most 1 MiB)
    16      8     P, bytes of the payload, uint64
    24      H     header: compact JSON (UTF-8), raw deflate (RFC 1951)
    24+H    P     payload: the tensors one after the other, in the order of the table
    24+H+P  4     CRC-32 (as in zlib) of all bytes before it, uint32

The header of version 1 is ``{"spec": {...}, "meta": {...}, "tensors": [row, ...]}``; the spec of a
model lists layers (:mod:`rosler_jax.graph.version1`). That of version 2 is ``[graph, {...}, [row,
...]]``, the graph as :mod:`rosler_jax.graph.file` describes it. A row is ``[name, bits, axis, d0,
d1, ...]`` for a quantised tensor (bits 2, 3, 4, 8, 16 or 32; axis null for one scale, a list where
several axes carry scales) and ``[name, dtype, null, d0, d1, ...]`` for a plain array (dtype as
NumPy writes it: "f4", "u4", ...; "b1" in version 2 alone, eight to a byte, the lowest bit first).
Nothing lies between tensors. A quantised tensor is its scales (bfloat16, two bytes each; none at 32
bits, which is float32) and then its values in C order, bit-packed as ``_bitpack`` describes and
filled up to a whole byte. A weight is value * scale, exactly, in float32.

Version 3 is version 2 for files of a few hundred bytes, written where it is asked for::

    6             H, bytes of the stored header, LEB128 (seven bits a byte, the lowest first)
    ...           P, bytes of the payload, LEB128
    ...     H     header: as in version 2, its raw deflate with a preset dictionary (_header_words)
    ...     P     payload: as before, without the values of coded tensors; their scales are here
    ...     ...   the coded stream, as _coding describes: of all tensors of 2 to 16 bits
    last    4     CRC-32 of all bytes before it, uint32

The checksum finds damage, not malice: a loader checks every length, shape and value against the
file's size before it allocates anything, and nothing in a file is ever executed.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from rosler_jax import _bitpack, _coding, _frame
from rosler_jax._files import replace_file
from rosler_jax._frame import MAX_HEADER_BYTES, VERSION, Parts
from rosler_jax._quantized import (
    FLOAT_BITS,
    INTEGER_BITS,
    Axes,
    QuantizedTensor,
    carrying,
    integer_levels,
    scale_shape,
    to_numpy,
)

if TYPE_CHECKING:
    Tensor = QuantizedTensor | np.ndarray

__all__ = [
    "VERSION",
    "ModelFile",
    "ModelFileError",
    "QuantizedTensor",
    "TensorBytes",
    "bytes_of",
    "decode",
    "encode",
    "load",
    "save",
    "to_numpy",
]

_DTYPES: Final = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
_BOOL: Final = "b1"
_MAX_DIMENSIONS: Final = 8
_MAX_ELEMENTS: Final = 1 << 40
_UNCODED: Final = _coding.Coded(None, 0.0)


class ModelFileError(ValueError):
    """A model file that cannot be read, or a model that cannot be written; says which and why.

    Example:
        >>> data = encode({"w": np.ones(3, np.float32)}, {}, {})
        >>> decode(data[:-1], name="m.rosler")
        Traceback (most recent call last):
        rosler_jax.modelfile.ModelFileError: m.rosler: truncated: 87 bytes of 88
    """


@dataclasses.dataclass(frozen=True, eq=False)
class ModelFile:
    """What a model file holds.

    Attributes:
        spec: what rebuilds the network (JSON types only): widths, kinds, seeds, ...; empty in a
            file that holds a graph.
        tensors: name to QuantizedTensor (NumPy arrays within) or plain array.
        metadata: anything else worth keeping (JSON types only): accuracy, versions, ...
        file_bytes: the size of the whole file.
        stored: of each tensor the bytes in this file; of coded ones their share of the stream.
        version: of the format.
        graph: the operations as JSON types, not checked (:func:`rosler_jax.load` does); None in a
            file of version 1.

    Example:
        >>> w = QuantizedTensor(np.array([[3, -1]], np.int8), np.float32([0.5]), 3, 0)
        >>> file = decode(encode({"w": w}, {"rank": 8}, {"accuracy": 0.9}))
        >>> file.version, file.spec, file.metadata, file.stored["w"]
        (1, {'rank': 8}, {'accuracy': 0.9}, TensorBytes(values=1, scales=2))
        >>> to_numpy(file.tensors["w"]).tolist()
        [[1.5, -0.5]]
    """

    spec: dict[str, Any]
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    file_bytes: int
    stored: dict[str, TensorBytes]
    version: int
    graph: list[Any] | None = None


@dataclasses.dataclass(frozen=True)
class TensorBytes:
    """Bytes of one tensor in the file: its packed values and its scales.

    Example:
        >>> w = QuantizedTensor(np.zeros((5, 3), np.int8), np.ones(3, np.float32), 4, 1)
        >>> size = bytes_of({"w": w})["w"]
        >>> size.values, size.scales, size.total
        (8, 6, 14)
    """

    values: int
    scales: int

    @property
    def total(self) -> int:
        """Values and scales together."""
        return self.values + self.scales


@dataclasses.dataclass(frozen=True)
class _Row:
    """One row of the tensor table, checked."""

    name: str
    kind: int | str
    axis: Axes
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def stored(self) -> TensorBytes:
        if self.kind == _BOOL:
            return TensorBytes(_bitpack.packed_bytes(self.count, 1), 0)
        if isinstance(self.kind, str):
            return TensorBytes(self.count * np.dtype(self.kind).itemsize, 0)
        if self.kind == FLOAT_BITS:
            return TensorBytes(4 * self.count, 0)
        scales = 2 * math.prod(scale_shape(self.shape, self.axis))
        return TensorBytes(_bitpack.packed_bytes(self.count, self.kind), scales)

    @property
    def levels(self) -> int:
        """The largest integer of a tensor that can be coded; 0 of others."""
        integers = not isinstance(self.kind, str) and self.kind != FLOAT_BITS
        return integer_levels(int(self.kind)) if integers else 0


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    spec: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> int:
    """Write a model file: into a temporary file of the same folder, then renamed over ``path``.

    Args:
        path: where to; its folder must exist.
        tensors: name to QuantizedTensor or array (NumPy or JAX; float16/32/64 or integers).
        spec: JSON types (NumPy scalars are converted): what rebuilds the network.
        metadata: JSON types.

    Returns:
        The file's size in bytes.

    Raises:
        ModelFileError: a tensor, the spec or the metadata cannot be stored.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save(f"{folder}/m.rosler", {"seed": np.uint32([1, 2])}, {"rank": 8}, {})
        ...     load(f"{folder}/m.rosler").tensors["seed"].tolist()
        [1, 2]
    """
    data = encode(tensors, spec, metadata, name=str(path))
    write_encoded(path, data)
    return len(data)


def write_encoded(path: str | os.PathLike[str], data: bytes) -> None:
    """Write the bytes that ``encode`` gave, as ``save`` does.

    Raises:
        OSError: the file cannot be written.
    """

    def write(temporary: Path) -> None:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    replace_file(Path(path), write)


def load(path: str | os.PathLike[str]) -> ModelFile:
    """Read and check a model file.

    Args:
        path: the file.

    Returns:
        The ModelFile, bit for bit what was saved.

    Raises:
        ModelFileError: the file is no model file, is damaged, or is of a newer version.
        OSError: there is no such file, or it cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save(f"{folder}/m.rosler", {"bias": np.float32([1, 2])}, {"rank": 8}, {})
        ...     file = load(f"{folder}/m.rosler")
        >>> file.spec, file.tensors["bias"].tolist(), file.file_bytes == size
        ({'rank': 8}, [1.0, 2.0], True)
    """
    return decode(Path(path).read_bytes(), name=str(path))


def bytes_of(tensors: Mapping[str, Any]) -> dict[str, TensorBytes]:
    """The bytes that each tensor takes in a model file (the header is shared and not counted).

    Args:
        tensors: as for ``save``.

    Returns:
        Name to TensorBytes.

    Raises:
        ModelFileError: a tensor cannot be stored.

    Example:
        >>> w = QuantizedTensor(np.zeros((5, 3), np.int8), np.ones(3, np.float32), 3, 1)
        >>> bytes_of({"w": w, "seed": np.uint32([1, 2])})
        {'w': TensorBytes(values=6, scales=6), 'seed': TensorBytes(values=8, scales=0)}
    """
    rows = (_row_of(name, tensor, "model", 2) for name, tensor in tensors.items())
    return {row.name: row.stored for row in rows}


def encode(
    tensors: Mapping[str, Any],
    spec: Mapping[str, Any],
    metadata: Mapping[str, Any],
    *,
    name: str = "model",
    graph: list[Any] | None = None,
    coded: bool = False,
) -> bytes:
    """The bytes of a model file; the same input gives the same bytes.

    Args:
        tensors, spec, metadata: as for ``save``.
        name: what errors call the file.
        graph: in place of the spec, the operations as JSON types: makes a file of version 2.
        coded: makes one of version 3, whose integers are entropy-coded where that is smaller.

    Returns:
        The whole file.

    Raises:
        ModelFileError: a tensor, the spec or the metadata cannot be stored.

    Example:
        >>> len(encode({}, {}, {}))
        59
    """
    if coded and graph is None:
        _fail(name, "tensors are coded in the file of a graph alone; pass a graph")
    version = 3 if coded else 1 if graph is None else 2
    rows = [_row_of(key, tensor, name, version) for key, tensor in tensors.items()]
    table = [[row.name, row.kind, row.axis, *row.shape] for row in rows]
    first = {"spec": spec, "meta": metadata, "tensors": table}
    header = _header_bytes(first if graph is None else [graph, metadata, table], name)
    parts = [_tensor_bytes(*each, name) for each in zip(rows, tensors.values(), strict=True)]
    stream = _replace_coded(rows, [*tensors.values()], parts) if coded else b""
    payload = b"".join(part for both in parts for part in both)
    return _frame.join(Parts(version, header, payload, stream))


def decode(data: bytes, *, name: str = "model") -> ModelFile:
    """Read a model file from memory; the inverse of ``encode``.

    Args:
        data: the whole file.
        name: what errors call the file.

    Returns:
        The ModelFile.

    Raises:
        ModelFileError: the bytes are no model file, are damaged, or are of a newer version.

    Example:
        >>> decode(encode({}, {"rank": 8}, {})).spec
        {'rank': 8}
    """
    try:
        version, header, payload, stream = _frame.split(data)
    except ValueError as error:
        _fail(name, str(error))
    what, metadata, table = _parsed_header(header, version, name)
    rows = _checked_table(table, version, name)
    coded = _decode_stream(rows, stream, name) if version == 3 else [_UNCODED] * len(rows)
    stored = [_without(row, each) for row, each in zip(rows, coded, strict=True)]
    needed = sum(size.total for size in stored)
    if needed != len(payload):
        _fail(name, f"the tensor table needs {needed} bytes of payload, there are {len(payload)}")
    tensors: dict[str, Tensor] = {}
    offset = 0
    for row, size, each in zip(rows, stored, coded, strict=True):
        part = payload[offset : offset + size.total]
        tensors[row.name] = _read_tensor(row, part, each.values, name)
        offset += size.total
    sizes = dict(zip(tensors, _with_shares(stored, coded, len(stream)), strict=True))
    spec, graph = (what, None) if version == 1 else ({}, what)
    return ModelFile(spec, tensors, metadata, len(data), sizes, version, graph)


def _fail(name: str, reason: str) -> NoReturn:
    raise ModelFileError(f"{name}: {reason}")


# Writing.


def _row_of(key: Any, tensor: Any, name: str, version: int) -> _Row:
    """The table row of a tensor to be written."""
    if isinstance(tensor, QuantizedTensor):
        kind: Any = tensor.bits
        axis, shape = tensor.axis, tensor.shape
        if np.shape(tensor.scale) != (() if kind == FLOAT_BITS else _scales_of(tensor)):
            _fail(
                name,
                f"tensor {key!r} of shape {shape} has scales of shape {np.shape(tensor.scale)} "
                f"along axis {axis}; make it with quantize(), one tensor at a time",
            )
    else:
        array = _as_array(key, tensor, name, _known(version))
        kind, axis, shape = array.dtype.str[1:], None, array.shape
    return _checked_row([key, kind, axis, *shape], name, _known(version))


def _known(version: int) -> tuple[str, ...]:
    """The dtypes of plain arrays in a version."""
    return _DTYPES if version == 1 else (*_DTYPES, _BOOL)


def _scales_of(tensor: QuantizedTensor) -> tuple[int, ...] | None:
    shape, axis = tensor.shape, tensor.axis
    fits = all(0 <= k < len(shape) for k in carrying(axis))
    return scale_shape(shape, axis) if fits else None


def _as_array(key: Any, tensor: Any, name: str, known: tuple[str, ...]) -> np.ndarray:
    try:
        array = np.asarray(tensor)
    except TypeError as error:
        _fail(name, f"tensor {key!r} is not an array: {error}")
    if array.dtype.kind not in "fiub" or array.dtype.str[1:] not in known:
        _fail(
            name,
            f"tensor {key!r} has dtype {array.dtype}, expected {_listed(known)}; cast it (a "
            f"random key: jax.random.key_data)",
        )
    return array


def _tensor_bytes(row: _Row, tensor: Any, name: str) -> tuple[bytes, bytes]:
    """The payload of one tensor: its scales, its values."""
    if row.kind == _BOOL:
        return b"", np.packbits(np.asarray(tensor).ravel(), bitorder="little").tobytes()
    if isinstance(row.kind, str):
        return b"", _plain_bytes(row, np.asarray(tensor), row.kind, name)
    values = np.asarray(tensor.values)
    if row.kind == FLOAT_BITS:
        return b"", _plain_bytes(row, values, "f4", name)
    levels = integer_levels(row.kind)
    if values.dtype.kind != "i" or (values.size and np.abs(values.astype(np.int64)).max() > levels):
        _fail(name, f"tensor {row.name!r} holds values that are not integers within +-{levels}")
    try:
        scales = _bitpack.scales_to_bytes(np.asarray(tensor.scale))
    except ValueError as error:
        _fail(name, f"tensor {row.name!r}: {error}")
    return scales, _bitpack.pack(values, row.kind)


def _replace_coded(rows: list[_Row], tensors: list[Any], parts: list[tuple[bytes, bytes]]) -> bytes:
    """The stream; takes the values that are in it out of the payload's parts."""
    places = [k for k, row in enumerate(rows) if row.levels]
    packed = [(np.asarray(tensors[k].values), rows[k].levels, 8 * len(parts[k][1])) for k in places]
    stream, coded = _coding.encode(packed)
    for k, is_coded in zip(places, coded, strict=True):
        parts[k] = (parts[k][0], b"" if is_coded else parts[k][1])
    return stream


def _plain_bytes(row: _Row, array: np.ndarray, dtype: str, name: str) -> bytes:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        _fail(name, f"tensor {row.name!r} holds NaN or infinity")
    return array.astype("<" + dtype).tobytes()


def _header_bytes(header: Any, name: str) -> bytes:
    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Mapping):
            return dict(value)
        raise TypeError(f"{type(value).__name__} is not a JSON type")

    try:
        text = json.dumps(
            header, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=plain
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        _fail(name, f"spec and metadata must be JSON with string keys: {error}")
    if len(text) > MAX_HEADER_BYTES:
        _fail(
            name,
            f"spec, metadata and tensor table take {len(text)} bytes of JSON, at most "
            f"{MAX_HEADER_BYTES} are allowed; store long lists as tensors",
        )
    return text


# Reading.


def _parsed_header(header: bytes, version: int, name: str) -> tuple[Any, dict[str, Any], list[Any]]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        parsed = json.loads(header.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        _fail(name, f"the header is not JSON: {error}")
    first, container = ("spec", dict) if version == 1 else ("graph", list)
    wanted = {first: container, "meta": dict, "tensors": list}
    if version > 1:
        complete = isinstance(parsed, list) and len(parsed) == len(wanted)
        parsed = dict(zip(wanted, parsed, strict=True)) if complete else None
    if not isinstance(parsed, dict) or parsed.keys() != wanted.keys():
        _fail(name, f"the header is not a JSON object of {', '.join(wanted)}")
    for key, kind in wanted.items():
        if not isinstance(parsed[key], kind):
            _fail(name, f"the header's {key!r} is not a JSON {kind.__name__}")
    return parsed[first], parsed["meta"], parsed["tensors"]


def _checked_table(table: list[Any], version: int, name: str) -> list[_Row]:
    rows = [_checked_row(row, name, _known(version)) for row in table]
    seen: set[str] = set()
    for row in rows:
        if row.name in seen:
            _fail(name, f"two tensors are named {row.name!r}")
        seen.add(row.name)
    return rows


def _checked_row(row: Any, name: str, known: tuple[str, ...]) -> _Row:
    """Check one table row; both writing and reading pass through here."""
    if not isinstance(row, list) or len(row) < 3:
        _fail(name, f"tensor table row {row!r:.80} is not [name, bits, axis, sizes...]")
    key, kind, axis, *sizes = row
    axis = list(axis) if isinstance(axis, tuple) else axis
    if not isinstance(key, str) or not key:
        _fail(name, f"tensor name {key!r:.80} is not a non-empty string")
    is_quantized = _is_int(kind) and kind in (*INTEGER_BITS, FLOAT_BITS)
    if not is_quantized and not (isinstance(kind, str) and kind in known):
        expected = _listed((*INTEGER_BITS, FLOAT_BITS, *known))
        _fail(name, f"tensor {key!r}: unknown bits or dtype {kind!r:.80}, expected {expected}")
    if len(sizes) > _MAX_DIMENSIONS or not all(_is_int(size) and size >= 0 for size in sizes):
        _fail(
            name,
            f"tensor {key!r}: shape {sizes!r:.80} is not at most {_MAX_DIMENSIONS} sizes >= 0",
        )
    # Zeros count as ones, or one zero would let the other sizes grow past what NumPy can address.
    if math.prod(max(size, 1) for size in sizes) > _MAX_ELEMENTS:
        _fail(name, f"tensor {key!r}: shape {sizes!r:.80} has more than {_MAX_ELEMENTS} elements")
    has_axis = is_quantized and kind != FLOAT_BITS
    if axis is not None and not (has_axis and _are_axes(axis, len(sizes))):
        _fail(name, f"tensor {key!r}: axis {axis!r:.80} does not fit shape {sizes!r:.80}")
    return _Row(key, kind, tuple(axis) if isinstance(axis, list) else axis, tuple(sizes))


def _are_axes(axis: Any, ndim: int) -> bool:
    """Whether a row's axis is one of so many, or a list of several in ascending order."""
    axes = axis if isinstance(axis, list) else [axis]
    inside = all(_is_int(k) and 0 <= k < ndim for k in axes)
    several = not isinstance(axis, list) or len(axes) > 1
    return inside and several and axes == sorted(set(axes))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(values: Iterable[object]) -> str:
    return "one of " + ", ".join(str(value) for value in values)


def _decode_stream(rows: list[_Row], stream: bytes | memoryview, name: str) -> list[_coding.Coded]:
    """What the stream says of each tensor."""
    try:
        found = iter(_coding.decode(stream, [(r.shape, r.levels) for r in rows if r.levels]))
    except ValueError as error:
        _fail(name, f"the coded stream: {error}")
    return [next(found) if row.levels else _UNCODED for row in rows]


def _without(row: _Row, coded: _coding.Coded) -> TensorBytes:
    """What a tensor takes of the payload."""
    return row.stored if coded.values is None else TensorBytes(0, row.stored.scales)


def _with_shares(
    stored: list[TensorBytes], coded: list[_coding.Coded], size: int
) -> list[TensorBytes]:
    """With the stream dealt out, to the byte, by what was read for each tensor."""
    bits = np.cumsum([0.0, *(each.bits for each in coded)])
    edges = np.rint(bits * (size / (bits[-1] or 1.0))).astype(int).tolist()
    shares = itertools.pairwise(edges)
    return [
        TensorBytes(each.values + end - start, each.scales)
        for each, (start, end) in zip(stored, shares, strict=True)
    ]


def _read_tensor(
    row: _Row, data: bytes | memoryview, coded: np.ndarray | None, name: str
) -> Tensor:
    if row.kind == _BOOL:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        if bits[row.count :].any():
            _fail(name, f"tensor {row.name!r}: the filling bits after the last value are not zero")
        return bits[: row.count].astype(np.bool_).reshape(row.shape)
    if isinstance(row.kind, str):
        return _read_plain(row, data, row.kind, name)
    if row.kind == FLOAT_BITS:
        values = _read_plain(row, data, "f4", name)
        return QuantizedTensor(values, np.ones((), np.float32), FLOAT_BITS, None)
    stored = row.stored
    try:
        scale = _bitpack.scales_from_bytes(data[: stored.scales])
        rest = data[stored.scales :]
        integers = _bitpack.unpack(rest, row.count, row.kind) if coded is None else coded
    except ValueError as error:
        _fail(name, f"tensor {row.name!r}: {error}")
    shaped = scale.reshape(scale_shape(row.shape, row.axis))
    return QuantizedTensor(integers.reshape(row.shape), shaped, row.kind, row.axis)


def _read_plain(row: _Row, data: bytes | memoryview, dtype: str, name: str) -> np.ndarray:
    array = np.frombuffer(data, "<" + dtype).reshape(row.shape).astype(dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        _fail(name, f"tensor {row.name!r} holds NaN or infinity")
    return array
