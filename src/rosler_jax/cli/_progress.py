"""Progress of a training run on stderr: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Report = Callable[[dict[str, float]], None]


@contextlib.contextmanager
def progress(epochs: int, quiet: bool) -> Iterator[Report | None]:
    """Gives what to call with the history's row after every epoch; None if nothing is wanted."""
    if quiet:
        yield None
    elif sys.stderr.isatty() and _has_rich():
        with _bar(epochs) as report:
            yield report
    else:
        yield lambda row: print(f"epoch {line(row, epochs)}", file=sys.stderr, flush=True)


def line(row: dict[str, float], epochs: int) -> str:
    """One epoch in words.

    Example:
      >>> row = {"epoch": 2, "loss": 0.5, "train_accuracy": 0.9, "seconds": 1.25, "bytes": 12345}
      >>> line(row | {"validation_loss": 0.6, "validation_accuracy": 0.875}, 10)
      '2/10: loss 0.5000, accuracy 0.9000, validation 0.8750, 12,345 bytes, 1.2 s'
    """
    return (
        f"{row['epoch']:.0f}/{epochs}: loss {row['loss']:.4f}, "
        f"accuracy {row['train_accuracy']:.4f}, validation {row['validation_accuracy']:.4f}, "
        f"{row['bytes']:,.0f} bytes, {row['seconds']:.1f} s"
    )


def _has_rich() -> bool:
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def _bar(epochs: int) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(20), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"0/{epochs}: loading and compiling", total=epochs)

        def report(row: dict[str, float]) -> None:
            bar.update(task, completed=row["epoch"], description=line(row, epochs))

        yield report
