"""X Omega and Y Omega^T through XLA: one algorithm a structure, no large Omega formed whole."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ..hadamard import xla as hadamard
from ..products import wide_dot, widen
from ..sketches import family
from ..sketches._base import indices
from ..sketches._separable import image_of
from ..sketches.pool import grid
from ..sketches.rows import samples
from ..sketches.srht import columns, order_bits, ranks, signs
from . import _srht

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float

    from ..sketches import Sketch
    from ..sketches._separable import Separable

TILE_ENTRIES = 2**18  # 1 MB of float32: stays in a core's second-level cache
SPARSE_ROWS = 2**14
"""Rows whose nonzeros are held at a time."""
_ROW_ALIGNMENT = 64  # rows that share a hash

# Nanoseconds on two cores of a 2020s server, measured with scripts/bench_kernels: only their ratios
# matter, and only to choose between two right algorithms.
_PRODUCT, _ENTRY = 0.01, 0.8  # a multiplication in a matrix product; making an entry of Omega
_GATHERED = 0.6  # fetching a number by its index
_TRANSFORMED, _TRANSFORMED_FAR = 2.5, 8.0  # Hadamard transform of a number, in cache and beyond
_CACHE = 2**21  # numbers
_MANY = 2**20  # examples that a symbolic batch counts as


def project(x: Float[Array, "b rows"], sketch: Sketch) -> Float[Array, "b cols"]:
    """x Omega, accumulated in float32 at least."""
    return _project(x.shape[0], sketch)(widen(x), sketch).astype(x.dtype)


def project_transpose(y: Float[Array, "b cols"], sketch: Sketch) -> Float[Array, "b rows"]:
    """y Omega^T, accumulated in float32 at least."""
    return _transpose(y.shape[0], sketch)(widen(y), sketch).astype(y.dtype)


def _project(batch: int, sketch: Sketch) -> Callable[[Array, Sketch], Array]:
    structure = family(sketch.kind).structure
    if structure == "hadamard" and _dense_is_faster(batch, sketch):
        return _dense_project
    return _ALGORITHMS[structure][0]


def _transpose(batch: int, sketch: Sketch) -> Callable[[Array, Sketch], Array]:
    structure = family(sketch.kind).structure
    if structure in ("hadamard", "sparse") and _dense_is_faster(batch, sketch):
        return _dense_transpose
    return _ALGORITHMS[structure][1]


def _dense_is_faster(batch: int, sketch: Sketch) -> bool:
    """Whether making Omega tile by tile costs less than a sparse or fast product, a number of x."""
    batch = max(batch, 1) if isinstance(batch, int) else _MANY
    dense = sketch.cols * (_PRODUCT + _ENTRY / batch)
    if family(sketch.kind).structure == "sparse":
        parameters = dict(sketch.params)
        return dense < _GATHERED * parameters["nnz"] * parameters.get("kappa", 1)
    far = batch << order_bits(sketch.rows) > _CACHE
    return dense < (_TRANSFORMED_FAR if far else _TRANSFORMED)


# Dense entries: generate a tile of rows, multiply, add.


def _tile_rows(sketch: Sketch) -> int:
    if sketch.rows * sketch.cols <= TILE_ENTRIES:
        return sketch.rows
    fitting = TILE_ENTRIES // sketch.cols // _ROW_ALIGNMENT * _ROW_ALIGNMENT
    return min(sketch.rows, max(_ROW_ALIGNMENT, fitting))


def _tile(sketch: Sketch, row_start: int | Array, n_rows: int) -> Array:
    return family(sketch.kind).tile(sketch, row_start, n_rows, 0, sketch.cols)


def _dense_project(x: Array, sketch: Sketch) -> Array:
    size = _tile_rows(sketch)
    whole, rest = divmod(sketch.rows, size)
    if whole == 1 and not rest:
        return wide_dot(x, _tile(sketch, 0, size))

    def step(i: Array, total: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(x, i * size, size, axis=1)
        return total + wide_dot(part, _tile(sketch, i * size, size))

    total = jnp.zeros((x.shape[0], sketch.cols), x.dtype)
    total = jax.lax.fori_loop(0, whole, step, total)
    if rest:
        total = total + wide_dot(x[:, whole * size :], _tile(sketch, whole * size, rest))
    return total


def _dense_transpose(y: Array, sketch: Sketch) -> Array:
    def part(first: int | Array, size: int) -> Array:
        return wide_dot(y, _tile(sketch, first, size).T)

    return _by_rows(y, sketch, _tile_rows(sketch), part)


def _by_rows(
    y: Array, sketch: Sketch, size: int, part: Callable[[int | Array, int], Array]
) -> Array:
    """y Omega^T, part(first, size) of it at a time."""
    whole, rest = divmod(sketch.rows, size)
    if whole == 1 and not rest:
        return part(0, size)

    def step(i: Array, out: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(out, part(i * size, size), i * size, axis=1)

    out = jnp.zeros((y.shape[0], sketch.rows), y.dtype)
    out = jax.lax.fori_loop(0, whole, step, out)
    return out.at[:, whole * size :].set(part(whole * size, rest)) if rest else out


# Sparse rows: one-hot tiles forwards (XLA's scatter is serial on CPU), a gather backwards.


def _sparse_transpose(y: Array, sketch: Sketch) -> Array:
    size = min(sketch.rows, SPARSE_ROWS)
    return _by_rows(y, sketch, size, functools.partial(_gathered, y, sketch))


def _gathered(y: Array, sketch: Sketch, row_start: int | Array, n_rows: int) -> Array:
    """Those columns of y Omega^T: each sums a few columns of y."""
    pattern = family(sketch.kind).pattern
    assert pattern is not None
    first = jnp.asarray(row_start, jnp.uint32)
    column, value = _stored(lambda start, size: pattern(sketch, first + start, size), n_rows)
    terms = (
        jnp.take(y, column[:, k], axis=1, mode="clip") * value[None, :, k].astype(y.dtype)
        for k in range(column.shape[1])
    )
    return functools.reduce(jnp.add, terms)


# SRHT: a Walsh-Hadamard transform.


def _hadamard_project(x: Array, sketch: Sketch) -> Array:
    sign = _stored(functools.partial(signs, sketch), sketch.rows)
    chosen = _stored(_index_columns(sketch), sketch.cols)
    return _srht.project(x, sketch, sign, chosen, hadamard.transform)


def _hadamard_transpose(y: Array, sketch: Sketch) -> Array:
    sign = _stored(functools.partial(signs, sketch), sketch.rows)
    rank = _stored(_index_ranks(sketch), 1 << order_bits(sketch.rows))
    return _srht.project_transpose(y, sketch, sign, rank, hadamard.transform)


def _index_columns(sketch: Sketch) -> Callable[[Array, int], Array]:
    return lambda start, size: columns(sketch, indices(start, size)).astype(jnp.int32)


def _index_ranks(sketch: Sketch) -> Callable[[Array, int], Array]:
    def generate(start: Array, size: int) -> Array:
        rank = ranks(sketch, indices(start, size))
        # cols: a column of zeros
        return jnp.minimum(rank, jnp.uint32(sketch.cols)).astype(jnp.int32)

    return generate


def _stored(generate: Callable[[Array, int], Any], size: int) -> Any:
    """generate(0, size), made once.

    XLA's CPU back end would fuse the hash of a vector into the loop over a whole batch, and repeat
    it for every example; it drops optimization barriers before fusing. It does not fuse across a
    loop, so that this makes the vector in two trips.
    """
    if size == 1:
        return generate(jnp.uint32(0), 1)
    half = -(-size // 2)
    starts = jnp.array([0, half], dtype=jnp.uint32)
    parts = jax.lax.map(lambda start: generate(start, half), starts)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:size], parts)


# Row sampling: gather and scatter-add.


def _rows_project(x: Array, sketch: Sketch) -> Array:
    index, scale = samples(sketch)
    return jnp.take(x, index, axis=1, mode="clip") * scale[None, :].astype(x.dtype)


def _rows_transpose(y: Array, sketch: Sketch) -> Array:
    index, scale = samples(sketch)
    out = jnp.zeros((y.shape[0], sketch.rows), y.dtype)
    return out.at[:, index].add(y * scale[None, :].astype(y.dtype), mode="promise_in_bounds")


# Products along the axes of an image; vectors that are no images are dense, or a reshape.


def _separable_project(x: Array, sketch: Sketch) -> Array:
    image, windows = image_of(sketch), _even_windows(sketch)
    if windows is not None:
        return jnp.sum(x.reshape(-1, *windows), axis=(2, 4)).reshape(-1, sketch.cols)
    if image.width == 1:
        return _dense_project(x, sketch)
    of, channels = _factors(sketch, x.dtype), image.channels
    boxes = _einsum("bijc,iu,jv->buvc", x.reshape(-1, *image), of.left, of.right)
    kept = boxes.reshape(x.shape[0], -1, channels)[:, of.places]
    return kept.reshape(x.shape[0], -1)[:, : sketch.cols]


def _separable_transpose(y: Array, sketch: Sketch) -> Array:
    image, windows = image_of(sketch), _even_windows(sketch)
    if windows is not None:
        a, _, b, _, c = windows
        spread = jnp.broadcast_to(y.reshape(-1, a, 1, b, 1, c), (y.shape[0], *windows))
        return spread.reshape(-1, sketch.rows)
    if image.width == 1:
        return _dense_transpose(y, sketch)
    of, channels = _factors(sketch, y.dtype), image.channels
    a, b = of.left.shape[1], of.right.shape[1]
    count = of.places.size
    inverse = np.full(a * b, count)  # of those that are no columns: zeros behind all
    inverse[of.places] = np.arange(count)
    y = jnp.pad(y, ((0, 0), (0, (count + 1) * channels - sketch.cols)))
    boxes = y.reshape(y.shape[0], -1, channels)[:, inverse].reshape(-1, a, b, channels)
    return _einsum("buvc,iu,jv->bijc", boxes, of.left, of.right).reshape(-1, sketch.rows)


_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _factors(sketch: Sketch, dtype: Any) -> Separable:
    separable = family(sketch.kind).separable
    assert separable is not None
    of = separable(sketch)
    return of._replace(left=of.left.astype(dtype), right=of.right.astype(dtype))


def _even_windows(sketch: Sketch) -> tuple[int, int, int, int, int] | None:
    """Windows and their size along each axis, and channels, where sums of a reshape do."""
    if sketch.kind != "pool":
        return None
    (height, width, channels), (a, b) = image_of(sketch), grid(sketch)
    return None if height % a or width % b else (a, height // a, b, width // b, channels)


_ALGORITHMS = {
    "dense": (_dense_project, _dense_transpose),
    "sparse": (_dense_project, _sparse_transpose),
    "hadamard": (_hadamard_project, _hadamard_transpose),
    "rows": (_rows_project, _rows_transpose),
    "separable": (_separable_project, _separable_transpose),
}
