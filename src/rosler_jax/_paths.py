"""Names of the leaves of a parameter tree, the same for Linen dicts and NNX states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax import tree_util

TRAINING_ONLY = ("parallel", "fingerprint")
"""Names of the parameters that say something of a layer's training: the stage of aRes-BP, and the
seeds that a core belongs to. They are no weights, and model files do not hold them."""


def role_name(name: str) -> str:
    """The last step of a leaf's name: what it is in its layer.

    Example:
      >>> role_name("layers/0/c"), role_name("kernel")
      ('c', 'kernel')
    """
    return name.rpartition("/")[2]


def layer_name(name: str) -> str:
    """The path of a leaf's layer, empty for a leaf at the top.

    Example:
      >>> layer_name("layers/0/c"), layer_name("kernel")
      ('layers/0', '')
    """
    return name.rpartition("/")[0]


def path_names(keys: Sequence[Any]) -> tuple[str, ...]:
    """The steps of a leaf's key path as strings.

    NNX variables (and boxed Linen parameters) add a last step ``.value``, and only at some places
    (an ``nnx.Optimizer`` shows it to ``init`` but not to ``update``), so it is dropped. A dict key
    ``"value"`` is a name that the user gave, and stays.

    Example:
      >>> [(keys, _)] = tree_util.tree_flatten_with_path({"layers": {0: {"c": 1.0}}})[0]
      >>> path_names(keys)
      ('layers', '0', 'c')
    """
    if keys and isinstance(keys[-1], tree_util.GetAttrKey) and keys[-1].name == "value":
        keys = keys[:-1]
    return tuple(tree_util.keystr((key,), simple=True) for key in keys)


def path_name(keys: Sequence[Any]) -> str:
    """A leaf's name, ``"layers/0/c"``, from the key path that ``jax.tree_util`` gives.

    Example:
      >>> [(keys, _)] = tree_util.tree_flatten_with_path({"layers": {0: {"c": 1.0}}})[0]
      >>> path_name(keys)
      'layers/0/c'
    """
    return "/".join(path_names(keys))
