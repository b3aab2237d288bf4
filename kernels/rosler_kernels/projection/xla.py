"""X Omega and Y Omega^T through XLA: one algorithm a structure, no large Omega formed whole."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ..sketches import family
from ..sketches._base import indices, inverse_sqrt
from ..sketches.rows import samples
from ..sketches.srht import columns, order_bits, ranks, signs

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float

    from ..sketches import Sketch

TILE_ENTRIES = 2**18  # 1 MB of float32: stays in a core's second-level cache
_ROW_ALIGNMENT = 64  # rows that share a hash
_HADAMARD_BITS = 6  # largest Kronecker factor: H_64


def project(x: Float[Array, "b rows"], sketch: Sketch) -> Float[Array, "b cols"]:
    """x Omega, accumulated in float32 at least."""
    return _project(sketch)(_widen(x), sketch).astype(x.dtype)


def project_transpose(y: Float[Array, "b cols"], sketch: Sketch) -> Float[Array, "b rows"]:
    """y Omega^T, accumulated in float32 at least."""
    return _transpose(sketch)(_widen(y), sketch).astype(y.dtype)


def _project(sketch: Sketch) -> Callable[[Array, Sketch], Array]:
    return _ALGORITHMS[family(sketch.kind).structure][0]


def _transpose(sketch: Sketch) -> Callable[[Array, Sketch], Array]:
    return _ALGORITHMS[family(sketch.kind).structure][1]


def _widen(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b.astype(a.dtype), precision=jax.lax.Precision.HIGHEST)


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
        return _dot(x, _tile(sketch, 0, size))

    def step(i: Array, total: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(x, i * size, size, axis=1)
        return total + _dot(part, _tile(sketch, i * size, size))

    total = jnp.zeros((x.shape[0], sketch.cols), x.dtype)
    total = jax.lax.fori_loop(0, whole, step, total)
    if rest:
        total = total + _dot(x[:, whole * size :], _tile(sketch, whole * size, rest))
    return total


def _dense_transpose(y: Array, sketch: Sketch) -> Array:
    size = _tile_rows(sketch)
    whole, rest = divmod(sketch.rows, size)
    if whole == 1 and not rest:
        return _dot(y, _tile(sketch, 0, size).T)

    def step(i: Array, out: Array) -> Array:
        part = _dot(y, _tile(sketch, i * size, size).T)
        return jax.lax.dynamic_update_slice_in_dim(out, part, i * size, axis=1)

    out = jnp.zeros((y.shape[0], sketch.rows), y.dtype)
    out = jax.lax.fori_loop(0, whole, step, out)
    if rest:
        out = out.at[:, whole * size :].set(_dot(y, _tile(sketch, whole * size, rest).T))
    return out


# Sparse rows: one-hot tiles forwards (XLA's scatter is serial on CPU), a gather backwards.


def _sparse_transpose(y: Array, sketch: Sketch) -> Array:
    pattern = family(sketch.kind).pattern
    assert pattern is not None
    column, value = _stored(functools.partial(pattern, sketch), sketch.rows)
    terms = (
        jnp.take(y, column[:, k], axis=1, mode="clip") * value[:, k].astype(y.dtype)
        for k in range(column.shape[1])
    )
    return functools.reduce(jnp.add, terms)


# SRHT: a Walsh-Hadamard transform as products with small Hadamard matrices.


def _hadamard_matrix(bits: int) -> np.ndarray:
    h = np.ones((1, 1), np.float32)
    for _ in range(bits):
        h = np.block([[h, h], [h, -h]])
    return h


def _hadamard_transform(x: Float[Array, "b n"], bits: int) -> Float[Array, "b n"]:
    """x H_n, n = 2^bits, by H_n = H_a (x) H_b (x) ...: n (a + b + ...) products, not n^2.

    Each step transforms the lowest bits of the index and moves them to the top; after the last all
    are back in place. Plain matrix products and transposes: XLA's CPU back end is fastest at these.
    """
    count = max(1, -(-bits // _HADAMARD_BITS))
    for k in range(count):
        part = (bits + k) // count
        rest, order = 1 << (bits - part), 1 << part
        h = jnp.asarray(_hadamard_matrix(part), x.dtype)
        folded = _dot(x.reshape(x.shape[0] * rest, order), h)
        x = jnp.swapaxes(folded.reshape(x.shape[0], rest, order), 1, 2).reshape(x.shape)
    return x


def _hadamard_project(x: Array, sketch: Sketch) -> Array:
    bits = order_bits(sketch.rows)
    sign = _stored(functools.partial(signs, sketch), sketch.rows)
    chosen = _stored(_index_columns(sketch), sketch.cols)
    x = jnp.pad(x * sign.astype(x.dtype), ((0, 0), (0, (1 << bits) - sketch.rows)))
    out = jnp.take(_hadamard_transform(x, bits), chosen, axis=1, mode="clip")
    return out * inverse_sqrt(sketch.cols).astype(x.dtype)


def _hadamard_transpose(y: Array, sketch: Sketch) -> Array:
    bits = order_bits(sketch.rows)
    sign = _stored(functools.partial(signs, sketch), sketch.rows)
    # A gather through the inverse bijection: XLA's scatter is serial on CPU.
    rank = _stored(_index_ranks(sketch), 1 << bits)
    y = jnp.pad(y * inverse_sqrt(sketch.cols).astype(y.dtype), ((0, 0), (0, 1)))
    out = _hadamard_transform(jnp.take(y, rank, axis=1, mode="clip"), bits)
    return out[:, : sketch.rows] * sign.astype(y.dtype)


def _index_columns(sketch: Sketch) -> Callable[[Array, int], Array]:
    return lambda start, size: columns(sketch, indices(start, size)).astype(jnp.int32)


def _index_ranks(sketch: Sketch) -> Callable[[Array, int], Array]:
    def generate(start: Array, size: int) -> Array:
        rank = ranks(sketch, indices(start, size))
        return jnp.minimum(rank, jnp.uint32(sketch.cols)).astype(
            jnp.int32
        )  # cols: a column of zeros

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
    return jnp.take(x, index, axis=1, mode="clip") * scale.astype(x.dtype)


def _rows_transpose(y: Array, sketch: Sketch) -> Array:
    index, scale = samples(sketch)
    out = jnp.zeros((y.shape[0], sketch.rows), y.dtype)
    return out.at[:, index].add(y * scale.astype(y.dtype), mode="promise_in_bounds")


_ALGORITHMS = {
    "dense": (_dense_project, _dense_transpose),
    "sparse": (_dense_project, _sparse_transpose),
    "hadamard": (_hadamard_project, _hadamard_transpose),
    "rows": (_rows_project, _rows_transpose),
}
