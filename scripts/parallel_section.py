"""Tables, figure and words of ``scripts/reproduce parallel-stage``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import reproducing
from parallel_costs import ALONE, STAGE, ratios
from parallel_points import BASE, Point, points_along
from parallel_trainings import ARES, EPOCHS, PLANS, RATES, SGD_RATES, Plan
from reproducing import Row, mean, plus_minus, table

NAME = "parallel-stage"
SETS = ("mnist", "fashion-mnist")


def _those(rows: Sequence[Row], **fields: Any) -> list[Row]:
    return [row for row in rows if all(row.get(k) == v for k, v in fields.items())]


def _only(rows: Sequence[Row], **fields: Any) -> Row | None:
    return next(iter(_those(rows, **fields)), None)


def accuracy_of(rows: Sequence[Row], point: Point, method: str, name: str = "mnist") -> Row | None:
    """The row at a point; the length and the sketch matter to aRes-BP alone."""
    if method != ARES:
        point = point._replace(length=BASE.length, sketch=BASE.sketch)
    return _only(rows, kind="accuracy", data=name, method=method, **point._asdict())


def shown(row: Row | None) -> str:
    """A row's accuracy."""
    return plus_minus(row["test"]) if row else ""


def difference(one: Row | None, other: Row | None) -> str:
    """Of two rows that have the same seeds: mean, and the standard error of it, by seed."""
    if one is None or other is None:
        return ""
    apart = [a - b for a, b in zip(one["test"], other["test"], strict=True)]
    error = reproducing.spread(apart) / len(apart) ** 0.5
    return f"{mean(apart):+.2f} ± {error:.2f}"


def length_table(rows: Sequence[Row]) -> str:
    """Accuracy over the length of the stage."""
    lines = []
    for name in SETS:
        chain = accuracy_of(rows, BASE, "chain", name)
        if chain is None:
            continue
        lines.append([name, "0 (chain)", shown(chain), "", _rates(chain)])
        for point in points_along("length"):
            row = accuracy_of(rows, point, ARES, name)
            if row is not None:
                lines.append(
                    [name, f"{point.length:g}", shown(row), difference(row, chain), _rates(row)]
                )
    header = ("data", "parallel epochs", "test accuracy, %", "against the chain", "learning rates")
    return table(header, lines)


def _rates(row: Row) -> str:
    rates = row["rates"]
    both = [rates[k] for k in ("parallel_learning_rate", "learning_rate") if k in rates]
    return ", ".join(f"{rate:g}" for rate in both)


def factor_table(rows: Sequence[Row]) -> str:
    """Accuracy over everything else, and what a step of the stage costs there."""
    lines = []
    for factor in ("rank", "sketch", "batch", "depth"):
        for point in points_along(factor):
            value = getattr(point, factor)
            found = {m: accuracy_of(rows, point, m) for m in ("chain", "low-rank", "seeded", ARES)}
            if factor in ("batch", "depth") and value != getattr(BASE, factor):
                found |= {"low-rank": None, "seeded": None}
            lines.append(
                [f"{factor} {value}", *map(shown, found.values()),
                 difference(found[ARES], found["chain"]), *cost_cells(rows, point)]
            )  # fmt: skip
    header = (
        "", "chain", "low-rank", "seeded", "aRes-BP, 1 epoch", "aRes-BP less chain",
        "parallel step, x chain", "alone, x chain", "FLOPs, x chain", "program memory, x chain",
    )  # fmt: skip
    return table(header, lines)


def cost_cells(rows: Sequence[Row], point: Point) -> list[str]:
    """What the stage's step costs at a point, over the chain's."""
    row = _only(rows, kind="cost", **point._asdict())
    if row is None:
        return [""] * 4
    kinds = row["kinds"]
    over = [kinds[ALONE]["flops"] / kinds["chain"]["flops"]]
    over += [kinds[STAGE]["program_bytes"] / kinds["chain"]["program_bytes"]]
    return [
        *(ranged(ratios(kinds, name)) for name in (STAGE, ALONE)),
        *(f"{ratio:.2f}" for ratio in over),
    ]


