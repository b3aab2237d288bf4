"""What a sweep found, to look at: one page that opens offline, and the same as pictures."""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rosler_jax import config as configs
from rosler_jax._files import json_text, replace_file, replace_text

PAGE = "report.html"
CURVES = 20
"""Learning curves that are drawn: of so many best members."""

Row = dict[str, Any]


def write_report(folder: Path, axes: Sequence[str], rows: Sequence[Row]) -> list[Path]:
    """Writes ``report.html`` and its charts as PNG files.

    The page holds everything it needs: data, script and style; it makes no request.

    Args:
      folder: where to.
      axes: columns that varied.
      rows: of the sweep's table.

    Returns:
      What was written.

    Raises:
      OSError: if a file cannot be written; older ones are then as they were.
    """
    page = folder / PAGE
    replace_text(page, page_text(axes, rows))
    return [page, *write_charts(folder, axes, rows)]


def page_text(axes: Sequence[str], rows: Sequence[Row]) -> str:
    """The page with the rows in it."""
    template = importlib.resources.files("rosler_jax.sweep").joinpath("page.html")
    data = {"axes": list(axes), "curves": CURVES, "rows": [_shown(row, axes) for row in rows]}
    data["data"] = json.loads(rows[0]["config"])["data"] if rows else ""
    # No "<" in the data: nothing in a value can end the script that holds it.
    text = json_text(data, None).replace("<", "\\u003c")
    return template.read_text(encoding="utf-8").replace("/*DATA*/null", text)


METRICS = ("validation_accuracy", "test_accuracy", "file_bytes", "compression", "seconds")


def _shown(row: Row, axes: Sequence[str]) -> Row:
    names = ("member", *axes, "status", *METRICS, "epochs_done", "curve")
    out = {name: row[name] for name in names}
    out["command"] = configs.command_line(configs.from_dict(json.loads(row["config"])))
    return out


def usable(rows: Sequence[Row]) -> list[Row]:
    """Rows that have a model."""
    return [row for row in rows if row["file_bytes"] > 0 and row["status"] != "failed"]


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Rows that no other beats in validation accuracy without taking more bytes.

    Example:
      >>> rows = [
      ...     {"file_bytes": b, "validation_accuracy": a} for b, a in ((9, 0.9), (5, 0.8), (7, 0.7))
      ... ]
      >>> [row["file_bytes"] for row in pareto(rows)]
      [5, 9]
    """
    front: list[Row] = []
    for row in sorted(rows, key=lambda r: (r["file_bytes"], -r["validation_accuracy"])):
        if not front or row["validation_accuracy"] > front[-1]["validation_accuracy"]:
            front.append(row)
    return front


def best(rows: Sequence[Row]) -> list[Row]:
    """Rows with a model, the most accurate first."""
    return sorted(
        usable(rows), key=lambda r: (-r["validation_accuracy"], r["file_bytes"], r["member"])
    )


def write_charts(folder: Path, axes: Sequence[str], rows: Sequence[Row]) -> list[Path]:
    """Draws the front, the coordinates and the curves; nothing where no member has a model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = best(rows)
    written = []
    for name, draw in CHARTS.items() if found else ():
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, axes, found)
        path = folder / f"{name}.png"
        replace_file(path, functools.partial(figure.savefig, dpi=120, format="png"))
        written.append(path)
    return written


def clusters(values: Sequence[float]) -> list[tuple[float, float]]:
    """The ends of groups of positive values that wide gaps part, a quarter of their reach at least.

    Example:
      >>> clusters([1000, 1500, 200_000, 2000, 210_000])
      [(1000, 2000), (200000, 210000)]
    """
    found: list[tuple[float, float]] = []
    reach = math.log(max(values) / min(values))
    for value in sorted(values):
        if found and math.log(value / found[-1][1]) <= max(reach / 4, math.log(2)):
            found[-1] = found[-1][0], value
        else:
            found.append((value, value))
    return found


