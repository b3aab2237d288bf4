"""``rosler export``: from a trained model to C, ONNX, TFLite or StableHLO."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosler_jax._npy import DAMAGE
from rosler_jax.cli._command import Command, Outcome, UsageError
from rosler_jax.cli._model_argument import add_model_argument, model_argument
from rosler_jax.export import DTYPES, TARGETS, Training, export
from rosler_jax.export.c.coded import FORMS
from rosler_jax.export.c.train import options
from rosler_jax.export.c.train.parts import GROUPS

if TYPE_CHECKING:
    from rosler_jax.graph import Graph

TRAINING: dict[str, tuple[str, dict[str, Any]]] = {
    "loss": ("", {"choices": options.LOSSES}),
    "stage": ("of aRes-BP", {"choices": options.STAGES}),
    "parts": ("what trains", {"choices": GROUPS}),
    "batch": ("most examples a step", {"type": int, "metavar": "N"}),
    "momentum": ("of SGD", {"type": float, "metavar": "F"}),
    "clip": ("norm of all gradients", {"type": float, "metavar": "F"}),
}
"""The option of every field of :class:`rosler_jax.export.Training` but its dtype, ``--train``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the target, and what the target has."""
    add_model_argument(parser)
    parser.add_argument("--target", choices=tuple(TARGETS), default="c", help="default: c")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the weights (default: float32)"
    )
    parser.add_argument("--out", metavar="EDGE", required=True, help="folder to write into")
    parser.add_argument(
        "--activations",
        type=int,
        choices=(16, 8),
        default=16,
        help="C, integers: bits of the values between operations; 8 halves the arena (default: 16)",
    )
    parser.add_argument(
        "--weights",
        choices=tuple(FORMS),
        default="packed",
        help="C: how they lie in flash: packed; coded, and decoded to RAM at the start; streamed, "
        "decoded in every product with a vector; or sparse, without zeros (default: packed)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="representative inputs (.npy; .npz with an array `inputs`) that choose the scales of "
        "integers; default: validation inputs of the run's data",
    )
    parser.add_argument("--data", metavar="DATA", help="data set to calibrate with instead")
    parser.add_argument(
        "--flash", type=int, metavar="BYTES", help="C: refuse a model that takes more flash"
    )
    parser.add_argument(
        "--ram", type=int, metavar="BYTES", help="C: refuse a model that takes more RAM"
    )
    parser.add_argument(
        "--board",
        default="cortex-m4",
        metavar="NAME",
        help="C: count instructions on this emulated board where QEMU is installed (cortex-m3, "
        "cortex-m4, cortex-m7, none; default: cortex-m4)",
    )
    parser.add_argument(
        "--softmax", action="store_true", help="C: add rosler_softmax, which gives probabilities"
    )
    parser.add_argument(
        "--name",
        default="rosler",
        help="C: what all names and files begin with (default: rosler); models in one program need "
        "names of their own",
    )
    parser.add_argument(
        "--delta",
        metavar="FILE",
        help="C in float32: add rosler_tune, which takes the model to any numbers of this delta",
    )
    _add_training(parser)


def _add_training(parser: argparse.ArgumentParser) -> None:
    training = parser.add_argument_group(
        "training on the device", "C: writes rosler_train.h and rosler_train.c, too"
    )
    training.add_argument("--train", choices=options.DTYPES, help="what it computes with")
    for name, (about, settings) in TRAINING.items():
        default = Training._field_defaults[name]
        shown = f"default: {'none' if default is None else default}"
        help = f"{about} ({shown})" if about else shown
        training.add_argument(f"--{name}", help=help, **settings)


def run(args: argparse.Namespace) -> Outcome:
    """Exports."""
    for name in ("flash", "ram"):
        if getattr(args, name) is not None and (args.target != "c" or getattr(args, name) < 1):
            raise UsageError(f"--{name} is a positive number of bytes, for --target c")
    training = _training(args)
    graph = model_argument(args).graph()
    calibration, others = _calibration(args, graph)
    done = export(
        graph,
        args.out,
        target=args.target,
        dtype=args.dtype,
        activations=args.activations,
        calibration=calibration,
        flash=args.flash,
        ram=args.ram,
        board=None if args.board == "none" else args.board,
        probabilities=args.softmax,
        train=training,
        others=others,
        name=args.name,
        weights=args.weights,
        delta=None if args.delta is None else _delta(args.delta, graph),
    )
    files = [str(path) for path in done.files]
    return Outcome("\n".join([done.text, "", "wrote", *files]), {"files": files, **done.report})


def _delta(path: str, graph: Graph) -> Any:
    """A delta of the graph's weights."""
    from rosler_jax.delta import load_delta

    return load_delta(path, graph)[0]


def _training(args: argparse.Namespace) -> Training | None:
    """How the device trains; None if it does not."""
    given = {name: getattr(args, name) for name in TRAINING if getattr(args, name) is not None}
    if args.train is None:
        if given:
            raise UsageError(f"--{next(iter(given))} is for --train float32 or --train fixed")
        return None
    if args.target != "c":
        raise UsageError("--train is for --target c")
    return Training(dtype=args.train, **given)


def _calibration(args: argparse.Namespace, graph: Graph) -> tuple[Any, Any]:
    """Inputs to calibrate with, none where none are needed, and others to see what saturates."""
    from rosler_jax.export.api import calibration_and_others

    if args.calibration is None:
        integer = args.dtype != "float32" or args.train == "fixed"
        known = args.data is not None or (integer and args.target in ("c", "tflite"))
        is_file = Path(args.path).exists()
        if not (known and is_file):
            return None, None
        return calibration_and_others(args.path, args.data, graph=graph)
    import numpy as np

    path = Path(args.calibration)
    try:
        found = np.load(path, allow_pickle=False)
        if hasattr(found, "files"):
            if "inputs" not in found.files:
                raise UsageError(f"{path} has no array `inputs`; it has {', '.join(found.files)}")
            return found["inputs"], None
        return found, None
    except DAMAGE as error:
        if isinstance(error, FileNotFoundError | UsageError):
            raise
        raise ValueError(f"{path}: not a NumPy file: {error}") from error


COMMAND = Command(
    summary="C for a microcontroller, ONNX, TFLite or StableHLO from a packed model",
    description=(
        "Writes a trained model in the form of a target. C is plain C99: one header, one source, "
        "the model as constant data, all working memory in one arena of a size known at compile "
        "time; seeded sketches are regenerated on the device. Integer models compute, bit for bit, "
        "what rosler_jax.export.run_integer computes. size_report.json says what flash, RAM and "
        "work the model takes before anything is flashed."
    ),
    examples=(
        "rosler export runs/compact --dtype int8 --train fixed --parts head --out edge",
        "rosler export runs/compact --target c --dtype int16 --out edge",
        "rosler export runs/compact --dtype int8 --flash 65536 --ram 8192 --out edge",
        "rosler export runs/coded --dtype int8 --weights sparse --out edge",
        "rosler export runs/compact --target onnx --out edge",
        "rosler export my_model.py:build --input-shape 32,32,3 --out edge",
    ),
    add_arguments=add_arguments,
    run=run,
)