def ranged(values: Sequence[float]) -> str:
    """The median, and the quartiles or so."""
    low, high = np.quantile(values, [0.25, 0.75])
    return f"{median(values):.2f} ({low:.2f} to {high:.2f})"


def cost_table(rows: Sequence[Row]) -> str:
    """Of all kinds of steps at the base point."""
    row = _only(rows, kind="cost", **BASE._asdict())
    if row is None:
        return ""
    lines = [
        [
            name, f"{fact['parameters']:,}", f"{median(fact['ms']):.2f}",
            ranged(ratios(row["kinds"], name)), f"{fact['flops'] / 1e6:.1f}",
            f"{fact['program_bytes'] / 1e6:.2f}", f"{fact['temporary_bytes'] / 1e6:.2f}",
            f"{fact['kept']:,}",
        ]
        for name, fact in row["kinds"].items()
    ]  # fmt: skip
    header = (
        "step", "parameters", "ms", "x chain (quartiles)", "MFLOP", "program memory, MB",
        "of it temporary", "kept for the way back, bytes an example",
    )  # fmt: skip
    return table(header, lines)


def way_table(rows: Sequence[Row]) -> str:
    """Every plan: accuracy, time, memory."""
    cost = _only(rows, kind="way cost")
    lines = []
    for plan in PLANS:
        row = _only(rows, kind="way", way=plan.way, optimizer=plan.optimizer, first=plan.first)
        if row is None:
            continue
        how = f"all by {plan.optimizer}"
        how = how if plan.first is None else f"{plan.first} epoch, then the chain by Adam"
        cells = ["", "", ""]
        if cost is not None:
            fact = cost["kinds"][plan.way]
            time_ratio = ranged(ratios(cost["kinds"], plan.way))
            cells = [time_ratio, f"{fact['kept']:,}", f"{fact['temporary_bytes'] / 1e6:.2f}"]
        rates = ", ".join(f"{r:g}" for r in row["rates"])
        lines.append([plan.way, how, shown(row), equal_time(plan, row, cost), rates, *cells])
    header = (
        "way", "trained", "test accuracy, %", "in the time of the chain's epochs, %",
        "learning rates", "update, x chain (SGD)", "kept for the way back, bytes an example",
        "temporary, MB",
    )  # fmt: skip
    return table(header, lines)


def equal_time(plan: Plan, row: Row, cost: Row | None) -> str:
    """The mean accuracy once the time is over that the chain's whole training takes."""
    if cost is None or plan.first is not None:
        return ""
    epochs = EPOCHS / median(ratios(cost["kinds"], plan.way))
    known = [0.0, *range(1, EPOCHS + 1)]
    if epochs > EPOCHS:
        return f"({row['by_epoch'][-1]:.2f}, after {EPOCHS} epochs)"
    return f"{np.interp(epochs, known, [10.0, *row['by_epoch']]):.2f}"


def picture(rows: Sequence[Row]) -> Any:
    """Length, factors, and the variants over time and memory."""
    made, axes = reproducing.figure(2, 2, width=5.6, height=4.0)
    draw_length(axes[0], rows)
    draw_cost(axes[1], rows)
    cost = _only(rows, kind="way cost")
    if cost is not None:
        draw_ways(axes[2], axes[3], rows, cost)
    return made


def draw_length(axes: Any, rows: Sequence[Row]) -> None:
    """Accuracy over the length of the stage."""
    for name, colour in zip(SETS, ("C0", "C1"), strict=True):
        chain = accuracy_of(rows, BASE, "chain", name)
        if chain is None:
            continue
        middle, width = mean(chain["test"]), reproducing.spread(chain["test"])
        axes.axhspan(
            middle - width, middle + width, alpha=0.2, color=colour, label=f"{name}, chain"
        )
        found = [(p.length, accuracy_of(rows, p, ARES, name)) for p in points_along("length")]
        there = [(length, row["test"]) for length, row in found if row is not None]
        axes.errorbar(
            [length for length, _ in there], [mean(t) for _, t in there],
            yerr=[reproducing.spread(t) for _, t in there], fmt="o-", capsize=3, color=colour,
            label=f"{name}, aRes-BP",
        )  # fmt: skip
    axes.set(xscale="log", xlabel=f"parallel epochs of {EPOCHS}", ylabel="test accuracy, %")
    axes.legend(fontsize=7)


