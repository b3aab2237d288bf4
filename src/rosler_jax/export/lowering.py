r"""From real numbers to integers: scales from calibration, accumulators from proof.

Every activation gets the finest power-of-two scale that holds what was seen in calibration (times
a margin), so that 16 bits are used; what lies beyond saturates. Weights keep the integers of the
model file where they have no more bits than asked for. The size of every accumulator is bounded
for *any* input, by ``max_j sum_i |w_ij| max|x| + |b_j|``; 32 bits are used where that stays below
2^31.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import rosler_kernels as rk
from rosler_jax._quantized import integer_levels
from rosler_jax.export import reference
from rosler_jax.export._errors import ExportError
from rosler_jax.export.graph import (
    Activate,
    Affine,
    Conv,
    Dense,
    Flatten,
    Graph,
    Op,
    Pad,
    PatchProject,
    Pool,
    Project,
    Weight,
    is_relu,
)
from rosler_jax.export.inputs import calibration_inputs, check_finite
from rosler_jax.export.integer import (
    HIGH,
    LOW,
    TABLE_BITS,
    TABLE_SIZE,
    IntOp,
    Lookup,
    Padded,
    PatchSigns,
    Pooled,
    Product,
    Program,
    Relu,
    Requant,
    Reshaped,
    Shifted,
    Signs,
    sign_matrix,
)
from rosler_jax.quantization import quantize

if TYPE_CHECKING:
    from jaxtyping import Float

WEIGHT_BITS = {"int16": 16, "int8": 8, "int4": 4}
"""Bits of the weights by the name of a dtype; activations have 16 throughout."""
MARGIN = 1.1  # what calibration saw, and a little more
_LIMIT = 2.0**62


class _Tensor(NamedTuple):
    """What is known of the integers between two operations.

    Attributes:
      scale: q stands for ``q * scale``.
      bound: the largest magnitude, whatever the input.
      seen: the largest real magnitude in calibration.
      gained: whether the channels carry the scales of the next weight's inputs.
    """

    scale: float
    bound: int
    seen: float
    gained: bool = False


class _Context(NamedTuple):
    """What an operation's lowering is told beside the operation.

    Attributes:
      bits: of the weights.
      seen: largest real magnitude of the output in calibration, per channel (the last axis).
      relu: whether a relu follows, to be fused.
      gain: factors per channel that the next weight wants on its input; None for none.
    """

    bits: int
    seen: Float[np.ndarray, "n"]
    relu: bool
    gain: np.ndarray | None


def lower(
    graph: Graph, calibration: Any, *, dtype: str = "int16", input_dtype: str | None = None
) -> Program:
    """Turns a graph into an integer program.

    Args:
      graph: the network.
      calibration: representative inputs, as the network is trained on; some hundreds.
      dtype: of the weights, ``"int16"``, ``"int8"`` or ``"int4"``.
      input_dtype: ``"uint8"`` for whole numbers from 0 to 255, or ``"int16"``; by default what the
        calibration inputs allow.

    Returns:
      The program.

    Raises:
      ExportError: for an unknown dtype, a layer with no integer form, or bad calibration inputs.

    Example:
      >>> from rosler_jax.export.build import build_graph
      >>> specs = [{"kind": "linear", "in_features": 4, "out_features": 2}]
      >>> graph = build_graph(specs, {"0/kernel": np.eye(4, 2), "0/bias": np.ones(2)})
      >>> program = lower(graph, np.linspace(-1, 1, 8).reshape(2, 4))
      >>> program.input_dtype, program.ops[0].wide
      ('int16', False)
    """
    if dtype not in WEIGHT_BITS:
        raise ExportError(
            f"dtype {dtype!r} is no integer dtype; use one of {', '.join(WEIGHT_BITS)}"
        )
    x = calibration_inputs(calibration, graph.in_shape)
    graph = fold_center(graph)
    outputs = [np.asarray(y) for y in reference.run_all(graph, jnp.asarray(x))]
    tensor, kind = _input_tensor(outputs[0], input_dtype)
    start, ops, i = tensor, [], 0
    while i < len(graph.ops):
        op = graph.ops[i]
        fused = isinstance(op, Dense | Conv | Project | PatchProject) and is_relu(graph.ops, i + 1)
        gain = None if fused else _gain(graph.ops, i + 1, WEIGHT_BITS[dtype])
        out = outputs[i + 1 + fused]
        check_finite(out, op.name)
        seen = np.abs(out).reshape(-1, out.shape[-1]).max(0).astype(np.float64)
        context = _Context(WEIGHT_BITS[dtype], seen, fused, gain)
        lowered, tensor = LOWER[type(op)](op, tensor, context)
        ops += lowered
        i += 1 + fused
    if not ops:
        shape = graph.in_shape
        ops = [Reshaped(name="identity", in_shape=shape, out_shape=shape)]
    return Program(tuple(ops), kind, start.scale, tensor.scale)


def _input_tensor(x: np.ndarray, input_dtype: str | None) -> tuple[_Tensor, str]:
    seen = float(np.abs(x).max())
    bytes_fit = bool(x.min() >= 0 and x.max() <= 255 and (x == np.rint(x)).all())
    kind = input_dtype or ("uint8" if bytes_fit and seen > 1 else "int16")
    if kind == "uint8":
        if not bytes_fit:
            raise ExportError("input_dtype uint8 wants whole numbers from 0 to 255; use int16")
        return _Tensor(1.0, 255, seen), kind
    if kind != "int16":
        raise ExportError(f"input_dtype {kind!r} is not known; use uint8 or int16")
    return _Tensor(_scale(seen), -LOW, seen), kind


def _scale(seen: float) -> float:
    """The finest power of two of which 2^15 - 1 reach what was seen, with a margin."""
    if seen == 0.0:
        return 2.0**-15
    return 2.0 ** float(np.clip(math.ceil(math.log2(seen * MARGIN / HIGH)), -60, 60))


def fold_center(graph: Graph) -> Graph:
    """Moves what standardisation subtracts into the bias of the first product, if that is exact.

    With ``z = (x - c) f``, ``z W + b = (x f) W + (b - c f 1^T W)``; the same through a projection
    that comes between. Not through zero padding, which is zero after the subtraction.
    """
    ops = list(graph.ops)
    if not (isinstance(ops[0], Affine) and ops[0].center.ndim == 0 and ops[0].factor.ndim == 0):
        return graph
    i = 1
    while i < len(ops) and isinstance(ops[i], Flatten):
        i += 1
    shift = float(ops[0].center) * float(ops[0].factor)
    column: np.ndarray | None = None  # of ones, projected
    if i < len(ops) and _is_plain_project(ops[i]):
        project: Any = ops[i]
        entries = np.asarray(rk.materialize(project.sketch), np.float64)
        column, i = project.scale * entries.sum(0), i + 1
    if i >= len(ops) or not _takes_shift(ops[i]):
        return graph
    product: Any = ops[i]
    w = product.weight.values.astype(np.float64)
    w = w.reshape(-1, w.shape[-1])
    sums = w.sum(0) if column is None else column @ w
    bias = np.zeros(w.shape[-1]) if product.bias is None else product.bias
    ops[i] = dataclasses.replace(product, bias=(bias - shift * sums).astype(np.float32))
    ops[0] = dataclasses.replace(ops[0], center=np.zeros((), np.float32))
    return Graph(tuple(ops))


def _is_plain_project(op: Op) -> bool:
    return isinstance(op, Project) and not op.transpose and op.vectors == 1


def _takes_shift(op: Op) -> bool:
    if isinstance(op, Dense):
        return True
    return (
        isinstance(op, Conv)
        and all(pair == (0, 0) for pair in op.window.padding)
        and all(d == 1 for d in op.window.input_dilation)
    )


def _keeps_integers(weight: Weight, bits: int) -> bool:
    return weight.integers is not None and weight.bits <= bits


def _gain(ops: Sequence[Op], i: int, bits: int) -> np.ndarray | None:
    """Scales that belong to the inputs of the weight that comes next."""
    op = ops[i] if i < len(ops) else None
    if not isinstance(op, Dense | Conv):
        return None
    weight, groups = op.weight, op.window.groups if isinstance(op, Conv) else 1
    if weight.axis != -2 or not _keeps_integers(weight, bits):
        return None
    channels = op.in_shape[-1]
    repeat = channels // weight.scale.size if groups > 1 else 1
    return np.tile(weight.scale, repeat).astype(np.float64)


def _integers(weight: Weight, bits: int, scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Integers of at most so many bits, and their scales per output channel.

    Args:
      weight: the matrix.
      bits: of the integers.
      scaled: whether the input was multiplied by the scales of axis -2 already.
    """
    n = weight.values.shape[-1]
    if _keeps_integers(weight, bits) and (weight.axis != -2 or scaled):
        assert weight.integers is not None
        scale = np.ones(n) if weight.axis == -2 else np.broadcast_to(weight.scale, (n,))
        return weight.integers.astype(np.int64), scale.astype(np.float64)
    stored = quantize(jnp.asarray(weight.values), bits, -1)
    return np.asarray(stored.values, np.int64), np.asarray(stored.scale, np.float64)


