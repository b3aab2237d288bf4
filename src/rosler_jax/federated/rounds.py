r"""A round as pure functions: who is asked, what they answer, and what the server makes of it.

With ``w`` the server's weights and ``v`` those that the clients have (they differ by what rounding
has left of the way down), a round is::

    each asked client i:  w_i = what it trains from v;   x_i = send(w_i, v) + e_i
                          sends q_i = round(x_i), keeps e_i = x_i - q_i
    server:               m = aggregate(q_i),  change = receive(m),
                          w <- optimiser(w, -change);   sends d = round(w - v);   v <- v + d

All state is in :class:`FederatedState`; what is sent is :class:`~.compress.Packed`, so that between
the functions a message may be written as bytes, lost or garbled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rosler_jax.federated._grid import begin_grid, on_grid, sent_down
from rosler_jax.federated._spec import choose
from rosler_jax.federated._travel import arrived, travelling
from rosler_jax.federated.aggregation import Checked, aggregate, check_norms
from rosler_jax.federated.compress import (
    Compression,
    Packed,
    compression,
    entropy_bits,
    pack,
    unpack,
)
from rosler_jax.federated.exchanges import Exchange, exchange
from rosler_jax.federated.local import Done, Work, make_local
from rosler_jax.federated.optimizers import SERVERS
from rosler_jax.federated.wire import Form
from rosler_jax.fit import key_words, method_of
from rosler_jax.hyper import hyper_of
from rosler_jax.learner import KEYS
from rosler_jax.methods import Setting

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

    from rosler_jax.config import TrainConfig
    from rosler_jax.federated.config import FederatedConfig
    from rosler_jax.fit import Arrays
    from rosler_jax.hyper import Hyper
    from rosler_jax.learner import Learner
    from rosler_jax.units import Units

AT_ONCE = 32
"""Clients that are trained side by side on a CPU; those of a round all at once elsewhere."""


class FederatedState(NamedTuple):
    """Everything that a run needs to go on.

    Attributes:
      round: how many are done.
      key: words of the run's random key.
      params, buffers: the server's model, of which only what travels changes, and integers.
      weights: ``w``, what travels of it, by name.
      sent: ``v``, the same as the clients have it.
      opt_state: of the server's optimiser.
      exchange: what the server keeps of what travels.
      grid: where the way down is on a grid, ``(v_0, steps, scales)``: ``v = v_0 + steps scales``.
      memory: ``e``, a row a client: what its messages have left out; empty where nothing is.

    Example:
      >>> from rosler_jax.config import TrainConfig
      >>> from rosler_jax.federated import FederatedConfig
      >>> from rosler_jax.learner import make_learner
      >>> from rosler_jax.models import mlp
      >>> learner = make_learner(mlp, (12,), 3, options={"hidden": ()})
      >>> federated = FederatedConfig(clients=10)
      >>> rounds = make_rounds(TrainConfig(method="dense"), federated, learner, num_examples=100)
      >>> state = jax.eval_shape(rounds.init, jax.random.key(0, impl=KEYS))
      >>> jax.tree.map(jnp.shape, state.weights["params"])
      {'head/bias': (3,), 'head/kernel': (12, 3)}
      >>> jax.tree.map(jnp.shape, state.memory["params"])
      {'head/bias': (10, 3), 'head/kernel': (10, 12, 3)}
    """

    round: Array
    key: Array
    params: PyTree
    buffers: PyTree
    weights: PyTree
    sent: PyTree
    opt_state: Any
    exchange: Any
    grid: Any
    memory: PyTree


class Asked(NamedTuple):
    """Who is asked in a round.

    Attributes:
      clients: indices, ``(asked,)``.
      answers: which of them will answer.
      work: what each is to do.
    """

    clients: Int[Array, " asked"]
    answers: Bool[Array, " asked"]
    work: Work


class Answers(NamedTuple):
    """What the asked clients have, a row each.

    Attributes:
      packed: their messages.
      exact: the same before rounding, in one row, where messages are masked; else empty.
      memory: what they keep.
      buffers: of the first client that answers: counters and keys go on with it.
      loss: mean over its steps.
      bits: of information in a message.
    """

    packed: Packed
    exact: Any
    memory: PyTree
    buffers: PyTree
    loss: Float[Array, " asked"]
    bits: Float[Array, " asked"]


class Received(NamedTuple):
    """What the server made of a round's messages.

    Attributes:
      down: its own to all clients.
      bits: of information in that.
      checked: what it found of theirs.
      loss: mean of the clients whose messages count.
    """

    down: Packed
    bits: Float[Array, ""]
    checked: Checked
    loss: Float[Array, ""]


class Rounds(NamedTuple):
    """The pure functions of a run, and the forms of its messages.

    Attributes:
      init: ``key -> state``.
      begin: ``(params, buffers) -> state`` of a model that there is; its key is to be set.
      ask: ``(state, rows, counts) -> Asked``.
      answer: ``(state, asked, arrays, hyper, units) -> Answers``.
      receive: ``(state, asked, answers, messages, came) -> (state, Received)``: of messages as
        they came, ``(asked, numbers)``, and which came.
      unpacked: packed messages, a row each, as ``messages`` of ``receive``.
      model: ``state -> (params, buffers)`` as the clients have them.
      message: ``(new, sent)``, what travels of a client after and before, to its message.
      on_grid: ``(grid, steps)``, to the parameters that travel.
      up, down: compressions of both ways.
      up_like, down_like: shapes of one message.
      forms: of messages up and down.
      remembers: whether clients keep what rounding leaves.
    """

    init: Callable[..., FederatedState]
    begin: Callable[..., FederatedState]
    ask: Callable[..., Asked]
    answer: Callable[..., Answers]
    receive: Callable[..., tuple[FederatedState, Received]]
    unpacked: Callable[[Packed], Any]
    model: Callable[[FederatedState], tuple[PyTree, PyTree]]
    message: Callable[[PyTree, PyTree], PyTree]
    on_grid: Callable[[Any, Any], PyTree]
    up: Compression
    down: Compression
    up_like: PyTree
    down_like: PyTree
    forms: tuple[Form, Form]
    remembers: bool


def make_rounds(
    config: TrainConfig,
    federated: FederatedConfig,
    learner: Learner,
    num_examples: int,
    *,
    settled: bool = False,
    keeps_memory: bool = True,
    mesh: jax.sharding.Mesh | None = None,
    at_once: int | None = None,
) -> Rounds:
    """Builds the functions of a federated run.

    Args:
      config: what a client trains.
      federated: the run.
      learner: the model.
      num_examples: of all clients.
      settled: for what follows the parallel stage of aRes-BP.
      keeps_memory: whether the state holds what rounding leaves of the clients' messages; False
        where they keep it themselves.
      mesh: of devices, over whose first axis the clients of a round are spread; None for one.
      at_once: clients that are trained side by side; None for what suits the device.

    Raises:
      ValueError: for an exchange that the model does not have.

    Example:
      >>> from rosler_jax.config import TrainConfig
      >>> from rosler_jax.federated import FederatedConfig
      >>> from rosler_jax.learner import make_learner
      >>> from rosler_jax.models import mlp
      >>> learner = make_learner(mlp, (12,), 3, options={"hidden": (8,)})
      >>> federated = FederatedConfig(clients=10, participation=0.3)
      >>> rounds = make_rounds(TrainConfig(method="dense"), federated, learner, num_examples=100)
      >>> rounds.forms[0].shapes, rounds.remembers
      ([(3,), (8, 3), (8,), (12, 8)], True)
    """
    up, down = compression(federated.upload, "upload"), compression(federated.download, "download")
    if federated.secure:
        up = Compression()
    params_like, buffers_like = jax.eval_shape(learner.init, jax.random.key(0, impl=KEYS))
    like = travelling(params_like, buffers_like)
    traded = exchange(federated.exchange, like["params"], learner.views, federated.seed)
    up_like = jax.eval_shape(lambda w: _sent_of(traded, w, w), like)
    floats = len(jax.tree.leaves(like["statistics"]))  # which rounding would make negative
    setting = Setting(config, hyper_of(config), learner, 0)
    project = method_of(config).project if not settled else lambda params, setting: params
    run = _Run(
        federated, learner, traded, up, down, up_like, floats,
        remembers=bool(up.levels) and not traded.steps and keeps_memory,
        server=_server(federated),
        project=lambda params: project(params, setting),
        local=make_local(config, federated, learner, num_examples, settled=settled),
        at_once=at_once or (AT_ONCE if jax.default_backend() == "cpu" else federated.asked),
        mesh=mesh,
    )  # fmt: skip
    bound = functools.partial
    return Rounds(
        init=bound(_init, run),
        begin=bound(_begin, run),
        ask=bound(_ask, run),
        answer=bound(_answer, run),
        receive=bound(_receive, run),
        unpacked=lambda packed: _flat_rows(_unpack_rows(packed, up_like)),
        model=_model,
        message=lambda new, sent: _sent_of(traded, new, sent),
        on_grid=jax.jit(on_grid),
        up=up,
        down=down,
        up_like=up_like,
        down_like=like,
        forms=_forms(up, down, up_like, like, floats),
        remembers=run.remembers,
    )


class _Run(NamedTuple):
    """What the functions of a run have in common.

    Attributes:
      federated, learner: arguments of :func:`make_rounds`.
      traded: what is exchanged.
      up, down: how messages are packed.
      up_like: a message's arrays.
      floats: how many of its leaves are statistics.
      remembers: whether the state holds what rounding leaves.
      server: optimiser of the means.
      project: the end of an update of all parameters.
      local: training of clients.
      at_once: clients that are trained side by side.
      mesh: of devices.
    """

    federated: FederatedConfig
    learner: Learner
    traded: Exchange
    up: Compression
    down: Compression
    up_like: PyTree
    floats: int
    remembers: bool
    server: optax.GradientTransformation
    project: Callable[[PyTree], PyTree]
    local: Callable[..., Done]
    at_once: int
    mesh: jax.sharding.Mesh | None


def _init(run: _Run, key: Key[Array, ""]) -> FederatedState:
    key_model, key_run = jax.random.split(key)
    key_run = jax.random.fold_in(key_run, run.federated.seed % 2**32)
    return _begin(run, *run.learner.init(key_model))._replace(key=key_words(key_run))


def _begin(run: _Run, params: PyTree, buffers: PyTree) -> FederatedState:
    weights = travelling(params, buffers)
    zeros = lambda x: jnp.zeros((run.federated.clients, *x.shape), jnp.float32)  # noqa: E731
    return FederatedState(
        round=jnp.zeros((), jnp.int32),
        key=jnp.zeros((2,), jnp.uint32),
        params=params,
        buffers=buffers,
        weights=weights,
        sent=weights,
        opt_state=run.server.init(weights["params"]),
        exchange=run.traded.init(weights["params"]),
        grid=begin_grid(run.down, weights["params"]),
        memory=jax.tree.map(zeros, run.up_like) if run.remembers else {},
    )


def _ask(run: _Run, state: FederatedState, rows: Array, counts: Array) -> Asked:
    choose_, drop, work = round_keys(state.key, state.round)
    chosen = jax.random.permutation(choose_, run.federated.clients)[: run.federated.asked]
    answers = jax.random.uniform(drop, (run.federated.asked,)) >= run.federated.drop
    # Like goes with like: clients that are trained side by side wait for one another.
    chosen = chosen[jnp.argsort(-counts[chosen])]
    keys = jax.vmap(lambda client: client_key(work, client))(chosen)
    counts = jnp.where(answers, counts[chosen], 0)
    return Asked(chosen, answers, Work(keys, rows[chosen], counts))


def _answer(
    run: _Run, state: FederatedState, asked: Asked, arrays: Arrays, hyper: Hyper, units: Units
) -> Answers:
    params, buffers = _model(state)
    done = _in_chunks(
        lambda work: run.local(params, buffers, work, state.round, arrays, hyper, units),
        asked.work, run.at_once, run.mesh,
    )  # fmt: skip
    new = jax.vmap(travelling)(done.params, done.buffers)
    messages = jax.vmap(lambda w: _sent_of(run.traded, w, state.sent))(new)
    if run.remembers:
        mine = jax.tree.map(lambda e: e[asked.clients], state.memory)
        messages = jax.tree.map(jnp.add, messages, mine)
    packed = jax.vmap(lambda message: pack(run.up, message, floats=run.floats))(messages)
    memory: PyTree = {}
    if run.remembers:
        kept = jax.tree.map(jnp.subtract, messages, _unpack_rows(packed, run.up_like))
        # Who diverged keeps what it had: NaN would be in all that it sends from now on.
        told = asked.answers & jnp.isfinite(_flat_rows(kept)).all(1)
        memory = jax.tree.map(lambda new, old: _where(told, new, old), kept, mine)
    bits = jax.vmap(lambda p: entropy_bits(p, run.up.levels, run.floats))(packed)
    one = jnp.argmax(asked.answers)
    first = jax.tree.map(
        lambda x, old: jnp.where(asked.answers.any(), x[one], old), done.buffers, buffers
    )
    exact = _flat_rows(messages) if run.federated.secure else ()
    return Answers(packed, exact, memory, first, done.loss, bits)


def _receive(
    run: _Run, state: FederatedState, asked: Asked, answers: Answers, messages: Array,
    came: Bool[Array, " asked"],
) -> tuple[FederatedState, Received]:  # fmt: skip
    most = run.federated.reject_norm or None
    checked = check_norms(messages, came, most)
    combined = _combined(run.federated, state, messages, asked.work.counts, checked)
    message = _unflat(combined, run.up_like)
    change, kept = run.traded.receive(message["params"], state.sent["params"], state.exchange)
    any_came = checked.valid.any() if not run.federated.secure else came.any()
    # Of the server's own weights, so that what rounding has left of the way down is sent later.
    gradient = jax.tree.map(jnp.negative, change)
    updates, opt_state = run.server.update(gradient, state.opt_state, state.weights["params"])
    new = optax.apply_updates(state.weights["params"], updates)
    whole, _ = arrived({"params": new, "statistics": {}}, state.params, state.buffers)
    new = travelling(run.project(whole), {})["params"]
    statistics = jax.tree.map(jnp.add, state.weights["statistics"], message["statistics"])
    weights = {"params": new, "statistics": statistics}
    before = state.weights, state.opt_state, state.exchange
    weights, opt_state, kept = jax.tree.map(
        lambda a, b: jnp.where(any_came, a, b), (weights, opt_state, kept), before
    )
    packed, sent, grid = sent_down(run.down, state.sent, state.grid, weights, run.floats)
    memory = state.memory
    if run.remembers:
        memory = jax.tree.map(lambda e, new: e.at[asked.clients].set(new), memory, answers.memory)
    counted = came if run.federated.secure else checked.valid & came
    loss = jnp.where(counted, answers.loss, 0.0).sum() / jnp.maximum(counted.sum(), 1)
    new_state = state._replace(
        round=state.round + 1,
        buffers=_integers_of(answers.buffers, state.buffers),
        weights=weights,
        sent=sent,
        opt_state=opt_state,
        exchange=kept,
        grid=grid,
        memory=memory,
    )
    bits = entropy_bits(packed, run.down.levels, run.floats)
    return new_state, Received(packed, bits, checked, loss)


def _model(state: FederatedState) -> tuple[PyTree, PyTree]:
    return arrived(state.sent, state.params, state.buffers)


def _unpack_rows(packed: Packed, like: PyTree) -> PyTree:
    return jax.vmap(lambda p: unpack(p, like))(packed)


def round_keys(words: Array, now: Any) -> Key[Array, "3"]:
    """Keys of a round: to choose clients by, to drop them by, and for their work."""
    key = jax.random.fold_in(jax.random.wrap_key_data(words, impl=KEYS), now)
    return jax.random.split(key, 3)


def client_key(work: Key[Array, ""], client: Any) -> UInt32[Array, "2"]:
    """Words of a client's key in a round, which it can make by itself."""
    return jax.random.key_data(jax.random.fold_in(work, client))


