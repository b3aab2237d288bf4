"""What the Mosaic GPU kernels share: layouts, and tiles of a sketch made in shared memory.

The interpreter that runs these kernels on a CPU has no rule for register layouts, while the real
lowering demands them: ``Mode`` adds them only where the kernel is lowered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from . import _entries
from .sketches import family

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array

    from .hashing import Words
    from .sketches import Sketch
    from .sketches._base import Static

    Index = Array | np.int32

DEPTH = 128  # rows of Omega a step: two hashes' worth, so that 64 columns keep 128 threads busy
PIECE = 64  # side of the piece of a tile that is held in registers
SWIZZLE = 128  # bytes
NARROW = 64
"""The swizzle of a product with normal entries. They are made 32 columns at a time, so that no
register spills, and a piece that is written has whole swizzled rows."""
MAX_NNZ = 16  # a longer list of compares a tile is not worth a kernel
_LAYOUT = plgpu.Layout.WGMMA
DTYPES = ("float32", "bfloat16", "float16")


class Mode(NamedTuple):
    """How a kernel is built: to be lowered, or to be interpreted on a CPU."""

    interpret: bool

    def params(self) -> Any:
        """The ``interpret`` argument of ``plgpu.kernel``."""
        if not self.interpret:
            return False
        return _interpret_params()(detect_races=True)

    def iota(self, shape: tuple[int, ...], axis: int, layout: Any = _LAYOUT) -> Array:
        """int32 indices along an axis."""
        if self.interpret:
            return lax.broadcasted_iota(jnp.int32, shape, axis)
        return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=layout)

    def zeros(self, shape: tuple[int, int]) -> Array:
        """float32 zeros in the layout of a product."""
        made = jnp.zeros(shape, jnp.float32)
        return made if self.interpret else plgpu.layout_cast(made, _LAYOUT)

    def load(self, ref: Any, layout: Any, optimized: bool = True) -> Array:
        """The whole of a reference, in registers of that layout."""
        if self.interpret:
            return ref[...]
        load: Any = plgpu.load  # JAX 0.10 asks for an index, 0.12 takes none
        index = ((),) if jax.__version_info__ < (0, 11) else ()
        return load(ref, *index, layout=layout, optimized=optimized)


def _interpret_params() -> Any:
    if hasattr(plgpu, "InterpretGPUParams"):  # public from JAX 0.11 on
        return plgpu.InterpretGPUParams
    from jax._src.pallas.mosaic_gpu.interpret import params

    return params.InterpretGPUParams


def kernel(
    body: Callable[..., None], *, out_type: Any, scratch_types: Any, **options: Any
) -> Callable[..., Any]:
    """``plgpu.kernel`` with one thread's view (Lane): what these kernels are written for."""
    options["compiler_params"] = plgpu.CompilerParams(
        lowering_semantics=plgpu.LoweringSemantics.Lane
    )
    make: Any = plgpu.kernel
    made: Callable[..., Any] = make(body, out_type=out_type, scratch_types=scratch_types, **options)
    return made


def swizzle(kind: str) -> int:
    """Bytes that the operands of a product with a sketch of a family are swizzled by."""
    return NARROW if family(kind).generator == "normal" else SWIZZLE


def shared(shape: tuple[int, ...], dtype: Any, swizzle: int = SWIZZLE) -> Any:
    """A tile in shared memory, laid out as TMA and wgmma want it: both operands alike."""
    width = swizzle // jnp.dtype(dtype).itemsize
    of: Any = plgpu  # in JAX 0.12 both classes look abstract to a type checker
    transforms = (of.TilingTransform((8, width)), of.SwizzleTransform(swizzle))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


class Parts(NamedTuple):
    """How a product in float32 accuracy is made of products of narrow numbers.

    Attributes:
      dtype: of the tensor cores' operands.
      x: narrow numbers that add up to an entry of x.
      omega: the same for an entry of Omega; one where entries are signs and zeros.
    """

    dtype: Any
    x: int
    omega: int

    def pairs(self) -> list[tuple[int, int]]:
        """The products (part of x, part of Omega) that matter, the largest first."""
        limit = max(self.x, self.omega)
        pairs = [(i, j) for i in range(self.x) for j in range(self.omega) if i + j < limit]
        return sorted(pairs, key=sum)

    @property
    def buffers(self) -> int:
        """Sets of operands: with two, one is made while the other is multiplied."""
        return 2 if len(self.pairs()) <= 3 else 1


