"""From a trained model file to what runs elsewhere: C, ONNX, TFLite, StableHLO.

from rosler_jax.export import export
export("runs/compact", "edge", target="c", dtype="int16", calibration=inputs)
"""

from rosler_jax.export._errors import ExportError
from rosler_jax.export.api import DTYPES, TARGETS, Exported, Training, calibration_of, export
from rosler_jax.export.integer import Program, run_integer
from rosler_jax.export.lowering import lower

__all__ = [
    "DTYPES",
    "TARGETS",
    "ExportError",
    "Exported",
    "Program",
    "Training",
    "calibration_of",
    "export",
    "lower",
    "run_integer",
]
