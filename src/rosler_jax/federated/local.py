"""What clients do in a round: each trains the same model on examples of its own, all at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rosler_jax.federated._spec import choose
from rosler_jax.federated.optimizers import CLIENTS
from rosler_jax.fit import augmented, make_gradient, make_schedule, method_of, task_of
from rosler_jax.methods import Setting
from rosler_jax.rate import decaying
from rosler_jax.units import standardized

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PyTree

    from rosler_jax.config import TrainConfig
    from rosler_jax.federated.config import FederatedConfig
    from rosler_jax.fit import Arrays
    from rosler_jax.hyper import Hyper
    from rosler_jax.learner import Learner
    from rosler_jax.units import Units

NEVER = 2**31 - 1  # the update at which a stage ends that the server ends


class When(NamedTuple):
    """Where a training is: what of a run's state the loss looks at."""

    epoch: Any  # the round
    price: Any = 0.0


class Work(NamedTuple):
    """What each of some clients is to do.

    Attributes:
      keys: words of a random key each.
      rows: indices of its examples.
      counts: how many it has; 0 for one that does nothing.
    """

    keys: Array
    rows: Int[Array, "clients most"]
    counts: Int[Array, " clients"]


class Done(NamedTuple):
    """What clients have come to, a row each: parameters, buffers, mean loss over their steps."""

    params: PyTree
    buffers: PyTree
    loss: Float[Array, " clients"]


def make_local(
    config: TrainConfig,
    federated: FederatedConfig,
    learner: Learner,
    num_examples: int,
    *,
    settled: bool = False,
) -> Callable[..., Done]:
    """Builds the training of clients.

    A client passes ``local_epochs`` times over its examples, in an order of its own; the last batch
    of a pass is filled up from that order's beginning. Its optimiser begins anew. Clients that have
    fewer steps wait for those that have more, so that like should go with like.

    Args:
      config: what a client trains: the schedule of its learning rate is over rounds.
      federated: how.
      learner: the model.
      num_examples: of all clients.
      settled: for what follows the parallel stage of aRes-BP.

    Returns:
      ``(params, buffers, work, now, arrays, hyper, units) -> Done``; pure, vmapped over clients.
    """
    client, number = choose("client", federated.client, CLIENTS)
    gradient = make_gradient(config, learner, num_examples)
    run = _Run(
        config,
        federated,
        learner,
        settled,
        gradient,
        lambda rate, decay: client.make(rate, decay, number),
    )
    return functools.partial(_train, run)


class _Run(NamedTuple):
    """What the training of all clients has in common: arguments of :func:`make_local`, and more.

    Attributes:
      gradient: of a batch's loss.
      client: ``(rate, weight_decay) -> `` its optimiser.
    """

    config: TrainConfig
    federated: FederatedConfig
    learner: Learner
    settled: bool
    gradient: Callable[..., Any]
    client: Callable[[Any, Any], optax.GradientTransformation]

    def optimizer(self, hyper: Hyper, when: Any) -> optax.GradientTransformationExtraArgs:
        """Of a round."""
        schedule = make_schedule(self.config, hyper.learning_rate, self.federated.rounds)
        inner = self.client(schedule(when), hyper.weight_decay)
        setting = Setting(self.config, hyper, self.learner, NEVER)
        whole = inner if self.settled else method_of(self.config).optimizer(inner, setting)
        return optax.with_extra_args_support(whole)


class _Place(NamedTuple):
    """Where a round's training takes place: what all clients read."""

    start: PyTree  # parameters
    now: Array
    arrays: Arrays
    hyper: Hyper
    units: Units


def _order(words: Array, count: Array, epochs: int, most: int) -> Int[Array, "epochs most"]:
    """A client's examples' places, shuffled, then those that it does not have."""
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    drawn = jax.random.uniform(key, (epochs, most))
    return jnp.argsort(jnp.where(jnp.arange(most) < count, drawn, 2.0), axis=1)


