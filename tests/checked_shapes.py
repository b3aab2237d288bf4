"""An import hook: functions check the shapes that their annotations say, as they are called.

Annotations stay what type checkers read (``Float[Array, "m n"]``, imported for them alone); here
they are evaluated with jaxtyping's names, and one name of an axis has one size in a call. Functions
of modules and methods of classes are checked, not functions within functions.
"""

from __future__ import annotations

import ast
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

import jax
import jaxtyping
import numpy as np

PACKAGES = ("rosler_jax", "rosler_kernels")
DECORATOR = "__checked_shapes__"
ANY_ARRAY = jax.Array | np.ndarray
NAMES: Mapping[str, Any] = {**vars(jaxtyping), "Array": ANY_ARRAY}


def install() -> None:
    """Checks the modules of :data:`PACKAGES` that are imported from now on."""
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: Any = None
    ) -> ModuleSpec | None:
        if name.split(".")[0] not in PACKAGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        for node in [*tree.body, *(n for c in _classes(tree) for n in c.body)]:
            if isinstance(node, ast.FunctionDef) and _says_shapes(node):
                name = ast.Name(DECORATOR, ast.Load())
                node.decorator_list.append(ast.copy_location(name, node))
                name.end_lineno, name.end_col_offset = node.lineno, node.col_offset
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module)[DECORATOR] = checked
        super().exec_module(module)


def _classes(tree: ast.Module) -> list[ast.ClassDef]:
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


def _says_shapes(node: ast.FunctionDef) -> bool:
    """Whether an annotation holds a string: an array's axes."""
    given = [a.annotation for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return any(
        isinstance(part, ast.Constant) and isinstance(part.value, str)
        for annotation in (*given, node.returns)
        if annotation is not None
        for part in ast.walk(annotation)
    )


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; raises TypeError where an array is not what its annotation says."""
    signature = inspect.signature(function)
    kinds = {p.kind: p.name for p in signature.parameters.values()}
    several = kinds.get(inspect.Parameter.VAR_POSITIONAL)

    @functools.cache
    def hints() -> dict[str, Any]:
        return {
            name: hint
            for name, text in function.__annotations__.items()
            if (hint := _evaluated(text, function)) is not None
        }

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)  # first: what it refuses it refuses in its own words
        given = {**signature.bind(*args, **kwargs).arguments, "return": result}
        with jaxtyping.jaxtyped("context"):
            for name, hint in hints().items():
                if name in given:
                    for value in given[name] if name == several else (given[name],):
                        _check(value, hint, f"{function.__qualname__}: {name}")
        return result

    return wrapper


def _evaluated(text: Any, function: Callable[..., Any]) -> Any:
    """A type that says something of shapes; None for others."""
    if not isinstance(text, str) or not set("'\"").intersection(text):
        return None
    try:
        return eval(text, {**function.__globals__, **NAMES})
    except (NameError, AttributeError):  # a name that is imported for type checkers alone
        return None


def _check(value: Any, hint: Any, what: str) -> None:
    if not _fits(value, hint):
        found = value
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            found = f"{value.dtype}{list(value.shape)}"
        raise TypeError(f"{what} is {found}; expected {hint}")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is tuple and isinstance(value, tuple):
        if inner[-1] is Ellipsis:
            return all(_fits(v, inner[0]) for v in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if origin is list and isinstance(value, list):
        return all(_fits(v, inner[0]) for v in value)
    if hint is types.NoneType or hint is None:
        return value is None
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        if isinstance(value, int | float | complex):  # a number may stand where a scalar does
            return hint.dim_str == ""
        return isinstance(np.asarray(value) if isinstance(value, np.generic) else value, hint)
    return True
