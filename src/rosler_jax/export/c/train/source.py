"""The source of a network that trains on the device."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from rosler_jax.export._errors import ExportError
from rosler_jax.export.c.files import source_file
from rosler_jax.export.c.program import wire
from rosler_jax.export.c.train import floats
from rosler_jax.export.c.train.chain import cut, frozen_step
from rosler_jax.export.c.train.gradient import gradient_functions, gradient_of
from rosler_jax.export.c.train.header import HEADER, header
from rosler_jax.export.c.train.memory import Layout, Node, aligned, frozen, lay_out
from rosler_jax.export.c.train.options import Training
from rosler_jax.export.c.train.parallel import Parallel
from rosler_jax.export.c.train.parameters import FLAG, Field, Parameters
from rosler_jax.export.c.train.parts import trained_names
from rosler_jax.export.c.train.program import FLOAT_STYLE, Program, declaration
from rosler_jax.export.c.unit import Unit, float32_literal
from rosler_jax.export.c.wiring import unused
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.kinds import count


class TrainSource(NamedTuple):
    """A network in C that trains.

    Attributes:
      header, source: texts of ``rosler_train.h`` and ``rosler_train.c``.
      arena_bytes: working memory during a call.
      state_bytes: weights that train and their velocity, kept between calls.
      constant_bytes: of constant data, by what they are for.
      fields: where each parameter lies in the weights; see :func:`unpack`.
      scales: what inputs are divided by and outputs multiplied by; 1 of float32.
      types: of inputs and outputs; labels are of C's ``int``, other targets of the outputs' type.
      training: the options.

    Example:
      >>> from flax import nnx
      >>> from rosler_jax.export.c.train import write_training
      >>> from rosler_jax.graph import trace
      >>> graph = trace(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), np.ones((1, 4), np.float32))
      >>> source = write_training(graph, Training(momentum=0.0, batch=1))
      >>> [field.name for field in source.fields], source.state_bytes, source.has_velocity
      (['kernel', 'bias'], 40, False)
    """

    header: str
    source: str
    arena_bytes: int
    state_bytes: int
    constant_bytes: dict[str, int]
    fields: tuple[Field, ...]
    scales: tuple[float, float]
    types: tuple[str, str]
    training: Training

    @property
    def has_velocity(self) -> bool:
        """Whether the state keeps one."""
        return self.state_bytes > 4 * sum(field.size for field in self.fields)


def write_float(graph: Graph, training: Training, chains: bool) -> TrainSource:
    """Writes float32 training; :func:`write_training` calls this."""
    parallel = any(isinstance(op, Parallel) for op in graph.ops)
    trained = trained_names(graph, training.parts)
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
        return _write_gradient(graph, training, trained)
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
    plain = training.momentum == 0.0 and training.clip is None
    direct = plain and training.batch == 1 and not parallel
    sizes = count(graph.in_shape), count(graph.out_shape)
    program = Program(unit, FLOAT_STYLE, parameters, nodes, first, sizes, training, not direct)
    layout = lay_out(nodes, first, "float")
    functions = passes(program, layout)
    step, arena = step_function(program, layout.bytes, _example(program, layout))
    functions.append(step)
    if parallel:
        functions.append(_switch(graph, program, layout))
    return assemble(program, arena, [*functions, predict_function(program, layout.output)])


def _write_gradient(graph: Graph, training: Training, trained: frozenset[str]) -> TrainSource:
    """Training by the graph of the gradient."""
    gradient = gradient_of(graph, trained, training.loss)
    unit = Unit()
    parameters = Parameters(unit, "float", trained)
    for name, values in gradient.tensors.items():
        parameters.add(name, values, transposed=False)
    given = graph.inputs[0].dtype
    style = FLOAT_STYLE._replace(types=(given, "float32"))
    sizes = count(graph.in_shape), count(graph.out_shape)
    program = Program(unit, style, parameters, [], 0, sizes, training, True)
    functions, arena = gradient_functions(unit, gradient, parameters.fields)
    target = "target[k]" if training.loss == "cross_entropy" else f"target + k * {sizes[1]}"
    share = "1.0f / (float)count"
    example = [f"loss += rosler_train_example(s, a, x + k * {sizes[0]}, {target}, {share}, g);"]
    step, arena = step_function(program, arena, example)
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
    if program.training.loss == "cross_entropy":
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


def step_function(program: Program, arena: int, example: list[str]) -> tuple[str, int]:
    """The function that takes a step, and the bytes of the arena then.

    Args:
      program: to be written.
      arena: bytes that an example takes.
      example: statements for example ``k``, which add its loss to ``loss`` and its gradient to
        ``g``.
    """
    unit, count = program.unit, program.parameters.count
    before, after = [], []
    gradient = "s->velocity" if program.has_velocity else "s->weights"
    if any(node.begin for node in program.nodes):
        before.append("rosler_train_prepare(s, a);")
    if program.has_velocity:
        unit.use("scale_f32")
        unit.use("add_f32")
        decay = (
            f"rosler_scale_f32(s->velocity, {count}, {float32_literal(program.training.momentum)});"
        )
        clip = program.training.clip
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
    lines = [
        f"    if (count < 1 || count > {program.training.batch}) {{",
        f"        return {refused};",
    ]
    lines.append("    }")
    if program.training.loss == "cross_entropy":
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
        repr((parameters.fields, style.types, program.training.stage, unit.data)).encode("ascii")
    )
    initial = np.concatenate(parameters.initial)
    unit.array(style.number, "rosler_train_initial", initial, "weights")
    unit.functions += [_begin(program), *functions]
    stored = Unit()
    stored.use("store")
    unit.functions += stored.kernels
    state = parameters.count * 4 * (2 if program.has_velocity else 1)
    return TrainSource(
        header=header(program, arena, model),
        source=source_file(HEADER, ("float", "math", "string"), unit),
        arena_bytes=arena,
        state_bytes=state,
        constant_bytes=dict(unit.constant_bytes),
        fields=tuple(parameters.fields),
        scales=style.scales,
        types=style.types,
        training=program.training,
    )
