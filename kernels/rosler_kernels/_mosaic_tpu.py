"""What the Mosaic TPU kernels share: tiles of a sketch made in vector memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from . import _entries
from .sketches import family

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array

    from .sketches import Sketch
    from .sketches._base import Static

    Index = Array | np.int32

BLOCK = 64  # rows that share a hash
DTYPES = ("float32", "bfloat16", "float16")


def parallel(grid: int, interpret: bool) -> Any:
    """Compiler parameters: all but the last dimension of a grid in any order.

    The interpreter does not know how to add the dimension that ``vmap`` puts in front, and runs
    them in order anyway.
    """
    if interpret:
        return pltpu.CompilerParams()
    order: list[Any] = ["parallel"] * (grid - 1) + ["arbitrary"]
    return pltpu.CompilerParams(dimension_semantics=order)


def out_struct(shape: tuple[int, ...], dtype: Any, operands: Sequence[Array]) -> Any:
    """A result that varies over the mesh axes, under ``shard_map``, that any operand does.

    JAX 0.10.2 and later call what varies ``manual_axis_type``, earlier ones ``vma``.
    """
    union = sum(a.reshape(-1)[0].astype(jnp.float32) for a in operands)
    kind = jax.typeof(union)
    for name in ("manual_axis_type", "vma"):
        if hasattr(kind, name):
            return jax.ShapeDtypeStruct(shape, dtype, **{name: getattr(kind, name)})
    return jax.ShapeDtypeStruct(shape, dtype)


def interpret_params(interpret: bool) -> Any:
    """The ``interpret`` argument of ``pallas_call``."""
    return pltpu.InterpretParams(detect_races=True) if interpret else False


def refuse(sketch: Static | None, dtype: Any) -> str | None:
    """Why no kernel of this back end serves a sketch and a dtype; None where one does."""
    if jnp.dtype(dtype).name not in DTYPES:
        return f"Mosaic TPU kernels take {', '.join(DTYPES)}, not {jnp.dtype(dtype).name}"
    if sketch is not None and family(sketch.kind).generator is None:
        return f"{sketch.kind} has no kernel: sampling rows is a gather, which XLA does"
    return None


class Generator(NamedTuple):
    """Makes the tile (rows, cols) of Omega at a row and a column.

    Attributes:
      kind: family of the sketch.
      rows, cols: of a tile; rows are a multiple of 64.
      aligned: whether every tile starts at a multiple of 64 rows of Omega.
    """

    kind: str
    rows: int
    cols: int
    aligned: bool = True

    def operands(self, sketch: Sketch, base: int, rows: int, cols: int) -> list[Array]:
        """What ``write`` reads, padded to (rows, cols): the scalars, and columns or codes.

        The scalars are the key's two words and the first row of Omega that is meant, ``base``.
        """
        key, columns, codes = _entries.operands(sketch)
        # A matrix: under vmap, the last two dimensions of a block must be whole.
        scalars = key.at[2].set(jnp.uint32(base))[None, :]
        made = family(self.kind).generator
        if made == "sparse":
            assert codes is not None
            held = codes[:, base : base + rows]
            # A code that no column has: padding is zeros.
            held = jnp.pad(held, ((0, 0), (0, rows - held.shape[1])), constant_values=-2)
            return [scalars, held.T]
        if columns is None:
            columns = jnp.arange(sketch.cols, dtype=jnp.uint32)
        columns = jnp.pad(columns, (0, cols - columns.shape[0]))
        return [scalars, columns.astype(jnp.int32)[None, :]]

    def specs(self, row: Any, column: Any, nnz: int) -> list[Any]:
        """Block specs of ``operands``; row and column map a grid point to a tile's index."""
        scalars = pl.BlockSpec((1, 8), lambda *i: (0, 0), memory_space=pltpu.SMEM)
        if family(self.kind).generator == "sparse":
            return [scalars, pl.BlockSpec((self.rows, nnz), lambda *i: (row(*i), 0))]
        return [scalars, pl.BlockSpec((1, self.cols), lambda *i: (0, column(*i)))]

    def write(
        self, omega: Any, scalars: Any, vector: Any, row_tile: Index, col_tile: Index
    ) -> None:
        """Fills ``omega`` (rows, cols), unscaled."""
        made = family(self.kind).generator
        key = scalars[0, 0], scalars[0, 1]
        row = scalars[0, 2].astype(jnp.int32) + row_tile * np.int32(self.rows)
        if made == "signs":
            self._signs(omega, key, row, vector)
            return
        shape = (BLOCK, self.cols)
        column = lax.broadcasted_iota(jnp.int32, shape, 1) + col_tile * np.int32(self.cols)
        for start in range(0, self.rows, BLOCK):
            place = pl.ds(start, BLOCK)
            if made == "normal":
                rows = lax.broadcasted_iota(jnp.int32, shape, 0) + (row + np.int32(start))
                value = _entries.normal(key, rows.astype(jnp.uint32), column.astype(jnp.uint32))
            else:
                codes = [
                    jnp.broadcast_to(vector[place, t : t + 1], shape)
                    for t in range(vector.shape[1])
                ]
                value = _entries.sparse(codes, column)
            omega[place, :] = value.astype(omega.dtype)

    def _signs(self, omega: Any, key: Any, row: Array, columns: Any) -> None:
        count = self.rows // BLOCK
        shape = (count, self.cols)
        block = lax.broadcasted_iota(jnp.int32, shape, 0) + lax.div(row, np.int32(BLOCK))
        block = block.astype(jnp.uint32)
        column = jnp.broadcast_to(columns[...], shape).astype(jnp.uint32)
        words = _entries.sign_words(self.kind, key, block, column)
        if not self.aligned:
            high = _entries.sign_words(self.kind, key, block + np.uint32(1), column)
            shift = jnp.full(shape, lax.rem(row, np.int32(BLOCK)), jnp.int32)
            words = _entries.shift_words(words, high, shift.astype(jnp.uint32))
        place = lax.broadcasted_iota(jnp.int32, (BLOCK, self.cols), 0)
        for i in range(count):
            pair = tuple(jnp.broadcast_to(word[i : i + 1, :], (BLOCK, self.cols)) for word in words)
            sign = _entries.sign((pair[0], pair[1]), place)
            omega[pl.ds(i * BLOCK, BLOCK), :] = sign.astype(omega.dtype)


def operand_dtype(dtype: Any, kind: str) -> Any:
    """What the matrix unit multiplies: signs are exact in bfloat16, normals want float32."""
    if dtype == jnp.bfloat16 and family(kind).generator != "normal":
        return jnp.bfloat16
    return jnp.float32


def dot(a: Array, b: Array, contract: int) -> Array:
    """a b (contract=0) or a b^T (contract=1), summed in float32 and exact to its accuracy."""
    exact = a.dtype == jnp.float32
    return lax.dot_general(
        a,
        b,
        (((1,), (contract,)), ((), ())),
        precision=lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )


def pad_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Zeros at the ends of the axes, up to a shape."""
    missing = [(0, b - a) for a, b in zip(x.shape, shape, strict=True)]
    return jnp.pad(x, missing) if any(m for _, m in missing) else x
