"""What every command is made of: how it ends, how it refuses, how it draws a table."""

from __future__ import annotations

import argparse
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class UsageError(ValueError):
    """Arguments that make no sense: exit code 2."""


class Outcome(NamedTuple):
    """What a command found: for people, and the same for machines (JSON types)."""

    text: str
    data: dict[str, Any]


class Command(NamedTuple):
    """One line of the table of commands.

    Attributes:
      summary: one line for the list of commands.
      description: what it does.
      examples: whole command lines.
      add_arguments: adds its own arguments to its parser.
      run: does the work; imports what is heavy.
      interrupted: what to tell who interrupted it.
    """

    summary: str
    description: str
    examples: Sequence[str]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Outcome]
    interrupted: Callable[[argparse.Namespace], str] = lambda args: "interrupted"


def made(kind: Callable[..., T], given: Mapping[str, Any]) -> T:
    """A config of these fields, all others at their defaults.

    Raises:
      UsageError: for values that no run can have.
    """
    try:
        return kind(**given)
    except ValueError as error:
        raise UsageError(str(error)) from error


def flag(name: str) -> str:
    """The option of a field.

    Example:
      >>> flag("batch_size")
      '--batch-size'
    """
    return "--" + name.replace("_", "-")


def run_folder(args: argparse.Namespace, given: Iterable[str]) -> Path:
    """The folder of a run that begins (``--out``) or goes on (``--resume``).

    Args:
      args: of the command.
      given: options that say what the run is, by field.

    Raises:
      UsageError: if no folder is named, or a run that goes on is told what it is.
    """
    if args.resume is None:
        if args.out is None:
            raise UsageError("name a folder for the run: --out DIR (or --resume DIR)")
        return Path(args.out)
    extra = [flag(name) for name in given] + (["--out"] if args.out is not None else [])
    if extra:
        raise UsageError(
            f"--resume goes on with the run's own config; leave out {', '.join(extra)}"
        )
    return Path(args.resume)


def how_to_resume(args: argparse.Namespace, command: str) -> str:
    """What to tell who interrupted a run, if there is anything to resume."""
    folder = Path(args.resume or args.out or ".")
    if not (folder / "config.json").exists():
        return "interrupted before the run began; nothing was written"
    return f"interrupted; go on with: rosler {command} --resume {folder}"


def table(rows: Sequence[tuple[str, object]]) -> str:
    """Names and values in two columns.

    Example:
      >>> print(table([("file bytes", 1234), ("device", "cpu")]))
      file bytes  1,234
      device      cpu
    """
    width = max(len(name) for name, _ in rows)
    shown = ((name, f"{v:,}" if isinstance(v, int) else str(v)) for name, v in rows)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in shown)


def shown(metric: str, value: float) -> str:
    """A metric's value: what is a share in percent, all others by five digits.

    Example:
      >>> shown("accuracy", 0.9), shown("rmse", 1234.5678)
      ('90.00%', '1234.6')
    """
    return f"{value:.2%}" if metric in ("accuracy", "f1", "exact") else f"{value:.5g}"


def integers(text: str) -> tuple[int, ...]:
    """Whole numbers between commas; none at all for "none".

    Example:
      >>> integers("1024,1024"), integers("none")
      ((1024, 1024), ())
    """
    if text == "none":
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list like 1024,1024 (or none)"
        ) from None


def _number(kind: type[int] | type[float], noun: str, optional: bool) -> Callable[[str], Any]:
    def parse(text: str) -> int | float | None:
        if optional and text == "none":
            return None
        try:
            return kind(text)
        except ValueError:
            choice = " (or none)" if optional else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun}{choice}") from None

    return parse


def texts(text: str) -> tuple[str, ...]:
    """Texts between commas that are in no brackets; none at all for "none".

    Example:
      >>> texts("conv1=skip,*=0.25"), texts("none"), texts("channels=(8,16),width=2")
      (('conv1=skip', '*=0.25'), (), ('channels=(8,16)', 'width=2'))
    """
    if text == "none":
        return ()
    return tuple(part.strip() for part in re.split(r",(?![^(\[]*[)\]])", text))


def rank(text: str) -> int | float:
    """A rank, or a fraction of a layer's smaller side.

    Example:
      >>> rank("16"), rank("0.25")
      (16, 0.25)
    """
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no rank, as 16 or 0.25") from None


def size_in_bytes(text: str) -> int | None:
    """A number of bytes, as 1500, 2KB (2,000) or 2KiB (2,048); None for "none".

    Example:
      >>> size_in_bytes("1500"), size_in_bytes("2KB"), size_in_bytes("1.5KiB")
      (1500, 2000, 1536)
    """
    if text == "none":
        return None
    units = {"KiB": 1024, "KB": 1000, "kB": 1000, "MB": 1000**2, "MiB": 1024**2, "B": 1, "": 1}
    unit = next(unit for unit in units if text.endswith(unit))
    try:
        return round(float(text.removesuffix(unit)) * units[unit])
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, as 1500, 2KB or 2KiB") from None


PARSERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    str | None: lambda text: None if text == "none" else text,
    int: _number(int, "a whole number", False),
    int | None: _number(int, "a whole number", True),
    float: _number(float, "a number", False),
    float | None: _number(float, "a number", True),
    tuple[int, ...]: integers,
    tuple[int, ...] | None: integers,
    tuple[str, ...]: texts,
    int | float: rank,
}
"""How the text of an argument becomes a value of that type."""


def field_types(dataclass: type) -> dict[str, Any]:
    """The type of every field, as a key of :data:`PARSERS` or bool."""
    return typing.get_type_hints(dataclass)
