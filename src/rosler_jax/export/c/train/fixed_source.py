"""A network in fixed point as C that trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rosler_jax.export._errors import ExportError
from rosler_jax.export.c.integers import wire_integers
from rosler_jax.export.c.sketches import Call, project_step
from rosler_jax.export.c.train.chain import frozen_step
from rosler_jax.export.c.train.fixed import (
    TABLE_SIZE,
    TABLE_STEPS,
    Biased,
    FixedOp,
    FixedPlan,
    FixedProduct,
    FixedProject,
    FixedRelu,
    Trainable,
    exp_table,
)
from rosler_jax.export.c.train.fixed_lowering import lower_training
from rosler_jax.export.c.train.memory import Layout, Node, Wires, aligned, frozen, lay_out
from rosler_jax.export.c.train.options import Training
from rosler_jax.export.c.train.parameters import NO_PLACE, Parameters, Place
from rosler_jax.export.c.train.program import Program, Style, declaration
from rosler_jax.export.c.train.source import (
    TrainSource,
    assemble,
    checks,
    passes,
    predict_function,
)
from rosler_jax.export.c.unit import Numbers, Step, Unit
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.kinds import count

ABOUT_LOSS = {
    "cross_entropy": "one minus the mean probability of the labels before the step, times 32768.",
    "mse": "the mean square before the step, in units of ROSLER_TRAIN_OUTPUT_SCALE squared.",
}
RAW = Numbers("raw", "int32_t", "int32_t", "raw", "int32_t", 4)
"""Projections of 32-bit integers whose sums are left as they are."""


def write_fixed(graph: Graph, training: Training, calibration: Any) -> TrainSource:
    """Writes fixed-point training; :func:`write_training` with ``dtype="fixed"`` calls this.

    Raises:
      ExportError: for what only float32 has.
    """
    if training.stage != "successive":
        raise ExportError(
            f"stage {training.stage!r} solves for the cores, which takes float32 only; use "
            "'successive', or float32"
        )
    if training.clip is not None:
        raise ExportError("clip is for float32; fixed-point gradients saturate instead: pass None")
    if calibration is None:
        raise ExportError("fixed point needs calibration inputs, some hundreds as it is used on")
    return write_plan(lower_training(graph, calibration, training))


def write_plan(plan: FixedPlan) -> TrainSource:
    """Writes a plan as C.

    Args:
      plan: from :func:`lower_training`; :func:`train_fixed` says what the C code computes.
    """
    unit = Unit()
    trained = frozenset(p.name for p in plan.parameters())
    parameters = Parameters(unit, "int32_t", trained)
    nodes: list[Node] = []
    if plan.prefix.ops:
        wiring, size = wire_integers(plan.prefix, unit, ["x"]), plan.ops[0].inputs
        nodes.append(frozen(frozen_step(unit, wiring, ("int16_t", "int16_t"), size)))
    first = len(nodes)
    nodes += [EMIT[type(op)](op, parameters, f"train{i}") for i, op in enumerate(plan.ops)]
    last = plan.ops[-1]
    style = Style(
        ("int16", "int16"), (plan.prefix.input_scale, 2.0**-last.fraction), "int32_t", "int",
        "int32_t", "int16_t", "shift", f"{ABOUT_LOSS[plan.training.loss]}\n"
        "   The learning rate is 2^-shift, shift from 0 to 30",
    )  # fmt: skip
    sizes = count(plan.prefix.in_shape), last.outputs
    program = Program(unit, style, parameters, nodes, first, sizes, plan.training, True)
    layout = lay_out(nodes, first, "int16_t")
    functions = [*passes(program, layout), _step(program, plan, layout)]
    functions.append(predict_function(program, layout.output))
    return assemble(program, layout.bytes + aligned(4 * last.outputs), functions)


def _add(parameters: Parameters, parameter: Trainable, label: str) -> Place:
    if parameter.trains:
        return parameters.add(parameter.name, parameter.values, parameter.fraction)
    ctype = "int32_t" if parameter.values.dtype.itemsize == 4 else "int16_t"
    return Place(parameters.unit.array(ctype, label, parameter.values.T, "weights"))


def _add_bias(op: Biased, parameters: Parameters, label: str) -> Place:
    return NO_PLACE if op.bias is None else _add(parameters, op.bias, f"{label}_bias")


_BIAS_INPUT = "static const int16_t rosler_one[1] = {1};"
"""A bias is a weight of an input that is one."""


def _bias_gradient(op: Biased, parameters: Parameters, bias: Place, dy: str) -> str:
    if op.bias is None or not bias.trains:
        return ""
    parameters.unit.use("fixed_outer")
    if _BIAS_INPUT not in parameters.unit.data:
        parameters.unit.data.append(_BIAS_INPUT)
    shift = f"e - {op.bias.velocity_fraction}"
    return f"rosler_fixed_outer({dy}, {op.outputs}, rosler_one, 1, {shift}, {bias.gradient}); "


def _product(op: FixedProduct, parameters: Parameters, label: str) -> Node:
    unit, m, n = parameters.unit, op.inputs, op.outputs
    weight = _add(parameters, op.weight, f"{label}_weights")
    bias = _add_bias(op, parameters, label)
    trains = weight.trains
    kind = "w32" if trains else "w16"
    names = {
        "K": kind, "T": "int32_t" if trains else "int16_t",
        "GET": "rosler_half" if trains else "", "HALF": ", fixed_half" if trains else "",
    }  # fmt: skip
    unit.use("fixed_dense", names)

    def backward(w: Wires) -> str:
        text = _bias_gradient(op, parameters, bias, w.dy)
        if trains:
            unit.use("fixed_outer")
            shift = f"e + {op.in_fraction} - {op.weight.velocity_fraction}"
            outer = f"{w.dy}, {n}, {w.x}, {m}, {shift}, {weight.gradient}"
            text += f"rosler_fixed_outer({outer}); "
        if w.dx:
            unit.use("fixed_dense_back", names)
            unit.use("fixed_normalise")
            t = f"(int32_t *)({w.back_scratch})"
            e = f"e + {op.weight_fraction} - {op.pre}"
            text += (
                f"rosler_fixed_dense_back_{kind}({w.dy}, {m}, {n}, {weight.value}, {op.pre}, {t}); "
                f"e = rosler_fixed_normalise({t}, {m}, {e}, {w.dx});"
            )
        return text.strip()

    return Node(
        forward=lambda w: (
            f"rosler_fixed_dense_{kind}({w.x}, {m}, {n}, {weight.value}, {bias.value}, "
            f"{op.up}, {op.shift}, {w.y});"
        ),
        backward=backward,
        out_bytes=2 * n,
        error_bytes=2 * n,
        keeps_input=trains,
        backward_scratch=4 * m,
    )


def _projection(op: FixedProject, unit: Unit, label: str, transpose: bool) -> Step:
    return project_step(Call(unit, RAW, label, op.sketch, "0"), transpose, 1)


def _project(op: FixedProject, parameters: Parameters, label: str) -> Node:
    unit, m, n = parameters.unit, op.inputs, op.outputs
    below = parameters.below
    bias = _add_bias(op, parameters, label)
    forth = _projection(op, unit, label, op.transpose)
    back = _projection(op, unit, f"{label}_back", not op.transpose) if below else None
    for kernel in ("fixed_widen", "fixed_finish"):
        unit.use(kernel)

    def raw(step: Step, x: str, count: int, scratch: str, outer: int) -> tuple[str, str]:
        """Statements that project a vector, and the sums."""
        wide = f"(int32_t *)({scratch})"
        sums = f"(int32_t *)({scratch} + {aligned(4 * count)})"
        rest = f"({scratch} + {aligned(4 * count) + aligned(4 * outer)})"
        return f"rosler_fixed_widen({x}, {count}, {wide}); {step.call(wide, sums, rest)}", sums

    def forward(w: Wires) -> str:
        text, sums = raw(forth, w.x, m, w.scratch, n)
        finish = f"{sums}, {n}, {op.multiplier}, {bias.value}, {op.up}, {op.shift}, {w.y}"
        return f"{text} rosler_fixed_finish({finish});"

    def backward(w: Wires) -> str:
        text = _bias_gradient(op, parameters, bias, w.dy)
        if back and w.dx:
            unit.use("fixed_normalise")
            unit.use("fixed_mantissa")
            down, sums = raw(back, w.dy, n, w.back_scratch, m)
            text += (
                f"{down} rosler_fixed_mantissa({sums}, {m}, {op.mantissa}); "
                f"e = rosler_fixed_normalise({sums}, {m}, e - ({op.exponent}), {w.dx});"
            )
        return text.strip()

    both = aligned(4 * m) + aligned(4 * n)
    return Node(
        forward=forward,
        backward=backward,
        out_bytes=2 * n,
        error_bytes=2 * n,
        forward_scratch=both + forth.scratch_bytes,
        backward_scratch=both + back.scratch_bytes if back else 0,
    )


def _relu(op: FixedRelu, parameters: Parameters, label: str) -> Node:
    unit, n = parameters.unit, op.outputs
    unit.use("relu_i16")

    def backward(w: Wires) -> str:
        unit.use("fixed_relu_back")
        return f"rosler_fixed_relu_back({w.y}, {n}, {w.dy});"

    return Node(
        forward=lambda w: f"rosler_relu_i16({w.x}, {n}, {w.y});",
        backward=backward,
        out_bytes=2 * n,
        error_bytes=2 * n,
        keeps_output=True,
        in_place=True,
    )


EMIT: dict[type[FixedOp], Callable[[Any, Parameters, str], Node]] = {
    FixedProduct: _product,
    FixedProject: _project,
    FixedRelu: _relu,
}
"""Each fixed-point operation as C: a new one is one line here."""


def _error(program: Program, plan: FixedPlan, layout: Layout) -> tuple[str, list[str]]:
    """C expression of an example's loss, which leaves the error; and what comes before the loop."""
    unit, n, fraction = program.unit, program.sizes[1], plan.ops[-1].fraction
    t = f"(int32_t *)(a + {layout.bytes})"
    batch = plan.training.batch
    if plan.training.loss == "mse":
        unit.use("fixed_squares")
        error = (
            f"rosler_fixed_squares({layout.output}, {n}, target + k * {n}, share, "
            f"{fraction} + bits - 1, {t}, {layout.error}, &e)"
        )
        return error, [
            f"const int32_t number = count > 0 && count <= {batch} ? count * {n} : 1;",
            "const int bits = 14 + rosler_fixed_bits(number);",
            "const int32_t share = (int32_t)((((int64_t)1 << bits) + number / 2) / number);",
        ]
    unit.use("fixed_softmax", {"LAST": str(TABLE_SIZE - 1)})
    table = unit.array("uint16_t", "rosler_train_exp", exp_table(), "tables")
    error = (
        f"rosler_fixed_cross_entropy({layout.output}, {n}, target[k], {fraction - TABLE_STEPS}, "
        f"{table}, share, {t}, {layout.error}, &e)"
    )
    return error, ["const int32_t share = count > 0 ? (32768 + count / 2) / count : 0;"]