def requant(factor: Any, bound: int, low: int = LOW, high: int = HIGH) -> tuple[Requant, int]:
    """The fixed-point form of ``y = acc * factor``, exact to as many bits as fit.

    Args:
      factor: real, one number or one per channel.
      bound: the accumulator's largest magnitude.
      low, high: limits of the output.

    Returns:
      The requantisation, and the output's largest magnitude.

    Raises:
      ExportError: if no shift serves.

    Example:
      >>> r, bound = requant(0.5, 1000)
      >>> (1000 * int(r.multiplier) + 2 ** (r.shift - 1)) >> r.shift, bound
      (500, 501)
    """
    factor = np.asarray(factor, np.float64)
    largest = float(np.abs(factor).max()) if factor.size else 0.0
    if not math.isfinite(largest):
        raise ExportError("a scale is not finite; calibrate with inputs as the network is used on")
    room = min(30, 61 - max(1, int(bound).bit_length()))
    if room < 8:
        raise ExportError(
            f"an accumulator can reach {bound:.3g}, too much for 64 bits; use fewer bits"
        )
    exponent = math.frexp(largest)[1] if largest > 0 else 0  # largest < 2^exponent
    shift = min(62, room - exponent)
    if shift < 1:
        raise ExportError(f"a scale of {largest:.3g} is too large; calibrate with more inputs")
    multiplier = np.rint(factor * 2.0**shift).astype(np.int64)
    if multiplier.size and (multiplier == multiplier.flat[0]).all():
        multiplier = multiplier.reshape(-1)[0]
    reach = (bound * int(np.abs(multiplier).max()) + 2 ** (shift - 1)) >> shift
    assert bound * int(np.abs(multiplier).max()) + 2 ** (shift - 1) < _LIMIT
    if reach >= 2**31 - 1:
        raise ExportError("an output is far beyond its scale; calibrate with more inputs")
    return Requant(np.asarray(multiplier), shift, low, high), min(-low if low else high, reach + 1)


