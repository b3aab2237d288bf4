"""Elementwise functions as integers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from rosler_jax.export._errors import ExportError
from rosler_jax.export._lower_products import shifted
from rosler_jax.export._lower_state import (
    End,
    Number,
    State,
    as_int16,
    end_of,
    exact,
    finest,
    finish,
    limits,
    requant,
    rescaled,
)
from rosler_jax.export.intops import (
    LIMITS,
    LOW,
    TABLE_BITS,
    TABLE_SIZE,
    Chosen,
    Combined,
    Limited,
    Lookup,
    Times,
    Truncated,
    Whole,
)
from rosler_jax.graph.functions import FUNCTIONS
from rosler_jax.graph.kinds import Map, Op

Real = Callable[[Any], Any]
"""A function of one real number."""

COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
_WHOLE = (*COMPARE, "add", "sub", "mul", "max", "min", "and", "or", "xor", "not", "neg", "abs",
          "sign", "clamp", "relu", "select", "int32", "bool", "div", "rem")  # fmt: skip
_JUMPS = ("sign", "floor", "ceil", "round")
_STEEP = 0.02  # of what comes out: a table may be so far from its function


def _unary(op: Op, state: State) -> tuple[int, Real] | None:
    """Which operand of an operation is no number, if only one is, and the function of it."""
    if not isinstance(op, Map) or op.dtypes[0] != "float32" or op.function == "select":
        return None
    function, numbers = FUNCTIONS[op.function].compute, op.numbers
    if len(op.inputs) == 1:
        if state.dtypes[op.inputs[0]] != "float32":
            return None
        return op.inputs[0], lambda x: function(x, *numbers)
    if len(op.inputs) != 2:
        return None
    left, right = map(state.scalar, op.inputs)
    if right is not None and left is None and op.out_shape == op.in_shape:
        return op.inputs[0], lambda x: function(x, jnp.float32(right))
    if left is not None and right is None and op.out_shape == op.in_shapes[1]:
        return op.inputs[1], lambda x: function(jnp.float32(left), x)
    return None


def _chain(op: Map, state: State) -> tuple[int, list[Map], Real] | None:
    """The functions of one value that follow each other, and all of them in one."""
    first = _unary(op, state)
    if first is None:
        return None
    value, whole = first
    ops = [op]
    while True:
        after = state.only_reader(ops[-1].output)
        more = None if after is None else _unary(after, state)
        if more is None or not isinstance(after, Map) or more[0] != ops[-1].output:
            return value, ops, whole
        whole = _after(whole, more[1])
        ops.append(after)


def _after(first: Real, then: Real) -> Real:
    return lambda x: then(first(x))


def _straight(ops: list[Map], whole: Real) -> tuple[float, float] | None:
    """Slope and height of a chain of functions that are straight lines."""
    if any(op.function not in ("add", "sub", "mul", "neg", "float32", "div") for op in ops):
        return None
    at = [float(whole(jnp.float32(x))) for x in (0.0, 1.0, 2.0)]
    slope = at[1] - at[0]
    if not math.isclose(at[2] - at[1], slope, rel_tol=1e-4, abs_tol=1e-30):
        return None
    return slope, at[0]


def _map(op: Map, state: State) -> None:
    given = [state.dtypes[k] for k in op.inputs]
    if op.function == "isfinite":  # as integers are
        state.store(op.output, np.ones(op.out_shape, np.bool_))
        return None
    if op.dtypes[0] != "float32" and "float32" not in given:
        return _whole(op, state)
    if op.function == "float32" and given[0] != "float32":
        return _from_whole(op, state)
    if op.function == "int32":
        return _truncated(op, state)
    if op.function == "bool":
        return _nonzero(op, state)
    chain = _chain(op, state)
    if chain is not None:
        return _one(op, state, *chain)
    if op.function in ("add", "sub", "max", "min", *COMPARE):
        return _combined(op, state)
    if op.function == "select":
        return _chosen(op, state)
    if op.function == "mul":
        return _times(op, state, *op.inputs)
    if op.function == "div" and op.inputs[1] in state.graph.constants:
        divisor = state.graph.constants[op.inputs[1]].values
        with np.errstate(divide="ignore"):
            inverse = state.store(state.fresh(), np.asarray(1.0 / divisor, np.float32))
        return _times(op, state, op.inputs[0], inverse)
    raise ExportError(
        f"{op.name}: {op.function} of two values has no integer form; divide by constants, or "
        "export float32"
    )


def _whole(op: Map, state: State) -> None:
    """Whole numbers and truth values, exact."""
    if op.function not in _WHOLE:
        raise ExportError(
            f"{op.name}: {op.function} of whole numbers has no integer form; use one of "
            f"{', '.join(_WHOLE)}, or export float32"
        )
    inputs = [state.read(k)[0] for k in op.inputs]
    state.emit(
        Whole, op, inputs, exact(op.dtypes[0]), op.output, function=op.function,
        numbers=op.numbers,
    )  # fmt: skip


def _from_whole(op: Map, state: State) -> None:
    """Truth values as they are; whole numbers within what calibration saw."""
    value, number = state.read(op.inputs[0])
    if number.dtype == "bool":
        state.rename(op.output, op.inputs[0], number)
        return
    seen = state.seen(op.output).size
    most = min(2**31 - 1, math.ceil(max(seen, 1.0)) * 2)
    wanted = Number(max(finest(seen), 1.0 / 2**14), -LOW)
    near = number._replace(bound=most)
    k, near = state.emit(
        Limited, op, [value], near, state.fresh(), low=-most, high=most,
        out_shapes=op.in_shapes,
    )  # fmt: skip
    state.rename(op.output, *rescaled(state, k, wanted, op.name))


def _truncated(op: Map, state: State) -> None:
    source, x = state.read(op.inputs[0])
    form, _ = requant(x.scale, x.bound)
    state.emit(
        Truncated, op, [source], exact("int32"), op.output, zero=x.zero,
        multiplier=int(form.multiplier), shift=form.shift,
    )  # fmt: skip


def _nonzero(op: Map, state: State) -> None:
    source, x = state.read(op.inputs[0])
    nought = state.store(state.fresh(), np.zeros((), np.float32))
    state.emit(
        Combined, op, [source, nought], exact("bool"), op.output, function="ne",
        multipliers=(1, 1), offsets=(-x.zero, 0), shift=1, low=0, high=1,
        in_shapes=(op.in_shape, ()),
    )  # fmt: skip


def _one(op: Map, state: State, value: int, ops: list[Map], whole: Real) -> None:
    """A chain of functions of one value: limits, a straight line, or a table."""
    state.done |= {each.name for each in ops[1:]}
    last = ops[-1]
    if all(each.function in ("relu", "clamp") for each in ops):
        return _limited(op, state, value, ops, whole)
    line = _straight(ops, whole)
    if line is not None:
        slope, height = line
        number = state.read(value)[1]
        if height == 0.0 and slope > 0:
            state.rename(last.output, value, number._replace(scale=number.scale * slope))
            return None
        same = dataclasses.replace(
            op, inputs=(value,), outputs=last.outputs, in_shapes=(last.out_shape,),
            out_shapes=last.out_shapes,
        )  # fmt: skip
        if slope == 0.0:
            raise ExportError(f"{op.name}: a function that is constant; fold it before export")
        return shifted(same, state, np.asarray(-height / slope), np.asarray(slope))
    return _table(op, state, value, ops, whole)


def _limited(op: Map, state: State, value: int, ops: list[Map], whole: Real) -> None:
    source, number = as_int16(state, value, op.name, "int8")
    low, high = (float(whole(jnp.float32(v))) for v in (-3e38, 3e38))
    ends = limits(number, low if low > -3e38 else -math.inf, high)
    reach = max(abs(end - number.zero) for end in ends)
    state.emit(
        Limited, op, [source], number._replace(bound=min(number.bound, reach)), ops[-1].output,
        low=ends[0], high=ends[1], in_shapes=op.in_shapes, out_shapes=ops[-1].out_shapes,
    )  # fmt: skip


def _table(op: Map, state: State, value: int, ops: list[Map], whole: Real) -> None:
    """A table at every integer of 8 bits, or at every 2^TABLE_BITS-th of 16."""
    last = ops[-1]
    source, x = as_int16(state, value, op.name, "int8")
    small = x.dtype == "int8"
    seen, inside = state.seen(last.output), state.ranges.values[value]
    if small:
        knots = np.arange(-128.0, 128.0)
    else:
        # The knots lie at every 2^TABLE_BITS-th integer; beyond the last one the input ends.
        knots = np.arange(TABLE_SIZE, dtype=np.float64) * 2**TABLE_BITS + LOW
    values = _values(whole, (knots - x.zero) * x.scale, seen.size)
    number = state.target(last.output)
    if number.dtype == "int16":
        reach = float(np.abs(values[np.abs(knots) <= x.bound + 2**TABLE_BITS]).max())
        number = Number(finest(min(reach, seen.size) or reach), -LOW)
    if not small:
        _check_steep(op, ops, whole, values, x.scale, (inside.low, inside.high))
    ends = LIMITS[number.dtype]
    table = np.clip(np.rint(values / number.scale) + number.zero, *ends).astype(number.dtype)
    shapes = {"in_shapes": (last.out_shape,), "out_shapes": last.out_shapes}
    state.emit(Lookup, op, [source], number, last.output, table=table, **shapes)


def _values(whole: Real, x: np.ndarray, most: float) -> np.ndarray:
    """A function's values; where it is infinite, or no number, far beyond what calibration saw."""
    values = np.asarray(whole(jnp.asarray(x.astype(np.float32))), np.float64)
    return np.nan_to_num(values, nan=0.0, posinf=1e6 * (most or 1.0), neginf=-1e6 * (most or 1.0))