def draw_cost(axes: Any, rows: Sequence[Row]) -> None:
    """The stage's step over the chain's, at all points."""
    found = [row for row in _those(rows, kind="cost") if STAGE in row["kinds"]]
    names = [_changed(row) for row in found]
    for offset, name in ((-0.2, STAGE), (0.2, ALONE)):
        heights = [median(ratios(row["kinds"], name)) for row in found]
        axes.barh(np.arange(len(found)) + offset, heights, 0.4, label=name)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), names, fontsize=7)
    axes.set(xlabel="time of a step, over the chain's")
    axes.legend(fontsize=7)


def _changed(row: Row) -> str:
    found = [f"{k} {row[k]}" for k, v in BASE._asdict().items() if row[k] != v]
    return ", ".join(found) or "base"


def draw_ways(left: Any, right: Any, rows: Sequence[Row], cost: Row) -> None:
    """Accuracy over time, and at the end over what is kept."""
    for row in _those(rows, kind="way", first=None):
        label = f"{row['way']} ({row['optimizer']})"
        ratio = median(ratios(cost["kinds"], row["way"]))
        style = "-" if row["optimizer"] == "SGD" else "--"
        errors = [100 - a for a in row["by_epoch"]]
        left.plot(ratio * np.arange(1, EPOCHS + 1), errors, style, marker=".", label=label)
        kept = cost["kinds"][row["way"]]["kept"]
        right.plot(kept, 100 - mean(row["test"]), "o" if style == "-" else "s")
        right.annotate(label, (kept, 100 - mean(row["test"])), fontsize=5)
    left.set(xlabel="time, in epochs of the chain", ylabel="test error, %", yscale="log")
    left.legend(fontsize=5)
    right.set(xlabel="kept for the way back, bytes an example", ylabel="test error, %")
    right.set(yscale="log")


ABOUT = """\
Measured: networks 784-512-512-10 (hidden layers sketched, head dense) on the first {images:,}
training images, {epochs} epochs in all, seeds {seeds}; the base point has rank 16, batch 128, one
epoch in the parallel stage, Gaussian sketches. All methods have four tries of their learning rates
(chain, low-rank, seeded: {rates}; aRes-BP: two of the successive stage times two of the parallel
one), chosen by the mean validation accuracy of all seeds. Accuracies of the first two tables are of
the packed 16-bit file, mean and standard deviation; differences are by seed, with their standard
error. Times are medians of turns in one process, as ratios to the chain's step of the same turn;
"alone" is a program of the parallel stage without the code of the other one, as a library could
compile it. FLOPs and memory are XLA's, of the compiled loop; "kept for the way back" is what JAX
saves between forward and backward. Low-rank and seeded have no stage and no sketch family.
"""

WAYS_ABOUT = """\
The variants (`scripts/parallel_variants.py`), in one plain training loop: the same start, batches,
momentum and clipping for all; SGD by a cosine from the best of {sgd}, Adam by one cycle to the best
of {adam}, or one epoch by the way at a constant rate and the chain by Adam for the rest. Test
accuracy of the last epoch. Where an update is slower than the chain's, the fourth column is what
was reached when the chain was done, read off the same run.
"""


def section(rows: Sequence[Row], args: argparse.Namespace) -> str:
    """The text in BENCHMARKS.md."""
    about = ABOUT.format(
        images=args.images, epochs=EPOCHS, seeds=", ".join(map(str, range(args.seeds))),
        rates=", ".join(f"{r:g}" for r in RATES),
    )  # fmt: skip
    ways = WAYS_ABOUT.format(
        sgd=", ".join(f"{r:g}" for r in SGD_RATES), adam=", ".join(f"{r:g}" for r in RATES)
    )
    parts = [
        reproducing.provenance(f"scripts/reproduce {NAME}", rows),
        about,
        "How long the stage is:",
        length_table(rows),
        "Everything else, one thing at a time (the stage one epoch):",
        factor_table(rows),
        "A step at the base point:",
        cost_table(rows),
        ways,
        way_table(rows),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part)
