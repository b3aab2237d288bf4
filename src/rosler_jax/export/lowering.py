r"""From real numbers to integers: scales from calibration, accumulators from proof.

With activations of 16 bits every value gets the finest power-of-two scale that holds what was seen
in calibration (times a margin); with 8 bits the range that was seen, 0 in it, is cut into 255
steps. What lies beyond saturates. Weights keep the integers of the model file where they have no
more bits than asked for. The size of every accumulator is bounded for *any* input, by
``max_j sum_i |w_ij| max|x| + |b_j|``; 32 bits are used where that stays below 2^31.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import rosler_kernels as rk
from rosler_jax._quantized import integer_levels
from rosler_jax.export._errors import ExportError
from rosler_jax.export._lower_maps import LOWER_MAPS
from rosler_jax.export._lower_products import LOWER_PRODUCTS, entry
from rosler_jax.export._lower_rows import LOWER_ROWS
from rosler_jax.export._lower_state import Number, State, as_int16, exact, finest, requant, rescaled
from rosler_jax.export._ranges import HUGE, Ranges, observe
from rosler_jax.export.inputs import calibration_inputs, check_finite
from rosler_jax.export.intops import HIGH, LOW, IntValue, Looped, Program
from rosler_jax.graph import Graph, Value, Weight
from rosler_jax.graph.kinds import Affine, Conv, Dense, Op, Project, Scan

__all__ = ["WEIGHT_BITS", "entry", "fold_center", "lower", "requant"]

WEIGHT_BITS = {"int16": 16, "int8": 8, "int4": 4}
"""Bits of the weights by the name of a dtype."""


def lower(
    graph: Graph, calibration: Any, *, dtype: str = "int16", activations: int = 16,
    input_dtype: str | None = None,
) -> Program:  # fmt: skip
    """Turns a graph into an integer program.

    Args:
      graph: the model.
      calibration: representative inputs, as the network is trained on, some hundreds; a sequence of
        them for a graph with several inputs.
      dtype: of the weights, ``"int16"``, ``"int8"`` or ``"int4"``.
      activations: bits of the values between operations, 16 or 8; inputs and outputs have 16.
      input_dtype: of real inputs: ``"uint8"`` for whole numbers from 0 to 255, or ``"int16"``; by
        default what the calibration inputs allow.

    Returns:
      The program.

    Raises:
      ExportError: for an unknown dtype, an operation with no integer form, or bad calibration
        inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> from rosler_jax.graph import trace
      >>> graph = trace(lambda x: jnp.tanh(2 * x), np.ones((1, 4), np.float32))
      >>> program = lower(graph, np.linspace(-1, 1, 8).reshape(2, 4))
      >>> program.input_dtype, [type(op).__name__ for op in program.ops]
      ('int16', ['Lookup'])
    """
    if dtype not in WEIGHT_BITS:
        raise ExportError(
            f"dtype {dtype!r} is no integer dtype; use one of {', '.join(WEIGHT_BITS)}"
        )
    if activations not in (16, 8) or (activations == 8 and dtype == "int16"):
        raise ExportError(
            f"activations of {activations!r} bits with weights of dtype {dtype!r}; use 16, or 8 "
            "with int8 or int4"
        )
    given = [calibration] if len(graph.inputs) == 1 else list(calibration)
    if len(given) != len(graph.inputs):
        raise ExportError(
            f"calibration inputs for {len(given)} inputs; the model takes {len(graph.inputs)}"
        )
    arrays = [
        calibration_inputs(x, v.shape, v.dtype) for x, v in zip(given, graph.inputs, strict=True)
    ]
    numbers = [_input(x, v, input_dtype) for x, v in zip(arrays, graph.inputs, strict=True)]
    graph = fold_center(graph)
    return lowered(graph, observe(graph, arrays), WEIGHT_BITS[dtype], activations, numbers)


def lowered(
    graph: Graph, ranges: Ranges, bits: int, activations: int, numbers: Sequence[Number],
    wanted: Mapping[int, Number] | None = None,
) -> Program:  # fmt: skip
    """The program; ``wanted`` says what some outputs, by their place, have to be."""
    state = State(graph, ranges, bits, activations)
    for value, number in zip(graph.inputs, numbers, strict=True):
        state.numbers[value.id], state.sizes[value.id] = number, math.prod(value.shape)
    for op in graph.ops:
        if op.name in state.done:
            continue
        _check(op, state)
        if type(op) not in LOWER:
            raise ExportError(f"{op.name}: {type(op).__name__} has no integer form; use float32")
        LOWER[type(op)](op, state)
    outputs = [_output(v, state, (wanted or {}).get(i)) for i, v in enumerate(graph.outputs)]
    inputs = [
        IntValue(v.id, v.name, v.shape, n.dtype, n.scale)
        for v, n in zip(graph.inputs, numbers, strict=True)
    ]
    return Program(
        tuple(inputs), tuple(state.ops), tuple(outputs), state.constants, graph.structure
    )


def _check(op: Op, state: State) -> None:
    """Refuses numbers that are not finite, but for a mask's infinities and what follows from it."""
    masks = getattr(op, "function", "") == "select" or any(
        k in state.ranges.values and state.ranges.values[k].most >= HUGE for k in op.inputs
    )
    for value in op.outputs:
        most = state.ranges.values[value].most
        check_finite(0.0 if masks and most == math.inf else most, op.name)


