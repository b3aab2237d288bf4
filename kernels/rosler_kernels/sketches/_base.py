"""The ``Sketch`` pytree and what the families share."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..hashing import Tag, as_seed, threefry_2x32
from ..products import accumulator

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float, UInt32

    from ..hashing import Words

SIGN_BLOCK = 64  # rows whose signs come from one hash: two words of 32 bits
_MAX_DIMENSION = 2**31 - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Sketch:
    """A random matrix Omega (rows x cols), held as a seed and a shape.

    Made by the family constructors (``gaussian``, ``srht``, ...), which check the arguments.
    Everything but ``seed`` and ``data`` is static under ``jit``; a new seed does not retrace.

    Attributes:
      kind: name of the family, a key of ``FAMILIES``.
      rows: the dimension projected away, m.
      cols: the embedding dimension, s.
      seed: uint32 array of shape (2,).
      params: the family's integers, as sorted (name, value) pairs.
      data: arrays that cannot be regenerated from the seed (weighted row sampling alone), else
        None.
      live: how many columns count, at most cols and maybe traced: the matrix is that of so many
        columns, with zeros behind them; None for all.

    >>> from rosler_kernels import materialize, rademacher
    >>> sketch = rademacher(7, 64, 16)
    >>> sketch.kind, sketch.rows, sketch.cols, sketch.seed.shape
    ('rademacher', 64, 16, (2,))
    >>> sum(leaf.size for leaf in jax.tree.leaves(sketch)), materialize(sketch).size
    (2, 1024)
    """

    kind: str = dataclasses.field(metadata={"static": True})
    rows: int = dataclasses.field(metadata={"static": True})
    cols: int = dataclasses.field(metadata={"static": True})
    seed: UInt32[Array, "2"]
    params: tuple[tuple[str, int], ...] = dataclasses.field(default=(), metadata={"static": True})
    data: dict[str, Array] | None = None
    live: UInt32[Array, ""] | None = None

    def param(self, name: str) -> int:
        """The family's integer of that name."""
        return dict(self.params)[name]

    def static(self) -> Static:
        """All but the arrays."""
        return Static(self.kind, self.rows, self.cols, self.params, tuple(self.data or ()))

    def arrays(self) -> tuple[Array, ...]:
        """The arrays: the seed, then the data."""
        return (self.seed, *(self.data or {}).values())


class Static(NamedTuple):
    """A sketch without its arrays, hashable; attributes as of ``Sketch``, data by its names."""

    kind: str
    rows: int
    cols: int
    params: tuple[tuple[str, int], ...] = ()
    data: tuple[str, ...] = ()

    def sketch(self, seed: Array, *data: Array) -> Sketch:
        """The sketch with those arrays."""
        named = dict(zip(self.data, data, strict=True)) or None
        return Sketch(self.kind, self.rows, self.cols, seed, self.params, named)


class Family(NamedTuple):
    """One line of the table of families.

    Attributes:
      make: constructor, (seed, rows, cols, **options), or (seed, w, cols) where ``weighted``.
      tile: (sketch, row_start, n_rows, col_start, n_cols) -> float32 tile.
      structure: how the XLA path multiplies by it: "dense", "sparse", "hadamard", "rows" or
        "separable".
      pattern: for "sparse", (sketch, row_start, n_rows) -> the nonzeros of those rows.
      weighted: whether the constructor needs the matrix that is sampled.
      scale: sketch -> what multiplies entries of unit size; None where the columns' differ.
      signed: whether entries of unit size are 0, 1 or -1: products need no multiplications.
      generator: how a kernel makes them: "signs", "normal" or "sparse"; None where it cannot.
      tag: of the hash of signs or normal entries in a kernel.
      c_name: of the family's functions in C, if it has any.
      nested: whether the columns of a sketch are the first of a wider one, but for a scale of
        1 / sqrt(cols): then a sketch may have fewer live columns.
      separable: for "separable", sketch -> its factors along an image's two axes.
      fixed: whether no seed changes it.

    >>> from rosler_kernels import FAMILIES, rademacher
    >>> family = FAMILIES["rademacher"]
    >>> family.signed, family.magnitude(rademacher(0, 64, 16))
    (True, 0.25)
    """

    make: Callable[..., Sketch]
    tile: Callable[..., Array]
    structure: str
    pattern: Callable[..., Any] | None = None
    weighted: bool = False
    scale: Callable[[Sketch], np.float32] | None = None
    signed: bool = False
    generator: str | None = None
    tag: Tag | None = None
    c_name: str | None = None
    nested: bool = False
    separable: Callable[[Sketch], Any] | None = None
    fixed: bool = False

    @property
    def magnitude(self) -> Callable[[Sketch], float] | None:
        """Of the entries, where these are 0 or +-1 times one number."""
        scale = self.scale
        return (lambda sketch: float(scale(sketch))) if scale and self.signed else None


