"""From trained parameters to what model files would hold, and how good that is; without files.

Of each form of model one graph is traced. Where its weights are the model's own arrays one to one,
the members' weights are finished and quantised within the program that scores them; where they are
not, as where batch normalisation is folded into them, each training's graph is filled and folded.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rosler_jax import modelfile
from rosler_jax._paths import TRAINING_ONLY, path_names
from rosler_jax._quantized import FLOAT_BITS, Axes, QuantizedTensor, scale_shape
from rosler_jax.config import TrainConfig
from rosler_jax.fit import EVALUATION_BATCH, TrainState, in_units, run_key, tally
from rosler_jax.graph import Graph
from rosler_jax.graph.compute import run
from rosler_jax.graph.file import to_json
from rosler_jax.graph.graph import map_weights
from rosler_jax.graph.kinds import Op, Scan
from rosler_jax.graph.quantize import Planned, quantization_plan
from rosler_jax.graph.trace import Skeleton, filled, skeleton_of
from rosler_jax.graph.weight import Weight
from rosler_jax.learner import Learner
from rosler_jax.quantization import VECTOR_BITS, fake_quantize
from rosler_jax.run import example_of, parameters, shipped_model
from rosler_jax.sweep.examples import batches_key
from rosler_jax.sweep.plan import Built, Group, form_of
from rosler_jax.sweep.population import Block, Member, Population
from rosler_jax.sweep.trainings import own_ranks
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


class Source(NamedTuple):
    """What a number of a graph is: one of its model's arrays times a factor, or always the same."""

    place: int | None
    factor: Any

    def value(self, leaves: Sequence[Any]) -> Any:
        """Of a model of these arrays."""
        if self.place is None:
            return self.factor
        leaf = leaves[self.place]
        return leaf if self.factor == 1.0 else leaf.astype(jnp.float32) * np.float32(self.factor)


class Sources(NamedTuple):
    """The same of all tensors by name; and the places of the seeds of sketches."""

    tensors: dict[str, Source]
    seeds: tuple[int, ...]


class Shipping(NamedTuple):
    """How models of one form ship.

    Attributes:
      leaves: ``(params, buffers) ->`` the arrays of the model that ships, traceable.
      skeleton: the model's.
      sizes: of all these models, where one graph tells, and
      sources: where its numbers come from; None where each model has to be traced.
    """

    leaves: Callable[[tuple[PyTree, PyTree]], list[Any]]
    skeleton: Skeleton
    sizes: Sizes | None
    sources: Sources | None


def shipping_of(
    config: TrainConfig, learner: Learner, like: tuple[PyTree, PyTree], x: Any
) -> Shipping:
    """How models of a form ship, found out with numbers of no meaning.

    Args:
      config: of a member.
      learner: its model.
      like: shapes of its parameters and buffers.
      x: inputs, for their shape.
    """
    static: list[Any] = []

    def leaves(best: tuple[PyTree, PyTree]) -> list[Any]:
        model = shipped_model(config, learner, *best)
        linen = isinstance(model, tuple)
        graph, state = model if linen else nnx.split(model)
        found, treedef = jax.tree_util.tree_flatten_with_path(state)
        static.append((linen, graph, treedef, [path_names(path) for path, _ in found]))
        return [leaf for _, leaf in found]

    shapes = jax.eval_shape(leaves, like)
    linen, graph, treedef, paths = static[0]
    some = [
        [_numbers_like(a, path, rng) for a, path in zip(shapes, paths, strict=True)]
        for rng in map(np.random.default_rng, (1, 2))
    ]
    state = jax.tree.unflatten(treedef, some[0])
    model = (graph, state) if linen else nnx.merge(graph, state)
    skeleton = skeleton_of(model, example_of(x), **learner.call)
    # Twice: what of a graph depends on its numbers shows.
    (sizes, one), (other, two) = (split(filled(skeleton, numbers)) for numbers in some)
    sources = [
        sources_in(numbers, skeleton.names, given)
        for numbers, given in zip((one, two), some, strict=True)
    ]
    same = sizes.text == other.text and _same(*sources)
    return Shipping(leaves, skeleton, *((sizes, sources[0]) if same else (None, None)))