def _check_steep(
    op: Map, ops: list[Map], whole: Real, values: np.ndarray, scale: float,
    inside: tuple[float, float],
) -> None:  # fmt: skip
    """Refuses a table whose lines between the knots are far from the function."""
    names = " of ".join(each.function for each in reversed(ops))
    if any(each.function in _JUMPS for each in ops):
        raise ExportError(
            f"{op.name}: {names} jumps, which a table with lines between its numbers cannot; use "
            "activations of 8 bits, or export float32"
        )
    middle = (np.arange(TABLE_SIZE - 1) + 0.5) * 2**TABLE_BITS + LOW
    exact = np.asarray(whole(jnp.asarray((middle * scale).astype(np.float32))), np.float64)
    step = 2**TABLE_BITS * scale
    used = (middle * scale > inside[0] + step) & (middle * scale < inside[1] - step)
    used &= np.isfinite(exact)
    if used.any():
        off = np.abs(exact - (values[1:] + values[:-1]) / 2)[used].max()
        if off > _STEEP * np.abs(exact[used]).max():
            raise ExportError(
                f"{op.name}: {names} is too steep for a table: up to {off:.3g} off between its "
                "numbers; use activations of 8 bits, or export float32"
            )


def _combine(
    x: Number, y: Number, number: Number | None, signs: tuple[int, int]
) -> tuple[tuple[int, int], int]:
    """Multipliers and the shift that bring two values to one scale within 29 bits."""
    scale = max(x.scale, y.scale) if number is None else number.scale
    factors = [s * v.scale / scale for s, v in zip(signs, (x, y), strict=True)]
    raw = [v.bound + abs(v.zero) for v in (x, y)]
    size = max(abs(f) * n for f, n in zip(factors, raw, strict=True))
    size = max(size, *(float(abs(f)) for f in factors))
    shift = 28 - max(0, math.ceil(math.log2(size))) if size > 0 else 28
    shift = min(shift, 28, 20 if number is not None and number.zero else 28)
    if shift < 1:
        raise ExportError("operands are far beyond the scale of what is made of them; calibrate")
    m, n = (round(f * 2.0**shift) for f in factors)
    return (m, n), shift


