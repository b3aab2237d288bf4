"""``trace``: from a model and examples of its inputs to its graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rosler_jax._paths import path_name
from rosler_jax.graph._builder import Builder, Held, dtype_name, known
from rosler_jax.graph._fold import simplified
from rosler_jax.graph._jaxpr import walk
from rosler_jax.graph._rewrite import named_apart
from rosler_jax.graph._source import TraceError
from rosler_jax.graph.graph import Graph, Value
from rosler_jax.graph.weight import Weight


def trace(
    model: Any, *examples: Any, batch_axes: Any = 0, out_axes: Any = 0, **kwargs: Any
) -> Graph:
    """A model as a graph of plain operations, with its weights.

    The model is traced once, on inputs of one example; nothing of it is computed but what does not
    depend on the inputs, which becomes constants (batch normalisation at inference among it). All
    floats are float32 in the graph.

    Args:
      model: an NNX module (traced as it evaluates: without dropout, by running statistics), a
        Linen ``(module, variables)``, ``(function, params)``, or a function.
      *examples: arguments of the model: arrays, or ``jax.ShapeDtypeStruct``, in any nesting.
      batch_axes: which axis of each example is the batch's, as ``in_axes`` of ``jax.vmap``; None
        where there is none.
      out_axes: the same of what the model returns.
      **kwargs: of the call, as they are.

    Returns:
      The graph, of one example.

    Raises:
      TraceError: for what a graph does not have; names it, and the line of the program.

    Example:
      >>> graph = trace(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), jnp.ones((8, 4)))
      >>> [(type(op).__name__, op.weight.name) for op in graph.ops], graph.out_shape
      ([('Dense', 'kernel')], (2,))
    """
    return _traced(model, examples, {}, (batch_axes, out_axes), kwargs)


def trace_stored(model: Any, stored: Mapping[str, Weight], *examples: Any) -> Graph:
    """The same, of a model whose state is held by stored arrays (integers, say), by path."""
    return _traced(model, examples, stored, (0, 0), {})


class Skeleton(NamedTuple):
    """A model traced without its numbers.

    Attributes:
      closed: the program, of the numbers and then the inputs.
      names: where the numbers are in the model, in order.
      inputs: of each its path, its shape with a batch of one, and the batch's axis.
      out_axes: the batch's of each output.
      out: structure of the outputs, and their paths.
    """

    closed: Any
    names: tuple[str, ...]
    inputs: tuple[tuple[str, jax.ShapeDtypeStruct, int | None], ...]
    out_axes: tuple[int | None, ...]
    out: tuple[Any, tuple[str, ...]]


def _traced(
    model: Any, examples: Any, stored: Mapping[str, Weight], both_axes: Any, kwargs: dict[str, Any]
) -> Graph:
    call, state = _callable(model, kwargs)
    skeleton = _skeleton(call, state, examples, both_axes)
    return filled(skeleton, jax.tree.leaves(state), stored)


def skeleton_of(model: Any, *examples: Any, **kwargs: Any) -> Skeleton:
    """What :func:`trace` finds in a model before it looks at its numbers; arguments as there."""
    return _skeleton(*_callable(model, kwargs), examples, (0, 0))


def _skeleton(call: Callable[..., Any], state: Any, examples: Any, both_axes: Any) -> Skeleton:
    batch_axes, out_axes = both_axes
    named, tree = jax.tree_util.tree_flatten_with_path(state)
    leaves, in_tree = jax.tree_util.tree_flatten_with_path(examples)
    axes = _axes(batch_axes, examples)
    inputs = [
        (path_name(path), _one(x, axis, path_name(path)), axis)
        for (path, x), axis in zip(leaves, axes, strict=True)
    ]
    struct: list[Any] = []

    def flat(*given: Any) -> list[Any]:
        params = jax.tree.unflatten(tree, given[: len(named)])
        args = jax.tree.unflatten(in_tree, given[len(named) :])
        out = call(params, *args)
        found, treedef = jax.tree_util.tree_flatten_with_path(out)
        struct.append((treedef, tuple(path_name(path) for path, _ in found), out))
        return [jnp.asarray(x) for _, x in found]

    closed = jax.make_jaxpr(flat)(*(leaf for _, leaf in named), *(aval for _, aval, _ in inputs))
    treedef, names, out = struct[-1]
    names_in = tuple(path_name(path) for path, _ in named)
    return Skeleton(closed, names_in, tuple(inputs), tuple(_axes(out_axes, out)), (treedef, names))


def filled(
    skeleton: Skeleton, leaves: Sequence[Any], stored: Mapping[str, Weight] = MappingProxyType({})
) -> Graph:
    """The graph of a model of these numbers, in the order of the skeleton's names."""
    b = Builder()
    held = [_held(name, x, stored) for name, x in zip(skeleton.names, leaves, strict=True)]
    inputs, args = [], []
    for name, aval, axis in skeleton.inputs:
        x = b.input(tuple(aval.shape), dtype_name(aval.dtype))
        args.append(x)
        inputs.append(Value(int(x.source), name, _without(x.shape, axis), x.dtype))
    closed, (treedef, names) = skeleton.closed, skeleton.out
    results = walk(b, closed.jaxpr, closed.consts, [*held, *args])
    outputs = [
        _output(b, x, name, axis)
        for x, name, axis in zip(results, names, skeleton.out_axes, strict=True)
    ]
    structure = _structure(jax.tree.unflatten(treedef, range(len(outputs))))
    return named_apart(simplified(b.graph(inputs, outputs, structure)))


