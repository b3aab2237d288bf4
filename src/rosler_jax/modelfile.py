"""The packed model file: safe to load, versioned, checksummed, readable from C; no JAX needed.

Layout, everything little endian::

    offset  size  what
    0       4     b"ROSL"
    4       2     format version, uint16: 1 or 2
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

The checksum finds damage, not malice: a loader checks every length, shape and value against the
file's size before it allocates anything, and nothing in a file is ever executed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from rosler_jax import _bitpack
from rosler_jax._files import replace_file
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

VERSION: Final = 2  # the newest; tensors without a graph are written as version 1, as ever
MAX_HEADER_BYTES: Final = 1 << 20

_MAGIC: Final = b"ROSL"
_PREFIX: Final = struct.Struct("<4sHHIIQ")
_CHECKSUM: Final = struct.Struct("<I")
_DTYPES: Final = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
_BOOL: Final = "b1"
_MAX_DIMENSIONS: Final = 8
_MAX_ELEMENTS: Final = 1 << 40


class ModelFileError(ValueError):
    """A model file that cannot be read, or a model that cannot be written; says which and why."""


@dataclasses.dataclass(frozen=True, eq=False)
class ModelFile:
    """What a model file holds.

    Attributes:
        spec: what rebuilds the network (JSON types only): widths, kinds, seeds, ...; empty in a
            file of version 2.
        tensors: name to QuantizedTensor (NumPy arrays within) or plain array.
        metadata: anything else worth keeping (JSON types only): accuracy, versions, ...
        file_bytes: the size of the whole file.
        graph: the operations as JSON types, not checked (:func:`rosler_jax.load` does); None in a
            file of version 1.
    """

    spec: dict[str, Any]
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    file_bytes: int
    graph: list[Any] | None = None

    @property
    def version(self) -> int:
        """Of the format: 2 for a file that holds a graph."""
        return 1 if self.graph is None else 2


@dataclasses.dataclass(frozen=True)
class TensorBytes:
    """Bytes of one tensor in the file: its packed values and its scales."""

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
) -> bytes:
    """The bytes of a model file; the same input gives the same bytes.

    Args:
        tensors, spec, metadata: as for ``save``.
        name: what errors call the file.
        graph: in place of the spec, the operations as JSON types: makes a file of version 2.

    Returns:
        The whole file.

    Raises:
        ModelFileError: a tensor, the spec or the metadata cannot be stored.

    Example:
        >>> len(encode({}, {}, {}))
        59
    """
    version = 1 if graph is None else 2
    rows = [_row_of(key, tensor, name, version) for key, tensor in tensors.items()]
    table = [[row.name, row.kind, row.axis, *row.shape] for row in rows]
    first = {"spec": spec, "meta": metadata, "tensors": table}
    header = _header_bytes(first if graph is None else [graph, metadata, table], name)
    stored = _deflate(header)
    payload = b"".join(
        _tensor_bytes(row, tensor, name) for row, tensor in zip(rows, tensors.values(), strict=True)
    )
    prefix = _PREFIX.pack(_MAGIC, version, 0, len(stored), len(header), len(payload))
    body = prefix + stored + payload
    return body + _CHECKSUM.pack(zlib.crc32(body))


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
    version, stored_size, header_size = _checked_prefix(data, name)
    start = _PREFIX.size + stored_size
    header = _inflate(data[_PREFIX.size : start], header_size, name)
    what, metadata, table = _parsed_header(header, version, name)
    rows = _checked_table(table, version, name)
    payload = memoryview(data)[start : len(data) - _CHECKSUM.size]
    needed = sum(row.stored.total for row in rows)
    if needed != len(payload):
        _fail(name, f"the tensor table needs {needed} bytes of payload, there are {len(payload)}")
    tensors: dict[str, Tensor] = {}
    offset = 0
    for row in rows:
        tensors[row.name] = _read_tensor(row, payload[offset : offset + row.stored.total], name)
        offset += row.stored.total
    if version == 1:
        return ModelFile(what, tensors, metadata, len(data))
    return ModelFile({}, tensors, metadata, len(data), what)


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


def _tensor_bytes(row: _Row, tensor: Any, name: str) -> bytes:
    """The payload of one tensor."""
    if row.kind == _BOOL:
        return np.packbits(np.asarray(tensor).ravel(), bitorder="little").tobytes()
    if isinstance(row.kind, str):
        return _plain_bytes(row, np.asarray(tensor), row.kind, name)
    values = np.asarray(tensor.values)
    if row.kind == FLOAT_BITS:
        return _plain_bytes(row, values, "f4", name)
    levels = integer_levels(row.kind)
    if values.dtype.kind != "i" or (values.size and np.abs(values.astype(np.int64)).max() > levels):
        _fail(name, f"tensor {row.name!r} holds values that are not integers within +-{levels}")
    try:
        scales = _bitpack.scales_to_bytes(np.asarray(tensor.scale))
    except ValueError as error:
        _fail(name, f"tensor {row.name!r}: {error}")
    return scales + _bitpack.pack(values, row.kind)


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


def _deflate(header: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return packer.compress(header) + packer.flush()


# Reading.


def _checked_prefix(data: bytes, name: str) -> tuple[int, int, int]:
    """Check magic, version, lengths, checksum; give version, header's stored and inflated sizes."""
    # The magic first: a text file shorter than the prefix is "no model file", not "truncated".
    if data[: len(_MAGIC)] != _MAGIC[: len(data)] or not data:
        _fail(name, f"bad magic {data[:4]!r}, expected {_MAGIC!r}: not a rosler model file")
    smallest = _PREFIX.size + _CHECKSUM.size
    if len(data) < smallest:
        _fail(name, f"truncated: {len(data)} bytes, a model file has at least {smallest}")
    _, version, reserved, stored_size, header_size, payload_size = _PREFIX.unpack_from(data)
    if version > VERSION:
        _fail(name, f"version {version} is newer than {VERSION}; update rosler-jax to read it")
    if version == 0 or reserved != 0:
        _fail(name, f"damaged prefix: version {version}, reserved field {reserved}")
    expected = smallest + stored_size + payload_size
    if len(data) < expected:
        _fail(name, f"truncated: {len(data)} bytes of {expected}")
    if len(data) > expected:
        _fail(name, f"{len(data) - expected} bytes too many after the {expected} of the model")
    (checksum,) = _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)
    actual = zlib.crc32(memoryview(data)[: -_CHECKSUM.size])
    if checksum != actual:
        _fail(name, f"checksum mismatch: stored {checksum:08x}, computed {actual:08x}; damaged")
    if header_size > MAX_HEADER_BYTES:
        _fail(name, f"header of {header_size} bytes, at most {MAX_HEADER_BYTES} are allowed")
    return version, stored_size, header_size


