r"""Weights packed, coded, streamed or sparse in C: flash, RAM and instructions on an emulated M4.

    rosler train --data mnist --hidden 64,32 --method dense --bits 4 --rate-lambda 0.01 \
        --epochs 8 --batch-size 128 --learning-rate 3e-3 --out runs/mlp
    python scripts/bench_coded_edge.py runs/mlp --dtypes int8,int4 --out coded.md

The outputs are the same bits with weights of every form, so one accuracy is given: of the integers
as exported, over the whole test split. Instructions are the mean over 16 inputs; RAM is the arena,
decoded weights and the stack.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rosler_jax._files import replace_text
from rosler_jax.export import export, lower, run_integer
from rosler_jax.export.api import calibration_of
from rosler_jax.graph.save import load, model_path
from rosler_jax.run import load_run_data

HEAD = (
    "| net | weights | flash: data + code | RAM | instructions | at the start |",
    "|---|---|---:|---:|---:|---:|",
)


def accuracy(run: Path, calibration: Any, dtype: str, activations: int) -> float:
    """Of the integers as exported, on the test split; the C gives the same bits."""
    found = load_run_data(model_path(run))
    if found is None:
        raise SystemExit(f"{run}: no data is known; give the folder of a run")
    x, y = np.asarray(found[0].test_x), np.asarray(found[0].test_y)
    program = lower(load(model_path(run)).graph, calibration, dtype=dtype, activations=activations)
    parts = np.array_split(program.quantize_input(x), max(1, len(x) // 500))
    labels = np.concatenate([np.argmax(run_integer(program, part), axis=-1) for part in parts])
    return float((labels == y).mean())


def nonzero(run: Path) -> int:
    """Stored numbers that are not zero."""
    graph = load(model_path(run)).graph
    return sum(int(np.count_nonzero(weight.values)) for weight in graph.weights())


def rows(run: Path, dtype: str, activations: int, board: str) -> Iterator[str]:
    """A row of the table for each form."""
    calibration = calibration_of(run)
    right = accuracy(run, calibration, dtype, activations)
    with tempfile.TemporaryDirectory() as folder:
        done = export(
            run, folder, dtype=dtype, activations=activations, calibration=calibration,
            board=board, weights="coded",
        )  # fmt: skip
    if done.report["not_emulated"]:
        raise SystemExit(done.report["not_emulated"])
    net = f"{run.name}, {nonzero(run):,} numbers, {dtype}, activations of {activations} bits"
    net += f", {right:.2%}"
    for form, row in done.report["weights"]["forms"].items():
        flash, data = row["flash_bytes"], row["data_bytes"]
        cells = [f"{flash:,}: {data:,} + {flash - data:,}"]
        cells += [f"{row[k]:,}" for k in ("ram_bytes", "instructions", "start_instructions")]
        yield f"| {net} | {form} | {' | '.join(cells)} |"
        net = ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all nets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, best rate-coded")
    parser.add_argument("--dtypes", default="int8", help="of the weights (default: int8)")
    parser.add_argument("--activations", default="16", help="bits (default: 16; or 16,8)")
    parser.add_argument("--board", default="cortex-m4", help="default: cortex-m4")
    parser.add_argument("--out", type=Path, metavar="FILE", help="writes the table, too")
    args = parser.parse_args(arguments)
    lines = list(HEAD)
    for run in args.runs:
        for dtype in args.dtypes.split(","):
            for activations in map(int, args.activations.split(",")):
                lines += rows(run, dtype, activations, args.board)
    print("\n".join(lines))
    if args.out is not None:
        replace_text(args.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
