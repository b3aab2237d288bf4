"""Arrays as a source: of a program, or by name as files hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rosler_jax.data._check import as_inputs, as_rows, as_targets, is_tokens
from rosler_jax.data._lazy import select
from rosler_jax.data._raw import DataError, Pair, Raw
from rosler_jax.data._split import with_test

LAYOUTS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_x", "train_y", "test_x", "test_y"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
WHOLE = (("images", "labels"), ("x", "y"))


def as_raw(where: str, value: Any, targets: str = "classes", tokens: bool | None = None) -> Raw:
    """Splits of whatever a program has: a ``Raw``, ``(x, y)``, ``x``, or arrays by name.

    Args:
      where: the value comes from, for messages.
      value: a :class:`Raw`; a pair ``(x, y)`` or inputs alone, of which a fixed fifth becomes the
        test split; a mapping with the names of :data:`LAYOUTS` or :data:`WHOLE`.
      targets, tokens: as of :func:`rosler_jax.data.load`.

    Raises:
      DataError: if it is none of these, or its shapes do not match.

    Example:
      >>> as_raw("toy", (np.eye(10), np.arange(10) % 2)).train[0].shape
      (8, 10)
    """
    if isinstance(value, Raw):
        return value
    if isinstance(value, Mapping):
        return from_names(where, value, targets, tokens)
    pair = value if isinstance(value, tuple) else (value, None)
    if len(pair) != 2:
        raise DataError(
            f"{where}: a tuple of {len(pair)}; expected a pair (x, y) or inputs alone, "
            "rosler_jax.data.Raw, or a dictionary of arrays"
        )
    return with_test(*usable(pair, (where, where), targets, tokens), targets)


def from_names(
    where: str, arrays: Mapping[str, Any], targets: str = "classes", tokens: bool | None = None
) -> Raw:
    """Splits by their names, or a whole data set, of which a fixed fifth becomes the test split.

    Args:
      where: the arrays come from, for messages.
      arrays: with the names of :data:`LAYOUTS` or :data:`WHOLE`, and maybe others; ``groups``
        (beside a training split's own layout ``train_groups``) says what each example belongs to.
      targets, tokens: as of :func:`rosler_jax.data.load`; those that have none need no ``y``.

    Raises:
      DataError: if there are no such names, or shapes do not match.
    """

    def pair(x_name: str, y_name: str) -> Pair:
        x, y = arrays[x_name], None if targets == "none" else arrays[y_name]
        _check_counts(where, x_name, x, y_name, y, targets)
        places = (f"{where}, array {x_name}", f"{where}, array {y_name}")
        return usable((x, y), places, targets, tokens)

    for names in (*LAYOUTS, *WHOLE):
        if not set(names[::2] if targets == "none" else names) <= set(arrays):
            continue
        if len(names) == 4:
            raw = Raw(train=pair(*names[:2]), test=pair(*names[2:]))
            return raw._replace(groups=_groups(arrays, "train_groups"))
        x, y = pair(*names)
        if "source_index" not in arrays:
            return with_test(x, y, targets, _groups(arrays, "groups"))
        index = arrays["source_index"]  # the subset of cats and dogs names its own test split
        if index.shape != (len(x),):
            raise DataError(f"{where}: source_index of shape {index.shape}, not {(len(x),)}")
        parts = (np.flatnonzero(rows) for rows in (index < 800, index >= 800))
        train, test = ((select(x, rows), None if y is None else y[rows]) for rows in parts)
        return Raw(train=train, test=test)
    known = ", ".join("/".join(names) for names in (*LAYOUTS, *WHOLE))
    raise DataError(f"{where}: holds {sorted(arrays)}; expected {known}")


def _groups(arrays: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    return {"groups": arrays[name]} if name in arrays else None


def usable(
    pair: Pair, places: tuple[str, str], targets: str = "classes", tokens: bool | None = None
) -> Pair:
    """Checks before any split, so that a message names the array and the place in it."""
    x = as_rows(pair[0])
    x = as_inputs(x, places[0], is_tokens(x, targets, tokens))
    return x, as_targets(pair[1], len(x), places[1], targets)


def _check_counts(where: str, x_name: str, x: Any, y_name: str, y: Any, targets: str) -> None:
    if y is None:
        return
    shape, count = np.shape(y), len(x) if np.ndim(x) else -1
    one_each = shape in ((count,), (count, 1)) if targets == "classes" else shape[:1] == (count,)
    if not one_each:
        one = "label" if targets == "classes" else "row"
        raise DataError(
            f"{where}: {y_name} of shape {shape} is not one {one} for each of {x_name}, "
            f"{np.shape(x)}"
        )