def _step(program: Program, plan: FixedPlan, layout: Layout) -> str:
    """The function that takes a step."""
    unit, parameters = program.unit, program.parameters
    for kernel in ("fixed_decay", "fixed_update"):
        unit.use(kernel)
    error, before = _error(program, plan, layout)
    updates = []
    for field, p in zip(parameters.fields, plan.parameters(), strict=True):
        place = f"s->velocity + {field.offset}, {field.size}"
        shift = f"shift + ({p.velocity_fraction - p.fraction})"
        updates.append(f"rosler_fixed_update({place}, {shift}, s->weights + {field.offset});")
    return "\n".join(
        [
            declaration(program) + "\n{",
            "    rosler_state *const s = state;",
            "    unsigned char *const a = (unsigned char *)arena->words;",
            *(f"    {line}" for line in before),
            "    int64_t loss = 0;",
            "    int k, e;",
            "    if (shift < 0 || shift > 30) {",
            "        return -1;",
            "    }",
            *checks(program, "-1"),
            f"    rosler_fixed_decay(s->velocity, {parameters.count}, {plan.momentum});",
            "    for (k = 0; k < count; ++k) {",
            f"        const int16_t *const example = x + k * {program.sizes[0]};",
            "        rosler_train_forward(s, a, example);",
            f"        loss += {error};",
            "        rosler_train_backward(s, a, example, s->velocity, e);",
            "    }",
            *(f"    {line}" for line in updates),
            "    return (int32_t)(loss / count);",
            "}",
        ]
    )
