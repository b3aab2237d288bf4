"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import json
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


def replace_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file for people, too: indented, with a line's end; all of it or nothing."""
    replace_text(path, json.dumps(content, indent=2) + "\n")
