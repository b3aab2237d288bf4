"""The header and the source of a model in C."""

from __future__ import annotations

import math
import re
import textwrap
from typing import NamedTuple

from rosler_jax._version import __version__
from rosler_jax.export import softmax
from rosler_jax.export._errors import ExportError
from rosler_jax.export.c import floats, integers
from rosler_jax.export.c.arena import Arena, chain
from rosler_jax.export.c.unit import (
    ABOUT_CONST,
    CTYPES,
    Step,
    Unit,
    about_scales,
    quantize_function,
    template,
)
from rosler_jax.export.c.wiring import Wiring, copy_step, settled, statements
from rosler_jax.export.graph import Graph
from rosler_jax.export.integer import Program

CTYPE = {
    "float32": "float", "int32": "int32_t", "bool": "uint8_t", "int16": "int16_t",
    "uint8": "uint8_t",
}  # fmt: skip
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


class Port(NamedTuple):
    """An input or an output of the C function.

    Attributes:
      name: where it is in the model's arguments or results.
      dtype: of its numbers.
      size: how many.
      scale: what real inputs are divided and outputs multiplied by.
    """

    name: str
    dtype: str
    size: int
    scale: float = 1.0


class CSource(NamedTuple):
    """A model in C.

    Attributes:
      header, source: texts of the two files.
      arena_bytes: that a caller provides.
      constant_bytes: of the model's data, by what they are for.
      least_bytes: of the arena: the largest set of values that is needed at one time.
    """

    header: str
    source: str
    arena_bytes: int
    constant_bytes: dict[str, int]
    least_bytes: int

    @property
    def model_bytes(self) -> int:
        """Bytes of all constant data."""
        return sum(self.constant_bytes.values())


def write_c(
    model: Graph | Program, *, probabilities: bool = False, poison: int | None = None
) -> CSource:
    """Writes a model as C99: constant data, kernels, and a function that calls them in order.

    Args:
      model: a graph, for float32, or an integer program.
      probabilities: whether to add ``rosler_softmax``.
      poison: for tests: a byte that is written over memory when nobody needs it.

    Returns:
      The texts and what they take.

    Raises:
      ExportError: for an operation that C code does not have.
    """
    unit = Unit()
    inputs, outputs = _ports(model)
    wiring = _wiring(model, unit, CTYPE[inputs[0].dtype], CTYPE[outputs[0].dtype])
    predict, arena = _predict(wiring, inputs, outputs, poison)
    unit.functions.append(predict)
    if len(outputs) == 1:
        unit.functions.append(_argmax(*outputs[0][1:3]))
    if probabilities:
        unit.functions.append(_softmax(unit, *outputs[0][1:]))
    return CSource(
        header=_header(inputs, outputs, arena.bytes, unit, probabilities),
        source=unit.text(_head(unit)),
        arena_bytes=arena.bytes,
        constant_bytes=dict(unit.constant_bytes),
        least_bytes=arena.least,
    )


def _ports(model: Graph | Program) -> tuple[list[Port], list[Port]]:
    sizes = math.prod(model.in_shape), math.prod(model.out_shape)
    if isinstance(model, Program):
        first = Port("", model.input_dtype, sizes[0], model.input_scale)
        return [first], [Port("", "int16", sizes[1], model.output_scale)]
    return [Port("", "float32", sizes[0])], [Port("", "float32", sizes[1])]


def _wiring(model: Graph | Program, unit: Unit, first: str, other: str) -> Wiring:
    program = isinstance(model, Program)
    steps = _integer_steps(model, unit) if program else _float_steps(model, unit)  # type: ignore[arg-type]
    count = len(steps)
    ctypes = {0: first, **dict.fromkeys(range(1, count + 1), other)}
    return Wiring(chain(steps), ctypes, {0: "x"}, [count])


def _integer_steps(program: Program, unit: Unit) -> list[Step]:
    steps: list[Step] = []
    for i, op in enumerate(program.ops):
        if i == 0 and program.input_dtype == "uint8":
            steps += integers.first_steps(op, unit, "layer0")
            continue
        step = integers.EMIT[type(op)](op, unit, f"layer{i}")
        steps += [] if step is None else [step]
    return steps or [copy_step(2 * math.prod(program.in_shape), 0)]


