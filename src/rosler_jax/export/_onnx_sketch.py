"""Seeded sketches in ONNX: stored as signs, indices and bits, not as matrices of floats.

A projection is along the middle axis of ``(outer, length, trailing)``; ``trailing`` is 1 where the
channels come last.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

import rosler_kernels as rk
from rosler_jax.export._onnx_builder import Builder, indices, reshape, signs
from rosler_jax.export._stored import (
    Axes,
    axes_of,
    entries,
    hadamard_of,
    rows_of,
    walsh_matrix,
    walsh_steps,
)


def project(
    b: Builder, x: str, sketch: rk.Sketch, scale: float, transpose: bool, trailing: int
) -> str:
    """``scale x Omega``, or ``scale x Omega^T``.

    Args:
      b: the graph.
      x: ``(outer, length)``, or ``(outer, length, trailing)``.
      sketch: Omega.
      scale: of the product.
      transpose: whether by ``Omega^T``.
      trailing: size of the last axis; 1 where there is none.
    """
    family = rk.family(sketch.kind).structure
    if family == "hadamard":
        step = _spread if transpose else _gather
        return step(b, x, sketch, scale, trailing)
    if family == "rows" and not transpose:
        index, scales = rows_of(sketch)
        kept = b.add("Gather", x, indices(b, index), axis=1)
        return b.add("Mul", kept, _column(b, scales * np.float32(scale), trailing))
    axes = axes_of(sketch) if family == "separable" and trailing == 1 else None
    if axes is not None:
        return (_from_axes if transpose else _along_axes)(b, x, axes, scale)
    omega_t = matrix(b, sketch, scale)
    if trailing == 1:
        return b.add("Gemm", x, omega_t, transB=int(not transpose))
    return b.add("MatMul", b.add("Transpose", omega_t) if transpose else omega_t, x)


def matrix(b: Builder, sketch: rk.Sketch, scale: float) -> str:
    """``scale Omega^T (cols, rows)``, made in the graph from what is stored."""
    return MATRICES[rk.family(sketch.kind).structure](b.root, sketch, scale)


def _dense(b: Builder, sketch: rk.Sketch, scale: float) -> str:
    omega_t = entries(sketch).T * np.float32(scale)
    if rk.family(sketch.kind).magnitude:
        return signs(b, omega_t, float(abs(omega_t.flat[0])))
    return b.constant(omega_t)


def _separable(b: Builder, sketch: rk.Sketch, scale: float) -> str:
    return (_sparse if rk.family(sketch.kind).pattern else _dense)(b, sketch, scale)


def _along_axes(b: Builder, x: str, axes: Axes, scale: float) -> str:
    (height, high), (wide, lines) = axes.left.shape, axes.right.shape
    x = b.add("MatMul", reshape(b, x, height, wide), b.constant(axes.right))
    x = b.add("MatMul", b.constant(axes.left.T * np.float32(scale)), x)
    return b.add("Gather", reshape(b, x, high * lines), indices(b, axes.places), axis=1)


def _from_axes(b: Builder, x: str, axes: Axes, scale: float) -> str:
    (height, high), (wide, lines) = axes.left.shape, axes.right.shape
    x = b.add("Gather", _padded(b, x, 1, 1), indices(b, axes.inverse), axis=1)
    x = b.add("MatMul", b.constant(axes.left * np.float32(scale)), reshape(b, x, high, lines))
    return reshape(b, b.add("MatMul", x, b.constant(axes.right.T)), height * wide)


def _sparse(b: Builder, sketch: rk.Sketch, scale: float) -> str:
    omega = entries(sketch)
    count = np.count_nonzero(omega[0])
    rows, places = np.nonzero(omega)
    assert rows.size == sketch.rows * count
    values = omega[rows, places].reshape(sketch.rows, count).T * np.float32(scale)
    zeros = b.add("ConstantOfShape", b.ints(sketch.cols, sketch.rows))
    where = indices(b, places.reshape(sketch.rows, count).T)
    return b.add(
        "ScatterElements", zeros, where, signs(b, values, float(abs(values.flat[0]))), axis=0
    )


def _rows(b: Builder, sketch: rk.Sketch, scale: float) -> str:
    index, scales = rows_of(sketch)
    ones = _one_hot(b, index, sketch.rows)
    return b.add("Mul", ones, _column(b, scales * np.float32(scale), sketch.rows))


def _walsh_rows(b: Builder, sketch: rk.Sketch, scale: float) -> str:
    identity = _one_hot(b, np.arange(sketch.cols), sketch.cols)
    return _spread(b, identity, sketch, scale, 1)


def _one_hot(b: Builder, index: np.ndarray, depth: int) -> str:
    zero_one = b.constant(np.array([0, 1], np.float32))
    return b.add("OneHot", indices(b, index), b.constant(np.array(depth, np.int32)), zero_one)


MATRICES: dict[str, Callable[[Builder, rk.Sketch, float], str]] = {
    "dense": _dense,
    "sparse": _sparse,
    "rows": _rows,
    "hadamard": _walsh_rows,
    "separable": _separable,
}
"""How a sketch's matrix is made, by the structure of its family."""


