r"""Softmax of integer outputs, specified once: what the C code computes, bit for bit.

With ``d = max y - y_i`` and the outputs' scale a, ``t = d a`` is brought to 16 bits, 4 of them
before the point: ``u = min((d M) >> S, 65535)`` with ``M / 2^S = 4096 a``. A table T of 257 numbers
holds ``e^-t``; with ``k = u >> 8`` and ``f = u & 255``,

    e = T[k] - (((T[k] - T[k + 1]) f + 128) >> 8)
    p_i = (32768 e_i + sum / 2) / sum

both divisions rounded down: probabilities in units of 2^-15.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rosler_jax.export._errors import ExportError

if TYPE_CHECKING:
    from jaxtyping import UInt16

TABLE = np.rint(32768.0 * np.exp(-np.arange(257) / 16.0)).astype(np.uint16)
MAX_CLASSES = 65535


def multiplier(scale: float) -> tuple[int, int]:
    """``(M, S)`` with ``M / 2^S = 4096 scale`` to 24 bits, and any ``65535 M`` within 64 bits.

    Example:
      >>> m, s = multiplier(2.0**-10)
      >>> m / 2**s
      4.0
    """
    if not 2.0**-34 < scale < 2.0**20:
        raise ExportError(f"outputs of scale {scale:.3g} have no integer softmax; use float32")
    shift = max(0, 23 - math.frexp(4096.0 * scale)[1])
    return round(4096.0 * scale * 2.0**shift), shift


def softmax(y: Any, scale: float) -> UInt16[np.ndarray, "batch classes"]:
    """Probabilities of integer outputs in units of 2^-15.

    Args:
      y: int16, shape ``(batch, classes)``.
      scale: an output stands for ``y * scale``.

    Raises:
      ExportError: if the scale is out of range.

    Example:
      >>> softmax(np.int16([[0, 0], [0, 32000]]), 2.0**-10).tolist()
      [[16384, 16384], [0, 32768]]
    """
    found = probabilities(np.asarray(y, np.int64), *multiplier(scale), TABLE.astype(np.int64))
    return np.asarray(found, np.uint16)


def probabilities(y: Any, m: int, s: int, table: Any, most: int = 32768) -> Any:
    """The same of 64-bit integers and table, both NumPy's or JAX's; at most so many units."""
    u = ((y.max(-1, keepdims=True) - y) * m >> s).clip(0, 65535)
    k, f = u >> 8, u & 255
    e = table[k] - (((table[k] - table[k + 1]) * f + 128) >> 8)
    total = e.sum(-1, keepdims=True)
    return ((e * 32768 + total // 2) // total).clip(0, most)
