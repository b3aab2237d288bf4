"""How often a model applies its layers, and what it multiplies outside of them, from one trace.

Every layer whose work is known is traced as one opaque call that names it, so that scans, vmaps and
shared layers count as often as they run; products that are left (attention scores, an embedding
that attends) are the model's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from flax import nnx

from rosler_jax import _replace
from rosler_jax._operations import Operations, layer_cost

_MARK = "rosler layer "


class Applications(NamedTuple):
    """What one call of a model does.

    Attributes:
      outputs: how many numbers each layer gives, all its applications together, by dotted path.
      products: of the products outside of these layers.
      known: whether all of it is; not inside a ``while_loop``, which runs who knows how often.
    """

    outputs: dict[str, int]
    products: Operations
    known: bool


class _Opaque(nnx.Module):
    """A layer that only says that it was called; attributes are those of the layer."""

    def __init__(self, layer: Any, path: str):
        self.layer, self.path = layer, path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = jax.eval_shape(lambda: self.layer(*args, **kwargs))

        def call(*used: Any) -> Any:
            # Depends on all that the layer does, so that a vmap over any of it shows.
            tie = sum(jnp.ravel(x)[0].astype(out.dtype) for x in used if x.size)
            return jnp.zeros(out.shape, out.dtype) + tie

        call.__name__ = _MARK + self.path
        arrays = [x for x in jax.tree.leaves((nnx.state(self.layer), args)) if _is_number(x)]
        return jax.jit(call)(*arrays)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("layer", "path"):
            raise AttributeError(name)
        return getattr(self.layer, name)


def _is_number(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.number)


def applications(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Applications:
    """Traces one call of an NNX model; nothing is computed.

    Args:
      model: its variables may be abstract.
      args, kwargs: of the call; arrays may be ``jax.ShapeDtypeStruct``.
    """

    def is_layer(node: Any) -> bool:
        return not isinstance(node, nnx.Embed) and layer_cost(node) is not None

    stubbed = _replace.replace(nnx.clone(model), is_layer, _Opaque)
    graphdef, state = nnx.split(stubbed)
    leaves, tree = jax.tree.flatten((args, dict(kwargs)), is_leaf=lambda x: isinstance(x, nnx.Rngs))
    traced = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")]

    def call(state: Any, *arrays: Any) -> Any:
        given = dict(zip(traced, arrays, strict=True))
        fresh = [nnx.clone(x) if isinstance(x, nnx.Rngs) else x for x in leaves]
        args, kwargs = jax.tree.unflatten(tree, [given.get(i, x) for i, x in enumerate(fresh)])
        out = nnx.merge(graphdef, state)(*args, **kwargs)
        return [x for x in jax.tree.leaves(out) if hasattr(x, "dtype")]

    jaxpr = jax.make_jaxpr(call)(state, *(leaves[i] for i in traced))
    return _count(jaxpr.jaxpr, 1)


def _count(jaxpr: jex.Jaxpr, times: int) -> Applications:
    total = Applications({}, Operations(0, 0), True)
    for eqn in jaxpr.eqns:
        total = _sum(total, _count_equation(eqn, times))
    return total


def _count_equation(eqn: jex.JaxprEqn, times: int) -> Applications:
    name = eqn.primitive.name
    label = str(eqn.params.get("name", ""))
    if label.startswith(_MARK):
        given = times * sum(math.prod(_shape(var)) for var in eqn.outvars)
        return Applications({label.removeprefix(_MARK): given}, Operations(0, 0), True)
    if name in _PRODUCTS:
        return Applications({}, times * _PRODUCTS[name](eqn), True)
    inner = [_count(j, times * int(eqn.params.get("length", 1))) for j in _jaxprs(eqn)]
    if name == "cond" and inner:
        return max(inner, key=lambda found: (found.products.multiplications, found.outputs != {}))
    total = Applications({}, Operations(0, 0), True)
    for found in inner:
        total = _sum(total, found)
    idle = not total.outputs and total.products == Operations(0, 0)
    return total._replace(known=total.known and (name != "while" or idle))


def _sum(a: Applications, b: Applications) -> Applications:
    outputs = {k: a.outputs.get(k, 0) + b.outputs.get(k, 0) for k in {**a.outputs, **b.outputs}}
    return Applications(outputs, a.products + b.products, a.known and b.known)


def _jaxprs(eqn: jex.JaxprEqn) -> list[jex.Jaxpr]:
    found = []
    for value in eqn.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            inner = inner.jaxpr if isinstance(inner, jex.ClosedJaxpr) else inner
            found += [inner] if isinstance(inner, jex.Jaxpr) else []
    return found


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(var.aval.shape)


def _dot_general(eqn: jex.JaxprEqn) -> Operations:
    contracted = eqn.params["dimension_numbers"][0][0]
    depth = math.prod(_shape(eqn.invars[0])[axis] for axis in contracted)
    return _summed(depth, math.prod(_shape(eqn.outvars[0])))


def _convolution(eqn: jex.JaxprEqn) -> Operations:
    spec = eqn.params["dimension_numbers"].rhs_spec
    window = _shape(eqn.invars[1])
    depth = math.prod(size for axis, size in enumerate(window) if axis != spec[0])
    return _summed(depth, math.prod(_shape(eqn.outvars[0])))


def _summed(depth: int, outputs: int) -> Operations:
    return Operations(depth * outputs, max(depth - 1, 0) * outputs)


_PRODUCTS: dict[str, Callable[[jex.JaxprEqn], Operations]] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
}