def _step(
    run: _Run, step: Array, carry: Any, mine: Work, order: Array, place: _Place
) -> tuple[Any, ...]:
    """One step of one client."""
    params, buffers, opt_state, loss = carry
    arrays, hyper, units, batch = place.arrays, place.hyper, place.units, run.config.batch_size
    count = jnp.maximum(mine.counts, 1)
    steps = -(-count // batch)
    taken = (step % steps * batch + jnp.arange(batch)) % count
    index = mine.rows[order[jnp.minimum(step // steps, run.federated.local_epochs - 1), taken]]
    key = jax.random.fold_in(jax.random.wrap_key_data(mine.keys, impl="threefry2x32"), step)
    x, y = arrays.train_x[index], None if arrays.train_y is None else arrays.train_y[index]
    x, y = augmented(run.config, task_of(run.config), key, x, y, hyper, units)
    at: Any = When(place.now)
    (_, (found, _, buffers)), grads = run.gradient(params, buffers, x, y, key, at, hyper, units)
    pull = run.federated.proximal
    if pull:
        grads = jax.tree.map(lambda g, w, w0: g + pull * (w - w0), grads, params, place.start)
    tx = run.optimizer(hyper, place.now)
    updates, opt_state = tx.update(grads, opt_state, decaying(params))
    return optax.apply_updates(params, updates), buffers, opt_state, loss + found


def _train(
    run: _Run, params: PyTree, buffers: PyTree, work: Work, now: Array, arrays: Arrays,
    hyper: Hyper, units: Units,
) -> Done:  # fmt: skip
    epochs, place = run.federated.local_epochs, _Place(params, now, arrays, hyper, units)
    clients, most = work.rows.shape
    steps = epochs * -(-work.counts // run.config.batch_size)
    order = jax.vmap(lambda k, n: _order(k, n, epochs, most))(work.keys, work.counts)
    x = standardized(arrays.train_x[:1], units)
    moving, joined = _moving_buffers(run.learner, params, buffers, x)
    start = params, moving(buffers), run.optimizer(hyper, now).init(params), jnp.float32(0)
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (clients, *jnp.shape(x))), start)

    def body(step: Array, carry: Any) -> Any:
        def each(carry: Any, mine: Work, order: Array) -> Any:
            here, moved, *rest = carry
            here, found, *rest = _step(run, step, (here, joined(moved), *rest), mine, order, place)
            return here, moving(found), *rest

        new = jax.vmap(each)(carry, work, order)
        going = step < steps

        def pick(a: Array, b: Array) -> Array:
            return jnp.where(going.reshape(-1, *[1] * (a.ndim - 1)), a, b)

        return jax.tree.map(pick, new, carry)

    params_, moved, _, loss = jax.lax.fori_loop(0, steps.max(), body, carry)
    buffers_ = jax.vmap(joined, axis_size=clients)(moved)
    return Done(params_, buffers_, loss / jnp.maximum(steps, 1))


def _moving_buffers(
    learner: Learner, params: PyTree, buffers: PyTree, x: Array
) -> tuple[Callable[[PyTree], list[Any]], Callable[[list[Any]], PyTree]]:
    """Of buffers those that training changes, and back to all of them.

    Seeds of sketches never change. So all clients have the same, and their examples are sketched
    together by what is drawn once.
    """
    leaves, treedef = jax.tree.flatten(buffers)

    def after(leaves: list[Any]) -> list[Any]:
        buffers = jax.tree.unflatten(treedef, leaves)
        return jax.tree.leaves(learner.apply(params, buffers, x, True)[1])

    traced = jax.make_jaxpr(after)(leaves).jaxpr
    moves = [new is not old for new, old in zip(traced.outvars, traced.invars, strict=True)]

    def moving(buffers: PyTree) -> list[Any]:
        return [leaf for leaf, moved in zip(jax.tree.leaves(buffers), moves, strict=True) if moved]

    def joined(moved: list[Any]) -> PyTree:
        rest = iter(moved)
        found = [next(rest) if m else leaf for leaf, m in zip(leaves, moves, strict=True)]
        return jax.tree.unflatten(treedef, found)

    return moving, joined
