"""The chain in one Hopper kernel: the rank-sized intermediates stay in shared memory.

A block of threads owns 64 rows of x and a range of output columns. It sums h = x L over tiles of L
that come from memory or from the hash, multiplies by the core, and streams tiles of R. Blocks that
share rows repeat h: that costs reads from the second-level cache, and saves a launch and a
synchronisation.
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
    SWIZZLE,
    Generator,
    Mode,
    Tile,
    generator_arrays,
    kernel,
    pad_axis,
    parts,
    refuse,
    shared,
    swizzle,
)
from ..sketches import Sketch

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ..sketches._base import Static

    Factor = Array | Sketch
    Index = Array | np.int32

MAX_RANK = 128  # both intermediates, the core and two tiles of each outer factor: 200 kB
ROWS = 64


class Blocks(NamedTuple):
    """Sizes that a tuner chooses.

    Attributes:
      groups: ranges of output columns, each a block of threads; more for few rows.
    """

    groups: int = 4


def unsupported(
    left: Static | None, core: tuple[int, ...], right: Static | None, dtype: Any
) -> str | None:
    """Why the kernel cannot run; None where it can. A factor is None where it is stored."""
    if jnp.dtype(dtype).itemsize != 2:
        return f"the fused chain takes bfloat16 and float16, not {jnp.dtype(dtype).name}"
    if max(core) > MAX_RANK:
        return f"a core of shape {tuple(core)}; the fused chain holds ranks up to {MAX_RANK}"
    return refuse(left, dtype) or refuse(right, dtype)


def chain(
    x: Float[Array, "b m"],
    left: Factor,
    core: Float[Array, "s l"],
    right: Factor,
    *,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> tuple[Array, Array, Array]:
    """(y, h, z) with h = x L, z = h U, y = z R, each of x's dtype.

    Args:
      x: (b, m), bfloat16 or float16.
      left: array (m, s), or a sketch of m rows and s columns.
      core: (s, l), both at most 128.
      right: array (l, n), or a sketch of n rows and l columns.
      blocks: sizes.
      interpret: run on the CPU, with race detection.
    """
    (b, m), (s, l) = x.shape, core.shape
    n = right.rows if isinstance(right, Sketch) else right.shape[1]
    if 0 in (b, m, s, l, n):
        y, h, z = (jnp.zeros((b, k), x.dtype) for k in (n, s, l))
        return y, h, z
    blocks = Blocks() if blocks is None else blocks
    sizes = _Sizes(
        ceil_to(b, ROWS),
        ceil_to(m, DEPTH),
        ceil_to(s, DEPTH),
        ceil_to(l, DEPTH),
        ceil_to(n, PIECE),
        min(blocks.groups, ceil_to(n, PIECE) // PIECE),
    )
    x = pad_axis(pad_axis(x, 0, ROWS), 1, DEPTH)
    core = pad_axis(pad_axis(core, 0, DEPTH), 1, DEPTH)
    mode = Mode(interpret)
    first = _outer_factor(left, False, sizes.m, sizes.s, x.dtype, mode)
    last = _outer_factor(right, True, sizes.n, sizes.l, x.dtype, mode)
    y, h, z = _launch(sizes, mode, x, core, first, last)
    return y[:b, :n], h[:b, :s], z[:b, :l]


class _Sizes(NamedTuple):
    b: int
    m: int
    s: int
    l: int
    n: int
    groups: int


class _Outer(NamedTuple):
    """An outer factor as the kernel sees it: arrays, and how a tile comes from them."""

    generator: Generator | None  # None: stored
    arrays: tuple[Array, ...]
    names: tuple[str, ...]
    parts: int
    scale: np.float32


def _outer_factor(
    factor: Factor, transpose: bool, rows: int, cols: int, dtype: Any, mode: Mode
) -> _Outer:
    """rows, cols: of the sketch, padded; a stored right factor is (cols, rows)."""
    width = PIECE if transpose else cols
    if not isinstance(factor, Sketch):
        shape = (cols, rows) if transpose else (rows, cols)
        padded = jnp.pad(factor, [(0, p - a) for p, a in zip(shape, factor.shape, strict=True)])
        return _Outer(None, (padded,), ("stored",), 1, np.float32(1.0))
    generator = Generator(factor.kind, transpose, width, True, mode)
    key, arrays = generator_arrays(factor, transpose, width, rows, cols)
    return _Outer(
        generator,
        (key, *arrays.values()),
        ("key", *arrays),
        parts(dtype, factor.kind).omega,
        _entries.scale(factor),
    )


def _launch(
    sizes: _Sizes, mode: Mode, x: Array, core: Array, first: _Outer, last: _Outer
) -> tuple[Array, Array, Array]:
    dtype = x.dtype
    first_count = len(first.arrays)

    def body(*refs: Any, **scratch: Any) -> None:
        x_ref, core_ref, *rest = refs
        *held, y_ref, h_ref, z_ref = rest
        left = _Source(first, dict(zip(first.names, held[:first_count], strict=True)))
        right = _Source(last, dict(zip(last.names, held[first_count:], strict=True)))
        _body(sizes, left, right, x_ref, core_ref, (y_ref, h_ref, z_ref), **scratch)

    made = [outer.generator.kind for outer in (first, last) if outer.generator]
    operand = functools.partial(shared, swizzle=min(map(swizzle, made), default=SWIZZLE))

    def tiles(outer: _Outer, width: int) -> list[Any]:
        count, stages = (outer.parts, 1) if outer.generator else (1, 2)
        return [operand((stages, DEPTH, width), dtype) for _ in range(count)]

    scratch = {
        "x_tiles": operand((2, ROWS, DEPTH), dtype),
        "left_tiles": tiles(first, sizes.s),
        "core_tile": operand((sizes.s, sizes.l), dtype),
        "h_tile": operand((ROWS, sizes.s), dtype),
        "z_tile": operand((ROWS, sizes.l), dtype),
        "right_tiles": tiles(last, PIECE),
        "y_tile": shared((ROWS, PIECE), dtype),
        "words": plgpu.SMEM((2, 2 * max(sizes.s, PIECE)), jnp.uint32),
        "x_arrived": plgpu.Barrier(num_barriers=2),
        "left_arrived": plgpu.Barrier(num_barriers=2),
        "right_arrived": plgpu.Barrier(num_barriers=2),
        "core_arrived": plgpu.Barrier(),
    }
    run = kernel(
        body,
        out_type=[
            jax.ShapeDtypeStruct((sizes.b, width), dtype) for width in (sizes.n, sizes.s, sizes.l)
        ],
        scratch_types=scratch,
        grid=(sizes.b // ROWS, sizes.groups),
        grid_names=("rows", "groups"),
        interpret=mode.params(),
    )
    y, h, z = run(x, core, *first.arrays, *last.arrays)
    return y, h, z


class _Source(NamedTuple):
    """An outer factor inside the kernel."""

    outer: _Outer
    refs: dict[str, Any]

    def fetch(self, step: Index, tiles: list[Any], arrived: Any, place: Any) -> None:
        """Starts the copy of a stored tile into slot step % 2."""
        if self.outer.generator is None:
            slot = lax.rem(step, np.int32(2))
            plgpu.copy_gmem_to_smem(
                self.refs["stored"].at[place], tiles[0].at[slot], arrived.at[slot]
            )

    def tile(
        self, step: Array, tiles: list[Any], arrived: Any, words: Any, where: Tile
    ) -> list[Any]:
        """The tile of a step: waited for, or made."""
        if self.outer.generator is None:
            slot = lax.rem(step, np.int32(2))
            plgpu.barrier_wait(arrived.at[slot])
            return [tiles[0].at[slot]]
        key = self.refs["key"][0], self.refs["key"][1]
        arrays = {name: ref for name, ref in self.refs.items() if name != "key"}
        made = [ref.at[0] for ref in tiles]
        self.outer.generator.write(made, words, key, arrays, where)
        plgpu.commit_smem()
        return made


def _body(
    sizes: _Sizes,
    left: _Source,
    right: _Source,
    x_ref: Any,
    core_ref: Any,
    outs: tuple[Any, Any, Any],
    *,
    core_tile: Any,
    h_tile: Any,
    z_tile: Any,
    core_arrived: Any,
    **scratch: Any,
) -> None:
    row, group = lax.axis_index("rows") * np.int32(ROWS), lax.axis_index("groups")
    y_ref, h_ref, z_ref = outs
    plgpu.copy_gmem_to_smem(core_ref, core_tile, core_arrived)
    total = pl.run_scoped(
        functools.partial(_sum_h, sizes, left, x_ref, row, scratch),
        plgpu.ACC((ROWS, sizes.s), jnp.float32),
    )
    h_tile[...] = (total * left.outer.scale).astype(h_tile.dtype)
    plgpu.commit_smem()
    plgpu.barrier_wait(core_arrived)
    total = pl.run_scoped(
        functools.partial(_multiply, h_tile, [core_tile]), plgpu.ACC((ROWS, sizes.l), jnp.float32)
    )
    z_tile[...] = total.astype(z_tile.dtype)
    plgpu.commit_smem()

    @pl.when(group == 0)
    def _() -> None:
        plgpu.copy_smem_to_gmem(h_tile, h_ref.at[pl.ds(row, ROWS)])
        plgpu.copy_smem_to_gmem(z_tile, z_ref.at[pl.ds(row, ROWS)])

    _columns(sizes, right, z_tile, y_ref, row, group, scratch)
    plgpu.wait_smem_to_gmem(0)


def _multiply(a: Any, tiles: list[Any], acc: Any) -> Array:
    for tile in tiles:
        plgpu.wgmma(acc, a, tile)
    plgpu.wgmma_wait(0)
    return acc[...]


def _sum_h(
    sizes: _Sizes, left: _Source, x_ref: Any, row: Array, scratch: dict[str, Any], acc: Any
) -> Array:
    steps = sizes.m // DEPTH
    x_tiles, tiles = scratch["x_tiles"], scratch["left_tiles"]

    def fetch(step: Any) -> None:
        slot, at = lax.rem(step, np.int32(2)), pl.ds(step * np.int32(DEPTH), DEPTH)
        plgpu.copy_gmem_to_smem(
            x_ref.at[pl.ds(row, ROWS), at], x_tiles.at[slot], scratch["x_arrived"].at[slot]
        )
        left.fetch(step, tiles, scratch["left_arrived"], at)

    for step in range(min(2, steps)):
        fetch(np.int32(step))

    @pl.loop(np.int32(0), np.int32(steps))
    def _(step: Array) -> None:
        slot = lax.rem(step, np.int32(2))
        where = Tile(step * np.int32(DEPTH), np.int32(0))
        made = left.tile(step, tiles, scratch["left_arrived"], scratch["words"], where)
        plgpu.barrier_wait(scratch["x_arrived"].at[slot])
        for tile in made:
            plgpu.wgmma(acc, x_tiles.at[slot], tile)
        plgpu.wgmma_wait(0)
        pl.when(step + 2 < steps)(lambda: fetch(step + 2))

    return acc[...]


def _columns(
    sizes: _Sizes,
    right: _Source,
    z_tile: Any,
    y_ref: Any,
    row: Array,
    group: Array,
    scratch: dict[str, Any],
) -> None:
    total = sizes.n // PIECE
    each = -(-total // sizes.groups)
    first = group * np.int32(each)
    count = lax.max(np.int32(0), lax.min(np.int32(each), np.int32(total) - first))
    tiles, y_tile = scratch["right_tiles"], scratch["y_tile"]

    def fetch(step: Index) -> None:
        at = pl.ds((first + step) * np.int32(PIECE), PIECE)
        right.fetch(step, tiles, scratch["right_arrived"], (slice(None), at))

    for step in range(2):
        pl.when(np.int32(step) < count)(functools.partial(fetch, np.int32(step)))

    @pl.loop(np.int32(0), count)
    def _(step: Array) -> None:
        column = (first + step) * np.int32(PIECE)
        where = Tile(column, np.int32(0))
        made = right.tile(step, tiles, scratch["right_arrived"], scratch["words"], where)
        value = pl.run_scoped(
            functools.partial(_multiply, z_tile, made), plgpu.ACC((ROWS, PIECE), jnp.float32)
        )
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        y_tile[...] = (value * right.outer.scale).astype(y_tile.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(y_tile, y_ref.at[pl.ds(row, ROWS), pl.ds(column, PIECE)])
        pl.when(step + 2 < count)(lambda: fetch(step + 2))
