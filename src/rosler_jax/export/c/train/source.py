"""The header and the source of a network that trains on the device."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rosler_jax._version import __version__
from rosler_jax.export._errors import ExportError
from rosler_jax.export.c.program import wire
from rosler_jax.export.c.train import floats
from rosler_jax.export.c.train.chain import cut, frozen_step
from rosler_jax.export.c.train.gradient import gradient_functions, gradient_of
from rosler_jax.export.c.train.memory import Layout, Node, aligned, frozen, lay_out
from rosler_jax.export.c.train.parallel import Parallel
from rosler_jax.export.c.train.parameters import FLAG, Field, Parameters
from rosler_jax.export.c.train.parts import trained_names
from rosler_jax.export.c.unit import (
    ABOUT_CONST,
    Unit,
    about_scales,
    float32_literal,
    quantize_function,
)
from rosler_jax.export.c.wiring import unused
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.kinds import count

HEADER, SOURCE = "rosler_train.h", "rosler_train.c"
_NAN = """ NaN among the inputs makes the loss NaN, and then the weights: look at the
   loss before rosler_train_save; rosler_train_load takes the weights back."""


class TrainSource(NamedTuple):
    """A network in C that trains.

    Attributes:
      header, source: texts of ``rosler_train.h`` and ``rosler_train.c``.
      arena_bytes: working memory during a call.
      state_bytes: weights that train and their velocity, kept between calls.
      constant_bytes: of constant data, by what they are for.
      fields: where each parameter lies in the weights; see :func:`unpack`.
      scales: what inputs are divided by and outputs multiplied by; 1 of float32.
    """

    header: str
    source: str
    arena_bytes: int
    state_bytes: int
    constant_bytes: dict[str, int]
    fields: tuple[Field, ...]
    scales: tuple[float, float] = (1.0, 1.0)


class Style(NamedTuple):
    """What float and fixed-point programs have of their own.

    Attributes:
      types: names of the types of inputs and outputs.
      scales: what inputs are divided and outputs multiplied by.
      number, rate, loss: C types of a weight, of the learning rate, of the loss.
      element: C type of activations.
      about_rate, about_loss: comments.
    """

    types: tuple[str, str]
    scales: tuple[float, float]
    number: str
    rate: str
    loss: str
    element: str
    about_rate: str
    about_loss: str


FLOAT_STYLE = Style(
    ("float32", "float32"), (1.0, 1.0), "float", "float", "float", "float",
    "learning_rate", "the mean loss of the examples before the step",
)  # fmt: skip


class Program(NamedTuple):
    """A program to be written.

    Attributes:
      unit: its kernels and data so far.
      style: its types.
      parameters: what trains.
      nodes: its operations.
      first: the first node that anything trains in.
      sizes: of an input and an output.
      loss, batch, stage: as :func:`write_training` takes them.
      has_velocity: whether the state keeps one.
    """

    unit: Unit
    style: Style
    parameters: Parameters
    nodes: list[Node]
    first: int
    sizes: tuple[int, int]
    loss: str
    batch: int
    has_velocity: bool
    stage: str


def write_float(
    graph: Graph, loss: str, batch: int, stage: str, parts: str | Sequence[str], momentum: float,
    clip: float | None, chains: bool,
) -> TrainSource:  # fmt: skip
    """Writes float32 training; :func:`write_training` calls this."""
    parallel = any(isinstance(op, Parallel) for op in graph.ops)
    trained = trained_names(graph, parts)
    for op in graph.ops:
        if isinstance(op, Parallel) and not trained.issuperset(op.names):
            raise ExportError(
                f"{op.name}: sketches of one matrix train together; choose parts='all', or "
                "stage='successive'"
            )
    found = cut(graph, trained) if chains or parallel else None
    if found is None or not all(floats.serves(op) for op in found[1]):
        if parallel:
            raise ExportError("the parallel stage trains chains of layers; choose 'successive'")
        return _write_gradient(graph, loss, batch, trained, momentum, clip)
    before, ops = found
    unit = Unit()
    parameters = Parameters(unit, "float", trained)
    if parallel:
        parameters.add(FLAG, np.ones(1, np.float32))
    nodes: list[Node] = []
    if before.ops:
        wiring, size = wire(before, unit, ["x"]), count(ops[0].in_shape)
        nodes.append(frozen(frozen_step(unit, wiring, ("float", "float"), size)))
    first = len(nodes)
    nodes += [floats.EMIT[type(op)](op, parameters, f"train{i}") for i, op in enumerate(ops)]
    direct = momentum == 0.0 and clip is None and batch == 1 and not parallel
    sizes = count(graph.in_shape), count(graph.out_shape)
    program = Program(
        unit, FLOAT_STYLE, parameters, nodes, first, sizes, loss, batch, not direct, stage
    )
    layout = lay_out(nodes, first, "float")
    functions = passes(program, layout)
    step, arena = step_function(program, layout.bytes, _example(program, layout), momentum, clip)
    functions.append(step)
    if parallel:
        functions.append(_switch(graph, program, layout))
    return assemble(program, arena, [*functions, predict_function(program, layout.output)])


def _write_gradient(
    graph: Graph, loss: str, batch: int, trained: frozenset[str], momentum: float,
    clip: float | None,
) -> TrainSource:  # fmt: skip
    """Training by the graph of the gradient."""
    gradient = gradient_of(graph, trained, loss)
    unit = Unit()
    parameters = Parameters(unit, "float", trained)
    for name, values in gradient.tensors.items():
        parameters.add(name, values, transposed=False)
    given = graph.inputs[0].dtype
    style = FLOAT_STYLE._replace(types=(given, "float32"))
    sizes = count(graph.in_shape), count(graph.out_shape)
    program = Program(unit, style, parameters, [], 0, sizes, loss, batch, True, "successive")
    functions, arena = gradient_functions(unit, gradient, parameters.fields)
    target = "target[k]" if loss == "cross_entropy" else f"target + k * {sizes[1]}"
    share = "1.0f / (float)count"
    example = [f"loss += rosler_train_example(s, a, x + k * {sizes[0]}, {target}, {share}, g);"]
    step, arena = step_function(program, arena, example, momentum, clip)
    return assemble(program, arena, [*functions, step])


def passes(program: Program, layout: Layout) -> list[str]:
    """The functions that prepare a call, go forward and go backward."""
    style = program.style
    start, end = "unsigned char *a", "\n}"
    forward = [node.forward(w) for node, w in zip(program.nodes, layout.wires, strict=True)]
    backward = [
        node.backward(w)
        for node, w in reversed(
            list(zip(program.nodes, layout.wires, strict=True))[program.first :]
        )
        if node.backward is not None
    ]
    begin = [
        node.begin(w)
        for node, w in zip(program.nodes, layout.wires, strict=True)
        if node.begin is not None
    ]
    more = "float rate" if style.number == "float" else "int e"
    x = f"const {style.element} *x"
    out = []
    if begin:
        out.append(
            f"static void rosler_train_prepare(const rosler_state *s, {start})\n{{\n    "
            + "\n    ".join(begin) + end
        )  # fmt: skip
    out.append(
        f"static void rosler_train_forward(const rosler_state *s, {start}, {x})\n{{\n    "
        + "\n    ".join(forward) + end
    )  # fmt: skip
    out.append(
        f"static void rosler_train_backward(rosler_state *s, {start}, {x},\n"
        f"                                  {style.number} *g, {more})\n{{\n    "
        + "\n    ".join([*unused(backward, ("x", "s")), *backward]) + end
    )  # fmt: skip
    return out


def _example(program: Program, layout: Layout) -> list[str]:
    """Statements of one example of a step: its loss, and its gradient added."""
    unit, n = program.unit, program.sizes[1]
    share = "1.0f / (float)count" if program.has_velocity else "1.0f"
    if program.loss == "cross_entropy":
        unit.use("cross_entropy_f32")
        one = f"rosler_cross_entropy({layout.output}, {n}, target[k], {share}, {layout.error})"
    else:
        unit.use("squares_f32")
        one = f"rosler_squares({layout.output}, {n}, target + k * {n}, {share}, {layout.error})"
    rate = "1.0f" if program.has_velocity else "-learning_rate"
    return [
        f"const float *const example = x + k * {program.sizes[0]};",
        "rosler_train_forward(s, a, example);",
        f"loss += {one};",
        f"rosler_train_backward(s, a, example, g, {rate});",
    ]


def step_function(
    program: Program, arena: int, example: list[str], momentum: float, clip: float | None
) -> tuple[str, int]:
    """The function that takes a step, and the bytes of the arena then.

    Args:
      program: to be written.
      arena: bytes that an example takes.
      example: statements for example ``k``, which add its loss to ``loss`` and its gradient to
        ``g``.
      momentum, clip: as :func:`write_training` takes them.
    """
    unit, count = program.unit, program.parameters.count
    before, after = [], []
    gradient = "s->velocity" if program.has_velocity else "s->weights"
    if any(node.begin for node in program.nodes):
        before.append("rosler_train_prepare(s, a);")
    if program.has_velocity:
        unit.use("scale_f32")
        unit.use("add_f32")
        decay = f"rosler_scale_f32(s->velocity, {count}, {float32_literal(momentum)});"
        if clip is None:
            before.append(decay)
        else:
            unit.use("clip_f32")
            gradient, arena = f"(float *)(a + {arena})", arena + aligned(4 * count)
            before.append(f"memset(g, 0, {4 * count});")
            after += [
                f"rosler_clip_f32(g, {count}, {float32_literal(clip)});",
                decay,
                f"rosler_add_f32(g, {count}, 1.0f, s->velocity);",
            ]
        after.append(f"rosler_add_f32(s->velocity, {count}, -learning_rate, s->weights);")
    lines = [
        declaration(program) + "\n{",
        "    rosler_state *const s = state;",
        "    unsigned char *const a = (unsigned char *)arena->words;",
        f"    float *const g = {gradient};",
        "    float loss = 0.0f;",
        "    int k;",
        *checks(program, "-1.0f"),
        *(f"    {line}" for line in before),
        "    for (k = 0; k < count; ++k) {",
        *(f"        {line}" for line in example),
        "    }",
        *(f"    {line}" for line in after),
        "    return loss / (float)count;",
        "}",
    ]
    return "\n".join(lines), arena


def checks(program: Program, refused: str) -> list[str]:
    """Statements that refuse a wrong count or label before anything has changed."""
    lines = [f"    if (count < 1 || count > {program.batch}) {{", f"        return {refused};"]
    lines.append("    }")
    if program.loss == "cross_entropy":
        lines += [
            "    for (k = 0; k < count; ++k) {",
            f"        if (target[k] < 0 || target[k] >= {program.sizes[1]}) {{",
            f"            return {refused};",
            "        }",
            "    }",
        ]
    return lines


def _switch(graph: Graph, program: Program, layout: Layout) -> str:
    """The function that ends the parallel stage."""
    offsets = {field.name: field.offset for field in program.parameters.fields}
    lines = [
        "void rosler_train_switch(rosler_state *state, rosler_train_arena *arena)\n{",
        "    float *const w = state->weights;",
        "    unsigned char *const a = (unsigned char *)arena->words;",
        "    if (w[0] < 0.5f) {",
        "        return;",
        "    }",
        "    rosler_train_prepare(state, a);",
    ]
    parallel = [op for op in graph.ops if isinstance(op, Parallel)]
    pinned = [
        wires.pinned
        for node, wires in zip(program.nodes, layout.wires, strict=True)
        if node.begin is not None
    ]
    for op, place in zip(parallel, pinned, strict=True):
        c, u, r = (f"w + {offsets[name]}" for name in op.names)
        lines.append(f"    memcpy({u}, {place}, {4 * op.a.size});")
        lines.append(f"    rosler_even_f32({c}, {op.c.size}, {u}, {op.a.size}, {r}, {op.r.size});")
    lines += ["    memset(state->velocity, 0, sizeof state->velocity);", "    w[0] = 0.0f;", "}"]
    return "\n".join(lines)


def declaration(program: Program) -> str:
    """The step function's head."""
    style = program.style
    return (
        f"{style.loss} rosler_train_step(rosler_state *state, rosler_train_arena *arena,\n"
        f"    const rosler_train_input *x, const rosler_train_target *target, int count,\n"
        f"    {style.rate} {style.about_rate})"
    )


