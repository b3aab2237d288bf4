"""Trainings as members of a population: from a config to data, and to what a population left."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from rosler_jax._ranks import cropped, padded
from rosler_jax.config import TrainConfig
from rosler_jax.fit import Arrays, Metrics, TrainState, make_fit, next_key, run_key
from rosler_jax.hyper import Hyper, hyper_of
from rosler_jax.sweep.examples import batches_key
from rosler_jax.sweep.plan import Built, Group, form_of, with_live
from rosler_jax.sweep.population import Member, Population, training

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree


class Shared(NamedTuple):
    """What the members of a block have in common: the order of their batches, and their data."""

    key: Any
    epoch: Any
    train: Any  # indices
    validation: Any
    units: Any


class Own(NamedTuple):
    """What a training has of its own."""

    state: TrainState
    hyper: Hyper


class Outcome(NamedTuple):
    """What trainings, or parts of them, ended with; stacked."""

    state: TrainState
    history: Metrics  # each of shape (trainings, epochs)


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


def chosen(data: tuple[Any, Any], index: Any) -> tuple[Any, Any]:
    """The examples of a split, of all inputs and targets (or None)."""
    x, y = data
    rows: Any = _Chosen
    return rows(x, index), None if y is None else rows(y, index)


def population_of(group: Group, built: Built, width: int, blocks: int) -> Population:
    """The population of a group's program, kept with what it compiles."""
    key = group.key, group.form.shapes, width, blocks
    if key not in built.populations:
        block = training(_epoch(group, built), group.config.epochs)
        built.populations[key] = Population(block, built.data, width, blocks)
    return built.populations[key]


def _epoch(group: Group, built: Built) -> Any:
    """A member's epoch. Key and count stay in common: the batches are computed once for a block."""
    count = len(built.examples.part(group.trainings[0]).train)
    functions = make_fit(group.config, group.form.learner, count)

    def step(shared: Shared, own: Own, data: tuple[Array, Array]) -> tuple[Shared, Own, Metrics]:
        arrays = Arrays(*chosen(data, shared.train), *chosen(data, shared.validation))
        state = own.state._replace(key=shared.key, epoch=shared.epoch)
        state, metrics = functions.epoch(state, arrays, own.hyper, shared.units)
        after = shared._replace(key=next_key(shared.key), epoch=shared.epoch + 1)
        state = state._replace(key=after.key, epoch=after.epoch)
        return after, own._replace(state=state), metrics

    return step


def member_of(
    config: TrainConfig, group: Group, built: Built, state: TrainState | None = None
) -> Member:
    """A training as data, its state padded to the ranks of its group.

    Args:
      config: the training.
      group: its group.
      built: the data, and models that are known.
      state: at the training's own ranks, to go on from; its initial one by default.
    """
    part = built.examples.part(config)
    own = initial_state(config, built) if state is None else state
    if group.form.shapes != form_of(config, built).shapes:
        own = padded(with_live(own), group.form.like)
    shared = Shared(own.key, own.epoch, part.train, part.validation, part.units)
    alike: Hashable = (batches_key(config), own.key.tobytes(), int(own.epoch))
    return Member(shared, Own(own, hyper_of(config)), alike)


def initial_state(config: TrainConfig, built: Built) -> TrainState:
    """Where a training begins, at its own ranks, as NumPy."""
    form = form_of(config, built)
    seed, state = built.initial.get(form.init, (None, None))
    if seed != config.seed:
        state = jax.device_get(form.init(run_key(config.seed)))
        built.initial[form.init] = config.seed, state
    return state


def own_ranks(state: PyTree, like: PyTree) -> PyTree:
    """States, stacked, at the ranks of trainings again.

    Args:
      state: a part of states, stacked.
      like: shapes of the same part of one state.
    """
    count = jax.tree.leaves(state)[0].shape[0]
    shaped = jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape), a.dtype), like)
    return cropped(state, shaped)


def run(
    population: Population, members: Sequence[Member], epochs: int, keep: bool = False
) -> Outcome:
    """Trains members for so many epochs; ``keep``: with all that is needed to go on."""

    def kept(out: tuple[Own, Metrics]) -> Outcome:
        state = out[0].state
        if not keep:
            state = state._replace(params=None, buffers=None, opt_state=None)
        return Outcome(state, out[1])

    out = population.run(members, epochs, kept)
    return out._replace(history=jax.tree.map(lambda h: h[:, :epochs], out.history))
