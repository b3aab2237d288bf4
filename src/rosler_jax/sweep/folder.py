"""A sweep's folder: who holds it, what sweep it is, and what each stage decided."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rosler_jax import _folder
from rosler_jax._files import json_text, replace_json, replace_text
from rosler_jax.sweep import hosts
from rosler_jax.sweep.examples import Examples
from rosler_jax.sweep.spec import SweepSpec, difference

SPEC, STAGES = "sweep.json", "stages"


class SweepError(RuntimeError):
    """A sweep that cannot start or go on; the message says why and what to do.

    Example:
      >>> stored_spec(Path("no/such/sweep"))
      Traceback (most recent call last):
      rosler_jax.sweep.folder.SweepError: ...sweep.json: no such file; ... holds no sweep
    """


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder against a second process; of several hosts, the first one does.

    Raises:
      SweepError: if another process has it.
      OSError: if the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            stack.enter_context(_folder.locked(folder, "sweep", SweepError))

        hosts.on_first(lock)
        yield


def open_folder(folder: Path, spec: SweepSpec, resume: bool) -> None:
    """Makes a new sweep's folder, or checks that an old one holds the same sweep.

    Raises:
      SweepError: if the folder holds another sweep, or has nothing to resume.
      OSError: if it cannot be made or written.
    """
    exists = (folder / SPEC).exists()
    if resume and not exists:
        raise SweepError(f"{folder}: holds no sweep to resume")
    if exists:
        changed = difference(stored_spec(folder), json.loads(json.dumps(spec.source)))
        if changed:
            lines = "\n  ".join(changed)
            raise SweepError(
                f"{folder} holds another sweep; choose another folder, or undo:\n  {lines}"
            )
        if not resume:
            raise SweepError(
                f"{folder}: already holds this sweep; resume it, or choose another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written; choose another folder")


def store_spec(folder: Path, spec: SweepSpec, examples: Examples) -> None:
    """Writes what the sweep is, the first time; a folder without it holds no sweep."""
    if hosts.is_first() and not (folder / SPEC).exists():
        _folder.tie_data(folder, examples.name, examples.digest)
        replace_json(folder / SPEC, spec.source)


def check_examples(folder: Path, examples: Examples) -> None:
    """Refuses data that a sweep was not begun with, or that are not the same on all hosts.

    Raises:
      SweepError: naming the digests.
    """
    digests = [row["digest"] for row in hosts.exchange([{"digest": examples.digest}])]
    if len(set(digests)) > 1:
        raise SweepError(f"{examples.name} is not the same on all hosts: digests {digests}")

    def check() -> None:
        if (folder / SPEC).exists():
            _folder.check_data(folder, examples.digest, SweepError, "begin anew in another folder")

    hosts.on_first(check)


def stored_spec(folder: Path) -> dict[str, Any]:
    """The source of the sweep that a folder holds.

    Raises:
      SweepError: if there is none, or it is damaged.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from rosler_jax.sweep import load_examples, parse
      >>> spec = parse({"method": "chain", "axes": {"rank": {"grid": [2, 4]}}})
      >>> examples = load_examples(spec.first(), (np.eye(20), np.arange(20) % 2))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     store_spec(Path(folder), spec, examples)
      ...     stored_spec(Path(folder))
      {'method': 'chain', 'axes': {'rank': {'grid': [2, 4]}}}
    """
    path = folder / SPEC
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SweepError(f"{path}: no such file; {folder} holds no sweep") from None
    except ValueError as error:
        raise SweepError(f"{path}: damaged: {error}") from error


def stage_path(folder: Path, stage: int) -> Path:
    """The file of what a stage decided before it ran."""
    return folder / STAGES / f"{stage:03d}.json"


def read_stage(folder: Path, stage: int) -> dict[str, Any] | None:
    """What a stage decided, on every host; None if it has not begun.

    Raises:
      SweepError: if the file is damaged.
    """
    path = stage_path(folder, stage)

    def read() -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise SweepError(f"{path}: damaged: {error}") from error

    return hosts.on_first(read)


def write_stage(folder: Path, stage: int, decided: dict[str, Any]) -> None:
    """Keeps what a stage decided, before it runs."""
    if hosts.is_first():
        path = stage_path(folder, stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json_text(decided, None) + "\n")
