"""X Omega and Y Omega^T for Hopper GPUs: tiles of Omega made in shared memory, fed to wgmma.

A block of threads owns a tile of the output. It streams tiles of X from global memory, several
copies in flight, makes the matching tile of Omega from the hash while the tensor cores work on the
one before, and never reads Omega. Sums are float32; float32 inputs are split into three bfloat16
parts (exact to 2^-24), normal entries into as many as their accuracy asks for.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .. import _entries
from .._entries import ceil_to
from .._mosaic_gpu import (
    DEPTH,
    PIECE,
    Generator,
    Mode,
    Parts,
    Tile,
    generator_arrays,
    kernel,
    pad_axis,
    parts,
    refuse,
    shared,
    split,
    swizzle,
)
from ..hadamard import mosaic_gpu as hadamard
from . import _srht

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ..sketches import Sketch


SHARED_BYTES = 225_000  # of the 232,448 that a block may use on sm_90; barriers and padding too
_TILE_ROWS = 8  # of a copy from memory, see _aligned


class Blocks(NamedTuple):
    """Sizes that a tuner chooses.

    Attributes:
      rows: rows of an output tile, 64 or 128.
      cols: columns of an output tile, a multiple of 64; rows * cols is at most 128 * 128.
      stages: copies of X in flight.
      splits: parts of the contraction that are summed at the end; for few output tiles.
    """

    rows: int = 128
    cols: int = 64
    stages: int = 3
    splits: int = 1


unsupported = refuse


class _Plan(NamedTuple):
    """The static shape of one launch, everything padded to whole tiles."""

    blocks: Blocks
    parts: Parts
    generator: Generator
    contraction: int  # of one offset
    group: int  # rows of Omega an offset
    offsets: tuple[int, ...]
    dtype: Any
    scale: np.float32

    @property
    def steps(self) -> int:
        """Tiles of the contraction, over all offsets."""
        return len(self.offsets) * (self.contraction // DEPTH)


def _fit(blocks: Blocks, count: Parts, dtype: Any) -> Blocks:
    """The same tiles with as many stages as shared memory holds."""
    narrow, wide = jnp.dtype(count.dtype).itemsize, jnp.dtype(dtype).itemsize
    out = blocks.rows * blocks.cols * (4 if blocks.splits > 1 else wide)
    omega = count.buffers * count.omega * DEPTH * blocks.cols * narrow
    x_parts = count.buffers * count.x * blocks.rows * DEPTH * narrow if count.x > 1 else 0
    left = SHARED_BYTES - out - omega - x_parts - 4 * 4 * blocks.cols
    stages = min(blocks.stages, left // (blocks.rows * DEPTH * wide))
    if stages < 2:  # a slot is refilled one step after its use
        raise ValueError(
            f"{blocks} needs more than the {SHARED_BYTES} bytes of shared memory; "
            "pass blocks with fewer rows or cols"
        )
    return blocks._replace(stages=stages)


def default_blocks(rows: int, cols: int, contraction: int, count: Parts) -> Blocks:
    """Tiles that fit into shared memory; split-K where few tiles would leave the chip idle."""
    tall = 64 if rows <= 64 or count.x > 1 else 128
    wide = 128 if cols > 64 and len(count.pairs()) == 1 else 64
    tiles = -(-rows // tall) * -(-cols // wide)
    splits = 1
    while tiles * splits < 128 and splits * 2 * DEPTH * 4 <= contraction:
        splits *= 2
    return Blocks(tall, wide, 3, splits)


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
    """y_i = sum_w x_{i + offsets[w]} Omega[w c : (w + 1) c], or Omega[...]^T, x and y exchanged.

    Args:
      transpose: which of the two.
      x: (p, c), transposed (p, cols); float32, bfloat16 or float16.
      sketch: rows = c len(offsets); any family but row sampling.
      offsets: not negative; (0,) is x Omega, more are the pixels of a convolution's window.
      rows_out: rows of y, by default p.
      blocks: tile sizes.
      interpret: run on the CPU, with race detection.

    Returns:
      array (rows_out, cols), transposed (rows_out, c), of x's dtype.
    """
    rows = x.shape[0] if rows_out is None else rows_out
    group = sketch.rows // len(offsets)
    cols = group if transpose else sketch.cols
    if 0 in (rows, cols, x.shape[1]):
        return jnp.zeros((rows, cols), x.dtype)
    if len(offsets) == 1 and rows == x.shape[0] and blocks is None:
        transform = functools.partial(hadamard.transform, interpret=interpret)
        fast = _srht.by_transform(transpose, x, sketch, transform, hadamard.MAX_ORDER)
        if fast is not None:
            return fast
    count = parts(x.dtype, sketch.kind)
    if blocks is None:
        blocks = default_blocks(rows, cols, x.shape[1] * len(offsets), count)
    blocks = _fit(blocks, count, x.dtype)
    aligned = group % PIECE == 0 or len(offsets) == 1
    mode = Mode(interpret)
    plan = _Plan(
        blocks,
        count,
        Generator(sketch.kind, transpose, blocks.cols, aligned, mode),
        ceil_to(x.shape[1], DEPTH),
        group,
        offsets,
        x.dtype,
        _entries.scale(sketch),
    )
    padded = ceil_to(rows, blocks.rows), ceil_to(cols, blocks.cols)
    x = pad_axis(x, 1, DEPTH)
    x, offsets = _aligned(x, offsets, padded[0])
    plan = plan._replace(offsets=offsets)
    out = _launch(plan, x, sketch, padded)
    if blocks.splits > 1:
        out = jnp.sum(out, axis=0)
    return out.reshape(padded)[:rows, :cols].astype(x.dtype)


project, project_transpose = (functools.partial(run, way) for way in (False, True))


def _aligned(x: Array, offsets: tuple[int, ...], rows: int) -> tuple[Array, tuple[int, ...]]:
    """The same rows of x, read from offsets that are multiples of 8.

    A copy in tiles of 8 rows that starts within a tile loses what lies beyond it (and the
    interpreter does not show it). So x is repeated, moved up by each remainder that occurs: for a
    convolution over rows of a multiple of 8 pixels, once a column of the window.
    """
    remainders = sorted({offset % _TILE_ROWS for offset in offsets})
    size = ceil_to(max(rows + max(offsets), x.shape[0]), _TILE_ROWS)
    x = jnp.pad(x, ((0, size + remainders[-1] - x.shape[0]), (0, 0)))
    copies = [x] if remainders == [0] else [x[r : r + size] for r in remainders]
    moved = tuple(remainders.index(o % _TILE_ROWS) * size + o - o % _TILE_ROWS for o in offsets)
    return (copies[0] if len(copies) == 1 else jnp.concatenate(copies)), moved


def _launch(plan: _Plan, x: Array, sketch: Sketch, padded: tuple[int, int]) -> Array:
    blocks, transpose = plan.blocks, plan.generator.transpose
    omega_rows = plan.group * (len(plan.offsets) - 1)
    omega_rows += padded[1] if transpose else plan.contraction
    omega_cols = plan.contraction if transpose else padded[1]
    key, arrays = generator_arrays(sketch, transpose, blocks.cols, omega_rows, omega_cols)
    names = tuple(arrays)
    out_dtype = x.dtype if blocks.splits == 1 else jnp.float32

    def body(*refs: Any, **scratch: Any) -> None:
        x_ref, key_ref, *rest = refs
        *held, y_ref = rest
        _body(plan, x_ref, key_ref, dict(zip(names, held, strict=True)), y_ref, **scratch)

    narrow, buffers = plan.parts.dtype, plan.parts.buffers
    operand = functools.partial(shared, swizzle=swizzle(sketch.kind))
    scratch = {
        "x_tiles": (operand if plan.parts.x == 1 else shared)(
            (blocks.stages, blocks.rows, DEPTH), x.dtype
        ),
        "x_parts": [
            operand((buffers, blocks.rows, DEPTH), narrow)
            for _ in range(plan.parts.x)
            if plan.parts.x > 1
        ],
        "omega_parts": [
            operand((buffers, DEPTH, blocks.cols), narrow) for _ in range(plan.parts.omega)
        ],
        "words": plgpu.SMEM(plan.generator.scratch(), jnp.uint32),
        "out_tile": shared((blocks.rows, blocks.cols), out_dtype),
        "arrived": plgpu.Barrier(num_barriers=blocks.stages),
    }
    grid = (blocks.splits, padded[0] // blocks.rows, padded[1] // blocks.cols)
    run = kernel(
        body,
        out_type=jax.ShapeDtypeStruct((blocks.splits, *padded), out_dtype),
        scratch_types=scratch,
        grid=grid,
        grid_names=("splits", "rows", "cols"),
        interpret=plan.generator.mode.params(),
    )
    return run(x, key, *arrays.values())


class _Stream(NamedTuple):
    """A block of threads at work: its output tile, its steps, and what it holds."""

    plan: _Plan
    row: Array  # of the output tile, in numbers
    col: Array
    first: Array  # step
    steps: Array  # how many
    key: tuple[Any, Any]
    x_ref: Any
    arrays: dict[str, Any]
    x_tiles: Any
    x_parts: list[Any]
    omega_parts: list[Any]
    words: Any
    arrived: Any

    @property
    def accumulator(self) -> Any:
        return plgpu.ACC((self.plan.blocks.rows, self.plan.blocks.cols), jnp.float32)


def _body(
    plan: _Plan,
    x_ref: Any,
    key_ref: Any,
    arrays: dict[str, Any],
    y_ref: Any,
    *,
    out_tile: Any,
    **held: Any,
) -> None:
    blocks, (n, m) = plan.blocks, (plan.blocks.cols, plan.blocks.rows)
    part, row, col = (lax.axis_index(name) for name in ("splits", "rows", "cols"))
    each = -(-plan.steps // blocks.splits)
    first = part * np.int32(each)
    count = lax.min(np.int32(each), np.int32(plan.steps) - first)
    place = row * np.int32(m), col * np.int32(n)
    key = key_ref[0], key_ref[1]
    stream = _Stream(plan, *place, first, count, key, x_ref, arrays, **held)
    for stage in range(blocks.stages):
        pl.when(np.int32(stage) < count)(functools.partial(_fetch, stream, np.int32(stage)))
    if plan.dtype == jnp.float32:
        total = _exact_sum(stream, out_tile)
    else:
        total = pl.run_scoped(functools.partial(_sum, stream), stream.accumulator)
    out_tile[...] = (total * plan.scale).astype(out_tile.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(out_tile, y_ref.at[part, pl.ds(place[0], m), pl.ds(place[1], n)])
    plgpu.wait_smem_to_gmem(0)


def _fetch(stream: _Stream, step: Array | np.int32) -> None:
    """Starts the copy of a step's tile of x."""
    plan = stream.plan
    offset, inner = _position(plan, stream.first + step)
    slot = lax.rem(step, np.int32(plan.blocks.stages))
    start = stream.row + _shift(plan.offsets, offset)
    source = stream.x_ref.at[pl.ds(start, plan.blocks.rows), pl.ds(inner, DEPTH)]
    plgpu.copy_gmem_to_smem(source, stream.x_tiles.at[slot], stream.arrived.at[slot])


