"""From trained parameters to what model files would hold, and how good that is; without files.

Of each form of model one graph is traced. Where its weights are the model's own arrays one to one,
the members' weights are cut out, finished and quantised within the program that scores them; where
they are not, as where batch normalisation is folded into them, each member's graph is traced.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rosler_jax import modelfile
from rosler_jax._paths import path_name
from rosler_jax._quantized import FLOAT_BITS, Axes, QuantizedTensor, scale_shape
from rosler_jax.config import TrainConfig
from rosler_jax.fit import EVALUATION_BATCH, TrainState, in_units, tally
from rosler_jax.graph import Graph
from rosler_jax.graph.compute import run
from rosler_jax.graph.file import to_json
from rosler_jax.graph.graph import map_weights
from rosler_jax.graph.kinds import Op, Scan
from rosler_jax.graph.quantize import Planned, quantization_plan
from rosler_jax.graph.weight import Weight
from rosler_jax.learner import Learner
from rosler_jax.quantization import VECTOR_BITS, fake_quantize
from rosler_jax.run import parameters, shipped_model, trained_graph
from rosler_jax.sweep.examples import batches_key
from rosler_jax.sweep.plan import Built, Group, form_of
from rosler_jax.sweep.population import Block, Member, Population
from rosler_jax.sweep.trainings import chosen, own_ranks
from rosler_jax.tasks import Task
from rosler_jax.units import Units, standardized
from rosler_jax.units import in_units as graph_in_units

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

AT_ONCE = 64
"""Models that are scored together on a device, at most."""

_ASKED = 4  # bits that a matrix gets when these are asked for, other tensors never


class Sizes(NamedTuple):
    """A model without its numbers.

    Attributes:
      graph: its operations, of standardised values.
      text: tells them apart, hashable.
      bits: of each weight by name: :data:`_ASKED` for what a member's bits are of.
      axes: of its scales.
    """

    graph: Graph
    text: Hashable
    bits: dict[str, int]
    axes: dict[str, Axes]


class Numbers(NamedTuple):
    """What a model's operations take, by weight's name, and the seeds of its sketches in order."""

    tensors: dict[str, Any]
    seeds: tuple[Any, ...]


def split(graph: Graph) -> tuple[Sizes, Numbers]:
    """A graph as what it has in common with others, and its own numbers."""
    seeds = tuple(np.asarray(op.sketch.seed, np.uint32) for op in _sketching(graph))
    bare = with_seeds(graph, (np.zeros(2, np.uint32) for _ in seeds))
    content, tensors = to_json(bare)
    numbers: dict[str, Any] = {w.name: w.stored for w in graph.weights()}
    rest = [(k, v.dtype.str, v.tobytes()) for k, v in tensors.items() if k not in numbers]
    shapes = [(k, v.dtype.str, v.shape) for k, v in numbers.items()]
    plan = quantization_plan(graph, _ASKED)
    planned = {w.name: plan[id(w.stored)] for w in graph.weights()}
    sizes = Sizes(
        bare, (json.dumps(content), tuple(rest), tuple(shapes)),
        {k: p.bits for k, p in planned.items()}, {k: p.axes for k, p in planned.items()},
    )  # fmt: skip
    return sizes, Numbers(numbers, seeds)


def _sketching(graph: Graph) -> Iterator[Any]:
    """Operations with sketches, those of bodies among them."""
    for op in graph.ops:
        if hasattr(op, "sketch"):
            yield op
        if isinstance(op, Scan):
            yield from _sketching(op.body)


def with_seeds(graph: Graph, seeds: Iterator[Any]) -> Graph:
    """A graph whose sketches have other seeds, in their order; they may be traced."""

    def change(op: Op) -> Op:
        if hasattr(op, "sketch"):
            sketch = dataclasses.replace(op.sketch, seed=next(seeds))
            op = dataclasses.replace(op, sketch=sketch)  # type: ignore[call-arg]
        if isinstance(op, Scan):
            op = dataclasses.replace(op, body=with_seeds(op.body, seeds))
        return op

    return dataclasses.replace(graph, ops=tuple(change(op) for op in graph.ops))


# Bytes.


def file_bytes(sizes: Sizes, seeds: Sequence[Any], units: Units, scaled: bool, bits: int) -> int:
    """Bytes of a model's file: its shapes, seeds and units decide."""
    graph = graph_in_units(with_seeds(sizes.graph, iter(seeds)), units, scaled)
    plan = quantization_plan(graph, bits)
    made = {key: _like(planned) for key, planned in plan.items()}
    content, tensors = to_json(
        map_weights(graph, lambda w: Weight(w.name, made[id(w.stored)], w.layout))
    )
    return len(modelfile.encode(tensors, {}, {}, graph=content))


