"""A delta as a file: its numbers entropy-coded, and what makes the rest again.

Layout, of version 1::

    "RD" 01 | form | rank | k | seed | wrt | bits | step | numbers | checksum

``form`` is a byte, its place in :data:`~rosler_jax.delta.FORMS`. ``rank``, ``k``, ``seed`` and the
length of ``wrt`` (patterns joined by newlines, UTF-8) are LEB128. ``bits`` is a byte: 32 for
float32 numbers, else the bits of an integer, plus 128 where these are coded by
:mod:`rosler_jax._coding`; else they are packed by :mod:`rosler_jax._bitpack`.
``step`` is a bfloat16 (not with 32 bits). The checksum is the CRC-32 of everything before it and of
the plan's fingerprint, so that a file of another model is refused as a damaged one is.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from rosler_jax import _bitpack, _coding
from rosler_jax._files import replace_bytes
from rosler_jax._frame import leb128, read_leb128
from rosler_jax._quantized import FLOAT_BITS, INTEGER_BITS, QuantizedTensor, integer_levels
from rosler_jax.delta._forms import FORMS
from rosler_jax.delta._graph import as_base
from rosler_jax.delta.seeded_delta import SeededDelta, bases_of, make_plan
from rosler_jax.quantization import quantize

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from rosler_jax.views import View

MAGIC = b"RD\x01"
_CODED = 128
_MOST = 1 << 24  # numbers of a delta that is read


class DeltaFileError(ValueError):
    """A delta that cannot be written or read.

    Example:
      >>> from rosler_jax.delta import seeded_delta
      >>> data = encode_delta(seeded_delta({"kernel": jnp.ones((8, 4))}, 6), jnp.ones(6))
      >>> decode_delta(data, {"kernel": jnp.ones((8, 5))})
      Traceback (most recent call last):
      rosler_jax.delta.file.DeltaFileError: delta: the checksum differs: damaged, or of another base
      model
    """


def encode_delta(
    delta: SeededDelta, z: Float[Array, " k"] | QuantizedTensor, *, bits: int = 8
) -> bytes:
    """The bytes of a delta's file; see :func:`save_delta`.

    Example:
      >>> from rosler_jax.delta import seeded_delta
      >>> delta, z = seeded_delta({"kernel": jnp.ones((32, 16))}, 24), jnp.arange(24.0)
      >>> len(encode_delta(delta, z)), len(encode_delta(delta, z, bits=4))
      (40, 26)
    """
    plan = delta.plan
    if plan.wrt is None:
        raise DeltaFileError("wrt was a function; a file holds patterns: pass wrt='...'")
    q = z if isinstance(z, QuantizedTensor) else quantize(jnp.asarray(z), bits, axis=None)
    values = np.asarray(q.values)
    if values.shape != (plan.k,):
        raise DeltaFileError(f"z has shape {values.shape}; the delta has ({plan.k},)")
    if not np.isfinite(np.asarray(q.scale) * values.astype(np.float32)).all():
        raise DeltaFileError("z is not finite")
    wrt = "\n".join(plan.wrt).encode()
    head = MAGIC + bytes([list(FORMS).index(plan.form)])
    head += b"".join(map(leb128, (plan.rank, plan.k, plan.seed, len(wrt)))) + wrt
    body = head + _numbers(values, q)
    return body + struct.pack("<I", zlib.crc32(body, plan.fingerprint()))


def _numbers(values: np.ndarray, q: QuantizedTensor) -> bytes:
    if q.bits == FLOAT_BITS:
        return bytes([FLOAT_BITS]) + values.astype("<f4").tobytes()
    packed = _bitpack.pack(values, q.bits)
    stream, (coded,) = _coding.encode([(values, integer_levels(q.bits), 8 * len(packed))])
    shorter = coded and len(stream) < len(packed)
    kind = q.bits | (_CODED if shorter else 0)
    scale = _bitpack.scales_to_bytes(np.asarray(q.scale))
    return bytes([kind]) + scale + (stream if shorter else packed)


def decode_delta(
    data: bytes, base: Any, *, view: View = None, name: str = "delta"
) -> tuple[SeededDelta, Float[Array, " k"]]:
    """The inverse of :func:`encode_delta`; see :func:`load_delta`.

    Example:
      >>> from rosler_jax.delta import seeded_delta
      >>> base = {"kernel": jnp.ones((8, 4))}
      >>> data = encode_delta(seeded_delta(base, 3), jnp.arange(3.0), bits=32)
      >>> delta, z = decode_delta(data, base)
      >>> delta.plan.k, z.tolist()
      (3, [0.0, 1.0, 2.0])
    """
    base, view = as_base(base, view)
    try:
        form, rank, k, seed, wrt, end = _head(data)
        values = _read_numbers(data[end:-4], k)
        rank = max(rank, 1)
        plan, params = make_plan(base, k, seed, form=form, rank=rank, wrt=wrt, view=view)
    except (ValueError, IndexError, struct.error) as error:
        raise DeltaFileError(f"{name}: no delta of this model: {error}") from error
    if zlib.crc32(data[:-4], plan.fingerprint()) != struct.unpack("<I", data[-4:])[0]:
        raise DeltaFileError(f"{name}: the checksum differs: damaged, or of another base model")
    return SeededDelta(plan, bases_of(plan, params)), jnp.asarray(values)


def _head(data: bytes) -> tuple[str, int, int, int, tuple[str, ...], int]:
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"bad magic {data[:3]!r}, expected {MAGIC!r}: not a delta of version 1")
    forms, at, found = list(FORMS), len(MAGIC) + 1, []
    if data[at - 1] >= len(forms):
        raise ValueError(f"form {data[at - 1]} is unknown; update rosler-jax to read it")
    for _ in range(4):
        size, at = read_leb128(memoryview(data), at)
        found.append(size)
    rank, k, seed, length = found
    if not 1 <= k <= _MOST or at + length + 5 > len(data):
        raise ValueError(f"{k} numbers, or a text of {length} bytes, in a file of {len(data)}")
    wrt = data[at : at + length].decode()
    return forms[data[len(MAGIC)]], rank, k, seed, tuple(wrt.split("\n")), at + length


def _read_numbers(data: bytes, k: int) -> Float[np.ndarray, " k"]:
    kind, bits = data[0], data[0] & ~_CODED
    if kind == FLOAT_BITS:
        if len(data) != 1 + 4 * k:
            raise ValueError(f"{len(data) - 1} bytes of {k} float32 numbers")
        return np.frombuffer(data[1:], "<f4").copy()
    if bits not in INTEGER_BITS:
        raise ValueError(f"numbers of {bits} bits")
    step = _bitpack.scales_from_bytes(data[1:3])
    if kind & _CODED:
        (coded,) = _coding.decode(data[3:], [((k,), integer_levels(bits))])
        values = coded.values
        if values is None:
            raise ValueError("numbers that are said to be coded are not")
    else:
        values = _bitpack.unpack(data[3:], k, bits)
    return values.astype(np.float32) * step


def save_delta(
    path: str | os.PathLike[str],
    delta: SeededDelta,
    z: Float[Array, " k"] | QuantizedTensor,
    *,
    bits: int = 8,
) -> int:
    """Writes a delta's file: about 17 bytes, and its numbers.

    Args:
      path: where to.
      delta: made with patterns for ``wrt``.
      z: its numbers, or integers of them: ``rate_coded({"z": z}).tensors["z"]`` after training with
        their rate.
      bits: of the integers that real numbers are rounded to: 16, 8, 4, 3 or 2; 32 keeps them.

    Returns:
      Bytes of the file.

    Raises:
      DeltaFileError: if it cannot be written so.
      OSError: if the file cannot be written.

    Example:
      >>> import tempfile
      >>> from rosler_jax.delta import load_delta, seeded_delta
      >>> base = {"kernel": jnp.ones((32, 16))}
      >>> delta = seeded_delta(base, 24, form="full")
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     size = save_delta(f"{folder}/task.delta", delta, jnp.arange(24.0), bits=4)
      ...     again, z = load_delta(f"{folder}/task.delta", base)
      >>> size, again.plan == delta.plan, float(abs(z - jnp.arange(24.0)).max()) < 2
      (26, True, True)
    """
    data = encode_delta(delta, z, bits=bits)
    replace_bytes(path, data)
    return len(data)


def load_delta(
    path: str | os.PathLike[str], base: Any, *, view: View = None
) -> tuple[SeededDelta, Float[Array, " k"]]:
    """Reads a delta onto its base model.

    Args:
      path: of the file.
      base: the model that the delta was made for, ``delta.apply(base, z)`` is the tuned one; or a
        graph of it, or what :func:`rosler_jax.load` gave, whose weights are ``params``.
      view: as of :func:`seeded_delta`.

    Returns:
      The delta and its numbers.

    Raises:
      DeltaFileError: for a damaged file, or one of a model whose weights have other names, shapes
        or views. That they are the same numbers nothing checks.
      OSError: if it cannot be read.

    Example:
      >>> import tempfile, rosler_jax
      >>> from flax import nnx
      >>> base = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
      >>> delta = rosler_jax.seeded_delta(base, k=6, seed=1)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     size = rosler_jax.save_delta(f"{folder}/task.delta", delta, delta.start(), bits=8)
      ...     again, z = load_delta(f"{folder}/task.delta", base)
      >>> z.shape, again.apply(base, z).out_features
      ((6,), 4)
    """
    return decode_delta(Path(path).read_bytes(), base, view=view, name=str(path))
