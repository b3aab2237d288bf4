"""Products, sketches and affine maps as integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import rosler_kernels as rk
from rosler_jax.export._errors import ExportError
from rosler_jax.export._lower_state import End, State, as_int16, checked32, end_of, finish
from rosler_jax.export.cosines import stages
from rosler_jax.export.integer import sign_matrix
from rosler_jax.export.intops import Cosines, PatchSigns, Product, Products, Shifted, Signs
from rosler_jax.graph import Weight
from rosler_jax.graph.kinds import Affine, Conv, Dense, MatMul, Op, PatchProject, Project
from rosler_jax.quantization import quantize


def _keeps_integers(weight: Weight, bits: int) -> bool:
    return weight.integers is not None and weight.bits <= bits


def _gain(value: int, state: State) -> np.ndarray | None:
    """Scales that belong to the inputs of the one weight that reads a value."""
    op = state.only_reader(value)
    if not isinstance(op, Dense | Conv) or state.activations != 16:
        return None
    weight, groups = op.weight, op.window.groups if isinstance(op, Conv) else 1
    if weight.axis != -2 or not _keeps_integers(weight, state.bits):
        return None
    repeat = op.in_shape[-1] // weight.scale.size if groups > 1 else 1
    return np.tile(weight.scale, repeat).astype(np.float64)


def _end(op: Op, state: State, small: bool = True) -> tuple[End, np.ndarray | None]:
    """What a product takes in, else the scales of the weight that reads it."""
    end = end_of(op, state, small)
    return end, _gain(end.value, state) if end.value == op.output else None


def _integers(weight: Weight, bits: int, scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Integers of at most so many bits, and their scales per output channel.

    Args:
      weight: the matrix.
      bits: of the integers.
      scaled: whether the input was multiplied by the scales of axis -2 already.
    """
    n = weight.values.shape[-1]
    if _keeps_integers(weight, bits) and (weight.axis in (-1, None) or scaled):
        assert weight.integers is not None
        scale = np.ones(n) if weight.axis == -2 else np.broadcast_to(weight.scale, (n,))
        return weight.integers.astype(np.int64), scale.astype(np.float64)
    stored = quantize(jnp.asarray(weight.values), bits, -1)
    return np.asarray(stored.values, np.int64), np.asarray(stored.scale, np.float64)