def _begin(program: Program) -> str:
    velocity = (
        "\n    memset(state->velocity, 0, sizeof state->velocity);" if program.has_velocity else ""
    )
    return (
        "void rosler_train_begin(rosler_state *state)\n{\n"
        f"    memcpy(state->weights, rosler_train_initial, sizeof state->weights);{velocity}\n}}"
    )


def predict_function(program: Program, output: str) -> str:
    """The function that predicts, from where the forward pass leaves its output."""
    element = program.style.element
    size = {"float": 4, "int16_t": 2}[element]
    prepare = "    rosler_train_prepare(state, a);\n" if any(n.begin for n in program.nodes) else ""
    return (
        "void rosler_train_predict(const rosler_state *state, rosler_train_arena *arena,\n"
        "    const rosler_train_input *x, rosler_train_output *y)\n{\n"
        f"    unsigned char *const a = (unsigned char *)arena->words;\n{prepare}"
        "    rosler_train_forward(state, a, x);\n"
        f"    memcpy(y, {output}, {program.sizes[1] * size});\n}}"
    )


def assemble(program: Program, arena: int, functions: list[str]) -> TrainSource:
    """Puts the two files together."""
    unit, parameters, style = program.unit, program.parameters, program.style
    model = zlib.crc32(
        repr((parameters.fields, style.types, program.stage, unit.data)).encode("ascii")
    )
    initial = np.concatenate(parameters.initial)
    unit.array(style.number, "rosler_train_initial", initial, "weights")
    unit.functions += [_begin(program), *functions]
    stored = Unit()
    stored.use("store")
    unit.functions += stored.kernels
    state = parameters.count * 4 * (2 if program.has_velocity else 1)
    head = [
        f"/* Written by rosler-jax {__version__}; do not edit. */",
        '#include "rosler_train.h"\n#include <float.h>\n#include <math.h>\n#include <string.h>',
    ]
    return TrainSource(
        header=_header(program, arena, model),
        source=unit.text(head),
        arena_bytes=arena,
        state_bytes=state,
        constant_bytes=dict(unit.constant_bytes),
        fields=tuple(parameters.fields),
        scales=style.scales,
    )


