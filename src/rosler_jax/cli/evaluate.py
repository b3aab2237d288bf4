"""``rosler evaluate``: how good a model is on a test split."""

from __future__ import annotations

import argparse
from typing import Any

from rosler_jax.cli._command import Command, Outcome, UsageError, shown, table
from rosler_jax.cli._config_options import add_config_options, build_config, given_options
from rosler_jax.cli._model_argument import ModelArgument, add_model_argument, model_argument

DATA = ("data", "target", "image_size", "data_options", "task")
"""Fields of a run's config that may be given in the place of its own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and the data."""
    add_model_argument(parser)
    add_config_options(parser, DATA, "the run's own")


def run(args: argparse.Namespace) -> Outcome:
    """Scores the model."""
    from rosler_jax.run import evaluate_folder

    given, config = model_argument(args), given_options(args)
    if given.path is not None:
        result = evaluate_folder(args.path, **config)
    else:
        result = _scored(given, config)
    metrics = [k for k in result if k.startswith("test_") and k != "test_loss"]
    rows = [
        ("data", result["data"]),
        ("examples", result["examples"]),
        *((k.replace("_", " "), shown(k.removeprefix("test_"), result[k])) for k in metrics),
        ("test loss", f"{result['test_loss']:.4f}"),
        *([("file bytes", result["file_bytes"])] if "file_bytes" in result else []),
    ]
    return Outcome(f"{table(rows)}\n\nread from\n{args.path}", {**result, "path": str(args.path)})


def _scored(given: ModelArgument, config: dict[str, Any]) -> dict[str, Any]:
    """Loss and metrics, on a test split, of the model that a function makes."""
    import jax

    from rosler_jax.run import load_data, score_model

    if "data" not in config:
        raise UsageError(f"{given.name}: the data is not known; name it, as --data mnist5k")
    whole = build_config(config)
    dataset = load_data(whole)
    if not given.examples:
        x = dataset.test_x
        given = given._replace(examples=(jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype),))
    return score_model(given.graph(), dataset, whole, given.name)


COMMAND = Command(
    summary="how good a model is on a data set",
    description="Loads the packed model as it ships and scores it on the data's test split.",
    examples=(
        "rosler evaluate runs/compact",
        "rosler evaluate runs/compact/model.rosler --data mnist5k --json",
        "rosler evaluate my_model.py:build --data mnist5k",
    ),
    add_arguments=add_arguments,
    run=run,
)
