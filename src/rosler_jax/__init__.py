"""Random sketch learning in JAX and Flax: compact networks, trained directly.

A large layer `y = x W + b` is held as thin factors or as a seeded core, never as the dense `W`. The
method is our reading of Li, Chen, Liu et al., "Random sketch learning for deep neural networks in
edge computing", Nat. Comput. Sci. 1, 221-228 (2021), doi 10.1038/s43588-021-00039-6.
"""

from __future__ import annotations

from rosler_jax import factors, initializers, models, nn, optim, quantization
from rosler_jax._layer_views import matrix_views
from rosler_jax._version import __version__
from rosler_jax.delta import load_delta, save_delta, seeded_delta
from rosler_jax.factors import SeededFactors, SketchFactors, TwoFactors
from rosler_jax.finish import finish
from rosler_jax.graph import Graph, trace
from rosler_jax.graph.save import load, save
from rosler_jax.nn import (
    SketchConv,
    SketchEinsum,
    SketchLinear,
    SketchLinearGeneral,
    SketchParam,
    SketchSeed,
    SketchState,
    TwoFactorLinear,
)
from rosler_jax.optim import (
    ares_bp,
    compact_state,
    extract_factors,
    restrict_rank,
    scale_by_sketched,
    scale_by_sketched_adam,
    sketched_adamw,
)
from rosler_jax.rate import rate_coded
from rosler_jax.size import size_report
from rosler_jax.sketchify import Rule, sketchify
from rosler_jax.views import MatrixView

__all__ = [
    "Graph",
    "MatrixView",
    "Rule",
    "SeededFactors",
    "SketchConv",
    "SketchEinsum",
    "SketchFactors",
    "SketchLinear",
    "SketchLinearGeneral",
    "SketchParam",
    "SketchSeed",
    "SketchState",
    "TwoFactorLinear",
    "TwoFactors",
    "__version__",
    "ares_bp",
    "compact_state",
    "extract_factors",
    "factors",
    "finish",
    "initializers",
    "load",
    "load_delta",
    "matrix_views",
    "models",
    "nn",
    "optim",
    "quantization",
    "rate_coded",
    "restrict_rank",
    "save",
    "save_delta",
    "scale_by_sketched",
    "scale_by_sketched_adam",
    "seeded_delta",
    "size_report",
    "sketched_adamw",
    "sketchify",
    "trace",
]