def _finish(unit: np.ndarray, bound: int, context: _Context) -> tuple[Requant, _Tensor]:
    """From an accumulator with units per channel to the scale that calibration gives."""
    gain = np.ones_like(context.seen) if context.gain is None else context.gain
    seen = float((context.seen * gain).max())
    scale = _scale(seen)
    low = 0 if context.relu else LOW
    form, reach = requant(unit * gain / scale, bound, low)
    return form, _Tensor(scale, reach, seen, context.gain is not None)


def _bias(op: Any, unit: np.ndarray) -> np.ndarray:
    n = op.out_shape[-1]
    if op.bias is None:
        return np.zeros(n, np.int64)
    bias = np.rint(np.asarray(op.bias, np.float64) / np.broadcast_to(unit, (n,)))
    if np.abs(bias).max(initial=0.0) > 2.0**50:
        raise ExportError(
            f"{op.name}: a bias is {np.abs(op.bias).max():.3g}, too large for the scale of its "
            "inputs; calibrate with inputs as the network is used on"
        )
    return bias.astype(np.int64)


def _product(op: Dense | Conv, x: _Tensor, context: _Context) -> tuple[list[IntOp], _Tensor]:
    window = op.window if isinstance(op, Conv) else None
    weight, scales = _integers(op.weight, context.bits, scaled=x.gained)
    unit = x.scale * scales
    bias = _bias(op, unit)
    sums = np.abs(weight).reshape(-1, weight.shape[-1]).sum(0)
    bound = int((sums * x.bound + np.abs(bias)).max())
    form, out = _finish(unit, bound, context)
    return [
        Product(
            name=op.name, in_shape=op.in_shape, out_shape=op.out_shape, weight=weight,
            bits=context.bits, bias=bias, wide=bound >= 2**31, requant=form, window=window,
        )
    ], out  # fmt: skip