def _float_steps(graph: Graph, unit: Unit) -> list[Step]:
    steps = []
    for i, op in enumerate(graph.ops):
        step = floats.EMIT[type(op)](op, unit, f"layer{i}")
        steps += [] if step is None else [step]
    return steps or [copy_step(4 * math.prod(graph.in_shape), 0)]


def _names(letter: str, ports: list[Port]) -> list[str]:
    """How C code calls inputs or outputs: ``x``, or ``x0``, ``x1`` if there are several."""
    return [letter] if len(ports) == 1 else [f"{letter}{i}" for i in range(len(ports))]


def _prototype(inputs: list[Port], outputs: list[Port]) -> str:
    types = _names("rosler_input", inputs), _names("rosler_output", outputs)
    x = [f"const {t} *{n}" for t, n in zip(types[0], _names("x", inputs), strict=True)]
    y = [f"{t} *{n}" for t, n in zip(types[1], _names("y", outputs), strict=True)]
    line = f"void rosler_predict({', '.join([*x, *y, 'rosler_arena *arena'])})"
    return "\n".join(textwrap.wrap(line, 100, subsequent_indent=" " * 20))


def _predict(
    wiring: Wiring, inputs: list[Port], outputs: list[Port], poison: int | None
) -> tuple[str, Arena]:
    """The function that runs the steps in order."""
    names = _names("y", outputs)
    sizes = {
        value: port.size * CTYPES[wiring.ctypes[value]]
        for value, port in zip(wiring.outputs, outputs, strict=True)
    }
    lines, arena = statements(settled(wiring, sizes), names, poison)
    text = "\n".join(lines)
    first = (
        "unsigned char *a = (unsigned char *)arena->words;" if "(a + " in text else "(void)arena;"
    )
    unused = [f"(void){x};" for x in _names("x", inputs) if not re.search(rf"\b{x}\b", text)]
    body = "\n".join(f"    {line}" for line in [first, *unused, *lines])
    return f"{_prototype(inputs, outputs)}\n{{\n{body}\n}}", arena


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


def _head(unit: Unit) -> list[str]:
    text = "\n".join([*unit.kernels, *unit.functions])
    includes = ['#include "rosler_model.h"', "#include <string.h>"]
    includes += ["#include <math.h>"] if "tanhf(" in text or "expf(" in text else []
    return [f"/* Written by rosler-jax {__version__}; do not edit. */", "\n".join(includes)]


def _header(
    inputs: list[Port], outputs: list[Port], arena: int, unit: Unit, probabilities: bool
) -> str:
    model_bytes = sum(unit.constant_bytes.values())
    integer = outputs[0].dtype != "float32"
    scales = inputs[0].scale, outputs[0].scale
    quantize = f"\n{quantize_function(inputs[0].dtype, scales[0])}" if integer else ""
    return f"""/* Written by rosler-jax {__version__}; do not edit. */
#ifndef ROSLER_MODEL_H
#define ROSLER_MODEL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define ROSLER_INPUT_SIZE {inputs[0].size}
#define ROSLER_OUTPUT_SIZE {outputs[0].size}
#define ROSLER_INPUT_TYPE "{inputs[0].dtype}"
#define ROSLER_OUTPUT_TYPE "{outputs[0].dtype}"

{about_scales("rosler_quantize" if integer else "")}
#define ROSLER_INPUT_SCALE {scales[0]!r}
#define ROSLER_OUTPUT_SCALE {scales[1]!r}

/* Bytes of working memory, and of the model's constant data. */
#define ROSLER_ARENA_BYTES {arena}
#define ROSLER_MODEL_BYTES {model_bytes}

{ABOUT_CONST}

typedef {CTYPE[inputs[0].dtype]} rosler_input;
typedef {CTYPE[outputs[0].dtype]} rosler_output;

/* Working memory of a call; may be used for other things between calls. */
typedef struct {{
    int64_t words[ROSLER_ARENA_BYTES / 8];
}} rosler_arena;

/* Computes the network's outputs{" (integers, see ROSLER_OUTPUT_SCALE)" if integer else ""}. */
{_prototype(inputs, outputs)};

/* The index of the largest output; of several, the first.{"" if integer else _NAN} */
int rosler_argmax(const rosler_output *y);
{_SOFTMAX[outputs[0].dtype] if probabilities else ""}{quantize}
#ifdef __cplusplus
}}
#endif

#endif
"""
