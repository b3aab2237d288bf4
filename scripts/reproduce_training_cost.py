"""Loss and accuracy against steps, time, operations and memory: the paper's Fig. 2.

    scripts/reproduce training-cost                 # 50 trials of each method: an hour on two cores
    scripts/reproduce training-cost --seeds 5 --epochs 20

A network 784-512-512-10 on MNIST by each method, all trials of all methods one sweep. Curves have a
point every 105 updates of 128 examples: mean training loss since the last, and accuracy on the
6,000 validation images. A method's time is its updates times the median of a step, all methods in
turns in one process (what training costs when nothing else runs); operations (of products and
elementwise, not of LAPACK's factorisations) and bytes are XLA's own of a compiled step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import reproducing
from bench_step import program_bytes
from reproducing import Row, once, plus_minus, table

from rosler_jax.config import TrainConfig
from rosler_jax.fit import Epoch, TrainState, learner_of, make_fit, run_key, settle
from rosler_jax.hyper import hyper_of
from rosler_jax.units import Units

NAME = "training-cost"
OWN = "scripts/training_methods.py"
BASE: dict[str, Any] = {
    "hidden": [512, 512], "rank": 16, "in_sketch": 128, "batch_size": 128, "epochs": 10,
    "epoch_examples": 105 * 128, "parallel_epochs": 2.0,
}  # fmt: skip
METHODS = {
    "dense": "dense", "chain": "chain", "low-rank": "low-rank", "aRes-BP": "ares-bp",
    "seeded": "seeded", "restrict-rank": f"{OWN}:restrict_rank",
    "dense, sketched Adam": f"{OWN}:sketched_adam",
}  # fmt: skip
STEPS = 50  # of a timed call
PARALLEL = "aRes-BP, parallel"


class Program(NamedTuple):
    """Compiled steps of a method: so many in one call, and what one takes."""

    many: Callable[[Any], Any]
    carry: Any
    flops: float
    bytes: int


def programs() -> dict[str, Program]:
    """Of every method; of aRes-BP one a stage."""
    found = {name: program(config_of(method)) for name, method in METHODS.items()}
    found[PARALLEL] = found.pop("aRes-BP")
    found["aRes-BP"] = program(config_of("ares-bp"), settled=True)
    return found


def config_of(method: str) -> TrainConfig:
    """A run's config, without data."""
    return TrainConfig(**BASE | {"method": method})


class _Like(NamedTuple):
    train_x: Any
    num_classes: int


def program(config: TrainConfig, settled: bool = False) -> Program:
    """Steps of a config on one batch again and again, as ``rosler train`` takes them."""
    x = jax.random.uniform(jax.random.key(0), (config.batch_size, 784))
    y = jax.random.randint(jax.random.key(1), (config.batch_size,), 0, 10)
    learner = learner_of(config, _Like(x, 10))
    functions = make_fit(config, learner, 54_000)
    state = functions.init(run_key(0))
    if settled:
        learner, functions, convert = settle(config, learner, 54_000)
        state = convert(state)

    def steps(carry: Any, state: TrainState, count: int) -> Any:
        batches = Epoch(
            jnp.zeros((count, config.batch_size), jnp.int32),
            jax.random.split(jax.random.key(2), count),
        )
        given = (carry, lambda order: (x, y), batches, state, hyper_of(config), Units())
        return functions.parts.steps(*given)[0]

    compiled = jax.jit(steps, static_argnames="count", donate_argnums=0)
    carry = state.params, state.buffers, state.opt_state
    carry = jax.tree.map(jnp.copy, carry)
    one = compiled.lower(carry, state, count=1).compile()
    many = compiled.lower(carry, state, count=STEPS).compile()
    analysis = one.cost_analysis() or {}
    return Program(
        lambda c: many(c, state), carry, float(analysis.get("flops", 0)), program_bytes(one)
    )


def costs(repeats: int = 11) -> Row:
    """Milliseconds, operations and bytes of a step of each method, all in turns."""
    found = programs()
    carries = {name: jax.block_until_ready(p.many(p.carry)) for name, p in found.items()}
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(repeats):
        for name, p in found.items():
            start = time.perf_counter()
            carries[name] = jax.block_until_ready(p.many(carries[name]))
            times[name].append(1e3 * (time.perf_counter() - start) / STEPS)
    dense = found["dense"].flops
    return {
        "steps": {
            name: {
                "milliseconds": statistics.median(t),
                "fastest": min(t),
                "slowest": max(t),
                "ratios": [a / b for a, b in zip(times["dense"], t, strict=True)],
                # A restriction is a tenth of the steps; XLA counts the branch that costs more.
                "flops": (9 * dense + found[name].flops) / 10
                if name == "restrict-rank"
                else found[name].flops,
                "bytes": found[name].bytes,
            }
            for name, t in times.items()
        }
    }


def key_of(name: str, args: argparse.Namespace) -> str:
    """Of a method's row; with what was shortened, so that it is not taken for the whole."""
    return f"trials/{name}/{args.seeds} of {args.epochs} points"


def trials(args: argparse.Namespace) -> None:
    """All trials of all methods: one sweep; a row a method."""
    done = {row["key"] for row in reproducing.rows_of(args.out)}
    if all(key_of(name, args) in done for name in METHODS):
        return
    spec = {"data": reproducing.source("mnist", args.data), **BASE, "epochs": args.epochs}
    axes = {"method": list(METHODS.values()), "seed": list(range(args.seeds))}
    folder = args.out / f"sweep-{args.seeds}-{args.epochs}"
    found = reproducing.sweep({**spec, "axes": axes}, folder, models=False)
    for name, method in METHODS.items():
        members = [row for row in found if row["method"] == method]

        def measure(name: str = name, members: list[Row] = members) -> Row:
            good = [row for row in members if row["status"] == "done"]
            return {
                "method": name,
                "trials": len(members),
                "failed": len(members) - len(good),
                "loss": [row["loss_curve"] for row in good],
                "accuracy": [[100 * v for v in row["curve"]] for row in good],
                "test": [100 * row["test_accuracy"] for row in good],
                "bytes": good[0]["file_bytes"] if good else None,
            }

        once(args.out, key_of(name, args), measure)


