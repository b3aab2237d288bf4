"""Training on an emulated Cortex-M4: a bearing monitor that adapts to another load.

A library of the experiment ``scripts/reproduce hardware``, and no command itself: the networks,
what is measured of each, and the tables.

Trains small networks on the bearing data of Case Western Reserve University at load 0 (ten classes)
in JAX, exports them with training, and lets the C code adapt them at load 3 on a handful of windows
of each class on the emulated processor. Every recording is split in time: adaptation takes windows
from the first 70 %, the learning rate and the number of passes are chosen on the next 10 %, and
accuracy is that of the last 20 %. There is no normal recording at load 3, so that adaptation and
its tests are on the nine fault classes.

The dense networks are too slow to train in the emulator step by step. The same C code adapts them
on this machine, and the emulator counts single steps of theirs, and of the others for comparison.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from reproducing import Row, grouped, plus_minus, table
from reproducing import mean as mean_of

from rosler_jax.data import DataError
from rosler_jax.graph import trace
from rosler_jax.learner import split_state
from rosler_jax.nn import SketchLinear, TwoFactorLinear

WINDOWS = 8  # of each class to adapt on
INPUTS = 512  # magnitudes, the Nyquist frequency left out: a power of two transforms fast
BOARD = "cortex-m4"
FLOAT_RATES = (0.003, 0.01, 0.03, 0.1)
SHIFTS = (3, 4, 5, 6, 7)
PASSES = (5, 15)
LARGEST = "dense 1024-1024"


def network_of(name: str, rngs: nnx.Rngs) -> list[Any]:
    """The layers of a network."""
    seeded = functools.partial(SketchLinear, mode="seeded", rngs=rngs)
    linear = functools.partial(nnx.Linear, rngs=rngs)
    if name == "seeded":
        return [
            seeded(512, 256, in_sketch=128, rank=16), nnx.relu,
            seeded(256, 10, in_sketch=64, rank=8),
        ]  # fmt: skip
    if name == "factors":
        return [TwoFactorLinear(512, 64, rank=4, rngs=rngs), nnx.relu, linear(64, 10)]
    m, n = map(int, name.removeprefix("dense ").split("-"))
    return [linear(512, m), nnx.relu, linear(m, n), nnx.relu, linear(n, 10)]


NETWORKS = ("seeded", "factors", "dense 300-100", LARGEST)


class Variant(NamedTuple):
    """A row of the table: a network, and how it is exported."""

    name: str
    network: str
    options: dict[str, Any]
    emulated: bool = True


SEEDED, FACTORS = "seeded 512-256-10, cores 128x16 and 64x8", "factors 512-64-10, rank 4"
VARIANTS = (
    Variant(f"{SEEDED}, float32", "seeded", {}),
    Variant(f"{SEEDED}, fixed point", "seeded", {"dtype": "fixed"}),
    Variant(f"{SEEDED}, float32, head only", "seeded", {"parts": "head"}),
    Variant(f"{FACTORS}, float32", "factors", {}),
    Variant(f"{FACTORS}, fixed point", "factors", {"dtype": "fixed"}),
    Variant(f"{FACTORS}, float32, parallel stage", "factors", {"stage": "parallel", "clip": 1.0}),
    Variant("dense 512-300-100-10, float32", "dense 300-100", {}, emulated=False),
    Variant("dense 512-1024-1024-10, float32", "dense 1024-1024", {}, emulated=False),
)


class Split(NamedTuple):
    """Windows and labels."""

    x: np.ndarray
    y: np.ndarray


def splits(path: Path) -> dict[str, Split]:
    """Load 0 to train on and to test, load 3 to adapt on, to choose by, and to test."""
    from rosler_jax.data.cwru import recordings_of_arrays, split_windows

    if not path.exists():
        raise DataError(f"{path}: no such file of recordings; pass the folder of it")
    with np.load(path) as arrays:
        recordings = recordings_of_arrays(dict(arrays), path)
    if recordings is None:
        raise DataError(f"{path}: holds no recordings named <class>_<load>")
    faults = [recording for recording in recordings if recording.kind != "normal"]
    at_0 = split_windows(recordings, features="fft", loads=[0])
    at_3 = split_windows(faults, features="fft", loads=[3])

    def cut(part: Any) -> Split:
        return Split(part[0][:, :INPUTS], part[1])

    return {
        "train": cut(at_0.train), "test": cut(at_0.test), "adapt": cut(at_3.train),
        "choose": cut(at_3.validation), "shifted": cut(at_3.test),
    }  # fmt: skip


def handful(split: Split) -> Split:
    """So many windows of each class, evenly spaced in time, one of each class after the other.

    Windows that follow each other overlap by half; these do not.
    """
    classes = np.unique(split.y)
    rows = [np.flatnonzero(split.y == kind) for kind in classes]
    picked = [each[np.linspace(0, len(each) - 1, WINDOWS).astype(int)] for each in rows]
    order = np.stack(picked, axis=1)  # (windows, classes): every batch has all classes
    return Split(split.x[order], split.y[order])


def train_on_host(network: str, data: dict[str, Split], seed: int, scale: float = 1.0) -> Any:
    """The graph of a network trained at load 0; the scale is of the number of steps."""
    x, y = data["train"]
    mean, factor = x.mean(), np.float32(1 / x.std())
    layers = network_of(network, nnx.Rngs(seed))
    model = nnx.Sequential(lambda x: (x - mean) * factor, *layers)
    graphdef, params, buffers = split_state(model)
    steps, rate = (200, 1e-3) if network == LARGEST else (600, 3e-3)
    steps = max(1, round(scale * steps))
    tx = optax.adamw(optax.cosine_decay_schedule(rate, steps))

    def loss(params: Any, x: Any, y: Any) -> Any:
        logits = nnx.merge(graphdef, params, buffers)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    state, rng = tx.init(params), np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.choice(len(x), 64)
        params, state = step(params, state, x[rows], y[rows])
    return trace(nnx.merge(graphdef, params, buffers), x[:1])


def accuracy(outputs: np.ndarray, y: np.ndarray) -> float:
    """Percent of the outputs whose largest is the label's."""
    return 100.0 * float((outputs.argmax(1) == y).mean())


