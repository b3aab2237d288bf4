"""What goes into a network: examples of the right shape, and integers made of real numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rosler_jax.export._errors import ExportError

if TYPE_CHECKING:
    from jaxtyping import Integer, Shaped

    from rosler_jax.graph.weight import Shape


def examples(x: Any, shape: Shape, what: str = "inputs") -> Any:
    """Examples as ``(batch, *shape)``, a NumPy or a JAX array.

    Args:
      x: shape ``(batch, *shape)``, or as many numbers behind the batch axis.
      shape: of one example.
      what: for the message.

    Raises:
      ExportError: if the examples have another number of numbers.

    Example:
      >>> examples(np.zeros((2, 6)), (2, 3)).shape
      (2, 2, 3)
    """
    each, wanted = math.prod(x.shape[1:]), math.prod(shape)
    if x.ndim == 0 or each != wanted:
        raise ExportError(
            f"{what} of shape {x.shape} are no examples of shape {shape}: each has {each} numbers, "
            f"the network takes {wanted}"
        )
    return x.reshape(x.shape[0], *shape)


def calibration_inputs(
    calibration: Any, shape: Shape, dtype: str = "float32"
) -> Shaped[np.ndarray, "batch *features"]:
    """Calibration inputs as examples, of float32 or of the input's own dtype.

    Raises:
      ExportError: if there are none, or they are no numbers, no examples of the shape, or not all
        finite in float32.

    Example:
      >>> calibration_inputs([[1, 2]], (2,)).dtype
      dtype('float32')
    """
    try:
        given = np.asarray(calibration)
    except ValueError:  # lists of unlike lengths
        given = np.empty((), object)
    if given.dtype.kind not in "biuf":
        raise ExportError(f"calibration inputs of dtype {given.dtype}; expected real numbers")
    if given.size == 0:
        raise ExportError(f"no calibration inputs (shape {given.shape}); pass some hundreds")
    with np.errstate(over="ignore"):  # refused below
        x = examples(given, shape, "calibration inputs").astype(dtype)
    bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))
    if bad.size:
        raise ExportError(
            f"calibration inputs hold NaN or infinity: {bad.size} of {len(x)}, the first is number "
            f"{bad[0]}; leave those examples out"
        )
    return np.asarray(x)


def check_finite(outputs: Any, name: str) -> None:
    """Refuses an operation that makes numbers that are not finite of calibration inputs.

    Raises:
      ExportError: by its name.
    """
    if not np.isfinite(outputs).all():
        raise ExportError(
            f"{name}: its outputs for the calibration inputs are not finite; calibrate with inputs "
            "as the network is used on, or train it again"
        )


def quantized(x: Any, scale: float, dtype: Any) -> Integer[np.ndarray, "..."]:
    """Real numbers as integers that stand for ``q * scale``; what ``rosler_quantize`` computes.

    Rounded to the nearest, halves to even; cut off at the limits of the type; NaN becomes 0.

    Example:
      >>> quantized([0.75, 1.25, -1e9, np.nan], 0.5, "int16").tolist()
      [2, 2, -32768, 0]
    """
    limits = np.iinfo(dtype)
    q = np.clip(np.rint(np.asarray(x, np.float64) / scale), limits.min, limits.max)
    return np.asarray(np.where(np.isnan(q), 0, q).astype(dtype))
