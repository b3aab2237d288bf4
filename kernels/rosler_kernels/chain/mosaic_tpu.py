"""The chain in one TPU kernel: the rank-sized intermediates stay in vector memory.

The grid walks, for each tile of rows of x, first over tiles of the inputs (summing h = x L), then
over tiles of the outputs (y = z R); the core is applied between the two.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .. import _entries
from .._entries import ceil_to
from .._mosaic_tpu import (
    Generator,
    dot,
    interpret_params,
    operand_dtype,
    out_struct,
    pad_to,
    parallel,
    refuse,
)
from ..sketches import Sketch

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float

    from ..sketches._base import Static

    Factor = Array | Sketch

MAX_RANK = 512
_LANES = 128


class Blocks(NamedTuple):
    """Sizes that a tuner chooses.

    Attributes:
      batch: rows of x a tile, a multiple of 16.
      tile: inputs, and outputs, a tile; a multiple of 128.
    """

    batch: int = 128
    tile: int = 256


def unsupported(
    left: Static | None, core: tuple[int, ...], right: Static | None, dtype: Any
) -> str | None:
    """Why the kernel cannot run; None where it can. A factor is None where it is stored."""
    if max(core) > MAX_RANK:
        return f"a core of shape {tuple(core)}; the fused chain holds ranks up to {MAX_RANK}"
    return refuse(left, dtype) or refuse(right, dtype)


class _Outer(NamedTuple):
    """An outer factor: its arrays, their block specs, and how a tile comes from them.

    A tile is (tile, rank): a stored right factor is held transposed.
    """

    generator: Generator | None
    arrays: list[Array]
    specs: list[Any]
    scale: np.float32


def chain(
    x: Float[Array, "b m"],
    left: Factor,
    core: Float[Array, "s l"],
    right: Factor,
    *,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> tuple[Array, Array, Array]:
    """(y, h, z) as of ``mosaic_gpu.chain``; x may be float32, ranks are up to MAX_RANK."""
    (b, m), (s, l) = x.shape, core.shape
    n = right.rows if isinstance(right, Sketch) else right.shape[1]
    if 0 in (b, m, s, l, n):
        y, h, z = (jnp.zeros((b, k), x.dtype) for k in (n, s, l))
        return y, h, z
    blocks = Blocks() if blocks is None else blocks
    dtype = _common(x.dtype, left, right)
    batch = min(blocks.batch, ceil_to(b, 16))
    rows = ceil_to(b, batch)
    in_tile, out_tile = (min(blocks.tile, ceil_to(k, _LANES)) for k in (m, n))
    inputs, outputs = ceil_to(m, in_tile), ceil_to(n, out_tile)
    ranks = ceil_to(s, _LANES), ceil_to(l, _LANES)
    steps = inputs // in_tile
    none, last_in = np.int32(0), np.int32(steps - 1)  # a Python int is 64 bits under x64
    first = _outer(left, inputs, in_tile, ranks[0], dtype, lambda i, k: lax.min(k, last_in))
    after = right if isinstance(right, Sketch) else right.T
    last = _outer(after, outputs, out_tile, ranks[1], dtype, lambda i, k: lax.max(k - steps, none))
    call = pl.pallas_call(
        functools.partial(_kernel, steps, first, last),
        grid=(rows // batch, steps + outputs // out_tile),
        in_specs=[
            pl.BlockSpec((batch, in_tile), lambda i, k: (i, lax.min(k, last_in))),
            pl.BlockSpec(ranks, lambda i, k: (0, 0)),
            *first.specs,
            *last.specs,
        ],
        out_specs=[
            pl.BlockSpec((batch, out_tile), lambda i, k: (i, lax.max(k - steps, none))),
            pl.BlockSpec((batch, ranks[0]), lambda i, k: (i, 0)),
            pl.BlockSpec((batch, ranks[1]), lambda i, k: (i, 0)),
        ],
        out_shape=[
            out_struct((rows, k), jnp.float32, (x, core, *first.arrays, *last.arrays))
            for k in (outputs, *ranks)
        ],
        scratch_shapes=[
            pltpu.VMEM((in_tile, ranks[0]), dtype),
            pltpu.VMEM((out_tile, ranks[1]), dtype),
        ],
        compiler_params=parallel(2, interpret),
        interpret=interpret_params(interpret),
    )
    y, h, z = call(
        pad_to(x.astype(dtype), (rows, inputs)),
        pad_to(core.astype(dtype), ranks),
        *first.arrays,
        *last.arrays,
    )
    y, h, z = (a[:b, :k].astype(x.dtype) for a, k in ((y, n), (h, s), (z, l)))
    return y, h, z


def _common(dtype: Any, *factors: Factor) -> Any:
    kinds = [factor.kind for factor in factors if isinstance(factor, Sketch)]
    dtypes = [operand_dtype(dtype, kind) for kind in ["rademacher", *kinds]]
    return jnp.float32 if jnp.float32 in dtypes else jnp.bfloat16


def _outer(
    factor: Factor,
    size: int,
    tile: int,
    rank: int,
    dtype: Any,
    index: Callable[[Array, Array], Array],
) -> _Outer:
    if not isinstance(factor, Sketch):
        spec = pl.BlockSpec((tile, rank), lambda i, k: (index(i, k), 0))
        held = pad_to(factor.astype(dtype), (size, rank))
        return _Outer(None, [held], [spec], np.float32(1.0))
    generator = Generator(factor.kind, tile, rank)
    arrays = generator.operands(factor, 0, size, rank)
    specs = generator.specs(index, lambda i, k: 0, arrays[1].shape[1])
    return _Outer(generator, arrays, specs, _entries.scale(factor))


def _kernel(steps: int, first: _Outer, last: _Outer, x: Any, core: Any, *refs: Any) -> None:
    count = len(first.arrays)
    left, right = refs[:count], refs[count : count + len(last.arrays)]
    y, h, z, left_tile, right_tile = refs[count + len(last.arrays) :]
    k = pl.program_id(1)

    @pl.when(k == 0)
    def _() -> None:
        h[...] = jnp.zeros_like(h)

    @pl.when(k < steps)
    def _() -> None:
        h[...] += dot(x[...], _tile(first, left, left_tile, k), 0)

    @pl.when(k == steps - 1)
    def _() -> None:
        h[...] = h[...] * first.scale
        z[...] = dot(h[...].astype(core.dtype), core[...], 0)

    @pl.when(k >= steps)
    def _() -> None:
        tile = _tile(last, right, right_tile, k - np.int32(steps))
        y[...] = dot(z[...].astype(tile.dtype), tile, 1) * last.scale


def _tile(outer: _Outer, refs: Any, scratch: Any, step: Array) -> Array:
    """Tile ``step`` of an outer factor, unscaled: stored, or made."""
    if outer.generator is None:
        return refs[0][...]
    outer.generator.write(scratch, refs[0], refs[1], step, np.int32(0))
    return scratch[...]
