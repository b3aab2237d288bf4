r"""Fixed-point training, specified once: what the C code computes, bit for bit, as pure JAX.

Activations are 16-bit integers q that stand for ``q 2^-f``, f fixed for each tensor. A weight that
trains is a 32-bit integer w; products take its upper half, ``(w + 2^15) >> 16``. Sums are exact, in
64 bits; coming back from a sum everything is rounded to the nearest (half up) and saturates.

Errors are *block floating point*: 16-bit integers d with one exponent e for the vector, ``d 2^-e``.
After every product the vector is scaled by the power of two that fills the 16 bits, so that errors
do not vanish however small they get. A gradient ``x_i d_j`` is shifted to the velocity's fixed
fraction, rounded to the nearest and added, saturating at 32 bits. With k the shift that the caller
passes, the learning rate is ``2^-k``::

    v <- (momentum v + 2^14) >> 15
    v <- v + ((x d + 2^(s - 1)) >> s)      for each example, s = f + e - f_v
    w <- w - ((v + 2^(t - 1)) >> t)        t = f_v + k - f_w

No stochastic rounding: the velocity has about 24 bits after the point and the weights 30, far below
a gradient that matters.

Softmax is a table of ``exp(-z)`` for z from 0 to 16, read with linear interpolation. The error of
the mean square is ``z = clip(y - target)``, targets in the output's own units; with ``N`` outputs
times examples, a the bits of N, and the share ``p = 2^(14 + a) / N`` rounded down after adding a
half, the gradient is ``z p`` with exponent ``f + 13 + a``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rosler_kernels as rk
from rosler_jax.export import integer
from rosler_jax.export.c.train.options import Training
from rosler_jax.export.inputs import quantized
from rosler_jax.export.integer import HIGH, LOW, Program, sign_matrix

if TYPE_CHECKING:
    from jaxtyping import Array, Int16, Int32, Int64, Integer

WEIGHT_LIMIT = 2**31 - 2**15 - 1
"""Largest magnitude of a weight that trains: its upper half can be rounded."""
ONE = 2**15
TABLE_STEPS = 5  # bits: knots of the table lie 2^-5 apart
TABLE_SIZE = 16 * 2**TABLE_STEPS + 1
LONGEST_SHIFT = 30
"""A gradient that would be shifted further is zero."""


class Trainable(NamedTuple):
    """A parameter.

    Attributes:
      name: ``"2/c"``.
      values: 32-bit integers; 16-bit ones of a weight that does not train.
      trains: whether it trains.
      fraction: bits after the point.
      velocity_fraction: of its velocity.
    """

    name: str
    values: Integer[np.ndarray, "..."]
    trains: bool
    fraction: int
    velocity_fraction: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FixedOp:
    """What all operations have: sizes of a vector before and after, and bits after the point."""

    name: str
    inputs: int
    outputs: int
    in_fraction: int
    fraction: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Biased(FixedOp):
    """``y = clip((acc + b 2^up + 2^(shift - 1)) >> shift)``."""

    bias: Trainable | None
    up: int
    shift: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FixedProduct(Biased):
    """``acc = x W``.

    Attributes:
      weight: the matrix, ``(inputs, outputs)``.
      weight_fraction: of its 16 bits.
      pre: shift of the error's sums, to 32 bits.
    """

    weight: Trainable
    weight_fraction: int
    pre: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FixedProject(Biased):
    """``acc = multiplier (x S)``, S the signs of a sketch or their transpose.

    Backward, with M the ``mantissa``: ``t = ((d S^T) M + 2^14) >> 15``, ``e <- e - exponent``.
    """

    sketch: rk.Sketch
    transpose: bool
    multiplier: int
    mantissa: int
    exponent: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FixedRelu(FixedOp):
    """``max(x, 0)``."""


@dataclasses.dataclass(frozen=True, eq=False)
class FixedPlan:
    """A network in fixed point that trains.

    Attributes:
      prefix: integer inference of what comes before the first parameter that trains.
      ops: the rest.
      training: the options.
    """

    prefix: Program
    ops: tuple[FixedOp, ...]
    training: Training

    @property
    def momentum(self) -> int:
        """With 15 bits after the point."""
        return round(self.training.momentum * ONE)

    @property
    def outputs(self) -> int:
        """How many numbers come out."""
        return self.ops[-1].outputs

    def quantize_target(self, targets: Any) -> Int16[np.ndarray, "*batch outputs"]:
        """Real targets of the mean square as the integers that go in, saturated."""
        return quantized(targets, 2.0 ** -self.ops[-1].fraction, np.int16)

    def parameters(self) -> list[Trainable]:
        """What trains, in order."""
        found = []
        for op in self.ops:
            for name in ("weight", "bias"):
                parameter = getattr(op, name, None)
                if parameter is not None and parameter.trains:
                    found.append(parameter)
        return found


Values = Mapping[str, Any]


class FixedState(NamedTuple):
    """Weights and velocities by name, 32-bit integers."""

    weights: dict[str, Any]
    velocity: dict[str, Any]


def exp_table() -> Integer[np.ndarray, "513"]:
    """``exp(-k / 32)`` with 15 bits after the point.

    Example:
      >>> exp_table()[[0, 32, 512]].tolist()
      [32768, 12055, 0]
    """
    return np.rint(ONE * np.exp(-np.arange(TABLE_SIZE) / 2.0**TABLE_STEPS)).astype(np.int64)


def _rounded(x: Any, shift: Any) -> Array:
    """``x 2^-shift`` to the nearest, for a shift of either sign."""
    down, up = jnp.maximum(shift, 0), jnp.maximum(-shift, 0)
    half = jnp.where(down > 0, jnp.int64(1) << jnp.maximum(down - 1, 0), 0)
    return jnp.where(down > 0, (x + half) >> down, x << up)


def _clip16(x: Array) -> Array:
    return jnp.clip(x, LOW, HIGH)


def _half(parameter: Trainable, values: Values) -> Array:
    """The 16 bits of a weight that products take."""
    if not parameter.trains:
        return jnp.asarray(parameter.values, jnp.int64)
    return (values[parameter.name].astype(jnp.int64) + 2**15) >> 16


def _add_bias(op: Biased, acc: Array, values: Values) -> Array:
    if op.bias is not None:
        bias = values[op.bias.name] if op.bias.trains else op.bias.values
        acc = acc + (jnp.asarray(bias, jnp.int64) << op.up)
    return _clip16(_rounded(acc, op.shift))


def _signs(op: FixedProject) -> np.ndarray:
    signs = sign_matrix(op.sketch).astype(np.int64)
    return signs.T if op.transpose else signs


FORWARD: dict[type[FixedOp], Callable[[Any, Values, Array], Array]] = {
    FixedProduct: lambda op, values, x: _add_bias(op, x @ _half(op.weight, values), values),
    FixedProject: lambda op, values, x: _add_bias(op, (x @ _signs(op)) * op.multiplier, values),
    FixedRelu: lambda op, values, x: jnp.maximum(x, 0),
}
"""What each operation computes from a vector of 64-bit integers."""


def normalise(t: Int64[Array, "n"], e: Any) -> tuple[Int64[Array, "n"], Any]:
    """Scales an error so that its largest magnitude fills 16 bits; and the exponent then.

    Example:
      >>> with jax.enable_x64(True):
      ...     d, e = normalise(jnp.asarray([3 << 20, -5]), 30)
      ...     d.tolist(), int(e)
      ([24576, 0], 23)
    """
    most = jnp.max(jnp.abs(t))
    shift = jnp.where(most > 0, 64 - jax.lax.clz(most) - 15, 0)
    return _clip16(_rounded(t, shift)), e - shift


def _product_back(op: FixedProduct, values: Values, d: Array, e: Any) -> tuple[Array, Any]:
    t = _rounded(_half(op.weight, values) @ d, jnp.int64(op.pre))
    return normalise(t, e + op.weight_fraction - op.pre)


def _project_back(op: FixedProject, values: Values, d: Array, e: Any) -> tuple[Array, Any]:
    t = _rounded((_signs(op) @ d) * op.mantissa, jnp.int64(15))
    return normalise(t, e - op.exponent)


BACKWARD: dict[type[FixedOp], Callable[[Any, Values, Array, Any], tuple[Array, Any]]] = {
    FixedProduct: _product_back,
    FixedProject: _project_back,
}
"""How an error and its exponent pass each operation but relu, which needs its output."""


def _accumulate(parameter: Trainable, velocity: Any, gradient: Array, fraction: Any) -> Array:
    """Adds a gradient with so many bits after the point to the velocity."""
    shift = fraction - parameter.velocity_fraction
    step = _rounded(gradient, jnp.clip(shift, -LONGEST_SHIFT, LONGEST_SHIFT))
    step = jnp.where(shift > LONGEST_SHIFT, 0, step)
    return jnp.clip(velocity.astype(jnp.int64) + step, -(2**31), 2**31 - 1).astype(jnp.int32)


def _softmax(y: Int64[Array, "n"], fraction: int) -> Int64[Array, "n"]:
    """Probabilities with 15 bits after the point."""
    table = jnp.asarray(exp_table())
    z = jnp.max(y) - y
    bits = fraction - TABLE_STEPS
    k = jnp.minimum(z >> bits, TABLE_SIZE - 1)
    f = z & ((1 << bits) - 1)
    following = table[jnp.minimum(k + 1, TABLE_SIZE - 1)]
    e = table[k] - (((table[k] - following) * f + (1 << (bits - 1))) >> bits)
    e = jnp.where(z >> bits >= TABLE_SIZE - 1, 0, e)
    total = jnp.sum(e)
    return (e * ONE + total // 2) // total


class _Share(NamedTuple):
    """The part of an example, and of each of its outputs, in the mean: ``value 2^-bits``."""

    value: int
    bits: int


def _cross_entropy(y: Array, label: Any, fraction: int, share: _Share) -> tuple[Array, Any, Array]:
    """The error, its exponent, and how much the label's probability lacks."""
    p = _softmax(y, fraction)
    target = jnp.where(jnp.arange(p.size) == label, ONE, 0)
    return *normalise((p - target) * share.value, jnp.int64(15 + share.bits)), ONE - p[label]


