"""Update transformations for optax: aRes-BP, rank restriction, and optimisers in sketch space."""

from rosler_jax.optim.after_switch import after_switch
from rosler_jax.optim.ares_bp import AresBpState, ares_bp, default_parallel
from rosler_jax.optim.check_sketches import check_sketches
from rosler_jax.optim.compact_state import compact_state
from rosler_jax.optim.extract_factors import LowRank, extract_factors, merge_factors
from rosler_jax.optim.restrict_rank import restrict_rank
from rosler_jax.optim.sketched import SketchedState, scale_by_sketched
from rosler_jax.optim.sketched_adam import scale_by_sketched_adam, sketched_adamw

__all__ = [
    "AresBpState",
    "LowRank",
    "SketchedState",
    "after_switch",
    "ares_bp",
    "check_sketches",
    "compact_state",
    "default_parallel",
    "extract_factors",
    "merge_factors",
    "restrict_rank",
    "scale_by_sketched",
    "scale_by_sketched_adam",
    "sketched_adamw",
]
