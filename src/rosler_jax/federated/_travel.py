"""Which numbers of a model travel, and where they are put again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from rosler_jax._paths import TRAINING_ONLY, path_name, role_name

if TYPE_CHECKING:
    from jaxtyping import PyTree


def travelling(params: PyTree, buffers: PyTree) -> dict[str, dict[str, Any]]:
    """The floating-point leaves of a model by name, ``{"params": ..., "statistics": ...}``.

    Seeds are known to all, and what only says something of a layer's training is no weight.

    Example:
      >>> travelling({"u": jnp.ones(2), "fingerprint": jnp.ones(32)}, {"seed": jnp.arange(2)})
      {'params': {'u': Array([1., 1.], dtype=float32)}, 'statistics': {}}
    """
    return {"params": _floats(params), "statistics": _floats(buffers)}


def _floats(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves if _travels(path_name(path), leaf)}


def _travels(name: str, leaf: Any) -> bool:
    floats = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return bool(floats) and role_name(name) not in TRAINING_ONLY


def arrived(
    weights: dict[str, dict[str, Any]], params: PyTree, buffers: PyTree
) -> tuple[PyTree, PyTree]:
    """The model with the leaves that travelled in the place of its own."""
    return _put(weights["params"], params), _put(weights["statistics"], buffers)


def _put(found: dict[str, Any], tree: PyTree) -> PyTree:
    def one(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        return found[name].astype(leaf.dtype) if name in found else leaf

    return jax.tree_util.tree_map_with_path(one, tree)
