"""Several processes, one sweep: every host computes its members, the first one writes.

With one process each function here is the identity or a plain call. With several, started under
``jax.distributed``, all run the same program in step: what the first process reads from disk is
shared before anyone decides by it, so that no shared file system is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from jax.sharding import NamedSharding
    from jaxtyping import Array, PyTree


def is_first() -> bool:
    """Whether this process is the one that reads and writes."""
    return jax.process_index() == 0


def place(value: np.ndarray, sharding: NamedSharding) -> Array:
    """An array that every host holds whole, as a global one."""
    if jax.process_count() == 1:
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def gather(tree: PyTree) -> PyTree:
    """Global arrays as NumPy, whole on every host."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def on_first(call: Callable[[], Any]) -> Any:
    """What a call gives on the first process, of JSON types, on every host; so are its errors.

    Raises:
      RuntimeError: on the other hosts, if the call raised anything on the first.
    """
    if jax.process_count() == 1:
        return call()
    found, error = None, None
    if is_first():
        try:
            found = call()
        except Exception as raised:
            error = raised
    found, text = share([found, None if error is None else str(error)])
    if error is not None:
        raise error
    if text is not None:
        raise RuntimeError(f"the first host: {text}")
    return found


def share(value: Any) -> Any:
    """The first process' value, of JSON types, on every host."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8) if is_first() else np.zeros(0, "u1")
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    whole = np.zeros(size, np.uint8)
    whole[: len(text)] = text
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(whole)))


def share_arrays(values: list[np.ndarray]) -> list[np.ndarray]:
    """The first process' arrays on every host."""
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    forms = share([[str(v.dtype), list(v.shape)] for v in values])
    if not is_first():
        values = [np.zeros(shape, dtype) for dtype, shape in forms]
    return [np.asarray(v) for v in multihost_utils.broadcast_one_to_all(values)]


def own_part(values: Sequence[Any]) -> Sequence[Any]:
    """Every so manyth value, for work that hosts divide among themselves."""
    return values[jax.process_index() :: jax.process_count()]


def exchange(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all hosts, of JSON types, on every host, in the order of processes."""
    if jax.process_count() == 1:
        return rows
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(text))))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = text
    found = np.asarray(multihost_utils.process_allgather(padded))
    return [
        row for line, n in zip(found, sizes, strict=True) for row in json.loads(bytes(line[:n]))
    ]
