"""Any model's training step as graphs: its outputs, and one example's gradient added to others.

Both are traced from the model's own graph with the tensors that train as inputs, so that whatever
has C code for inference has it for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax.export._errors import ExportError
from rosler_jax.export.c.gradients import accumulating
from rosler_jax.export.c.program import wire
from rosler_jax.export.c.train.parameters import Field
from rosler_jax.export.c.unit import Unit
from rosler_jax.export.c.wiring import statements, unused
from rosler_jax.graph.compute import run
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.kinds import count
from rosler_jax.graph.trace import trace
from rosler_jax.graph.weight import Weight


class Gradient(NamedTuple):
    """The two functions of a training program.

    Attributes:
      tensors: what trains, by name, as the file holds it.
      forward: outputs; its inputs are the tensors in order, and the example.
      example: the loss; gradients are added to those in ``g``, where the tensors lie in order. Its
        inputs are the tensors, the example, its label or targets, and its share in the mean.
    """

    tensors: dict[str, np.ndarray]
    forward: Graph
    example: Graph


def gradient_of(graph: Graph, trained: frozenset[str], loss: str) -> Gradient:
    """Traces a model's training.

    Args:
      graph: the model, of one input and one output.
      trained: names of the tensors that train.
      loss: ``"cross_entropy"`` or ``"mse"``.

    Raises:
      ExportError: for several inputs or outputs.
      TraceError: for a gradient that a graph does not have.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ExportError(
            f"a model of {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; training in "
            "C takes one of each"
        )
    tensors = {
        w.name: Weight(w.name, w.stored).values for w in graph.weights() if w.name in trained
    }
    given, n = graph.inputs[0], count(graph.out_shape)

    def predict(params: Any, x: Any) -> Any:
        return run(graph, [x], dict(zip(tensors, params, strict=True)))[0]

    def example(params: Any, x: Any, target: Any, share: Any) -> Any:
        y, back = jax.vjp(lambda params: predict(params, x).ravel(), params)
        lost, error = LOSSES[loss](y, target)
        (grads,) = back(share * error)
        return grads, lost

    x = jax.ShapeDtypeStruct(given.shape, given.dtype)
    params = [jax.ShapeDtypeStruct(v.shape, "float32") for v in tensors.values()]
    label = loss == "cross_entropy"
    target = jax.ShapeDtypeStruct(() if label else (n,), "int32" if label else "float32")
    share = jax.ShapeDtypeStruct((), "float32")
    whole = {"batch_axes": None, "out_axes": None}
    forward = trace(predict, params, x, **whole)
    traced = trace(example, params, x, target, share, **whole)
    return Gradient(tensors, forward, accumulating(traced))


def _cross_entropy(y: Any, label: Any) -> tuple[Any, Any]:
    logs = jax.nn.log_softmax(y)
    hot = (jnp.arange(y.size, dtype=jnp.int32) == label).astype(y.dtype)
    return -jnp.sum(hot * logs), jnp.exp(logs) - hot


def _squares(y: Any, target: Any) -> tuple[Any, Any]:
    error = y - target
    return jnp.sum(error * error) / y.size, (2.0 / y.size) * error


LOSSES = {"cross_entropy": _cross_entropy, "mse": _squares}
"""Of each loss its value and its gradient, from outputs and a label, or targets."""


def gradient_functions(
    unit: Unit, gradient: Gradient, fields: Sequence[Field]
) -> tuple[list[str], int]:
    """The functions that predict and that add one example's gradient, and bytes of the arena.

    Gradients are added in ``g``.
    """
    weights = [f"(s->weights + {field.offset})" for field in fields]
    forward = wire(gradient.forward, unit, [*weights, "x"], "predict")
    lines, arena = statements(forward, ["y"], unit.poison)
    predict = [
        "void rosler_train_predict(const rosler_state *state, rosler_train_arena *arena,",
        "    const rosler_train_input *x, rosler_train_output *y)\n{",
        "    const rosler_state *const s = state;",
        "    unsigned char *const a = (unsigned char *)arena->words;",
        *(f"    {line}" for line in (*unused(lines, ("s", "a", "x")), *lines)), "}",
    ]  # fmt: skip
    given = gradient.example.inputs[-2]
    label = given.dtype == "int32"
    names = [*weights, "x", "&target" if label else "target", "&share"]
    lines, other = statements(
        wire(gradient.example, unit, names, "example"), ["&loss"], unit.poison
    )
    head = [
        "static float rosler_train_example(const rosler_state *s, unsigned char *a,",
        f"    const rosler_train_input *x, const {'int32_t ' if label else 'float *'}target, "
        "const float share, float *g)\n{",
        "    float loss;",
    ]
    body = [*unused(lines, ("s", "a", "x", "target", "share", "g")), *lines, "return loss;"]
    functions = ["\n".join(predict)]
    functions.append("\n".join([*head, *(f"    {line}" for line in body), "}"]))
    return functions, max(arena.bytes, other.bytes)
