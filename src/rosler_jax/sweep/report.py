"""What a sweep found, to look at: one page that opens offline, and the same as pictures."""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rosler_jax import config as configs
from rosler_jax._files import json_text, replace_file, replace_text

PAGE = "report.html"
CURVES = 20
"""Learning curves that are drawn: of so many best members."""

Row = dict[str, Any]


def write_report(
    folder: Path,
    axes: Sequence[str],
    rows: Sequence[Row],
    metric: str = "accuracy",
    larger_is_better: bool = True,
) -> list[Path]:
    """Writes ``report.html`` and its charts as PNG files.

    The page holds everything it needs: data, script and style; it makes no request.

    Args:
      folder: where to.
      axes: columns that varied.
      rows: of the sweep's table.
      metric: what members are compared by: the columns are ``validation_<metric>`` and
        ``test_<metric>``.
      larger_is_better: its direction.

    Returns:
      What was written.

    Raises:
      OSError: if a file cannot be written; older ones are then as they were.
    """
    page = folder / PAGE
    replace_text(page, page_text(axes, rows, metric, larger_is_better))
    return [page, *write_charts(folder, axes, rows, metric, larger_is_better)]


def page_text(
    axes: Sequence[str],
    rows: Sequence[Row],
    metric: str = "accuracy",
    larger_is_better: bool = True,
) -> str:
    """The page with the rows in it."""
    template = importlib.resources.files("rosler_jax.sweep").joinpath("page.html")
    held = f"validation_{metric}", f"test_{metric}"
    data = {"axes": list(axes), "metric": metric, "larger_is_better": larger_is_better}
    data |= {"curves": CURVES, "rows": [_shown(row, [*axes, *held]) for row in rows]}
    data["data"] = json.loads(rows[0]["config"])["data"] if rows else ""
    # No "<" in the data: nothing in a value can end the script that holds it.
    text = json_text(data, None).replace("<", "\\u003c")
    return template.read_text(encoding="utf-8").replace("/*DATA*/null", text)


COLUMNS = ("member", "status", "file_bytes", "compression", "seconds", "epochs_done", "curve")


def _shown(row: Row, more: Sequence[str]) -> Row:
    out = {name: row[name] for name in (*COLUMNS, *more)}
    out["command"] = configs.command_line(configs.from_dict(json.loads(row["config"])))
    return out


def best(rows: Sequence[Row], metric: str = "accuracy", larger_is_better: bool = True) -> list[Row]:
    """Rows with a model, the best first; of equals the smallest.

    Example:
      >>> rows = [{"member": i, "status": "done", "file_bytes": 9} for i in (0, 1)]
      >>> rows = [row | {"validation_rmse": 1.5 - row["member"]} for row in rows]
      >>> [row["member"] for row in best(rows, "rmse", larger_is_better=False)]
      [1, 0]
    """
    name, sign = f"validation_{metric}", -1 if larger_is_better else 1
    usable = [
        row
        for row in rows
        if row["file_bytes"] > 0 and row["status"] != "failed" and math.isfinite(row[name])
    ]
    return sorted(usable, key=lambda row: (sign * row[name], row["file_bytes"], row["member"]))


def pareto(ranked: Sequence[Row]) -> list[Row]:
    """Rows that no better one equals in bytes or undercuts, the smallest first.

    Args:
      ranked: the best first, see :func:`best`.

    Example:
      >>> [row["file_bytes"] for row in pareto([{"file_bytes": b} for b in (9, 5, 7)])]
      [5, 9]
    """
    front: list[Row] = []
    for row in ranked:
        if not front or row["file_bytes"] < front[-1]["file_bytes"]:
            front.append(row)
    return front[::-1]


