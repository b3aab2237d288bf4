"""Integers of 2 to 16 bits as a little-endian bit stream, and bfloat16 scales as two bytes.

Value i, in two's complement of b bits, lies in bits i*b ... i*b + b - 1 of the stream, the lowest
bit first; bit k of the stream is bit k % 8 of byte k // 8. The last byte is filled with zeros.
In C::

    int32_t get(const uint8_t *p, size_t i, int b) {
        uint32_t v = 0;
        for (int k = 0; k < b; ++k) {
            size_t t = i * b + k;
            v |= (uint32_t)((p[t >> 3] >> (t & 7)) & 1u) << k;
        }
        return (int32_t)(v ^ (1u << (b - 1))) - (int32_t)(1u << (b - 1));
    }
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rosler_jax._quantized import integer_levels

if TYPE_CHECKING:
    from jaxtyping import Float32, Integer


def packed_bytes(count: int, bits: int) -> int:
    """The number of bytes that ``count`` values of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack(values: Integer[np.ndarray, "..."], bits: int) -> bytes:
    """Write signed integers (in C order) as the bit stream described above.

    Example:
        >>> pack(np.array([1, -1, 0, 1], np.int8), 2).hex()
        '4d'
    """
    flat = np.ravel(values)
    if bits == 16:
        return flat.astype("<i2").tobytes()
    if bits == 8:
        return flat.astype(np.int8).tobytes()
    codes = flat.astype(np.int8).view(np.uint8)
    lanes = np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(lanes.reshape(-1), bitorder="little").tobytes()


def unpack(data: bytes | memoryview, count: int, bits: int) -> Integer[np.ndarray, " count"]:
    """Read ``count`` signed integers back: int16 for 16 bits, otherwise int8.

    Raises:
        ValueError: the data has the wrong length, a filling bit that is not zero, or the most
            negative code, which a symmetric quantiser never writes.
    """
    if len(data) != packed_bytes(count, bits):
        raise ValueError(
            f"{len(data)} packed bytes, expected {packed_bytes(count, bits)} for {count} values of "
            f"{bits} bits"
        )
    values: Integer[np.ndarray, " count"]
    if bits == 16:
        values = np.frombuffer(data, "<i2").astype(np.int16)
    elif bits == 8:
        values = np.frombuffer(data, np.int8).copy()
    else:
        stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        if stream[count * bits :].any():
            raise ValueError("the filling bits after the last value are not zero")
        codes = np.packbits(
            stream[: count * bits].reshape(count, bits), axis=1, bitorder="little"
        ).reshape(count)
        sign = np.uint8(1 << (bits - 1))
        # (v ^ sign) - sign extends the sign; the subtraction wraps in uint8 as wanted.
        values = np.subtract(codes ^ sign, sign, dtype=np.uint8).view(np.int8)
    if count and int(values.min()) < -integer_levels(bits):
        raise ValueError(f"a {bits}-bit value lies below -{integer_levels(bits)}")
    return values


def scales_to_bytes(scale: Float32[np.ndarray, "..."]) -> bytes:
    """Write float32 scales as bfloat16: the upper two bytes of each, little endian.

    Raises:
        ValueError: a scale is not positive and finite, or is not exactly a bfloat16 number.
    """
    flat = np.ravel(np.asarray(scale, np.float32)).astype("<f4")
    if not (np.isfinite(flat) & (flat > 0)).all():
        raise ValueError("scales must be positive and finite (are the weights finite?)")
    bits = flat.view("<u4")
    if (bits & 0xFFFF).any():
        raise ValueError("a scale is not a bfloat16 number; make the tensor with quantize()")
    return (bits >> 16).astype("<u2").tobytes()


def scales_from_bytes(data: bytes | memoryview) -> Float32[np.ndarray, " channels"]:
    """Read bfloat16 scales back as float32.

    Raises:
        ValueError: a scale is not positive and finite.
    """
    bits = np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)
    scale = bits.view(np.float32)
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError("a scale is not positive and finite")
    return scale
