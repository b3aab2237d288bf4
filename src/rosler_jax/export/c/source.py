"""The header and the source of a model in C."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

from rosler_jax.export import softmax
from rosler_jax.export._errors import ExportError
from rosler_jax.export.c import tuned
from rosler_jax.export.c.files import (
    ABOUT_CONST,
    Port,
    Ports,
    arena_type,
    header_file,
    numbered,
    prototype,
    source_file,
)
from rosler_jax.export.c.integers import wire_integers
from rosler_jax.export.c.program import wire
from rosler_jax.export.c.unit import Unit, filled, template
from rosler_jax.export.c.wiring import Wiring, mentions, statements, unused
from rosler_jax.export.integer import Program
from rosler_jax.graph.graph import Graph

if TYPE_CHECKING:
    from rosler_jax.delta import SeededDelta

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
    ports = _ports(model)
    wiring = _wiring(model, unit, numbered("x", ports.inputs))
    lines, arena = statements(wiring, numbered("y", ports.outputs), poison)
    arena_bytes = max(arena.bytes, unit.start_bytes)
    if delta is not None:
        unit.data.append("static int rosler_is_tuned;")
        unit.functions.append(tuned.function(unit))
        lines.insert(0, "if (!rosler_is_tuned) {\n        rosler_tune(0);\n    }")
    if unit.start:
        unit.functions.append(_init(unit))
        lines.insert(0, "if (!rosler_decoded) {\n        rosler_init(arena);\n    }")
    unit.functions.append(_predict(lines, ports))
    if _has_argmax(ports):
        unit.functions.append(_argmax(*ports.outputs[0][1:3]))
    if probabilities:
        unit.functions.append(_softmax(unit, *ports.outputs[0][1:]))
    return CSource(
        header=_header(ports, arena_bytes, unit, probabilities),
        source=source_file(HEADER, _includes(unit), unit),
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


def _ports(model: Graph | Program) -> Ports:
    inputs, outputs = (
        [Port(v.name, v.dtype, math.prod(v.shape), *v[4:]) for v in values]
        for values in (model.inputs, model.outputs)
    )
    return Ports("rosler_", inputs, outputs)


def _wiring(model: Graph | Program, unit: Unit, names: list[str]) -> Wiring:
    if isinstance(model, Graph):
        return wire(model, unit, names)
    return wire_integers(model, unit, names)


def _prototype(ports: Ports) -> str:
    x, y = numbered("x", ports.inputs), numbered("y", ports.outputs)
    types = [name for name, _ in ports.named]
    kinds = [*(f"const {ctype}" for ctype in types[: len(x)]), *types[len(x) :]]
    parameters = [f"{kind} *{name}" for kind, name in zip(kinds, [*x, *y], strict=True)]
    return prototype("void rosler_predict", [*parameters, "rosler_arena *arena"])


def _predict(lines: list[str], ports: Ports) -> str:
    """The function that runs the steps in order."""
    arena = mentions(lines, "a")
    first = "unsigned char *a = (unsigned char *)arena->words;" if arena else "(void)arena;"
    unread = unused(lines, numbered("x", ports.inputs))
    body = "\n".join(f"    {line}" for line in [first, *unread, *lines])
    return f"{_prototype(ports)}\n{{\n{body}\n}}"


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
    return filled("softmax_i16", {"MULTIPLIER": str(m), "SHIFT": str(shift)}).strip()


def _includes(unit: Unit) -> list[str]:
    text = "\n".join([*unit.kernels, *unit.data, *unit.functions])
    return ["string", "math"] if _MATH.search(text) else ["string"]


def _header(ports: Ports, arena: int, unit: Unit, probabilities: bool) -> str:
    counts = [
        f"#define ROSLER_{kind}S {len(each)} /* {', '.join(port.name for port in each)} */\n"
        for kind, each in (("INPUT", ports.inputs), ("OUTPUT", ports.outputs))
        if len(each) > 1
    ]
    sizes = [
        "/* Bytes of working memory, and of the model's constant data. */",
        f"#define ROSLER_ARENA_BYTES {arena}",
        f"#define ROSLER_MODEL_BYTES {sum(unit.constant_bytes.values())}",
        *([f"#define ROSLER_DECODED_BYTES {unit.ram_bytes}"] if unit.start else ()),
    ]
    about = " (integers, see ROSLER_OUTPUT_SCALE)" if ports.has_scales else ""
    predict = f"/* Computes the network's outputs{about}. */\n{_prototype(ports)};"
    return header_file(HEADER, [
        "".join(counts) + ports.macros(), ports.scales(), "\n".join(sizes), ABOUT_CONST,
        ports.types(), arena_type("rosler_"), predict, _INIT if unit.start else "", _tune(unit),
        _about_argmax(ports, unit), _SOFTMAX[ports.outputs[0].dtype] if probabilities else "",
        ports.quantizers(),
    ])  # fmt: skip


def _about_argmax(ports: Ports, unit: Unit) -> str:
    if not _has_argmax(ports):
        return ""
    without_zeros = unit.weights in ("streamed", "sparse")
    nan = _NAN.format(by=" by weights that are not zero" if without_zeros else "")
    nan = "" if ports.has_scales else nan
    return (
        f"/* The index of the largest output; of several, the first.{nan} */\n"
        "int rosler_argmax(const rosler_output *y);"
    )


def _has_argmax(ports: Ports) -> bool:
    return len(ports.outputs) == 1 and ports.outputs[0].dtype != "bool"