def entry(op: Project | PatchProject) -> float:
    """The magnitude of a sketch's entries times the scale of the projection.

    Raises:
      ExportError: for a sketch whose entries are more than signs.
    """
    magnitude = rk.family(op.sketch.kind).magnitude
    if magnitude is None:
        signed = [kind for kind, family in rk.FAMILIES.items() if family.magnitude]
        raise ExportError(
            f"{op.name}: a {op.sketch.kind} sketch has no integer form; export float32, or train "
            f"with sketch one of {', '.join(signed)}"
        )
    return magnitude(op.sketch) * op.scale


def _checked32(op: Op, bound: int) -> int:
    if bound >= 2**31:
        raise ExportError(
            f"{op.name}: sums of signs can reach {bound}, more than 32 bits hold; the layer is too "
            "wide for integers, export float32"
        )
    return bound


def _signs(op: Project, x: _Tensor, context: _Context) -> tuple[list[IntOp], _Tensor]:
    unit = np.asarray(x.scale * entry(op))
    bias = _bias(op, unit)
    matrix = np.abs(sign_matrix(op.sketch).astype(np.int64))
    # Within a Walsh-Hadamard transform every partial sum is one of some of the inputs' magnitudes.
    all_in = op.sketch.cols if op.transpose else op.sketch.rows
    reach = all_in if op.sketch.kind == "srht" else int(matrix.sum(int(op.transpose)).max())
    bound = _checked32(op, reach * x.bound + int(np.abs(bias).max(initial=0)))
    form, out = _finish(np.broadcast_to(unit, (op.out_shape[-1],)), bound, context)
    return [
        Signs(
            name=op.name, in_shape=op.in_shape, out_shape=op.out_shape, sketch=op.sketch,
            transpose=op.transpose, bias=bias, requant=form,
        )
    ], out  # fmt: skip


def _patch_signs(op: PatchProject, x: _Tensor, context: _Context) -> tuple[list[IntOp], _Tensor]:
    unit = x.scale * entry(op)
    reach = int(np.abs(sign_matrix(op.sketch).astype(np.int64)).sum(0).max())
    bound = _checked32(op, reach * x.bound)
    form, out = _finish(np.broadcast_to(unit, (op.out_shape[-1],)), bound, context)
    return [
        PatchSigns(
            name=op.name, in_shape=op.in_shape, out_shape=op.out_shape, sketch=op.sketch,
            requant=form, window=op.window,
        )
    ], out  # fmt: skip


