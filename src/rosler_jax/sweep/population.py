"""A population: many trainings of one program, as data.

The examples lie on the device once; a member is its hyperparameters, its initial state and the
indices of its training and validation examples. Members run under ``vmap`` in blocks, the blocks of
a device one after the other, the devices side by side under ``shard_map``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rosler_jax.config import TrainConfig
from rosler_jax.data._dataset import Raw, as_inputs, as_labels, moments, stratified
from rosler_jax.fit import Arrays, Metrics, TrainState, make_fit, network_specs
from rosler_jax.sweep.plan import DYNAMIC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, PyTree


class Examples(NamedTuple):
    """The examples of a data set, training and validation together, and its test split."""

    x: Array
    y: Array
    fixed: tuple[np.ndarray, np.ndarray] | None  # indices, where the source has its own validation
    test_x: np.ndarray
    test_y: np.ndarray
    num_classes: int

    @property
    def in_features(self) -> int:
        """Numbers in an example."""
        return math.prod(self.x.shape[1:])

    def split(self, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
        """Indices of a member's training and validation examples."""
        if self.fixed is not None:
            return self.fixed
        return stratified(np.asarray(self.y), config.validation, config.seed)


def read_examples(name: str, raw: Raw) -> Examples:
    """Checks the splits of a source and puts them in order.

    Raises:
      DataError: for shapes, labels or values that cannot be used.
    """
    parts = [raw.train] if raw.validation is None else [raw.train, raw.validation]
    xs = [as_inputs(np.asarray(x), f"{name}, training") for x, _ in parts]
    ys = [as_labels(np.asarray(y), len(x), name) for x, (_, y) in zip(xs, parts, strict=True)]
    test_x = as_inputs(np.asarray(raw.test[0]), f"{name}, test split")
    test_y = as_labels(np.asarray(raw.test[1]), len(test_x), f"{name}, test split")
    fixed = None
    if raw.validation is not None:
        whole = np.arange(len(xs[0]) + len(xs[1]))
        fixed = whole[: len(xs[0])], whole[len(xs[0]) :]
    y = np.concatenate(ys)
    classes = int(max(y.max(), test_y.max())) + 1
    x = np.concatenate(xs)
    return Examples(jnp.asarray(x), jnp.asarray(y), fixed, test_x, test_y, classes)


class Member(NamedTuple):
    """One training as data; a population stacks them."""

    state: TrainState
    hyper: dict[str, Array]  # one entry for each dynamic field but the seed
    train: Array  # indices
    validation: Array
    mean: Array
    std: Array


class Outcome(NamedTuple):
    """What is left of a training."""

    params: PyTree
    buffers: PyTree
    best_accuracy: Array
    best_epoch: Array
    history: Metrics  # each of shape (epochs,)


@jax.tree_util.register_pytree_node_class
class _Chosen:
    """Rows of an array by index, looking like an array: a member's split takes no memory."""

    def __init__(self, rows: Array, index: Array):
        self.rows, self.index = rows, index

    def __getitem__(self, i: Array) -> Array:
        return self.rows[self.index[i]]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.index.shape, *self.rows.shape[1:])

    def tree_flatten(self) -> tuple[tuple[Array, Array], None]:
        return (self.rows, self.index), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Array, Array]) -> _Chosen:
        return cls(*children)


