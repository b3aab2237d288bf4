"""X Omega and Y Omega^T through XLA: one algorithm a structure, no large Omega formed whole."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ..hadamard import xla as hadamard
from ..products import accumulator, widen
from ..sketches import family
from ..sketches._base import indices
from ..sketches._separable import image_of
from ..sketches.pool import grid
from ..sketches.rows import samples
from ..sketches.srht import columns, order_bits, ranks, signs
from . import _srht
from ._blocks import NUMBERS, by_blocks, by_examples
from ._dense import narrowly
from ._dense import project as _dense_project
from ._dense import project_transpose as _dense_transpose

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float

    from ..sketches import Sketch
    from ..sketches._separable import Separable

SPARSE_ROWS = 2**14
"""Rows whose nonzeros are held at a time."""

# Nanoseconds on two cores of a 2020s server, measured with scripts/bench_kernels: only their ratios
# matter, and only to choose between two right algorithms.
_PRODUCT, _ENTRY = 0.01, 0.8  # a multiplication in a matrix product; making an entry of Omega
_GATHERED = 0.6  # fetching a number by its index
_TRANSFORMED, _TRANSFORMED_FAR = 2.5, 8.0  # Hadamard transform of a number, in cache and beyond
_MANY = 2**20  # examples that a symbolic batch counts as
_TENSOR_CORES = {2: 2048, 4: 256}
"""Columns, by bytes of a number, up to which a GPU or a TPU multiplies by Omega in less time than
it takes to write a transform down and read it."""

BY_PLATFORM = True  # the functions are told JAX's name of what they run on: "cpu", "gpu", "tpu"


def project(
    x: Float[Array, "b rows"], sketch: Sketch, *, platform: str = "cpu"
) -> Float[Array, "b cols"]:
    """x Omega, accumulated in float32 at least."""
    if _by_tiles(x, sketch, False, platform):
        return _dense_project(x, sketch, platform)
    run = _ALGORITHMS[family(sketch.kind).structure][0]
    if platform == "cpu" and family(sketch.kind).structure == "separable":
        return narrowly(x, sketch.cols, platform, lambda part: run(part, sketch))
    return run(x, sketch)


def project_transpose(
    y: Float[Array, "b cols"], sketch: Sketch, *, platform: str = "cpu"
) -> Float[Array, "b rows"]:
    """y Omega^T, accumulated in float32 at least."""
    if _by_tiles(y, sketch, True, platform):
        return _dense_transpose(y, sketch, platform)
    return _ALGORITHMS[family(sketch.kind).structure][1](y, sketch)


def _by_tiles(x: Array, sketch: Sketch, transpose: bool, platform: str) -> bool:
    """Whether Omega is made tile by tile, whatever its structure."""
    structure = family(sketch.kind).structure
    accelerated = platform != "cpu"
    if structure == "dense" or (structure == "sparse" and (accelerated or not transpose)):
        return True
    if structure == "separable":
        # A reshape for windows is a copy on a TPU, whose last axes lie in tiles.
        if _even_windows(sketch) is not None:
            return platform == "tpu"
        return image_of(sketch).width == 1
    if structure not in ("hadamard", "sparse"):
        return False
    if accelerated:
        return sketch.cols <= _TENSOR_CORES.get(x.dtype.itemsize, 0)
    return _dense_is_faster(x.shape[0], sketch)


def _dense_is_faster(batch: int, sketch: Sketch) -> bool:
    """Whether making Omega tile by tile costs less than a sparse or fast product, a number of x."""
    batch = max(batch, 1) if isinstance(batch, int) else _MANY
    dense = sketch.cols * (_PRODUCT + _ENTRY / batch)
    if family(sketch.kind).structure == "sparse":
        parameters = dict(sketch.params)
        return dense < _GATHERED * parameters["nnz"] * parameters.get("kappa", 1)
    far = 1 << order_bits(sketch.rows) >= NUMBERS  # an example alone is a block
    return dense < (_TRANSFORMED_FAR if far else _TRANSFORMED)


# Sparse rows: one-hot tiles forwards (XLA's scatter is serial on CPU), a gather backwards.


def _sparse_transpose(y: Array, sketch: Sketch) -> Array:
    size = min(sketch.rows, SPARSE_ROWS)

    def part(first: int | Array, size: int) -> Callable[[Array], Array]:
        nonzeros = _nonzeros(sketch, first, size)
        return lambda y: _gathered(widen(y), *nonzeros)

    return by_blocks(y, sketch.rows, size, part)


def _nonzeros(sketch: Sketch, row_start: int | Array, n_rows: int) -> tuple[Array, Array]:
    """Columns and values of the nonzeros of those rows."""
    pattern = family(sketch.kind).pattern
    assert pattern is not None
    first = jnp.asarray(row_start, jnp.uint32)
    found: tuple[Array, Array] = _stored(
        lambda start, size: pattern(sketch, first + start, size), n_rows
    )
    return found


def _gathered(y: Array, column: Array, value: Array) -> Array:
    """Those columns of y Omega^T: each sums a few columns of y."""
    terms = (
        jnp.take(y, column[:, k], axis=1, mode="clip") * value[None, :, k].astype(y.dtype)
        for k in range(column.shape[1])
    )
    return functools.reduce(jnp.add, terms)


# SRHT: a Walsh-Hadamard transform.


def _hadamard_project(x: Array, sketch: Sketch) -> Array:
    sign = _stored(functools.partial(signs, sketch), sketch.rows)
    chosen = _stored(_index_columns(sketch), sketch.cols)

    def run(x: Array) -> Array:
        return _srht.project(widen(x), sketch, sign, chosen, hadamard.transform)

    return by_examples(run, x, sketch.cols, x.dtype, 1 << order_bits(sketch.rows))


def _hadamard_transpose(y: Array, sketch: Sketch) -> Array:
    sign = _stored(functools.partial(signs, sketch), sketch.rows)
    order = 1 << order_bits(sketch.rows)
    rank = _stored(_index_ranks(sketch), order)

    def run(y: Array) -> Array:
        return _srht.project_transpose(widen(y), sketch, sign, rank, hadamard.transform)

    return by_examples(run, y, sketch.rows, y.dtype, order)


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
    taken = widen(jnp.take(x, index, axis=1, mode="clip"))
    return (taken * scale[None, :].astype(taken.dtype)).astype(x.dtype)


def _rows_transpose(y: Array, sketch: Sketch) -> Array:
    index, scale = samples(sketch)

    def run(y: Array) -> Array:
        y = widen(y)
        out = jnp.zeros((y.shape[0], sketch.rows), y.dtype)
        return out.at[:, index].add(y * scale[None, :].astype(y.dtype), mode="promise_in_bounds")

    if accumulator(y.dtype) == y.dtype:
        return run(y)
    return by_examples(run, y, sketch.rows, y.dtype, sketch.rows)


# Products along the axes of an image; vectors that are no images are dense, or a reshape.


def _separable_project(x: Array, sketch: Sketch) -> Array:
    image, windows = image_of(sketch), _even_windows(sketch)
    if windows is not None:
        boxes = jnp.sum(widen(x).reshape(-1, *windows), axis=(2, 4))
        return boxes.reshape(-1, sketch.cols).astype(x.dtype)
    of, channels = _factors(sketch, accumulator(x.dtype)), image.channels

    def run(x: Array) -> Array:
        boxes = _einsum("bijc,iu,jv->buvc", widen(x).reshape(-1, *image), of.left, of.right)
        kept = boxes.reshape(x.shape[0], -1, channels)[:, of.places]
        return kept.reshape(x.shape[0], -1)[:, : sketch.cols]

    return by_examples(run, x, sketch.cols, x.dtype, sketch.rows)


def _separable_transpose(y: Array, sketch: Sketch) -> Array:
    image, windows = image_of(sketch), _even_windows(sketch)
    if windows is not None:
        a, _, b, _, c = windows
        spread = jnp.broadcast_to(y.reshape(-1, a, 1, b, 1, c), (y.shape[0], *windows))
        return spread.reshape(-1, sketch.rows)
    of, channels = _factors(sketch, accumulator(y.dtype)), image.channels
    a, b = of.left.shape[1], of.right.shape[1]
    count = of.places.size
    inverse = np.full(a * b, count)  # of those that are no columns: zeros behind all
    inverse[of.places] = np.arange(count)

    def run(y: Array) -> Array:
        y = jnp.pad(widen(y), ((0, 0), (0, (count + 1) * channels - sketch.cols)))
        boxes = y.reshape(y.shape[0], -1, channels)[:, inverse].reshape(-1, a, b, channels)
        return _einsum("buvc,iu,jv->bijc", boxes, of.left, of.right).reshape(-1, sketch.rows)

    return by_examples(run, y, sketch.rows, y.dtype, sketch.rows)


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
    "sparse": (_dense_project, _sparse_transpose),
    "hadamard": (_hadamard_project, _hadamard_transpose),
    "rows": (_rows_project, _rows_transpose),
    "separable": (_separable_project, _separable_transpose),
}