def adapt(graph: Any, variant: Variant, data: dict[str, Split]) -> Row:
    """One row's numbers for one seed."""
    from rosler_jax.export.c.train import Training, write_training
    from rosler_jax.export.c.train.fixed_lowering import lower_training
    from rosler_jax.export.c.train.job import train_in_c

    few = handful(data["adapt"])
    batch, fixed = few.x.shape[1], variant.options.get("dtype") == "fixed"
    calibration = np.concatenate([data["train"].x[::4], few.x.reshape(-1, few.x.shape[-1])])
    options = {"batch": batch, **variant.options}
    quantise: Any = np.float32
    if fixed:
        quantise = lower_training(graph, calibration, Training(batch=batch)).prefix.quantize_input
    source = write_training(graph, Training(**options), calibration=calibration)

    def run(rate: float, passes: int, asked: np.ndarray, board: str | None) -> Any:
        x = np.tile(few.x, (passes, 1, 1))
        inputs = quantise(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        labels = np.tile(few.y, (passes, 1))
        return train_in_c(source, inputs, labels, rate, predict=quantise(asked), board=board)

    trials = [
        (
            accuracy(run(rate, passes, data["choose"].x, None).outputs, data["choose"].y),
            rate,
            passes,
        )
        for rate in (SHIFTS if fixed else FLOAT_RATES)
        for passes in PASSES
    ]
    best = max(found[0] for found in trials)
    _, rate, passes = next(found for found in trials if found[0] == best)
    shifted = data["shifted"]
    board = BOARD if variant.emulated else None
    before = run(rate, 0, shifted.x, None).outputs
    after = run(rate, passes, shifted.x, board)
    host = run(rate, passes, shifted.x, None) if board else after
    return {
        "before": accuracy(before, shifted.y),
        "after": accuracy(after.outputs, shifted.y),
        "load 0 before": accuracy(run(rate, 0, data["test"].x, None).outputs, data["test"].y),
        "load 0 after": accuracy(run(rate, passes, data["test"].x, None).outputs, data["test"].y),
        "chosen": {"learning rate": 2.0**-rate if fixed else rate, "passes": passes},
        "steps": passes * len(few.x),
        "equal to this machine": bool(
            np.array_equal(host.flat, after.flat) and np.array_equal(host.outputs, after.outputs)
        ),
        "largest difference of weights": float(
            np.abs(host.flat.astype(np.float64) - after.flat).max()
        ),
        "instructions a step": mean(after.step_instructions),
        "instructions an inference": mean(after.predict_instructions),
        "batch": batch,
        **memory(source, after.sizes),
    }


def single_steps(graph: Any, data: dict[str, Split]) -> Row:
    """Plain SGD on one example at a time, without velocity: what the dense net has memory for."""
    from rosler_jax.export.c.train import Training, write_training
    from rosler_jax.export.c.train.job import train_in_c

    few = handful(data["adapt"])
    source = write_training(graph, Training(batch=1, momentum=0.0))
    x, y = few.x[0][:3, None], few.y[0][:3, None]
    found = train_in_c(source, x, y, 0.01, predict=few.x[1][:2], board=BOARD)
    return {
        "instructions a step": mean(found.step_instructions),
        "instructions an inference": mean(found.predict_instructions),
        "beside the chip": list(found.external),
        **memory(source, found.sizes),
    }


def both_ways(graph: Any, data: dict[str, Split]) -> Row:
    """A step of the code written for chains, and of the graph of the gradient, as any model's."""
    from rosler_jax.export.c.train import Training, write_training
    from rosler_jax.export.c.train.job import train_in_c

    few = handful(data["adapt"])
    ways = {}
    for name, chains in (("written for chains", True), ("graph of the gradient", False)):
        source = write_training(graph, Training(batch=few.x.shape[1]), chains=chains)
        found = train_in_c(source, few.x[:2], few.y[:2], 0.01, predict=few.x[1][:2], board=BOARD)
        ways[name] = {
            "instructions a step": mean(found.step_instructions),
            "instructions an inference": mean(found.predict_instructions),
            **memory(source, found.sizes),
        }
    return {"batch": few.x.shape[1], "ways": ways}


def memory(source: Any, sizes: dict[str, Any]) -> dict[str, int]:
    """Bytes of RAM and of flash; of code where there is an image."""
    found = {
        "state bytes": source.state_bytes,
        "arena bytes": source.arena_bytes,
        "RAM bytes": source.state_bytes + source.arena_bytes,
        "constant bytes": sum(source.constant_bytes.values()),
    }
    if "rosler_train.o" in sizes:
        found["code bytes"] = sizes["rosler_train.o"].code
    return found


def mean(numbers: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return mean_of(numbers) if numbers else None


def number(rows: Sequence[Row], key: str) -> str:
    """The mean of what was counted; a dash where nothing was."""
    found = mean([row[key] for row in rows if row.get(key) is not None])
    return "-" if found is None else f"{found:,.0f}"


COUNTED = ("instructions a step", "instructions an inference", "RAM bytes")
SIZED = ["instructions a step", "an inference", "RAM, bytes", "constants, bytes"]  # as headings


def adapting_table(rows: Sequence[Row]) -> str:
    """Accuracy before and after, and what a step takes: a line a variant, means over seeds."""
    lines = [
        [
            name, *(plus_minus((row[key] for row in some), 1) for key in ("before", "after")),
            "/".join(str(row["steps"]) for row in some),
            plus_minus((row["load 0 after"] for row in some), 1),
            *(number(some, key) for key in (*COUNTED, "constant bytes", "code bytes")),
        ]
        for (name,), some in grouped(rows, "what").items()
    ]  # fmt: skip
    head = ["network, what trains", "load 3 before, %", "after, %", "steps", "load 0 after, %"]
    return table([*head, *SIZED, "code, bytes"], lines)


def single_table(rows: Sequence[Row]) -> str:
    """What a step on one example takes, and how many times fewer than the largest network."""
    largest = [row for row in rows if row["what"] == LARGEST]
    lines = []
    for row in rows:
        beside = f" (beside the chip: {', '.join(row['beside the chip'])})"
        cells = [number([row], key) for key in (*COUNTED, "constant bytes")]
        times = [f"{large[key] / row[key]:,.0f}x" for large in largest for key in COUNTED]
        name = f"{row['what']}{beside if row['beside the chip'] else ''}"
        lines.append([name, *cells, *(times or ["-"] * len(COUNTED))])
    fewer = [f"fewer than {LARGEST}: a step", "an inference", "RAM"]
    return table(["network", *SIZED, *fewer], lines)


def ways_table(rows: Sequence[Row]) -> str:
    """A step of the code written for chains, and of the graph of the gradient."""
    keys = (*COUNTED, "constant bytes", "code bytes")
    lines = [
        [row["what"], way, *(number([found], key) for key in keys)]
        for row in rows
        for way, found in row["ways"].items()
    ]
    return table(["network", "code", *SIZED, "code, bytes"], lines)
