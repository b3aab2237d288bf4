"""The header and the source of a model in C."""

from __future__ import annotations

import math
from typing import NamedTuple

from rosler_jax._version import __version__
from rosler_jax.export import softmax
from rosler_jax.export._errors import ExportError
from rosler_jax.export.c import floats, integers
from rosler_jax.export.c.arena import Arena, plan
from rosler_jax.export.c.unit import (
    ABOUT_CONST,
    Step,
    Unit,
    about_scales,
    quantize_function,
    template,
)
from rosler_jax.export.graph import Graph
from rosler_jax.export.integer import Program

CTYPE = {"float32": "float", "int16": "int16_t", "uint8": "uint8_t"}
_SOFTMAX = {
    "float32": """
/* Probabilities of outputs. */
void rosler_softmax(const rosler_output *y, float *p);
""",
    "int16": """
/* Probabilities of outputs, in units of 2^-15. */
void rosler_softmax(const rosler_output *y, uint16_t *p);
""",
}
_NAN = """ NaN counts as the largest, as in
   NumPy: y[label] != y[label] tells that the label is none. NaN among the inputs goes through to
   the outputs, unless the compiler was allowed to forget it (-ffast-math)."""
HEADER, SOURCE = "rosler_model.h", "rosler_model.c"


class CSource(NamedTuple):
    """A model in C.

    Attributes:
      header, source: texts of the two files.
      arena_bytes: that a caller provides.
      constant_bytes: of the model's data, by what they are for.
    """

    header: str
    source: str
    arena_bytes: int
    constant_bytes: dict[str, int]

    @property
    def model_bytes(self) -> int:
        """Bytes of all constant data."""
        return sum(self.constant_bytes.values())


def write_c(model: Graph | Program, *, probabilities: bool = False) -> CSource:
    """Writes a model as C99: constant data, kernels, and a function that calls them in order.

    Args:
      model: a graph, for float32, or an integer program.
      probabilities: whether to add ``rosler_softmax``.

    Returns:
      The texts and what they take.

    Raises:
      ExportError: for an operation that C code does not have.
    """
    unit = Unit()
    if isinstance(model, Program):
        types = (model.input_dtype, "int16")
        steps = _integer_steps(model, unit)
    else:
        types = ("float32", "float32")
        steps = _float_steps(model, unit)
    arena = plan(steps)
    sizes = math.prod(model.in_shape), math.prod(model.out_shape)
    unit.functions += [_predict(steps, arena), _argmax(types[1], sizes[1])]
    scales = _scales(model)
    if probabilities:
        unit.functions.append(_softmax(unit, types[1], sizes[1], scales[1]))
    return CSource(
        header=_header(types, sizes, arena.bytes, unit, scales, probabilities),
        source=unit.text(_head(unit)),
        arena_bytes=arena.bytes,
        constant_bytes=dict(unit.constant_bytes),
    )


def _integer_steps(program: Program, unit: Unit) -> list[Step]:
    steps: list[Step] = []
    for i, op in enumerate(program.ops):
        if i == 0 and program.input_dtype == "uint8":
            steps += integers.first_steps(op, unit, "layer0")
            continue
        step = integers.EMIT[type(op)](op, unit, f"layer{i}")
        steps += [] if step is None else [step]
    return steps or [_copy(2 * math.prod(program.in_shape))]


def _float_steps(graph: Graph, unit: Unit) -> list[Step]:
    steps = []
    for i, op in enumerate(graph.ops):
        step = floats.EMIT[type(op)](op, unit, f"layer{i}")
        steps += [] if step is None else [step]
    return steps or [_copy(4 * math.prod(graph.in_shape))]


def _copy(size: int) -> Step:
    return Step(lambda x, y, _: f"memcpy({y}, {x}, {size});", size)