def _sent_of(traded: Exchange, new: PyTree, old: PyTree) -> PyTree:
    """What travels of a client: of its parameters by the exchange, of its statistics the change."""
    statistics = jax.tree.map(jnp.subtract, new["statistics"], old["statistics"])
    return {"params": traded.send(new["params"], old["params"]), "statistics": statistics}


def _forms(
    up: Compression, down: Compression, up_like: PyTree, like: PyTree, floats: int
) -> tuple[Form, Form]:
    shapes = [[tuple(x.shape) for x in jax.tree.leaves(tree)] for tree in (up_like, like)]
    grid = (np.float32(1),) * (len(shapes[1]) - floats) if down.grid else ()
    return Form(shapes[0], up.levels, (), floats), Form(shapes[1], down.levels, grid, floats)


def _server(federated: FederatedConfig) -> optax.GradientTransformation:
    make, rate = choose("server", federated.server, SERVERS)
    return make(rate)


def _combined(
    federated: FederatedConfig, state: FederatedState, messages: Array, counts: Array,
    checked: Checked,
) -> Array:  # fmt: skip
    """One message of many; clipped and with noise, where that is asked for."""
    weights = counts.astype(jnp.float32)
    if federated.secure:  # the first row is the mean already: nobody saw the others
        return messages[0]
    if not federated.clip:
        return aggregate(federated.aggregate, messages, weights, checked.valid)
    factor = jnp.minimum(1.0, federated.clip / jnp.maximum(checked.norms, 1e-30))
    clipped = jnp.where(checked.valid[:, None], messages, 0.0) * factor[:, None]
    if federated.aggregate.partition(":")[0] != "mean":
        found = aggregate(federated.aggregate, clipped, weights, checked.valid)
    else:  # by the number that was asked, which says nothing of who came
        found = clipped.sum(0) / federated.asked
    key = jax.random.wrap_key_data(state.key, impl=KEYS)
    key = jax.random.fold_in(jax.random.fold_in(key, state.round), 7)
    deviation = federated.noise * federated.clip / federated.asked
    return found + deviation * jax.random.normal(key, found.shape)