def _refill(stream: _Stream, step: Array) -> None:
    """The slot of the step before, which is done with, gets the next tile."""
    following = step - 1 + np.int32(stream.plan.blocks.stages)

    @pl.when((step > 0) & (following < stream.steps))
    def _() -> None:
        _fetch(stream, following)


def _pairs(stream: _Stream, step: Array) -> list[tuple[Any, Any]]:
    """What the tensor cores multiply in a step: parts of the tiles of x and of Omega."""
    plan = stream.plan
    slot, flip = (lax.rem(step, np.int32(d)) for d in (plan.blocks.stages, plan.parts.buffers))
    tile = _tile(plan, stream.first + step, stream.col)
    omega = [ref.at[flip] for ref in stream.omega_parts]
    plan.generator.write(omega, stream.words, stream.key, stream.arrays, tile)
    plgpu.barrier_wait(stream.arrived.at[slot])
    xs = _operands(plan, stream.x_tiles.at[slot], [ref.at[flip] for ref in stream.x_parts])
    plgpu.commit_smem()
    return [(xs[i], omega[j]) for i, j in plan.parts.pairs()]


def _sum(stream: _Stream, acc: Any) -> Array:
    """All steps, summed by the tensor cores."""

    @pl.loop(np.int32(0), stream.steps)
    def _(step: Array) -> None:
        pairs = _pairs(stream, step)
        for x_part, omega_part in pairs:
            plgpu.wgmma(acc, x_part, omega_part)
        # The products before these are done: what they read can be filled again.
        plgpu.wgmma_wait(len(pairs) if stream.plan.parts.buffers > 1 else 0)
        _refill(stream, step)

    plgpu.wgmma_wait(0)
    return acc[...]


