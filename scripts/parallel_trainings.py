"""Accuracies for ``scripts/reproduce parallel-stage``: of the library's runs, and of variants."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import parallel_variants as variants
import reproducing
from parallel_points import BASE, FIELDS, VALUES, network_of
from parallel_variants import WAYS
from reproducing import Row, grouped, mean

from rosler_jax import data

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


def curves() -> Iterable[Curve]:
    """All of them."""
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
