"""aRes-BP's parallel stage: what it costs and gives, and whether a variant of it pays.

    scripts/reproduce parallel-stage                         # half an hour on two cores
    scripts/reproduce parallel-stage --only way,cost         # of some rows
    scripts/reproduce parallel-stage --fashion-mnist DIR     # that data set, too

A network 784-512-512-10 on the first 20,000 training images, 8 epochs in all, three seeds; one
thing at a time is changed. Every curve had four tries of its learning rates, the best by the mean
validation accuracy of its seeds is shown; the test split chooses nothing. The first part is the
library's own training (``rosler sweep``), the second the variants of ``parallel_variants``, in one
training loop of their own. Times are of alternating turns in one process, as ratios to the chain.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import parallel_variants as variants
import reproducing
from bench_step import CLASSES, INPUTS, program_bytes
from flax import nnx
from parallel_variants import WAYS
from reproducing import Row, grouped, mean, once, plus_minus, table, wanted

from rosler_jax import Rule, data, sketchify
from rosler_jax.learner import split_state
from rosler_jax.models import mlp
from rosler_jax.optim import ares_bp, default_parallel

NAME = "parallel-stage"
SETS = ("mnist", "fashion-mnist")


class Point(NamedTuple):
    """What is measured at: the base point, or one thing changed."""

    rank: int = 16
    length: float = 1.0  # of the parallel stage, in epochs
    sketch: str = "gaussian"
    batch: int = 128
    depth: int = 2  # hidden layers
    width: int = 512

    def hidden(self) -> list[int]:
        """The widths of the hidden layers."""
        return [self.width] * self.depth


BASE = Point()
VALUES: dict[str, list[Any]] = {
    "length": [0.1, 0.5, 1.0, 2.0, 4.0],
    "rank": [4, 8, 16, 32],
    "sketch": ["gaussian", "rademacher", "srht", "rows_uniform", "sparse_sign"],
    "batch": [32, 128, 512],
    "depth": [1, 2, 4, 8],
}
FIELDS = {"length": "parallel_epochs", "batch": "batch_size"}  # by other names in a run


def points_along(factor: str, values: Sequence[Any] | None = None) -> list[Point]:
    """The points of a factor's values."""
    return [BASE._replace(**{factor: v}) for v in values or VALUES[factor]]


# Accuracy: the library's own training.

ARES = "ares-bp"
RATES = [1.5e-3, 3e-3, 6e-3, 1.2e-2]
PAIRS = {"learning_rate": [3e-3, 6e-3], "parallel_learning_rate": [0.05, 0.2]}
EPOCHS = 8


class Curve(NamedTuple):
    """Trainings that one sweep does: of one method, along one factor."""

    data: str
    method: str
    factor: str
    values: tuple[Any, ...]


def _curves() -> Iterable[Curve]:
    for method in ("chain", "low-rank", "seeded", ARES):
        yield Curve("mnist", method, "rank", tuple(VALUES["rank"]))
    yield Curve("mnist", ARES, "length", (0.1, 0.5, 2.0, 4.0))
    yield Curve("mnist", ARES, "sketch", tuple(VALUES["sketch"][1:]))
    for method in ("chain", ARES):
        yield Curve("mnist", method, "batch", (32, 512))
        yield from (Curve("mnist", method, "depth", (depth,)) for depth in (1, 4, 8))
    yield Curve("fashion-mnist", "chain", "rank", (16,))
    yield Curve("fashion-mnist", ARES, "length", (0.1, 0.5, 1.0, 2.0, 4.0))


def settings(curve: Curve) -> dict[str, Any]:
    """A run at the base point."""
    found: dict[str, Any] = {
        "method": curve.method, "hidden": BASE.hidden(), "rank": BASE.rank,
        "batch_size": BASE.batch, "epochs": EPOCHS,
    }  # fmt: skip
    more = {"sketch": BASE.sketch, "parallel_epochs": BASE.length}
    return found | (more if curve.method == ARES else {})