def _like(planned: Planned) -> Any:
    stored, bits, axes = planned
    if bits == FLOAT_BITS:
        return stored
    values = np.zeros(stored.shape, np.int16 if bits == VECTOR_BITS else np.int8)
    return QuantizedTensor(values, np.ones(scale_shape(stored.shape, axes), "f4"), bits, axes)


# Numbers.


def leaves_of(model: Any) -> dict[str, Any]:
    """The arrays of a model by the names that its graph has for them."""
    state = model[1] if isinstance(model, tuple) else nnx.split(model)[1]
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {path_name(path): leaf for path, leaf in leaves}


class Names(NamedTuple):
    """Where the numbers of a graph are in a model's arrays."""

    tensors: tuple[str, ...]
    seeds: tuple[str, ...]


def numbers_of(model: Any, names: Names) -> Numbers:
    """The numbers of a model's graph, from its arrays; traceable."""
    leaves = leaves_of(model)
    floats = (jnp.issubdtype(leaves[name].dtype, jnp.floating) for name in names.tensors)
    tensors = {
        name: leaves[name].astype(jnp.float32) if is_float else leaves[name]
        for name, is_float in zip(names.tensors, floats, strict=True)
    }
    return Numbers(tensors, tuple(leaves[name] for name in names.seeds))


def names_in(model: Any, numbers: Numbers) -> Names | None:
    """Where a graph's numbers are in the model that it was traced from; None if not one to one."""
    leaves = {
        name: np.asarray(leaf)
        for name, leaf in leaves_of(model).items()
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }
    for name, stored in numbers.tensors.items():
        if name not in leaves or not np.array_equal(leaves[name].astype(stored.dtype), stored):
            return None
    places = []
    for seed in numbers.seeds:
        same = [k for k, v in leaves.items() if v.dtype == np.uint32 and np.array_equal(v, seed)]
        if not same:
            return None
        places.append(same[0])
    return Names(tuple(numbers.tensors), tuple(places))


def _moved(tree: PyTree) -> PyTree:
    """Other floats in the place of these: what a graph depends on shows."""
    change = lambda a: np.asarray(a * 1.25, a.dtype)  # noqa: E731
    floats = lambda a: np.issubdtype(np.asarray(a).dtype, np.floating)  # noqa: E731
    return jax.tree.map(lambda a: change(a) if floats(a) else a, tree)


def known_form(
    config: TrainConfig, learner: Learner, best: tuple[PyTree, PyTree], x: Any
) -> tuple[Sizes, Names] | None:
    """The graph of all models of a form, and where their numbers are; None if one does not tell.

    Args:
      config: of a member.
      learner: its model.
      best: its trained parameters and buffers.
      x: inputs, for their shape.
    """
    found = []
    for given in (best, _moved(best)):
        sizes, numbers = split(trained_graph(config, learner, x, *given))
        names = names_in(shipped_model(config, learner, *given), numbers)
        if names is None:
            return None
        found.append((sizes, names))
    (sizes, names), (other, places) = found
    return (sizes, names) if (sizes.text, names) == (other.text, places) else None


# Scores.


