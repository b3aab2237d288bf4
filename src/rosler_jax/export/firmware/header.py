"""Reads what an exported model says about itself, and brings inputs into its form."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rosler_jax.export.c.naming import DEFAULT, renamed
from rosler_jax.export.inputs import quantized

HEADER = "rosler_model.h"
SOURCE = "rosler_model.c"
INPUT_TYPES = ("float32", "int16", "uint8", "int8", "int32")
OUTPUT_TYPES = ("float32", "int16", "int8", "int32")
_MACRO = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+(.+?)[ \t]*(?:/\*.*)?$", re.M)
_USED = (
    *("rosler_init", "rosler_predict", "rosler_arena", "rosler_input", "rosler_output"),
    *("ROSLER_INPUT_SIZE", "ROSLER_OUTPUT_SIZE"),
)  # by the drivers
_NUMBER = re.compile(r"\(?\s*(\d+)[uUlL]*\s*\)?$")


class ModelHeader(NamedTuple):
    """The sizes and types in ``rosler_model.h``, or what it is called.

    Attributes:
      input_size, output_size: numbers in one input and in one output.
      input_type, output_type: NumPy types of these.
      arena_bytes: working memory of the model.
      model_bytes: of its stored numbers, as the exporter counts them.
      input_scale, output_scale: of an integer model; what one stands for.
      name: what its names begin with.
      decoded_bytes: of weights that it decodes at the start.

    Example:
      >>> header = ModelHeader(2, 1, np.dtype("int16"), np.dtype("int16"), 8, 8, name="gestures")
      >>> header.source, header.defines["rosler_predict"]
      ('gestures_model.c', 'gestures_predict')
    """

    input_size: int
    output_size: int
    input_type: np.dtype[Any]
    output_type: np.dtype[Any]
    arena_bytes: int
    model_bytes: int
    input_scale: float = 1.0
    output_scale: float = 1.0
    name: str = DEFAULT
    decoded_bytes: int = 0

    @property
    def source(self) -> str:
        """The name of its C file."""
        return renamed(SOURCE, self.name)

    @property
    def defines(self) -> dict[str, str]:
        """Macros by which code for the names ``rosler_...`` uses it."""
        start = {"ROSLER_START": "1"} if self.decoded_bytes else {}
        if self.name == DEFAULT:
            return start
        return (
            start
            | {"ROSLER_HEADER": f'"{renamed(HEADER, self.name)}"'}
            | {used: renamed(used, self.name) for used in _USED}
        )


def read_header(folder: str | os.PathLike[str]) -> ModelHeader:
    """Reads the header of an exported model.

    Raises:
      ValueError: if the folder holds no exported model, or a macro is missing or senseless.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> from rosler_jax.export import export
      >>> from rosler_jax.graph import trace
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     done = export(trace(jnp.negative, np.ones((1, 4))), folder, board=None)
      ...     header = read_header(folder)
      >>> header.input_size, header.input_type.name, header.model_bytes
      (4, 'float32', 0)
    """
    headers = [h for h in Path(folder).glob("*_model.h") if h.with_suffix(".c").is_file()]
    names = sorted(header.name[: -len("_model.h")] for header in headers)
    if len(names) > 1:
        raise ValueError(
            f"{folder} holds several models ({', '.join(names)}); export each to a folder of its "
            "own"
        )
    name = names[0] if names else DEFAULT
    path = Path(folder) / renamed(HEADER, name)
    for needed in (path, Path(folder) / renamed(SOURCE, name)):
        if not needed.is_file():
            raise ValueError(f"{needed}: no such file; expected a folder of `rosler export`")
    prefix = f"{name.upper()}_"
    macros = {
        f"ROSLER_{macro.removeprefix(prefix)}": value
        for macro, value in _MACRO.findall(path.read_text(encoding="utf-8", errors="replace"))
    }

    def number(name: str, default: str = "") -> int:
        match = _NUMBER.match(macros.get(name, default))
        if match is None:
            raise ValueError(f"{path}: {name} is {macros.get(name)!r}, not a number; export again")
        return int(match[1])

    def scale(name: str) -> float:
        text = macros.get(name, "1.0").rstrip("fF")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ValueError(f"{path}: {name} is {text!r}, not a positive number; export again")
        return value

    def dtype(name: str, known: tuple[str, ...]) -> np.dtype[Any]:
        text = macros.get(name, "").strip('"')
        if text not in known:
            raise ValueError(f"{path}: {name} is {text!r}, expected one of {', '.join(known)}")
        return np.dtype(text).newbyteorder("<")

    return ModelHeader(
        number("ROSLER_INPUT_SIZE"),
        number("ROSLER_OUTPUT_SIZE"),
        dtype("ROSLER_INPUT_TYPE", INPUT_TYPES),
        dtype("ROSLER_OUTPUT_TYPE", OUTPUT_TYPES),
        number("ROSLER_ARENA_BYTES"),
        number("ROSLER_MODEL_BYTES"),
        scale("ROSLER_INPUT_SCALE"),
        scale("ROSLER_OUTPUT_SCALE"),
        name,
        number("ROSLER_DECODED_BYTES", "0"),
    )


def as_inputs(inputs: ArrayLike, header: ModelHeader) -> np.ndarray:
    """Inputs as the model takes them, one a row; never rounds one to an integer.

    Args:
      inputs: the first axis counts the inputs.
      header: of the model.

    Raises:
      ValueError: if their sizes or values are not the model's.

    Example:
      >>> header = ModelHeader(2, 1, np.dtype("int16"), np.dtype("int16"), 8, 8)
      >>> as_inputs([[1, -2]], header).dtype
      dtype('int16')
    """
    given = np.asarray(inputs)
    if given.ndim < 2 or not len(given) or given[0].size != header.input_size:
        raise ValueError(
            f"inputs have shape {given.shape}; expected one or more inputs along the first axis,"
            f" {header.input_size} numbers in each"
        )
    wanted = header.input_type
    if wanted.kind in "iu" and given.dtype.kind not in "iub":
        raise ValueError(
            f"inputs are {given.dtype}, the model takes {wanted.name}: quantise them first, by"
            f" quantize_inputs or as its {HEADER} says"
        )
    rows = given.reshape(len(given), -1)
    if wanted.kind in "iu":
        limits = np.iinfo(wanted)
        if rows.min() < limits.min or rows.max() > limits.max:
            raise ValueError(
                f"inputs go from {rows.min()} to {rows.max()}; {wanted.name} takes {limits.min}"
                f" to {limits.max}"
            )
    return np.ascontiguousarray(rows.astype(wanted))


def quantize_inputs(inputs: ArrayLike, header: ModelHeader) -> np.ndarray:
    """Real inputs as the model takes them: for an integer model rounded, and cut off at its limits.

    Args:
      inputs: real numbers.
      header: of the model.

    Example:
      >>> header = ModelHeader(2, 1, np.dtype("int16"), np.dtype("int16"), 8, 8, 0.25, 1.0)
      >>> quantize_inputs([[1.0, -1e9]], header)
      array([[     4, -32768]], dtype=int16)
    """
    real = np.asarray(inputs)
    if header.input_type.kind == "f":
        return real.astype(header.input_type)
    return quantized(real, header.input_scale, header.input_type)


def as_outputs(data: bytes, count: int, header: ModelHeader) -> np.ndarray:
    """The outputs that a driver wrote, one a row.

    Raises:
      ValueError: if there are not ``count`` of them.
    """
    expected = count * header.output_size * header.output_type.itemsize
    if len(data) != expected:
        raise ValueError(f"the program wrote {len(data)} bytes of outputs, expected {expected}")
    rows = np.frombuffer(data, header.output_type).reshape(count, header.output_size)
    return rows.astype(header.output_type.newbyteorder("="))