def _with(config: TrainConfig, hyper: dict[str, Array]) -> TrainConfig:
    """The config with traced fields, which its own checks could not compare."""
    out = object.__new__(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        object.__setattr__(out, field.name, hyper.get(field.name, getattr(config, field.name)))
    return out


def _neutral_specs(config: TrainConfig, examples: Examples) -> list[dict[str, Any]]:
    """Layers whose inputs come standardised: mean and deviation are a member's, not a program's."""
    return network_specs(config, examples.in_features, examples.num_classes)


def _standardize(x: Array, mean: Array, std: Array) -> Array:
    return (x.astype(jnp.float32) - mean) * (1.0 / std)


def train_member(
    config: TrainConfig, specs: list[dict[str, Any]], member: Member, x: Array, y: Array
) -> Outcome:
    """One whole training, pure: what is mapped over a population."""
    train, validation = member.train, member.validation
    chosen: Any = _Chosen  # has what a run asks of an array: rows by index, and a shape
    arrays = Arrays(
        chosen(x, train), chosen(y, train), chosen(x, validation), chosen(y, validation)
    )
    functions = make_fit(
        _with(config, member.hyper),
        specs,
        train.shape[0],
        member.std,
        lambda a: _standardize(a, member.mean, member.std),
    )
    state, history = jax.lax.scan(
        lambda s, _: functions.epoch(s, arrays), member.state, None, length=config.epochs
    )
    return Outcome(
        state.best_params, state.best_buffers, state.best_accuracy, state.best_epoch, history
    )


class Population:
    """The compiled program of a group, and how its members become data.

    Attributes:
      config: what the members share; its rank is what smaller ranks are padded to.
      examples: the data.
      width: members under one ``vmap``.
    """

    def __init__(self, config: TrainConfig, examples: Examples, width: int = 1):
        self.config, self.examples, self.width = config, examples, width
        self.specs = _neutral_specs(config, examples)
        self.mesh = Mesh(np.array(jax.local_devices()), ("members",))
        self._inits: dict[int, Any] = {}

    def member(self, config: TrainConfig) -> Member:
        """A training's config as data, its state padded to the population's rank."""
        train, validation = self.examples.split(config)
        mean, std = moments(np.asarray(self.examples.x)[train])
        own = self._init(config)(jax.random.key(config.seed))
        like = jax.eval_shape(self._init(self.config), jax.random.key(0))
        hyper = {name: getattr(config, name) for name in DYNAMIC if name != "seed"}
        hyper["learning_rate"] = config.peak_learning_rate
        if not self.config.noise:
            del hyper["noise"]
        return Member(
            state=jax.tree.map(_pad, own, like),
            hyper={name: jnp.asarray(value, jnp.float32) for name, value in hyper.items()},
            train=jnp.asarray(train, jnp.int32),
            validation=jnp.asarray(validation, jnp.int32),
            mean=jnp.float32(round(mean, 4)),
            std=jnp.float32(round(max(std, 1e-12), 4)),
        )

    def _init(self, config: TrainConfig) -> Any:
        """The jitted initialisation at a config's own rank."""
        if config.rank not in self._inits:
            own = dataclasses.replace(self.config, rank=config.rank)
            size = len(self.examples.split(config)[0])
            functions = make_fit(own, _neutral_specs(own, self.examples), size)
            self._inits[config.rank] = jax.jit(functions.init)
        return self._inits[config.rank]

    def crop(self, params: PyTree, buffers: PyTree, config: TrainConfig) -> tuple[PyTree, PyTree]:
        """Parameters and buffers at a training's own rank again, as NumPy."""
        like = jax.eval_shape(self._init(config), jax.random.key(0))
        return _crop(params, like.params), _crop(buffers, like.buffers)

    @functools.cached_property
    def program(self) -> Any:
        """The jitted function from a stack of members, and the examples, to their outcomes."""

        def one(member: Member, x: Array, y: Array) -> Outcome:
            return train_member(self.config, self.specs, member, x, y)

        def block(members: Member, x: Array, y: Array) -> Outcome:
            run = lambda m: one(m, x, y)  # noqa: E731
            if self.width == 1:
                return jax.lax.map(run, members)
            return jax.lax.map(run, members, batch_size=self.width)

        specs = (P("members"), P(), P())
        sharded = jax.shard_map(
            block, mesh=self.mesh, in_specs=specs, out_specs=P("members"), check_vma=False
        )
        return jax.jit(sharded)

    def compile(self, members: Sequence[Member]) -> Any:
        """The compiled program for so many members, a multiple of the devices."""
        return self.program.lower(*self._placed(members)).compile()

    def call(self, compiled: Any, members: Sequence[Member]) -> Outcome:
        """Trains members with a compiled program; waits for them."""
        return jax.block_until_ready(compiled(*self._placed(members)))

    @staticmethod
    def bytes_needed(compiled: Any) -> int:
        """What a compiled program takes on a device, by XLA's own analysis."""
        m = compiled.memory_analysis()
        return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes

    def run(self, members: Sequence[Member], size: int = 0) -> Outcome:
        """Trains a chunk of members; outcomes as NumPy, stacked in their order.

        Args:
          members: at least one.
          size: how many the program is for, if more: a smaller chunk is filled up with copies of
            its last member, so that nothing is compiled again.
        """
        count = len(members)
        size = max(size, count)
        padded = [*members, *[members[-1]] * (size + -size % self.mesh.size - count)]
        out = jax.device_get(self.program(*self._placed(padded)))
        return jax.tree.map(lambda a: a[:count], out)

    def _placed(self, members: Sequence[Member]) -> tuple[Member, Array, Array]:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
        stacked = jax.device_put(stacked, NamedSharding(self.mesh, P("members")))
        whole = NamedSharding(self.mesh, P())
        x, y = (jax.device_put(a, whole) for a in (self.examples.x, self.examples.y))
        return stacked, x, y


def _pad(leaf: Array, like: Any) -> Array:
    """Zeros behind a leaf, up to the shape of another."""
    missing = [(0, b - a) for a, b in zip(leaf.shape, like.shape, strict=True)]
    return jnp.pad(leaf, missing) if any(m for _, m in missing) else leaf


def _crop(tree: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a[tuple(slice(0, n) for n in b.shape)], tree, like)
