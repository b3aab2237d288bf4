"""Fine-tuned models as a base model, a seed and a few numbers."""

from rosler_jax.delta._forms import FORMS
from rosler_jax.delta.file import (
    DeltaFileError,
    decode_delta,
    encode_delta,
    load_delta,
    save_delta,
)
from rosler_jax.delta.inject import DeltaParam, Injected, inject
from rosler_jax.delta.seeded_delta import SeededDelta, seeded_delta

__all__ = [
    "FORMS",
    "DeltaFileError",
    "DeltaParam",
    "Injected",
    "SeededDelta",
    "decode_delta",
    "encode_delta",
    "inject",
    "load_delta",
    "save_delta",
    "seeded_delta",
]
