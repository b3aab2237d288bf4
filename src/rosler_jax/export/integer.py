r"""Integer inference, specified once: what the C code computes, bit for bit, as pure JAX.

Between operations every value holds integers q of 16 or 8 bits that stand for ``(q - z) * scale``;
z is 0 for 16 bits. A product accumulates exactly, in 32 bits where that is proved from the weights
and the range of its inputs to be enough and in 64 bits elsewhere, and is brought back by
:class:`~rosler_jax.export.intops.Requant`::

    y = clip(((acc * multiplier + 2 ^ (shift - 1)) >> shift) + zero, low, high)

in 64-bit integers with an arithmetic shift. No product of the specification can overflow, for any
input: :mod:`rosler_jax.export.lowering` proves it while it chooses the numbers. Since all sums are
exact, their order does not matter, and an implementation may use whatever instructions it likes.

A function of 16-bit numbers is a table of 513 numbers t, read with linear interpolation::

    u = x + 32768
    k = u >> 7
    f = u & 127
    y = t[k] + (((t[k + 1] - t[k]) * f + 64) >> 7)

A row of a norm, n numbers x, is in units of 2^-6 of the input's scale, then of 2^-16::

    u = (x - zero) << 6
    d = u - (sum u + n / 2) / n     (of an RMS norm d = u)
    v = (sum d d) / n + epsilon, at least 1
    s = floor(sqrt(v << t))         for the even t so that v << t lies between 2^60 and 2^62
    z = (d * (2^61 / s)) >> (45 - t / 2)
    y = clip((z * multiplier + offset) >> shift, low, high)

all divisions rounded down.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import rosler_kernels as rk
from rosler_jax.export import cosines, softmax
from rosler_jax.export._stored import entries
from rosler_jax.export.inputs import examples
from rosler_jax.export.intops import (
    HIGH,
    LOW,
    NORM_FRACTION,
    TABLE_BITS,
    TABLE_SIZE,
    UNIT_FRACTION,
    Accumulated,
    Chosen,
    Combined,
    Cosines,
    Gathered,
    IntOp,
    IntValue,
    Joined,
    Limited,
    Lookup,
    Looped,
    Normed,
    PatchSigns,
    Pooled,
    Probabilities,
    Product,
    Products,
    Program,
    Reduced,
    Requant,
    Shifted,
    Signs,
    Sliced,
    Taken,
    Times,
    Transposed,
    Truncated,
    Whole,
)
from rosler_jax.graph.compute import convolve, group_filters, pool, take
from rosler_jax.graph.functions import FUNCTIONS

if TYPE_CHECKING:
    from jaxtyping import Array, Int64, Integer

__all__ = [
    "COMPUTE",
    "HIGH",
    "LOW",
    "TABLE_BITS",
    "TABLE_SIZE",
    "IntOp",
    "IntValue",
    "Product",
    "Program",
    "Requant",
    "Shifted",
    "Signs",
    "forward",
    "run_integer",
    "sign_matrix",
]  # fmt: skip


def sign_matrix(sketch: rk.Sketch) -> Integer[np.ndarray, "rows cols"]:
    """A sketch's entries over their common magnitude: -1, 0 and 1.

    Example:
      >>> sorted(set(sign_matrix(rk.sparse_sign(0, 40, 8)).ravel().tolist()))
      [-1, 0, 1]
    """
    return np.sign(entries(sketch)).astype(np.int8)


def _requant(acc: Array, r: Requant | None) -> Array:
    if r is None:
        return acc
    half = jnp.int64(1) << (r.shift - 1)
    y = ((acc * r.multiplier.astype(np.int64) + half) >> r.shift) + r.zero
    return jnp.clip(y, r.low, r.high)


def _product(op: Product, x: Array) -> Array:
    weight = op.weight.astype(np.int64)
    if op.window is None:
        return _requant(x @ weight + op.bias, op.requant)
    # What padding holds is taken off, so that the padding of a convolution stands for it.
    sums = weight.reshape(-1, weight.shape[-1]).sum(0) * op.fill
    acc = convolve((x - op.fill)[None], weight, op.window)[0]
    return _requant(acc + (op.bias + sums), op.requant)


def _signs(op: Signs, x: Array) -> Array:
    if isinstance(op, Cosines):
        acc = cosines.project(op.sketch, op.stages, op.transpose, x)
    else:
        s = sign_matrix(op.sketch).astype(np.int64)
        acc = x @ (s.T if op.transpose else s)
    acc = acc.reshape(-1, op.bias.size) + op.bias
    each = op.requant.multiplier.size
    return _requant(acc.reshape(-1, each) if each > 1 else acc, op.requant)


def _patch_signs(op: PatchSigns, x: Array) -> Array:
    filters = group_filters(op, sign_matrix(op.sketch).astype(np.int64))
    return _requant(convolve(x[None], filters, op.window)[0], op.requant)


def _products(op: Products, x: Array, y: Array) -> Array:
    pattern = "bmk,bnk->bmn" if op.transpose else "bmk,bkn->bmn"
    return _requant(jnp.einsum(pattern, x - op.zeros[0], y - op.zeros[1]), op.requant)


def _lookup(op: Lookup, x: Array) -> Array:
    t = jnp.asarray(op.table, jnp.int64)
    if op.table.size == 256:
        return t[x + 128]
    u = x - LOW
    k, f = u >> TABLE_BITS, u & (2**TABLE_BITS - 1)
    step = (t[k + 1] - t[k]) * f
    return t[k] + ((step + 2 ** (TABLE_BITS - 1)) >> TABLE_BITS)


def _rounded(op: Combined | Chosen, acc: Array) -> Array:
    return jnp.clip((acc + (jnp.int64(1) << (op.shift - 1))) >> op.shift, op.low, op.high)


def _scaled(op: Combined | Chosen, x: Array, y: Array) -> tuple[Array, Array]:
    (a, b), (p, q) = op.multipliers, op.offsets
    return x * a + p, y * b + q


def _combined(op: Combined, x: Array, y: Array) -> Array:
    acc = FUNCTIONS[op.function].compute(*_scaled(op, x, y))
    return acc if op.dtypes[0] == "bool" else _rounded(op, acc)


def _whole(op: Whole, *xs: Array) -> Array:
    given = [x != 0 if d == "bool" else x for x, d in zip(xs, op.in_dtypes, strict=True)]
    return FUNCTIONS[op.function].compute(*given, *map(int, op.numbers))


def _reduced(op: Reduced, x: Array) -> Array:
    if op.function.startswith("arg"):
        return getattr(jnp, op.function)(x, axis=op.axes[0])
    if op.function == "sum":
        return _requant((x - op.zero).sum(op.axes), op.requant)
    return (x.max if op.function == "max" else x.min)(op.axes)


def _pooled(op: Pooled, x: Array) -> Array:
    shifted = x[None] if op.function == "max" else x[None] - op.zero
    return _requant(pool(shifted, op.function, op.window)[0], op.requant)


def _joined(op: Joined, *xs: Array) -> Array:
    parts = zip(xs, op.zeros, op.requants, strict=True)
    return jnp.concatenate([x if r is None else _requant(x - z, r) for x, z, r in parts], op.axis)


def _square_root(v: Array) -> Array:
    """The root of numbers from 2^60 to 2^62, rounded down, bit by bit."""
    root = jnp.zeros_like(v)
    for k in range(30, -1, -1):
        more = root | (1 << k)
        root = jnp.where(more * more <= v, more, root)
    return root


def _normed(op: Normed, x: Array) -> Array:
    n = x.shape[-1]
    d = (x - op.zero) << NORM_FRACTION
    if op.center:
        d = d - (d.sum(-1, keepdims=True) + n // 2) // n
    v = jnp.maximum((d * d).sum(-1, keepdims=True) // n + op.epsilon, 1)
    t = sum(jnp.where(v < jnp.int64(1) << (62 - 2 * k), 2, 0) for k in range(1, 31))
    factor = (jnp.int64(1) << 61) // _square_root(v << t)
    z = (d * factor) >> (61 - UNIT_FRACTION - t // 2)
    return jnp.clip((z * op.multiplier + op.offset) >> op.shift, op.low, op.high)


def _gathered(op: Gathered, table: Array, ids: Array) -> Array:
    rows = table.shape[0]
    ids = jnp.where(op.wrap & (ids < 0), ids + rows, ids)
    inside = (ids >= 0) & (ids < rows)
    return jnp.where(inside[:, None], table[jnp.clip(ids, 0, rows - 1)], op.zero)


def _accumulated(op: Accumulated, x: Array) -> Array:
    apply = {"sum": jax.lax.cumsum, "max": jax.lax.cummax, "min": jax.lax.cummin}[op.function]
    shifted = x - op.zero if op.function == "sum" else x
    return _requant(apply(shifted, axis=1, reverse=op.reverse), op.requant)


def _looped(op: Looped, *given: Array) -> list[Array]:
    shared, rest = given[: op.shared], given[op.shared :]

    def step(carry: Any, at: Any) -> tuple[Any, Any]:
        out = _outputs(op.body, [*shared, *carry, *at])
        return tuple(out[: op.carries]), tuple(out[op.carries :])

    first, sequences = tuple(rest[: op.carries]), tuple(rest[op.carries :])
    length = None if sequences else op.length
    last, gave = jax.lax.scan(step, first, sequences, length, op.reverse)
    return [*last, *gave]


COMPUTE: dict[type[IntOp], Callable[..., Any]] = {
    Product: _product,
    Signs: _signs,
    Cosines: _signs,
    PatchSigns: _patch_signs,
    Products: _products,
    Shifted: lambda op, x: _requant((x << op.left) + op.bias, op.requant),
    Limited: lambda op, x: jnp.clip(x, op.low, op.high),
    Lookup: _lookup,
    Combined: _combined,
    Chosen: lambda op, c, x, y: _rounded(op, jnp.where(c != 0, *_scaled(op, x, y))),
    Times: lambda op, x, y: _requant((x - op.zeros[0]) * (y - op.zeros[1]), op.requant),
    Whole: _whole,
    Truncated: lambda op, x: (
        jnp.sign(x - op.zero) * ((abs(x - op.zero) * op.multiplier) >> op.shift)
    ),
    Reduced: _reduced,
    Pooled: _pooled,
    Taken: lambda op, x: take(x, op),
    Transposed: lambda op, x: x.transpose(op.axes),
    Joined: _joined,
    Probabilities: lambda op, x: softmax.probabilities(
        x, op.multiplier, op.shift, jnp.asarray(softmax.TABLE, jnp.int64), HIGH
    ),
    Normed: _normed,
    Gathered: _gathered,
    Accumulated: _accumulated,
    Sliced: lambda op, x, start: jax.lax.dynamic_slice_in_dim(
        x, start.reshape(()), op.size, axis=1
    ),
    Looped: _looped,
}
"""What each integer operation computes on one example of 64-bit integers."""


def _outputs(program: Program, inputs: Sequence[Array]) -> list[Array]:
    values = {k: jnp.asarray(array, jnp.int64) for k, array in program.constants.items()}
    values |= {v.id: jnp.asarray(x, jnp.int64) for v, x in zip(program.inputs, inputs, strict=True)}
    for op in program.ops:
        given = (values[k].reshape(s) for k, s in zip(op.inputs, op.in_shapes, strict=True))
        out = COMPUTE[type(op)](op, *given)
        made = out if isinstance(op, Looped) else [out]
        for k, y, shape, dtype in zip(op.outputs, made, op.out_shapes, op.dtypes, strict=True):
            # Only whole numbers wrap: all others are within their types, as was proved.
            kept = jnp.asarray(y).astype(jnp.int32) if dtype == "int32" else y
            values[k] = jnp.asarray(kept).astype(jnp.int64).reshape(shape)
    return [values[v.id].reshape(v.shape) for v in program.outputs]


def forward(program: Program, *inputs: Integer[Array, "..."]) -> list[Int64[Array, "..."]]:
    """The specification itself on one example: pure, to be traced with 64-bit integers enabled.

    Args:
      program: the integer network.
      inputs: integers within the inputs' dtypes, of their shapes.

    Returns:
      One array for each of the program's outputs.

    Example:
      >>> from rosler_jax.export import lower
      >>> from rosler_jax.graph import trace
      >>> program = lower(trace(jnp.negative, np.ones((1, 3))), np.eye(3))
      >>> with jax.enable_x64(True):
      ...     forward(program, jnp.array([1, -20, 300]))[0].tolist()
      [-1, 20, -300]
    """
    return _outputs(program, inputs)


def run_integer(program: Program, *inputs: Any) -> Any:
    """Integer inference on a batch of integer inputs; what the C code gives, bit for bit.

    Args:
      program: the integer network.
      inputs: for each input integers of its dtype, shape ``(batch, *in_shape)`` or of as many
        numbers (see :meth:`Program.quantize_input`).

    Returns:
      The output, or a list of them; times their scales they are the network's.

    Raises:
      ValueError: an input is of another dtype, or its examples of another size.

    Example:
      >>> from rosler_jax.export import lower
      >>> from rosler_jax.graph import trace
      >>> program = lower(trace(lambda x: 2 * x, np.ones((1, 3))), np.eye(3))
      >>> outputs = run_integer(program, program.quantize_input([[0.25, 0.5, -1.0]]))
      >>> outputs.dtype.name, (outputs * program.output_scale).tolist()
      ('int16', [[0.5, 1.0, -2.0]])
    """
    given = []
    for x, value in zip(map(np.asarray, inputs), program.inputs, strict=True):
        if x.dtype != value.dtype:
            raise ValueError(
                f"inputs of dtype {x.dtype}; expected {value.dtype}, as quantize_input gives"
            )
        given.append(examples(x, value.shape))
    with jax.enable_x64(True):
        found = _compiled(program)(*given)
        out = [np.asarray(y).astype(v.dtype) for y, v in zip(found, program.outputs, strict=True)]
    return out[0] if len(out) == 1 else out


@functools.lru_cache(maxsize=16)
def _compiled(program: Program) -> Callable[..., Any]:
    """The jitted specification of a program, kept: tests and reports call it again and again."""
    return jax.jit(jax.vmap(functools.partial(forward, program)))


assert math.log2(TABLE_SIZE - 1) == 16 - TABLE_BITS
