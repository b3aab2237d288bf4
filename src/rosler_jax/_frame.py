"""The frame of a model file: what is around header, payload and stream, and the checksum.

:mod:`rosler_jax.modelfile` describes the layouts.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, NamedTuple

from rosler_jax._header_words import WORDS

VERSION: Final = 3  # the newest; without coding a graph is version 2, tensors alone version 1
MAX_HEADER_BYTES: Final = 1 << 20

_MAGIC: Final = b"ROSL"
_PREFIX: Final = struct.Struct("<4sHHIIQ")
_SHORT_PREFIX: Final = struct.Struct("<4sH")
_CHECKSUM: Final = struct.Struct("<I")
_SMALLEST: Final = _SHORT_PREFIX.size + 2 + _CHECKSUM.size


class Parts(NamedTuple):
    """What a frame holds: the version, the header's text, the payload, the coded stream."""

    version: int
    header: bytes
    payload: bytes | memoryview
    stream: bytes | memoryview = b""


def join(parts: Parts) -> bytes:
    """The bytes of a file.

    Example:
        >>> data = join(Parts(3, b"[[],{},[]]", b"payload"))
        >>> len(data), split(data).header
        (27, b'[[],{},[]]')
    """
    version, header, payload, stream = parts
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=WORDS if version == 3 else b"")
    stored = packer.compress(header) + packer.flush()
    if version == 3:
        prefix = _SHORT_PREFIX.pack(_MAGIC, version) + leb128(len(stored)) + leb128(len(payload))
    else:
        prefix = _PREFIX.pack(_MAGIC, version, 0, len(stored), len(header), len(payload))
    body = prefix + stored + payload + stream
    return body + _CHECKSUM.pack(zlib.crc32(body))


def split(data: bytes) -> Parts:
    """The inverse of :func:`join`.

    Raises:
        ValueError: the bytes are no model file, are damaged, or are of a newer version.
    """
    # The magic first: a text file shorter than the prefix is "no model file", not "truncated".
    if data[: len(_MAGIC)] != _MAGIC[: len(data)] or not data:
        raise ValueError(f"bad magic {data[:4]!r}, expected {_MAGIC!r}: not a rosler model file")
    if len(data) < _SMALLEST:
        raise ValueError(f"truncated: {len(data)} bytes, a model file has at least {_SMALLEST}")
    version = int(_SHORT_PREFIX.unpack_from(data)[1])
    if version > VERSION:
        raise ValueError(f"version {version} is newer than {VERSION}; update rosler-jax to read it")
    return _split_short(data) if version == 3 else _split_long(data)


def _split_long(data: bytes) -> Parts:
    """A file of version 1 or 2."""
    smallest = _PREFIX.size + _CHECKSUM.size
    if len(data) < smallest:
        raise ValueError(f"truncated: {len(data)} bytes, a model file has at least {smallest}")
    _, version, reserved, stored_size, header_size, payload_size = _PREFIX.unpack_from(data)
    if version == 0 or reserved != 0:
        raise ValueError(f"damaged prefix: version {version}, reserved field {reserved}")
    expected = smallest + stored_size + payload_size
    if len(data) < expected:
        raise ValueError(f"truncated: {len(data)} bytes of {expected}")
    if len(data) > expected:
        raise ValueError(f"{len(data) - expected} bytes too many after the {expected} of the model")
    _check_sum(data)
    if header_size > MAX_HEADER_BYTES:
        raise ValueError(f"header of {header_size} bytes, at most {MAX_HEADER_BYTES} are allowed")
    start = _PREFIX.size + stored_size
    header = _inflate(data[_PREFIX.size : start], b"", header_size)
    if len(header) != header_size:
        raise ValueError(f"the header does not inflate to the announced {header_size} bytes")
    return Parts(version, header, memoryview(data)[start : -_CHECKSUM.size])


def _split_short(data: bytes) -> Parts:
    """A file of version 3."""
    _check_sum(data)
    body = memoryview(data)[: -_CHECKSUM.size]
    stored_size, start = read_leb128(body, _SHORT_PREFIX.size)
    payload_size, start = read_leb128(body, start)
    middle = start + stored_size
    end = middle + payload_size
    if end > len(body):
        raise ValueError(f"truncated: {len(data)} bytes, header and payload end at {end}")
    header = _inflate(bytes(body[start:middle]), WORDS, MAX_HEADER_BYTES)
    return Parts(3, header, body[middle:end], body[end:])


def _check_sum(data: bytes) -> None:
    (stored,) = _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)
    actual = zlib.crc32(memoryview(data)[: -_CHECKSUM.size])
    if stored != actual:
        raise ValueError(f"checksum mismatch: stored {stored:08x}, computed {actual:08x}; damaged")


def leb128(size: int) -> bytes:
    """A size in as few bytes as it needs.

    Example:
        >>> leb128(5).hex(), leb128(300).hex()
        ('05', 'ac02')
    """
    low, rest = size & 127, size >> 7
    return bytes([low | 128]) + leb128(rest) if rest else bytes([low])


def read_leb128(data: memoryview, start: int) -> tuple[int, int]:
    """A size, and where it ends."""
    found = bytes(data[start : start + 8])
    length = next((k + 1 for k, byte in enumerate(found) if byte < 128), 0)
    size = sum((byte & 127) << 7 * k for k, byte in enumerate(found[:length]))
    if not length or found[:length] != leb128(size):
        raise ValueError(f"no size at byte {start}: {found!r}")
    return size, start + length


def _inflate(stored: bytes, words: bytes, most: int) -> bytes:
    unpacker = zlib.decompressobj(-15, zdict=words)
    try:
        # One byte more than allowed shows a longer stream and still bounds the memory.
        header = unpacker.decompress(stored, most + 1)
    except zlib.error as error:
        raise ValueError(f"the header does not inflate: {error}") from None
    if len(header) > most or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"the header does not inflate to the announced or allowed {most} bytes")
    return header
