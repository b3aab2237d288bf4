"""Compact networks against dense ones on an emulated Cortex-M4: accuracy, bytes, instructions.

A library of the experiment ``scripts/reproduce hardware``, and no command itself: the networks
(``NETS``), how one is trained and measured, and the table.

A network is trained (best epoch by validation), packed and exported to C. Test accuracy is that of
*what the C code computes* on the whole test split (integer networks by the specification, to which
the emulated firmware is compared bit for bit on some inputs); instructions, loads and stores of an
inference are those that QEMU counts on real test inputs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx import relu
from reproducing import Row, grouped, mean, plus_minus, source, table

from rosler_jax import data as datasets
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


def mnist_nets() -> list[Net]:
    """Of digits, 28 x 28; every one sees them shifted by up to a pixel while it trains."""
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
    return [
        dense_net(784, (1024, 1024), {**DENSE, **shift, "epochs": 10}),
        dense_net(784, (300, 100), {**DENSE, **shift, "epochs": 20}),
        Net("two factors, rank 16, of 1024-1024", two, {**SKETCHED, **shift}, 8, "int8"),
        Net("seeded cores of 1024-1024", core, {**SKETCHED, **shift}, 8, "int8"),
        Net("convolutions 8, 12", small, {**SMALL, **shift, "epochs": 40}, 8, "int16"),
        Net("convolutions 8, 16", larger, {**SMALL, **shift, "epochs": 100}, 8, "int16"),
    ]


def cwru_nets() -> list[Net]:
    """Of bearings."""
    m = 513  # magnitudes of 1024 samples
    settings = {"learning_rate": 5e-3, "batch_size": 64, "weight_decay": 1e-2, "epochs": 60}
    compact = [flatten, sketch(m, 64, 4), relu, linear(64, 10)]
    dense = {"learning_rate": 1e-3, "batch_size": 64}
    return [
        dense_net(m, (1024, 1024), {**dense, "epochs": 15}),
        dense_net(m, (300, 100), {**dense, "epochs": 30}),
        Net("rank 4, 64 wide", compact, settings, 8, "int16"),
    ]


NETS = {"MNIST": mnist_nets(), "CWRU": cwru_nets()}
"""The networks of a task, the dense baseline first."""


@functools.cache
def dataset_of(task: str, folder: Path | None) -> Dataset:
    """The splits: digits as images; bearings of ten classes at all loads, split in time."""
    if task == "CWRU":
        return datasets.load(source("cwru", folder), standardize="all", features="fft")
    found = datasets.load(source("mnist", folder))
    names = ("train_x", "validation_x", "test_x")
    images: dict[str, Any] = {
        name: np.asarray(getattr(found, name)).reshape(-1, 28, 28, 1) for name in names
    }
    return dataclasses.replace(found, **images)


def train(data: Dataset, net: Net, seed: int, scale: float, path: Path) -> float:
    """Trains a network and writes its packed file; gives the validation accuracy."""
    settings = {**net.settings, "epochs": max(1, round(net.settings["epochs"] * scale))}
    config = TrainConfig(method="dense", seed=seed, **settings)

    def build(rngs: nnx.Rngs) -> nnx.Module:
        made = (f(rngs=rngs) if isinstance(f, functools.partial) else f for f in net.layers)
        return nnx.Sequential(*made)

    learner = make_learner(build, data.train_x.shape[1:], data.num_classes or 0)
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


def measure(data: Dataset, net: Net, path: Path, count: int, board: str) -> Row:
    """Exports a packed network, scores what the C code computes, and counts on the board."""
    loaded = load(path)
    graph = loaded.graph
    x, y = data.test_x, np.asarray(data.test_y)
    if net.dtype == "float32":
        model: Any = graph
        inputs = np.asarray(x, np.float32)
        outputs = np.asarray(jax.lax.map(
            lambda a: run_batch(graph, a[None])[0], jnp.asarray(inputs), batch_size=1000
        ))  # fmt: skip
    else:
        chosen = draw(np.asarray(data.validation_y), CALIBRATION, seed=0)
        model = lower(graph, data.validation_x[chosen], dtype=net.dtype)
        inputs = model.quantize_input(x)
        outputs = run_integer(model, inputs)
    code = write_c(model)
    step = max(1, len(x) // count)  # over the whole test split
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / HEADER).write_text(code.header)
        (Path(folder) / SOURCE).write_text(code.source)
        run = run_firmware(folder, inputs[::step][:count], board=board, seconds=600)
    compare(net, run, outputs[::step][:count])
    guess = estimates(
        Counted(board, run.instructions, run.loads, run.stores, run.flash_code_bytes, 0)
    )
    return {
        "test_accuracy": float((outputs.reshape(len(y), -1).argmax(1) == y).mean()),
        "file_bytes": loaded.file.file_bytes,
        "data_bytes": code.model_bytes,
        "code_bytes": run.flash_code_bytes,
        "arena_bytes": code.arena_bytes,
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


def edge_table(rows: Sequence[Row], base: Sequence[Row]) -> str:
    """A line a network, means over seeds; in brackets how many times fewer than the base's."""

    def cell(some: Sequence[Row], key: str, digits: int = 0) -> str:
        return f"{mean(row[key] for row in some):,.{digits}f}"

    def fewer(some: Sequence[Row], key: str, digits: int = 0) -> str:
        if not base:
            return cell(some, key, digits)
        times = mean(row[key] for row in base) / mean(row[key] for row in some)
        return f"{cell(some, key, digits)} ({times:.1f}x)"

    lines = [
        [
            name, plus_minus(100 * row["test_accuracy"] for row in some),
            plus_minus(100 * row["validation_accuracy"] for row in some),
            cell(some, "file_bytes"), fewer(some, "data_bytes"), cell(some, "code_bytes"),
            cell(some, "arena_bytes"), fewer(some, "instructions"),
            fewer(some, "microjoules_estimate", 1),
        ]
        for (name,), some in grouped(rows, "what").items()
    ]  # fmt: skip
    head = [
        "network", "test accuracy, %", "validation, %", "file bytes",
        "flash data, bytes (fewer)", "code, bytes", "arena, bytes", "instructions (fewer)",
        "energy, uJ, estimate (less)",
    ]  # fmt: skip
    return table(head, lines)