def _header(program: Program, arena: int, model: int) -> str:
    style, count = program.style, program.parameters.count
    ctypes = {"float32": "float", "int16": "int16_t", "int32": "int32_t", "bool": "uint8_t"}
    target = "int" if program.loss == "cross_entropy" else ctypes[style.types[1]]
    label = "a label for each example" if target == "int" else "ROSLER_TRAIN_OUTPUT_SIZE for each"
    velocity = (
        f"\n    {style.number} velocity[ROSLER_TRAIN_WEIGHTS];" if program.has_velocity else ""
    )
    switch = (
        "\n/* Ends the parallel stage: the cores are solved for and stay, the factors are given the"
        "\n   same norm; from now on all of them train through one another. */"
        "\nvoid rosler_train_switch(rosler_state *state, rosler_train_arena *arena);\n"
        if program.stage == "parallel"
        else ""
    )
    fixed = style.types[1] != "float32"
    nan, quantize = _NAN, ""
    if fixed:
        function = quantize_function(style.types[0], style.scales[0], "rosler_train_")
        nan, quantize = "", f"\n{function}"
    return f"""/* Written by rosler-jax {__version__}; do not edit. */
#ifndef ROSLER_TRAIN_H
#define ROSLER_TRAIN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define ROSLER_TRAIN_INPUT_SIZE {program.sizes[0]}
#define ROSLER_TRAIN_OUTPUT_SIZE {program.sizes[1]}
#define ROSLER_TRAIN_INPUT_TYPE "{style.types[0]}"
#define ROSLER_TRAIN_OUTPUT_TYPE "{style.types[1]}"
#define ROSLER_TRAIN_BATCH {program.batch}

{about_scales("rosler_train_quantize" if fixed else "")}
#define ROSLER_TRAIN_INPUT_SCALE {style.scales[0]!r}
#define ROSLER_TRAIN_OUTPUT_SCALE {style.scales[1]!r}

/* How many numbers train, the bytes that are saved of them, and bytes of working memory. */
#define ROSLER_TRAIN_WEIGHTS {count}
#define ROSLER_TRAIN_VELOCITY {count if program.has_velocity else 0}
#define ROSLER_TRAIN_WEIGHT_BYTES {4 * count}u
#define ROSLER_TRAIN_ARENA_BYTES {arena}

/* Says which network saved weights belong to. */
#define ROSLER_TRAIN_MODEL 0x{model:08X}u

{ABOUT_CONST}

typedef {ctypes[style.types[0]]} rosler_train_input;
typedef {ctypes[style.types[1]]} rosler_train_output;
typedef {target} rosler_train_target;
typedef {style.rate} rosler_train_rate;
typedef {style.loss} rosler_train_loss;

/* What trains; kept between calls. Weights that are received (from a server of many devices, say)
   are copied over `weights` after rosler_train_begin, and sent from there. */
typedef struct {{
    {style.number} weights[ROSLER_TRAIN_WEIGHTS];{velocity}
}} rosler_state;

/* Working memory of a call; may be used for other things between calls. */
typedef struct {{
    int64_t words[ROSLER_TRAIN_ARENA_BYTES / 8];
}} rosler_train_arena;

/* The weights as they were exported. */
void rosler_train_begin(rosler_state *state);

/* One step on `count` examples, at most ROSLER_TRAIN_BATCH: x one behind the other, and
   {label}. Returns {style.about_loss}; -1, and nothing has changed, for a count or a label
   that cannot be.{nan} */
{declaration(program)};

/* The outputs with the weights as they are. */
void rosler_train_predict(const rosler_state *state, rosler_train_arena *arena,
    const rosler_train_input *x, rosler_train_output *y);
{quantize}{switch}
/* Where weights are kept: two slots of ROSLER_SLOT_BYTES each, from offset 0. Callbacks return 0
   if all went well. Flash: make a slot a whole number of blocks, and erase those of a slot when its
   first byte after the header (offset ROSLER_SLOT_HEADER_BYTES in the slot) is written. */
#define ROSLER_SLOT_HEADER_BYTES 24u
#ifndef ROSLER_SLOT_BYTES
#define ROSLER_SLOT_BYTES (ROSLER_SLOT_HEADER_BYTES + ROSLER_TRAIN_WEIGHT_BYTES)
#endif

typedef struct {{
    int (*write)(void *context, uint32_t offset, const void *data, uint32_t size);
    int (*read)(void *context, uint32_t offset, void *data, uint32_t size);
    void *context;
}} rosler_storage;

/* Writes the weights to the slot that does not hold the newest ones, and reads them again. Returns
   the slot, 0 or 1; -1 if it failed: what was saved before is still there. Power may fail at any
   byte. */
int rosler_train_save(const rosler_state *state, const rosler_storage *storage);

/* Reads the newest weights that are whole; *sequence (if not 0) counts how often they were saved.
   Returns the slot; -1 if there are none: the weights are then those of rosler_train_begin. The
   velocity starts from zero. */
int rosler_train_load(rosler_state *state, const rosler_storage *storage, uint32_t *sequence);

#ifdef __cplusplus
}}
#endif

#endif
"""