def _combined(op: Map, state: State) -> None:
    """Two values brought to a common scale, and added or compared."""
    function, signs = op.function, (1, 1)
    if function == "sub":
        function, signs = "add", (1, -1)
    (a, x), (b, y) = (_operand(state, k, op) for k in op.inputs)
    truth = op.dtypes[0] == "bool"
    end = End(op.output) if truth else end_of(op, state)
    number = exact("bool") if truth else state.target(end.value)
    (m, n), shift = _combine(x, y, None if truth else number, signs)
    zero = number.zero << shift
    offsets = (-x.zero * m + zero, -y.zero * n + zero)
    if function == "add":
        offsets = (-x.zero * m - y.zero * n + zero, 0)
    low, high = (0, 1) if truth else limits(number, end.low)
    state.emit(
        Combined, op, [a, b], number, end.value, function=function, multipliers=(m, n),
        offsets=offsets, shift=shift, low=low, high=high,
    )  # fmt: skip


def _operand(state: State, value: int, op: Map) -> tuple[int, Number]:
    return as_int16(state, value, op.name, "int8", "uint8", "bool")


def _chosen(op: Map, state: State) -> None:
    condition = state.read(op.inputs[0])[0]
    number = state.target(op.output)
    sides = []
    for value in op.inputs[1:]:
        weight = state.graph.constants.get(value)
        if weight is None:
            sides.append(_operand(state, value, op))
        else:
            sides.append(rescaled(state, value, number, op.name))
    (a, x), (b, y) = sides
    (m, n), shift = _combine(x, y, number, (1, 1))
    zero = number.zero << shift
    state.emit(
        Chosen, op, [condition, a, b], number, op.output, multipliers=(m, n),
        offsets=(-x.zero * m + zero, -y.zero * n + zero), shift=shift,
        low=LIMITS[number.dtype][0], high=LIMITS[number.dtype][1],
    )  # fmt: skip


def _times(op: Map, state: State, left: int, right: int) -> None:
    (a, x), (b, y) = _operand(state, left, op), _operand(state, right, op)
    end = end_of(op, state)
    form, number = finish(x.scale * y.scale, x.bound * y.bound, op, state, None, end)
    state.emit(
        Times, op, [a, b], number, end.value, zeros=(x.zero, y.zero), requant=form
    )  # fmt: skip


LOWER_MAPS: dict[type[Op], Callable[[Any, State], None]] = {Map: _map}
"""How elementwise functions become integers."""
