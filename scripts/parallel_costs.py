"""What an update costs for ``scripts/reproduce parallel-stage``: time, memory, operations."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import parallel_variants as variants
from bench_step import CLASSES, INPUTS, program_bytes
from flax import nnx
from parallel_points import BASE, Point, network_of, points_along
from parallel_variants import WAYS
from reproducing import Row

from rosler_jax import Rule, sketchify
from rosler_jax.learner import split_state
from rosler_jax.models import mlp
from rosler_jax.optim import ares_bp, default_parallel

STAGE, ALONE, AFTER = "aRes-BP, parallel", "aRes-BP, parallel alone", "aRes-BP, successive"
KINDS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "chain": {},
    "low-rank": {"mode": "two-factor"},
    "seeded": {"mode": "seeded"},
    STAGE: {"mode": "ares"},
    ALONE: {"mode": "ares"},
    AFTER: {"mode": "ares"},
}
SECONDS = 0.12  # about how long one timed call takes


class Program(NamedTuple):
    """A compiled loop of steps: ``run(state, count) -> state``."""

    state: Any
    run: Callable[..., Any]
    facts: dict[str, Any]


def cost_points() -> dict[Point, list[str]]:
    """Where the cost is measured, and of what."""
    few = ["chain", STAGE, ALONE]
    found = {BASE: list(KINDS)}
    for rank in (4, 32):
        found[BASE._replace(rank=rank)] = ["low-rank", "seeded", *few]
    for factor in ("sketch", "batch", "depth"):
        for point in points_along(factor):
            found.setdefault(point, few)
    return found


def flags_up(params: Any) -> Any:
    """The parameters with the stage's flags constant, so that the other stage is no code."""

    def raised(path: Any, leaf: Any) -> Any:
        names = {getattr(entry, "key", None) for entry in path}
        return np.ones(leaf.shape, np.float32) if "parallel" in names else leaf

    return jax.tree_util.tree_map_with_path(raised, params)


def library_program(kind: str, point: Point) -> Program:
    """The loop of a training step, as the library's own."""
    rngs, options = nnx.Rngs(0), KINDS[kind]
    model = mlp(input_shape=(INPUTS,), outputs=CLASSES, hidden=tuple(point.hidden()), rngs=rngs)
    if options is not None:
        options = options | ({"sketch": point.sketch} if kind.startswith("aRes") else {})
        rules = [Rule("head", skip=True), Rule("*", point.rank, **options)]
        model, _ = sketchify(model, rules, rngs=rngs)
    graphdef, params, buffers = split_state(model)
    tx = optax.with_extra_args_support(optax.adam(1e-3))
    if kind == ALONE:
        tx = optax.with_extra_args_support(default_parallel())
    elif kind.startswith("aRes"):
        tx = ares_bp(tx, switch_step=10**9 if kind == STAGE else 1)

    def loss(p: Any, x: Any, y: Any) -> Any:
        out = nnx.merge(graphdef, flags_up(p) if kind == ALONE else p, buffers)(x)
        return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

    def step(carry: Any, x: Any, y: Any) -> Any:
        p, s = carry
        updates, s = tx.update(jax.grad(loss)(p, x, y), s, p)
        return optax.apply_updates(p, updates), s

    kept = variants.kept_bytes_an_example(
        lambda p, x: loss(p, x, jnp.zeros(len(x), jnp.int32)), params, INPUTS
    )
    made = compiled(lambda carry, key, x, y: step(carry, x, y), (params, tx.init(params)), point)
    return made._replace(facts=made.facts | {"kept": kept, "parameters": _size(params)})


def _size(params: Any) -> int:
    return sum(p.size for p in jax.tree.leaves(params))


def compiled(step: Callable[..., Any], state: Any, point: Point) -> Program:
    """A program of ``step(state, key, x, y)`` again and again on one batch, and its facts."""
    x = jax.random.normal(jax.random.key(0), (point.batch, INPUTS))
    y = jax.random.randint(jax.random.key(1), (point.batch,), 0, CLASSES)

    def many(state: Any, x: Any, y: Any, count: Any) -> Any:
        key = jax.random.key(2)
        body = lambda i, carry: step(carry, jax.random.fold_in(key, i), x, y)  # noqa: E731
        return jax.lax.fori_loop(0, count, body, state)

    made = jax.jit(many, donate_argnums=0).lower(state, x, y, jnp.int32(1)).compile()
    memory: Any = made.memory_analysis()
    work: Any = made.cost_analysis()
    facts = {
        "program_bytes": program_bytes(made),
        "temporary_bytes": int(memory.temp_size_in_bytes),
        "flops": float(work["flops"]),  # of a loop: its body, once
    }
    return Program(state, lambda state, count: made(state, x, y, jnp.int32(count)), facts)


def way_program(name: str) -> Program:
    """The loop of a way's updates by SGD, new bases included: of each, as many as share bases."""
    way, tx, net = WAYS[name], variants.sgd(1e-3), network_of(jax.random.key(0))
    every = way.every or 1
    carry = variants.enter(way, tx, jax.random.key(1), net)

    def step(carry: Any, key: Any, x: Any, y: Any) -> Any:
        batches = tuple(jnp.broadcast_to(a, (every, *a.shape)) for a in (x, y))
        return variants.updates(way, tx, carry, batches, key)

    kept = variants.kept_bytes_an_example(
        lambda p, x: variants.loss(way, p, carry.bases, x, jnp.zeros(len(x), jnp.int32)),
        carry.params,
        INPUTS,
    )
    trained = {k: v for k, v in carry.params.items() if k != "head"}
    made = compiled(step, carry, BASE)
    return made._replace(facts=made.facts | {"kept": kept, "parameters": _size(trained)})


def in_turn(
    programs: Mapping[str, Program], repeats: int, updates: Mapping[str, int] | None = None
) -> Row:
    """Milliseconds of an update, turn by turn, and the facts of every program."""
    states, counts = {}, {}
    for name, made in programs.items():  # the second call is past aRes-BP's switch, and warm
        state = jax.block_until_ready(made.run(jax.tree.map(jnp.copy, made.state), 2))
        start = time.perf_counter()
        states[name] = jax.block_until_ready(made.run(state, 5))
        counts[name] = max(2, int(5 * SECONDS / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _, (name, made) in itertools.product(range(repeats), programs.items()):
        start = time.perf_counter()
        states[name] = jax.block_until_ready(made.run(states[name], counts[name]))
        shared = (updates or {}).get(name, 1)
        times[name].append(1e3 * (time.perf_counter() - start) / counts[name] / shared)
    found = {name: made.facts | {"ms": times[name]} for name, made in programs.items()}
    return {"kinds": found}


def cost_row(point: Point, kinds: Sequence[str], repeats: int) -> Row:
    """Of the library's steps at a point."""
    programs = {kind: library_program(kind, point) for kind in kinds}
    return {"kind": "cost", **point._asdict(), **in_turn(programs, repeats)}


def way_cost_row(repeats: int) -> Row:
    """Of all ways at the base point."""
    programs = {name: way_program(name) for name in WAYS}
    shared = {name: way.every or 1 for name, way in WAYS.items()}
    return {"kind": "way cost", **in_turn(programs, repeats, shared)}


def ratios(kinds: Mapping[str, Any], name: str) -> list[float]:
    """Times of a kind over the chain's of the same turn."""
    return [a / b for a, b in zip(kinds[name]["ms"], kinds["chain"]["ms"], strict=True)]
