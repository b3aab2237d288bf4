"""Messages as bytes: a round's update of one client, or the server's to all.

Layout, of version 1::

    "RF" 01 | way | round | client | examples | scales | numbers | checksum

``way`` is 0 to the server, 1 to the clients. ``round``, ``client`` and ``examples`` are LEB128. A
scale is a bfloat16 for each tensor of integers; where all messages have the same scales it is a
byte k instead, of integers that are multiples of 2^k and are divided by it. Integers are coded
together by :mod:`rosler_jax._coding`, or packed by :mod:`rosler_jax._bitpack` where that is smaller
(a tensor says so itself). Floats are float32, without scales, and lie behind the integers. The
checksum is the CRC-32 of everything before it and of the tensors' shapes and levels, so that a
message of another model is refused as a damaged one is.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rosler_jax import _bitpack, _coding
from rosler_jax._frame import leb128, read_leb128
from rosler_jax.federated.compress import Packed

MAGIC = b"RF\x01"
UP, DOWN = 0, 1

Shapes = Sequence[tuple[int, ...]]


class MessageError(ValueError):
    """A message that cannot be used.

    Attributes:
      reason: in a word or two, to be counted by.

    Example:
      >>> try:
      ...     decode(b"GET / HTTP/1.1", Form([(64, 64)], 127))
      ... except MessageError as error:
      ...     print(f"{error.reason}: {error}")
      damaged: no message of this model: begins with 474554, not 524601
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Header(NamedTuple):
    """What a message says of itself.

    Attributes:
      way: :data:`UP` or :data:`DOWN`.
      round: that it belongs to.
      client: who sends it; 0 for the server.
      examples: of the client; 0 for the server.
    """

    way: int
    round: int
    client: int = 0
    examples: int = 0


class Form(NamedTuple):
    """What both sides know of all messages.

    Attributes:
      shapes: of the tensors.
      levels: the largest integer; 0 for floats.
      scales: of the tensors, where they are the same in all messages, which then have none.
      floats: how many of the last tensors are floats, whatever the others are.
    """

    shapes: Shapes
    levels: int
    scales: tuple[Any, ...] = ()
    floats: int = 0

    @property
    def fingerprint(self) -> int:
        """A checksum of it."""
        what = tuple(map(tuple, self.shapes)), self.levels, len(self.scales), self.floats
        return zlib.crc32(repr(what).encode())

    @property
    def coded(self) -> int:
        """How many of the first tensors are integers."""
        return len(self.shapes) - self.floats if self.levels else 0

    @property
    def bits(self) -> int:
        """Of an integer, packed."""
        return self.levels.bit_length() + 1


def encode(header: Header, packed: Packed, form: Form) -> bytes:
    """The bytes of a message.

    Args:
      header: of it.
      packed: its tensors, NumPy's.
      form: that they have.

    Example:
      >>> form = Form([(64, 64)], 127)
      >>> values = np.tri(64, dtype=np.int16)
      >>> message = encode(Header(UP, 7, 3, 500), Packed((values,), (np.float32(0.5),)), form)
      >>> len(message), decode(message, form)[0]
      (77, Header(way=0, round=7, client=3, examples=500))
    """
    head = MAGIC + bytes([header.way])
    head += b"".join(map(leb128, (header.round, header.client, header.examples)))
    body = head + (_integers(packed, form) if form.coded else b"")
    body += _floats(packed.values[form.coded :])
    return body + struct.pack("<I", zlib.crc32(body, form.fingerprint))


def _floats(values: Sequence[Any]) -> bytes:
    return b"".join(np.asarray(v, "<f4").tobytes() for v in values)


def _integers(packed: Packed, form: Form) -> bytes:
    # Not by _bitpack, which refuses scales that are no numbers: a broken client sends them.
    arrays = [np.asarray(v) for v in packed.values[: form.coded]]
    if form.scales:
        powers = list(map(_power_of_two, arrays))
        scales, arrays = bytes(powers), [v >> k for v, k in zip(arrays, powers, strict=True)]
    else:
        own = np.asarray(packed.scales[: form.coded], "<f4")
        scales = (own.view("<u4") >> 16).astype("<u2").tobytes()
    sizes = [8 * _bitpack.packed_bytes(v.size, _packing(form)) for v in arrays]
    # Updates have no neighbours that are alike: to look for them would take twice as long.
    stream, coded = _coding.encode(
        [(v, form.levels, size) for v, size in zip(arrays, sizes, strict=True)],
        transposed=False, smooth=False,
    )  # fmt: skip
    rest = b"".join(
        _bitpack.pack(v, _packing(form)) for v, c in zip(arrays, coded, strict=True) if not c
    )
    return scales + leb128(len(stream)) + stream + rest


def information(packed: Packed, form: Form) -> float:
    """Bits in a message by how often each integer occurs in its tensor, and of its floats.

    Example:
      >>> information(Packed((np.array([0, 1, 0, 1]),), (np.float32(1),)), Form([(4,)], 127))
      4.0
    """
    bits = 32.0 * sum(np.size(v) for v in packed.values[form.coded :])
    for values in packed.values[: form.coded]:
        share = np.unique(values, return_counts=True)[1] / max(np.size(values), 1)
        bits -= float((share * np.log2(share)).sum()) * np.size(values)
    return bits