def prefix(name: str, args: argparse.Namespace) -> str:
    """A file of the first training images, and of all test images."""
    path = Path(args.out) / "data" / f"{name}-{args.images}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = args.fashion_mnist if name == "fashion-mnist" else None
        raw = data.read(str(folder or reproducing.source(name, args.data)))
        names = "x_train", "y_train", "x_test", "y_test"
        arrays = [np.asarray(a) for a in (*raw.train, *raw.test)]
        arrays = [a[: args.images] for a in arrays[:2]] + arrays[2:]
        named: dict[str, Any] = dict(zip(names, arrays, strict=True))
        np.savez(path, **named)
    return str(path)


def trained(curve: Curve, args: argparse.Namespace) -> list[Row]:
    """The rows of a curve's sweep: tries, values and seeds."""
    spec = settings(curve) | {"data": prefix(curve.data, args)}
    axes: dict[str, Any] = {"seed": list(range(args.seeds))}
    axes |= PAIRS if curve.method == ARES else {"learning_rate": RATES}
    if curve.factor == "depth":
        spec["hidden"] = BASE._replace(depth=curve.values[0]).hidden()
    else:
        field = FIELDS.get(curve.factor, curve.factor)
        del spec[field]
        axes = {field: list(curve.values)} | axes
    words = [curve.data, curve.method, curve.factor, *curve.values[: curve.factor == "depth"]]
    folder = Path(args.out) / "sweeps" / "-".join(map(str, [*words, args.images, args.seeds]))
    return reproducing.sweep(spec | {"axes": axes}, folder, models=False)


def best_try(rows: Sequence[Row]) -> list[Row]:
    """The seeds of the learning rates that are the best on validation."""
    tries = grouped(rows, "learning_rate", *(["parallel_learning_rate"] * (_is_ares(rows))))

    def held(found: Sequence[Row]) -> float:
        done = all(row["status"] == "done" for row in found)
        return mean(row["validation_accuracy"] for row in found) if done else 0.0

    return max(tries.values(), key=held)


def _is_ares(rows: Sequence[Row]) -> bool:
    return rows[0].get("parallel_learning_rate") is not None


def accuracy_row(curve: Curve, value: Any, rows: Callable[[], Sequence[Row]]) -> Row:
    """What is kept of a value's tries, of all that the curve's sweep has."""
    field = FIELDS.get(curve.factor, curve.factor)
    mine = [row for row in rows() if curve.factor == "depth" or row[field] == value]
    found = best_try(mine)
    chosen = {name: found[0][name] for name in PAIRS if found[0].get(name) is not None}
    return {
        "kind": "accuracy", "data": curve.data, "method": curve.method,
        **BASE._replace(**{curve.factor: value})._asdict(),
        "rates": chosen,
        "validation": [100 * row["validation_accuracy"] for row in found],
        "test": [100 * row["test_accuracy"] for row in found],
        "file_bytes": mean(row["file_bytes"] for row in found),
    }  # fmt: skip


def accuracy_key(curve: Curve, value: Any) -> str:
    """Of a row."""
    return f"accuracy {curve.data} {curve.method} {curve.factor}={value}"


# Accuracy: the variants.

SGD_RATES = [0.03, 0.1, 0.3, 1.0]
STAGE_RATES = [0.05, 0.2]


class Plan(NamedTuple):
    """How a network of the variants is trained: by one way, or by one and then by the chain."""

    way: str
    optimizer: str
    first: int | None = None  # epochs of the way, before the chain by Adam; None for all

    def key(self) -> str:
        """Of its row."""
        how = f"all by {self.optimizer}" if self.first is None else f"{self.first} epoch, then Adam"
        return f"way {self.way} {how}".replace(",", "")  # --only has commas of its own

    def rates(self) -> list[tuple[float, ...]]:
        """The tries: the way's learning rate, and the chain's after it."""
        if self.first is not None:
            return list(itertools.product(STAGE_RATES, PAIRS["learning_rate"]))
        return [(rate,) for rate in (SGD_RATES if self.optimizer == "SGD" else RATES)]


PLANS = [
    *(Plan(way, "SGD") for way in WAYS),
    *(Plan(way, "Adam") for way in ("chain", "chain, sketched inputs", "chain, C fixed", "seeded")),
    *(Plan(way, "SGD", 1) for way in ("sketches", "adapted, every 35", "adapted, every update")),
]