def _squares(y: Array, target: Array, fraction: int, share: _Share) -> tuple[Array, Any, Array]:
    """The error, its exponent, and the mean square with ``2 fraction`` bits after the point."""
    z = _clip16(y - target.astype(jnp.int64))
    d, e = normalise(z * share.value, jnp.int64(fraction + share.bits - 1))
    return d, e, (jnp.sum(z * z) + z.size // 2) // z.size


LOSSES = {"cross_entropy": _cross_entropy, "mse": _squares}
"""Error, exponent and loss from outputs and a label, or targets."""


def _share(plan: FixedPlan, count: int) -> _Share:
    if plan.training.loss == "cross_entropy":
        return _Share((ONE + count // 2) // count, 15)
    number = count * plan.outputs
    bits = 14 + number.bit_length()
    return _Share((2**bits + number // 2) // number, bits)


def _example(
    plan: FixedPlan, weights: Values, velocity: Values, x: Array, target: Any, share: _Share
) -> tuple[dict[str, Array], Array]:
    """One example's gradient, added to the velocity; and its loss."""
    outputs = [x]
    for each in plan.ops:
        outputs.append(FORWARD[type(each)](each, weights, outputs[-1]))
    d, e, loss = LOSSES[plan.training.loss](outputs[-1], target, plan.ops[-1].fraction, share)
    velocity = dict(velocity)
    for i in reversed(range(len(plan.ops))):
        op: Any = plan.ops[i]
        if isinstance(op, FixedRelu):
            d = jnp.where(outputs[i + 1] > 0, d, 0)
            continue
        if op.bias is not None and op.bias.trains:
            velocity[op.bias.name] = _accumulate(op.bias, velocity[op.bias.name], d, e)
        weight = getattr(op, "weight", None)
        if weight is not None and weight.trains:
            gradient = outputs[i][:, None] * d[None, :]
            velocity[weight.name] = _accumulate(
                weight, velocity[weight.name], gradient, e + op.in_fraction
            )
        if i:
            d, e = BACKWARD[type(op)](op, weights, d, e)
    return velocity, loss


def _before(plan: FixedPlan, x: Array) -> Array:
    """What reaches the operations that train, a row for each example."""
    prefix = plan.prefix
    (h,) = jax.vmap(lambda q: integer.forward(prefix, q))(x.reshape(-1, *prefix.in_shape))
    return h.reshape(len(x), -1)


def fixed_step(
    plan: FixedPlan, state: FixedState, x: Any, targets: Any, shift: Any
) -> tuple[FixedState, Int32[Array, ""]]:
    """The specification of a step; pure, to be traced with 64-bit integers enabled.

    Args:
      plan: the network.
      state: weights and velocities.
      x: int16 inputs, ``(examples, numbers)``.
      targets: labels of these; or their int16 targets, ``(examples, outputs)``.
      shift: k of the learning rate ``2^-k``.
    """
    h = _before(plan, x)
    share = _share(plan, len(x))
    decayed = {
        name: _rounded(v.astype(jnp.int64) * plan.momentum, jnp.int64(15)).astype(jnp.int32)
        for name, v in state.velocity.items()
    }

    def add(velocity: Any, example: Any) -> tuple[Any, Any]:
        return _example(plan, state.weights, velocity, example[0], example[1], share)

    velocity, losses = jax.lax.scan(add, decayed, (h, jnp.asarray(targets)))
    weights = {}
    for p in plan.parameters():
        down = p.velocity_fraction + shift - p.fraction
        step = _rounded(velocity[p.name].astype(jnp.int64), down)
        new = state.weights[p.name].astype(jnp.int64) - step
        weights[p.name] = jnp.clip(new, -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(jnp.int32)
    return FixedState(weights, velocity), (jnp.sum(losses) // len(x)).astype(jnp.int32)


def begin_fixed(plan: FixedPlan) -> FixedState:
    """The state that training starts from."""
    weights = {p.name: np.asarray(p.values, np.int32) for p in plan.parameters()}
    return FixedState(weights, {name: np.zeros_like(w) for name, w in weights.items()})


def train_fixed(
    plan: FixedPlan, state: FixedState, x: Any, targets: Any, shift: int
) -> tuple[FixedState, int]:
    """A step of fixed-point training; what the C code gives, bit for bit.

    Args:
      plan: the network.
      state: from :func:`begin_fixed` or the step before.
      x: int16 inputs, ``(examples, numbers)``; see :meth:`Program.quantize_input` of the prefix.
      targets: labels of these; or their int16 targets, ``(examples, outputs)``, see
        :meth:`FixedPlan.quantize_target`.
      shift: k of the learning rate ``2^-k``, 0 to 30.

    Returns:
      The new state; and the loss. That of labels is one minus their mean probability, 15 bits after
      the point; that of targets the mean square, with twice the bits that outputs have.
    """
    with jax.enable_x64(True):
        new, loss = _compiled(plan)(state, np.asarray(x, np.int16), np.asarray(targets), shift)
        return jax.tree.map(np.asarray, new), int(loss)


@functools.lru_cache(maxsize=16)
def _compiled(plan: FixedPlan) -> Callable[..., Any]:
    return jax.jit(lambda state, x, targets, shift: fixed_step(plan, state, x, targets, shift))


def predict_fixed(plan: FixedPlan, state: FixedState, x: Any) -> Int16[np.ndarray, "batch *out"]:
    """Outputs of a batch of int16 inputs; what the C code gives, bit for bit."""
    with jax.enable_x64(True):
        y = _before(plan, jnp.asarray(np.asarray(x, np.int16)))
        for op in plan.ops:
            y = FORWARD[type(op)](op, state.weights, y)
        return np.asarray(y).astype(np.int16)
