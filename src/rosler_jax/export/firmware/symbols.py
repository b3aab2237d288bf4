"""Which function an address of an image belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rosler_jax.export.firmware.toolchain import run_tool


class Symbol(NamedTuple):
    """A function of an image."""

    start: int
    bytes: int
    name: str


def parse_symbols(listing: str) -> list[Symbol]:
    r"""Functions in a listing of ``nm -n -S``, sorted by address, each address once.

    A function without a size, as assembly sometimes leaves it, goes on to the next one.

    Example:
      >>> parse_symbols("00000040 t loop\n00000048 00000010 T main\n")
      [Symbol(start=64, bytes=8, name='loop'), Symbol(start=72, bytes=16, name='main')]
    """
    found: dict[int, tuple[int, str]] = {}
    for line in listing.splitlines():
        *numbers, kind, name = line.split()
        if kind in "tTwW" and numbers:
            start, size = int(numbers[0], 16), int(numbers[1], 16) if len(numbers) > 1 else 0
            # Of several names the one with a size, then the first in the alphabet.
            if start not in found or (-size, name) < (-found[start][0], found[start][1]):
                found[start] = (size, name)
    starts = sorted(found)
    ends = [*starts[1:], starts[-1] + 2**12] if starts else []
    symbols = []
    for start, end in zip(starts, ends, strict=True):
        size, name = found[start]
        symbols.append(Symbol(start, min(size or end - start, end - start), name))
    return symbols


def read_symbols(nm: str, image: Path) -> list[Symbol]:
    """The functions of an image; see :func:`parse_symbols`."""
    return parse_symbols(run_tool([nm, "-n", "-S", "--defined-only", str(image)]))


def function_at(symbols: Sequence[Symbol], address: int) -> str | None:
    """The function that holds an address; None if none does.

    Example:
      >>> function_at([Symbol(64, 8, "loop")], 66)
      'loop'
    """
    holding = (s.name for s in symbols if s.start <= address < s.start + s.bytes)
    return next(holding, None)
