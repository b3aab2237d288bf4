"""Reductions, windows, copies, rows and tables as integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from rosler_jax.export import softmax
from rosler_jax.export._errors import ExportError
from rosler_jax.export._lower_state import (
    End,
    Number,
    State,
    as_int16,
    checked32,
    exact,
    finish,
    requant,
)
from rosler_jax.export.intops import (
    HIGH,
    LIMITS,
    NORM_FRACTION,
    UNIT_FRACTION,
    Accumulated,
    Gathered,
    Joined,
    Normed,
    Pooled,
    Probabilities,
    Reduced,
    Requant,
    Sliced,
    Taken,
    Transposed,
)
from rosler_jax.graph.kinds import (
    Concat,
    Cumulative,
    Gather,
    Norm,
    Op,
    Pool,
    Reduce,
    Slice,
    Softmax,
    Take,
    Transpose,
)
from rosler_jax.quantization import quantize

_MOST_IN_ROW = 2**16  # so that the squares of a norm's row fit 62 bits


def _refuse(op: Op, what: str, instead: str) -> ExportError:
    return ExportError(f"{op.name}: {what} has no integer form; {instead}, or export float32")


def _reduce(op: Reduce, state: State) -> None:
    source, x = state.read(op.inputs[0])
    if op.function == "prod":
        raise _refuse(op, "a product over an axis", "sum logarithms")
    if op.function.startswith("arg"):
        fields: dict[str, Any] = {"zero": 0, "requant": None}
        number = exact("int32")
    elif op.function == "sum" and x.dtype != "int32":
        count = math.prod(op.in_shape[axis] for axis in op.axes)
        bound = checked32(op, x.bound * count, "sums")
        form, number = finish(x.scale * op.scale, bound, op, state, None, End(op.output))
        fields = {"zero": x.zero, "requant": form}
    else:
        if op.scale != 1.0:
            raise _refuse(op, "a mean of whole numbers", "make real numbers of them before")
        fields, number = {"zero": 0, "requant": None}, x
    function = {"all": "min", "any": "max"}.get(op.function, op.function)
    state.emit(Reduced, op, [source], number, op.output, function=function, axes=op.axes, **fields)


def _pool(op: Pool, state: State) -> None:
    x = state.read(op.inputs[0])[1]
    if x.dtype in ("int32", "bool"):
        raise _refuse(op, f"pooling of {x.dtype}", "make real numbers of them before")
    source, x = as_int16(state, op.inputs[0], op.name, "int8")
    form: Requant | None = None
    number = x
    if op.function != "max":
        count = math.prod(op.window.size)
        if x.bound * count >= 2**31:
            raise ExportError(
                f"{op.name}: windows of {count} are too many to sum; pool in two steps"
            )
        if state.activations == 8:
            form, number = finish(
                x.scale * op.scale, x.bound * count, op, state, None, End(op.output)
            )
        else:
            largest = op.scale * count
            scale = x.scale * 2.0 ** max(0, math.ceil(math.log2(largest) - 1e-6))
            form, reach = requant(x.scale * op.scale / scale, x.bound * count)
            number = x._replace(scale=scale, bound=min(x.bound + 1, reach))
    state.emit(
        Pooled, op, [source], number, op.output, function=op.function, window=op.window,
        zero=x.zero, requant=form,
    )  # fmt: skip


def _take(op: Take, state: State) -> None:
    source, x = state.read(op.inputs[0])
    fill = int(np.clip(round(op.fill / x.scale) + x.zero, *LIMITS[x.dtype]))
    state.emit(Taken, op, [source], x, op.output, index=op.index, fill=fill)


def _transpose(op: Transpose, state: State) -> None:
    source, x = state.read(op.inputs[0])
    state.emit(Transposed, op, [source], x, op.output, axes=op.axes)


def _concat(op: Concat, state: State) -> None:
    numbers = [state.read(k)[1] for k in op.inputs]
    if op.dtypes[0] != "float32" or len({n.form for n in numbers}) == 1:
        number = max(numbers, key=lambda n: n.bound)
        requants: list[Requant | None] = [None] * len(numbers)
    else:
        number = state.target(op.output)
        ends = LIMITS[number.dtype]
        requants = [
            None if n.form == number.form
            else requant(n.scale / number.scale, n.bound, *ends, number.zero)[0]
            for n in numbers
        ]  # fmt: skip
    state.emit(
        Joined, op, [state.read(k)[0] for k in op.inputs], number, op.output, axis=op.axis,
        zeros=tuple(n.zero for n in numbers), requants=tuple(requants),
    )  # fmt: skip


def _softmax(op: Softmax, state: State) -> None:
    source, x = state.read(op.inputs[0])
    if op.log:
        raise _refuse(op, "the logarithm of a softmax", "leave the logarithm out")
    if x.dtype not in ("int16", "int8") or op.in_shape[-1] > softmax.MAX_CLASSES:
        raise _refuse(op, f"a softmax of {op.in_shape[-1]} {x.dtype}", "use fewer")
    multiplier, shift = softmax.multiplier(x.scale)
    state.emit(
        Probabilities, op, [source], Number(2.0**-15, HIGH), op.output, multiplier=multiplier,
        shift=shift,
    )  # fmt: skip


def _norm(op: Norm, state: State) -> None:
    source, x = as_int16(state, op.inputs[0], op.name, "int8")
    n = op.in_shape[-1]
    if n > _MOST_IN_ROW:
        raise _refuse(op, f"a norm of rows of {n}", f"use rows of {_MOST_IN_ROW}")
    number = state.target(op.output)
    unit = x.scale * 2.0**-NORM_FRACTION
    epsilon = min(round(op.epsilon / unit**2), 2**50)
    reach = 2**UNIT_FRACTION * math.sqrt(2 * n) + 2
    scale = np.ones(n) if op.scale is None else op.scale.values.astype(np.float64).ravel()
    bias = np.zeros(n) if op.bias is None else op.bias.values.astype(np.float64).ravel()
    factor = np.broadcast_to(scale, (n,)) * 2.0**-UNIT_FRACTION / number.scale
    room = 60 - math.ceil(math.log2(reach))
    exponent = math.frexp(float(np.abs(factor).max()))[1]
    height = np.broadcast_to(bias, (n,)) / number.scale
    most = max(float(np.abs(height).max()), 1.0) + 256
    shift = min(30 - exponent, room - exponent, 60 - math.ceil(math.log2(most)), 46)
    if shift < 1:
        raise ExportError(f"{op.name}: a scale of {np.abs(scale).max():.3g} is too large")
    offset = np.rint(height * 2.0**shift).astype(np.int64) + (number.zero << shift)
    low, high = LIMITS[number.dtype]
    state.emit(
        Normed, op, [source], number, op.output, center=op.center, zero=x.zero, epsilon=epsilon,
        multiplier=np.rint(factor * 2.0**shift).astype(np.int64),
        offset=offset + 2 ** (shift - 1), shift=shift, low=low, high=high,
    )  # fmt: skip


def _gather(op: Gather, state: State) -> None:
    """Rows at the scale of the table; a stored table has the bits of the weights."""
    value = op.inputs[0]
    weight = state.graph.constants.get(value)
    if weight is not None and weight.values.dtype.kind == "f" and state.bits <= 8:
        keeps = weight.integers is not None and weight.bits <= state.bits and weight.axis is None
        stored = quantize(jnp.asarray(weight.values), state.bits, None)
        integers = np.asarray(weight.integers if keeps else stored.values, np.int8)
        number = Number(float(weight.scale if keeps else stored.scale), 128, "int8")
        table = state.fresh()
        state.constants[table] = integers
        state.numbers[table], state.sizes[table] = number, integers.size
    else:
        table, number = state.read(value)
    ids = state.read(op.inputs[1])[0]
    state.emit(Gathered, op, [table, ids], number, op.output, zero=number.zero, wrap=op.wrap)


def _cumulative(op: Cumulative, state: State) -> None:
    source, x = state.read(op.inputs[0])
    form, number = None, x
    if op.function == "prod":
        raise _refuse(op, "a running product", "sum logarithms")
    if op.function == "sum" and x.dtype != "int32":
        bound = checked32(op, x.bound * op.in_shape[1], "sums")
        form, number = finish(x.scale, bound, op, state, None, End(op.output))
    state.emit(
        Accumulated, op, [source], number, op.output, function=op.function, reverse=op.reverse,
        zero=x.zero if form else 0, requant=form,
    )  # fmt: skip


def _slice(op: Slice, state: State) -> None:
    source, x = state.read(op.inputs[0])
    start = state.read(op.inputs[1])[0]
    state.emit(Sliced, op, [source, start], x, op.output, size=op.size)


LOWER_ROWS: dict[type[Op], Callable[[Any, State], None]] = {
    Reduce: _reduce,
    Pool: _pool,
    Take: _take,
    Transpose: _transpose,
    Concat: _concat,
    Softmax: _softmax,
    Norm: _norm,
    Gather: _gather,
    Cumulative: _cumulative,
    Slice: _slice,
}
"""How each of these becomes integers."""
