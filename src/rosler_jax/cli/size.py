"""``rosler size``: bytes and operations of a packed model, layer by layer."""

from __future__ import annotations

import argparse

from rosler_jax.cli._command import Command, Outcome, integers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and the shape of its inputs."""
    parser.add_argument("path", metavar="DIR", help="folder of a run, or a model file")
    parser.add_argument(
        "--input-shape",
        type=integers,
        metavar="N,N,...",
        help="shape of one input; needed to count the operations of convolutions",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Counts."""
    from rosler_jax.size import size_report

    report = size_report(args.path, input_shape=args.input_shape)
    return Outcome(
        f"{report}\n\nread from\n{args.path}", {**report.to_dict(), "path": str(args.path)}
    )


COMMAND = Command(
    summary="bytes and operations of a packed model, beside the dense network's",
    description=(
        "Shows every layer's weights, bits, biases, scales, seeds and bytes in the file, its "
        "multiplications and additions per input, and the same for a dense float32 network with "
        "the same layer sizes. The bytes add up to those of the file."
    ),
    examples=("rosler size runs/compact", "rosler size model.rosler --input-shape 28,28,1 --json"),
    add_arguments=add_arguments,
    run=run,
)