def load(args: argparse.Namespace) -> variants.Data:
    """The prefix, split as the sweeps split it for their first seed."""
    found = data.load(prefix("mnist", args))

    def ready(x: Any) -> Any:
        flat = jnp.asarray(x, jnp.float32).reshape(len(x), -1)
        return (flat - jnp.asarray(found.mean)) / jnp.asarray(found.std)

    splits = (
        (found.train_x, found.train_y),
        (found.validation_x, found.validation_y),
        (found.test_x, found.test_y),
    )
    return variants.Data(*(a for x, y in splits for a in (ready(x), jnp.asarray(y))))


def network_of(key: Any) -> Any:
    """A new network at the base point."""
    return variants.new_network(key, INPUTS, BASE.hidden(), CLASSES, BASE.rank)


def program(plan: Plan, found: variants.Data) -> Callable[..., Any]:
    """The whole training: ``(key, net, rates) ->`` accuracies of validation and test, by epoch."""
    count = len(found.train_x) // BASE.batch
    way, chain = WAYS[plan.way], WAYS["chain"]
    run = partial(variants.train, data=found, batch=BASE.batch)

    def whole(key: Any, net: Any, rates: Any) -> Any:
        optimizer = {"SGD": variants.sgd, "Adam": variants.adam}[plan.optimizer]
        return run(way, optimizer(rates[0], EPOCHS * count), key, net, epochs=EPOCHS)[1]

    def staged(key: Any, net: Any, rates: Any) -> Any:
        first, rest = plan.first or 0, EPOCHS - (plan.first or 0)
        net, one = run(way, variants.sgd(rates[0]), key, net, epochs=first)
        _, two = run(chain, variants.adam(rates[1], rest * count), key, net, epochs=rest)
        return jax.tree.map(lambda *a: jnp.concatenate(a), one, two)

    return jax.jit(whole if plan.first is None else staged)


def variant_row(plan: Plan, found: Callable[[], variants.Data], seeds: int) -> Row:
    """The best try's accuracies at the end, and by epoch."""
    train, start = program(plan, found()), jax.jit(network_of)
    keys = [jax.random.split(jax.random.key(seed)) for seed in range(seeds)]
    tries = []
    for rates in plan.rates():
        histories = [train(k[1], start(k[0]), jnp.asarray(rates)) for k in keys]
        validation, test = (100 * np.asarray(h) for h in zip(*histories, strict=True))
        tries.append((rates, validation, test))
    rates, validation, test = max(tries, key=lambda t: t[1][:, -1].mean())
    return {
        "kind": "way", "way": plan.way, "optimizer": plan.optimizer, "first": plan.first,
        "rates": list(rates),
        "tries": {str(r): float(v[:, -1].mean()) for r, v, _ in tries},
        "validation": validation[:, -1].tolist(),
        "test": test[:, -1].tolist(),
        "by_epoch": test.mean(0).tolist(),
    }  # fmt: skip


# Cost.

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


# The section.


def measure(args: argparse.Namespace) -> None:
    """All rows that are asked for and not there yet."""
    for key, make in jobs(args).items():
        if wanted(key, args):
            once(args.out, key, make)


def jobs(args: argparse.Namespace) -> dict[str, Callable[[], Row]]:
    """Every row's key, and how it is measured."""
    found: dict[str, Callable[[], Row]] = {}
    for curve in _curves():
        if curve.data == "fashion-mnist" and args.fashion_mnist is None:
            continue
        rows = functools.cache(partial(trained, curve, args))
        for value in curve.values:
            found[accuracy_key(curve, value)] = partial(accuracy_row, curve, value, rows)
    for point, kinds in cost_points().items():
        words = " ".join(f"{k}={v}" for k, v in point._asdict().items() if k != "length")
        found[f"cost {words}"] = partial(cost_row, point, kinds, args.repeats)
    found["way cost"] = partial(way_cost_row, args.repeats)
    splits = functools.cache(partial(load, args))
    for plan in PLANS:
        found[plan.key()] = partial(variant_row, plan, splits, args.seeds)
    return found


def _those(rows: Sequence[Row], **fields: Any) -> list[Row]:
    return [row for row in rows if all(row.get(k) == v for k, v in fields.items())]


def _only(rows: Sequence[Row], **fields: Any) -> Row | None:
    return next(iter(_those(rows, **fields)), None)


