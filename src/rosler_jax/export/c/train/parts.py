"""Which numbers of a network train on the device."""

from __future__ import annotations

from collections.abc import Sequence

from rosler_jax.export._errors import ExportError
from rosler_jax.export.c.train.parallel import Parallel
from rosler_jax.export.graph import Conv, Dense, Graph, Op, Project

GROUPS = ("all", "cores", "head", "biases")
"""Names for several parameters at once."""


def bias_name(op: Op) -> str:
    """What an operation's bias is called: its layer's number and "bias".

    Example:
      >>> from rosler_jax.export.graph import Flatten
      >>> bias_name(Flatten(name="2/omega", in_shape=(3,), out_shape=(3,)))
      '2/bias'
    """
    return f"{op.name.split('/')[0]}/bias"


def names(op: Op) -> tuple[str, ...]:
    """The names of an operation's parameters."""
    found: tuple[str, ...] = ()
    if isinstance(op, Parallel):
        found = op.names
    elif isinstance(op, Dense | Conv):
        found = (op.weight.name,)
    has_bias = getattr(op, "bias", None) is not None
    return (*found, bias_name(op)) if has_bias else found


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
      >>> from rosler_jax.export.build import build_graph
      >>> specs = [{"kind": "two_factor", "in_features": 4, "out_features": 3, "rank": 1}]
      >>> tensors = {"0/c": np.ones((4, 1)), "0/r": np.ones((1, 3)), "0/bias": np.ones(3)}
      >>> graph = build_graph(specs, tensors)
      >>> sorted(trained_names(graph, "head")), sorted(trained_names(graph, ("0/c", "biases")))
      (['0/bias', '0/r'], ['0/bias', '0/c'])
    """
    known = [name for op in graph.ops for name in names(op)]
    chosen: set[str] = set()
    for part in parts if isinstance(parts, list | tuple | set | frozenset) else (parts,):
        if part == "all":
            chosen.update(known)
        elif part == "cores":
            chosen.update(name for name in known if name.endswith("/u"))
        elif part == "biases":
            chosen.update(name for name in known if name.endswith("/bias"))
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
    last = max(
        (i for i, op in enumerate(graph.ops) if isinstance(op, Dense | Conv | Parallel)), default=0
    )
    found = names(graph.ops[last])
    after = graph.ops[last + 1] if last + 1 < len(graph.ops) else None
    return (*found, *names(after)) if isinstance(after, Project) else found