def _inflate(stored: bytes, size: int, name: str) -> bytes:
    unpacker = zlib.decompressobj(-15)
    try:
        # One byte more than announced shows a longer stream and still bounds the memory.
        header = unpacker.decompress(stored, size + 1)
    except zlib.error as error:
        _fail(name, f"the header does not inflate: {error}")
    if len(header) != size or not unpacker.eof or unpacker.unused_data:
        _fail(name, f"the header does not inflate to the announced {size} bytes")
    return header


def _parsed_header(header: bytes, version: int, name: str) -> tuple[Any, dict[str, Any], list[Any]]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        parsed = json.loads(header.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        _fail(name, f"the header is not JSON: {error}")
    first, container = ("spec", dict) if version == 1 else ("graph", list)
    wanted = {first: container, "meta": dict, "tensors": list}
    if version == 2:
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


def _read_tensor(row: _Row, data: memoryview, name: str) -> Tensor:
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
        integers = _bitpack.unpack(data[stored.scales :], row.count, row.kind)
    except ValueError as error:
        _fail(name, f"tensor {row.name!r}: {error}")
    shaped = scale.reshape(scale_shape(row.shape, row.axis))
    return QuantizedTensor(integers.reshape(row.shape), shaped, row.kind, row.axis)


def _read_plain(row: _Row, data: memoryview, dtype: str, name: str) -> np.ndarray:
    array = np.frombuffer(data, "<" + dtype).reshape(row.shape).astype(dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        _fail(name, f"tensor {row.name!r} holds NaN or infinity")
    return array
