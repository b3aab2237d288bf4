"""Accuracy, bytes and time of every method on MNIST and Fashion-MNIST; writes tables and a plot.

    python scripts/bench_accuracy.py --mnist DIR --fashion-mnist DIR --out runs/accuracy

DIR is a folder of the four idx files, or a name that `rosler train --data` takes. For each method
and size the plain and the augmented data are tried with the first seed, the better by *validation*
accuracy of the packed file is kept and trained with the other seeds; the test split decides
nothing. Runs that are already in the output folder are not run again, so that the script
can be stopped and started at will.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path
from typing import Any

SEEDS = (0, 1, 2)
HIDDEN = (1024, 1024)

# Every method, dense included, is trained with label smoothing and chooses, by validation, between
# the plain data and these augmentations.
AUGMENTATION: dict[str, dict[str, Any]] = {"mnist": {"shift": 1}, "fashion-mnist": {"noise": 0.2}}
COMMON: dict[str, Any] = {"label_smoothing": 0.1}

Row = tuple[str, dict[str, Any]]
LEARNT = {"epochs": 20}
ARES = {"epochs": 20, "sketch": "gaussian"}
RESTRICTED = {"epochs": 5}  # each epoch costs ten of the others'; on the plain data only

ROWS: list[Row] = [
    ("chain, rank 8", {"method": "chain", "rank": 8, **LEARNT}),
    ("chain, rank 16", {"method": "chain", "rank": 16, **LEARNT}),
    ("seeded, 41 k", {"method": "seeded", "rank": 32, "in_sketch": 448, **LEARNT}),
    ("seeded, 70 k", {"method": "seeded", "rank": 64, "in_sketch": 448, **LEARNT}),
    ("aRes-BP, rank 8", {"method": "ares-bp", "rank": 8, **ARES}),
    ("aRes-BP, rank 16", {"method": "ares-bp", "rank": 16, **ARES}),
    ("low-rank, rank 8", {"method": "low-rank", "rank": 8, **LEARNT}),
    ("low-rank, rank 16", {"method": "low-rank", "rank": 16, **LEARNT}),
    ("dense", {"method": "dense", "bits": 32, "epochs": 10}),
    ("restrict-rank, rank 8", {"method": "restrict-rank", "rank": 8, **RESTRICTED}),
    ("restrict-rank, rank 16", {"method": "restrict-rank", "rank": 16, **RESTRICTED}),
]
"""The rows of each data set's table: a name, and the settings of the run."""


def trained(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The result of one run: read if it is there, trained (or resumed) if not."""
    from rosler_jax import run
    from rosler_jax.config import TrainConfig

    if (folder / run.RESULT).exists():
        return with_epoch_seconds(folder, json.loads((folder / run.RESULT).read_text("utf-8")))
    config = TrainConfig(hidden=HIDDEN, **settings)
    result = run.train(config, folder, resume=(folder / run.CONFIG).exists())
    print(
        f"  {folder}: validation {result['validation_accuracy']:.2%}, "
        f"{result['file_bytes']:,} bytes, {result['train_seconds']:.0f} s",
        flush=True,
    )
    return with_epoch_seconds(folder, result)


def with_epoch_seconds(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The result with its fastest epoch's seconds: what other work on the machine adds least to."""
    from rosler_jax import run

    with (folder / run.HISTORY).open(encoding="utf-8") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return {**result, "epoch_seconds": min(seconds)}


def measure(out: Path, data: str, candidates: list[dict[str, Any]], row: Row) -> dict[str, Any]:
    """One row: candidates by validation with the first seed, then the winner with all seeds."""
    name, settings = row
    slug = name.replace(", ", "-").replace(" ", "")
    first = []
    for i, candidate in enumerate(candidates):
        chosen = {"data": data, **COMMON, **settings, **candidate}
        first.append(trained(out / f"{slug}-{i}-seed{SEEDS[0]}", {**chosen, "seed": SEEDS[0]}))
    best = max(range(len(first)), key=lambda i: first[i]["validation_accuracy"])
    chosen = {"data": data, **COMMON, **settings, **candidates[best]}
    results = [first[best]] + [
        trained(out / f"{slug}-{best}-seed{s}", {**chosen, "seed": s}) for s in SEEDS[1:]
    ]
    accuracies = [100 * r["test_accuracy"] for r in results]
    return {
        "name": name,
        "settings": {**settings, **candidates[best]},
        "test_mean": statistics.mean(accuracies),
        "test_std": statistics.stdev(accuracies),
        "validation_mean": statistics.mean(100 * r["validation_accuracy"] for r in results),
        "parameters": results[0]["parameters"],
        "file_bytes": results[0]["file_bytes"],
        "compression": results[0]["compression"],
        "train_seconds": statistics.median(r["train_seconds"] for r in results),
        "epoch_seconds": min(r["epoch_seconds"] for r in results),
        "epochs": settings["epochs"],
        "augmented": best == 1,
    }


def markdown(table: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        "| method | test accuracy, % | validation, % | stored numbers | file bytes | compression "
        "| epochs | augmented | training, s | fastest epoch, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in table:
        lines.append(
            f"| {r['name']} | {r['test_mean']:.2f} ± {r['test_std']:.2f} | "
            f"{r['validation_mean']:.2f} | {r['parameters']:,} | {r['file_bytes']:,} | "
            f"{r['compression']:.1f}x | {r['epochs']} | {'yes' if r['augmented'] else 'no'} | "
            f"{r['train_seconds']:.0f} | "
            f"{r['epoch_seconds']:.2f} |"
        )
    return "\n".join(lines)


def draw(path: Path, title: str, table: list[dict[str, Any]]) -> None:
    """Accuracy against bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for r in table:
        axes.errorbar(r["file_bytes"], r["test_mean"], r["test_std"], fmt="o", capsize=3)
        axes.annotate(r["name"], (r["file_bytes"], r["test_mean"]), fontsize=7)
    axes.set(xscale="log", xlabel="bytes of the model file", ylabel="test accuracy, %", title=title)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Runs what is not there yet and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mnist", help="folder or name of the MNIST data")
    parser.add_argument("--fashion-mnist", help="folder or name of the Fashion-MNIST data")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and tables")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    options = parser.parse_args()
    sources = {"mnist": options.mnist, "fashion-mnist": options.fashion_mnist}
    if not any(sources.values()):
        parser.error("name at least one of --mnist, --fashion-mnist")
    for name, data in sources.items():
        if not data:
            continue
        table = []
        for row in ROWS:
            if options.only in row[0]:
                print(f"{name}: {row[0]}", flush=True)
                plain_only = row[1]["method"] == "restrict-rank"
                candidates = [{}] if plain_only else [{}, AUGMENTATION[name]]
                table.append(measure(options.out / name, data, candidates, row))
        text = markdown(table)
        (options.out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
        (options.out / f"{name}.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
        draw(options.out / f"{name}.png", name, table)
        print(f"\n{text}\n\nwritten to {options.out / name}.md, .json, .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