def scoring(sizes: Sizes, numbers_in: Callable[[Any], Numbers], task: Task) -> Block:
    """The block of a population of trained models: sums over batches of what scores are made of.

    Args:
      sizes: of the models.
      numbers_in: from what a member has of its own to its model's numbers, traceable.
      task: what they are for.

    Returns:
      The function: ``own`` is that and the bits, ``common`` the indices of validation examples and
      units; it gives sums of both splits, ``(members, batches, ...)``, and the seeds of sketches.
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

    def sums(numbers: Numbers, data: tuple[Any, Any], units: Units) -> Any:
        x, y = data
        n = x.shape[0]
        batch = min(EVALUATION_BATCH, n)
        index = jnp.arange(-(-n // batch) * batch).reshape(-1, batch)

        def one(i: Array) -> Any:
            j = jnp.minimum(i, n - 1)
            xs, ys = x[j], None if y is None else y[j]

            def member(numbers: Numbers) -> Any:
                return tally(task, lambda x: predict(numbers, x, units), xs, ys, i < n, units)

            return jax.vmap(member)(numbers)

        return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), jax.lax.map(one, index))

    def block(common: Any, own: Any, data: Any, count: Any) -> Any:
        del count
        (held, units), (given, bits), (training, test) = common, own, data
        numbers = jax.vmap(lambda given, bits: quantized(numbers_in(given), bits))(given, bits)
        validation = sums(numbers, chosen(training, held), units)
        return {"validation": validation, "test": sums(numbers, test, units)}, numbers.seeds

    return block


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
    """A model as data of a population."""

    sizes: Sizes
    names: Names | None
    given: Any


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
    alike: dict[Hashable, list[int]] = {}
    for i, (config, _) in enumerate(jobs):
        bits = config.quantization_aware and config.bits  # these alone change what is finished
        alike.setdefault((group.key, form_of(config, built).shapes, bits), []).append(i)
    rows: dict[int, dict[str, Any]] = {}
    for key, index in alike.items():
        models = _models(key, [jobs[i] for i in index], state, built)
        programs: dict[Hashable, list[int]] = {}
        for i, model in zip(index, models, strict=True):
            programs.setdefault((key, model.sizes.text), []).append(i)
        placed = dict(zip(index, models, strict=True))
        for program, some in programs.items():
            given = [(jobs[i].config, placed[i]) for i in some]
            rows |= zip(some, _rows(program, given, built, at_once), strict=True)
    return [rows[i] for i in range(len(jobs))]


def _models(key: Any, jobs: Sequence[Job], state: TrainState, built: Built) -> list[_Model]:
    """The models of members of one form."""
    form, x = form_of(jobs[0].config, built), built.examples.x
    like = form.like.best_params, form.like.best_buffers
    best = own_ranks((state.best_params, state.best_buffers), like)
    at = [jax.tree.map(lambda a, k=job.row: a[k], best) for job in jobs]
    if key not in built.scorers:
        built.scorers[key] = known_form(jobs[0].config, form.learner, at[0], x)
    if (known := built.scorers[key]) is not None:
        return [_Model(*known, given) for given in at]
    traced = [
        split(trained_graph(job.config, form.learner, x, *given))
        for job, given in zip(jobs, at, strict=True)
    ]
    return [_Model(sizes, None, numbers) for sizes, numbers in traced]


def _rows(
    program: Hashable, models: Sequence[tuple[TrainConfig, _Model]], built: Built, at_once: int
) -> list[dict[str, Any]]:
    """The rows of models of one graph."""
    examples, (first, model) = built.examples, models[0]
    learner = form_of(first, built).learner
    members = []
    for config, (_, _, given) in models:
        part = examples.part(config)
        own = given, np.int32(config.bits)
        members.append(Member((part.validation, part.units), own, batches_key(config)))
    if program not in built.scorers:
        names = model.names

        def numbers_in(given: Any) -> Numbers:
            if names is None:
                return given
            return numbers_of(shipped_model(first, learner, *given), names)

        block = scoring(model.sizes, numbers_in, examples.task)
        width = _width(members, at_once)
        built.scorers[program] = Population(block, built.data, width)
    sums, seeds = built.scorers[program].run(members, 0)
    sizes = len(members[0].common[0]), len(examples.dataset.test_x)
    counts = dict(zip(("validation", "test"), sizes, strict=True))
    rows = []
    for i, (config, _) in enumerate(models):
        row: dict[str, Any] = {}
        for name, count in counts.items():
            found = metrics(jax.tree.map(lambda a, i=i: a[i], sums[name]), count, examples.task)
            row |= {f"{name}_{metric}": value for metric, value in found.items()}
        size = _bytes(model.sizes, [s[i] for s in seeds], config, built)
        dense = learner.report.before
        row |= {"file_bytes": size, "parameters": parameters(model.sizes.graph)}
        rows.append(row | {"compression": 4 * dense / size})
    return rows


def _width(members: Sequence[Member], at_once: int) -> int:
    """Models of a block: a power of two that most blocks fill."""
    most = max(collections.Counter(member.alike for member in members).values())
    fitting = min(at_once, AT_ONCE, -(-most // jax.device_count()))
    return int(2 ** (max(1, fitting).bit_length() - 1))


def metrics(sums: Any, count: int, task: Task) -> dict[str, float]:
    """The metrics of one model, of the sums over batches; means are taken in float64."""
    _, found = sums
    means = {name: total.sum(0, dtype=np.float64) / count for name, total in found.items()}
    return {name: float(task.metrics[name].value(mean)) for name, mean in means.items()}


def _bytes(sizes: Sizes, seeds: Sequence[Any], config: TrainConfig, built: Built) -> int:
    units = built.examples.part(config).filed
    numbers = tuple(np.asarray(v).tobytes() for v in (*seeds, *units[:4]))
    key = "bytes", sizes.text, config.bits, numbers
    if key not in built.scorers:
        scaled = built.examples.task.scaled
        built.scorers[key] = file_bytes(sizes, seeds, units, scaled, config.bits)
    return int(built.scorers[key])
