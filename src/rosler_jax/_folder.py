"""What ties a folder to one process at a time, and to its data."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from rosler_jax._files import replace_json

LOCK, DATA = "lock", "data.json"


@contextlib.contextmanager
def locked(folder: Path, what: str, error: type[Exception] = RuntimeError) -> Iterator[None]:
    """Holds a folder against a second process; the lock ends with its process, however that ends.

    Where the system has no ``flock`` (Windows) nothing is held.

    Args:
      folder: that exists.
      what: it holds, as ``"run"``.
      error: raised if another process has it.

    Raises:
      OSError: if the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / LOCK).open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "of unknown number"
            raise error(
                f"{folder}: another process is running this {what}, process {holder}; wait for it, "
                "or choose another folder"
            ) from None
        handle.truncate(0)
        handle.write(f"{os.getpid()} on {socket.gethostname()}\n")
        handle.flush()
        yield


def tie_data(folder: Path, name: str, digest: str) -> None:
    """Writes down what data a folder's results come from."""
    replace_json(folder / DATA, {"data": name, "digest": digest})


def check_data(folder: Path, digest: str, error: type[Exception], instead: str) -> None:
    """Refuses data other than those that a folder's results come from.

    Args:
      folder: of a run or a sweep.
      digest: of the data as they are now.
      error: what to raise.
      instead: what else to do, in words.
    """
    path = folder / DATA
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        name, before = stored["data"], stored["digest"]
    except FileNotFoundError:
        raise error(
            f"{path}: no such file, so whether the data are still the same is not known; {instead}"
        ) from None
    except (ValueError, KeyError, TypeError) as reason:
        raise error(f"{path}: damaged: {reason}; {instead}") from reason
    if before != digest:
        raise error(
            f"{folder} was begun with other data: {name} had the digest {before} and now has "
            f"{digest}; put the old data back, or {instead}"
        )