def accuracy_of(rows: Sequence[Row], point: Point, method: str, name: str = "mnist") -> Row | None:
    """The row at a point; the length and the sketch matter to aRes-BP alone."""
    if method != ARES:
        point = point._replace(length=BASE.length, sketch=BASE.sketch)
    return _only(rows, kind="accuracy", data=name, method=method, **point._asdict())


def shown(row: Row | None) -> str:
    """A row's accuracy."""
    return plus_minus(row["test"]) if row else ""


def difference(one: Row | None, other: Row | None) -> str:
    """Of two rows that have the same seeds: mean, and the standard error of it, by seed."""
    if one is None or other is None:
        return ""
    apart = [a - b for a, b in zip(one["test"], other["test"], strict=True)]
    error = reproducing.spread(apart) / len(apart) ** 0.5
    return f"{mean(apart):+.2f} ± {error:.2f}"


def length_table(rows: Sequence[Row]) -> str:
    """Accuracy over the length of the stage."""
    lines = []
    for name in SETS:
        chain = accuracy_of(rows, BASE, "chain", name)
        if chain is None:
            continue
        lines.append([name, "0 (chain)", shown(chain), "", _rates(chain)])
        for point in points_along("length"):
            row = accuracy_of(rows, point, ARES, name)
            if row is not None:
                lines.append(
                    [name, f"{point.length:g}", shown(row), difference(row, chain), _rates(row)]
                )
    header = ("data", "parallel epochs", "test accuracy, %", "against the chain", "learning rates")
    return table(header, lines)


def _rates(row: Row) -> str:
    rates = row["rates"]
    both = [rates[k] for k in ("parallel_learning_rate", "learning_rate") if k in rates]
    return ", ".join(f"{rate:g}" for rate in both)


def factor_table(rows: Sequence[Row]) -> str:
    """Accuracy over everything else, and what a step of the stage costs there."""
    lines = []
    for factor in ("rank", "sketch", "batch", "depth"):
        for point in points_along(factor):
            value = getattr(point, factor)
            found = {m: accuracy_of(rows, point, m) for m in ("chain", "low-rank", "seeded", ARES)}
            if factor in ("batch", "depth") and value != getattr(BASE, factor):
                found |= {"low-rank": None, "seeded": None}
            lines.append(
                [f"{factor} {value}", *map(shown, found.values()),
                 difference(found[ARES], found["chain"]), *cost_cells(rows, point)]
            )  # fmt: skip
    header = (
        "", "chain", "low-rank", "seeded", "aRes-BP, 1 epoch", "aRes-BP less chain",
        "parallel step, x chain", "alone, x chain", "FLOPs, x chain", "program memory, x chain",
    )  # fmt: skip
    return table(header, lines)


def cost_cells(rows: Sequence[Row], point: Point) -> list[str]:
    """What the stage's step costs at a point, over the chain's."""
    row = _only(rows, kind="cost", **point._asdict())
    if row is None:
        return [""] * 4
    kinds = row["kinds"]
    over = [kinds[ALONE]["flops"] / kinds["chain"]["flops"]]
    over += [kinds[STAGE]["program_bytes"] / kinds["chain"]["program_bytes"]]
    return [
        *(ranged(ratios(kinds, name)) for name in (STAGE, ALONE)),
        *(f"{ratio:.2f}" for ratio in over),
    ]


def ranged(values: Sequence[float]) -> str:
    """The median, and the quartiles or so."""
    low, high = np.quantile(values, [0.25, 0.75])
    return f"{median(values):.2f} ({low:.2f} to {high:.2f})"


def cost_table(rows: Sequence[Row]) -> str:
    """Of all kinds of steps at the base point."""
    row = _only(rows, kind="cost", **BASE._asdict())
    if row is None:
        return ""
    lines = [
        [
            name, f"{fact['parameters']:,}", f"{median(fact['ms']):.2f}",
            ranged(ratios(row["kinds"], name)), f"{fact['flops'] / 1e6:.1f}",
            f"{fact['program_bytes'] / 1e6:.2f}", f"{fact['temporary_bytes'] / 1e6:.2f}",
            f"{fact['kept']:,}",
        ]
        for name, fact in row["kinds"].items()
    ]  # fmt: skip
    header = (
        "step", "parameters", "ms", "x chain (quartiles)", "MFLOP", "program memory, MB",
        "of it temporary", "kept for the way back, bytes an example",
    )  # fmt: skip
    return table(header, lines)


