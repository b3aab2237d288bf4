"""The results of a sweep on disk: a Parquet file a finished chunk, and one table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rosler_jax._files import replace_file

PARTS, TABLE = "parts", "table.parquet"


def part_path(folder: Path, stage: int, chunk: int) -> Path:
    """The file of a stage's chunk."""
    return folder / PARTS / f"{stage:03d}-{chunk:06d}.parquet"


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows, all of them or nothing.

    Raises:
      OSError: if the file cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(list(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: pyarrow.parquet.write_table(table, temporary))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file.

    Raises:
      ValueError: if it is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowInvalid, pyarrow.ArrowIOError) as error:
        raise ValueError(f"{path}: not a Parquet table: {error}; delete it and resume") from error


def rows_so_far(folder: Path) -> list[dict[str, Any]]:
    """A row a member, of all chunks that are finished: the table, also before a sweep's end.

    Raises:
      ValueError: if there is none, or one is damaged.
    """
    parts = sorted((folder / PARTS).glob("[0-9]*.parquet"))
    if not parts:
        raise ValueError(f"{folder}: holds no finished chunk of a sweep")
    return last_rows([row for part in parts for row in read_rows(part)])


def last_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each member's row of the last stage that it was in, in the order of members.

    Example:
      >>> last_rows([{"member": 0, "stage": 1}, {"member": 0, "stage": 0}])
      [{'member': 0, 'stage': 1}]
    """
    latest = {row["member"]: row for row in sorted(rows, key=lambda row: row["stage"])}
    return [latest[member] for member in sorted(latest)]