def _draw_front(figure: Any, _: Sequence[str], found: Sequence[Row]) -> None:
    front, groups = pareto(found), clusters([row["file_bytes"] for row in found])
    reaches = [math.log(high / low) + 0.05 for low, high in groups]
    shares = [1 / len(groups) + reach / sum(reaches) for reach in reaches]
    plots = figure.subplots(
        1, len(groups), sharey=True, squeeze=False, gridspec_kw={"width_ratios": shares}
    )[0]
    for plot, share, (low, high) in zip(plots, shares, groups, strict=True):  # gaps are left out
        values = [[row[k] for row in found] for k in ("file_bytes", "validation_accuracy")]
        plot.scatter(*values, s=12, alpha=0.5, label="members")
        line = [[row[k] for row in front] for k in ("file_bytes", "validation_accuracy")]
        plot.step(*line, where="post", color="C1", label="Pareto front")
        margin = max((high / low) ** 0.05, 1.01)
        plot.set(xscale="log" if high / low >= 10 else "linear", xlim=(low / margin, high * margin))
        if high / low < 10:
            plot.locator_params(axis="x", nbins=max(1, round(8 * share / sum(shares))))
            plot.xaxis.set_major_formatter("{x:,.0f}")
        if plot is not plots[0]:
            plot.tick_params(left=False)
        plot.spines["right"].set_visible(plot is plots[-1])
        plot.spines["left"].set_visible(plot is plots[0])
    plots[0].set(ylabel="validation accuracy")
    figure.supxlabel("bytes of the model file", fontsize="medium")
    plots[-1].legend(loc="lower right")


def _draw_coordinates(figure: Any, axes: Sequence[str], found: Sequence[Row]) -> None:
    import matplotlib as mpl

    plot = figure.subplots()
    names = [*axes, "file_bytes", "validation_accuracy"]
    scales = [_positions([row[name] for row in found]) for name in names]
    colors = _positions([row["validation_accuracy"] for row in found])
    for i in reversed(range(len(found))):
        color = mpl.colormaps["viridis"](colors[i])
        plot.plot([s[i] for s in scales], color=color, alpha=0.4, lw=0.8)
    for i, name in enumerate(names):
        values = [row[name] for row in found]
        for value, at, side in _ends(values, scales[i]):
            plate = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
            where = {"ha": "center", "va": "center", "zorder": 3}
            plot.text(i, at + 0.03 * side, value, fontsize=8, bbox=plate, **where)
    plot.set_xticks(range(len(names)), names)
    plot.set(yticks=[], ylim=(-0.08, 1.08), xlim=(-0.4, len(names) - 0.6))


def _ends(values: Sequence[Any], at: Sequence[float]) -> list[tuple[str, float, int]]:
    """The values at the ends of an axis, where they are, and on which side to write."""
    ends = [(at.index(min(at)), -1), (at.index(max(at)), 1)]
    found = [(values[i], at[i], side) for i, side in ends]
    return [(f"{v:.3g}" if isinstance(v, float) else str(v), a, side) for v, a, side in found]


def _positions(values: Sequence[Any]) -> list[float]:
    """Where values lie between the least (0) and the greatest (1); logarithmic over wide ranges."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        low, high = min(values), max(values)
        if low > 0 and high / low >= 10:
            values, low, high = [math.log(v) for v in values], math.log(low), math.log(high)
        return [(v - low) / (high - low) if high > low else 0.5 for v in values]
    kinds = sorted({str(v) for v in values})
    return [kinds.index(str(v)) / (len(kinds) - 1) if len(kinds) > 1 else 0.5 for v in values]


def _draw_curves(figure: Any, _: Sequence[str], found: Sequence[Row]) -> None:
    plot = figure.subplots()
    distinct: dict[str, Row] = {}  # by curve: members of one training share it
    for row in found:
        distinct.setdefault(str(row["curve"]), row)
    top = list(distinct.values())[:CURVES]
    for row in top:
        plot.plot(range(1, len(row["curve"]) + 1), row["curve"], label=f"member {row['member']}")
    plot.set(xlabel="epoch", ylabel="validation accuracy")
    plot.xaxis.get_major_locator().set_params(integer=True)
    if len(top) <= 10:
        plot.legend()


CHARTS = {"pareto": _draw_front, "coordinates": _draw_coordinates, "curves": _draw_curves}
"""The pictures, by name: a new one is one line here."""
