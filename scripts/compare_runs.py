"""Prints a table that compares finished training runs, the first being the one to beat.

    python scripts/compare_runs.py runs/dense runs/compact

Reads each folder's `result.json`, which `rosler train` writes. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

# Heading, the key of result.json that the cell shows, and how.
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("test accuracy", "test_accuracy", "{:.2%}"),
    ("validation", "validation_accuracy", "{:.2%}"),
    ("parameters", "parameters", "{:,}"),
    ("file bytes", "file_bytes", "{:,}"),
    ("compression", "compression", "{:.1f}x"),
    ("training", "train_seconds", "{:.1f} s"),
)


def read_result(folder: Path) -> dict[str, Any]:
    """Reads `folder/result.json`; raises ValueError that names the file and what is wrong."""
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; is {folder} a folder of `rosler train`?") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); train again") from None
    if not isinstance(result, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(result).__name__}")
    missing = [key for _, key, _ in COLUMNS if key not in result]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; train again")
    return result


def table(folders: list[Path]) -> str:
    """The comparison of `folders` as text, one row a folder, then the last against the first."""
    results = [read_result(folder) for folder in folders]
    rows = [("run", *(heading for heading, _, _ in COLUMNS))]
    for folder, result in zip(folders, results, strict=True):
        rows.append((folder.name, *(form.format(result[key]) for _, key, form in COLUMNS)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        name, *cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([name.strip().ljust(widths[0]), *cells]))
    lines.insert(1, "  ".join("-" * width for width in widths))

    first, last = results[0], results[-1]
    points = 100 * (last["test_accuracy"] - first["test_accuracy"])
    lines += [
        "",
        f"{folders[-1].name} against {folders[0].name}: "
        f"{first['file_bytes'] / last['file_bytes']:.1f} times smaller as a file, "
        f"{points:+.2f} points of test accuracy, "
        f"trained in {last['train_seconds'] / first['train_seconds']:.2f} of the time.",
        "compression: the dense network's float32 weights in bytes, over the bytes of the file.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders that `rosler train` wrote")
    try:
        print(table(parser.parse_args(arguments).folders))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
