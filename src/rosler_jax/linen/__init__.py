"""Flax Linen twins of the NNX sketch layers, over the same functions.

Factors are in the collection ``"params"``, under the names that the NNX layers give them; the seeds
of the sketches are in ``"sketch"``, made at ``init`` and passed unchanged to ``apply``.
"""

from rosler_jax.linen.conv import SketchConv
from rosler_jax.linen.dense import SketchDense
from rosler_jax.linen.finish import finish
from rosler_jax.linen.sketchify import Sketched, matrix_views, sketchify

__all__ = ["SketchConv", "SketchDense", "Sketched", "finish", "matrix_views", "sketchify"]
