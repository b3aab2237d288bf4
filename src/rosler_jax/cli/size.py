"""``rosler size``: bytes and operations of a packed model, layer by layer."""

from __future__ import annotations

import argparse

from rosler_jax.cli._command import Command, Outcome
from rosler_jax.cli._model_argument import add_model_argument, model_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and the shapes of its inputs."""
    add_model_argument(parser)
    parser.add_argument(
        "--bits", type=int, metavar="BITS", help="of the weights of a model that is no file"
    )


def run(args: argparse.Namespace) -> Outcome:
    """Counts."""
    from rosler_jax.size import size_report

    given = model_argument(args)
    inputs = given.examples or None
    report = size_report(given.path or given.model, inputs=inputs, bits=args.bits)
    return Outcome(
        f"{report}\n\nread from\n{args.path}", {**report.to_dict(), "path": str(args.path)}
    )


COMMAND = Command(
    summary="bytes and operations of a model, beside the dense network's",
    description=(
        "Shows every layer's weights, bits, biases, scales, seeds and bytes in the file, its "
        "multiplications and additions per input, and the same for a dense float32 network with "
        "the same layer sizes. The bytes add up to those of the file."
    ),
    examples=(
        "rosler size runs/compact",
        "rosler size model.rosler --input-shape 28,28,1 --json",
        "rosler size my_model.py:build --input 128:int32 --bits 8",
    ),
    add_arguments=add_arguments,
    run=run,
)
