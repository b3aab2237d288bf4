"""What a name stands for: an entry of a table, or an object of a user's own file or module."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def is_reference(name: str) -> bool:
    """Whether a name is one of an object in a file or module, ``file.py:name``.

    Example:
      >>> is_reference("models.py:build"), is_reference("resnet8")
      (True, False)
    """
    return ":" in name and bool(name.rpartition(":")[2].isidentifier())


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
    """The entry of a table, or the object that ``file.py:name`` or ``module:name`` refers to.

    Args:
      table: entries by name.
      name: of an entry, or a reference.
      what: the entries are, for messages: ``"model"``.

    Raises:
      ValueError: for a name that the table does not have, or a reference to nothing.

    Example:
      >>> lookup({"one": 1}, "one", "number"), lookup({}, "math:pi", "number")
      (1, 3.141592653589793)
    """
    if name in table:
        return table[name]
    if is_reference(name):
        return referred(name)
    raise ValueError(
        f"{what} {name!r} is unknown; pass one of {', '.join(table)}, or FILE.py:NAME or "
        "MODULE:NAME for one of your own"
    )


def referred(reference: str) -> Any:
    """The object that ``file.py:name`` or ``module:name`` refers to.

    Raises:
      ValueError: if there is no such file or module, or it lacks the name.
    """
    place, _, name = reference.rpartition(":")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else _from_module(place)
    except ImportError as error:
        raise ValueError(f"{reference}: {place} cannot be imported: {error}") from error
    if not hasattr(module, name):
        raise ValueError(f"{reference}: {place} has no {name!r}")
    return getattr(module, name)


def _from_module(name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` has it: a module of the working folder is found
    return importlib.import_module(name)


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        raise ImportError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module


def call_named(function: Callable[..., Any], **available: Any) -> Any:
    """Calls a function with those keyword arguments that its signature names.

    Example:
      >>> call_named(lambda x, *, z=0: (x, z), x=1, y=2, z=3)
      (1, 3)
    """
    made = isinstance(function, type)  # NNX's metaclass hides the signature of its modules
    parameters = inspect.signature(function.__init__ if made else function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return function(**available)
    return function(**{name: available[name] for name in parameters if name in available})
