"""A population of trainings against the same trainings one after another, and eager PyTorch.

    python scripts/bench_sweep.py --out runs/sweep_bench
    python scripts/bench_sweep.py --out runs/sweep_bench --members 64 --repeats 3

All train a rank-8 784-256-10 net on mnist5k with other learning rates and seeds. "one after
another" is this library's own compiled loop, compiled once, one training at a time on all cores.
PyTorch takes part where it is installed, on a few members, scaled up. Compilation is left out
everywhere; each variant is timed in turn, several times.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax.config import TrainConfig
from rosler_jax.fit import Arrays, TrainState, make_fit
from rosler_jax.hyper import Hyper, hyper_of
from rosler_jax.sweep import Built, Group, load_examples, make_plan, trainings
from rosler_jax.sweep.examples import Examples
from rosler_jax.sweep.schedule import choose_width
from rosler_jax.units import Units

TORCH_MEMBERS = 4


def members(count: int, epochs: int) -> list[TrainConfig]:
    """Trainings that differ in what is data to a program."""
    rng = np.random.default_rng(0)
    base = TrainConfig(method="chain", hidden=(256,), rank=8, epochs=epochs)
    rates = np.exp(rng.uniform(np.log(1e-4), np.log(1e-2), count))
    return [
        dataclasses.replace(base, learning_rate=float(r), seed=i % 4) for i, r in enumerate(rates)
    ]


def alone(group: Group, built: Built) -> Callable[[], None]:
    """One training at a time, one program, one device that has all cores."""
    examples, config = built.examples, group.config
    x, y = (jnp.asarray(a) for a in (examples.x, examples.y))
    parts = [examples.part(c) for c in group.trainings]
    functions = make_fit(config, group.form.learner, len(parts[0].train))
    states = [trainings.initial_state(c, built) for c in group.trainings]
    hypers = [hyper_of(c) for c in group.trainings]

    @jax.jit
    def one(state: TrainState, arrays: Arrays, hyper: Hyper, units: Units) -> Any:
        step = lambda state, _: functions.epoch(state, arrays, hyper, units)  # noqa: E731
        return jax.lax.scan(step, state, None, config.epochs)

    splits = {
        id(p): Arrays(x[p.train], y[p.train], x[p.validation], y[p.validation]) for p in parts
    }

    def run(count: int) -> None:
        for state, part, hyper in list(zip(states, parts, hypers, strict=True))[:count]:
            jax.block_until_ready(one(state, splits[id(part)], hyper, part.units))

    run(1)
    return lambda: run(len(parts))


def together(group: Group, built: Built, width: int, blocks: int) -> Callable[[], None]:
    """The whole population."""
    population = trainings.population_of(group, built, width, blocks)
    data = [trainings.member_of(c, group, built) for c in group.trainings]
    run = lambda: trainings.run(population, data, group.config.epochs) and None  # noqa: E731
    run()
    return run


def torch_run(configs: list[TrainConfig], examples: Examples) -> Callable[[], None]:
    """The same net, batches, optimiser and schedule in eager PyTorch, on one thread.

    For a net this small one is faster than two here, and it does not get in the way of XLA's.
    """
    import torch

    torch.set_num_threads(1)

    pixels = torch.tensor(np.asarray(examples.x, np.float32).reshape(len(examples.y), -1))
    labels = torch.tensor(np.asarray(examples.y), dtype=torch.long)

    def train(config: TrainConfig) -> None:
        (width,) = config.hidden or ()
        torch.manual_seed(config.seed)
        part = examples.part(config)
        kept, held = torch.tensor(part.train), torch.tensor(part.validation)
        x, y = pixels[kept], labels[kept]
        mean, std = x.mean(), x.std()
        linear = torch.nn.Linear
        net = torch.nn.Sequential(
            linear(x.shape[1], config.rank, bias=False),
            linear(config.rank, config.rank, bias=False),
            linear(config.rank, width),
            torch.nn.ReLU(),
            linear(width, examples.dataset.num_classes),
        )
        rate, steps = config.peak_learning_rate, len(x) // config.batch_size
        optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=config.epochs * steps
        )
        for _ in range(config.epochs):
            order = torch.randperm(len(x))[: steps * config.batch_size]
            for batch in order.reshape(steps, -1):
                optimizer.zero_grad()
                out = net((x[batch] - mean) / std)
                torch.nn.functional.cross_entropy(out, y[batch]).backward()
                optimizer.step()
                schedule.step()
            with torch.no_grad():
                (net((pixels[held] - mean) / std).argmax(1) == labels[held]).float().mean()

    def run() -> None:
        for config in configs[:TORCH_MEMBERS]:
            train(config)

    return run


def seconds(call: Callable[[], None]) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(arguments: list[str]) -> int:
    """Measures and writes sweep.md and sweep.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    parser.add_argument("--members", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--devices", type=int, default=os.cpu_count(), help="virtual, on a CPU")
    parser.add_argument("--width", type=int, help="members that share batches (default: timed)")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args(arguments)
    jax.config.update("jax_num_cpu_devices", options.devices)
    configs = members(options.members, options.epochs)
    built = Built(load_examples(configs[0]))
    (group,) = make_plan(configs, built)
    width, blocks = choose_width(group, built)[:2] if options.width is None else (options.width, 1)
    calls = {
        "population": together(group, built, width, blocks),
        "one after another": alone(group, built),
    }
    scale = {name: 1.0 for name in calls}
    if options.torch and importlib.util.find_spec("torch"):
        calls["PyTorch, eager"] = torch_run(configs, built.examples)
        scale["PyTorch, eager"] = len(configs) / TORCH_MEMBERS
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(options.repeats):
        for name, call in calls.items():
            times[name].append(seconds(call) * scale[name])
        print(f"[{i + 1}/{options.repeats}]", flush=True)
    base = times["population"]
    lines = ["| variant | seconds (lowest to highest) | population faster |", "|---|---|---|"]
    for name, t in times.items():
        ratio = statistics.median(a / b for a, b in zip(t, base, strict=True))
        shown = f"{statistics.median(t):.2f} ({min(t):.2f} to {max(t):.2f})"
        lines.append(f"| {name} | {shown} | {ratio:.2f}x |")
    about = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "members together on a device": width * blocks,
        **{k: v for k, v in vars(options).items() if k not in ("out", "width")},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines)
    (options.out / "sweep.md").write_text(text + "\n", encoding="utf-8")
    content = json.dumps({"about": about, "seconds": times}, indent=2)
    (options.out / "sweep.json").write_text(content, encoding="utf-8")
    print(f"\n{about}\n\n{text}\n\nwritten to {options.out}/sweep.md, sweep.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
