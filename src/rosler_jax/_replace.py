"""Finding layers anywhere in an NNX model, and putting others in their place."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

IsLayer = Callable[[Any], bool]


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts ``layer10`` after ``layer9``."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def join(path: str, key: Any) -> str:
    """The dotted path of a child."""
    return f"{path}.{key}" if path else str(key)


def children(node: Any) -> list[tuple[Any, Any]]:
    """``(key, child)`` of a container, lists in order; nothing for a leaf."""
    if isinstance(node, nnx.Variable | jax.Array):
        return []
    if isinstance(node, nnx.Pytree):
        items = [kv for kv in vars(node).items() if not kv[0].startswith("_pytree__")]
        return sorted(items, key=lambda kv: natural(kv[0]))
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list | tuple) else []


def survey(model: Any, is_layer: IsLayer) -> tuple[dict[int, list[str]], set[int]]:
    """All paths of every layer by id, and the layers whose weights have other users."""
    uses: dict[int, list[str]] = {}
    owners: dict[int, set[int]] = {}
    layers: dict[int, Any] = {}
    open_nodes: set[int] = set()

    def walk(node: Any, path: str) -> None:
        if is_layer(node):
            uses.setdefault(id(node), []).append(path)
            layers[id(node)] = node
        if id(node) in open_nodes:  # a cycle
            return
        open_nodes.add(id(node))
        for key, child in children(node):
            if isinstance(child, nnx.Variable):
                owners.setdefault(id(child), set()).add(id(node))
            walk(child, join(path, key))
        open_nodes.discard(id(node))

    walk(model, "")

    def is_tied(layer: Any) -> bool:
        variables = [v for k, v in children(layer) if isinstance(v, nnx.Variable) and k != "bias"]
        return any(len(owners[id(v)]) > 1 for v in variables)

    return uses, {i for i, layer in layers.items() if is_tied(layer)}


def replace(model: Any, is_layer: IsLayer, decide: Callable[[Any, str], Any]) -> Any:
    """Rebuilds containers around what ``decide(layer, path)`` returns; each shared node once."""
    return _replace(model, "", is_layer, decide, {})


def _replace(
    node: Any,
    path: str,
    is_layer: IsLayer,
    decide: Callable[[Any, str], Any],
    done: dict[int, tuple[Any, Any]],
) -> Any:
    if id(node) in done:
        return done[id(node)][1]
    if is_layer(node):
        new = decide(node, path)
        done[id(node)] = (node, new)  # holds the old node too, so that its id stays its own
        return new
    items = children(node)
    if not items:
        return node
    if isinstance(node, nnx.Pytree):
        done[id(node)] = (node, node)
    changed = [(k, _replace(child, join(path, k), is_layer, decide, done)) for k, child in items]
    if all(new is old for (_, new), (_, old) in zip(changed, items, strict=True)):
        return node
    return _rebuilt(node, dict(changed))


def _rebuilt(node: Any, items: dict[Any, Any]) -> Any:
    """The container with these children: an NNX object in place, plain Python containers anew."""
    if isinstance(node, nnx.Pytree):
        for key, child in items.items():
            if child is not getattr(node, key):
                wrap = nnx.data if isinstance(child, dict | list | tuple) else (lambda x: x)
                setattr(node, key, wrap(child))
        return node
    if isinstance(node, dict):
        return type(node)(items)
    values = list(items.values())
    return type(node)(*values) if hasattr(node, "_fields") else type(node)(values)