def way_table(rows: Sequence[Row]) -> str:
    """Every plan: accuracy, time, memory."""
    cost = _only(rows, kind="way cost")
    lines = []
    for plan in PLANS:
        row = _only(rows, kind="way", way=plan.way, optimizer=plan.optimizer, first=plan.first)
        if row is None:
            continue
        how = f"all by {plan.optimizer}"
        how = how if plan.first is None else f"{plan.first} epoch, then the chain by Adam"
        cells = ["", "", ""]
        if cost is not None:
            fact = cost["kinds"][plan.way]
            time_ratio = ranged(ratios(cost["kinds"], plan.way))
            cells = [time_ratio, f"{fact['kept']:,}", f"{fact['temporary_bytes'] / 1e6:.2f}"]
        rates = ", ".join(f"{r:g}" for r in row["rates"])
        lines.append([plan.way, how, shown(row), equal_time(plan, row, cost), rates, *cells])
    header = (
        "way", "trained", "test accuracy, %", "in the time of the chain's epochs, %",
        "learning rates", "update, x chain (SGD)", "kept for the way back, bytes an example",
        "temporary, MB",
    )  # fmt: skip
    return table(header, lines)


def equal_time(plan: Plan, row: Row, cost: Row | None) -> str:
    """The mean accuracy once the time is over that the chain's whole training takes."""
    if cost is None or plan.first is not None:
        return ""
    epochs = EPOCHS / median(ratios(cost["kinds"], plan.way))
    known = [0.0, *range(1, EPOCHS + 1)]
    if epochs > EPOCHS:
        return f"({row['by_epoch'][-1]:.2f}, after {EPOCHS} epochs)"
    return f"{np.interp(epochs, known, [10.0, *row['by_epoch']]):.2f}"


def picture(rows: Sequence[Row]) -> Any:
    """Length, factors, and the variants over time and memory."""
    made, axes = reproducing.figure(2, 2, width=5.6, height=4.0)
    draw_length(axes[0], rows)
    draw_cost(axes[1], rows)
    cost = _only(rows, kind="way cost")
    if cost is not None:
        draw_ways(axes[2], axes[3], rows, cost)
    return made


def draw_length(axes: Any, rows: Sequence[Row]) -> None:
    """Accuracy over the length of the stage."""
    for name, colour in zip(SETS, ("C0", "C1"), strict=True):
        chain = accuracy_of(rows, BASE, "chain", name)
        if chain is None:
            continue
        middle, width = mean(chain["test"]), reproducing.spread(chain["test"])
        axes.axhspan(
            middle - width, middle + width, alpha=0.2, color=colour, label=f"{name}, chain"
        )
        found = [(p.length, accuracy_of(rows, p, ARES, name)) for p in points_along("length")]
        there = [(length, row["test"]) for length, row in found if row is not None]
        axes.errorbar(
            [length for length, _ in there], [mean(t) for _, t in there],
            yerr=[reproducing.spread(t) for _, t in there], fmt="o-", capsize=3, color=colour,
            label=f"{name}, aRes-BP",
        )  # fmt: skip
    axes.set(xscale="log", xlabel=f"parallel epochs of {EPOCHS}", ylabel="test accuracy, %")
    axes.legend(fontsize=7)


def draw_cost(axes: Any, rows: Sequence[Row]) -> None:
    """The stage's step over the chain's, at all points."""
    found = [row for row in _those(rows, kind="cost") if STAGE in row["kinds"]]
    names = [_changed(row) for row in found]
    for offset, name in ((-0.2, STAGE), (0.2, ALONE)):
        heights = [median(ratios(row["kinds"], name)) for row in found]
        axes.barh(np.arange(len(found)) + offset, heights, 0.4, label=name)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), names, fontsize=7)
    axes.set(xlabel="time of a step, over the chain's")
    axes.legend(fontsize=7)


def _changed(row: Row) -> str:
    found = [f"{k} {row[k]}" for k, v in BASE._asdict().items() if row[k] != v]
    return ", ".join(found) or "base"


