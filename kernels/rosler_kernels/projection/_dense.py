"""Products with Omega made a tile at a time; no copy of the operands, and none of Omega whole.

On GPUs and TPUs, 16-bit operands stay as they are, since tensor cores sum their products in
float32: signs are exact in 16 bits, and other entries are two numbers of 16 bits, products of which
are added. CPUs have no such products: there numbers are widened, a block at a time.

Which loop it is depends on what would be copied. XLA reads a product's operands where they lie, but
a slice along the contraction it writes down first: where the examples are many, Omega is made in
blocks of columns, and x is read once for each; where they are few, in blocks of rows.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from ..products import accumulator, wide_dot
from ..sketches import family
from . import _blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float

    from ..sketches import Sketch

TILE_ENTRIES = 2**18  # on a CPU, 1 MB of float32: stays in a core's second-level cache
TILE_BYTES = 2**22, 2**25
"""On a GPU or a TPU, at least and at most; between them a quarter of the larger operand or result.

Of 8192 x 8192 -> 1024 in bfloat16 on an H100, products with tiles of 4 MB took 0.54 ms, one with
all 16 MB of a normal Omega that was made for it 0.22."""
_ROWS = 64  # that share a hash
FEW, FEW_LANES = 16, 128  # columns of a tile at least, on a CPU, and where products are as wide


class Entries(NamedTuple):
    """How tiles of Omega are made for products with an operand.

    Attributes:
      sketch: of them.
      narrow: the operand's dtype where products take it as it is, else None.
      limit: entries of a tile.
      few: columns of a tile below which the operand is read too often.
    """

    sketch: Sketch
    narrow: Any
    limit: int
    few: int

    def fused(self, dtype: Any) -> bool:
        """Whether a product makes a result of a dtype, with no copy of its sums."""
        return self.narrow is not None or accumulator(dtype) == dtype

    @property
    def _signs(self) -> bool:
        return family(self.sketch.kind).magnitude is not None

    @property
    def scale(self) -> Any:
        """What multiplies a product with narrow entries, which are of about unit size."""
        scale = family(self.sketch.kind).scale
        return self.sketch.rows**-0.5 if scale is None else scale(self.sketch)

    def tile(self, first: Any, rows: int, column: Any, cols: int) -> list[Array]:
        """Matrices (rows, cols) that add up to a tile of Omega, over ``scale`` where narrow."""
        made = family(self.sketch.kind).tile(self.sketch, first, rows, column, cols)
        if self.narrow is None:
            return [made]
        if self._signs:
            return [jnp.sign(made).astype(self.narrow)]
        unit = made / self.scale
        # Not by a cast and back, which compilers leave out as more exact: nothing would remain.
        of = jnp.finfo(self.narrow)
        high = jax.lax.reduce_precision(unit, of.nexp, of.nmant)
        return [high.astype(self.narrow), (unit - high).astype(self.narrow)]

    def beside(self, x: Array) -> Array:
        """x as often as a tile has parts, to multiply by all in one product: of a small x."""
        return x if self.narrow is None or self._signs else jnp.concatenate([x, x], axis=1)

    def product(self, x: Array, tiles: list[Array]) -> Array:
        """x times the sum of matrices from ``tile``, in the accumulator's dtype."""
        if self.narrow is None:
            return wide_dot(x, tiles[0])
        dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
        total = functools.reduce(jnp.add, [dot(x, tile) for tile in reversed(tiles)])
        return total * jnp.float32(self.scale)