def _predict(steps: list[Step], arena: Arena) -> str:
    """The function that calls the steps, in order."""
    element = "rosler_output"
    lines = [
        "void rosler_predict(const rosler_input *x, rosler_output *y, rosler_arena *arena)",
        "{",
    ]
    if any(
        p.x is not None or p.y is not None or s.scratch_bytes
        for p, s in zip(arena.places, steps, strict=True)
    ):
        lines.append("    unsigned char *a = (unsigned char *)arena->words;")
    else:
        lines.append("    (void)arena;")
    for step, place in zip(steps, arena.places, strict=True):
        x = "x" if place.x is None else f"(const {element} *)(a + {place.x})"
        y = "y" if place.y is None else f"({element} *)(a + {place.y})"
        lines.append(f"    {step.call(x, y, f'(a + {place.scratch})')}")
    return "\n".join([*lines, "}"])


def _argmax(dtype: str, count: int) -> str:
    more, larger = "", "y[i] > y[best]"
    if dtype == "float32":  # stops at the first NaN
        more, larger = " && y[best] == y[best]", "!(y[i] <= y[best])"
    return (
        "int rosler_argmax(const rosler_output *y)\n{\n    int i, best = 0;\n"
        f"    for (i = 1; i < {count}{more}; ++i) {{\n        if ({larger}) {{\n"
        "            best = i;\n        }\n    }\n    return best;\n}"
    )


def _softmax(unit: Unit, dtype: str, count: int, scale: float) -> str:
    """The function that makes probabilities of outputs; integer ones by a table."""
    if dtype == "float32":
        return template("softmax_f32")
    if count > softmax.MAX_CLASSES:
        raise ExportError(f"a softmax of {count} outputs has no integer form; export float32")
    unit.array("uint16_t", "rosler_exp", softmax.TABLE, "tables")
    m, shift = softmax.multiplier(scale)
    text = template("softmax_i16").replace("@MULTIPLIER@", str(m))
    return text.replace("@SHIFT@", str(shift)).strip()


def _scales(model: Graph | Program) -> tuple[float, float]:
    """What inputs are divided and outputs multiplied by."""
    if isinstance(model, Program):
        return model.input_scale, model.output_scale
    return 1.0, 1.0


def _head(unit: Unit) -> list[str]:
    text = "\n".join([*unit.kernels, *unit.functions])
    includes = ['#include "rosler_model.h"', "#include <string.h>"]
    includes += ["#include <math.h>"] if "tanhf(" in text or "expf(" in text else []
    return [f"/* Written by rosler-jax {__version__}; do not edit. */", "\n".join(includes)]


def _header(
    types: tuple[str, str], sizes: tuple[int, int], arena: int, unit: Unit,
    scales: tuple[float, float], probabilities: bool,
) -> str:  # fmt: skip
    model_bytes = sum(unit.constant_bytes.values())
    integer = types[1] != "float32"
    quantize = f"\n{quantize_function(types[0], scales[0])}" if integer else ""
    return f"""/* Written by rosler-jax {__version__}; do not edit. */
#ifndef ROSLER_MODEL_H
#define ROSLER_MODEL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define ROSLER_INPUT_SIZE {sizes[0]}
#define ROSLER_OUTPUT_SIZE {sizes[1]}
#define ROSLER_INPUT_TYPE "{types[0]}"
#define ROSLER_OUTPUT_TYPE "{types[1]}"

{about_scales("rosler_quantize" if integer else "")}
#define ROSLER_INPUT_SCALE {scales[0]!r}
#define ROSLER_OUTPUT_SCALE {scales[1]!r}

/* Bytes of working memory, and of the model's constant data. */
#define ROSLER_ARENA_BYTES {arena}
#define ROSLER_MODEL_BYTES {model_bytes}

{ABOUT_CONST}

typedef {CTYPE[types[0]]} rosler_input;
typedef {CTYPE[types[1]]} rosler_output;

/* Working memory of a call; may be used for other things between calls. */
typedef struct {{
    int64_t words[ROSLER_ARENA_BYTES / 8];
}} rosler_arena;

/* Computes the network's outputs{" (integers, see ROSLER_OUTPUT_SCALE)" if integer else ""}. */
void rosler_predict(const rosler_input *x, rosler_output *y, rosler_arena *arena);

/* The index of the largest output; of several, the first.{"" if integer else _NAN} */
int rosler_argmax(const rosler_output *y);
{_SOFTMAX[types[1]] if probabilities else ""}{quantize}
#ifdef __cplusplus
}}
#endif

#endif
"""