def _power_of_two(values: np.ndarray) -> int:
    """The largest that divides them all."""
    bits = int(np.bitwise_or.reduce(values.astype(np.int64), axis=None)) if values.size else 0
    return (bits & -bits).bit_length() - 1 if bits else 0


def _packing(form: Form) -> int:
    """Bits of an integer that is packed, of those that there are."""
    return next(bits for bits in (2, 3, 4, 8, 16) if bits >= form.bits)


def decode(data: bytes, form: Form) -> tuple[Header, Packed]:
    """The inverse of :func:`encode`. Time and memory are bounded for any bytes.

    Args:
      data: what came.
      form: that is expected.

    Raises:
      MessageError: for bytes that are no message of this form, or scales that are no numbers.
    """
    try:
        header, place = _head(data)
        if len(data) < place + 4:
            raise ValueError(f"{len(data)} bytes end too soon")
        if zlib.crc32(data[:-4], form.fingerprint) != struct.unpack("<I", data[-4:])[0]:
            raise ValueError("the checksum differs: damaged, or of another model")
        body = memoryview(data)[place:-4]
        packed = _read(body, form)
    except (ValueError, IndexError, struct.error) as error:
        raise MessageError("damaged", f"no message of this model: {error}") from error
    scales = np.asarray(packed.scales)
    finite = np.isfinite(scales).all() and all(np.isfinite(v).all() for v in packed.values)
    if not finite:
        raise MessageError("not finite", f"client {header.client}: holds NaN or infinity")
    return header, packed


def _head(data: bytes) -> tuple[Header, int]:
    if data[:3] != MAGIC:
        raise ValueError(f"begins with {data[:3].hex()}, not {MAGIC.hex()}")
    way, place, numbers = data[3], 4, []
    for _ in range(3):
        number, place = read_leb128(memoryview(data), place)
        numbers.append(number)
    return Header(way, *numbers), place


def _read(body: memoryview, form: Form) -> Packed:
    """The tensors: floats lie behind the integers."""
    shapes = form.shapes[form.coded :]
    counts = [math.prod(shape) for shape in shapes]
    size = 4 * sum(counts)
    if len(body) < size or (not form.coded and len(body) != size):
        raise ValueError(f"{len(body)} bytes of {sum(counts)} floats")
    flat = np.frombuffer(body[len(body) - size :], "<f4").astype(np.float32)
    parts = np.split(flat, np.cumsum(counts)[:-1]) if counts else []
    floats = tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    ones = tuple(np.float32(1) for _ in floats)
    if not form.coded:
        return Packed(floats, ones)
    values, scales = _read_integers(body[: len(body) - size], form)
    return Packed((*values, *floats), (*scales, *ones))


def _read_integers(body: memoryview, form: Form) -> Packed:
    shapes = form.shapes[: form.coded]
    count = len(shapes)
    size = count if form.scales else 2 * count
    if len(body) < size:
        raise ValueError(f"{len(body)} bytes are too few for the scales of {count} tensors")
    powers = [0] * count
    if form.scales:
        powers, scales = list(body[:size]), np.asarray(form.scales)
        if max(powers, default=0) > 15:
            raise ValueError(f"integers of 16 bits times 2^{max(powers)}")
    else:
        scales = (np.frombuffer(body[:size], "<u2").astype("<u4") << 16).view("<f4")
    length, place = read_leb128(body, size)
    stream, rest = body[place : place + length], body[place + length :]
    if len(stream) != length:
        raise ValueError(f"{len(stream)} of {length} coded bytes")
    found = _coding.decode(bytes(stream), [(tuple(s), form.levels) for s in shapes])
    values: list[Any] = []
    for coded, shape, power in zip(found, shapes, powers, strict=True):
        flat = coded.values
        if flat is None:
            size = _bitpack.packed_bytes(math.prod(shape), _packing(form))
            if len(rest) < size:
                raise ValueError(f"{len(rest)} of {size} packed bytes")
            flat = _bitpack.unpack(rest[:size], math.prod(shape), _packing(form))
            rest = rest[size:]
        values.append((np.asarray(flat, np.int32) << power).astype(np.int16).reshape(shape))
    if len(rest):
        raise ValueError(f"{len(rest)} bytes too many")
    return Packed(tuple(values), tuple(scales.astype(np.float32)))


def check_header(header: Header, way: int, now: int, clients: int) -> None:
    """Refuses a message of another round, or of nobody.

    Raises:
      MessageError: saying which.

    Example:
      >>> check_header(Header(UP, 3, 1, 10), UP, 5, clients=4)
      Traceback (most recent call last):
      rosler_jax.federated.wire.MessageError: client 1: a message of round 3; this is round 5
    """
    who = f"client {header.client}"
    if header.way != way:
        raise MessageError("wrong way", f"{who}: a message that goes the other way")
    if header.round != now:
        raise MessageError(
            "stale", f"{who}: a message of round {header.round}; this is round {now}"
        )
    if way == UP and not 0 <= header.client < clients:
        raise MessageError("unknown client", f"{who}: there are {clients} clients")
    if way == UP and header.examples < 1:
        raise MessageError("no examples", f"{who}: says that it has no examples")
