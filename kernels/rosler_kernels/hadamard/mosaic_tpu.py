"""The Walsh-Hadamard transform on a TPU's matrix unit, one pass over memory.

A row of n = 128 a numbers is a matrix X (a, 128) in memory, and x H_n is H_a X H_128. Shorter rows
share a tile, through block-diagonal factors I (x) H.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from .._entries import ceil_to
from .._mosaic_tpu import dot, interpret_params, out_struct, pad_to, parallel, refuse
from .reference import matrix

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_LANES = 128
MAX_ORDER = _LANES * 256


def unsupported(n: int, dtype: Any) -> str | None:
    """Why the kernel cannot run; None where it can."""
    if n > MAX_ORDER:
        return f"order {n}; the kernel keeps factors of orders up to {MAX_ORDER} on chip"
    return refuse(None, dtype)


def transform(x: Float[Array, "b n"], *, interpret: bool = False) -> Float[Array, "b n"]:
    """x H_n, not normalised, n = 2^bits up to 32768; products and sums in float32.

    Args:
      x: (b, n), float32, bfloat16 or float16.
      interpret: run on the CPU, with race detection.
    """
    b, n = x.shape
    if b == 0:
        return x
    bits = n.bit_length() - 1
    low = min(bits, _LANES.bit_length() - 1)
    height = max(_LANES, 1 << (bits - low))
    rows = ceil_to(ceil_to(b * n, _LANES) // _LANES, height)
    narrow = x.astype(jnp.float32) if x.dtype == jnp.float16 else x  # the unit has no float16
    flat = pad_to(narrow.reshape(-1), (rows * _LANES,)).reshape(rows, _LANES)
    call = pl.pallas_call(
        _kernel,
        grid=(rows // height,),
        in_specs=[
            pl.BlockSpec((height, _LANES), lambda i: (i, 0)),
            pl.BlockSpec((height, height), lambda i: (0, 0)),
            pl.BlockSpec((_LANES, _LANES), lambda i: (0, 0)),
        ],
        out_specs=pl.BlockSpec((height, _LANES), lambda i: (i, 0)),
        out_shape=out_struct(flat.shape, flat.dtype, (flat,)),
        compiler_params=parallel(1, interpret),
        interpret=interpret_params(interpret),
    )
    out = call(flat, _diagonal(bits - low, height), _diagonal(low, _LANES))
    return out.reshape(-1)[: b * n].reshape(b, n).astype(x.dtype)


def _diagonal(bits: int, size: int) -> Array:
    """I (x) H_{2^bits}, size x size."""
    return jnp.asarray(np.kron(np.eye(size >> bits, dtype=np.float32), matrix(bits)))


def _kernel(x: Any, left: Any, right: Any, y: Any) -> None:
    wide = dot(left[...], dot(x[...].astype(jnp.float32), right[...], 0), 0)
    y[...] = wide.astype(y.dtype)
