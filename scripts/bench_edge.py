"""Compact networks against dense ones on an emulated Cortex-M4: accuracy, bytes, instructions.

    python scripts/bench_edge.py --mnist DIR --cwru FILE.npz --out runs/edge
    python scripts/bench_edge.py --cwru FILE.npz --out runs/edge --seeds 0 --epochs-scale 0.1

Trains each network over the seeds (best epoch by validation), writes its packed file, exports it to
C, and reports the test accuracy of *what the C code computes* on the whole test split (integer
networks by the specification, to which the emulated firmware is compared bit for bit on some
inputs), bytes of constant data, arena, and instructions, loads and stores per inference that
QEMU counts on real test inputs.
MNIST is a folder of the four idx files; CWRU an .npz with arrays <class>_<load>.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import itertools
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx import relu

from rosler_jax import data as datasets
from rosler_jax._files import replace_json, replace_text
from rosler_jax.config import TrainConfig
from rosler_jax.data._dataset import Dataset
from rosler_jax.export import lower, run_integer
from rosler_jax.export._calibration import draw
from rosler_jax.export.c.source import HEADER, SOURCE, write_c
from rosler_jax.export.firmware import FirmwareRun, run_firmware
from rosler_jax.export.report import Counted, estimates
from rosler_jax.fit import Arrays, make_fit, run_key
from rosler_jax.graph import run_batch
from rosler_jax.graph.save import load, save
from rosler_jax.hyper import hyper_of
from rosler_jax.learner import make_learner
from rosler_jax.nn import SketchLinear
from rosler_jax.run import config_units, shipped_graph

CALIBRATION = 512


class Net(NamedTuple):
    """A network to compare.

    Attributes:
      name: in the table.
      layers: after standardisation; those with parameters are drawn by ``layer(rngs=...)``.
      settings: of the training.
      bits: of the packed file.
      dtype: of the export.
    """

    name: str
    layers: Sequence[Any]
    settings: dict[str, Any]
    bits: int
    dtype: str


class Task(NamedTuple):
    """A data set and its networks, the dense baseline first.

    Attributes:
      name: in the table.
      shape: of one input.
      dataset: splits.
      nets: to compare.
    """

    name: str
    shape: tuple[int, ...]
    dataset: Dataset
    nets: list[Net]


linear = functools.partial(functools.partial, nnx.Linear)
sketch = functools.partial(functools.partial, SketchLinear)
conv = functools.partial(functools.partial, nnx.Conv, padding="VALID")


def flatten(x: Any) -> Any:
    return x.reshape(len(x), -1)


def dense_net(m: int, hidden: tuple[int, ...], settings: dict[str, Any]) -> Net:
    """A fully connected float32 network."""
    sizes = itertools.pairwise((m, *hidden))
    layers = [layer for pair in sizes for layer in (linear(*pair), relu)]
    name = "dense " + "-".join(map(str, hidden))
    return Net(name, [flatten, *layers, linear(hidden[-1], 10)], settings, 32, "float32")


DENSE = {"learning_rate": 1e-3, "label_smoothing": 0.1, "batch_size": 128}
SKETCHED = {"learning_rate": 3e-3, "label_smoothing": 0.1, "batch_size": 128, "epochs": 20}
SMALL = {"learning_rate": 5e-3, "label_smoothing": 0.02, "batch_size": 64, "weight_decay": 1e-2}


def mnist(folder: str) -> Task:
    """Digits, 28 x 28; every network sees them shifted by up to a pixel while it trains."""
    dataset = datasets.load(folder)
    images = [np.asarray(x).reshape(-1, 28, 28, 1) for x in
              (dataset.train_x, dataset.validation_x, dataset.test_x)]  # fmt: skip
    dataset = dataclasses.replace(
        dataset, train_x=images[0], validation_x=images[1], test_x=images[2]
    )
    two = [flatten, sketch(784, 1024, 16), relu, sketch(1024, 1024, 16), relu, linear(1024, 10)]
    seeded = functools.partial(sketch, rank=32, mode="seeded")
    core = [
        flatten, seeded(784, 1024, in_sketch=512), relu, seeded(1024, 1024, in_sketch=384), relu,
        linear(1024, 10),
    ]  # fmt: skip
    small, larger = (
        [
            conv(1, 8, (5, 5), strides=3), relu, conv(8, n, (3, 3), strides=2), relu, flatten,
            linear(9 * n, 10),
        ]
        for n in (12, 16)
    )  # fmt: skip
    shift = {"shift": 1}
    return Task("MNIST", (28, 28, 1), dataset, [
        dense_net(784, (1024, 1024), {**DENSE, **shift, "epochs": 10}),
        dense_net(784, (300, 100), {**DENSE, **shift, "epochs": 20}),
        Net("two factors, rank 16, of 1024-1024", two, {**SKETCHED, **shift}, 8, "int8"),
        Net("seeded cores of 1024-1024", core, {**SKETCHED, **shift}, 8, "int8"),
        Net("convolutions 8, 12", small, {**SMALL, **shift, "epochs": 40}, 8, "int16"),
        Net("convolutions 8, 16", larger, {**SMALL, **shift, "epochs": 100}, 8, "int16"),
    ])  # fmt: skip


def cwru(path: str) -> Task:
    """Bearings, ten classes at all loads: magnitudes of 1024 samples, split in time."""
    dataset = datasets.load(path, standardize="all", features="fft")
    m = dataset.train_x.shape[1]
    settings = {"learning_rate": 5e-3, "batch_size": 64, "weight_decay": 1e-2, "epochs": 60}
    compact = [flatten, sketch(m, 64, 4), relu, linear(64, 10)]
    dense = {"learning_rate": 1e-3, "batch_size": 64}
    return Task("CWRU", (m,), dataset, [
        dense_net(m, (1024, 1024), {**dense, "epochs": 15}),
        dense_net(m, (300, 100), {**dense, "epochs": 30}),
        Net("rank 4, 64 wide", compact, settings, 8, "int16"),
    ])  # fmt: skip


def train(task: Task, net: Net, seed: int, scale: float, path: Path) -> float:
    """Trains a network and writes its packed file; gives the validation accuracy."""
    data = task.dataset
    settings = {**net.settings, "epochs": max(1, round(net.settings["epochs"] * scale))}
    config = TrainConfig(method="dense", seed=seed, **settings)

    def build(rngs: nnx.Rngs) -> nnx.Module:
        made = (f(rngs=rngs) if isinstance(f, functools.partial) else f for f in net.layers)
        return nnx.Sequential(*made)

    learner = make_learner(build, task.shape, data.num_classes or 0)
    functions = make_fit(config, learner, len(data.train_x))
    state = jax.jit(functions.init)(run_key(seed))
    epoch = jax.jit(functions.epoch)
    splits = data.train_x, data.train_y, data.validation_x, data.validation_y
    rest = Arrays(*map(jnp.asarray, splits)), hyper_of(config), config_units(config, data)
    for _ in range(config.epochs):
        state, metrics = epoch(state, *rest)
        if not bool(metrics.finite):
            raise RuntimeError(f"{net.name}, seed {seed}: the loss is no longer finite")
    params, buffers = jax.device_get((state.best_params, state.best_buffers))
    graph = shipped_graph(config, learner, data.train_x, params, buffers, rest[-1])
    save(path, graph, bits=net.bits)
    return float(state.best_score)


def measure(task: Task, net: Net, path: Path, count: int, board: str) -> dict[str, Any]:
    """Exports a packed network, scores what the C code computes, and counts on the board."""
    loaded = load(path)
    graph = loaded.graph
    x, y = task.dataset.test_x, np.asarray(task.dataset.test_y)
    if net.dtype == "float32":
        model: Any = graph
        inputs = np.asarray(x, np.float32)
        outputs = np.asarray(jax.lax.map(
            lambda a: run_batch(graph, a[None])[0], jnp.asarray(inputs), batch_size=1000
        ))  # fmt: skip
    else:
        chosen = draw(np.asarray(task.dataset.validation_y), CALIBRATION, seed=0)
        model = lower(graph, task.dataset.validation_x[chosen], dtype=net.dtype)
        inputs = model.quantize_input(x)
        outputs = run_integer(model, inputs)
    source = write_c(model)
    step = max(1, len(x) // count)  # over the whole test split
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / HEADER).write_text(source.header)
        (Path(folder) / SOURCE).write_text(source.source)
        run = run_firmware(folder, inputs[::step][:count], board=board, seconds=600)
    compare(net, run, outputs[::step][:count])
    guess = estimates(
        Counted(board, run.instructions, run.loads, run.stores, run.flash_code_bytes, 0)
    )
    return {
        "test_accuracy": float((outputs.reshape(len(y), -1).argmax(1) == y).mean()),
        "file_bytes": loaded.file.file_bytes,
        "data_bytes": source.model_bytes,
        "code_bytes": run.flash_code_bytes,
        "arena_bytes": source.arena_bytes,
        "stack_bytes": run.stack_bytes,
        "instructions": run.instructions,
        "loads": run.loads,
        "stores": run.stores,
        "microjoules_estimate": guess["microjoules"],
        "energy_model": guess["model"],
        "external": list(run.external),
        "compiler": run.compiler,
        "emulator": run.emulator,
    }


def compare(net: Net, run: FirmwareRun, expected: np.ndarray) -> None:
    """Refuses firmware that computes something else."""
    expected = expected.reshape(len(expected), -1)
    if net.dtype == "float32":
        worst = float(np.abs(run.outputs - expected).max() / np.abs(expected).max())
        if worst > 1e-4:
            raise RuntimeError(f"{net.name}: firmware differs by {worst:.2g}")
    elif not np.array_equal(run.outputs, expected):
        raise RuntimeError(f"{net.name}: firmware differs from the specification")


def mean_of(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def percent(rows: list[dict[str, Any]], key: str) -> str:
    values = [100 * row[key] for row in rows]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.2f} ± {spread:.2f}"


def markdown(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """A table for every task, ratios to its first network."""
    lines: list[str] = []
    for task, nets in results.items():
        lines += [
            f"{task}", "",
            "| network | test accuracy, % | validation, % | file bytes | flash data, bytes (fewer) "
            "| code, bytes | arena, bytes | instructions (fewer) | energy, uJ, estimate (less) |",
            "|---|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        base = next(iter(nets.values()))
        for name, rows in nets.items():
            cells = [
                f"{mean_of(rows, key):,.{digits}f} ({mean_of(base, key) / mean_of(rows, key):.1f}x)"
                for key, digits in (
                    ("data_bytes", 0), ("instructions", 0), ("microjoules_estimate", 1),
                )
            ]  # fmt: skip
            lines.append(
                f"| {name} | {percent(rows, 'test_accuracy')} | "
                f"{percent(rows, 'validation_accuracy')} | {mean_of(rows, 'file_bytes'):,.0f} | "
                f"{cells[0]} | {mean_of(rows, 'code_bytes'):,.0f} | "
                f"{mean_of(rows, 'arena_bytes'):,.0f} | {cells[1]} | {cells[2]} |"
            )
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Trains, exports, counts, and writes edge.md and edge.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mnist", metavar="DIR", help="folder of the four idx files")
    parser.add_argument("--cwru", metavar="FILE", help=".npz of recordings, or a folder of .mat")
    parser.add_argument("--out", type=Path, required=True, help="folder for models and tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs-scale", type=float, default=1.0, help="for a quick look")
    parser.add_argument("--count", type=int, default=20, help="inputs that are emulated")
    parser.add_argument("--board", default="cortex-m4")
    options = parser.parse_args(arguments)
    if options.mnist is None and options.cwru is None:
        parser.error("name data: --mnist DIR, --cwru FILE, or both")
    tasks = [mnist(options.mnist)] if options.mnist else []
    tasks += [cwru(options.cwru)] if options.cwru else []
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for task in tasks:
        for net in task.nets:
            for seed in options.seeds:
                path = options.out / f"{task.name}-{net.name}-{seed}.rosler".replace(" ", "_")
                validation = train(task, net, seed, options.epochs_scale, path)
                row = measure(task, net, path, options.count, options.board)
                row = {"seed": seed, "validation_accuracy": validation, **row}
                results.setdefault(task.name, {}).setdefault(net.name, []).append(row)
                print(
                    f"{task.name}, {net.name}, seed {seed}: test {row['test_accuracy']:.4f}, "
                    f"{row['instructions']:,.0f} instructions, {row['data_bytes']:,} bytes",
                    flush=True,
                )
                about = {
                    "date": datetime.date.today().isoformat(),
                    "jax": jax.__version__,
                    "python": platform.python_version(),
                    "compiler": row["compiler"],
                    "emulator": row["emulator"],
                    "energy_model": row["energy_model"],
                    "inputs_emulated": options.count,
                }
                replace_json(options.out / "edge.json", {"about": about, "results": results})
    text = markdown(results)
    replace_text(options.out / "edge.md", text)
    print(f"\n{about}\n\n{text}\nwritten to {options.out}/edge.md, edge.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
