"""What a model takes with its weights in each form, side by side: part of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rosler_jax.export._counted import Counted
    from rosler_jax.export.c.source import CSource

_COLUMNS = {
    "flash": "flash_bytes", "RAM": "ram_bytes", "instructions": "instructions",
    "at the start": "start_instructions",
}  # fmt: skip
_STAR = tuple(_COLUMNS.values())[:3]


def compared(forms: Mapping[str, tuple[CSource, Counted | None]], chosen: str) -> dict[str, Any]:
    """The comparison as JSON types.

    Args:
      forms: by form the code, and what the emulator counted, if it is installed.
      chosen: the form that is exported.

    Returns:
      ``chosen``; ``forms``, by form ``data_bytes``, ``flash_bytes`` (of data alone where nothing
      was counted), ``ram_bytes`` (arena, decoded weights, stack), ``instructions`` and
      ``start_instructions``; and which form has the ``least`` of these.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, (source, counted) in forms.items():
        code, stack = (counted.code_bytes, counted.stack_bytes) if counted else (0, 0)
        rows[name] = {
            "data_bytes": source.model_bytes,
            "flash_bytes": source.model_bytes + code,
            "ram_bytes": source.arena_bytes + source.decoded_bytes + stack,
            "instructions": counted and round(counted.instructions),
            "start_instructions": counted and counted.start_instructions,
        }
    known = [kind for kind in _STAR if all(row[kind] is not None for row in rows.values())]
    least = {kind: min(rows, key=lambda name: int(rows[name][kind])) for kind in known}
    return {"chosen": chosen, "forms": rows, "least": least}


def lines(found: Mapping[str, Any]) -> list[str]:
    """The comparison as a table for people: a star marks the least of a column."""
    table = [["weights", *(f"{name} " for name in _COLUMNS)]]
    for name, row in found["forms"].items():
        cells = ["" if row[kind] is None else f"{row[kind]:,}" for kind in _COLUMNS.values()]
        stars = ["*" if found["least"].get(kind) == name else " " for kind in _COLUMNS.values()]
        label = f"{name} (chosen)" if name == found["chosen"] else name
        table.append([label, *(c + s for c, s in zip(cells, stars, strict=True))])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    padded = (
        [label.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]
        for label, *cells in table
    )
    return ["  ".join(row).rstrip() for row in padded]


def fitting(found: Mapping[str, Any] | None, flash: int | None, ram: int | None) -> str:
    """The forms that fit into so many bytes, in words; empty if none does, or none is known."""
    rows = {} if found is None else found["forms"]
    names = [
        name for name, row in rows.items()
        if row["flash_bytes"] <= (flash or math.inf) and row["ram_bytes"] <= (ram or math.inf)
    ]  # fmt: skip
    return f"--weights {' or '.join(names)} would fit" if names else ""
