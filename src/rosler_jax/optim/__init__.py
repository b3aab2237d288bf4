"""Update transformations for optax: aRes-BP for sketch layers, rank restriction for dense ones."""

from rosler_jax.optim.after_switch import after_switch
from rosler_jax.optim.ares_bp import AresBpState, ares_bp, default_parallel
from rosler_jax.optim.check_sketches import check_sketches
from rosler_jax.optim.extract_factors import LowRank, extract_factors, merge_factors
from rosler_jax.optim.restrict_rank import restrict_rank

__all__ = [
    "AresBpState",
    "LowRank",
    "after_switch",
    "ares_bp",
    "check_sketches",
    "default_parallel",
    "extract_factors",
    "merge_factors",
    "restrict_rank",
]
