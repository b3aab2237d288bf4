"""From real numbers to a network in fixed point that trains: every scale is a power of two."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rosler_jax.export._errors import ExportError
from rosler_jax.export._ranges import observe
from rosler_jax.export.c.train.chain import cut
from rosler_jax.export.c.train.fixed import (
    ONE,
    TABLE_STEPS,
    WEIGHT_LIMIT,
    FixedOp,
    FixedPlan,
    FixedProduct,
    FixedProject,
    FixedRelu,
    Trainable,
)
from rosler_jax.export.c.train.options import DEFAULT, Training
from rosler_jax.export.c.train.parts import parameters_of, trained_names
from rosler_jax.export.inputs import calibration_inputs, check_finite
from rosler_jax.export.integer import HIGH, Shifted
from rosler_jax.export.lowering import entry, lower
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.kinds import Affine, Dense, Map, Op, Project, count

ROOM = 2.0  # activations may grow so far beyond calibration, and weights twice as far
SOFTMAX_FRACTION = (TABLE_STEPS + 1, 11)  # so that the table can be read and logits reach 16
_WIDEST = 65535  # sums of so many 16-bit numbers fit in 32 bits


class _Context(NamedTuple):
    """What an operation's lowering is told beside the operation.

    Attributes:
      trained: names of the parameters that train.
      in_fraction: of its input.
      seen_in, seen: largest real magnitude of input and output in calibration.
    """

    trained: frozenset[str]
    in_fraction: int
    seen_in: float
    seen: float


def _fraction(largest: float, limit: int = HIGH) -> int:
    """Bits after the point so that a number of this size fits."""
    return math.floor(math.log2(limit / max(largest, 2.0**-20)))


def lower_training(graph: Graph, calibration: Any, training: Training = DEFAULT) -> FixedPlan:
    """Turns a network into fixed point that trains.

    Args:
      graph: products, seeded sketches and relu; anything that has an integer form before the first
        parameter that trains.
      calibration: representative inputs.
      training: the options; momentum is rounded to 15 bits, targets of ``"mse"`` saturate at twice
        the largest output in calibration.

    Returns:
      The plan.

    Raises:
      ExportError: for an operation without fixed-point training, or bad calibration inputs.
    """
    graph = parameters_of(graph)
    trained = trained_names(graph, training.parts)
    found = cut(graph, trained)
    if found is None:
        raise ExportError(
            "fixed point trains a chain of products, seeded sketches and relu, each tensor used "
            "once; export float32, or train only what comes after the rest, as parts='head' does"
        )
    before, rest = found
    before = dataclasses.replace(before, ops=tuple(_spread(op) for op in before.ops))
    # The centre is subtracted where it stands: moved into a bias it would train otherwise.
    prefix = lower(before, calibration, dtype="int16", input_dtype="int16")
    ops = tuple(_one_bias(op) for op in prefix.ops)
    prefix = dataclasses.replace(prefix, ops=ops)
    fraction = -round(math.log2(prefix.output_scale))
    if 2.0**-fraction != prefix.output_scale:
        raise ExportError(f"{rest[0].name}: its inputs' scale is no power of two")
    seen = observe(graph, [calibration_inputs(calibration, graph.in_shape)]).values
    plan: list[FixedOp] = []
    for op in rest:
        if type(op) not in LOWER or getattr(op, "function", "relu") != "relu":
            kind = getattr(op, "function", type(op).__name__)
            raise ExportError(
                f"{op.name}: {kind} does not train in fixed point; products, seeded sketches and "
                "relu do. Export float32, or train only what comes after it, as parts='head' does"
            )
        size_in, size = (seen[k].most for k in (op.inputs[0], op.output))
        check_finite(size, op.name)
        plan.append(LOWER[type(op)](op, _Context(trained, fraction, size_in, size)))
        fraction = plan[-1].fraction
    if training.loss == "cross_entropy":
        plan[-1] = _for_softmax(plan[-1])
    return FixedPlan(prefix, tuple(plan), training._replace(dtype="fixed"))


def _spread(op: Op) -> Op:
    """A scalar standardisation as one per channel, which keeps scales powers of two."""
    if isinstance(op, Affine) and op.factor.ndim == 0:
        channels = (op.in_shape[-1],)
        return dataclasses.replace(
            op,
            center=np.broadcast_to(op.center, channels),
            factor=np.broadcast_to(op.factor, channels),
        )
    return op


def _one_bias(op: Any) -> Any:
    if isinstance(op, Shifted) and op.bias.size > 1 and (op.bias == op.bias[0]).all():
        return dataclasses.replace(op, bias=op.bias[:1])
    return op


def _for_softmax(op: FixedOp) -> FixedOp:
    """Gives the last operation a fraction that the softmax table takes."""
    if isinstance(op, FixedRelu):
        raise ExportError(f"{op.name}: cross-entropy after a relu cannot train; end with a product")
    assert isinstance(op, FixedProduct | FixedProject)
    low, high = SOFTMAX_FRACTION
    fraction = min(max(op.fraction, low), high)
    shift = op.shift + op.fraction - fraction
    if shift < 1:
        raise ExportError(f"{op.name}: logits are too large for fixed point; export float32")
    return dataclasses.replace(op, fraction=fraction, shift=shift)


def _velocity_fraction(seen: float) -> int:
    """Room for a gradient of this size and the tenfold sum of it that momentum makes, twice."""
    return 30 - math.ceil(math.log2(max(seen, 2.0**-10) * 16))


def _bias(op: Any, context: _Context, most: int) -> Trainable | None:
    if op.bias is None:
        return None
    name, values = op.bias.name, op.bias.values.astype(np.float64).ravel()
    largest = max(float(np.abs(values).max()), 0.25)
    fraction = min(most, _fraction(4 * largest, WEIGHT_LIMIT))
    whole = np.rint(values * 2.0**fraction).astype(np.int32)
    return Trainable(name, whole, name in context.trained, fraction, _velocity_fraction(1.0))


def _product(op: Dense, context: _Context) -> FixedProduct:
    values = np.asarray(op.weight.values, np.float64)
    m, n = values.shape
    if op.in_shape[0] != 1:
        raise ExportError(f"{op.name}: {op.in_shape[0]} rows; fixed point trains with one")
    if max(m, n) > _WIDEST:
        raise ExportError(f"{op.name}: {max(m, n)} numbers are too many; {_WIDEST} at most")
    weight_fraction = _fraction(2 * ROOM * float(np.abs(values).max()))
    trains = op.weight.name in context.trained
    stored = weight_fraction + 16 * trains
    limit, kind = (WEIGHT_LIMIT, np.int32) if trains else (HIGH, np.int16)
    whole = np.clip(np.rint(values * 2.0**stored), -limit, limit).astype(kind)
    sums = context.in_fraction + weight_fraction
    fraction = min(_fraction(ROOM * context.seen), sums - 1)
    bias = _bias(op, context, sums)
    return FixedProduct(
        name=op.name, inputs=m, outputs=n, in_fraction=context.in_fraction, fraction=fraction,
        bias=bias, up=0 if bias is None else sums - bias.fraction, shift=sums - fraction,
        weight=Trainable(
            op.weight.name, whole, trains, stored, _velocity_fraction(context.seen_in)
        ),
        weight_fraction=weight_fraction, pre=max(1, (n - 1).bit_length()),
    )  # fmt: skip


def _project(op: Project, context: _Context) -> FixedProject:
    rows, cols = op.sketch.rows, op.sketch.cols
    size = entry(op)
    if op.vectors != 1 or max(rows, cols) > _WIDEST:
        raise ExportError(f"{op.name}: expected one vector of at most {_WIDEST} numbers")
    fraction = _fraction(ROOM * context.seen)
    factor = size * 2.0 ** (fraction - context.in_fraction)
    shift = 29 - math.frexp(factor)[1]
    bias = _bias(op, context, 62)
    if bias is not None:
        shift = min(shift, bias.fraction + 30 - fraction)
        bias = _bias(op, context, fraction + shift)
    if shift < 1:
        raise ExportError(f"{op.name}: a scale of {factor:.3g} is too large; export float32")
    mantissa, exponent = math.frexp(size)
    return FixedProject(
        name=op.name, inputs=cols if op.transpose else rows,
        outputs=rows if op.transpose else cols, in_fraction=context.in_fraction, fraction=fraction,
        bias=bias, up=0 if bias is None else fraction + shift - bias.fraction, shift=shift,
        sketch=op.sketch, transpose=op.transpose, multiplier=round(factor * 2.0**shift),
        mantissa=min(round(mantissa * ONE), ONE), exponent=exponent,
    )  # fmt: skip


def _relu(op: Map, context: _Context) -> FixedRelu:
    n, f = count(op.in_shape), context.in_fraction
    return FixedRelu(name=op.name, inputs=n, outputs=n, in_fraction=f, fraction=f)


LOWER: dict[type[Op], Callable[[Any, _Context], FixedOp]] = {
    Dense: _product,
    Project: _project,
    Map: _relu,
}
"""How each operation becomes fixed point that trains: a new one is one line here."""
