"""What an exported model takes, before it is flashed."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rosler_jax._paths import layer_name, role_name
from rosler_jax.export import _forms
from rosler_jax.export._counted import Counted
from rosler_jax.export.c.source import CSource
from rosler_jax.graph import Graph, Op
from rosler_jax.size import size_report

NANOJOULES_PER_CYCLE = 0.43
"""MLPerf Tiny v1.0 and v1.1, a Cortex-M4 (L4R5 at 120 MHz) and an M7 (H7A3): about the same."""
MEGAHERTZ = 120
ESTIMATE = (
    "estimate: one cycle an instruction and one more a load or store, no wait states; "
    f"{NANOJOULES_PER_CYCLE} nJ a cycle, {MEGAHERTZ} MHz (MLPerf Tiny v1.1, STM32L4R5)"
)


def estimates(counted: Counted) -> dict[str, Any]:
    """Time and energy of an inference, as estimates that name their model.

    Example:
      >>> c = Counted("cortex-m4", 1000.0, 150.0, 50.0, 0, 0)
      >>> round(estimates(c)["microseconds"], 2), round(estimates(c)["microjoules"], 3)
      (10.0, 0.516)
    """
    cycles = counted.instructions + counted.loads + counted.stores
    return {
        "model": ESTIMATE,
        "cycles": cycles,
        "microseconds": cycles / MEGAHERTZ,
        "microjoules": cycles * NANOJOULES_PER_CYCLE / 1e3,
    }


def dense_arena_bytes(graph: Graph) -> int:
    """Bytes of the most float32 values that are needed at one time, between whole layers."""
    consumers = graph.consumers()
    layers = {op.name: layer_name(op.name) for op in graph.ops}

    def within(op: Op) -> bool:  # a value inside of a sketched layer, which a dense one has not
        after = consumers.get(op.output, [])
        return len(after) == 1 and "/" in op.name and layers[after[0].name] == layers[op.name]

    last = {v: i for i, op in enumerate(graph.ops) for v in op.inputs}
    sizes = {
        op.output: 4 * math.prod(op.out_shape)
        for op in graph.ops
        if not within(op) and op.output in last
    }
    live, most = set[int](), 0
    for i, op in enumerate(graph.ops):
        live |= sizes.keys() & set(op.outputs)
        most = max(most, sum(sizes[v] for v in live))
        live -= {v for v in live if last[v] <= i}
    return most


def edge_report(
    source: CSource,
    graph: Graph,
    dtype: str,
    counted: Counted | None,
    missing: str | None = None,
) -> dict[str, Any]:
    """The report as JSON types.

    Args:
      source: the model in C.
      graph: the model.
      dtype: that was exported.
      counted: what the emulator counted, if it is installed.
      missing: why nothing was counted.
    """
    sizes = size_report(graph)
    code = None if counted is None else counted.code_bytes
    dense_bytes = sizes.total("dense_bytes")
    return {
        "dtype": dtype,
        "flash": {
            "data_bytes": source.model_bytes,
            "data": dict(source.constant_bytes),
            "code_bytes": code,
            "bytes": None if code is None else source.model_bytes + code,
        },
        "ram": {
            "arena_bytes": source.arena_bytes,
            "least_arena_bytes": source.least_bytes,
            "decoded_bytes": source.decoded_bytes,
            "stack_bytes": None if counted is None else counted.stack_bytes,
        },
        "work": {
            "multiplications": sizes.total("multiplications"),
            "additions": sizes.total("additions"),
        },
        "emulated": None if counted is None else counted._asdict(),
        "not_emulated": missing,
        "estimates": None if counted is None else estimates(counted),
        "dense_float32": {
            "data_bytes": dense_bytes,
            "arena_bytes": dense_arena_bytes(graph),
            "multiplications": sizes.total("dense_multiplications"),
            "additions": sizes.total("dense_additions"),
        },
        "ratio": {
            "data_bytes": None if not dense_bytes else dense_bytes / max(1, source.model_bytes),
            "multiplications": sizes.ratio("multiplications"),
        },
    }


def table(report: Mapping[str, Any]) -> str:
    """The report as a table for people.

    Args:
      report: of :func:`edge_report`.
    """
    dense, emulated = report["dense_float32"], report["emulated"]
    rows: list[tuple[str, Any, Any]] = [
        ("flash, model data (bytes)", report["flash"]["data_bytes"], dense["data_bytes"]),
        *((f"  of these {k}", v, None) for k, v in report["flash"]["data"].items()),
        ("flash, code (bytes)", report["flash"]["code_bytes"], None),
        ("RAM, arena (bytes)", report["ram"]["arena_bytes"], dense["arena_bytes"]),
        ("RAM, decoded weights (bytes)", report["ram"]["decoded_bytes"] or None, None),
        ("RAM, stack (bytes)", report["ram"]["stack_bytes"], None),
        ("multiplications", report["work"]["multiplications"], dense["multiplications"]),
        ("additions", report["work"]["additions"], dense["additions"]),
    ]
    if emulated is not None:
        guess = report["estimates"]
        rows += [
            (
                f"instructions ({emulated['board']}, emulated)",
                round(emulated["instructions"]),
                None,
            ),
            ("instructions at the start", emulated["start_instructions"] or None, None),
            ("time (us, estimate)", round(guess["microseconds"]), None),
            ("energy (uJ, estimate)", round(guess["microjoules"], 1), None),
        ]
    optional = ("RAM, decoded weights (bytes)", "instructions at the start")
    rows = [row for row in rows if row[1] is not None or row[0] not in optional]
    shown = [(name, _number(a), _number(b)) for name, a, b in rows]
    shown.insert(0, ("", report["dtype"], "dense float32"))
    widths = [max(len(row[k]) for row in shown) for k in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}".rstrip() for a, b, c in shown]
    note = ESTIMATE if emulated is not None else report["not_emulated"]
    forms = _forms.lines(report["weights"]) if "weights" in report else []
    return "\n".join([*lines, *([note] if note else []), *forms])


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,}"


class Limits(NamedTuple):
    """What the target has; None for no limit. Bytes."""

    flash: int | None = None
    ram: int | None = None


def shortfall(report: Mapping[str, Any], limits: Limits, graph: Graph) -> str | None:
    """Why a model does not fit its target, and what would; None if it fits.

    Args:
      report: of :func:`edge_report`.
      limits: of the target.
      graph: of the model.
    """
    flash = report["flash"]["bytes"] or report["flash"]["data_bytes"]
    form = _forms.fitting(report.get("weights"), limits.flash, limits.ram)
    if limits.flash is not None and flash > limits.flash:
        over = flash - limits.flash
        would = form or _smaller(report, limits.flash, flash, graph)
        return (
            f"the model takes {flash} bytes of flash, {over} more than --flash {limits.flash}; "
            f"{would}"
        )
    stack = report["ram"]["stack_bytes"] or 0
    ram = report["ram"]["arena_bytes"] + report["ram"]["decoded_bytes"] + stack
    if limits.ram is not None and ram > limits.ram:
        halves = ", or int16, which halves the arena" if report["dtype"] == "float32" else ""
        would = form or f"train narrower layers{halves}"
        return (
            f"the model takes {ram} bytes of RAM, {ram - limits.ram} more than --ram {limits.ram}; "
            f"{would}"
        )
    return None


BITS = {"float32": 32, "int16": 16, "int8": 8, "int4": 4}


def _smaller(report: Mapping[str, Any], limit: int, flash: int, graph: Graph) -> str:
    """The dtype or the share of the weights that would fit."""
    weights = report["flash"]["data"].get("weights", 0)
    rest, bits = flash - weights, BITS[report["dtype"]]
    fits = [d for d, b in BITS.items() if b < bits and rest + weights * b // bits <= limit]
    if fits:
        return f"--dtype {fits[0]} would fit"
    if rest >= limit:
        return f"code and data other than weights alone take {rest}; train a narrower network"
    share = (limit - rest) / weights
    firsts = (w for w in graph.weights() if role_name(w.source) in ("c", "u"))
    ranks = sorted({w.values.shape[-1] for w in firsts}, reverse=True)
    if not ranks:
        return f"train a network with {share:.0%} of the weights at these bits"
    fitting = ", ".join(f"{r} -> {max(1, math.floor(r * share))}" for r in ranks)
    return f"ranks of {share:.0%} would fit at these bits ({fitting}), or fewer bits"


def count(
    folder: str | os.PathLike[str], inputs: Sequence[np.ndarray], board: str
) -> tuple[Counted | None, str | None]:
    """Counts instructions on the emulator; nothing, and why, where it is not installed.

    Args:
      folder: an exported model.
      inputs: of the model's type, a few.
      board: a key of ``firmware.BOARDS``.
    """
    from rosler_jax.export.firmware import ToolchainError, run_firmware

    if len(inputs) != 1:
        return None, "instructions not counted: the emulated program feeds models of one input"
    try:
        run = run_firmware(Path(folder), inputs[0], board=board)
    except ToolchainError as error:
        return None, f"instructions not counted: {error}"
    return (
        Counted(
            board,
            run.instructions,
            run.loads,
            run.stores,
            run.flash_code_bytes,
            run.stack_bytes,
            run.start_instructions,
        ),
        None,
    )
