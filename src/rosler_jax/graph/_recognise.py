"""Functions of JAX and Flax found again in what they were traced to.

Templates are traced from the functions themselves, on the versions in use, by the same rules as the
model; one that is found at an operation, with any value for the template's input, is put back as
one operation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rosler_jax.graph._builder import Builder
from rosler_jax.graph._limits import limits
from rosler_jax.graph._rewrite import Known, each
from rosler_jax.graph.functions import FUNCTIONS
from rosler_jax.graph.graph import Graph, Value
from rosler_jax.graph.kinds import Map, Norm, Op, Softmax
from rosler_jax.graph.weight import Shape, Weight

_EPSILON = 0.2783203125  # stands for any constant; exact in every dtype
UNARY = ("gelu", "gelu_exact", "silu", "hard_sigmoid", "hard_swish", "softplus", "elu")
COMMUTATIVE = ("add", "mul", "max", "min")


class _Found(NamedTuple):
    """Values of the graph by the template's inputs, and what stands for its epsilon."""

    inputs: dict[int, int]
    epsilon: list[float]


def recognised(graph: Graph) -> Graph:
    """A graph with softmax, norms and composite functions as one operation each."""
    return each(_shaped, _unary, backwards=True)(graph)  # a silu before the sigmoid within it


def _unary(known: Known, op: Op) -> None:
    if not isinstance(op, Map) or op.dtypes[0] != "float32":
        return
    for name in UNARY:
        template = _template(name, (3,))
        if not _ends_alike(template, op):
            continue
        found = _Found({}, [])
        if _matches(template, template.outputs[0].id, known, op.output, found, shaped=False):
            (value,) = found.inputs.values()
            if value in known.constants:
                continue
            known.put(op, dataclasses.replace(
                op, inputs=(value,), in_shapes=(op.out_shape,), function=name, numbers=()
            ))  # fmt: skip
            return


def _shaped(known: Known, op: Op) -> None:
    if not isinstance(op, Map) or op.function not in ("div", "sub", "mul") or len(op.out_shape) < 1:
        return
    if op.out_shape not in known.reduced:
        return
    for make, function in TEMPLATES.items():
        template = _template(make, op.out_shape)
        if not _ends_alike(template, op):
            continue
        found = _Found({}, [])
        if _matches(template, template.outputs[0].id, known, op.output, found, shaped=True):
            new = function(known, op, template, found)
            if new is not None:
                known.put(op, new)
                return


def _ends_alike(template: Graph, op: Map) -> bool:
    """Whether a template's last operation is such a one: most are told apart by it."""
    root = template.producers()[template.outputs[0].id]
    return isinstance(root, Map) and root.function == op.function


def _rows(shape: Shape) -> Shape:
    return (math.prod(shape[:-1]), shape[-1])


def _softmax(log: bool) -> Callable[..., Op | None]:
    def make(known: Known, op: Op, template: Graph, found: _Found) -> Op | None:
        value = found.inputs[template.inputs[0].id]
        rows = _rows(op.out_shape)
        return Softmax(name=_renamed("softmax", op), inputs=(value,), outputs=op.outputs,
                       in_shapes=(rows,), out_shapes=(rows,), log=log)  # fmt: skip

    return make


def _renamed(kind: str, op: Op) -> str:
    """Unique, since the operation's own name is."""
    return f"{kind}:{op.name}"


def _norm(center: bool) -> Callable[..., Op | None]:
    def make(known: Known, op: Op, template: Graph, found: _Found) -> Op | None:
        values = [found.inputs.get(value.id) for value in template.inputs]
        scale: Weight | None = None
        if len(values) > 1:
            if values[1] not in known.constants:
                return None
            scale = known.constants[values[1]]
        rows = _rows(op.out_shape)
        if scale is not None and scale.values.size != rows[-1]:
            return None
        if scale is not None and scale.values.ndim != 1:
            scale = scale.then("reshape", (rows[-1],))
        assert values[0] is not None
        return Norm(name=_renamed("norm", op), inputs=(values[0],), outputs=op.outputs,
                    in_shapes=(rows,), out_shapes=(rows,), center=center,
                    epsilon=found.epsilon[0], scale=scale)  # fmt: skip

    return make


