"""What models of a form are when they ship: their graph, their numbers in it, bytes of their files.

Of each form of model one graph is traced. Where its weights are the model's own arrays one to one,
numbers of members are found in the program that scores them; where they are not, as where batch
normalisation is folded into them, each training's graph is filled and folded.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import rosler_kernels as rk
from rosler_jax import modelfile
from rosler_jax._paths import TRAINING_ONLY, path_names
from rosler_jax._quantized import FLOAT_BITS, Axes, QuantizedTensor, carrying, scale_shape
from rosler_jax.config import TrainConfig
from rosler_jax.fit import run_key
from rosler_jax.graph import Graph
from rosler_jax.graph.file import to_json
from rosler_jax.graph.graph import map_weights
from rosler_jax.graph.kinds import Op, Scan
from rosler_jax.graph.quantize import Planned, quantization_plan
from rosler_jax.graph.trace import Skeleton, filled, skeleton_of
from rosler_jax.graph.weight import Weight
from rosler_jax.learner import Learner
from rosler_jax.quantization import VECTOR_BITS
from rosler_jax.run import example_of, shipped_model
from rosler_jax.units import Units, in_units

if TYPE_CHECKING:
    from jaxtyping import PyTree

_ASKED = 4  # bits that a matrix gets when these are asked for, other tensors never


class Sizes(NamedTuple):
    """A model without its numbers.

    Attributes:
      graph: its operations, of standardised values.
      text: tells models apart: operations, what else they hold, and of each weight name, dtype
        and shape.
      sketches: how many it holds.
      bits: of each weight by name: :data:`_ASKED` for what a member's bits are of.
      axes: of its scales.
    """

    graph: Graph
    text: tuple[str, tuple[Any, ...], tuple[tuple[str, str, tuple[int, ...]], ...]]
    sketches: int
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
        bare, (json.dumps(content), tuple(rest), tuple(shapes)), len(seeds),
        {k: p.bits for k, p in planned.items()}, {k: p.axes for k, p in planned.items()},
    )  # fmt: skip
    return sizes, Numbers(numbers, seeds)


def _sketching(graph: Graph) -> Iterator[Any]:
    """Operations whose sketches have seeds, those of bodies among them."""
    for op in graph.ops:
        if _seeded(op):
            yield op
        if isinstance(op, Scan):
            yield from _sketching(op.body)


def _seeded(op: Any) -> bool:
    return hasattr(op, "sketch") and not rk.family(op.sketch.kind).fixed


def with_seeds(graph: Graph, seeds: Iterator[Any]) -> Graph:
    """A graph whose sketches have other seeds, in their order; they may be traced."""

    def change(op: Any) -> Op:
        if _seeded(op):
            sketch = dataclasses.replace(op.sketch, seed=next(seeds))
            op = dataclasses.replace(op, sketch=sketch)
        if isinstance(op, Scan):
            op = dataclasses.replace(op, body=with_seeds(op.body, seeds))
        return op

    return dataclasses.replace(graph, ops=tuple(change(op) for op in graph.ops))


def covers(wide: Sizes, own: Sizes) -> bool:
    """Whether a model, with zeros behind its numbers, is one of larger ranks in its file, too.

    That is where only ranks differ which scales are of: then no scale has zeros more to look at.
    """
    pairs: set[tuple[int, int]] = set()  # sizes, in the model and in the larger one
    (ops, rest, weights), (own_ops, own_rest, own_weights) = wide.text, own.text
    named = [[(name, kind, len(shape)) for name, kind, shape in w] for w in (weights, own_weights)]
    if rest != own_rest or named[0] != named[1]:
        return False
    for (name, _, large), (_, _, small) in zip(weights, own_weights, strict=True):
        others = [k for k, (a, b) in enumerate(zip(small, large, strict=True)) if a != b]
        if own.bits[name] == _ASKED and not {*others} <= {*carrying(own.axes[name])}:
            return False
        pairs |= {(small[k], large[k]) for k in others}
    return _alike(json.loads(own_ops), json.loads(ops), pairs)


def _alike(a: Any, b: Any, pairs: set[tuple[int, int]]) -> bool:
    """Whether JSON values are the same but for pairs of numbers."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_alike(*both, pairs) for both in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[k], b[k], pairs) for k in a)
    return bool(a == b) or (a, b) in pairs


# Bytes.


def file_bytes(sizes: Sizes, seeds: Sequence[Any], units: Units, scaled: bool, bits: int) -> int:
    """Bytes of a model's file: its shapes, seeds and units decide."""
    graph = in_units(with_seeds(sizes.graph, iter(seeds)), units, scaled)
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
      leaves: ``(params, buffers) ->`` the arrays of the model that ships; jitted.
      skeleton: the model's.
      sizes: of all these models, where one graph tells, and
      sources: where its numbers come from; None where each model has to be traced.
    """

    leaves: Callable[[tuple[PyTree, PyTree]], list[Any]]
    skeleton: Skeleton
    sizes: Sizes | None
    sources: Sources | None

    def numbers(self, best: tuple[PyTree, PyTree]) -> Numbers:
        """Of the model of these parameters and buffers, where one graph tells; traceable."""
        assert self.sources is not None
        leaves, (tensors, seeds) = self.leaves(best), self.sources
        found = {name: source.value(leaves) for name, source in tensors.items()}
        return Numbers(found, tuple(leaves[k] for k in seeds))

    def split(self, best: tuple[PyTree, PyTree]) -> tuple[Sizes, Numbers]:
        """The same, where each model has to be traced."""
        return split(filled(self.skeleton, jax.device_get(self.leaves(best))))


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
    return Shipping(jax.jit(leaves), skeleton, *((sizes, sources[0]) if same else (None, None)))


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
