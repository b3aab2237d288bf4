"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace_file(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Calls ``write`` with a temporary name beside ``path``, and renames the result over it.

    Raises:
      OSError: if the file cannot be written; ``path`` is then as it was.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     replace_file(f"{folder}/a.txt", lambda p: p.write_text("whole") and None)
      ...     Path(f"{folder}/a.txt").read_text()
      'whole'
    """
    target = Path(path)
    temporary = target.with_name(f".{secrets.token_hex(6)}.{target.name}")  # keeps the suffix
    try:
        write(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file, all of it or nothing."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    replace_file(path, write)


def replace_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a binary file, all of it or nothing."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    replace_file(path, write)


def json_text(content: Any, indent: int | None = 2) -> str:
    """JSON that every reader takes: what is not finite, which JSON cannot say, becomes null.

    Example:
      >>> json_text({"loss": float("nan"), "curve": (1.0, float("inf"))}, None)
      '{"loss": null, "curve": [1.0, null]}'
    """
    return json.dumps(_plain(content), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def replace_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file for people, too: indented, with a line's end; all of it or nothing."""
    replace_text(path, json_text(content) + "\n")
