"""A client as a process of its own: bytes of a round in, the bytes of its update out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax import data as datasets
from rosler_jax._files import replace_file
from rosler_jax._npy import DAMAGE
from rosler_jax.federated._travel import arrived, travelling
from rosler_jax.federated.bodies import LOST, Description, read_body
from rosler_jax.federated.compress import Packed, pack, unpack
from rosler_jax.federated.local import Work, make_local
from rosler_jax.federated.prepare import clients_of, federated_learner
from rosler_jax.federated.rounds import Rounds, client_key, make_rounds, round_keys
from rosler_jax.federated.wire import DOWN, UP, Header, check_header, decode, encode
from rosler_jax.fit import Arrays, run_key, task_of
from rosler_jax.hyper import hyper_of
from rosler_jax.run import load_data

if TYPE_CHECKING:
    from rosler_jax.learner import Learner

Examples = tuple[Any, Any]
Train = Callable[[Any, Any, Any], tuple[Any, Any]]
"""``(params, buffers, round) -> (params, buffers)``: what a client does with its own examples."""


class Node(NamedTuple):
    """A client that knows the run.

    Attributes:
      description: of the run.
      learner: the model.
      rounds: its pure functions.
      train: what it does in a round.
      params, buffers: the initial model.
      grid: ``v_0``, steps and scales of the way down; () where models come as they are.
      examples: how many it has.
    """

    description: Description
    learner: Learner
    rounds: Rounds
    train: Train
    params: Any
    buffers: Any
    grid: Any
    examples: int


class Held(NamedTuple):
    """What a client keeps between rounds.

    Attributes:
      round: of the model that it has; 0 for the initial one.
      steps: of it, on the grid.
      memory: what its messages have left out.
    """

    round: int
    steps: tuple[np.ndarray, ...]
    memory: tuple[np.ndarray, ...]


def make_node(
    description: Description,
    client: int,
    examples: Callable[[Description], Examples],
    train: Callable[[Description, Learner, Examples], Train] | None = None,
) -> Node:
    """A client of a run that it was told of.

    Args:
      description: what it was told.
      client: its number.
      examples: its inputs and targets, as the run's data are.
      train: makes what it does with them; None for the run's own training. A microcontroller's is
        :func:`rosler_jax.federated.device_training`.

    Raises:
      ValueError: for examples that are not of the run's kind.
    """
    config, federated = description.config, description.federated
    shapes = description.shapes
    learner = federated_learner(config, federated, shapes)
    rounds = make_rounds(config, federated, learner, shapes.examples, at_once=1)
    # Without the memory of all clients, which would be made here for nothing.
    state = jax.jit(lambda key: rounds.init(key)._replace(memory={}))(run_key(config.seed))
    x, y = examples(description)
    wanted, got = shapes.train_x.shape[1:], np.shape(x)[1:]
    if got != wanted or not len(x):
        raise ValueError(f"client {client}: examples of shape {got}; the run has {wanted}")
    own = train or (lambda *args: _trained_here(client, state.key, *args))
    return Node(
        description, learner, rounds, own(description, learner, (x, y)), state.params,
        state.buffers, state.grid, len(x),
    )  # fmt: skip


def _trained_here(
    client: int, words: Any, description: Description, learner: Learner, examples: Examples
) -> Train:
    """Training as a simulated client has it: the same numbers from the same model."""
    config, federated = description.config, description.federated
    local = make_local(config, federated, learner, description.shapes.examples)
    x, y = (None if part is None else jnp.asarray(part) for part in examples)
    assert x is not None
    arrays, hyper = Arrays(x, y, x[:1], None if y is None else y[:1]), hyper_of(config)

    @jax.jit
    def train(params: Any, buffers: Any, now: Any) -> tuple[Any, Any]:
        key = client_key(round_keys(words, now)[2], client)
        rows = jnp.arange(len(x), dtype=jnp.int32)
        work = Work(key[None], rows[None], jnp.array([len(x)], jnp.int32))
        done = local(params, buffers, work, now, arrays, hyper, description.units)
        return jax.tree.map(lambda leaf: leaf[0], (done.params, done.buffers))

    return lambda params, buffers, now: train(params, buffers, jnp.int32(now))


def make_work(
    client: int,
    examples: Callable[[Description], Examples],
    *,
    train: Callable[[Description, Learner, Examples], Train] | None = None,
    state: str | os.PathLike[str] | None = None,
) -> Callable[[bytes], bytes]:
    """The work of a client: what :func:`rosler_jax.federated.network.join` takes.

    Args:
      client: its number, 0 to clients - 1.
      examples: of the run's description, its inputs and targets.
      train: see :func:`make_node`.
      state: a file for what it keeps between rounds, so that it may be killed; None to keep it in
        memory alone.

    Returns:
      ``body -> reply``.

    Example:
      >>> from rosler_jax.federated.bodies import Body, write_body
      >>> work = make_work(3, own_examples((np.eye(20), np.arange(20) % 2)))
      >>> work(write_body(Body(None, 7, b"")))  # of a run that it was not told of
      b'lost'
    """
    known: dict[str, Any] = {}

    def work(data: bytes) -> bytes:
        body = read_body(data)
        if body.description is not None and known.get("description") != _words(body.description):
            known["node"] = make_node(body.description, client, examples, train)
            known["description"] = _words(body.description)
            known["held"] = _read(state, known["node"])
        if "node" not in known:
            return LOST
        node: Node = known["node"]
        held: Held = known["held"]
        if body.base not in (0, held.round):
            return LOST
        reply, held = play(node, client, held, body.base, body.message)
        known["held"] = held
        if state is not None:
            _write(Path(state), held)
        return reply

    return work


def make_secure_work(
    client: int,
    examples: Callable[[Description], Examples],
    *,
    train: Callable[[Description, Learner, Examples], Train] | None = None,
) -> Callable[[bytes], tuple[np.ndarray, float]]:
    """The work of a client whose update is masked: a vector, and the weight 1.

    How many examples a client has stays its secret; arguments as of :func:`make_work`.
    """
    known: dict[str, Any] = {}

    def work(data: bytes) -> tuple[np.ndarray, float]:
        body = read_body(data)
        if body.description is not None and known.get("description") != _words(body.description):
            known["node"] = make_node(body.description, client, examples, train)
            known["description"] = _words(body.description)
        node: Node = known["node"]
        _, out, _ = answer(node, begin_held(node), 0, body.message)
        vector = np.concatenate([np.ravel(v) for v in out.values])
        return vector, 1.0

    return work


def _words(description: Description) -> str:
    return repr((description.config, description.federated))


def play(node: Node, client: int, held: Held, base: int, message: bytes) -> tuple[bytes, Held]:
    """One round of a client: its reply as bytes, and what it keeps; see :func:`answer`."""
    now, out, held = answer(node, held, base, message)
    return encode(Header(UP, now, client, node.examples), out, node.rounds.forms[0]), held


def answer(node: Node, held: Held, base: int, message: bytes) -> tuple[int, Packed, Held]:
    """What a client makes of the server's message.

    Args:
      node: what it is.
      held: what it has kept.
      base: the round whose model the message is added to: that of ``held``, or 0.
      message: of the server.

    Returns:
      The round, its update, and what it keeps.

    Raises:
      MessageError: for a message that is none.
    """
    header, packed = decode(message, node.rounds.forms[1])
    check_header(header, DOWN, header.round, 0)
    steps: tuple[np.ndarray, ...] = ()
    sent = unpack(packed, node.rounds.down_like)
    if node.rounds.down.grid:
        before = held.steps if base else tuple(np.zeros_like(v) for v in held.steps)
        steps = tuple(n + q for n, q in zip(before, packed.values[: len(before)], strict=True))
        sent = {**sent, "params": node.rounds.on_grid(node.grid, steps)}
    params, buffers = arrived(sent, node.params, node.buffers)
    new = travelling(*node.train(params, buffers, header.round))
    found = node.rounds.message(new, sent)
    leaves, treedef = jax.tree.flatten(found)
    if held.memory:
        leaves = [x + e for x, e in zip(leaves, held.memory, strict=True)]
    found = jax.tree.unflatten(treedef, leaves)
    floats = node.rounds.forms[0].floats
    packed = pack(node.rounds.up, found, floats=floats)
    out = Packed(*(tuple(map(np.asarray, part)) for part in packed))
    memory: tuple[np.ndarray, ...] = ()
    if held.memory:
        gone = jax.tree.leaves(unpack(out, found))
        memory = tuple(np.asarray(x - s) for x, s in zip(leaves, gone, strict=True))
        if not all(np.isfinite(e).all() for e in memory):  # else it would be in all that follows
            memory = held.memory
    return header.round, out, Held(header.round, steps, memory)


def begin_held(node: Node) -> Held:
    """What a client has before its first round."""
    steps = tuple(np.zeros(np.shape(v), np.int32) for v in node.grid.steps) if node.grid else ()
    remembers = node.rounds.remembers
    like = jax.tree.leaves(node.rounds.up_like) if remembers else []
    return Held(0, steps, tuple(np.zeros(leaf.shape, np.float32) for leaf in like))


def _read(path: str | os.PathLike[str] | None, node: Node) -> Held:
    """What was kept; anew where there is nothing, or it is of another run."""
    fresh = begin_held(node)
    if path is None or not Path(path).exists():
        return fresh
    try:
        with np.load(path, allow_pickle=False) as file:
            steps = tuple(file[f"steps{k}"] for k in range(len(fresh.steps)))
            memory = tuple(file[f"memory{k}"] for k in range(len(fresh.memory)))
            found = Held(int(file["round"]), steps, memory)
    except DAMAGE as error:
        raise ValueError(f"{path}: holds no state of a client ({error}); delete it") from error
    same = jax.tree.map(np.shape, found[1:]) == jax.tree.map(np.shape, fresh[1:])
    return found if same else fresh


def _write(path: Path, held: Held) -> None:
    arrays: dict[str, Any] = {f"steps{k}": v for k, v in enumerate(held.steps)}
    arrays |= {f"memory{k}": v for k, v in enumerate(held.memory)}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, round=np.int64(held.round), **arrays)

    replace_file(path, write)


def own_examples(source: Any, **options: Any) -> Callable[[Description], Examples]:
    """A client's own data: the training split of a source, with the run's task.

    Args:
      source: as :func:`rosler_jax.data.read` takes it.
      **options: of the source.

    Example:
      >>> from rosler_jax.config import TrainConfig
      >>> from rosler_jax.federated import FederatedConfig
      >>> from rosler_jax.units import PLAIN
      >>> examples = own_examples((np.eye(20), np.arange(20) % 2))
      >>> x, y = examples(Description(TrainConfig(), FederatedConfig(), PLAIN, ()))
      >>> x.shape, y.shape
      ((16, 20), (16,))
    """

    def read(description: Description) -> Examples:
        task = task_of(description.config)
        raw = datasets.read(source, targets=task.targets, tokens=task.tokens, **options)
        x, y = raw.train
        return np.asarray(x), None if y is None else np.asarray(y)

    return read


def simulated_examples(client: int, data: Any = None) -> Callable[[Description], Examples]:
    """The examples of one of the clients that a simulation of the run has: for trying a network.

    Args:
      client: which.
      data: arrays in the place of the data that the run's config names.
    """

    def read(description: Description) -> Examples:
        dataset = load_data(description.config, data)
        clients = clients_of(dataset, description.federated)
        rows = clients.rows[client][: clients.counts[client]]
        y = None if dataset.train_y is None else dataset.train_y[rows]
        return np.asarray(dataset.train_x[rows]), y

    return read