def entries(sketch: Sketch, x: Array, platform: str) -> Entries:
    """Those for an operand."""
    if platform == "cpu":
        return Entries(sketch, None, TILE_ENTRIES, FEW)
    narrow = x.dtype if x.dtype.itemsize == 2 else None
    if narrow is not None and family(sketch.kind).magnitude is None:
        # Two parts, whose sums in float32 are as long as the result: fewer columns at a time.
        return Entries(sketch, narrow, TILE_BYTES[0] // 4, FEW_LANES)
    least, most = TILE_BYTES
    large = x.shape[0] * sketch.rows * x.dtype.itemsize if isinstance(x.shape[0], int) else 0
    size = min(most, max(least, large // 4))
    return Entries(sketch, narrow, size // x.dtype.itemsize, FEW_LANES)


def project(
    x: Float[Array, "b rows"], sketch: Sketch, platform: str = "cpu"
) -> Float[Array, "b cols"]:
    """x Omega, summed in float32 at least."""
    of = entries(sketch, x, platform)
    if sketch.rows * sketch.cols <= of.limit:
        tiles = of.tile(0, sketch.rows, 0, sketch.cols)
        return narrowly(x, sketch.cols, platform, lambda part: of.product(part, tiles))
    size = max(_ROWS, of.limit // sketch.cols // _ROWS * _ROWS)
    copied = _blocks.fitting(size)  # examples
    if (
        isinstance(x.shape[0], int)
        and x.shape[0] > copied
        and of.limit // sketch.rows >= min(of.few, sketch.cols)
    ):
        return _by_columns(x, of, platform)
    run = functools.partial(_by_rows, of=of, size=min(size, sketch.rows))
    return _blocks.by_examples(run, x, sketch.cols, x.dtype, size)


def narrowly(x: Array, cols: int, platform: str, run: Callable[[Array], Array]) -> Array:
    """run(x); on a CPU, which widens x as a whole, a block of examples at a time."""
    if platform != "cpu" or accumulator(x.dtype) == x.dtype or not _blocks.pays(x.dtype, platform):
        return run(x).astype(x.dtype)
    return _blocks.by_examples(run, x, cols, x.dtype, x.shape[1])


def _by_rows(x: Array, of: Entries, size: int) -> Array:
    def step(first: Any, size: int, total: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(x, first, size, axis=1)
        part = part if x.dtype == total.dtype else jax.lax.optimization_barrier(part)
        return total + of.product(part, of.tile(first, size, 0, of.sketch.cols))

    total = jnp.zeros((x.shape[0], of.sketch.cols), accumulator(x.dtype))
    return _blocks.over(of.sketch.rows, size, step, total)


def _by_columns(x: Array, of: Entries, platform: str) -> Array:
    rows, cols = of.sketch.rows, of.sketch.cols
    size = min(cols, of.limit // rows, max(of.few, _blocks.fitting(x.shape[0])))
    size -= size % of.few if size > of.few else 0

    def step(first: Any, size: int, out: Array) -> Array:
        tiles = of.tile(0, rows, first, size)
        part = narrowly(x, size, platform, lambda part: of.product(part, tiles))
        return jax.lax.dynamic_update_slice_in_dim(out, part, first, axis=1)

    return _blocks.over(cols, size, step, jnp.zeros((x.shape[0], cols), x.dtype))


def project_transpose(
    y: Float[Array, "b cols"], sketch: Sketch, platform: str = "cpu"
) -> Float[Array, "b rows"]:
    """y Omega^T, summed in float32 at least."""
    of = entries(sketch, y, platform)

    def made(first: Any, size: int) -> Array:
        return jnp.concatenate(of.tile(first, size, 0, sketch.cols), axis=1).T

    if of.fused(y.dtype) and sketch.rows * sketch.cols <= of.limit:
        return of.product(of.beside(y), [made(0, sketch.rows)]).astype(y.dtype)
    size = min(sketch.rows, max(_ROWS, of.limit // sketch.cols // _ROWS * _ROWS))

    def part(first: Any, size: int) -> Callable[[Array], Array]:
        tile = made(first, size)
        return lambda y: of.product(of.beside(y), [tile])

    numbers = TILE_BYTES[0] // y.dtype.itemsize if platform != "cpu" else _blocks.NUMBERS
    pays = _blocks.pays(y.dtype, platform)
    return _blocks.by_blocks(y, sketch.rows, size, part, numbers if pays else None)