def draw_ways(left: Any, right: Any, rows: Sequence[Row], cost: Row) -> None:
    """Accuracy over time, and at the end over what is kept."""
    for row in _those(rows, kind="way", first=None):
        label = f"{row['way']} ({row['optimizer']})"
        ratio = median(ratios(cost["kinds"], row["way"]))
        style = "-" if row["optimizer"] == "SGD" else "--"
        errors = [100 - a for a in row["by_epoch"]]
        left.plot(ratio * np.arange(1, EPOCHS + 1), errors, style, marker=".", label=label)
        kept = cost["kinds"][row["way"]]["kept"]
        right.plot(kept, 100 - mean(row["test"]), "o" if style == "-" else "s")
        right.annotate(label, (kept, 100 - mean(row["test"])), fontsize=5)
    left.set(xlabel="time, in epochs of the chain", ylabel="test error, %", yscale="log")
    left.legend(fontsize=5)
    right.set(xlabel="kept for the way back, bytes an example", ylabel="test error, %")
    right.set(yscale="log")


ABOUT = """\
Measured: networks 784-512-512-10 (hidden layers sketched, head dense) on the first {images:,}
training images, {epochs} epochs in all, seeds {seeds}; the base point has rank 16, batch 128, one
epoch in the parallel stage, Gaussian sketches. All methods have four tries of their learning rates
(chain, low-rank, seeded: {rates}; aRes-BP: two of the successive stage times two of the parallel
one), chosen by the mean validation accuracy of all seeds. Accuracies of the first two tables are of
the packed 16-bit file, mean and standard deviation; differences are by seed, with their standard
error. Times are medians of turns in one process, as ratios to the chain's step of the same turn;
"alone" is a program of the parallel stage without the code of the other one, as a library could
compile it. FLOPs and memory are XLA's, of the compiled loop; "kept for the way back" is what JAX
saves between forward and backward. Low-rank and seeded have no stage and no sketch family.
"""

WAYS_ABOUT = """\
The variants (`scripts/parallel_variants.py`), in one plain training loop: the same start, batches,
momentum and clipping for all; SGD by a cosine from the best of {sgd}, Adam by one cycle to the best
of {adam}, or one epoch by the way at a constant rate and the chain by Adam for the rest. Test
accuracy of the last epoch. Where an update is slower than the chain's, the fourth column is what
was reached when the chain was done, read off the same run.
"""

CONCLUSIONS = ""
"""What the numbers say, as a list in Markdown."""


def section(rows: Sequence[Row], args: argparse.Namespace) -> str:
    """The text in BENCHMARKS.md."""
    about = ABOUT.format(
        images=args.images, epochs=EPOCHS, seeds=", ".join(map(str, range(args.seeds))),
        rates=", ".join(f"{r:g}" for r in RATES),
    )  # fmt: skip
    ways = WAYS_ABOUT.format(
        sgd=", ".join(f"{r:g}" for r in SGD_RATES), adam=", ".join(f"{r:g}" for r in RATES)
    )
    parts = [
        reproducing.provenance(f"scripts/reproduce {NAME}", rows),
        about,
        "How long the stage is:",
        length_table(rows),
        "Everything else, one thing at a time (the stage one epoch):",
        factor_table(rows),
        "A step at the base point:",
        cost_table(rows),
        ways,
        way_table(rows),
        f"![Accuracy, time and memory of the parallel stage](scripts/results/{NAME}.svg)",
    ]
    if CONCLUSIONS:
        parts.append("**What this says.**\n\n" + CONCLUSIONS)
    return "\n\n".join(part.strip("\n") for part in parts if part)


def main() -> int:
    """Measures what is missing, and writes the section."""
    parser = reproducing.parser_of(NAME, __doc__)
    parser.add_argument(
        "--images", type=int, default=20_000, metavar="N",
        help="first training images (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--fashion-mnist", type=Path, metavar="DIR", help="of the four idx files; default: left out"
    )
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="turns of each program")
    args = parser.parse_args()
    if args.list:
        print("\n".join(jobs(args)))
        return 0
    reproducing.begin(NAME, args)
    measure(args)
    rows = reproducing.rows_of(args.out)
    reproducing.finish(NAME, args, section(rows, args), picture(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
