"""The header and the source of a model in C."""

from __future__ import annotations

import math
import re
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from rosler_jax._version import __version__
from rosler_jax.export import softmax
from rosler_jax.export._errors import ExportError
from rosler_jax.export.c import tuned
from rosler_jax.export.c.integers import wire_integers
from rosler_jax.export.c.program import wire
from rosler_jax.export.c.unit import (
    ABOUT_CONST,
    Unit,
    about_scales,
    quantize_function,
    template,
)
from rosler_jax.export.c.wiring import Wiring, mentions, statements, unused
from rosler_jax.export.integer import Program
from rosler_jax.graph.graph import Graph

if TYPE_CHECKING:
    from rosler_jax.delta import SeededDelta

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
   the outputs{by}, unless the compiler was allowed to forget it (-ffast-math)."""
_INIT = """
/* Decodes weights to ROSLER_DECODED_BYTES of variables beside the arena. The first rosler_predict
   does it if nobody has: call it before where the time of a first call matters, or where several
   threads predict. */
void rosler_init(rosler_arena *arena);
"""
_MATH = re.compile(
    r"\b(?:INFINITY|NAN|isfinite|(?:fabs|floor|ceil|rint|exp|expm1|log|log1p|sqrt|cbrt|sin|cos|tanh|erf"
    r"|erfc|fmod|pow|atan2)f)\b"
)
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
      decoded_bytes: of weights that ``rosler_init`` decodes, in variables beside the arena.
    """

    header: str
    source: str
    arena_bytes: int
    constant_bytes: dict[str, int]
    least_bytes: int
    decoded_bytes: int = 0

    @property
    def model_bytes(self) -> int:
        """Bytes of all constant data."""
        return sum(self.constant_bytes.values())


def write_c(
    model: Graph | Program, *, probabilities: bool = False, poison: int | None = None,
    weights: str = "packed", delta: SeededDelta | None = None,
) -> CSource:  # fmt: skip
    """Writes a model as C99: constant data, kernels, and a function that calls them in order.

    Args:
      model: a graph, for float32, or an integer program.
      probabilities: whether to add ``rosler_softmax``.
      poison: for tests: a byte that is written over memory when nobody needs it.
      weights: how they lie in flash: a key of :data:`rosler_jax.export.c.coded.FORMS`.
      delta: of a graph: its weights are tuned on the device, by ``rosler_tune``.

    Returns:
      The texts and what they take.

    Raises:
      ExportError: for an operation that C code does not have.
    """
    unit = Unit(poison=poison, weights=weights, delta=delta)
    if delta is not None:
        tuned.check(delta)
    inputs, outputs = _ports(model)
    wiring = _wiring(model, unit, _names("x", inputs))
    lines, arena = statements(wiring, _names("y", outputs), poison)
    arena_bytes = max(arena.bytes, unit.start_bytes)
    if delta is not None:
        unit.data.append("static int rosler_is_tuned;")
        unit.functions.append(tuned.function(unit))
        lines.insert(0, "if (!rosler_is_tuned) {\n        rosler_tune(0);\n    }")
    if unit.start:
        unit.functions.append(_init(unit))
        lines.insert(0, "if (!rosler_decoded) {\n        rosler_init(arena);\n    }")
    unit.functions.append(_predict(lines, inputs, outputs))
    if len(outputs) == 1 and outputs[0].dtype != "bool":
        unit.functions.append(_argmax(*outputs[0][1:3]))
    if probabilities:
        unit.functions.append(_softmax(unit, *outputs[0][1:]))
    return CSource(
        header=_header(inputs, outputs, arena_bytes, unit, probabilities),
        source=unit.text(_head(unit)),
        arena_bytes=arena_bytes,
        constant_bytes=dict(unit.constant_bytes),
        least_bytes=arena.least,
        decoded_bytes=unit.ram_bytes,
    )


def _init(unit: Unit) -> str:
    """The function that decodes weights."""
    start = ["unsigned char *a = (unsigned char *)arena->words;", *unit.start]
    body = "\n".join(f"    {line}" for line in [*start, "rosler_decoded = 1;"])
    return f"static int rosler_decoded;\n\nvoid rosler_init(rosler_arena *arena)\n{{\n{body}\n}}"


def _tune(unit: Unit) -> str:
    """What the header says of a delta."""
    return "" if unit.delta is None else tuned.ABOUT.replace("@K@", str(unit.delta.plan.k))


def _ports(model: Graph | Program) -> tuple[list[Port], list[Port]]:
    inputs, outputs = (
        [Port(v.name, v.dtype, math.prod(v.shape), *v[4:]) for v in values]
        for values in (model.inputs, model.outputs)
    )
    return inputs, outputs


def _wiring(model: Graph | Program, unit: Unit, names: list[str]) -> Wiring:
    if isinstance(model, Graph):
        return wire(model, unit, names)
    return wire_integers(model, unit, names)


def _names(name: str, ports: list[Port]) -> list[str]:
    """How C code calls inputs or outputs: ``x``, or ``x_0``, ``x_1`` if there are several."""
    return [name] if len(ports) == 1 else [f"{name}_{i}" for i in range(len(ports))]


