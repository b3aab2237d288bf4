"""aRes-BP's parallel stage: what it costs and gives, and whether a variant of it pays.

    scripts/reproduce parallel-stage                         # half an hour on two cores
    scripts/reproduce parallel-stage --only way,cost         # of some rows
    scripts/reproduce parallel-stage --fashion-mnist DIR     # that data set, too

A network 784-512-512-10 on the first 20,000 training images, 8 epochs in all, three seeds; one
thing at a time is changed. Every curve had four tries of its learning rates, the best by the mean
validation accuracy of its seeds is shown; the test split chooses nothing. The first part is the
library's own training (``rosler sweep``), the second the variants of ``parallel_variants``, in one
training loop of their own. Times are of alternating turns in one process, as ratios to the chain.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import reproducing
from parallel_costs import cost_points, cost_row, way_cost_row
from parallel_section import NAME, picture, section
from parallel_trainings import PLANS, accuracy_key, accuracy_row, curves, load, trained, variant_row
from reproducing import Row, once, wanted

WHOLE = (20_000, 3)  # images and seeds


def tail(args: argparse.Namespace) -> str:
    """What ends the keys of a shorter run, so that its rows are not taken for the whole one's."""
    asked = (args.images, args.seeds)
    return "" if asked == WHOLE else f"{asked[0]} images {asked[1]} seeds"


def tail_of(key: str) -> str:
    """The same, of a key."""
    return key.partition(" / ")[2]


def measure(args: argparse.Namespace) -> None:
    """All rows that are asked for and not there yet."""
    for key, make in jobs(args).items():
        if wanted(key, args):
            once(args.out, key, make)


def jobs(args: argparse.Namespace) -> dict[str, Callable[[], Row]]:
    """Every row's key, and how it is measured."""
    found: dict[str, Callable[[], Row]] = {}
    for curve in curves():
        if curve.data == "fashion-mnist" and args.fashion_mnist is None:
            continue
        rows = functools.cache(partial(trained, curve, args))
        for value in curve.values:
            found[accuracy_key(curve, value)] = partial(accuracy_row, curve, value, rows)
    for point, kinds in cost_points().items():
        words = " ".join(f"{k}={v}" for k, v in point._asdict().items() if k != "length")
        found[f"cost {words}"] = partial(cost_row, point, kinds, args.repeats)
    found["way cost"] = partial(way_cost_row, args.repeats)
    splits = functools.cache(partial(load, args))
    for plan in PLANS:
        found[plan.key()] = partial(variant_row, plan, splits, args.seeds)
    return {f"{key} / {tail(args)}" if tail(args) else key: make for key, make in found.items()}


def main() -> int:
    """Measures what is missing, and writes the section."""
    parser = reproducing.parser_of(NAME, __doc__, seeds=WHOLE[1])
    parser.add_argument(
        "--images", type=int, default=WHOLE[0], metavar="N",
        help="first training images (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--fashion-mnist", type=Path, metavar="DIR", help="of the four idx files; default: left out"
    )
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="turns of each program")
    args = parser.parse_args()
    if not reproducing.begin(NAME, args, jobs(args)):
        return 0
    measure(args)
    rows = [row for row in reproducing.rows_of(args.out) if tail_of(row["key"]) == tail(args)]
    reproducing.finish(NAME, args, section(rows, args), picture(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
