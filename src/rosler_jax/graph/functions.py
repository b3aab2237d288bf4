"""Elementwise functions by name: what ``Map`` computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Function(NamedTuple):
    """One line of the table.

    Attributes:
      arity: how many values it takes.
      compute: of them, and of the operation's ``numbers``.
      dtype: of the result; None for that of the (last) operand.
      numbers: how many numbers of the operation it takes behind its values.
    """

    arity: int
    compute: Callable[..., Any]
    dtype: str | None = None
    numbers: int = 0


def _bool(arity: int, compute: Callable[..., Any]) -> Function:
    return Function(arity, compute, "bool")


FUNCTIONS: dict[str, Function] = {
    "relu": Function(1, jax.nn.relu),
    "gelu": Function(1, jax.nn.gelu),
    "gelu_exact": Function(1, lambda x: jax.nn.gelu(x, approximate=False)),
    "tanh": Function(1, jnp.tanh),
    "sigmoid": Function(1, jax.nn.sigmoid),
    "silu": Function(1, jax.nn.silu),
    "hard_sigmoid": Function(1, jax.nn.hard_sigmoid),
    "hard_swish": Function(1, jax.nn.hard_silu),
    "softplus": Function(1, jax.nn.softplus),
    "elu": Function(1, jax.nn.elu),
    "clamp": Function(1, lambda x, low, high: jnp.clip(x, low, high), numbers=2),
    "neg": Function(1, jnp.negative),
    "abs": Function(1, jnp.abs),
    "sign": Function(1, jnp.sign),
    "floor": Function(1, jnp.floor),
    "ceil": Function(1, jnp.ceil),
    "round": Function(1, jnp.round),
    "exp": Function(1, jnp.exp),
    "expm1": Function(1, jnp.expm1),
    "log": Function(1, jnp.log),
    "log1p": Function(1, jnp.log1p),
    "sqrt": Function(1, jnp.sqrt),
    "rsqrt": Function(1, jax.lax.rsqrt),
    "cbrt": Function(1, jnp.cbrt),
    "sin": Function(1, jnp.sin),
    "cos": Function(1, jnp.cos),
    "erf": Function(1, jax.lax.erf),
    "erfc": Function(1, jax.lax.erfc),
    "power": Function(1, lambda x, y: jax.lax.integer_pow(x, int(y)), numbers=1),
    "not": Function(1, jnp.logical_not, "bool"),
    "isfinite": _bool(1, jnp.isfinite),
    "float32": Function(1, lambda x: jnp.asarray(x, jnp.float32), "float32"),
    "int32": Function(1, lambda x: jnp.asarray(x, jnp.int32), "int32"),
    "bool": _bool(1, lambda x: jnp.asarray(x, jnp.bool_)),
    "add": Function(2, jnp.add),
    "sub": Function(2, jnp.subtract),
    "mul": Function(2, jnp.multiply),
    "div": Function(2, jax.lax.div),
    "rem": Function(2, jax.lax.rem),
    "pow": Function(2, jnp.power),
    "max": Function(2, jnp.maximum),
    "min": Function(2, jnp.minimum),
    "atan2": Function(2, jnp.arctan2),
    "and": Function(2, jnp.logical_and),
    "or": Function(2, jnp.logical_or),
    "xor": Function(2, jnp.logical_xor),
    "eq": _bool(2, jnp.equal),
    "ne": _bool(2, jnp.not_equal),
    "lt": _bool(2, jnp.less),
    "le": _bool(2, jnp.less_equal),
    "gt": _bool(2, jnp.greater),
    "ge": _bool(2, jnp.greater_equal),
    "select": Function(3, lambda cond, yes, no: jnp.where(cond, yes, no)),
}
"""Every elementwise function by name: a new one is one line here, and one in each target."""


def result_dtype(function: str, operands: tuple[str, ...]) -> str:
    """The dtype that a function gives for operands of these.

    Example:
      >>> result_dtype("lt", ("int32", "int32")), result_dtype("add", ("int32", "int32"))
      ('bool', 'int32')
    """
    return FUNCTIONS[function].dtype or operands[-1]