def _numbers_like(a: Any, path: tuple[str, ...], rng: np.random.Generator) -> Any:
    """Numbers of a shape; of seeds always the same, zeros for what only training needs."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(run_key(0), a.shape)
    if jnp.issubdtype(a.dtype, jnp.floating) and path[-1] not in TRAINING_ONLY:
        return rng.uniform(0.5, 1.5, a.shape).astype(a.dtype)
    if a.dtype == np.uint32:
        words = np.random.default_rng(zlib.crc32("/".join(path).encode()))
        return words.integers(0, 2**32, a.shape, np.uint32)
    return np.zeros(a.shape, a.dtype)


def sources_in(numbers: Numbers, names: Sequence[str], leaves: Sequence[Any]) -> Sources | None:
    """Where a graph's numbers come from; None for seeds from nowhere."""
    tensors = {}
    for name, stored in numbers.tensors.items():
        tensors[name] = Source(None, stored)
        if name in names:
            place = names.index(name)
            leaf = np.asarray(leaves[place], np.float64)
            factor = (leaf * stored).sum() / (leaf * leaf).sum() if leaf.size else 1.0
            if leaf.shape == stored.shape and np.allclose(leaf * factor, stored, rtol=1e-6):
                tensors[name] = Source(place, 1.0 if np.array_equal(leaf, stored) else factor)
    seeds = []
    for seed in numbers.seeds:
        plain = (a.dtype == np.uint32 and np.array_equal(a, seed) for a in leaves)
        seeds.append(next((k for k, found in enumerate(plain) if found), None))
    return None if None in seeds else Sources(tensors, tuple(k for k in seeds if k is not None))


def _same(a: Sources | None, b: Sources | None) -> bool:
    if a is None or b is None or a.seeds != b.seeds:
        return False
    pairs = [(a.tensors[name], b.tensors[name]) for name in a.tensors]
    return all(
        x.place == y.place and np.allclose(x.factor, y.factor, rtol=1e-6, atol=0) for x, y in pairs
    )


# Scores.


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
    """A model as data: its parameters and buffers, or its numbers."""

    sizes: Sizes
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
        programs: dict[tuple[Any, Hashable], list[int]] = {}
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
        built.scorers[key] = shipping_of(jobs[0].config, form.learner, like, x)
    shipping: Shipping = built.scorers[key]
    if shipping.sizes is not None:
        return [_Model(shipping.sizes, given) for given in at]
    leaves = jax.jit(shipping.leaves)
    graphs: dict[int, _Model] = {}  # members that differ in bits alone share one
    for job, given in zip(jobs, at, strict=True):
        if job.row not in graphs:
            numbers = jax.device_get(leaves(given))
            graphs[job.row] = _Model(*split(filled(shipping.skeleton, numbers)))
    return [graphs[job.row] for job in jobs]


def _rows(
    program: tuple[Any, Hashable],
    models: Sequence[tuple[TrainConfig, _Model]],
    built: Built,
    at_once: int,
) -> list[dict[str, Any]]:
    """The rows of models of one graph: ``program`` is their form's key, and what tells it apart."""
    examples, (first, model) = built.examples, models[0]
    members = []
    for config, (_, given) in models:
        part, key = examples.part(config), batches_key(config)
        if ("batches", key) not in built.scorers:
            built.scorers["batches", key] = batches_of(part.validation, built)
        index, valid, splits = built.scorers["batches", key]
        own = given, np.int32(config.bits)
        members.append(Member((index, valid, part.units), own, key))
    if program not in built.scorers:
        shipping: Shipping = built.scorers[program[0]]

        def numbers_in(given: Any) -> Numbers:
            if shipping.sources is None:
                return Numbers(*given)
            leaves, (tensors, seeds) = shipping.leaves(given), shipping.sources
            found = {name: source.value(leaves) for name, source in tensors.items()}
            return Numbers(found, tuple(leaves[k] for k in seeds))

        block = scoring(model.sizes, numbers_in, examples.task)
        built.scorers[program] = Population(block, built.data, _width(members, at_once))
    sums, seeds = built.scorers[program].run(members, 0)
    rows = []
    for i, (config, _) in enumerate(models):
        row: dict[str, Any] = {}
        for name, (at, count) in splits.items():
            found = metrics(
                jax.tree.map(lambda a, i=i, at=at: a[i, at], sums), count, examples.task
            )
            row |= {f"{name}_{metric}": value for metric, value in found.items()}
        size = _bytes(model.sizes, [s[i] for s in seeds], config, built)
        dense = form_of(first, built).learner.report.before
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