def _column(b: Builder, array: np.ndarray, trailing: int) -> str:
    """Stored numbers along the middle axis; one where all are equal."""
    if (array == array.flat[0]).all():
        return b.number(array.flat[0])
    return b.constant(array if trailing == 1 else array[:, None])


def _gather(b: Builder, x: str, sketch: rk.Sketch, scale: float, trailing: int) -> str:
    parts = hadamard_of(sketch)
    x = b.add("Mul", x, _diagonal(b, parts.signs, parts.entry * scale, trailing))
    x = _padded(b, x, 2**parts.bits - sketch.rows, trailing)
    x = _walsh(b, x, parts.bits, trailing)
    return b.add("Gather", x, indices(b, parts.columns), axis=1)


def _spread(b: Builder, x: str, sketch: rk.Sketch, scale: float, trailing: int) -> str:
    parts = hadamard_of(sketch)
    order = 2**parts.bits
    x = _padded(b, x, 1, trailing)  # a zero, which every column that was not kept reads
    x = b.add("Gather", x, _inverse(b, parts.columns, order), axis=1)
    x = _walsh(b, x, parts.bits, trailing)
    if order > sketch.rows:
        x = b.add("Slice", x, b.ints(0), b.ints(sketch.rows), b.ints(1))
    return b.add("Mul", x, _diagonal(b, parts.signs, parts.entry * scale, trailing))


def _diagonal(b: Builder, values: np.ndarray, entry: float, trailing: int) -> str:
    return signs(b, values if trailing == 1 else values[:, None], entry)


def _inverse(b: Builder, kept: np.ndarray, order: int) -> str:
    """Which of the kept columns each one is; one more than there are for the others."""
    inverse = np.full(order, kept.size)
    inverse[kept] = np.arange(kept.size)
    if order <= 4 * kept.size + 64:
        return indices(b, inverse)
    from onnx import numpy_helper

    fill = numpy_helper.from_array(np.array([kept.size], np.int32))
    others = b.add("ConstantOfShape", b.ints(order), value=fill)
    return b.add("ScatterElements", others, indices(b, kept), indices(b, np.arange(kept.size)))


def _padded(b: Builder, x: str, more: int, trailing: int) -> str:
    if more == 0:
        return x
    after = (0, more) if trailing == 1 else (0, more, 0)
    return b.add("Pad", x, b.ints(*(0,) * len(after), *after))


def _walsh(b: Builder, x: str, bits: int, trailing: int) -> str:
    """The Walsh-Hadamard transform along the middle axis, a small matrix for some bits at a time.

    H of order 2^(a+b) is the Kronecker product of those of order 2^a and 2^b: on a tensor of
    ``2^a x 2^b`` each acts on its axis alone.
    """
    left = bits
    for step in walsh_steps(bits):
        left -= step
        inner = 2**left * trailing
        small = b.cast(b.constant(walsh_matrix(step)), "float32")
        if inner == 1:
            x = b.add("MatMul", reshape(b, x, 2**step), small)
        else:
            x = b.add("MatMul", small, reshape(b, x, 2**step, inner))
    shape = (2**bits,) if trailing == 1 else (2**bits, trailing)
    return reshape(b, x, *shape) if bits else x


def filters(b: Builder, sketch: rk.Sketch, scale: float, size: tuple[int, ...], groups: int) -> str:
    """A sketch of patches as a convolution's kernel, ``(groups cols, c_in / groups, *size)``."""
    channels = sketch.rows // math.prod(size)
    omega_t = b.add("Reshape", matrix(b, sketch, scale), b.ints(sketch.cols, *size, channels))
    n = len(size)
    kernel = b.add("Transpose", omega_t, perm=[0, n + 1, *range(1, n + 1)])
    return kernel if groups == 1 else b.add("Tile", kernel, b.ints(groups, *(1,) * (n + 1)))
