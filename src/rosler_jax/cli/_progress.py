"""Progress on stderr: a bar on a terminal, elsewhere a line an epoch or a line a chunk."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator

Report = Callable[[dict[str, float]], None]
Tell = Callable[[dict[str, float]], tuple[float, str]]


@contextlib.contextmanager
def progress(epochs: int, metric: str, quiet: bool) -> Iterator[Report | None]:
    """Gives what to call with the history's row after every epoch; None if nothing is wanted."""
    if quiet:
        yield None
    elif sys.stderr.isatty() and _has_rich():
        with _bar(epochs, lambda row: (row["epoch"], line(row, epochs, metric))) as report:
            yield report
    else:
        yield lambda row: print(f"epoch {line(row, epochs, metric)}", file=sys.stderr, flush=True)


def line(row: dict[str, float], epochs: int, metric: str) -> str:
    """One epoch in words.

    Example:
      >>> row = {"epoch": 2, "loss": 0.5, "train_accuracy": 0.9, "seconds": 1.25, "bytes": 12345}
      >>> line(row | {"validation_loss": 0.6, "validation_accuracy": 0.875}, 10, "accuracy")
      '2/10: loss 0.5000, accuracy 0.9000, validation 0.8750, 12,345 bytes, 1.2 s'
    """
    return (
        f"{row['epoch']:.0f}/{epochs}: loss {row['loss']:.4f}, "
        f"{metric} {row[f'train_{metric}']:.4f}, "
        f"validation {row[f'validation_{metric}']:.4f}, "
        f"{row['bytes']:,.0f} bytes, {row['seconds']:.1f} s"
    )


def _has_rich() -> bool:
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def population_progress(quiet: bool) -> Iterator[Report | None]:
    """Gives what to call with a sweep's state after every chunk; None if nothing is wanted."""
    if quiet:
        yield None
    elif sys.stderr.isatty() and _has_rich():
        with _bar(None, lambda row: (row["done"], members_line(row))) as report:
            yield report
    else:
        yield lambda row: print(members_line(row), file=sys.stderr, flush=True)


@contextlib.contextmanager
def rounds_progress(rounds: int, metric: str, quiet: bool) -> Iterator[Report | None]:
    """Gives what to call with the history's row after every round; None if nothing is wanted."""
    if quiet:
        yield None
    elif sys.stderr.isatty() and _has_rich():
        tell = lambda row: (row["round"], round_line(row, rounds, metric))  # noqa: E731
        with _bar(rounds, tell) as report:
            yield report
    else:
        yield lambda row: print(
            f"round {round_line(row, rounds, metric)}", file=sys.stderr, flush=True
        )


def round_line(row: dict[str, float], rounds: int, metric: str) -> str:
    """One round in words.

    Example:
      >>> row = {"round": 2, "loss": 0.5, "counted": 8, "asked": 10, "up_bytes": 2345.0}
      >>> row |= {"validation_accuracy": 0.875, "down_bytes": 987.0, "seconds": 1.25}
      >>> round_line(row, 10, "accuracy")
      '2/10: loss 0.5000, validation 0.8750, 8 of 10 clients, 2,345 bytes up, 987 down, 1.2 s'
    """
    return (
        f"{row['round']:.0f}/{rounds}: loss {row['loss']:.4f}, "
        f"validation {row[f'validation_{metric}']:.4f}, "
        f"{row['counted']:.0f} of {row['asked']:.0f} clients, {row['up_bytes']:,.0f} bytes up, "
        f"{row['down_bytes']:,.0f} down, {row['seconds']:.1f} s"
    )


def members_line(row: dict[str, float]) -> str:
    """How far a sweep is, in words.

    Example:
      >>> members_line({"done": 64, "total": 128, "best": 0.875, "rate": 4.0, "left": 16.0})
      '64/128 members, best 0.8750, 4.00 members/s, 16 s left'
    """
    left = "?" if math.isinf(row["left"]) else f"{row['left']:.0f} s"
    return (
        f"{row['done']:.0f}/{row['total']:.0f} members, best {row['best']:.4f}, "
        f"{row['rate']:.2f} members/s, {left} left"
    )


@contextlib.contextmanager
def _bar(
    total: int | None, tell: Callable[[dict[str, float]], tuple[float, str]]
) -> Iterator[Report]:
    """A bar; ``tell`` says how far a row is, and what that is in words."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(20), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("loading and compiling", total=total)

        def report(row: dict[str, float]) -> None:
            done, text = tell(row)
            bar.update(task, total=row.get("total", total), completed=done, description=text)

        yield report
