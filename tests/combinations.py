"""Which combinations of a test's arguments run: a cover instead of the whole product."""

from __future__ import annotations

import collections
import itertools
import zlib
from collections.abc import Hashable, Mapping

import pytest

Arguments = Mapping[str, Hashable]


def arguments(item: pytest.Item) -> Arguments:
    """The test's parameters by argument: plain values, else which object it is."""
    call = getattr(item, "callspec", None)
    plain = (str, int, float, bool, type(None))
    return {
        name: value if isinstance(value, plain) else ("object", id(value))
        for name, value in (call.params.items() if call else ())
    }


def cover(
    tests: Mapping[str, tuple[Hashable, Arguments]], *, first: bool = False, seed: int = 0
) -> set[str]:
    """The names that run, of ``{name: (its test, its arguments)}``.

    Of each test so many that every value is in one of them, and every pair of values where there
    are three arguments or more; if ``first``, one. Taken in an order that mixes the arguments (in
    their own, the first value of one would meet all of another), which ``seed`` chooses.
    """
    seen: dict[Hashable, set[object]] = collections.defaultdict(set)
    kept = set()

    def order(name: str) -> int:
        return 0 if first else zlib.crc32(f"{seed} {name}".encode())

    for name in sorted(tests, key=order):
        test, values = tests[name]
        size = 0 if first else min(2, max(1, len(values) - 1), len(values))
        new = set(itertools.combinations(values.items(), size)) - seen[test]
        if new:
            kept.add(name)
        seen[test] |= new
    return kept
