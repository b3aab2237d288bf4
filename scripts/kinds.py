"""The tables of a graph's kinds of operations and functions, from the code, into the documentation.

    python scripts/kinds.py           writes docs/howto/graph.md
    python scripts/kinds.py --check   says whether it is current

A kind or a function counts as served by a target that has a line for it in its table which does
not refuse it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rosler_jax.export import (
    ExportError,
    _tflite_kinds,
    lowering,
    onnx,
    tflite,
)
from rosler_jax.export.c import floats
from rosler_jax.export.c.source import write_c
from rosler_jax.graph import Graph, Value
from rosler_jax.graph.compute import COMPUTE
from rosler_jax.graph.functions import FUNCTIONS, result_dtype
from rosler_jax.graph.kinds import KINDS, Map, Op, Scan

PAGE = Path(__file__).resolve().parent.parent / "docs" / "howto" / "graph.md"
BEGIN, END = "<!-- kinds: scripts/kinds.py -->\n", "<!-- end of kinds -->"
YES, NO = "yes", "–"


def served(table: Mapping[Any, Any], more: Iterable[Any] = ()) -> Callable[[Any], bool]:
    """Whether a table has a line that is more than a refusal."""
    return lambda key: (
        key in more or (key in table and "refuse" not in getattr(table[key], "__name__", ""))
    )


def graph_of(name: str) -> tuple[Graph, Any]:
    """One function of values (bools where it wants them), and inputs."""
    arity = FUNCTIONS[name].arity
    logic = name in ("and", "or", "xor", "not")
    wanted = ["bool" if logic or (name == "select" and i == 0) else "float32" for i in range(arity)]
    inputs = tuple(Value(i, str(i), (8,), dtype) for i, dtype in enumerate(wanted))
    op = Map(
        name=name, inputs=tuple(range(arity)), outputs=(arity,), in_shapes=((8,),) * arity,
        out_shapes=((8,),), dtypes=(result_dtype(name, tuple(wanted)),), function=name,
        numbers={"clamp": (-0.5, 0.5), "power": (2.0,)}.get(name, ()),
    )  # fmt: skip
    values = np.random.default_rng(0).uniform(0.2, 0.9, (32, 8)).astype(np.float32)
    given = [values < 0.5 if dtype == "bool" else values for dtype in wanted]
    output = Value(arity, "", (8,), op.dtypes[0])
    return Graph(inputs, (op,), (output,)), given[0] if arity == 1 else given


def tried(write: Callable[[Graph, Any], Any]) -> Callable[[str], bool]:
    """Whether a target takes a function: it is written."""

    def has(name: str) -> bool:
        try:
            write(*graph_of(name))
        except ExportError:
            return False
        return True

    return has


KIND_TARGETS: dict[str, Callable[[type[Op]], bool]] = {
    "C float32": served(floats.EMIT, (Map, Scan)),
    "C int16, int8, int4": served(lowering.LOWER),
    "ONNX": served(onnx.EMIT),
    "TFLite": served(_tflite_kinds.EMIT),
    "StableHLO": served(COMPUTE),
}
FUNCTION_TARGETS: dict[str, Callable[[str], bool]] = {
    "C float32": tried(lambda graph, x: write_c(graph)),
    "C integers": tried(lambda graph, x: write_c(lowering.lower(graph, x))),
    "ONNX": tried(lambda graph, x: onnx.onnx_bytes(graph)),
    "TFLite": tried(lambda graph, x: tflite.tflite_model(graph)),
    "TFLite int8": tried(lambda graph, x: tflite.tflite_model(graph, 8, x)),
}


def table() -> str:
    """Both tables as Markdown."""
    rows = [f"| kind | what it is | {' | '.join(KIND_TARGETS)} |", _line(2 + len(KIND_TARGETS))]
    for name, kind in KINDS.items():
        what = str(kind.__doc__).split("\n")[0].replace("``", "`")
        line = " | ".join(YES if has(kind) else NO for has in KIND_TARGETS.values())
        rows.append(f"| `{name}` | {what} | {line} |")
    rows += ["", "Functions of `Map`:", ""]
    rows += [f"| function | {' | '.join(FUNCTION_TARGETS)} |", _line(1 + len(FUNCTION_TARGETS))]
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in FUNCTIONS:
        marks = tuple(YES if has(name) else NO for has in FUNCTION_TARGETS.values())
        groups.setdefault(marks, []).append(f"`{name}`")
    rows += [f"| {', '.join(names)} | {' | '.join(marks)} |" for marks, names in groups.items()]
    return "\n".join(rows) + "\n"


def _line(columns: int) -> str:
    return "|" + "---|" * columns


def main() -> int:
    """Writes, or checks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if stale")
    args = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        print(f"{PAGE.name} has no section {BEGIN.strip()} ... {END}", file=sys.stderr)
        return 2
    new = pattern.sub(lambda _: BEGIN + table() + END, text)
    if args.check and new != text:
        print("docs/howto/graph.md is stale: run python scripts/kinds.py", file=sys.stderr)
        return 1
    if not args.check:
        PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
