"""``rosler evaluate``: accuracy of a model on a test split."""

from __future__ import annotations

import argparse
from typing import Any

from rosler_jax.cli._command import Command, Outcome, UsageError, table
from rosler_jax.cli._model_argument import ModelArgument, add_model_argument, model_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and the data."""
    add_model_argument(parser)
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="name of a data set, folder of idx files, or .npz file (default: the run's own)",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Scores the model."""
    from rosler_jax.run import evaluate_folder

    given = model_argument(args)
    if given.path is not None:
        result = evaluate_folder(args.path, args.data)
    else:
        result = _scored(given, args.data)
    rows = [
        ("data", result["data"]),
        ("examples", result["examples"]),
        ("test accuracy", f"{result['test_accuracy']:.2%}"),
        ("test loss", f"{result['test_loss']:.4f}"),
        *([("file bytes", result["file_bytes"])] if "file_bytes" in result else []),
    ]
    return Outcome(f"{table(rows)}\n\nread from\n{args.path}", {**result, "path": str(args.path)})


def _scored(given: ModelArgument, data: str | None) -> dict[str, Any]:
    """Loss and accuracy, on a test split, of the model that a function makes."""
    import jax

    from rosler_jax.config import TrainConfig
    from rosler_jax.run import load_data, predictor, score_model

    if data is None:
        raise UsageError(f"{given.name}: the data is not known; name it, as --data mnist5k")
    dataset = load_data(TrainConfig(data=data))
    if not given.examples:
        x = dataset.test_x
        given = given._replace(examples=(jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype),))
    return score_model(predictor(given.graph(), given.name), dataset, given.name)


COMMAND = Command(
    summary="accuracy of a model on a data set",
    description="Loads the packed model as it ships and scores it on the data's test split.",
    examples=(
        "rosler evaluate runs/compact",
        "rosler evaluate runs/compact/model.rosler --data mnist5k --json",
        "rosler evaluate my_model.py:build --data mnist5k",
    ),
    add_arguments=add_arguments,
    run=run,
)
