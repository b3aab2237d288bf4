"""Adapting a small model to new data in few bytes: seeded deltas, LoRA, the head alone.

    python scripts/bench_adapt.py --out runs/adapt                 # both tasks; resumable
    python scripts/bench_adapt.py --out runs/adapt --tasks cwru --seeds 1

Two tasks: bearings from motor load 0 to load 3 (CWRU, nine classes of faults; spectra of windows
of 512 samples, split in time; a perceptron 257-64-32-10), and handwriting from MNIST to
scikit-learn's 8 x 8 digits, enlarged (784-64-32-10). The base is trained on the first data of each,
a delta on the training split of the second. Numbers are trained with the bits that they take
(``rate_coded``), those of every method alike, over prices of a bit; the learning rate of each price
is the best of a grid by validation. Bytes are those of the delta's file.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rosler_jax import data, rate_coded
from rosler_jax._files import replace_text
from rosler_jax.data import cwru
from rosler_jax.delta import encode_delta, seeded_delta
from rosler_jax.models import mlp

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
HIDDEN, CLASSES = (64, 32), 10
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
PRICES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # nats of loss a bit
STEPS, BATCH, BITS = 600, 64, 4

Split = tuple[np.ndarray, np.ndarray]


class Task(NamedTuple):
    """Data to train a base on, and to adapt it to: training, validation, test."""

    base: tuple[Split, ...]
    new: tuple[Split, ...]


def cwru_loads() -> Task:
    """Spectra of load 0, and of load 3."""
    arrays = dict(np.load(SHARED / "cwru_12k_drive_end.npz"))
    recordings = cwru.recordings_of_arrays(arrays, SHARED / "cwru_12k_drive_end.npz") or []

    def of(load: int) -> tuple[Split, ...]:
        raw = cwru.split_windows(recordings, window=512, hop=256, features="fft", loads=[load])
        assert raw.validation is not None and raw.test is not None
        return tuple(
            (np.log(np.maximum(x, 1e-5)).astype(np.float32) / 2 + 2, y)
            for x, y in (raw.train, raw.validation, raw.test)
        )

    return Task(of(0), of(3))


def digits() -> Task:
    """MNIST, and scikit-learn's digits of 8 x 8 pixels enlarged to 24 x 24 in a frame."""
    from sklearn.datasets import load_digits

    raw = data.read(SHARED / "mnist")
    assert raw.test is not None

    def flat(x: Any) -> np.ndarray:
        return np.asarray(x, np.float32).reshape(len(x), -1) / 255

    x, y = flat(raw.train[0]), np.asarray(raw.train[1])
    base = ((x[:-6000], y[:-6000]), (x[-6000:], y[-6000:]), (flat(raw.test[0]), raw.test[1]))
    found = load_digits()
    images = np.kron(found.images / 16, np.ones((3, 3)))
    images = np.pad(images, ((0, 0), (2, 2), (2, 2))).reshape(len(images), -1).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    parts = np.split(order, [900, 1200])
    return Task(base, tuple((images[part], found.target[part]) for part in parts))


TASKS: dict[str, Callable[[], Task]] = {"cwru": cwru_loads, "digits": digits}


class Method(NamedTuple):
    """A delta's form, rank, numbers and weights."""

    form: str
    rank: int = 4
    k: int | None = None
    wrt: str = "*"


METHODS: dict[str, Method] = {
    **{f"full, {k} numbers": Method("full", k=k) for k in (32, 128, 512, 2048)},
    **{f"LoRA rank 1, {k} shared": Method("lora", 1, k) for k in (32, 128)},
    **{f"lora-xs rank 4, {k} shared": Method("lora-xs", 4, k) for k in (16, 32)},
    "lora-xs rank 4": Method("lora-xs"),
    "lora-xs rank 8": Method("lora-xs", 8),
    "sketched rank 4": Method("sketched"),
    "sketched rank 8": Method("sketched", 8),
    "seeded rank 4": Method("seeded"),
    "seeded rank 8": Method("seeded", 8),
    "vera rank 8": Method("vera", 8),
    "seeded-side rank 1": Method("seeded-side", 1),
    "LoRA rank 1": Method("lora", 1),
    "head alone": Method("full", wrt="head/kernel"),
}
"""Every method by name: a new one is one line here."""


def trained_base(task: Task, seed: int) -> Any:
    """A perceptron trained on the first data."""
    (x, y), _, _ = task.base
    build = functools.partial(mlp, input_shape=(x.shape[1],), outputs=CLASSES, hidden=HIDDEN)
    model = build(rngs=nnx.Rngs(seed))
    graphdef, state = nnx.split(model, nnx.Param)
    params, steps = nnx.to_pure_dict(state), 4000
    tx = optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=1e-2)
    given = jnp.asarray(x), jnp.asarray(y)

    def step(carry: Any, key: Any) -> Any:
        params, opt = carry
        at = jax.random.randint(key, (128,), 0, len(y))

        def loss(p: Any) -> Any:
            return _loss(nnx.merge(graphdef, p)(given[0][at]), given[1][at])

        updates, opt = tx.update(jax.grad(loss)(params), opt, params)
        return (optax.apply_updates(params, updates), opt), None

    keys = jax.random.split(jax.random.key(seed), steps)
    run = jax.jit(lambda c: jax.lax.scan(step, c, keys)[0])
    return graphdef, run((params, tx.init(params)))[0]