def _affine(op: Affine, x: _Tensor, context: _Context) -> tuple[list[IntOp], _Tensor]:
    if op.factor.ndim == 0 and op.factor > 0:
        return _scalar_affine(op, x, context)
    center = np.asarray(op.center, np.float64)
    largest = x.bound + float(np.abs(center).max()) / x.scale + 1
    if largest >= 2.0**31:
        raise ExportError(f"{op.name}: a mean of {np.abs(center).max():.3g} is far from its inputs")
    left = 31 - math.frexp(largest)[1]  # as many more bits as the sum has room for
    unit = x.scale * 2.0**-left
    bias = np.rint(-center / unit).astype(np.int64)
    bound = (x.bound << left) + int(np.abs(bias).max())
    form, out = _finish(unit * np.broadcast_to(op.factor, context.seen.shape), bound, context)
    return [
        Shifted(
            name=op.name, in_shape=op.in_shape, out_shape=op.out_shape, left=left, bias=bias,
            requant=form,
        )
    ], out  # fmt: skip


def _scalar_affine(op: Affine, x: _Tensor, context: _Context) -> tuple[list[IntOp], _Tensor]:
    """A factor changes the scale alone; a centre is subtracted with as many more bits as fit."""
    factor, center = float(op.factor), float(op.center)
    seen = float(context.seen.max())
    if center == 0.0 and context.gain is None:
        return [], x._replace(scale=x.scale * factor, seen=seen)
    return _affine(
        dataclasses.replace(op, factor=np.broadcast_to(op.factor, context.seen.shape)), x, context
    )


def _activate(op: Activate, x: _Tensor, context: _Context) -> tuple[list[IntOp], _Tensor]:
    if op.kind == "relu":
        relu = Relu(name=op.name, in_shape=op.in_shape, out_shape=op.out_shape)
        return [relu], x._replace(seen=float(context.seen.max()))
    # The table's knots lie at every 2^TABLE_BITS-th integer; beyond the last one the input ends.
    knots = np.arange(TABLE_SIZE, dtype=np.float64) * 2**TABLE_BITS + LOW
    values = np.asarray(
        reference.ACTIVATIONS[op.kind]((knots * x.scale).astype(np.float32)), np.float64
    )
    reach = np.abs(values[np.abs(knots) <= x.bound + 2**TABLE_BITS]).max()
    scale = _scale(min(float(reach), float(context.seen.max())) or float(reach))
    table = np.clip(np.rint(values / scale), LOW, HIGH).astype(np.int16)
    lookup = Lookup(name=op.name, in_shape=op.in_shape, out_shape=op.out_shape, table=table)
    return [lookup], _Tensor(scale, -LOW, float(context.seen.max()))


def _pooled(op: Pool, x: _Tensor, context: _Context) -> tuple[list[IntOp], _Tensor]:
    count = math.prod(op.window)
    bound = x.bound * (1 if op.kind == "max" else count)
    if bound >= 2**31:
        raise ExportError(f"{op.name}: windows of {count} are too many to sum; pool in two steps")
    form, reach = requant(1.0 / count, bound)
    out = x if op.kind == "max" else x._replace(bound=min(x.bound + 1, reach))
    return [
        Pooled(
            name=op.name, in_shape=op.in_shape, out_shape=op.out_shape, kind=op.kind,
            window=op.window, requant=form,
        )
    ], out._replace(seen=float(context.seen.max()))  # fmt: skip


def _padded(op: Pad, x: _Tensor, context: _Context) -> tuple[list[IntOp], _Tensor]:
    return [
        Padded(
            name=op.name, in_shape=op.in_shape, out_shape=op.out_shape, mode=op.mode,
            widths=op.widths,
        )
    ], x  # fmt: skip


def _flatten(op: Flatten, x: _Tensor, context: _Context) -> tuple[list[IntOp], _Tensor]:
    return [Reshaped(name=op.name, in_shape=op.in_shape, out_shape=op.out_shape)], x


Lowering = Callable[[Any, _Tensor, _Context], tuple[list[IntOp], _Tensor]]

LOWER: dict[type[Op], Lowering] = {
    Affine: _affine,
    Dense: _product,
    Conv: _product,
    Project: _signs,
    PatchProject: _patch_signs,
    Activate: _activate,
    Pool: _pooled,
    Pad: _padded,
    Flatten: _flatten,
}
"""How each operation becomes integers: a new one is one line here."""

assert integer_levels(16) == HIGH