def _prototype(inputs: list[Port], outputs: list[Port]) -> str:
    types = _names("rosler_input", inputs), _names("rosler_output", outputs)
    x = [f"const {t} *{n}" for t, n in zip(types[0], _names("x", inputs), strict=True)]
    y = [f"{t} *{n}" for t, n in zip(types[1], _names("y", outputs), strict=True)]
    line = f"void rosler_predict({', '.join([*x, *y, 'rosler_arena *arena'])})"
    return "\n".join(textwrap.wrap(line, 100, subsequent_indent=" " * 20))


def _predict(lines: list[str], inputs: list[Port], outputs: list[Port]) -> str:
    """The function that runs the steps in order."""
    arena = mentions(lines, "a")
    first = "unsigned char *a = (unsigned char *)arena->words;" if arena else "(void)arena;"
    unread = unused(lines, _names("x", inputs))
    body = "\n".join(f"    {line}" for line in [first, *unread, *lines])
    return f"{_prototype(inputs, outputs)}\n{{\n{body}\n}}"


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
    text = "\n".join([*unit.kernels, *unit.data, *unit.functions])
    includes = ['#include "rosler_model.h"', "#include <string.h>"]
    includes += ["#include <math.h>"] if _MATH.search(text) else []
    return [f"/* Written by rosler-jax {__version__}; do not edit. */", "\n".join(includes)]


def _macros(kind: str, ports: list[Port]) -> tuple[str, str, str, str]:
    """Macros of the sizes and types, and of the scales, and types: of inputs or of outputs."""
    names = _names(f"ROSLER_{kind}", ports)
    each = list(zip(names, ports, strict=True))
    sizes = [f"#define {name}_SIZE {port.size}" for name, port in each]
    types = [f'#define {name}_TYPE "{port.dtype}"' for name, port in each]
    scales = [f"#define {name}_SCALE {port.scale!r}" for name, port in each]
    typedefs = [f"typedef {CTYPE[port.dtype]} {name.lower()};" for name, port in each]
    return "\n".join(sizes), "\n".join(types), "\n".join(scales), "\n".join(typedefs)


def _quantize(inputs: list[Port]) -> list[str]:
    """A function for each real input of integers."""
    names = _names("", inputs)
    texts = []
    for name, port in zip(names, inputs, strict=True):
        if port.dtype in ("int16", "uint8"):
            text = quantize_function(port.dtype, port.scale)
            text = text.replace("rosler_quantize", f"rosler_quantize{name}")
            text = re.sub(r"rosler_input\b", f"rosler_input{name}", text)
            text = re.sub(r"INPUT_(SIZE|SCALE)", rf"INPUT{name.upper()}_\1", text)
            texts.append(text)
    return texts


def _header(
    inputs: list[Port], outputs: list[Port], arena: int, unit: Unit, probabilities: bool
) -> str:
    model_bytes = sum(unit.constant_bytes.values())
    integer = bool({port.dtype for port in [*inputs, *outputs]} & {"int16", "uint8"})
    quantize = "".join(f"\n{text}" for text in _quantize(inputs)) if integer else ""
    x, y = _macros("INPUT", inputs), _macros("OUTPUT", outputs)
    counts = [
        f"#define ROSLER_{kind}S {len(ports)} /* {', '.join(port.name for port in ports)} */"
        for kind, ports in (("INPUT", inputs), ("OUTPUT", outputs))
        if len(ports) > 1
    ]
    without_zeros = unit.weights in ("streamed", "sparse")
    nan = _NAN.format(by=" by weights that are not zero" if without_zeros else "")
    argmax = f"""
/* The index of the largest output; of several, the first.{nan if not integer else ""} */
int rosler_argmax(const rosler_output *y);
""" if len(outputs) == 1 and outputs[0].dtype != "bool" else ""  # fmt: skip
    decoded = f"#define ROSLER_DECODED_BYTES {unit.ram_bytes}\n" if unit.start else ""
    about_start = (_INIT if unit.start else "") + _tune(unit)
    about = f"{' (integers, see ROSLER_OUTPUT_SCALE)' if integer else ''}"
    return f"""/* Written by rosler-jax {__version__}; do not edit. */
#ifndef ROSLER_MODEL_H
#define ROSLER_MODEL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{"".join(line + chr(10) for line in counts)}{x[0]}
{y[0]}
{x[1]}
{y[1]}

{about_scales("rosler_quantize" if integer else "")}
{x[2]}
{y[2]}

/* Bytes of working memory, and of the model's constant data. */
#define ROSLER_ARENA_BYTES {arena}
#define ROSLER_MODEL_BYTES {model_bytes}
{decoded}
{ABOUT_CONST}

{x[3]}
{y[3]}

/* Working memory of a call; may be used for other things between calls. */
typedef struct {{
    int64_t words[ROSLER_ARENA_BYTES / 8];
}} rosler_arena;

/* Computes the network's outputs{about}. */
{_prototype(inputs, outputs)};
{about_start}{argmax}{_SOFTMAX[outputs[0].dtype] if probabilities else ""}{quantize}
#ifdef __cplusplus
}}
#endif

#endif
"""
