"""The model that a command is given: a file, a run's folder, or the function that makes one."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rosler_jax.cli._command import UsageError, integers

if TYPE_CHECKING:
    from rosler_jax.graph.graph import Graph

DTYPES = ("float32", "int32", "bool")


class ModelArgument(NamedTuple):
    """What was named.

    Attributes:
      name: as it was given.
      path: of a model file, which exists; None for a function.
      model: what the function returned.
      examples: one input each, with a batch of one: ``jax.ShapeDtypeStruct``.
    """

    name: str
    path: Path | None
    model: Any
    examples: tuple[Any, ...]

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Of one example of the first input, if it was given."""
        return tuple(self.examples[0].shape[1:]) if self.examples else None

    def graph(self) -> Graph:
        """Its operations.

        Raises:
          ModelFileError, TraceError: if it has no graph.
          UsageError: for a function whose inputs are not known.
        """
        from rosler_jax.graph.graph import Graph
        from rosler_jax.graph.save import graph_of, load

        if self.path is not None:
            return load(self.path, input_shape=self.input_shape).graph
        if not self.examples and not isinstance(self.model, Graph):
            raise UsageError(f"{self.name}: give the shape of an input, as --input-shape 28,28,1")
        return graph_of(self.model, *self.examples)


def add_model_argument(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The model, and the shapes of its inputs."""
    parser.add_argument(
        "path",
        metavar="MODEL",
        nargs="?" if optional else None,
        help="model file, folder of a run, or MODULE:FUNCTION (file.py:function) that returns an "
        "NNX model, (Linen module, variables) or (function, parameters)",
    )
    parser.add_argument(
        "--input-shape",
        type=integers,
        metavar="N,N,...",
        help="shape of one input of floats; needed for a function, and for convolutions in files "
        "of older versions",
    )
    parser.add_argument(
        "--input",
        type=described_input,
        action="append",
        default=[],
        metavar="N,N,...[:DTYPE]",
        help=f"one argument of the model, in place of --input-shape; {', '.join(DTYPES)}; again "
        "for each",
    )


def described_input(text: str) -> tuple[tuple[int, ...], str]:
    """A shape and a dtype.

    Example:
      >>> described_input("49,10,1"), described_input("128:int32"), described_input("none")
      (((49, 10, 1), 'float32'), ((128,), 'int32'), ((), 'float32'))
    """
    shape, _, dtype = text.partition(":")
    if dtype and dtype not in DTYPES:
        raise argparse.ArgumentTypeError(f"{dtype!r} is no dtype; use {', '.join(DTYPES)}")
    return integers(shape), dtype or "float32"


def model_argument(args: argparse.Namespace) -> ModelArgument:
    """Finds what was named; runs the function, if it is one.

    Raises:
      UsageError: for a module or function that there is not, or shapes that no input has.
      ValueError: if the function fails.
      FileNotFoundError: for a file that there is not.
    """
    if args.input and args.input_shape is not None:
        raise UsageError("give the inputs by --input alone, or one by --input-shape")
    given = args.input or ([] if args.input_shape is None else [(args.input_shape, "float32")])
    examples = tuple(_example(shape, dtype) for shape, dtype in given)
    path = Path(args.path)
    if ":" in args.path and not path.exists():
        return ModelArgument(args.path, None, _made(args.path), examples)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or model file")
    if path.is_dir():
        from rosler_jax.graph.save import model_path

        path = model_path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; finish the run, or resume it")
    return ModelArgument(args.path, path, None, examples)


def _example(shape: tuple[int, ...], dtype: str) -> Any:
    import jax
    import numpy as np

    from rosler_jax.graph.check import MAX_ELEMENTS

    if min(shape, default=1) < 1 or math.prod(shape) > MAX_ELEMENTS:
        raise UsageError(f"an input of shape {shape}; expected positive sizes, as 28,28,1")
    return jax.ShapeDtypeStruct((1, *shape), np.dtype(dtype))


def _made(name: str) -> Any:
    """What ``module:function`` or ``file.py:function`` returns."""
    from rosler_jax._lookup import referred

    try:
        function = referred(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not callable(function):
        where, _, called = name.rpartition(":")
        raise UsageError(f"{name}: {where} has no function {called!r}")
    try:
        return function()
    except Exception as error:
        called = name.rpartition(":")[2]
        raise ValueError(f"{name}: {called}() failed: {type(error).__name__}: {error}") from error
