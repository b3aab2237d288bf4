"""The Walsh-Hadamard transform on Hopper's tensor cores, one pass over memory.

A row of n = 64 a numbers is a matrix X (a, 64) in memory, and x H_n is H_a X H_64. So a tile of
consecutive memory is multiplied from both sides by small matrices that stay in shared memory;
shorter rows share a tile, through block-diagonal factors I (x) H.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .._entries import ceil_to
from .._mosaic_gpu import (
    PIECE,
    Mode,
    Parts,
    kernel,
    pad_axis,
    parts,
    refuse,
    shared,
    split,
)
from .reference import matrix

if TYPE_CHECKING:
    from jaxtyping import Array, Float

MAX_ORDER = 64 * 128


class Blocks(NamedTuple):
    """Sizes that a tuner chooses.

    Attributes:
      tiles: tiles that a block of threads transforms one after the other.
    """

    tiles: int = 8


def unsupported(n: int, dtype: Any) -> str | None:
    """Why the kernel cannot run; None where it can."""
    if n > MAX_ORDER:
        return f"order {n}; the kernel keeps factors of orders up to {MAX_ORDER} on chip"
    return refuse(None, dtype)


def transform(
    x: Float[Array, "b n"], *, blocks: Blocks | None = None, interpret: bool = False
) -> Float[Array, "b n"]:
    """x H_n, not normalised, n = 2^bits up to 8192.

    Args:
      x: (b, n), float32, bfloat16 or float16.
      blocks: sizes.
      interpret: run on the CPU, with race detection.
    """
    (b, n), count = x.shape, _parts(x.dtype)
    if b == 0:
        return x
    bits = n.bit_length() - 1
    low = min(bits, 6)
    height = max(PIECE, 1 << (bits - low))
    # 2^-(low // 2) in the right factor keeps the size of numbers between the two products.
    right = _diagonal(low, PIECE) * np.float32(2.0 ** -(low // 2))
    left = _diagonal(bits - low, height)
    tiles = (Blocks() if blocks is None else blocks).tiles
    flat = x.reshape(-1)
    flat = pad_axis(flat, 0, PIECE).reshape(-1, PIECE)
    flat = pad_axis(flat, 0, height)
    out = _launch(
        flat,
        jnp.asarray(left, count.dtype),
        jnp.asarray(right, count.dtype),
        count,
        np.float32(2.0 ** (low // 2)),
        min(tiles, flat.shape[0] // height),
        Mode(interpret),
    )
    return out.reshape(-1)[: b * n].reshape(b, n)


def _parts(dtype: Any) -> Parts:
    """x: parts of the inputs; omega: parts of what lies between the two products."""
    narrow = parts(dtype, "rademacher")
    return narrow._replace(omega=3 if dtype == jnp.float32 else 2)


def _diagonal(bits: int, size: int) -> np.ndarray:
    """I (x) H_{2^bits}, size x size."""
    return np.kron(np.eye(size >> bits, dtype=np.float32), matrix(bits))


def _launch(
    x: Array,
    left: Array,
    right: Array,
    count: Parts,
    scale: np.float32,
    tiles: int,
    mode: Mode,
) -> Array:
    height = left.shape[0]
    total = x.shape[0] // height
    narrow = count.dtype

    def body(x_ref: Any, left_ref: Any, right_ref: Any, y_ref: Any, **scratch: Any) -> None:
        factors = scratch.pop("factors_arrived")
        plgpu.copy_gmem_to_smem(left_ref, scratch["left"], factors.at[0])
        plgpu.copy_gmem_to_smem(right_ref, scratch["right"], factors.at[1])
        plgpu.barrier_wait(factors.at[0])
        plgpu.barrier_wait(factors.at[1])
        first = lax.axis_index("blocks") * np.int32(tiles)
        number = lax.min(np.int32(tiles), np.int32(total) - first)
        _tiles(x_ref, y_ref, first, number, scale, mode, **scratch)

    run = kernel(
        body,
        out_type=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_types={
            "left": shared(left.shape, narrow),
            "right": shared(right.shape, narrow),
            "x_tile": shared((height, PIECE), x.dtype),
            "x_parts": [
                shared((height, PIECE), narrow) for _ in range(count.x) if x.dtype != narrow
            ],
            "middle": [shared((height, PIECE), narrow) for _ in range(count.omega)],
            "y_tile": shared((height, PIECE), x.dtype),
            "arrived": plgpu.Barrier(),
            "factors_arrived": plgpu.Barrier(num_barriers=2),
        },
        grid=(ceil_to(total, tiles) // tiles,),
        grid_names=("blocks",),
        interpret=mode.params(),
    )
    return run(x, left, right)


def _tiles(
    x_ref: Any,
    y_ref: Any,
    first: Array,
    number: Array,
    scale: np.float32,
    mode: Mode,
    *,
    left: Any,
    right: Any,
    x_tile: Any,
    x_parts: list[Any],
    middle: list[Any],
    y_tile: Any,
    arrived: Any,
) -> None:
    height = left.shape[0]

    @pl.loop(np.int32(0), number)
    def _(step: Array) -> None:
        place = pl.ds((first + step) * np.int32(height), height)
        plgpu.copy_gmem_to_smem(x_ref.at[place], x_tile, arrived)
        plgpu.barrier_wait(arrived)
        operands = [x_tile]
        if x_parts:
            operands = x_parts
            _store_parts(mode.load(x_tile, plgpu.Layout.WGMMA), x_parts)
            plgpu.commit_smem()

        def rows(acc: Any) -> Array:
            for operand in operands:
                plgpu.wgmma(acc, operand, right)
            plgpu.wgmma_wait(0)
            return acc[...]

        _store_parts(pl.run_scoped(rows, plgpu.ACC((height, PIECE), jnp.float32)), middle)
        plgpu.commit_smem()

        def columns(acc: Any) -> Array:
            for part in middle:
                plgpu.wgmma(acc, left, part)
            plgpu.wgmma_wait(0)
            return acc[...]

        value = pl.run_scoped(columns, plgpu.ACC((height, PIECE), jnp.float32))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        y_tile[...] = (value * scale).astype(y_tile.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(y_tile, y_ref.at[place])

    plgpu.wait_smem_to_gmem(0)


def _store_parts(value: Array, refs: list[Any]) -> None:
    for ref, part in zip(refs, split(value, refs[0].dtype, len(refs)), strict=True):
        ref[...] = part