def _held(name: str, leaf: Any, stored: Mapping[str, Weight]) -> Held:
    held = known(leaf, name)
    return dataclasses.replace(held, source=stored[name]) if name in stored else held


def _callable(model: Any, kwargs: dict[str, Any]) -> tuple[Callable[..., Any], Any]:
    """A function of state and arguments, and the state."""
    if isinstance(model, nnx.Module):
        copy = nnx.clone(model)  # the caller's keeps its mode
        copy.eval()
        graphdef, state = nnx.split(copy)

        def call(state: Any, *args: Any) -> Any:
            return nnx.merge(graphdef, state)(*args, **kwargs)

        return call, state
    if isinstance(model, tuple) and len(model) == 2:
        function, params = model
        if hasattr(function, "apply"):
            return lambda variables, *args: function.apply(variables, *args, **kwargs), params
        if callable(function):
            return lambda params, *args: function(params, *args, **kwargs), params
    if callable(model):
        return lambda _, *args: model(*args, **kwargs), ()
    raise TraceError(
        f"a model of type {type(model).__name__}; expected an NNX module, a Linen (module, "
        "variables), (function, params), or a function"
    )


def _axes(prefix: Any, tree: Any) -> list[int | None]:
    """The batch axis of every leaf."""
    spread = jax.tree.map(
        lambda axis, part: jax.tree.map(lambda _: axis, part), prefix, tree,
        is_leaf=lambda x: x is None,
    ) if not isinstance(prefix, int | None) else jax.tree.map(lambda _: prefix, tree)  # fmt: skip
    return jax.tree.leaves(spread, is_leaf=lambda x: x is None)


def _one(x: Any, axis: int | None, name: str) -> jax.ShapeDtypeStruct:
    shape = list(np.shape(x) if not hasattr(x, "shape") else x.shape)
    if axis is not None:
        if len(shape) <= axis:
            raise TraceError(
                f"input {name} has the shape {tuple(shape)} and no axis {axis}; pass examples with "
                "a batch axis, or batch_axes=None where there is none"
            )
        shape[axis] = 1
    dtype = x.dtype if hasattr(x, "dtype") else np.result_type(x)
    return jax.ShapeDtypeStruct(tuple(shape), jax.dtypes.canonicalize_dtype(dtype))


def _without(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    return shape if axis is None else shape[:axis] + shape[axis + 1 :]


def _output(b: Builder, x: Held, name: str, axis: int | None) -> Value:
    if axis is not None and x.shape and x.shape[axis] != 1:
        raise TraceError(
            f"output {name or '0'} has the shape {x.shape} for a batch of one; expected 1 at axis "
            f"{axis}: pass out_axes where the batch is, or None where there is none"
        )
    x = b.whole(x)
    return Value(b.read(x), name, _without(x.shape, axis) if x.shape else (), x.dtype)


def _structure(tree: Any) -> Any:
    """Nested lists and dicts of a tree's leaves; None for one array."""
    if isinstance(tree, int):
        return None if tree == 0 else tree

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            return {str(k): plain(v) for k, v in node.items()}
        if isinstance(node, list | tuple):
            return [plain(v) for v in node]
        return node

    return plain(tree)
