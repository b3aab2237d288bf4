"""Which numbers of a model train on the device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from rosler_jax._paths import role_name
from rosler_jax.export._errors import ExportError
from rosler_jax.export.c.train.parallel import Parallel
from rosler_jax.graph.graph import Graph, op_weights
from rosler_jax.graph.kinds import Conv, Dense, Op, Project
from rosler_jax.graph.weight import Weight

GROUPS = ("all", "cores", "head", "biases")
"""Names for several parameters at once."""


def names(op: Op) -> tuple[str, ...]:
    """The names of an operation's parameters: tensors of floats."""
    if isinstance(op, Parallel):
        return (*op.names, *((op.bias.name,) if op.bias else ()))
    return tuple(w.name for w in op_weights(op) if w.values.dtype.kind == "f")


def all_names(graph: Graph) -> list[str]:
    """The names of a graph's parameters; those without a name are none."""
    found = [name for op in graph.ops for name in names(op)]
    found += [w.name for w in graph.constants.values() if w.values.dtype.kind == "f"]
    return [name for name in dict.fromkeys(found) if not name.startswith("constant")]


def trained_names(graph: Graph, parts: str | Sequence[str]) -> frozenset[str]:
    """The parameters that train.

    Args:
      graph: the network.
      parts: names of parameters, ``"2/u"`` or ``"4/bias"``, or of groups: ``"all"``, ``"cores"``
        (every U), ``"head"`` (the last product, with its bias), ``"biases"``.

    Raises:
      ExportError: for a name that there is not, or if nothing is left to train.

    Example:
      >>> import numpy as np
      >>> from rosler_jax.graph.version1 import build_graph
      >>> specs = [{"kind": "two_factor", "in_features": 4, "out_features": 3, "rank": 1}]
      >>> tensors = {"0/c": np.ones((4, 1)), "0/r": np.ones((1, 3)), "0/bias": np.ones(3)}
      >>> graph = build_graph(specs, tensors)
      >>> sorted(trained_names(graph, "head")), sorted(trained_names(graph, ("0/c", "biases")))
      (['0/bias', '0/r'], ['0/bias', '0/c'])
    """
    known = all_names(graph)
    chosen: set[str] = set()
    for part in parts if isinstance(parts, list | tuple | set | frozenset) else (parts,):
        if part == "all":
            chosen.update(known)
        elif part == "cores":
            chosen.update(name for name in known if role_name(name) == "u")
        elif part == "biases":
            chosen.update(name for name in known if role_name(name) == "bias")
        elif part == "head":
            chosen.update(_head(graph))
        elif part in known:
            chosen.add(part)
        else:
            raise ExportError(
                f"parts {part!r} is no parameter of this network; use {', '.join(GROUPS)}, or one "
                f"of {', '.join(known) or 'none: it has no parameters'}"
            )
    if not chosen:
        raise ExportError(
            f"parts {parts!r} leaves nothing to train; the network's parameters are "
            f"{', '.join(known) or 'none'}"
        )
    return frozenset(chosen)


def _head(graph: Graph) -> tuple[str, ...]:
    """The last product's parameters, and the bias that comes after it in a seeded layer."""
    products = Dense | Conv | Parallel
    last = max((i for i, op in enumerate(graph.ops) if isinstance(op, products)), default=None)
    if last is None:
        return ()
    found = names(graph.ops[last])
    after = graph.ops[last + 1] if last + 1 < len(graph.ops) else None
    return (*found, *names(after)) if isinstance(after, Project) else found


def parameters_of(graph: Graph) -> Graph:
    """A graph whose tensors are the model's parameters, where tracing had computed with them.

    A seeded layer's core is traced to ``U* = a U``, with ``a`` the scale of its input's sketch: the
    sketch takes the scale, so that U itself trains.
    """
    ops: list[Op] = list(graph.ops)
    for i, op in enumerate(ops):
        core: Any = ops[i - 1] if i else None
        if not isinstance(op, Project) or not op.transpose or not isinstance(core, Dense | Conv):
            continue
        psi = ops[i - 2] if i > 1 else None
        if core.weight.source == core.weight.name:
            continue
        values = core.weight.values
        if isinstance(psi, Project) and not psi.transpose and psi.scale == 1.0:
            scale = math.sqrt(psi.sketch.cols / psi.sketch.rows)
            ops[i - 2] = dataclasses.replace(psi, scale=scale)
            values = values / scale
        weight = Weight(core.weight.source, values.astype("float32"))
        ops[i - 1] = dataclasses.replace(core, weight=weight)
    return dataclasses.replace(graph, ops=tuple(ops))
