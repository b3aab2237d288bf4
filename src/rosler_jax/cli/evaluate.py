"""``rosler evaluate``: accuracy of a packed model on a test split."""

from __future__ import annotations

import argparse
from pathlib import Path

from rosler_jax.cli._command import Command, Outcome, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and the data."""
    parser.add_argument("path", metavar="DIR", help="folder of a run, or a model file")
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="name of a data set, folder of idx files, or .npz file (default: the run's own)",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Scores the model."""
    if not Path(args.path).exists():
        raise FileNotFoundError(f"{args.path}: no such folder or model file")
    from rosler_jax.run import evaluate_folder

    result = evaluate_folder(args.path, args.data)
    rows = [
        ("data", result["data"]),
        ("examples", result["examples"]),
        ("test accuracy", f"{result['test_accuracy']:.2%}"),
        ("test loss", f"{result['test_loss']:.4f}"),
        ("file bytes", result["file_bytes"]),
    ]
    return Outcome(f"{table(rows)}\n\nread from\n{args.path}", {**result, "path": str(args.path)})


COMMAND = Command(
    summary="accuracy of a packed model on a data set",
    description="Loads the packed model as it ships and scores it on the data's test split.",
    examples=(
        "rosler evaluate runs/compact",
        "rosler evaluate runs/compact/model.rosler --data mnist5k --json",
    ),
    add_arguments=add_arguments,
    run=run,
)
