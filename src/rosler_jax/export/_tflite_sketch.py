"""Seeded sketches in TFLite: Walsh-Hadamard steps, picked rows, or signs of one byte each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import rosler_kernels as rk
from rosler_jax.export._stored import (
    Axes,
    Integers,
    axes_of,
    entries,
    hadamard_of,
    rows_of,
    walsh_matrix,
    walsh_steps,
)
from rosler_jax.export._tflite_builder import (
    Builder,
    Product,
    Value,
    apply,
    cut,
    gather,
    last,
    like,
    moved,
    pad,
    product,
    quantized,
    reshape,
    sampled,
    stored,
    with_numbers,
)


def project(
    b: Builder,
    x: Value,
    sketch: rk.Sketch,
    scale: float,
    transpose: bool,
    bias: np.ndarray | None = None,
) -> Value:
    """``scale x Omega``, or ``scale x Omega^T``, of ``x (vectors, length)``; plus a bias.

    Args:
      b: the model.
      x: what goes in.
      sketch: Omega.
      scale: of the product.
      transpose: whether by ``Omega^T``.
      bias: one number per output.
    """
    x, structure = quantized(b, x), rk.family(sketch.kind).structure
    axes = axes_of(sketch) if structure == "separable" else None
    if axes is not None:
        y = (_from_axes if transpose else _along_axes)(b, x, axes, scale)
    elif structure == "hadamard":
        y = (_spread if transpose else _kept)(b, x, sketch, scale)
    elif structure == "rows" and not transpose:
        index, scales = rows_of(sketch)
        y = with_numbers(b, "MUL", gather(b, x, index, 1), scales * np.float32(scale))
    else:
        omega = entries(sketch) * np.float32(scale)
        return dense(b, x, matrix(b, omega if transpose else omega.T), bias)
    return y if bias is None else with_numbers(b, "ADD", y, bias)


def matrix(b: Builder, entries: np.ndarray) -> Integers | np.ndarray:
    """A matrix ``(outputs, inputs)`` of a sketch: signs where it is one, floats where it may be."""
    largest = np.abs(entries).max()
    signs = np.rint(entries / largest)
    if np.allclose(signs * largest, entries, rtol=1e-6, atol=0):
        return Integers(signs.astype(np.int8), np.full(1, largest, np.float32), None)
    if not b.integer:
        return np.ascontiguousarray(entries)
    rows = np.abs(entries).max(axis=tuple(range(1, entries.ndim)), keepdims=True)
    scale = np.where(rows > 0, rows, 1.0).astype(np.float32) / 127
    return Integers(np.rint(entries / scale).astype(np.int8), scale.ravel(), -1)


def dense(
    b: Builder,
    x: Value,
    weight: Integers | np.ndarray,
    bias: np.ndarray | None,
    act: str | None = None,
) -> Value:
    """``x W^T + b`` of ``x (vectors, length)``."""
    n = (weight if isinstance(weight, np.ndarray) else weight.values).shape[0]

    def operator(inputs: Sequence[int], out: Value, act: str | None) -> Value:
        return apply(b, "FULLY_CONNECTED", inputs, out, ("FullyConnectedOptions", last(act)))

    how = Product(lambda s, w: s @ w.T, operator)
    return product(b, x, weight, bias, (x.shape[0], n), how, act)


def _along_axes(b: Builder, x: Value, axes: Axes, scale: float) -> Value:
    """Along the width, then, the axes exchanged, along the height: the products as (b, a)."""
    (height, high), (wide, lines) = axes.left.shape, axes.right.shape
    x = dense(b, reshape(b, x, wide), matrix(b, axes.right.T), None)
    x = _exchanged(b, x, height, lines)
    x = dense(b, x, matrix(b, axes.left.T * np.float32(scale)), None)
    u, v = np.divmod(axes.places, lines)
    return gather(b, reshape(b, x, lines * high), v * high + u, 1)


def _from_axes(b: Builder, x: Value, axes: Axes, scale: float) -> Value:
    (height, high), (wide, lines) = axes.left.shape, axes.right.shape
    inverse = axes.inverse.reshape(high, lines).T.ravel()
    x = reshape(b, gather(b, pad(b, x, [(0, 1)]), inverse, 1), high)
    x = dense(b, x, matrix(b, axes.left * np.float32(scale)), None)
    x = dense(b, _exchanged(b, x, lines, height), matrix(b, axes.right), None)
    return reshape(b, x, height * wide)


def _exchanged(b: Builder, x: Value, m: int, n: int) -> Value:
    """The axes of ``(m, n)`` the other way round, their rows one by one."""
    x = reshape(b, x, m, n)
    x = moved(
        b, "TRANSPOSE", x, (x.shape[0], n, m), lambda s: s.transpose(0, 2, 1),
        [np.array([0, 2, 1])], ("TransposeOptions", {}),
    )  # fmt: skip
    return reshape(b, x, m)


def _kept(b: Builder, x: Value, sketch: rk.Sketch, scale: float) -> Value:
    parts = hadamard_of(sketch)
    x = _signed(b, x, parts.signs, parts.entry * scale)
    x = pad(b, x, [(0, 2**parts.bits - sketch.rows)])
    return gather(b, _walsh(b, x, parts.bits), parts.columns, 1)


def _spread(b: Builder, x: Value, sketch: rk.Sketch, scale: float) -> Value:
    parts = hadamard_of(sketch)
    inverse = np.full(2**parts.bits, sketch.cols)  # the zero, for columns that were not kept
    inverse[parts.columns] = np.arange(sketch.cols)
    x = gather(b, pad(b, x, [(0, 1)]), inverse, 1)
    x = cut(b, _walsh(b, x, parts.bits), [0], [sketch.rows])
    return _signed(b, x, parts.signs, parts.entry * scale)


def _signed(b: Builder, x: Value, signs: np.ndarray, entry: float) -> Value:
    real = signs * np.float32(entry)
    if x.steps is not None:
        return with_numbers(b, "MUL", x, real)
    out = like(b, x, x.shape, sampled(lambda s: s * real, x))
    return apply(b, "MUL", [x.tensor, stored(b, signs, entry, False)], out, ("MulOptions", {}))


def _walsh(b: Builder, x: Value, bits: int) -> Value:
    """The Walsh-Hadamard transform along the last axis, a small matrix for some bits at a time.

    The last digits are transformed, then moved to the front; after all of them the order is as it
    was.
    """
    order = 2**bits
    for step in walsh_steps(bits):
        small, rest = 2**step, order // 2**step
        x = reshape(b, x, small)
        x = dense(b, x, Integers(walsh_matrix(step), np.ones(1, np.float32), None), None)
        x = reshape(b, _exchanged(b, x, rest, small) if rest > 1 else x, order)
    return x
