"""Puts the files of an export where they belong: all of them or none."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from rosler_jax.export._errors import ExportError

_OURS = b"/* Written by rosler-jax "


def put(folder: Path, files: Mapping[str, bytes], stale: Sequence[str] = ()) -> tuple[Path, ...]:
    """Writes files under temporary names, then renames them all; makes the folder if need be.

    Args:
      folder: where to.
      files: contents by name.
      stale: names of C files that an earlier export may have left, to be removed.

    Returns:
      The paths.

    Raises:
      ExportError: if a C file to be replaced or removed is not of an export.
      OSError: if something cannot be written; the folder is then as it was.
    """
    for name in (*files, *stale):
        path = folder / name
        if path.is_dir() or (path.suffix in (".c", ".h") and path.exists() and not _is_ours(path)):
            raise ExportError(
                f"{path} is in the way, and rosler-jax did not write it; move it, or choose "
                "another folder or name (--name)"
            )
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    temporaries = {name: folder / f".{secrets.token_hex(6)}.{name}" for name in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, temporary in temporaries.items():
            temporary.write_bytes(files[name])
        for name, temporary in temporaries.items():
            temporary.replace(folder / name)
        for name in stale:
            (folder / name).unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):  # those that hold something stay
            for temporary in temporaries.values():
                temporary.unlink(missing_ok=True)
            for path in made:
                path.rmdir()
    return tuple(folder / name for name in files)


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_OURS)) == _OURS