def axis(row: Row, steps: dict[str, Any], by: str) -> np.ndarray:
    """What the points of a method's curves have taken so far: steps, seconds or operations."""
    count = np.shape(row["loss"])[1]
    each, name = BASE["epoch_examples"] // BASE["batch_size"], row["method"]
    if by == "updates":
        return each * np.arange(1, count + 1)
    unit = {"seconds": ("milliseconds", 1e-3), "operations": ("flops", 1.0)}[by]
    cost = np.full(count, steps[name][unit[0]])
    if name == "aRes-BP":
        cost[: int(BASE["parallel_epochs"])] = steps[PARALLEL][unit[0]]
    return np.cumsum(each * cost * unit[1])


def draw(rows: list[Row], steps: dict[str, Any]) -> Any:
    """Medians with bands from the 10th to the 90th percentile of the trials."""
    made, axes = reproducing.figure(4, 2, width=4.2, height=3.4)
    for i, row in enumerate(rows):
        for line, what in enumerate(("loss", "accuracy")):
            curves = np.array(row[what])
            low, middle, high = np.percentile(curves, (10, 50, 90), axis=0)
            for column, by in enumerate(("updates", "seconds", "operations")):
                ax, x = axes[4 * line + column], axis(row, steps, by)
                ax.plot(x, middle, color=f"C{i}", label=row["method"], linewidth=1)
                ax.fill_between(x, low, high, color=f"C{i}", alpha=0.2, linewidth=0)
                ax.set(xlabel=by, xscale="log" if column else "linear")
            ax, last = axes[4 * line + 3], curves[:, -1]
            ax.errorbar(
                steps[row["method"]]["bytes"] / 1e6, last.mean(), last.std(), fmt="o", capsize=2,
                color=f"C{i}",
            )  # fmt: skip
            ax.set(xlabel="memory of a step, MB", xscale="log")
    for line, (label, limits) in enumerate(
        (("loss", (0, 1)), ("validation accuracy, %", (85, 99)))
    ):
        for ax in axes[4 * line : 4 * line + 4]:
            ax.set(ylabel=label, ylim=limits)
            ax.grid(alpha=0.3)
    axes[0].legend(fontsize=6)
    return made


def until(row: Row, steps: dict[str, Any], by: str, level: float) -> float | None:
    """What the median trial takes to an accuracy; None if it does not get there."""
    middle = np.median(np.array(row["accuracy"]), axis=0)
    over = np.flatnonzero(middle >= level)
    return float(axis(row, steps, by)[over[0]]) if over.size else None


def lines_of(rows: list[Row], steps: dict[str, Any], level: float) -> str:
    """The table."""
    header = [
        "method", "validation, %, at the end", "test, %", "a step, ms (fastest to slowest)",
        "faster than dense", "operations a step, M", "memory of a step, MB",
        f"updates to {level:g} %", "seconds", "operations, G",
    ]  # fmt: skip
    lines = []
    for row in rows:
        cost = steps[row["method"]]
        reached = {by: until(row, steps, by, level) for by in ("updates", "seconds", "operations")}
        whole = "never" if reached["updates"] is None else f"{reached['updates']:,.0f}"
        lines.append([
            row["method"], plus_minus(curve[-1] for curve in row["accuracy"]),
            plus_minus(row["test"]),
            f"{cost['milliseconds']:.2f} ({cost['fastest']:.2f} to {cost['slowest']:.2f})",
            f"{statistics.median(cost['ratios']):.2f}x", f"{cost['flops'] / 1e6:,.0f}",
            f"{cost['bytes'] / 1e6:.1f}", whole, _shown(reached["seconds"], 1.0),
            _shown(reached["operations"], 1e9),
        ])  # fmt: skip
    return table(header, lines)


def _shown(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:,.1f}"


def main() -> int:
    """Trains, times and writes the section."""
    parser = reproducing.parser_of(NAME, __doc__, seeds=50)
    parser.add_argument(
        "--epochs", type=int, default=BASE["epochs"], metavar="N",
        help="points of a curve (default: %(default)s)",
    )  # fmt: skip
    args = parser.parse_args()
    keys = [key_of(name, args) for name in METHODS]
    if not reproducing.begin(NAME, args, ["cost", *keys]):
        return 0
    cost = once(args.out, "cost", costs)
    trials(args)
    rows = {row["key"]: row for row in reproducing.rows_of(args.out)}
    found = [rows[key] for key in keys]
    stage = cost["steps"][PARALLEL]
    text = "\n\n".join([
        reproducing.provenance("scripts/reproduce training-cost", [cost, *found]),
        lines_of(found, cost["steps"], 96.0),
        f"aRes-BP's parallel stage is the first {BASE['parallel_epochs'] * 105:.0f} updates: "
        f"{stage['milliseconds']:.2f} ms, {stage['flops'] / 1e6:,.0f} M operations and "
        f"{stage['bytes'] / 1e6:.1f} MB a step; its row has the steps after it. "
        f"{found[0]['trials']} trials of each method, "
        f"{sum(row['failed'] for row in found)} failed.",
    ])  # fmt: skip
    reproducing.finish(NAME, args, text, draw(found, cost["steps"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
