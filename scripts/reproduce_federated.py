"""Federated training: accuracy against rounds and against bytes, and bytes to a given accuracy.

    scripts/reproduce federated                               # 3 seeds: an hour or two on two cores
    scripts/reproduce federated --only cwru --seeds 1
    scripts/reproduce federated --rounds 4 --only /seeded/ --out runs/quick

Trains digits (MNIST, Dirichlet 0.3, 100 clients, 10 asked a round) and bearings (CWRU spectra, a
client for each recording, half of them asked) by dense FedAvg and by what sends less, and tells
what each sends until it is within a point of the dense net's end, by validation. A row is a run,
``task/line/seed``, with its curve: accuracy by validation, bytes up and bytes down, by round.
The lines, and what differs between them, are ``bytes_variants`` of ``federated_curves``.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from federated_curves import TASKS, bytes_section, bytes_variants, not_failed, of, run
from reproducing import (
    Row,
    begin,
    figure,
    finish,
    once,
    parser_of,
    provenance,
    rows_of,
    wanted,
)

from rosler_jax.data import DataError

NAME = "federated"
TITLES = {"mnist": "Digits", "cwru": "Bearings"}


def plan(args: argparse.Namespace) -> dict[str, Callable[[], Row]]:
    """All rows by key, and how each is measured: the first seed of everything comes first."""
    tail = f"/{args.rounds} rounds" if args.rounds else ""
    return {
        f"{task}/{name}/{seed}{tail}": functools.partial(
            run, task, variant, seed, args.data, args.rounds
        )
        for seed in range(args.seeds)
        for task in TASKS
        for name, variant in bytes_variants(task).items()
    }


def section(rows: Sequence[Row]) -> str:
    """The text of BENCHMARKS.md: where the numbers are from, a table a task."""
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
    parts = [
        provenance(f"scripts/reproduce {NAME}", rows),
        f"Seeds {seeds} (of split, choice of clients, initialisation and order): mean ± standard "
        "deviation in the tables, line and band in the figure, which is of validation; test "
        "accuracy is of the round that validation chose.",
    ]
    for task, title in TITLES.items():
        if any(row["task"] == task for row in rows):
            parts += [f"**{title}**", bytes_section(rows, task)]
    return "\n\n".join(parts)


def draw(rows: Sequence[Row]) -> Any:
    """For each task accuracy against rounds and against bytes, a line a way of training."""
    tasks = [task for task in TITLES if any(row["task"] == task for row in rows)]
    made, axes = figure(2, len(tasks), width=5.5, height=4.0)
    for task, by_round, by_bytes in zip(tasks, axes[::2], axes[1::2], strict=True):
        for i, (name, variant) in enumerate(bytes_variants(task).items()):
            runs = not_failed(of(rows, task, name))
            if runs:
                draw_line((by_round, by_bytes), runs, color=f"C{i}", label=variant.what)
        low = 0.7 * max(run["validation"][-1] for run in not_failed(rows) if run["task"] == task)
        for one in (by_round, by_bytes):
            one.set(ylabel="validation accuracy", ylim=(low, 1.005), title=TITLES[task])
            one.grid(alpha=0.3)
        by_round.set_xlabel("rounds")
        by_bytes.set(xscale="log", xlabel="megabytes sent so far, up and down, all clients")
    handles = {
        label: handle
        for one in axes
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
    }
    made.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize="small")
    return made


def draw_line(axes: Sequence[Any], runs: Sequence[Row], **style: Any) -> None:
    """The mean over seeds, and a band of one deviation, in both panels."""
    curves = np.array([run["validation"] for run in runs])
    middle, wide = curves.mean(axis=0), curves.std(axis=0, ddof=int(len(runs) > 1))
    megabytes = np.mean([np.cumsum(np.add(run["up"], run["down"])) for run in runs], axis=0) / 1e6
    for one, x in zip(axes, (np.arange(1, curves.shape[1] + 1), megabytes), strict=True):
        one.plot(x, middle, linewidth=1.2, **style)
        one.fill_between(x, middle - wide, middle + wide, alpha=0.2, color=style["color"])


def main() -> int:
    """Measures what is missing, and shows all."""
    parser = parser_of(NAME, __doc__)
    parser.add_argument("--rounds", type=int, metavar="N", help="instead of each task's own")
    args = parser.parse_args()
    rows_by_key = plan(args)
    if not begin(NAME, args, rows_by_key):
        return 0
    try:
        for key, measure in rows_by_key.items():
            if wanted(key, args):
                once(args.out, key, measure)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = [row for row in rows_of(args.out) if row["key"] in rows_by_key]
    if not not_failed(rows):
        print("no row is measured", file=sys.stderr)
        return 1
    finish(NAME, args, section(rows), draw(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
