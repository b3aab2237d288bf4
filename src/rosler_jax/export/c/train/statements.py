"""C statements that several operations' forward and backward passes share."""

from __future__ import annotations

from typing import Any

from rosler_jax.export.c.train.parameters import NO_PLACE, Parameters, Place
from rosler_jax.export.c.unit import Unit, float32_literal


def add_bias(op: Any, parameters: Parameters, label: str) -> Place:
    """The place of an operation's bias."""
    if op.bias is None:
        return NO_PLACE
    return parameters.add_any(f"{label}_bias", op.bias.name, op.bias.values.ravel())


def finish(bias: Place = NO_PLACE, scale: float = 1.0) -> str:
    """The declaration of a finish ``f`` that adds a bias to a scaled sum."""
    return f"const rosler_finish_f32 f = {{{bias.value}, {float32_literal(scale)}}};"


def finishes(bias: Place, each: int, groups: int, scale: float = 1.0) -> str:
    """The declaration of ``f``; with groups an array of them, each with its part of the bias."""
    if groups == 1:
        return finish(bias, scale)
    ends = [
        f"{{{bias.plus(str(g * each)).value}, {float32_literal(scale)}}}" for g in range(groups)
    ]
    return f"const rosler_finish_f32 f[{groups}] = {{{', '.join(ends)}}};"


def bias_gradient(unit: Unit, bias: Place, count: int, dy: str) -> str:
    """A statement that adds an error to a bias's gradient; none for a bias that stays."""
    if not bias.trains:
        return ""
    unit.use("add_f32")
    return f" rosler_add_f32({dy}, {count}, rate, {bias.gradient});"


def outer(unit: Unit, weight: Place, dy: str, n: int, x: str, m: int) -> str:
    """A statement that adds ``dy x^T`` to a weight's gradient; none for a weight that stays."""
    if not weight.trains:
        return ""
    unit.use("outer_f32")
    return f" rosler_outer_f32({dy}, {n}, {x}, {m}, rate, {weight.gradient});"


def error_below(unit: Unit, dy: str, m: int, n: int, weight: str, dx: str) -> str:
    """A statement that takes an error through a weight; none if nobody wants it."""
    if not dx:
        return ""
    unit.use("dense_back_f32")
    return f"rosler_dense_back_f32({dy}, {m}, {n}, {weight}, {dx});"