def _input(x: np.ndarray, value: Value, input_dtype: str | None) -> Number:
    if value.dtype != "float32":
        return exact(value.dtype)
    seen = float(np.abs(x).max())
    bytes_fit = bool(x.min() >= 0 and x.max() <= 255 and (x == np.rint(x)).all())
    kind = input_dtype or ("uint8" if bytes_fit and seen > 1 else "int16")
    if kind == "uint8":
        if not bytes_fit:
            raise ExportError("input_dtype uint8 wants whole numbers from 0 to 255; use int16")
        return Number(1.0, 255, kind)
    if kind != "int16":
        raise ExportError(f"input_dtype {kind!r} is not known; use uint8 or int16")
    return Number(finest(seen), -LOW)


def _output(value: Value, state: State, wanted: Number | None) -> IntValue:
    """A result at the scale that is wanted, else as int16 where it is a real number."""
    k, number = state.read(value.id)
    if wanted is not None and number.form != wanted.form:
        k, number = rescaled(state, value.id, wanted, value.name)
    elif wanted is None and value.dtype == "float32":
        k, number = as_int16(state, value.id, value.name)
    return IntValue(k, value.name, value.shape, number.dtype, number.scale)


def fold_center(graph: Graph) -> Graph:
    """Moves what standardisation subtracts into the bias of the first product, if that is exact.

    With ``z = (x - c) f``, ``z W + b = (x f) W + (b - c f 1^T W)``; the same through a projection
    that comes between. Not through zero padding, which is zero after the subtraction.

    Example:
      >>> from rosler_jax.graph import trace
      >>> graph = trace(lambda x: ((x - 3.0) * 0.5) @ np.ones((2, 1)), np.ones((1, 2)))
      >>> first, product = fold_center(graph).ops
      >>> float(first.center), product.bias.values.tolist()
      (0.0, [-3.0])
    """
    consumers, results = graph.consumers(), {v.id for v in graph.outputs}

    def after(op: Op) -> Any:
        readers = consumers.get(op.output, [])
        return readers[0] if len(readers) == 1 and op.output not in results else None

    start: Any = graph.ops[0] if graph.ops else None
    if not (isinstance(start, Affine) and start.center.ndim == 0 and start.factor.ndim == 0):
        return graph
    product, shift = after(start), float(start.center) * float(start.factor)
    column: np.ndarray | None = None  # of ones, projected
    if isinstance(product, Project) and not product.transpose and product.vectors == 1:
        entries = np.asarray(rk.materialize(product.sketch), np.float64)
        column, product = product.scale * entries.sum(0), after(product)
    if product is None or not _takes_shift(product):
        return graph
    w = product.weight.values.astype(np.float64)
    w = w.reshape(-1, w.shape[-1])
    sums = w.sum(0) if column is None else column @ w
    bias = np.zeros(w.shape[-1]) if product.bias is None else product.bias.values
    moved = Weight(f"{product.name}/bias", (bias - shift * sums).astype(np.float32))
    new = {
        product.name: dataclasses.replace(product, bias=moved),
        start.name: dataclasses.replace(start, center=np.zeros((), np.float32)),
    }
    return dataclasses.replace(graph, ops=tuple(new.get(op.name, op) for op in graph.ops))


def _takes_shift(op: Op) -> bool:
    return isinstance(op, Dense) or (
        isinstance(op, Conv)
        and all(pair == (0, 0) for pair in op.window.padding)
        and all(d == 1 for d in op.window.input_dilation)
    )


def _scan(op: Scan, state: State) -> None:
    """The body once: state has fixed scales, those of all that was seen at any position."""
    ranges = state.ranges.bodies[op.name]
    last = op.shared + op.carries
    names = [f"{op.name}/{k}" for k in range(len(op.inputs))]
    given, numbers = [], []
    for k, (value, inner) in enumerate(zip(op.inputs, op.body.inputs, strict=True)):
        source, number = state.read(value)
        if op.shared <= k < last and inner.dtype == "float32":
            seen = [ranges.values[v].size for v in (inner.id, op.body.outputs[k - op.shared].id)]
            wanted = Number(finest(max(seen)), -LOW)
            if number.form != wanted.form:
                source, number = rescaled(state, value, wanted, names[k])
            number = wanted
        given.append(source)
        numbers.append(number)
    carried = dict(enumerate(numbers[op.shared : last]))
    body = lowered(op.body, ranges, state.bits, state.activations, numbers, carried)
    out = [*numbers[op.shared : last]]
    out += [
        Number(v.scale, -LOW) if v.dtype == "int16" else exact(v.dtype)
        for v in body.outputs[op.carries :]
    ]
    state.ops.append(
        Looped(
            name=op.name, inputs=tuple(given), outputs=op.outputs, in_shapes=op.in_shapes,
            out_shapes=op.out_shapes, in_dtypes=tuple(state.numbers[k].dtype for k in given),
            dtypes=tuple(n.dtype for n in out), body=body, shared=op.shared, carries=op.carries,
            length=op.length, reverse=op.reverse,
        )
    )  # fmt: skip
    state.numbers |= dict(zip(op.outputs, out, strict=True))
    sizes = [math.prod(shape) for shape in op.out_shapes]
    state.sizes |= dict(zip(op.outputs, sizes, strict=True))


LOWER: dict[type[Op], Callable[[Any, State], None]] = {
    **LOWER_PRODUCTS,
    **LOWER_MAPS,
    **LOWER_ROWS,
    Scan: _scan,
}
"""How each operation becomes integers: a new one is one line in one of these."""

assert integer_levels(16) == HIGH