def _in_chunks(
    function: Callable[[Work], Any], work: Work, width: int, mesh: jax.sharding.Mesh | None
) -> Any:
    """Applies a function of clients to so many at once, and one chunk after the other."""
    count = len(work.counts)
    chunks = -(-count // width)
    if mesh is not None:
        axis = mesh.axis_names[0]
        chunks, width = 1, -(-count // mesh.shape[axis]) * mesh.shape[axis]
    else:
        width = -(-count // chunks)
    more = chunks * width - count

    def padded(x: Array) -> Array:
        return jnp.concatenate([x, jnp.zeros((more, *x.shape[1:]), x.dtype)]) if more else x

    work = jax.tree.map(padded, work)
    if mesh is not None:  # the compiler spreads what follows, also on a mesh of explicit axes
        auto = jax.sharding.Mesh(mesh.devices, mesh.axis_names)
        spread = jax.sharding.NamedSharding(auto, jax.sharding.PartitionSpec(axis))
        work = jax.lax.with_sharding_constraint(work, spread)
    if chunks == 1:
        done = function(work)
    else:
        split = jax.tree.map(lambda x: x.reshape(chunks, width, *x.shape[1:]), work)
        done = jax.lax.map(function, split)
        done = jax.tree.map(lambda x: x.reshape(chunks * width, *x.shape[2:]), done)
    return jax.tree.map(lambda x: x[:count], done)


def _flat_rows(messages: PyTree) -> Float[Array, "clients numbers"]:
    leaves = jax.tree.leaves(messages)
    return jnp.concatenate([x.reshape(len(x), -1).astype(jnp.float32) for x in leaves], axis=1)


def _unflat(row: Float[Array, " numbers"], like: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(like)
    sizes = [int(np.prod(leaf.shape, dtype=int)) for leaf in leaves]
    parts = jnp.split(row, np.cumsum(sizes)[:-1])
    shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(treedef, shaped)


def _where(mask: Bool[Array, " n"], a: Array, b: Array) -> Array:
    return jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def _integers_of(new: PyTree, old: PyTree) -> PyTree:
    """Counters and keys as the first client left them; seeds of sketches never change."""
    return jax.tree.map(
        lambda a, b: b if jnp.issubdtype(b.dtype, jnp.floating) else a.astype(b.dtype), new, old
    )