def _bias(op: Any, unit: np.ndarray, n: int) -> np.ndarray:
    if op.bias is None:
        return np.zeros(n, np.int64)
    given = op.bias.values.astype(np.float64).ravel()
    bias = np.rint(np.tile(given, n // given.size) / np.broadcast_to(unit, (n,)))
    if np.abs(bias).max(initial=0.0) > 2.0**50:
        raise ExportError(
            f"{op.name}: a bias is {np.abs(given).max():.3g}, too large for the scale of its "
            "inputs; calibrate with inputs as the network is used on"
        )
    return bias.astype(np.int64)


def _product(op: Dense | Conv, state: State) -> None:
    value, x = as_int16(state, op.inputs[0], op.name, "int8", "uint8")
    end, gain = _end(op, state)
    weight, scales = _integers(op.weight, state.bits, scaled=x.gained)
    unit = x.scale * scales
    bias = _bias(op, unit, weight.shape[-1])
    flat = weight.reshape(-1, weight.shape[-1])
    sums = np.abs(flat).sum(0)
    bound = int((sums * x.bound + np.abs(bias)).max())
    form, number = finish(unit, bound, op, state, gain, end)
    reach = int((sums * (x.bound + abs(x.zero)) + np.abs(bias) + sums * abs(x.zero)).max())
    state.emit(
        Product, op, [value], number, end.value, weight=weight, bits=state.bits,
        bias=bias - x.zero * flat.sum(0), wide=reach >= 2**31, requant=form, fill=x.zero,
        window=op.window if isinstance(op, Conv) else None,
    )  # fmt: skip


def entry(op: Project | PatchProject) -> float:
    """The magnitude of a sketch's entries times the scale of the projection.

    Raises:
      ExportError: for a sketch whose entries are more than signs.

    Example:
      >>> from rosler_jax.graph import trace
      >>> sketch = rk.rademacher(0, 16, 4)  # of entries +-1/2
      >>> (op,) = trace(lambda x: rk.project(x, sketch), np.ones((1, 16))).ops
      >>> entry(op)
      0.5
    """
    magnitude = rk.family(op.sketch.kind).magnitude
    if magnitude is None:
        signed = [kind for kind, family in rk.FAMILIES.items() if family.magnitude]
        raise ExportError(
            f"{op.name}: a {op.sketch.kind} sketch has no integer form; export float32, or train "
            f"with sketch one of {', '.join(signed)}"
        )
    return magnitude(op.sketch) * op.scale


def _signs(op: Project, state: State) -> None:
    value, x = as_int16(state, op.inputs[0], op.name)
    end, gain = _end(op, state, small=False)
    more: dict[str, Any] = {}
    if op.sketch.kind == "dct":
        more["stages"], reach = stages(op.sketch, op.transpose, x.bound)
        of, scale = more["stages"], rk.family("dct").scale
        assert scale is not None
        unit = x.scale * op.scale * float(scale(op.sketch)) * 2.0**-of.bits
    else:
        unit = x.scale * entry(op)
        reach = _reach(op) * x.bound
    channels = op.out_shape[-1] if op.bias is None else op.bias.values.size
    channels = max(channels, 1 if gain is None else gain.size)
    bias = _bias(op, np.asarray(unit), channels)
    bound = checked32(op, reach + int(np.abs(bias).max(initial=0)))
    form, number = finish(unit, bound, op, state, gain, end, small=False)
    state.emit(
        Cosines if more else Signs, op, [value], number, end.value, sketch=op.sketch,
        transpose=op.transpose, bias=bias, requant=form, **more,
    )  # fmt: skip


def _reach(op: Project) -> int:
    """How many inputs a sum of signs takes at most."""
    if op.sketch.kind == "srht":
        # Within the transform every partial sum is one of some of the inputs' magnitudes.
        return op.sketch.cols if op.transpose else op.sketch.rows
    return int(np.abs(sign_matrix(op.sketch).astype(np.int64)).sum(int(op.transpose)).max())


def _patch_signs(op: PatchProject, state: State) -> None:
    unit = entry(op)
    value, x = as_int16(state, op.inputs[0], op.name, "uint8")
    end, gain = _end(op, state, small=False)
    reach = int(np.abs(sign_matrix(op.sketch).astype(np.int64)).sum(0).max())
    bound = checked32(op, reach * x.bound)
    form, number = finish(x.scale * unit, bound, op, state, gain, end, small=False)
    state.emit(
        PatchSigns, op, [value], number, end.value, sketch=op.sketch, requant=form,
        window=op.window,
    )  # fmt: skip


def _matmul(op: MatMul, state: State) -> None:
    (x, a), (y, b) = (state.read(k) for k in op.inputs)
    end = end_of(op, state)
    bound = op.in_shape[-1] * a.bound * b.bound
    form, number = finish(a.scale * b.scale, bound, op, state, None, end)
    state.emit(
        Products, op, [x, y], number, end.value, transpose=op.transpose, zeros=(a.zero, b.zero),
        requant=form,
    )  # fmt: skip


def _affine(op: Affine, state: State) -> None:
    scalar = op.center.ndim == 0 and op.factor.ndim == 0 and op.factor > 0
    x = state.read(op.inputs[0])[1]
    gain = _gain(op.output, state)
    if scalar and op.center == 0 and gain is None:
        renamed = x._replace(scale=x.scale * float(op.factor))
        state.rename(op.output, op.inputs[0], renamed)
        return
    shifted(op, state, np.asarray(op.center, np.float64), np.asarray(op.factor, np.float64), gain)


def shifted(
    op: Op, state: State, center: np.ndarray, factor: np.ndarray, gain: np.ndarray | None = None
) -> None:
    """``(x - center) * factor``, with as many more bits as a sum has room for."""
    value, x = state.read(op.inputs[0])
    largest = x.bound + float(np.abs(center).max()) / x.scale + abs(x.zero) + 1
    if largest >= 2.0**31:
        raise ExportError(f"{op.name}: a mean of {np.abs(center).max():.3g} is far from its inputs")
    left = 31 - math.frexp(largest)[1]
    unit = x.scale * 2.0**-left
    bias = np.rint(-center / unit).astype(np.int64)
    bound = (x.bound << left) + int(np.abs(bias).max())
    channels = op.out_shape[-1] if op.out_shape else 1
    wide = np.broadcast_to(factor, (channels,))
    form, number = finish(unit * wide, bound, op, state, gain, End(op.output))
    state.emit(
        Shifted, op, [value], number, op.output, left=left, bias=bias - (x.zero << left),
        requant=form,
    )  # fmt: skip


LOWER_PRODUCTS: dict[type[Op], Callable[[Any, State], None]] = {
    Affine: _affine,
    Dense: _product,
    Conv: _product,
    Project: _signs,
    PatchProject: _patch_signs,
    MatMul: _matmul,
}
"""How each of these becomes integers."""
