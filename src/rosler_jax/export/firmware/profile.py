"""Builds the profiler that QEMU loads, and reads what it counted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rosler_jax._files import replace_text
from rosler_jax.export.firmware.build import C_FOLDER
from rosler_jax.export.firmware.symbols import Symbol
from rosler_jax.export.firmware.toolchain import Toolchain, run_tool, version

PLUGIN, SYMBOLS, RESULT = "profiler.so", "functions.txt", "profile.txt"
DRIVER = ("main", "firmware_begin", "firmware_end")
"""Functions that a window holds besides the work that it is around."""


class Counts(NamedTuple):
    """What a function did; see the head of ``c/prof.c`` for what counts as one.

    Example:
      >>> Counts(calls=1, instructions=20, loads=3, stores=2) + Counts(1, 9, 2, 2)
      Counts(calls=2, instructions=29, loads=5, stores=4)
    """

    calls: int = 0
    instructions: int = 0
    loads: int = 0
    stores: int = 0

    def __add__(self, other: object) -> Counts:
        """Both together."""
        if not isinstance(other, Counts):
            return NotImplemented
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


Table = dict[str, Counts]
"""From a function's name to its own counts, without those of the functions that it calls."""


class Profile(NamedTuple):
    r"""Counts of one run; they repeat exactly.

    Attributes:
      windows: one table for each stretch between ``firmware_begin`` and ``firmware_end``.
      whole: from reset to the end.
      last: the function that ran last.

    Example:
      >>> profile = parse_profile("whole\nmain 1 50 9 8\ndot 4 360 160 8\nlast dot\n")
      >>> profile.whole["dot"].instructions, profile.last
      (360, 'dot')
    """

    windows: tuple[Table, ...]
    whole: Table
    last: str | None


def build_plugin(toolchain: Toolchain, symbols: Sequence[Symbol], folder: Path) -> str:
    """Writes the profiler and its table of functions; returns QEMU's argument for it."""
    # QEMU refuses a plugin that declares a version it no longer has; the few functions used here
    # are the same in all of them.
    match = re.search(r"version (\d+)", version(toolchain.emulator))
    interface = 1 if match is None or int(match[1]) < 9 else 2
    options = ["-std=c99", "-O2", "-shared", "-fPIC", f"-DPLUGIN_VERSION={interface}"]
    source = str(C_FOLDER / "prof.c")
    run_tool([toolchain.host_compiler, *options, source, "-o", PLUGIN], folder=folder)
    lines = (f"{s.start:x} {s.bytes:x} {s.name[:127]}\n" for s in symbols)
    replace_text(folder / SYMBOLS, "".join(lines))
    return f"./{PLUGIN},symbols={SYMBOLS},out={RESULT}"


def parse_profile(text: str) -> Profile:
    r"""Reads the profiler's file.

    Example:
      >>> parse_profile("window 0\nf 1 20 3 2\nwhole\nf 1 20 3 2\nlast f\n").windows
      ({'f': Counts(calls=1, instructions=20, loads=3, stores=2)},)
    """
    windows: list[Table] = []
    whole: Table = {}
    table, last = whole, None
    for line in text.splitlines():
        words = line.split()
        if len(words) == 5:
            counts = Counts(*map(int, words[1:]))
            table[words[0]] = table.get(words[0], Counts()) + counts  # static ones share a name
        elif words[0] == "window":
            table = {}
            windows.append(table)
        elif words[0] == "whole":
            table = whole
        elif words[0] == "last":
            last = words[1]
    return Profile(tuple(windows), whole, last)


def sum_tables(tables: Iterable[Mapping[str, Counts]], *, without: Sequence[str] = DRIVER) -> Table:
    """Adds tables function by function.

    Example:
      >>> sum_tables([{"f": Counts(1, 9, 2, 2), "main": Counts(1, 5, 0, 0)}] * 2)
      {'f': Counts(calls=2, instructions=18, loads=4, stores=4)}
    """
    out: Table = {}
    for table in tables:
        for name, counts in table.items():
            if name not in without:
                out[name] = out.get(name, Counts()) + counts
    return out


def total(table: Mapping[str, Counts]) -> Counts:
    """The sum over all functions.

    Example:
      >>> total({"dot": Counts(2, 90, 40, 2), "relu": Counts(1, 12, 4, 4)}).instructions
      102
    """
    return sum(table.values(), Counts())
