"""What defines a training run: one frozen dataclass, checked when it is made."""

from __future__ import annotations

import ast
import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rosler_jax._lookup import lookup
from rosler_jax.methods import METHODS, rules
from rosler_jax.models import MODELS
from rosler_jax.tasks import TASKS

BITS = (32, 16, 8, 4, 3, 2)
PRECISIONS = ("float32", "bfloat16")
SCHEDULES = ("one-cycle", "cosine", "constant")
STANDARDIZE = ("auto", "features", "all")
STREAM = ("auto", "always", "never")
_NOT_NEGATIVE = (
    "weight_decay", "noise", "shift", "rotate", "elastic", "parallel_learning_rate", "rate_lambda",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run, completely: same config, same result.

    Models, tasks, methods and data are named: an entry of their table, or one of your own,
    ``FILE.py:NAME`` or ``MODULE:NAME``.

    Attributes:
      data: name or path, as :func:`rosler_jax.data.load` takes it.
      target: columns of a table to be predicted; empty for the usual names.
      image_size: height and width that a folder's images are resized to; empty for their own.
      data_options: of the data set's source, ``name=value`` each, as ``features=fft`` of bearings.
      manual_dir: folder of files that a data set cannot fetch by itself (cwru: the .mat files).
      stream: whether examples stay on the host, or on disk, and are read batch by batch:
        ``always``, ``never``, or ``auto``: where they do not fit the device.
      standardize: by a mean and a deviation of each ``features``, of ``all`` values, or ``auto``:
        of each feature in tables, see :func:`rosler_jax.data._dataset.standardization`.
      task: what the model is for; of :data:`rosler_jax.tasks.TASKS`.
      metric: what the best epoch is chosen by; None for the task's first.
      class_weights: of the loss: ``balanced``, or numbers, as ``1,4``; None for none.
      model: a factory of a dense model; of :data:`rosler_jax.models.MODELS`.
      hidden: widths of the hidden layers, of a model that takes ``hidden``; None for its own.
      options: of the model, ``name=value`` each.
      method: how weights are held and trained; of :data:`rosler_jax.methods.METHODS`.
      rank: rank of the sketched layers, or a fraction of a layer's smaller side (ignored if dense).
      rules: which layers are sketched, in order: ``pattern=rank``, ``pattern=skip``, or a pattern
        (then at ``rank``), globs on a layer's path; empty for all but one named ``head``.
      in_sketch: width of the input sketch of seeded layers; None for ``min(8 rank, m)``.
      sketch: sketch family, or those of inputs and outputs, as ``dct:28x28/srht``; None for the
        layer's default.
      oversampling: extra co-range dimensions of ares-bp; None for ``rank``.
      bits: bits of the weights in the model file.
      quantization_aware: train through the quantiser, from ``quantize_from`` of the run on.
      quantize_from: fraction of the epochs after which it begins.
      rate_lambda: what a kilobit of the coded file costs, in nats of loss: parameters are then
        trained rate-coded, see :func:`rosler_jax.rate_coded`; 0 for not.
      budget_bytes: the file's bytes at most: what a bit costs follows; None for no budget.
      min_metric: the least metric on validation that the smallest file is wanted of; None for none.
      teacher: a run's folder or a model file whose outputs the model is to imitate as well.
      teacher_weight: of that in the loss, in [0, 1]; the labels have the rest.
      temperature: that the outputs of classes are divided by to be compared.
      epochs: passes over the training split.
      epoch_examples: that an epoch takes, drawn anew for each; None for all of the training split.
      batch_size: examples an update; the last, smaller batch of an epoch is dropped.
      learning_rate: peak of the schedule; None for what worked for the method.
      schedule: ``one-cycle``, ``cosine`` or ``constant``.
      weight_decay: decoupled, of AdamW.
      parallel_epochs: length of ares-bp's parallel stage, in epochs.
      parallel_learning_rate: of SGD in that stage.
      momentum: of SGD in that stage.
      clip_norm: global gradient norm in that stage.
      restrict_every: updates between rank restrictions.
      label_smoothing: in [0, 1).
      shift: augmentation, random shifts of images by up to so many pixels.
      flip: augmentation, random left-right flips.
      rotate: augmentation, random rotations of images by up to so many degrees.
      zoom: augmentation, random relative changes of width and height by up to so much.
      elastic: augmentation, random smooth bending, its deviation in pixels.
      noise: augmentation, standard deviation of Gaussian noise in units of the data's own.
      precision: dtype of the computation; parameters stay float32.
      validation: fraction of the training data held out.
      patience: stop after so many epochs without a better validation accuracy; None never.
      seed: of initialisation, shuffling, augmentation and split.

    Raises:
      ValueError: naming the field, its value and what is allowed.

    Example:
      >>> TrainConfig(method="chain", rank=16).peak_learning_rate
      0.003
    """

    data: str = "mnist5k"
    target: tuple[str, ...] = ()
    image_size: tuple[int, ...] = ()
    data_options: tuple[str, ...] = ()
    manual_dir: str | None = None
    stream: str = "auto"
    standardize: str = "auto"
    task: str = "classification"
    metric: str | None = None
    class_weights: str | None = None
    model: str = "mlp"
    hidden: tuple[int, ...] | None = None
    options: tuple[str, ...] = ()
    method: str = "chain"
    rank: int | float = 16
    rules: tuple[str, ...] = ()
    in_sketch: int | None = None
    sketch: str | None = None
    oversampling: int | None = None
    bits: int = 16
    quantization_aware: bool = False
    quantize_from: float = 0.5
    rate_lambda: float = 0.0
    budget_bytes: int | None = None
    min_metric: float | None = None
    teacher: str | None = None
    teacher_weight: float = 0.5
    temperature: float = 2.0
    epochs: int = 10
    epoch_examples: int | None = None
    batch_size: int = 128
    learning_rate: float | None = None
    schedule: str = "one-cycle"
    weight_decay: float = 1e-4
    parallel_epochs: float = 1.0
    parallel_learning_rate: float = 0.1
    momentum: float = 0.9
    clip_norm: float = 1.0
    restrict_every: int = 10
    label_smoothing: float = 0.0
    shift: int = 0
    flip: bool = False
    rotate: float = 0.0
    zoom: float = 0.0
    elastic: float = 0.0
    noise: float = 0.0
    precision: str = "float32"
    validation: float = 0.1
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden", "target", "image_size", "data_options", "options", "rules"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        for name, table in (("method", METHODS), ("task", TASKS), ("model", MODELS)):
            if ":" not in getattr(self, name):  # one of the user's own is looked up when it runs
                lookup(table, getattr(self, name), name)
        _require("rank", self.rank, self.rank >= 1 or isinstance(self.rank, float), "at least 1")
        rules(self, "chain")
        model_options(self)
        named_values(self.data_options, "data")
        _one_of("bits", self.bits, BITS)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("standardize", self.standardize, STANDARDIZE)
        _one_of("stream", self.stream, STREAM)
        for name, value in vars(self).items():
            if isinstance(value, float):
                _require(name, value, math.isfinite(value), "a finite number")
        for name in ("epochs", "batch_size", "restrict_every"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("in_sketch", "patience", "budget_bytes", "epoch_examples"):
            value = getattr(self, name)
            _require(name, value, value is None or value >= 1, "at least 1, or none")
        for name in _NOT_NEGATIVE:
            _require(name, getattr(self, name), getattr(self, name) >= 0, "not negative")
        for name in ("label_smoothing", "momentum", "quantize_from", "zoom"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        hidden = self.hidden or ()
        _require("hidden", hidden, all(w >= 1 for w in hidden), "positive widths")
        _require("validation", self.validation, 0 < self.validation < 1, "between 0 and 1")
        rate = self.learning_rate
        _require("learning_rate", rate, rate is None or rate > 0, "positive")
        weight = self.teacher_weight
        _require("teacher_weight", weight, 0 <= weight <= 1, "in [0, 1]")
        _require("temperature", self.temperature, self.temperature > 0, "positive")
        _require("clip_norm", self.clip_norm, self.clip_norm > 0, "positive")
        self._check_rate()
        if self.staged:
            inside = 0 < self.parallel_epochs < self.epochs
            _require(
                "parallel_epochs", self.parallel_epochs, inside,
                f"above 0 and below epochs={self.epochs} (or use method 'chain')",
            )  # fmt: skip

    def _check_rate(self) -> None:
        both = self.budget_bytes is not None and self.min_metric is not None
        _require("min_metric", self.min_metric, not both, "none beside budget_bytes; pass one")
        if self.rate_coded:
            aware, thin = self.quantization_aware, getattr(METHODS.get(self.method), "thin", None)
            _require("quantization_aware", aware, not aware, "False: rate coding quantises itself")
            _require(
                "method", self.method, thin is None,
                "one whose weights are stored as they are trained, to be rate-coded",
            )  # fmt: skip

    @property
    def warps(self) -> bool:
        """Whether images are rotated, scaled or bent."""
        return bool(self.rotate or self.zoom or self.elastic)

    @property
    def rate_coded(self) -> bool:
        """Whether parameters are trained with the bits that they take."""
        return self.rate_lambda > 0 or self.budget_bytes is not None or self.min_metric is not None

    @property
    def trains_quantized(self) -> bool:
        """Whether the weights are trained through a quantiser, so that bits change the training."""
        return self.quantization_aware or self.rate_coded

    @property
    def rate_bits(self) -> int:
        """Of a rate-coded integer at most."""
        return min(self.bits, 8)

    @property
    def staged(self) -> bool:
        """Whether the method has a parallel stage."""
        return bool(self.method in METHODS and METHODS[self.method].stages)

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate, or what worked for the method where none is given."""
        if self.learning_rate is not None:
            return self.learning_rate
        return float(lookup(METHODS, self.method, "method").rate)


def model_options(config: TrainConfig) -> dict[str, Any]:
    """The options of a run's model by name; texts where they are no Python literals.

    Raises:
      ValueError: for one without a value.

    Example:
      >>> model_options(TrainConfig(options=("width=32", "norm=group"), hidden=(64,)))
      {'hidden': (64,), 'width': 32, 'norm': 'group'}
    """
    hidden: dict[str, Any] = {} if config.hidden is None else {"hidden": config.hidden}
    return {**hidden, **named_values(config.options, "model")}


def named_values(texts: Sequence[str], what: str) -> dict[str, Any]:
    """Options by name; texts where they are no Python literals.

    Args:
      texts: ``name=value`` each.
      what: they are options of, for messages.

    Raises:
      ValueError: for one without a value.

    Example:
      >>> named_values(("window=512", "features=fft"), "data")
      {'window': 512, 'features': 'fft'}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"option {text!r} of the {what}; pass name=value, as width=32")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The config as JSON types."""
    found = vars(config)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The config that :func:`to_dict` wrote.

    Raises:
      ValueError: for a field that does not exist, or a value that is not allowed.
    """
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"unknown config field(s) {', '.join(unknown)}; expected some of {sorted(known)}"
        )
    return TrainConfig(**values)


def command_line(config: TrainConfig) -> str:
    """The command that trains exactly this config, but for its ``--out``.

    Example:
      >>> command_line(TrainConfig(method="seeded", hidden=(64,), learning_rate=0.01))
      'rosler train --hidden 64 --method seeded --learning-rate 0.01'
    """
    words = ["rosler", "train"]
    for field in dataclasses.fields(TrainConfig):
        value, option = getattr(config, field.name), field.name.replace("_", "-")
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{option}", shlex.quote("none" if value in (None, ()) else text)]
    return " ".join(words)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is unknown; pass one of {', '.join(map(str, allowed))}")


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value!r}; expected {expected}")
