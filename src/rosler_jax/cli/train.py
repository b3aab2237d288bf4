"""``rosler train``: a compact network from data, in one folder."""

from __future__ import annotations

import argparse
from typing import Any

from rosler_jax.cli._command import (
    Command,
    Outcome,
    UsageError,
    how_to_resume,
    run_folder,
    shown,
    table,
)
from rosler_jax.cli._config_options import (
    add_config_options,
    build_config,
    given_options,
)
from rosler_jax.cli._progress import progress

FILES = ("model.rosler", "result.json", "config.json", "history.csv", "curves.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write, what to resume, and every field of the config."""
    parser.add_argument("--out", metavar="DIR", help="folder of a new run; made if there is none")
    parser.add_argument(
        "--resume", metavar="DIR", help="go on with the run in this folder, with its own config"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    add_config_options(parser)


def run(args: argparse.Namespace) -> Outcome:
    """Trains, or goes on."""
    given = given_options(args)
    folder = run_folder(args, given)
    config = None if args.resume is not None else build_config(given)
    _check_sketch(given.get("sketch"))

    from rosler_jax import run as runs

    resume = config is None
    known = config or runs.agreed_config(folder, None, True)
    metric, _ = runs.metric_of(runs.task_of(known), known.metric)
    with progress(known.epochs, metric, args.quiet) as report:
        result = runs.train(config, folder, resume=resume, report=report)
    files = [name for name in FILES if (folder / name).exists()]
    text = f"{_table(result)}\n\nwrote {', '.join(files)} into\n{folder}"
    return Outcome(text, {**result, "out": str(folder), "files": files})


def interrupted(args: argparse.Namespace) -> str:
    """How to resume, if there is anything to resume."""
    return how_to_resume(args, "train")


def _check_sketch(sketch: str | None) -> None:
    if sketch is None:
        return
    from rosler_jax.nn._families import kind_of

    try:
        for word in sketch.split("/", 1):
            kind_of(word)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _table(result: dict[str, Any]) -> str:
    metric = result["metric"]
    return table(
        [
            (f"test {metric}", shown(metric, result[f"test_{metric}"])),
            (f"validation {metric}", shown(metric, result[f"validation_{metric}"])),
            ("parameters", result["parameters"]),
            ("file bytes", result["file_bytes"]),
            ("dense parameters", result["dense_parameters"]),
            ("dense bytes (float32)", result["dense_bytes"]),
            ("compression", f"{result['compression']:.1f}x"),
            ("training", f"{result['train_seconds']:.1f} s, data on the {result['data_on']}"),
            ("device", f"{result['device']}, jax {result['jax_version']}"),
            ("seed", result["seed"]),
        ]
    )


COMMAND = Command(
    summary="train a network and write its packed file and results into a folder",
    description=(
        "Trains a model whose layers are held compactly, keeps the best epoch by validation, and "
        f"writes into DIR: {', '.join(FILES)}. Models, tasks, methods and data may be your own: "
        "FILE.py:NAME or MODULE:NAME."
    ),
    examples=(
        "rosler train --data mnist5k --hidden 1024,1024 --rank 16 --method chain --bits 16 "
        "--epochs 20 --seed 0 --out runs/compact",
        "rosler train --data images.npz --method seeded --rank 32 --bits 4 --quantization-aware "
        "--out runs/seeded",
        "rosler train --data photos --image-size 32,32 --model resnet8 --method chain "
        "--rules 'conv1=skip,*=0.25' --out runs/photos",
        "rosler train --data houses.csv --target price --task regression --hidden 64,64 "
        "--method chain --rank 8 --out runs/houses",
        "rosler train --data signals.npz --model my_models.py:build --method low-rank "
        "--out runs/own",
        "rosler train --resume runs/compact",
    ),
    add_arguments=add_arguments,
    run=run,
    interrupted=interrupted,
)
