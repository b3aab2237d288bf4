"""A population: many trainings of one program, as data.

The examples lie on the device once; a member is its hyperparameters, its initial state and the
indices of its training and validation examples. Members of one seed see the same batches in the
same order: they run as a block under ``vmap`` with the batch shared, so that their first layers
become one large matrix product. Some blocks run under a second ``vmap``, the devices side by side
under ``shard_map``, the rest call after call.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rosler_jax.config import TrainConfig
from rosler_jax.data._dataset import standardization
from rosler_jax.fit import (
    Arrays,
    Metrics,
    TrainState,
    make_fit,
    network_specs,
    next_key,
    run_key,
)
from rosler_jax.run import filed_moments
from rosler_jax.sweep import hosts
from rosler_jax.sweep.examples import Examples
from rosler_jax.sweep.plan import DYNAMIC, batches_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Int32, PyTree


class Member(NamedTuple):
    """One training as data: NumPy until a population stacks and places it, then traced."""

    state: TrainState
    hyper: dict[str, Any]  # one entry for each dynamic field but the seed
    train: Any  # indices
    validation: Any
    mean: Any
    std: Any


class _Split(NamedTuple):
    """A training's examples by index, and the moments of its inputs: as data, and as filed."""

    train: Any
    validation: Any
    mean: Any
    std: Any
    filed: tuple[Any, Any]


class Shared(NamedTuple):
    """What the members of a block have in common: the order of their batches, and their data."""

    key: Any
    epoch: Any
    train: Any
    validation: Any
    mean: Any
    std: Any


class Outcome(NamedTuple):
    """What is left of a training, or of a part of one."""

    params: PyTree
    buffers: PyTree
    best_accuracy: Array
    best_epoch: Array
    history: Metrics  # each of shape (epochs,)
    state: TrainState | None  # to go on from; None if nothing follows


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


def with_hyper(config: TrainConfig, hyper: dict[str, Array]) -> TrainConfig:
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


def train_block(
    config: TrainConfig,
    specs: list[dict[str, Any]],
    shared: Shared,
    states: TrainState,
    hyper: dict[str, Array],
    x: Array,
    y: Array,
    epochs: Int32[Array, ""],
) -> Outcome:
    """Trains a block of members, pure.

    The random key and the count of epochs stay outside the ``vmap``: what follows from them, the
    batches above all, is computed once for the block.

    Args:
      config: what the members share.
      specs: layers of its network.
      shared: of the block.
      states, hyper: of its members, stacked.
      x, y: all examples.
      epochs: how many, at most the config's: the rows of the history after them are zero.
    """
    train, validation = shared.train, shared.validation
    chosen: Any = _Chosen  # has what a run asks of an array: rows by index, and a shape
    arrays = Arrays(
        chosen(x, train), chosen(y, train), chosen(x, validation), chosen(y, validation)
    )

    def one(
        state: TrainState, hyper: dict[str, Array], key: Array, epoch: Array
    ) -> tuple[TrainState, Metrics]:
        functions = make_fit(
            with_hyper(config, hyper),
            specs,
            train.shape[0],
            shared.std,
            lambda a: _standardize(a, shared.mean, shared.std),
        )
        return functions.epoch(state._replace(key=key, epoch=epoch), arrays)

    def step(i: Array, carry: Any) -> Any:
        states, key, epoch, history = carry
        states, metrics = jax.vmap(one, in_axes=(0, 0, None, None))(states, hyper, key, epoch)
        history = jax.tree.map(lambda h, m: h.at[:, i].set(m), history, metrics)
        return states, next_key(key), epoch + 1, history

    count = states.best_accuracy.shape[0]
    numbers, finite = (jnp.zeros((count, config.epochs), dtype) for dtype in ("f4", bool))
    history = Metrics(numbers, numbers, numbers, numbers, finite)
    start = (states, shared.key, shared.epoch, history)
    states, key, epoch, history = jax.lax.fori_loop(0, epochs, step, start)
    states = states._replace(
        key=jnp.broadcast_to(key, (count, *key.shape)), epoch=jnp.broadcast_to(epoch, (count,))
    )
    best = states.best_params, states.best_buffers, states.best_accuracy, states.best_epoch
    return Outcome(*best, history, states)