def _flax_norm(cls: Any, **options: Any) -> Callable[..., Any]:
    def apply(x: Any, *scale: Any) -> Any:
        layer = cls(
            x.shape[-1], epsilon=_EPSILON, use_scale=bool(scale), rngs=nnx.Rngs(0), **options
        )
        if scale:
            layer.scale[...] = scale[0]
        return layer(x)

    return apply


def _centered(x: Any) -> Any:
    return x - x.mean(-1, keepdims=True)


def _variance(x: Any) -> Any:
    return jnp.var(x, -1, keepdims=True) + _EPSILON


def _square(x: Any) -> Any:
    return jnp.mean(x * x, -1, keepdims=True) + _EPSILON


_LAYERS: dict[str, tuple[Callable[..., Any], int]] = {
    "softmax": (jax.nn.softmax, 1),
    "log_softmax": (jax.nn.log_softmax, 1),
    **{
        f"layer_norm{'_scale' * s}{'_slow' * slow}": (
            _flax_norm(nnx.LayerNorm, use_bias=False, use_fast_variance=not slow), 1 + s
        )
        for s in (0, 1)
        for slow in (0, 1)
    },
    "rms_norm": (_flax_norm(nnx.RMSNorm), 1),
    "rms_norm_scale": (_flax_norm(nnx.RMSNorm), 2),
    "layer_norm_rsqrt": (lambda x: _centered(x) * jax.lax.rsqrt(_variance(x)), 1),
    "layer_norm_sqrt": (lambda x: _centered(x) / jnp.sqrt(_variance(x)), 1),
    "rms_norm_rsqrt": (lambda x: x * jax.lax.rsqrt(_square(x)), 1),
    "rms_norm_sqrt": (lambda x: x / jnp.sqrt(_square(x)), 1),
}  # fmt: skip
"""What is traced for a template, and of how many inputs: values, and a vector of scales."""

TEMPLATES: dict[str, Callable[..., Op | None]] = {
    name: _softmax(name == "log_softmax") if "softmax" in name else _norm("layer" in name)
    for name in _LAYERS
}
"""What is put in the place of a template."""


@functools.lru_cache(maxsize=512)
def _template(name: str, shape: Shape) -> Graph:
    """A function as a graph, on one input of that shape (and a vector of its last axis)."""
    from rosler_jax.graph._jaxpr import walk

    function, count = _LAYERS.get(name) or (FUNCTIONS[name].compute, 1)
    shapes = [shape, shape[-1:]][:count]
    avals = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    closed = jax.make_jaxpr(function)(*avals)
    b = Builder()
    given = [b.input(s, "float32") for s in shapes]
    (out,) = walk(b, closed.jaxpr, closed.consts, given)
    out = b.whole(out)
    inputs = [Value(int(x.source), str(i), x.shape) for i, x in enumerate(given)]
    return each(limits)(b.graph(inputs, [Value(b.read(out), "0", out.shape)]))


def _matches(
    template: Graph, wanted: int, known: Known, value: int, found: _Found, *, shaped: bool
) -> bool:
    """Whether a value of the graph is computed as a value of the template is."""
    if any(wanted == x.id for x in template.inputs):
        return found.inputs.setdefault(wanted, value) == value
    if wanted in template.constants:
        number = known.scalar(value)
        expected = float(template.constants[wanted].values.flat[0])
        if number is not None and abs(expected - _EPSILON) < 1e-9:
            found.epsilon.append(number)
            return True
        return number is not None and np.float32(number) == np.float32(expected)
    pattern = template.producers()[wanted]
    op = known.ops.get(value)
    if op is None or type(op) is not type(pattern):
        return False
    names = {"function", "numbers", "axes", "scale"} & {f.name for f in dataclasses.fields(op)}
    if any(getattr(op, name) != getattr(pattern, name) for name in names):
        return False
    if shaped and (op.in_shapes != pattern.in_shapes or op.out_shapes != pattern.out_shapes):
        return False
    orders = [tuple(range(len(op.inputs)))]
    if isinstance(op, Map) and op.function in COMMUTATIVE:
        orders.append(orders[0][::-1])
    for order in orders:
        trial = _Found(dict(found.inputs), list(found.epsilon))
        if all(
            _matches(template, w, known, op.inputs[k], trial, shaped=shaped)
            for w, k in zip(pattern.inputs, order, strict=True)
        ):
            found.inputs.update(trial.inputs)
            found.epsilon[:] = trial.epsilon
            return True
    return False