def parts(dtype: Any, kind: str) -> Parts:
    """bfloat16 holds 8 bits: three of them a float32; two of either narrow type a normal entry."""
    normal = family(kind).generator == "normal"
    if dtype == jnp.float32:
        return Parts(jnp.bfloat16, 3, 3 if normal else 1)
    return Parts(dtype, 1, 2 if normal else 1)


def split(value: Array, dtype: Any, count: int) -> list[Array]:
    """Numbers of a narrow dtype that add up to a float32 value, the largest first."""
    out = []
    for _ in range(count):
        out.append(value.astype(dtype))
        value = value - out[-1].astype(jnp.float32)
    return out


class Tile(NamedTuple):
    """The tile of Omega that a step multiplies by.

    Attributes:
      row: first row of Omega, int32 scalar.
      column: first column of Omega, int32 scalar.
    """

    row: Index
    column: Index


class Generator(NamedTuple):
    """Writes tiles of Omega, or of Omega^T, into shared memory.

    Attributes:
      kind: family of the sketch.
      transpose: whether the tile is of Omega^T: then its rows are Omega's columns.
      width: columns of the tile; it has DEPTH rows.
      aligned: whether every tile starts at a multiple of 64 rows of Omega.
      mode: lowered or interpreted.
    """

    kind: str
    transpose: bool
    width: int
    aligned: bool
    mode: Mode

    def scratch(self) -> tuple[int, int]:
        """Shape of the words that a step hashes, uint32."""
        return 2, 2 * self.width

    def write(
        self, omega: list[Any], words: Any, key: Words, arrays: dict[str, Any], tile: Tile
    ) -> None:
        """Fills ``omega``, one reference a part; the caller commits shared memory."""
        made = family(self.kind).generator
        if made == "normal":
            self._normals(omega, key, tile)
            return
        if made == "signs":
            piece = self._signs(words, key, arrays["columns"], tile)
        else:
            piece = self._sparse(arrays["codes"], tile)
        for i in range(DEPTH // PIECE):
            for j in range(self.width // PIECE):
                values = split(piece(i, j), omega[0].dtype, len(omega))
                place = (pl.ds(i * PIECE, PIECE), pl.ds(j * PIECE, PIECE))
                for ref, value in zip(omega, values, strict=True):
                    ref[place] = value

    def _signs(
        self, words: Any, key: Words, columns: Any, tile: Tile
    ) -> Callable[[int, int], Array]:
        # One thread a hash: a strided vector, then through shared memory into the layout of wgmma.
        lane = self.mode.iota((2 * PIECE,), 0, plgpu.Layout.WG_STRIDED((2 * PIECE,), 1))
        for start in range(0, 2 * self.width, 2 * PIECE):
            block, place = self._hash_places(lane + np.int32(start), tile)
            column = columns[_slice(place + np.int32(start), 2 * PIECE)]
            made = self._words(key, tile.row, block, column)
            for w in range(2):
                words[w, pl.ds(start, 2 * PIECE)] = made[w]
        plgpu.commit_smem()

        def piece(i: int, j: int) -> Array:
            block, vector = (j, i) if self.transpose else (i, j)
            length = DEPTH if self.transpose else self.width
            at = pl.ds(block * length + vector * PIECE, PIECE)
            layout = _LAYOUT.reduce(1 if self.transpose else 0)
            axis = 0 if self.transpose else 1
            pair = [
                lax.broadcast_in_dim(
                    self.mode.load(words.at[w, at], layout), (PIECE, PIECE), (axis,)
                )
                for w in range(2)
            ]
            return _entries.sign((pair[0], pair[1]), self.mode.iota((PIECE, PIECE), 1 - axis))

        return piece

    def _hash_places(self, lane: Array, tile: Tile) -> tuple[Array, Index]:
        """Which block of 64 rows each lane hashes, and where in ``columns`` the lanes begin."""
        first = lax.div(tile.row, np.int32(PIECE))
        if self.transpose:  # lanes: block by block, DEPTH columns each
            block = first + lax.div(lane, np.int32(DEPTH))
            return block.astype(jnp.uint32), tile.column * np.int32(self.width // PIECE)
        block = first + lax.div(lane, np.int32(self.width))
        return block.astype(jnp.uint32), tile.column * np.int32(DEPTH // PIECE)

    def _words(self, key: Words, row: Index, block: Array, column: Array) -> Words:
        low = _entries.sign_words(self.kind, key, block, column)
        if self.aligned:
            return low
        high = _entries.sign_words(self.kind, key, block + np.uint32(1), column)
        return _entries.shift_words(low, high, lax.rem(row, np.int32(PIECE)).astype(jnp.uint32))

    def _indices(self, at: tuple[Index, Index], width: int, tile: Tile) -> tuple[Array, Array]:
        """Rows and columns of Omega, of a piece of the tile by its place and width."""
        axis = 1 if self.transpose else 0
        row = self.mode.iota((PIECE, width), axis) + (tile.row + at[axis])
        column = self.mode.iota((PIECE, width), 1 - axis) + (tile.column + at[1 - axis])
        return row, column

    def _normals(self, omega: list[Any], key: Words, tile: Tile) -> None:
        # A loop, not written out: the compiler would make several pieces at a time.
        width = NARROW // jnp.dtype(omega[0].dtype).itemsize
        across = np.int32(self.width // width)

        @pl.loop(np.int32(0), np.int32(DEPTH // PIECE) * across)
        def _(k: Array) -> None:
            at = lax.div(k, across) * np.int32(PIECE), lax.rem(k, across) * np.int32(width)
            row, column = self._indices(at, width, tile)
            entries = _entries.normal(key, row.astype(jnp.uint32), column.astype(jnp.uint32))
            place = (pl.ds(at[0], PIECE), pl.ds(at[1], width))
            values = split(entries, omega[0].dtype, len(omega))
            for ref, value in zip(omega, values, strict=True):
                ref[place] = value

    def _sparse(self, codes: Any, tile: Tile) -> Callable[[int, int], Array]:
        axis = 1 if self.transpose else 0

        def piece(i: int, j: int) -> Array:
            _, column = self._indices((np.int32(i * PIECE), np.int32(j * PIECE)), PIECE, tile)
            at = _slice(tile.row + np.int32((i, j)[axis] * PIECE), PIECE)
            each = [
                lax.broadcast_in_dim(
                    self.mode.load(codes.at[t, at], _LAYOUT.reduce(1 - axis), optimized=False),
                    (PIECE, PIECE),
                    (axis,),
                )
                for t in range(codes.shape[0])
            ]
            return _entries.sparse(each, column)

        return piece


def generator_arrays(
    sketch: Sketch, transpose: bool, width: int, rows: int, cols: int
) -> tuple[Array, dict[str, Array]]:
    """The key, and the arrays that ``Generator.write`` reads, padded to whole tiles.

    Args:
      sketch: any with a generator.
      transpose, width: as the generator's.
      rows, cols: of Omega, padded.
    """
    key, columns, codes = _entries.operands(sketch)
    if codes is not None:
        # Padding gets a code that no column has: its entries are zeros.
        missing = rows - codes.shape[1]
        return key, {"codes": jnp.pad(codes, ((0, 0), (0, missing)), constant_values=-2)}
    if family(sketch.kind).generator == "normal":
        return key, {}
    if columns is None:
        columns = jnp.arange(cols, dtype=jnp.uint32)
    columns = jnp.pad(columns, (0, cols - columns.shape[0]))
    if transpose:  # every block of 64 rows meets the same DEPTH columns: repeat them a tile
        tiles = columns.reshape(-1, 1, DEPTH)
        return key, {"columns": jnp.tile(tiles, (1, width // PIECE, 1)).reshape(-1)}
    tiles = columns.reshape(-1, 1, width)
    return key, {"columns": jnp.tile(tiles, (1, DEPTH // PIECE, 1)).reshape(-1)}


def _slice(start: Any, size: int) -> Any:
    """A slice whose start may be known: references take a known one as a Python integer only."""
    return pl.ds(int(start) if isinstance(start, np.integer) else start, size)


def pad_axis(x: Array, axis: int, multiple: int) -> Array:
    """Zeros at the end of an axis, up to a multiple."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    return jnp.pad(x, [(0, missing if a == axis else 0) for a in range(x.ndim)])


def refuse(sketch: Static | None, dtype: Any) -> str | None:
    """Why no kernel of this back end serves a sketch and a dtype; None where one does."""
    if jax.__version_info__ < (0, 10, 2):
        return f"JAX {jax.__version__} lowers no shifts of integers; the kernels need 0.10.2"
    if jnp.dtype(dtype).name not in DTYPES:
        return f"Mosaic GPU kernels take {', '.join(DTYPES)}, not {jnp.dtype(dtype).name}"
    if sketch is None:
        return None
    if family(sketch.kind).generator is None:
        return f"{sketch.kind} has no kernel: sampling rows is a gather, which XLA does"
    p = dict(sketch.params)
    nnz = p.get("nnz", 1) * p.get("kappa", 1)
    return f"{nnz} nonzeros a row; the kernel takes up to {MAX_NNZ}" if nnz > MAX_NNZ else None