def write_charts(
    folder: Path,
    axes: Sequence[str],
    rows: Sequence[Row],
    metric: str = "accuracy",
    larger_is_better: bool = True,
) -> list[Path]:
    """Draws the front, the coordinates and the curves; nothing where no member has a model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ranked = best(rows, metric, larger_is_better)
    written = []
    for name, draw in CHARTS.items() if ranked else ():
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, axes, ranked, f"validation_{metric}")
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


def _draw_front(figure: Any, _: Sequence[str], ranked: Sequence[Row], name: str) -> None:
    front, groups = pareto(ranked), clusters([row["file_bytes"] for row in ranked])
    reaches = [math.log(high / low) + 0.05 for low, high in groups]
    shares = [1 / len(groups) + reach / sum(reaches) for reach in reaches]
    plots = figure.subplots(
        1, len(groups), sharey=True, squeeze=False, gridspec_kw={"width_ratios": shares}
    )[0]
    for plot, share, (low, high) in zip(plots, shares, groups, strict=True):  # gaps are left out
        for rows, draw in ((ranked, plot.scatter), (front, plot.step)):
            values = [[row[k] for row in rows] for k in ("file_bytes", name)]
            draw(*values, **MARKS[draw.__name__])
        margin = max((high / low) ** 0.05, 1.01)
        plot.set(xscale="log", xlim=(low / margin, high * margin))
        _mark_bytes(plot.xaxis, low, high, 9 * share / sum(shares))
        plot.tick_params(which="both", left=plot is plots[0])
        plot.spines["right"].set_visible(plot is plots[-1])
        plot.spines["left"].set_visible(plot is plots[0])
    yscale = "log" if _is_wide([row[name] for row in ranked]) else "linear"
    plots[0].set(ylabel=name.replace("_", " "), yscale=yscale)
    figure.supxlabel("bytes of the model file", fontsize="medium")
    rising = front[-1][name] >= front[0][name]
    plots[-1].legend(loc="lower right" if rising else "upper right")


MARKS: dict[str, dict[str, Any]] = {
    "scatter": {"s": 12, "alpha": 0.5, "label": "members"},
    "step": {"where": "post", "color": "C1", "label": "Pareto front"},
}


def _mark_bytes(axis: Any, low: float, high: float, room: float) -> None:
    """Round sizes in full, as many as there is room for on a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, NullLocator

    left, right = axis.get_view_interval()
    marks: list[float] = []
    for value in _round_values(low, high):
        if not marks or math.log(value / marks[-1]) >= math.log(right / left) / room:
            marks.append(value)
    axis.set_major_locator(FixedLocator(marks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:,.0f}")


def _is_wide(values: Collection[float]) -> bool:
    """Whether values are better shown on a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) >= 10


def _round_values(low: float, high: float) -> list[float]:
    """Round values in a range: 1, 2 and 5 of decades where it is wide, or at even steps."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    wide = _is_wide((low, high))
    subs = [1.0] if wide and high / low > 1000 else [1.0, 2.0, 5.0]
    locator = LogLocator(subs=subs, numticks=99) if wide else MaxNLocator(5)
    found = [float(v) for v in locator.tick_values(low, high) if low <= v <= high]
    return found or [low, high][: 1 + (high > low)]


def _draw_coordinates(figure: Any, axes: Sequence[str], ranked: Sequence[Row], name: str) -> None:
    import matplotlib as mpl
    from matplotlib.collections import LineCollection

    names = [*axes, "file_bytes", name]
    figure.set_figwidth(max(9, 1.1 * len(names)))
    plot = figure.subplots()
    scales = [_scale([row[n] for row in ranked], n in axes) for n in names]
    lines = [list(enumerate(places)) for places in zip(*(at for at, _ in scales), strict=True)]
    height = np.array(scales[-1][0])
    colors = mpl.colormaps["viridis_r"](height if height[0] >= height[-1] else 1 - height)
    style = {"alpha": 0.4, "linewidths": 0.8}
    plot.add_collection(LineCollection(lines[::-1], colors=colors[::-1], **style))  # best in front
    plate = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
    for i, (_, marks) in enumerate(scales):
        plot.axvline(i, color="0.8", lw=0.8, zorder=2.5)
        for at, text in marks:
            plot.text(i + 0.03, at, text, fontsize=8, va="center", bbox=plate, zorder=3)
    plot.set_xticks(range(len(names)), [n.replace("_", "\n") for n in names])
    plot.set(yticks=[], ylim=(-0.05, 1.05), xlim=(-0.2, len(names) - 0.6))


def _scale(values: Sequence[Any], axis: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Where values lie between the least (0) and the greatest (1), and what to write where.

    Logarithmic over wide positive ranges; words, and few values of an axis, evenly.
    """
    found = set(values)
    numbers = [v for v in found if isinstance(v, int | float) and not isinstance(v, bool)]
    words = sorted(found - set(numbers), key=str)
    if words or (axis and len(found) <= FEW):
        order = [*sorted(numbers), *words]
        last = len(order) - 1
        places = {v: i / last if last else 0.5 for i, v in enumerate(order)}
        marks = order[:: 1 + len(order) // 25]
    else:
        marks, f = _round_values(min(found), max(found)), math.log if _is_wide(found) else float
        low, high = f(min(found)), f(max(found))
        places = {v: (f(v) - low) / (high - low) if high > low else 0.5 for v in (*found, *marks)}
    return [places[v] for v in values], [(places[v], _label(v)) for v in marks]


FEW = 6
"""Values of an axis that are all written, at even steps."""


def _label(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value.is_integer() else f"{value:.3g}"


def _draw_curves(figure: Any, _: Sequence[str], ranked: Sequence[Row], name: str) -> None:
    import matplotlib as mpl

    plot = figure.subplots()
    distinct: dict[str, Row] = {}  # by curve: members of one training share it
    for row in ranked:
        distinct.setdefault(str(row["curve"]), row)
    top = list(distinct.values())[:CURVES]
    for i, row in enumerate(top):
        color, label = mpl.colormaps["viridis"](i / len(top)), f"member {row['member']}"
        epochs = range(1, len(row["curve"]) + 1)
        plot.plot(
            epochs, row["curve"], marker="." if len(epochs) == 1 else "", color=color, label=label
        )
    finite = [v for row in top for v in row["curve"] if math.isfinite(v)]
    yscale = "log" if finite and _is_wide(finite) else "linear"
    plot.set(xlabel="epoch", ylabel=name.replace("_", " "), yscale=yscale)
    plot.xaxis.get_major_locator().set_params(integer=True)
    if len(top) <= 10:
        plot.legend()


CHARTS = {"pareto": _draw_front, "coordinates": _draw_coordinates, "curves": _draw_curves}
"""The pictures, by name: a new one is one line here."""
