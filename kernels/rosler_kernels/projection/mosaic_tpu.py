"""X Omega and Y Omega^T for TPUs: tiles of Omega made in vector memory, fed to the matrix unit."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .. import _entries
from .._entries import ceil_to
from .._mosaic_tpu import (
    BLOCK,
    Generator,
    dot,
    interpret_params,
    operand_dtype,
    out_struct,
    pad_to,
    parallel,
    refuse,
)
from ..hadamard import mosaic_tpu as hadamard
from . import _srht

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ..sketches import Sketch


class Blocks(NamedTuple):
    """Sizes that a tuner chooses.

    Attributes:
      batch: rows of x a tile, a multiple of 16.
      rows: rows of Omega a tile, a multiple of 128.
      cols: columns of Omega a tile, a multiple of 128.
    """

    batch: int = 256
    rows: int = 512
    cols: int = 128


unsupported = refuse


def run(
    transpose: bool,
    x: Float[Array, "p c"],
    sketch: Sketch,
    *,
    offsets: tuple[int, ...] = (0,),
    rows_out: int | None = None,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> Float[Array, "rows_out cols"]:
    """Arguments, result as of ``mosaic_gpu.run``: x Omega or, over offsets, a convolution."""
    rows = x.shape[0] if rows_out is None else rows_out
    group = sketch.rows // len(offsets)
    out = group if transpose else sketch.cols
    if 0 in (rows, out, x.shape[1]):
        return jnp.zeros((rows, out), x.dtype)
    if len(offsets) == 1 and rows == x.shape[0] and blocks is None:
        transform = functools.partial(hadamard.transform, interpret=interpret)
        fast = _srht.by_transform(transpose, x, sketch, transform, hadamard.MAX_ORDER)
        if fast is not None:
            return fast
    # No float16 in the kernel: the unit has none.
    narrow = jnp.float32 if x.dtype == jnp.float16 else x.dtype
    one = len(offsets) == 1
    how = _How(blocks or Blocks(), narrow if one else jnp.dtype(jnp.float32), interpret)
    launch = functools.partial(_launch, transpose, sketch, group, how)
    if one:
        return launch(x.astype(narrow), 0).astype(x.dtype)
    total = None
    for i, offset in enumerate(offsets):  # tiled memory has no place for a shift by any number
        part = launch(x[offset : offset + rows].astype(narrow), i * group)
        total = part if total is None else total + part
    assert total is not None
    return total.astype(x.dtype)


project, project_transpose = (functools.partial(run, way) for way in (False, True))


class _How(NamedTuple):
    """Tiles, dtype of the result, and whether to interpret."""

    blocks: Blocks
    dtype: Any
    interpret: bool


def _launch(transpose: bool, sketch: Sketch, group: int, how: _How, x: Array, base: int) -> Array:
    blocks, _, interpret = how
    batch = min(blocks.batch, ceil_to(x.shape[0], 16))
    rows = min(blocks.rows, ceil_to(group, 2 * BLOCK))
    cols = min(blocks.cols, ceil_to(sketch.cols, 2 * BLOCK))
    generator = Generator(sketch.kind, rows, cols, base % BLOCK == 0)
    size = (
        ceil_to(x.shape[0], batch),
        ceil_to(group, rows),
        ceil_to(sketch.cols, cols),
    )
    inner, outer = (size[2], size[1]) if transpose else (size[1], size[2])
    inner_tile, outer_tile = (cols, rows) if transpose else (rows, cols)
    row = (lambda i, j, k: j) if transpose else (lambda i, j, k: k)
    column = (lambda i, j, k: k) if transpose else (lambda i, j, k: j)
    operands = generator.operands(sketch, base, size[1], size[2])
    steps, scale = inner // inner_tile, _entries.scale(sketch)
    kernel = functools.partial(_kernel, generator, transpose, steps, scale)
    call = pl.pallas_call(
        kernel,
        grid=(size[0] // batch, outer // outer_tile, inner // inner_tile),
        in_specs=[
            pl.BlockSpec((batch, inner_tile), lambda i, j, k: (i, k)),
            *generator.specs(row, column, operands[1].shape[1]),
        ],
        out_specs=pl.BlockSpec((batch, outer_tile), lambda i, j, k: (i, j)),
        out_shape=out_struct((size[0], outer), how.dtype, (x, *operands)),
        scratch_shapes=[
            pltpu.VMEM((rows, cols), operand_dtype(x.dtype, sketch.kind)),
            pltpu.VMEM((batch, outer_tile), jnp.float32),
        ],
        compiler_params=parallel(3, interpret),
        interpret=interpret_params(interpret),
    )
    out = call(pad_to(x, (size[0], inner)), *operands)
    return out[: x.shape[0], : group if transpose else sketch.cols]


def _kernel(
    generator: Generator,
    transpose: bool,
    steps: int,
    scale: np.float32,
    x: Any,
    scalars: Any,
    vector: Any,
    y: Any,
    omega: Any,
    total: Any,
) -> None:
    j, k = pl.program_id(1), pl.program_id(2)

    @pl.when(k == 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    row_tile, col_tile = (j, k) if transpose else (k, j)
    generator.write(omega, scalars, vector, row_tile, col_tile)
    total[...] += dot(x[...].astype(omega.dtype), omega[...], 1 if transpose else 0)

    @pl.when(k == steps - 1)
    def _() -> None:
        y[...] = (total[...] * scale).astype(y.dtype)
