"""Flax NNX sketch layers, and the functional core under them and under the Linen twins."""

from rosler_jax.nn import functional, lifts
from rosler_jax.nn._variables import SketchParam, SketchSeed, SketchState
from rosler_jax.nn.conv import SketchConv
from rosler_jax.nn.einsum import SketchEinsum, SketchLinearGeneral
from rosler_jax.nn.linear import SketchLinear
from rosler_jax.nn.sketched_dot_general import one_byte, sketch_policy, sketched_dot_general
from rosler_jax.nn.two_factor import TwoFactorLinear

__all__ = [
    "SketchConv",
    "SketchEinsum",
    "SketchLinear",
    "SketchLinearGeneral",
    "SketchParam",
    "SketchSeed",
    "SketchState",
    "TwoFactorLinear",
    "functional",
    "lifts",
    "one_byte",
    "sketch_policy",
    "sketched_dot_general",
]