def _exact_sum(stream: _Stream, out_tile: Any) -> Array:
    """All steps, each summed by the tensor cores, and they by cores for float32.

    Tensor cores cut off what they add, so that a long sum in them drifts towards zero: here they
    sum one step alone, the smallest products first. The sum waits in shared memory: beside normal
    entries there are no registers for it.
    """
    mode = stream.plan.generator.mode
    out_tile[...] = mode.zeros((stream.plan.blocks.rows, stream.plan.blocks.cols))

    @pl.loop(np.int32(0), stream.steps)
    def _(step: Array) -> None:
        def products(acc: Any) -> Array:
            for x_part, omega_part in reversed(_pairs(stream, step)):
                plgpu.wgmma(acc, x_part, omega_part)
            plgpu.wgmma_wait(0)
            _refill(stream, step)
            return acc[...]

        part = pl.run_scoped(products, stream.accumulator)
        out_tile[...] = mode.load(out_tile, plgpu.Layout.WGMMA) + part

    return mode.load(out_tile, plgpu.Layout.WGMMA)


def _position(plan: _Plan, step: Array | np.int32) -> tuple[Array, Array]:
    """Which offset a step belongs to, and where it starts in the contraction."""
    tiles = np.int32(plan.contraction // DEPTH)
    return lax.div(step, tiles), lax.rem(step, tiles) * np.int32(DEPTH)


def _shift(offsets: tuple[int, ...], index: Array) -> Array:
    """offsets[index], by selection: a kernel holds no constant arrays."""
    value = np.int32(offsets[0]) + index * np.int32(0)
    for i, offset in enumerate(offsets[1:], 1):
        value = jnp.where(index == np.int32(i), np.int32(offset), value)
    return value


def _tile(plan: _Plan, step: Array, out_col: Array) -> Tile:
    """Where in Omega the tile of a step lies."""
    offset, inner = _position(plan, step)
    base = offset * np.int32(plan.group)
    if plan.generator.transpose:
        return Tile(base + out_col, inner)
    return Tile(base + inner, out_col)


def _operands(plan: _Plan, x_tile: Any, x_parts: list[Any]) -> list[Any]:
    """References to the narrow parts of a tile of x."""
    if not x_parts:
        return [x_tile]
    for i in range(plan.blocks.rows // PIECE):
        for j in range(DEPTH // PIECE):
            place = (pl.ds(i * PIECE, PIECE), pl.ds(j * PIECE, PIECE))
            values = split(
                plan.generator.mode.load(x_tile.at[place], plgpu.Layout.WGMMA),
                plan.parts.dtype,
                plan.parts.x,
            )
            for ref, value in zip(x_parts, values, strict=True):
                ref[place] = value
    return x_parts
