"""``rosler evaluate``: accuracy of a model on a test split."""

from __future__ import annotations

import argparse
import math
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
    from rosler_jax.modelfile import load
    from rosler_jax.run import evaluate_folder

    given = model_argument(args)
    if given.path is not None and load(given.path).version == 1:
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
    """Loss and accuracy of a graph on a test split."""
    import jax

    from rosler_jax.config import TrainConfig
    from rosler_jax.run import RunError, check_fit, load_data, load_run_data, score

    if given.path is not None:
        dataset = load_run_data(given.path, data)
    else:
        dataset = None if data is None else load_data(TrainConfig(data=data))
    if dataset is None:
        raise UsageError(f"{given.name}: the data is not known; name it, as --data mnist5k")
    if given.path is None and not given.examples:
        x = dataset.test_x
        given = given._replace(examples=(jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype),))
    model = given.load()
    if model.graph.structure is not None or len(model.graph.inputs) != 1:
        raise ValueError(f"{given.name}: only a model of one input and one output has an accuracy")
    wanted = model.graph.in_shape

    def predict(x: Any) -> Any:
        same = math.prod(x.shape[1:]) == math.prod(wanted)
        return model(x.reshape(len(x), *wanted) if same else x)

    check_fit(predict, dataset)
    loss, accuracy = score(predict, dataset.test_x, dataset.test_y)
    if not math.isfinite(loss):
        raise RunError(f"{given.name}: its loss on {dataset.name} is {loss}; it cannot be scored")
    found = {"data": dataset.name, "examples": len(dataset.test_y)}
    found |= {"test_accuracy": accuracy, "test_loss": loss}
    return found | ({"file_bytes": model.file.file_bytes} if given.path else {})


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