@functools.lru_cache(maxsize=64)
def _initializer(config: TrainConfig, in_features: int, num_classes: int, count: int) -> Any:
    """The jitted initial state of a config, kept: populations of a sweep share it."""
    specs = network_specs(config, in_features, num_classes)
    return jax.jit(make_fit(config, specs, count).init)


class Population:
    """The compiled program of a group, and how its members become data.

    One call trains as many members as run at a time, for as many epochs as it is told: a sweep of
    any size, its rungs and the timing that its plan is made by share one compiled program.

    Attributes:
      config: what the members share; its rank is what smaller ranks are padded to.
      examples: the data.
      width: members of a block, which share their batches.
      blocks: that run together on a device.
    """

    def __init__(self, config: TrainConfig, examples: Examples, width: int = 1, blocks: int = 1):
        self.config, self.examples = config, examples
        self.width, self.blocks = width, blocks
        self.specs = _neutral_specs(config, examples)
        self.mesh = Mesh(np.array(jax.devices()), ("members",))
        self._compiled: Any = None  # these three hold what was computed before
        self._shapes: dict[int, TrainState] = {}
        self._splits: dict[tuple[float, int], _Split] = {}

    def member(self, config: TrainConfig, state: TrainState | None = None) -> Member:
        """A training's config as data, its state padded to the population's rank.

        Args:
          config: the training.
          state: at the config's own rank, to go on from; its initial one by default.
        """
        split = self._split(config)
        own = self._init(config)(run_key(config.seed)) if state is None else state
        like = self.abstract(self.config)
        hyper = {name: getattr(config, name) for name in DYNAMIC if name != "seed"}
        hyper["learning_rate"] = config.peak_learning_rate
        if not self.config.noise:
            del hyper["noise"]
        return Member(
            state=jax.tree.map(_pad, own, like),
            hyper={name: np.float32(value) for name, value in hyper.items()},
            train=split.train,
            validation=split.validation,
            mean=split.mean,
            std=split.std,
        )

    def moments(self, config: TrainConfig) -> tuple[Any, Any]:
        """Mean and deviation of a training's inputs, as its model file has them."""
        return self._split(config).filed

    def _split(self, config: TrainConfig) -> _Split:
        key = batches_key(config)
        if key not in self._splits:
            train, validation = (np.asarray(i, "i4") for i in self.examples.split(config))
            x = np.asarray(self.examples.x)[train]
            filed = filed_moments(*standardization(self.examples.name, x, config.standardize))
            # Of vectors one for each feature, also where they are the same: members are stacked.
            shape = x.shape[1:] if x.ndim == 2 else ()
            mean, std = (np.broadcast_to(np.float32(v), shape) for v in filed)
            self._splits[key] = _Split(train, validation, mean, std, filed)
        return self._splits[key]

    def _init(self, config: TrainConfig) -> Any:
        """The jitted initialisation at a config's own rank."""
        own = dataclasses.replace(self.config, rank=config.rank)
        if own.method != "ares-bp":  # only there does the state depend on how long the run is
            own = dataclasses.replace(own, epochs=1, quantize_from=0.0)
        count = len(self._split(config).train)
        return _initializer(own, self.examples.in_features, self.examples.num_classes, count)

    def crop(self, params: PyTree, buffers: PyTree, config: TrainConfig) -> tuple[PyTree, PyTree]:
        """Parameters and buffers at a training's own rank again, as NumPy."""
        like = self.abstract(config)
        return _crop(params, like.params), _crop(buffers, like.buffers)

    def abstract(self, config: TrainConfig) -> TrainState:
        """Shapes of a training's state, at the config's own rank."""
        if config.rank not in self._shapes:
            self._shapes[config.rank] = jax.eval_shape(self._init(config), jax.random.key(0))
        return self._shapes[config.rank]

    def _program(self) -> Any:
        """The jitted function from a call's blocks, the examples and a count of epochs."""

        def device(
            given: tuple[Shared, TrainState, Any], x: Array, y: Array, epochs: Array
        ) -> Outcome:
            def run(block: tuple[Shared, TrainState, Any]) -> Outcome:
                shared, states, hyper = block
                return train_block(self.config, self.specs, shared, states, hyper, x, y, epochs)

            if self.blocks > 1:
                return jax.vmap(run)(given)
            return jax.tree.map(lambda a: a[None], run(jax.tree.map(lambda a: a[0], given)))

        specs = (P("members"), P(), P(), P())
        sharded = jax.shard_map(
            device, mesh=self.mesh, in_specs=specs, out_specs=P("members"), check_vma=False
        )
        return jax.jit(sharded)

    def compiled(self, member: Member) -> Any:
        """The compiled program, for members like this one."""
        if self._compiled is None:
            placed = self._placed([[(0, member)] * self.width] * self._slots, 0)
            self._compiled = self._program().lower(*placed).compile()
        return self._compiled

    @property
    def _slots(self) -> int:
        """Blocks of a call."""
        return self.blocks * self.mesh.size

    @property
    def bytes_needed(self) -> int:
        """What the compiled program takes on a device, by XLA's own analysis."""
        m = self._compiled.memory_analysis()
        return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes

    def run(
        self, members: Sequence[Member], epochs: int | None = None, keep: bool = False
    ) -> Outcome:
        """Trains members; outcomes as NumPy, stacked in their order, on every host.

        Args:
          members: at least one.
          epochs: how many of the config's; all of them by default.
          keep: whether outcomes hold the state to go on from.
        """
        epochs = self.config.epochs if epochs is None else epochs
        compiled, rows = self.compiled(members[0]), layout(members, self.width)
        rows = [*rows, *[rows[-1]] * (-len(rows) % self._slots)]  # filled up with copies
        calls = []
        for i in range(0, len(rows), self._slots):  # a call is prepared while another computes
            out = compiled(*self._placed(rows[i : i + self._slots], epochs))
            calls.append(out if keep else out._replace(state=None))
        gathered = [hosts.gather(out) for out in calls]
        place = {j: i for i, (j, _) in enumerate(member for row in rows for member in row)}
        at = np.array([place[j] for j in range(len(members))])  # of copies, the last: all the same
        flat = jax.tree.map(
            lambda *parts: np.concatenate(parts).reshape(-1, *parts[0].shape[2:])[at], *gathered
        )
        return flat._replace(history=jax.tree.map(lambda h: h[:, :epochs], flat.history))

    @functools.cached_property
    def _data(self) -> tuple[Array, Array]:
        """The examples, whole on every device."""
        whole = NamedSharding(self.mesh, P())
        x, y = self.examples.x, self.examples.y
        return hosts.place(np.asarray(x), whole), hosts.place(np.asarray(y), whole)

    def _placed(self, rows: Sequence[Block], epochs: int) -> tuple[Any, Array, Array, Array]:
        along = NamedSharding(self.mesh, P("members"))
        firsts = [row[0][1] for row in rows]
        shared = _stack(
            [
                Shared(m.state.key, m.state.epoch, m.train, m.validation, m.mean, m.std)
                for m in firsts
            ]
        )
        states = _stack([_stack([m.state for _, m in row]) for row in rows])
        hyper = _stack([_stack([m.hyper for _, m in row]) for row in rows])
        given = jax.tree.map(lambda a: hosts.place(a, along), (shared, states, hyper))
        count = hosts.place(np.asarray(epochs, "i4"), NamedSharding(self.mesh, P()))
        return given, *self._data, count


Block = list[tuple[int, Member]]
"""Members that share their batches, each with its place among all."""


def layout(members: Sequence[Member], width: int) -> list[Block]:
    """Puts members that share their batches into blocks, filled up with copies of the last."""
    alike: dict[Any, Block] = {}
    for i, member in enumerate(members):
        order = (id(member.train), np.asarray(member.state.key).tobytes(), int(member.state.epoch))
        alike.setdefault(order, []).append((i, member))
    rows = []
    for found in alike.values():
        filled = [*found, *[found[-1]] * (-len(found) % width)]
        rows += [filled[i : i + width] for i in range(0, len(filled), width)]
    return rows


def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(v) for v in leaves]), *trees)


def _pad(leaf: Any, like: Any) -> np.ndarray:
    """Zeros behind a leaf, up to the shape of another."""
    leaf = np.asarray(leaf)
    missing = [(0, b - a) for a, b in zip(leaf.shape, like.shape, strict=True)]
    return np.pad(leaf, missing) if any(m for _, m in missing) else leaf


def _crop(tree: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a[tuple(slice(0, n) for n in b.shape)], tree, like)
