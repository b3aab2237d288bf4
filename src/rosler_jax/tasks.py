"""What a model is trained for: a loss, metrics, and what of the data they look at.

A task is one row of :data:`TASKS`, or a :class:`Task` of your own. Losses and metrics are plain
functions of a batch, so that they scan, vmap and stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def _same(mean: Any) -> Any:
    return mean


class Metric(NamedTuple):
    """A number that says how good outputs are: ``value(mean over examples of statistics)``.

    Attributes:
      statistics: ``(outputs, y) -> (batch, ...)``, of each example.
      value: the metric, of the mean of the statistics over all examples.
      larger_is_better: its direction.

    Example:
      >>> rmse = TASKS["regression"].metrics["rmse"]
      >>> float(rmse.value(rmse.statistics(jnp.array([[3.0], [5.0]]), jnp.zeros((2, 1))).mean(0)))
      4.123...
    """

    statistics: Callable[[Any, Any], Any]
    value: Callable[[Any], Any] = _same
    larger_is_better: bool = True


def _given(x: Any, y: Any) -> Any:
    del x
    return y


class Task(NamedTuple):
    """What a model is trained for.

    Attributes:
      loss: ``(outputs, y) -> (batch,)``, float32; may name keyword arguments ``label_smoothing``,
        ``class_weights`` (one for each class, or None) and ``unit`` (deviation of the targets).
      metrics: by name; the first is followed unless another is named.
      outputs: how many a model has, of a :class:`rosler_jax.data.Dataset`.
      targets: what y is: ``"classes"`` (int32), ``"values"``, ``"flags"`` (0 or 1), ``"none"``.
      target: y of the loss, of a batch's inputs and its y.
      tokens: whether inputs are tokens (True), never (False), or as the data look (None).
      scaled: whether outputs are real numbers in the units of the targets: then the model computes
        them standardised, and they are scaled after it.
      imitation: ``(outputs, teacher's) -> (batch,)``, the loss of a distillation; may name
        ``temperature`` and ``unit``; None where there is none.
    """

    loss: Callable[..., Any]
    metrics: Mapping[str, Metric]
    outputs: Callable[[Any], int]
    targets: str = "classes"
    target: Callable[[Any, Any], Any] = _given
    scaled: bool = False
    tokens: bool | None = None
    imitation: Callable[..., Any] | None = None


def losses(
    task: Task, outputs: Array, y: Array, options: Mapping[str, Any]
) -> Float[Array, " batch"]:
    """The loss of each example, with those of the options that it names."""
    return _with_options(task.loss, outputs, y, options)


def imitated(
    task: Task, outputs: Array, teacher: Array, options: Mapping[str, Any]
) -> Float[Array, " batch"]:
    """How far each example's outputs are from a teacher's.

    Raises:
      ValueError: for a task without such a loss.
    """
    if task.imitation is None:
        raise ValueError("this task has no loss of imitation: give its Task one, or no teacher")
    return _with_options(task.imitation, outputs, teacher, options)


def _with_options(loss: Any, outputs: Array, y: Array, options: Mapping[str, Any]) -> Array:
    import inspect

    names = inspect.signature(loss).parameters
    given = {name: value for name, value in options.items() if name in names}
    return jnp.asarray(loss(outputs, y, **given), jnp.float32)


def metric_of(task: Task, name: str | None) -> tuple[str, Metric]:
    """The metric of a name, or the task's first.

    Raises:
      ValueError: if the task has none of that name.

    Example:
      >>> metric_of(TASKS["regression"], None)[0]
      'rmse'
    """
    name = next(iter(task.metrics)) if name is None else name
    if name not in task.metrics:
        raise ValueError(f"metric {name!r} is unknown; this task has {', '.join(task.metrics)}")
    return name, task.metrics[name]


# Classes.


def cross_entropy(
    outputs: Array, y: Array, *, label_smoothing: Any = 0.0, class_weights: Any = None
) -> Array:
    """Of the softmax of the outputs with labels ``(batch,)``, times the weight of its class.

    Example:
      >>> cross_entropy(jnp.zeros((1, 4)), jnp.array([2])).round(3).tolist()
      [1.386]
    """
    classes = outputs.shape[-1]
    targets = optax.smooth_labels(jax.nn.one_hot(y, classes), label_smoothing)
    found = optax.softmax_cross_entropy(outputs, targets)
    return found if class_weights is None else found * class_weights[y]


def softened(outputs: Array, teacher: Array, *, temperature: Any = 1.0) -> Array:
    r"""``T^2 KL(softmax(teacher / T) || softmax(outputs / T))``, a mean over axes between.

    Example:
      >>> logits = jnp.array([[2.0, 0.0]])
      >>> softened(logits, logits).tolist(), bool(softened(-logits, logits)[0] > 1)
      ([0.0], True)

    Source: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network",
    arXiv:1503.02531.
    """
    soft = jax.nn.log_softmax(teacher / temperature)
    apart = soft - jax.nn.log_softmax(outputs / temperature)
    found = temperature**2 * (jnp.exp(soft) * apart).sum(-1)
    return found.reshape(len(found), -1).mean(-1)


def _hits(outputs: Array, y: Array) -> Array:
    return outputs.argmax(-1) == y


def _counts(hit: Array, said: Array, true: Array) -> Array:
    """True positives, those said and those that are, of each class: what F1 is made of."""
    return jnp.stack([hit, said, true], -1).astype(jnp.float32)


def _class_counts(outputs: Array, y: Array) -> Array:
    classes = outputs.shape[-1]
    said, true = jax.nn.one_hot(outputs.argmax(-1), classes), jax.nn.one_hot(y, classes)
    return _counts(said * true, said, true)


def _f1(counts: Array) -> Array:
    """Mean over classes of ``2 TP / (said + true)``; a class that there is not counts as 0."""
    hit, said, true = jnp.moveaxis(counts, -1, 0)
    return jnp.mean(2 * hit / jnp.maximum(said + true, jnp.finfo(jnp.float32).tiny))


ACCURACY = Metric(_hits)
MACRO_F1 = Metric(_class_counts, _f1)


# Flags.


def _binary_cross_entropy(outputs: Array, y: Array) -> Array:
    found = optax.sigmoid_binary_cross_entropy(outputs, y.astype(jnp.float32))
    return found.reshape(len(found), -1).mean(-1)


def _same_flags(outputs: Array, teacher: Array) -> Array:
    soft = jax.nn.sigmoid(teacher)
    return _binary_cross_entropy(outputs, soft) - _binary_cross_entropy(teacher, soft)


def _flags(outputs: Array, y: Array) -> tuple[Array, Array]:
    return outputs > 0, y.astype(jnp.bool_)


def _flag_counts(outputs: Array, y: Array) -> Array:
    said, true = _flags(outputs, y)
    return _counts(said & true, said, true)


def _right_flags(outputs: Array, y: Array) -> Array:
    said, true = _flags(outputs, y)
    return (said == true).mean(-1)


def _all_right(outputs: Array, y: Array) -> Array:
    said, true = _flags(outputs, y)
    return (said == true).all(-1)


# Values.


def _rows(x: Array) -> Array:
    return x.reshape(len(x), -1).astype(jnp.float32)


def squared_error(outputs: Array, y: Array, *, unit: Any = 1.0) -> Array:
    """Mean over an example's values of ``((outputs - y) / unit)^2``.

    Example:
      >>> squared_error(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2)), unit=2.0).tolist()
      [0.5]
    """
    return jnp.mean(((_rows(outputs) - _rows(y)) / unit) ** 2, -1)


def _squares(outputs: Array, y: Array) -> Array:
    """Squared error, value and squared value of each output: what R^2 is made of."""
    y = _rows(y)
    return jnp.stack([(_rows(outputs) - y) ** 2, y, y**2], -1)


def _r2(means: Array) -> Array:
    """Mean over outputs of ``1 - error / variance``; one that never varies does not count."""
    error, mean, square = jnp.moveaxis(means, -1, 0)
    variance = square - mean**2
    varies = variance > 1e-6 * square
    found = 1.0 - error / jnp.where(varies, variance, 1.0)
    return jnp.sum(varies * found) / jnp.maximum(varies.sum(), 1)


_VALUES = {
    "rmse": Metric(squared_error, jnp.sqrt, larger_is_better=False),
    "mae": Metric(lambda out, y: jnp.abs(_rows(out) - _rows(y)).mean(-1), larger_is_better=False),
    "r2": Metric(_squares, _r2),
}


# Tokens.


def _next_token(outputs: Array, y: Array, *, label_smoothing: Any = 0.0) -> Array:
    """Mean over positions of the cross-entropy with the token that follows."""
    found = cross_entropy(outputs[:, :-1], y[:, 1:], label_smoothing=label_smoothing)
    return found.mean(-1)


_TOKENS = {
    "perplexity": Metric(_next_token, jnp.exp, larger_is_better=False),
    "accuracy": Metric(lambda out, y: _hits(out[:, :-1], y[:, 1:]).mean(-1)),
}

_CLASSES = {"accuracy": ACCURACY, "f1": MACRO_F1}
_FLAGS = {
    "f1": Metric(_flag_counts, _f1),
    "accuracy": Metric(_right_flags),
    "exact": Metric(_all_right),
}

TASKS: dict[str, Task] = {
    "classification": Task(
        cross_entropy, _CLASSES, lambda data: data.num_classes, imitation=softened
    ),
    "multi-label": Task(
        _binary_cross_entropy, _FLAGS, lambda data: data.train_y.shape[-1], "flags",
        imitation=_same_flags,
    ),
    "regression": Task(
        squared_error, _VALUES, lambda data: data.train_y.shape[-1], "values", scaled=True,
        imitation=squared_error,
    ),
    "reconstruction": Task(
        squared_error, _VALUES, lambda data: math.prod(data.train_x.shape[1:]), "none",
        target=lambda x, y: x, scaled=True, tokens=False, imitation=squared_error,
    ),
    "next-token": Task(
        _next_token, _TOKENS, lambda data: data.vocabulary, "none", target=lambda x, y: x,
        tokens=True, imitation=softened,
    ),
}  # fmt: skip
"""Every task by name: a new one is one line here, or a reference to one of your own."""