def _loss(logits: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def accuracy(graphdef: Any, params: Any, split: Split) -> Any:
    """Percent of a split."""
    logits = nnx.merge(graphdef, params)(jnp.asarray(split[0]))
    return 100 * (logits.argmax(-1) == jnp.asarray(split[1])).mean()


def adapted(task: Task, base: Any, method: Method, seed: int) -> list[dict[str, float]]:
    """Of each price: the best rate by validation; all members in one program."""
    graphdef, params = base
    form, rank, k, wrt = method
    delta = seeded_delta(params, k, seed, form=form, rank=rank, wrt=wrt)
    (x, y), validation, test = task.new
    given = jnp.asarray(x), jnp.asarray(y)

    def train(rate: Any, price: Any) -> Any:
        tx = optax.adam(optax.cosine_decay_schedule(1.0, STEPS))
        coded = rate_coded({"z": delta.start()}, bits=BITS)

        def loss(coded: Any, key: Any) -> Any:
            where, noise = jax.random.split(key)
            at = jax.random.randint(where, (BATCH,), 0, len(y))
            tuned = delta.apply(params, coded.weights["z"])
            logits = nnx.merge(graphdef, tuned)(given[0][at])
            return _loss(logits, given[1][at]) + price * coded.bits(noise)

        def step(carry: Any, key: Any) -> Any:
            coded, opt = carry
            updates, opt = tx.update(jax.grad(loss)(coded, key), opt)
            updates = jax.tree.map(lambda u: rate * u, updates)
            return (optax.apply_updates(coded, updates), opt), None

        keys = jax.random.split(jax.random.key(seed), STEPS)
        (coded, _), _ = jax.lax.scan(step, (coded, tx.init(coded)), keys)
        tuned = delta.apply(params, coded.weights["z"])
        scores = [accuracy(graphdef, tuned, split) for split in (validation, test)]
        return coded, scores

    grid = [(rate, price) for price in PRICES for rate in RATES]
    rates, prices = (jnp.asarray(column) for column in zip(*grid, strict=True))
    members, scores = jax.jit(jax.vmap(train))(rates, prices)
    rows = []
    for i, price in enumerate(PRICES):
        of = range(i * len(RATES), (i + 1) * len(RATES))
        best = max(of, key=lambda j: float(scores[0][j]))
        coded = jax.tree.map(lambda a, j=best: a[j], members)
        size = len(encode_delta(delta, coded.tensors["z"]))
        row = {"price": price, "rate": grid[best][0], "bytes": size, "numbers": delta.plan.k}
        rows.append(row | {"validation": float(scores[0][best]), "test": float(scores[1][best])})
    return rows


def main() -> None:
    """Trains what is not on disk, and prints tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/adapt"))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "adapt.json"
    held = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for name in options.tasks.split(","):
        task = TASKS[name]()
        for seed in range(options.seeds):
            base = trained_base(task, seed)
            splits = task.base[2], task.new[2]
            before = [float(accuracy(base[0], base[1], split)) for split in splits]
            held[f"{name} | base | {seed}"] = before
            for method, what in METHODS.items():
                key = f"{name} | {method} | {seed}"
                if key not in held:
                    print(f"  {key}", file=sys.stderr, flush=True)
                    held[key] = adapted(task, base, what, seed)
                    replace_text(path, json.dumps(held, indent=1))
        text = table(name, held, options.seeds)
        replace_text(options.out / f"{name}.md", text)
        draw(name, held, options.seeds, options.out / f"{name}.png")
        print(text, f"wrote {options.out / name}.md and .png", sep="\n", flush=True)


def points(name: str, method: str, held: dict[str, Any], seeds: int) -> list[dict[str, Any]]:
    """Means over seeds, price by price."""
    runs = [held[f"{name} | {method} | {seed}"] for seed in range(seeds)]
    found = []
    for rows in zip(*runs, strict=True):
        column = {key: [row[key] for row in rows] for key in rows[0]}
        spread = statistics.stdev(column["test"]) if seeds > 1 else 0.0
        found.append(
            {
                key: statistics.mean(column[key])
                for key in ("bytes", "validation", "test", "numbers")
            }
            | {"spread": spread, "most": max(column["bytes"])}
        )
    return found


def table(name: str, held: dict[str, Any], seeds: int) -> str:
    """Markdown: of each method, by validation, the best point at all and within some bytes."""
    bases = [held[f"{name} | base | {seed}"] for seed in range(seeds)]
    before, after = (statistics.mean(column) for column in zip(*bases, strict=True))
    lines = [
        f"{name}: base {before:.2f} % of its own data, {after:.2f} % of the new; {seeds} seeds",
        "| method | numbers | within 50 bytes | within 100 bytes | at all |",
        "|---|---:|---|---|---|",
    ]
    for method in METHODS:
        found = points(name, method, held, seeds)
        cells = []
        for most in (50, 100, 10**9):
            fitting = [point for point in found if point["most"] <= most]
            best = max(fitting, key=lambda point: point["validation"], default=None)
            cells.append(
                "-"
                if best is None
                else f"{best['test']:.2f} ± {best['spread']:.2f} ({best['bytes']:.0f})"
            )
        lines.append(f"| {method} | {found[0]['numbers']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(name: str, held: dict[str, Any], seeds: int, path: Path) -> None:
    """Accuracy against bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for i, method in enumerate(METHODS):
        found = sorted(points(name, method, held, seeds), key=lambda point: point["bytes"])
        style = ("o-", "s--", "^:")[i // 6]
        axes.plot([p["bytes"] for p in found], [p["test"] for p in found], style, label=method)
    axes.set(xscale="log", xlabel="bytes of the delta's file", ylabel="test accuracy, %")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
