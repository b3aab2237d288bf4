"""Tables as plain text, for people."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def draw(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    total: Sequence[str] | None = None,
    *,
    left: Collection[int] = (0,),
) -> str:
    """Columns under their heads, a rule, the rows, and a last row under a rule of its own.

    Args:
      head: names of the columns.
      rows: cells, as text.
      total: the last row, if there is one.
      left: indices of the columns that are text; the others are numbers, set to the right.

    Example:
      >>> print(draw(("layer", "bytes"), [("fc", "1,024")], ("total", "1,024")))
      layer  bytes
      ------------
      fc     1,024
      ------------
      total  1,024
    """
    table = [head, *rows, *([] if total is None else [total])]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]

    def line(cells: Sequence[str]) -> str:
        pairs = enumerate(zip(cells, widths, strict=True))
        padded = (cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in pairs)
        return "  ".join(padded).rstrip()

    lines = [line(cells) for cells in table]
    rule = "-" * max(map(len, lines))
    lines.insert(1, rule)
    if total is not None:
        lines.insert(-1, rule)
    return "\n".join(lines)
