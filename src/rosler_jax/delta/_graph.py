"""The weights of a graph as a base model: by their names, as the model had them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rosler_jax._quantized import QuantizedTensor, to_numpy
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.kinds import Conv, Dense
from rosler_jax.views import MatrixView

if TYPE_CHECKING:
    from rosler_jax.views import View


def as_base(base: Any, view: View) -> tuple[Any, View]:
    """A graph's stored weights and their views; anything else as it is.

    Args:
      base: a graph, a model that was loaded from its file, or any other base model.
      view: kept, if there is one.
    """
    graph = getattr(base, "graph", base)
    if not isinstance(graph, Graph):
        return base, view
    stored = {weight.name: weight.stored for weight in graph.weights()}
    params = {
        name: to_numpy(array) if isinstance(array, QuantizedTensor) else array
        for name, array in stored.items()
    }
    if view is not None:
        return params, view
    found: dict[str, MatrixView] = {}
    for op in graph.ops:
        if isinstance(op, Dense | Conv):
            last = len(op.weight.stored.shape) - 1
            groups = op.window.groups if isinstance(op, Conv) else 1
            found[op.weight.name] = MatrixView(tuple(range(last)), (last,), groups=groups)
    return params, lambda name, shape: found.get(name)