def new_sketch(
    kind: str,
    seed: object,
    rows: int,
    cols: int,
    data: dict[str, Array] | None = None,
    **params: int,
) -> Sketch:
    """A checked Sketch: both dimensions in 1 .. 2^31 - 1, seed as two words."""
    for name, size in (("rows", rows), ("cols", cols)):
        if not 1 <= size <= _MAX_DIMENSION:
            raise ValueError(f"{kind}: {name}={size}; expected 1 to {_MAX_DIMENSION}")
    return Sketch(
        kind=kind,
        rows=int(rows),
        cols=int(cols),
        seed=as_seed(seed),
        params=tuple(sorted((name, int(value)) for name, value in params.items())),
        data=data,
    )


def check_range(kind: str, name: str, value: int, low: int, high: int, why: str) -> None:
    """Raises ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{kind}: {name}={value}; expected {low} to {high} ({why})")


def by_cols(sketch: Sketch) -> np.float32:
    """1 / sqrt(cols): the scale of entries that are all of unit variance."""
    return inverse_sqrt(sketch.cols)


def only_live(y: Array, sketch: Sketch, col_start: int | Array = 0) -> Array:
    """What all columns col_start, ... made, last in y, as the live ones make it: zeros behind."""
    if sketch.live is None:
        return y
    wide = accumulator(y.dtype)
    column = jnp.asarray(col_start, jnp.uint32) + jnp.arange(y.shape[-1], dtype=jnp.uint32)
    scale = jnp.sqrt(sketch.cols / sketch.live.astype(wide))
    factor = jnp.where(column < sketch.live, scale, jnp.zeros((), wide))
    return (y.astype(wide) * factor.reshape((1,) * (y.ndim - 1) + (-1,))).astype(y.dtype)


def inverse_sqrt(n: int) -> np.float32:
    """1 / sqrt(n), rounded once to float32."""
    return np.float32(1.0 / np.sqrt(n))


def indices(start: int | Array, size: int) -> UInt32[Array, "size"]:
    """start .. start + size - 1 as uint32."""
    return jnp.asarray(start, dtype=jnp.uint32) + jnp.arange(size, dtype=jnp.uint32)


def block_boundary(t: Array, size: int, blocks: int) -> Array:
    """floor(t size / blocks) for 0 <= t <= blocks, without overflow."""
    t = jnp.asarray(t, dtype=jnp.uint32)
    quotient, remainder = divmod(size, blocks)
    if remainder * blocks >= 2**32:
        raise ValueError(
            f"{blocks} blocks of a dimension of {size} overflow 32 bits; use fewer blocks"
        )
    return t * jnp.uint32(quotient) + (t * jnp.uint32(remainder)) // jnp.uint32(blocks)


def aligned_rows(
    generate: Callable[[Array | int, int], Array], block: int, row_start: int | Array, n_rows: int
) -> Array:
    """Rows row_start .. row_start + n_rows - 1 from a generator of whole blocks of rows.

    ``generate(first, n)`` returns the rows of blocks first .. first + n - 1. Hashes serve a whole
    block of rows, so that whole blocks are made and the ends cut off.
    """
    if isinstance(row_start, int):
        skipped, cut = divmod(row_start, block)
        n_blocks = -(-(cut + n_rows) // block)
        return jax.lax.slice_in_dim(generate(skipped, n_blocks), cut, cut + n_rows)
    row_start = jnp.asarray(row_start, dtype=jnp.uint32)
    first = row_start // jnp.uint32(block)
    whole = generate(first, (n_rows + block - 2) // block + 1)
    offset = (row_start % jnp.uint32(block)).astype(jnp.int32)
    return jax.lax.dynamic_slice_in_dim(whole, offset, n_rows)


def sign_rows(
    key: Words, row_start: int | Array, n_rows: int, columns: UInt32[Array, "c"]
) -> Float[Array, "n_rows c"]:
    """Random signs, 64 rows of a column from one hash.

    With (w0, w1) = threefry_2x32(key, (row // 64, column)), the sign of a row is -1 when bit row %
    32 of w0 (row % 64 < 32) or of w1 (otherwise) is set, and +1 when it is not.
    """

    def generate(first: int | Array, n_blocks: int) -> Array:
        low, high = threefry_2x32(key, (indices(first, n_blocks)[:, None], columns[None, :]))
        bit = jnp.arange(SIGN_BLOCK, dtype=jnp.uint32)[None, :, None]
        # Not stacked: of two scalars stacked, XLA would write the hash out again for every use.
        words = jnp.where(bit < 32, low[:, None, :], high[:, None, :])  # block, bit, column
        bits = ((words >> (bit % 32)) & jnp.uint32(1)).astype(jnp.int32)
        return (1 - 2 * bits).astype(jnp.float32).reshape(n_blocks * SIGN_BLOCK, columns.size)

    return aligned_rows(generate, SIGN_BLOCK, row_start, n_rows)
