"""From trained parameters to what model files would hold, and how good that is; without files.

Models are finished, quantised and scored by few programs: bits are data, and so are ranks where no
scale of a file depends on them.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax._quantized import FLOAT_BITS, Axes
from rosler_jax.config import TrainConfig
from rosler_jax.evaluation import EVALUATION_BATCH, tally
from rosler_jax.fit import TrainState, in_units
from rosler_jax.graph import Graph
from rosler_jax.graph.compute import run
from rosler_jax.graph.prune import pruned
from rosler_jax.graph.quantize import with_integers
from rosler_jax.graph.save import encoded
from rosler_jax.quantization import VECTOR_BITS, fake_quantize
from rosler_jax.rate import RateCoded
from rosler_jax.run import parameters, shipped_graph
from rosler_jax.sweep.examples import batches_key
from rosler_jax.sweep.plan import Built, Form, Group, form_of
from rosler_jax.sweep.population import Block, Member, Population
from rosler_jax.sweep.shipping import (
    Numbers,
    Shipping,
    Sizes,
    covers,
    file_bytes,
    shipping_of,
    with_seeds,
)
from rosler_jax.sweep.trainings import own_ranks
from rosler_jax.tasks import Metric, Task
from rosler_jax.units import Units, standardized
from rosler_jax.units import in_units as in_units_of_data

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

AT_ONCE = 64
"""Models that are scored together on a device, at most."""


def scoring(sizes: Sizes, numbers_in: Callable[[Any], Numbers], task: Task) -> Block:
    """The block of a population of trained models: sums over batches of what scores are made of.

    Args:
      sizes: of the models.
      numbers_in: from what a member has of its own to its model's numbers, traceable.
      task: what they are for.

    Returns:
      The function: ``own`` is that and the bits, ``common`` batches of examples by index, which of
      them count, and units; it gives the sums, ``(members, batches, ...)``, and the sketches'
      seeds.
    """

    def quantized(numbers: Numbers, bits: Array) -> Numbers:
        tensors = {
            name: _in_file(value, sizes.bits[name], sizes.axes[name], bits)
            for name, value in numbers.tensors.items()
        }
        return numbers._replace(tensors=tensors)

    def predict(numbers: Numbers, x: Array, units: Units) -> Array:
        graph = with_seeds(sizes.graph, iter(numbers.seeds))
        one = lambda x: run(graph, [x], numbers.tensors)[0]  # noqa: E731
        return in_units(task, jax.vmap(one)(standardized(x, units)), units)

    def block(common: Any, own: Any, data: Any, count: Any) -> Any:
        del count
        (index, valid, units), (given, bits), (x, y) = common, own, data
        numbers = jax.vmap(lambda given, bits: quantized(numbers_in(given), bits))(given, bits)

        def batch(at: tuple[Array, Array]) -> Any:
            i, counted = at
            xs, ys = x[i], None if y is None else y[i]

            def member(numbers: Numbers) -> Any:
                return tally(task, lambda x: predict(numbers, x, units), xs, ys, counted, units)

            return jax.vmap(member)(numbers)

        sums = jax.lax.map(batch, (index, valid))
        return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), sums), numbers.seeds

    return block


class Batches(NamedTuple):
    """Examples in batches of one size: those of validation, then those of test.

    Attributes:
      rows: ``(batches, size)``, of all examples.
      valid: which of them count.
      splits: of each split, its batches and how many examples it has.
    """

    rows: np.ndarray
    valid: np.ndarray
    splits: dict[str, tuple[slice, int]]


def batches_of(validation: np.ndarray, built: Built) -> Batches:
    """Both splits that models are scored on."""
    start = len(built.examples.x)
    test = np.arange(start, start + len(built.examples.dataset.test_x))
    size = min(EVALUATION_BATCH, max(len(validation), len(test)))
    index, valid, splits, start = [], [], {}, 0
    for name, rows in (("validation", validation), ("test", test)):
        n, count = len(rows), -(-len(rows) // size)
        index.append(np.pad(rows.astype(np.int32), (0, count * size - n), mode="edge"))
        valid.append(np.arange(count * size) < n)
        splits[name] = slice(start, start + count), n
        start += count
    whole, counted = (np.concatenate(a).reshape(-1, size) for a in (index, valid))
    return Batches(whole, counted, splits)


def _in_file(value: Array, bits: int, axes: Axes, asked: Array) -> Array:
    """A tensor as the file of a model of so many bits would hold it."""
    if bits == FLOAT_BITS:
        return value
    if bits == VECTOR_BITS:
        return jnp.where(asked == FLOAT_BITS, value, fake_quantize(value, VECTOR_BITS, axes))
    return fake_quantize(value, asked, axes)


class Job(NamedTuple):
    """A trained model: the config of a member, with its bits, and the row of its training."""

    config: TrainConfig
    row: int


class _Model(NamedTuple):
    """A trained model, and how it is scored.

    Attributes:
      sizes: of its file.
      program: of the program that scores it: tells it apart.
      scored: sizes of that program's models.
      shipping: where it finds their numbers; None where they are given.
      given: parameters and buffers, or numbers.
      integers: of a rate-coded model, by weight's name; None of others.
    """

    sizes: Sizes
    program: Hashable
    scored: Sizes
    shipping: Shipping | None
    given: Any
    integers: Mapping[str, Any] | None = None


def shipped(
    jobs: Sequence[Job], state: TrainState, group: Group, built: Built, at_once: int
) -> list[dict[str, Any]]:
    """What members' model files would hold, and how good that is.

    Args:
      jobs: members of one group.
      state: of their trainings, stacked.
      group: theirs.
      built: the data, and programs that are known.
      at_once: members that a device trains together.

    Returns:
      Of each ``validation_<metric>`` and ``test_<metric>`` of all metrics, ``file_bytes``,
      ``parameters``, ``compression``.
    """
    models = _models(jobs, state, group, built)
    programs: dict[Hashable, list[int]] = {}
    for i, model in enumerate(models):
        programs.setdefault(model.program, []).append(i)
    rows: dict[int, dict[str, Any]] = {}
    for index in programs.values():
        given = [(jobs[i].config, models[i]) for i in index]
        rows |= zip(index, _rows(given, built, at_once), strict=True)
    return [rows[i] for i in range(len(jobs))]


def graph_of(job: Job, state: TrainState, built: Built) -> Graph:
    """The graph of a member's trained model, before its weights are rounded for a file.

    Args:
      job: the member.
      state: of trainings, stacked.
      built: the data.
    """
    form, units = form_of(job.config, built), built.examples.part(job.config).filed
    like = form.like.best_params, form.like.best_buffers
    one = jax.tree.map(lambda a: a[[job.row]], (state.best_params, state.best_buffers))
    params, buffers = jax.tree.map(lambda a: a[0], own_ranks(one, like))
    return shipped_graph(job.config, form.learner, built.examples.x, params, buffers, units)


def _models(jobs: Sequence[Job], state: TrainState, group: Group, built: Built) -> list[_Model]:
    best = state.best_params, state.best_buffers
    crops: dict[Any, PyTree] = {}
    models: dict[Any, _Model] = {}  # members that differ in bits alone share one
    for config, row in jobs:
        form = form_of(config, built)
        aware = _aware(config)
        if (row, aware) in models:
            continue
        if form.shapes not in crops:
            like = form.like.best_params, form.like.best_buffers
            crops[form.shapes] = own_ranks(best, like)
        padded, own = (
            jax.tree.map(lambda a, row=row: a[row], tree) for tree in (best, crops[form.shapes])
        )
        model = _model(config, form, own, (group.key, aware), built)
        if form.shapes != group.form.shapes and not model.scored.sketches:
            wide = _model(config, group.form, padded, (group.key, aware), built)
            if covers(wide.sizes, model.sizes):  # one program for all ranks
                model = wide._replace(sizes=model.sizes)
        models[row, aware] = model
    return [models[row, _aware(c)] for c, row in jobs]


def _aware(config: TrainConfig) -> int:
    """The bits, of models that are finished as they were trained through the quantiser."""
    return config.bits if config.trains_quantized else 0


def _model(config: TrainConfig, form: Form, best: Any, key: Any, built: Built) -> _Model:
    """A model in a form that ships."""
    key = key, form.shapes
    if key not in built.scorers:
        like = form.like.best_params, form.like.best_buffers
        built.scorers[key] = shipping_of(config, form.learner, like, built.examples.x)
    shipping: Shipping = built.scorers[key]
    if isinstance(best[0], RateCoded):
        (sizes, numbers), integers = shipping.split(best), best[0].tensors
        sizes = sizes._replace(bits=sizes.bits | dict.fromkeys(integers, FLOAT_BITS))
        return _Model(sizes, (key, sizes.text), sizes, None, numbers, integers)
    if shipping.sizes is not None:
        return _Model(shipping.sizes, key, shipping.sizes, shipping, best)
    sizes, numbers = shipping.split(best)
    return _Model(sizes, (key, sizes.text), sizes, None, numbers)


def _rows(
    models: Sequence[tuple[TrainConfig, _Model]], built: Built, at_once: int
) -> list[dict[str, Any]]:
    """The rows of models of one program."""
    examples, (_, first) = built.examples, models[0]
    members = []
    for config, model in models:
        part, key = examples.part(config), batches_key(config)
        if ("batches", key) not in built.scorers:
            built.scorers["batches", key] = batches_of(part.validation, built)
        index, valid, splits = built.scorers["batches", key]
        own = model.given, np.int32(config.bits)
        members.append(Member((index, valid, part.units), own, key))
    key = "program", first.program
    if key not in built.scorers:
        take = Numbers._make if first.shipping is None else first.shipping.numbers
        block = scoring(first.scored, take, examples.task)
        built.scorers[key] = Population(block, built.data, _width(members, at_once))
    sums, seeds = built.scorers[key].run(members, 0)
    found: dict[str, Any] = {}
    for name, (at, count) in splits.items():
        values = metrics(jax.tree.map(lambda a, at=at: a[:, at], sums[1]), count, examples.task)
        found |= {f"{name}_{metric}": value for metric, value in values.items()}
    rows = []
    for i, (config, model) in enumerate(models):
        size = _bytes(model, [s[i] for s in seeds], config, built)
        dense = form_of(config, built).learner.report.before
        row: dict[str, Any] = {name: float(values[i]) for name, values in found.items()}
        row |= {"file_bytes": size, "parameters": parameters(model.sizes.graph)}
        rows.append(row | {"compression": 4 * dense / size})
    return rows


def _width(members: Sequence[Member], at_once: int) -> int:
    """Models of a block: a power of two that most blocks fill."""
    most = max(collections.Counter(member.alike for member in members).values())
    fitting = min(at_once, AT_ONCE, -(-most // jax.device_count()))
    return int(2 ** (max(1, fitting).bit_length() - 1))


def metrics(sums: dict[str, Any], count: int, task: Task) -> dict[str, Any]:
    """The metrics of models, of sums over batches of examples; means are taken in float64.

    Args:
      sums: of each metric's statistics, ``(models, batches, ...)``.
      count: how many examples there are.
      task: whose metrics they are.
    """
    means = {name: total.sum(1, dtype=np.float64) / count for name, total in sums.items()}
    plain = Metric._field_defaults["value"]

    def values(mean: np.ndarray, value: Callable[[Any], Any]) -> np.ndarray:
        if value is plain:
            return mean
        n = len(mean)  # filled up: chunks of a sweep have few shapes then
        filled = mean[np.minimum(np.arange(2 ** (n - 1).bit_length()), n - 1)]
        return np.asarray(jax.vmap(value)(filled))[:n]

    return {name: values(mean, task.metrics[name].value) for name, mean in means.items()}


def _bytes(model: _Model, seeds: Sequence[Any], config: TrainConfig, built: Built) -> int:
    sizes, units = model.sizes, built.examples.part(config).filed
    if model.integers is not None:
        graph = pruned(with_integers(with_seeds(sizes.graph, iter(seeds)), model.integers))
        graph = in_units_of_data(graph, units, built.examples.task.scaled)
        return len(encoded(graph, config.bits, coded=True))
    numbers = tuple(np.asarray(v).tobytes() for v in (*seeds, *units[:4]))
    key = "bytes", sizes.text, config.bits, numbers
    if key not in built.scorers:
        scaled = built.examples.task.scaled
        built.scorers[key] = file_bytes(sizes, seeds, units, scaled, config.bits)
    return int(built.scorers[key])
