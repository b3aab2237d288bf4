"""C statements that several operations' forward and backward passes share."""

from __future__ import annotations

from typing import Any

from rosler_jax.export.c.train.parameters import Parameters
from rosler_jax.export.c.unit import Unit, float32_literal


def add_bias(op: Any, parameters: Parameters, label: str) -> str:
    """The expression of an operation's bias, "0" for none."""
    if op.bias is None:
        return "0"
    return parameters.add_any(f"{label}_bias", op.bias.name, op.bias.values.ravel())


def finish(bias: str, scale: float = 1.0) -> str:
    """The declaration of a finish ``f`` that adds a bias to a scaled sum."""
    return f"const rosler_finish_f32 f = {{{bias}, {float32_literal(scale)}}};"


def finishes(bias: str, each: int, groups: int, scale: float = 1.0) -> str:
    """The declaration of ``f``; with groups an array of them, each with its part of the bias."""
    if groups == 1:
        return finish(bias, scale)
    ends = [
        f"{{{bias if bias == '0' else f'{bias} + {g * each}'}, {float32_literal(scale)}}}"
        for g in range(groups)
    ]
    return f"const rosler_finish_f32 f[{groups}] = {{{', '.join(ends)}}};"


def bias_gradient(unit: Unit, parameters: Parameters, bias: str, count: int, dy: str) -> str:
    """A statement that adds an error to a bias's gradient; none for a bias that stays."""
    if not bias.startswith("s->"):
        return ""
    unit.use("add_f32")
    return f" rosler_add_f32({dy}, {count}, rate, {parameters.gradient(bias)});"


def outer(unit: Unit, parameters: Parameters, weight: str, dy: str, n: int, x: str, m: int) -> str:
    """A statement that adds ``dy x^T`` to a weight's gradient; none for a weight that stays."""
    if not weight.startswith("s->"):
        return ""
    unit.use("outer_f32")
    return f" rosler_outer_f32({dy}, {n}, {x}, {m}, rate, {parameters.gradient(weight)});"


def error_below(unit: Unit, dy: str, m: int, n: int, weight: str, dx: str) -> str:
    """A statement that takes an error through a weight; none if nobody wants it."""
    if not dx:
        return ""
    unit.use("dense_back_f32")
    return f"rosler_dense_back_f32({dy}, {m}, {n}, {weight}, {dx});"
