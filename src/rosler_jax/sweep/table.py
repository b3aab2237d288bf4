"""The results of a sweep on disk: a Parquet file a finished chunk, and one table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rosler_jax._files import replace_file

PARTS, TABLE = "parts", "table.parquet"


def _parquet() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise RuntimeError(
            "sweeps keep their results in Parquet: pip install 'rosler-jax[sweep]'"
        ) from None
    return pyarrow


def part_path(folder: Path, chunk: int) -> Path:
    """The file of a chunk."""
    return folder / PARTS / f"{chunk:06d}.parquet"


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows, all of them or nothing.

    Raises:
      OSError: if the file cannot be written.
    """
    arrow = _parquet()
    table = arrow.Table.from_pylist(list(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: arrow.parquet.write_table(table, temporary))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file.

    Raises:
      ValueError: if it is damaged.
    """
    arrow = _parquet()
    try:
        return arrow.parquet.read_table(path).to_pylist()
    except (arrow.ArrowInvalid, arrow.ArrowIOError) as error:
        raise ValueError(f"{path}: not a Parquet table: {error}; delete it and resume") from error


def merge(folder: Path, chunks: int) -> list[dict[str, Any]]:
    """Gathers all finished chunks into the table, in the order of members."""
    rows: list[dict[str, Any]] = []
    for chunk in range(chunks):
        path = part_path(folder, chunk)
        if path.exists():
            rows += read_rows(path)
    rows.sort(key=lambda row: row["member"])
    if rows:
        write_rows(folder / TABLE, rows)
    return rows
