"""One option for every field of :class:`rosler_jax.config.TrainConfig`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rosler_jax.cli._command import PARSERS, field_types, flag, made, size_in_bytes
from rosler_jax.config import BITS, PRECISIONS, SCHEDULES, STANDARDIZE, STREAM, TrainConfig
from rosler_jax.methods import METHODS
from rosler_jax.models import MODELS
from rosler_jax.tasks import TASKS


class Option(NamedTuple):
    """One line of :data:`OPTIONS`.

    Attributes:
      group, help, metavar, choices: as argparse has them.
      also: a shorter name.
      parse: of its text; None for what its field's type says.
    """

    group: str
    help: str
    metavar: str = "N"
    choices: tuple[Any, ...] | None = None
    also: str | None = None
    parse: Callable[[str], Any] | None = None


_DATA, _TASK, _MODEL, _TRAINING = "data", "task", "model", "training"
_RATE, _TEACHER = "bytes of the file", "distillation"
_ARES, _RESTRICT, _AUGMENT = "method ares-bp", "method restrict-rank", "augmentation"


def _names(table: Mapping[str, Any]) -> str:
    return ", ".join(table)


OPTIONS: dict[str, Option] = {
    "data": Option(
        _DATA,
        "a data set's name, a .npz, .csv or .parquet file, a folder of images by class, of idx "
        "files or of x.npy and y.npy, or FILE.py:FUNCTION",
        "DATA",
    ),
    "target": Option(_DATA, "columns of a table to predict; none: target, label, y, class", "A,B"),
    "image_size": Option(_DATA, "height and width that a folder's images are resized to", "N,N"),
    "data_options": Option(
        _DATA, "of the data's source, as features=fft,window=512 of bearings", "NAME=V,..."
    ),
    "stream": Option(_DATA, "read data batch by batch; auto: where they do not fit", "HOW", STREAM),
    "manual_dir": Option(_DATA, "files that the data set cannot fetch itself, as cwru's", "DIR"),
    "standardize": Option(
        _DATA,
        "by mean and deviation of each feature, or of all; auto: as the data has units",
        "HOW",
        STANDARDIZE,
    ),
    "validation": Option(_DATA, "fraction of the training data held out for validation", "F"),
    "task": Option(_TASK, f"{_names(TASKS)}, or FILE.py:TASK", "TASK"),
    "metric": Option(_TASK, "what the best epoch is chosen by; none: the task's first", "NAME"),
    "class_weights": Option(_TASK, "of the loss: balanced, or numbers as 1,4; none: 1", "HOW"),
    "model": Option(_MODEL, f"{_names(MODELS)}, or FILE.py:FUNCTION", "MODEL"),
    "hidden": Option(
        _MODEL,
        "widths of the hidden layers, none for none at all; not given: the model's own",
        "N,N,...",
    ),
    "options": Option(_MODEL, "of the model, as width=32,dropout=0.1; none: its own", "NAME=V,..."),
    "method": Option(
        _MODEL, f"how weights are held and trained: {_names(METHODS)}, or FILE.py:METHOD", "METHOD"
    ),
    "rank": Option(_MODEL, "rank of the sketched layers, or a fraction as 0.25; not used by dense"),
    "rules": Option(
        _MODEL,
        "which layers are sketched, by path: '*=0.25', 'conv1=skip,*=16'; none: all but a head",
        "GLOB=RANK,...",
    ),
    "in_sketch": Option(_MODEL, "width of seeded layers' input sketch; none: 8 times the rank"),
    "sketch": Option(
        _MODEL, "sketch family, or of both sides as dct:28x28/srht; none: the method's", "FAMILY"
    ),
    "bits": Option(_MODEL, "bits of a weight in the model file", "BITS", BITS),
    "quantization_aware": Option(_MODEL, "train through the quantiser"),
    "quantize_from": Option(_MODEL, "fraction of the epochs after which that begins", "F"),
    "rate_lambda": Option(
        _RATE, "train with the bits that the file takes: nats of loss a kilobit, as 0.006", "F"
    ),
    "budget_bytes": Option(
        _RATE, "the file's bytes at most, as 2KB", "BYTES", also="--budget", parse=size_in_bytes
    ),
    "min_metric": Option(
        _RATE, "the smallest file that reaches this on validation", "F", also="--min-accuracy"
    ),
    "teacher": Option(_TEACHER, "a run or model file to imitate; none: labels alone", "DIR"),
    "teacher_weight": Option(_TEACHER, "of that in the loss, from 0 to 1", "F"),
    "temperature": Option(_TEACHER, "that outputs are divided by to be compared", "F"),
    "epochs": Option(_TRAINING, "passes over the training data"),
    "epoch_examples": Option(_TRAINING, "of an epoch, drawn anew for each; none: all"),
    "batch_size": Option(_TRAINING, "examples an update"),
    "learning_rate": Option(_TRAINING, "peak of the schedule; none: what suits the method", "RATE"),
    "schedule": Option(_TRAINING, "of the learning rate", "NAME", SCHEDULES),
    "weight_decay": Option(_TRAINING, "decoupled, of AdamW", "RATE"),
    "label_smoothing": Option(_TRAINING, "share of a label given to all classes", "F"),
    "precision": Option(_TRAINING, "dtype of the computation", "DTYPE", PRECISIONS),
    "patience": Option(_TRAINING, "stop after N epochs without a better validation; none: never"),
    "seed": Option(_TRAINING, "of initialisation, order, augmentation and split"),
    "oversampling": Option(_ARES, "extra dimensions of the co-range; none: the rank"),
    "parallel_epochs": Option(_ARES, "length of the parallel stage, in epochs", "F"),
    "parallel_learning_rate": Option(_ARES, "of SGD in that stage", "RATE"),
    "momentum": Option(_ARES, "of SGD in that stage", "F"),
    "clip_norm": Option(_ARES, "largest norm of the gradient in that stage", "NORM"),
    "restrict_every": Option(_RESTRICT, "updates between restrictions of the rank"),
    "shift": Option(_AUGMENT, "shift images by up to N pixels"),
    "flip": Option(_AUGMENT, "mirror images left to right at random"),
    "rotate": Option(_AUGMENT, "rotate images by up to so many degrees", "DEGREES"),
    "zoom": Option(_AUGMENT, "change height and width of images by up to so much, as 0.1", "F"),
    "elastic": Option(_AUGMENT, "bend images smoothly, deviation in pixels", "PIXELS"),
    "noise": Option(_AUGMENT, "Gaussian noise, in standard deviations of the data", "F"),
}
"""The option of every field of the config: a new field is one line here."""


def add_config_options(
    parser: argparse.ArgumentParser, only: Sequence[str] = tuple(OPTIONS), default: str = ""
) -> None:
    """Adds the options; one that is not given leaves no trace in the parsed arguments.

    Args:
      parser: of a command.
      only: the fields.
      default: what stands for one that is not given, in words; by default the field's own.
    """
    types, groups = field_types(TrainConfig), {}
    for field in dataclasses.fields(TrainConfig):
        if field.name not in only:
            continue
        option = OPTIONS[field.name]
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        kind = types[field.name]
        settings: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if kind is not bool:
            parse = option.parse or PARSERS[kind]
            settings = {"type": parse, "metavar": option.metavar, "choices": option.choices}
        groups[option.group].add_argument(
            *filter(None, (flag(field.name), option.also)),
            dest=field.name,
            default=argparse.SUPPRESS,
            help=_help(option, default or field.default),
            **settings,
        )


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The config fields whose options were given."""
    return {name: getattr(args, name) for name in OPTIONS if hasattr(args, name)}


def build_config(given: dict[str, Any]) -> TrainConfig:
    """The config of these fields; see :func:`~rosler_jax.cli._command.made`."""
    return made(TrainConfig, given)


def _help(option: Option, default: Any) -> str:
    choices = f"; one of {', '.join(map(str, option.choices))}" if option.choices else ""
    if isinstance(default, tuple):
        shown = ",".join(map(str, default)) or "none"
    elif default is None or isinstance(default, bool):
        shown = {None: "none", True: "yes", False: "no"}[default]
    else:
        shown = str(default)
    return f"{option.help}{choices} (default: {shown})".replace("%", "%%")
