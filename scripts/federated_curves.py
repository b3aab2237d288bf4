"""Sections of bench_federated: accuracy against bytes, under faults, and by what is averaged.

Each is a table of runs, ``task/name/seed``; a result is kept in one JSON file, so that a run that
was cut goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rosler_jax._files import replace_file, replace_json, replace_text
from rosler_jax.config import TrainConfig
from rosler_jax.federated import FederatedConfig, federated_fit
from rosler_jax.federated.prepare import scored_on
from rosler_jax.federated.simulate import Federated
from rosler_jax.run import RunError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
MARGIN = 0.01  # of accuracy, below the dense net's end: where bytes are compared
GARBLED = {"drop": 0.3, "bad": 0.1, "garbage": "all"}


class Task(NamedTuple):
    """Data and how they are spread, with a dense net; and what differs for ours."""

    config: TrainConfig
    federated: FederatedConfig
    ours: dict[str, Any]
    clients: dict[str, Any]


TASKS = {
    "mnist": Task(
        TrainConfig(
            data=str(SHARED / "mnist"), method="dense", hidden=(300, 100), batch_size=32,
            learning_rate=0.3, schedule="cosine",
        ),
        FederatedConfig(
            clients=100, rounds=100, split="dirichlet:0.3", participation=0.1, local_epochs=2,
            upload="float32", download="float32",
        ),
        {
            "learning_rate": 0.005, "sketch": "dct:28x28/srht", "in_sketch": 196,
            "rules": ("hidden.0=64", "hidden.1=24", "*=skip"), "rank": 64,
        },
        {"client": "adam"},
    ),
    "cwru": Task(
        TrainConfig(
            data=str(SHARED / "cwru_12k_drive_end.npz"), data_options=("features=fft",),
            method="dense", hidden=(256,), batch_size=16, learning_rate=0.1, schedule="cosine",
        ),
        FederatedConfig(
            clients=37, rounds=60, split="recording", participation=0.5, upload="float32",
            download="float32",
        ),
        {"sketch": "dct/srht", "rank": 12, "learning_rate": 0.03},
        {},
    ),
}  # fmt: skip
"""Learning rates and optimisers of clients are the best of a few by validation, for either."""


class Variant(NamedTuple):
    """One line of a section: what differs from the task's dense run."""

    what: str
    config: Callable[[TrainConfig], TrainConfig]
    federated: Callable[[FederatedConfig], FederatedConfig]


def _variant(what: str, config: Mapping[str, Any], federated: Mapping[str, Any]) -> Variant:
    return Variant(
        what,
        lambda c: dataclasses.replace(c, **config),
        lambda f: dataclasses.replace(f, **federated),
    )


def run(task: str, variant: Variant, seed: int) -> dict[str, Any]:
    """One run: its curve by validation, and the test score of the round that validation chose."""
    base = TASKS[task]
    config = dataclasses.replace(variant.config(base.config), seed=seed)
    federated = dataclasses.replace(variant.federated(base.federated), seed=seed)
    floats = federated.upload == federated.download == "float32"  # whose bytes are no question
    federated = dataclasses.replace(federated, wire=federated.wire and not floats)
    start = time.perf_counter()
    try:
        found = federated_fit(config, federated)
    except (RunError, ValueError) as error:  # as a run may end that believes every message
        return {"task": task, "what": variant.what, "seed": seed, "failed": str(error)}
    rows = found.history
    return {
        "task": task,
        "what": variant.what,
        "seed": seed,
        "validation": [row["validation_accuracy"] for row in rows],
        "up": [row["up_bytes"] for row in rows],
        "down": [row["down_bytes"] for row in rows],
        "information": [row["up_information"] for row in rows],
        "counted": [row["counted"] for row in rows],
        "refused": len(found.refused),
        "numbers": sum(leaf.size for leaf in jax.tree.leaves(found.prepared.rounds.up_like)),
        "wire": federated.wire,
        "test": score(found, final=False),
        "test_final": score(found, final=True),
        "seconds": time.perf_counter() - start,
    }


def score(found: Federated, *, final: bool) -> float:
    """Test accuracy of the model as the clients have it: after the last round, or the best."""
    run, progress = found.prepared, found.progress
    params, buffers = progress.best_params, progress.best_buffers
    if final:
        params, buffers = run.rounds.model(progress.state)

    x, y = map(jax.numpy.asarray, (run.dataset.test_x, run.dataset.test_y))
    return float(scored_on(run, params, buffers, x, y)[1]["accuracy"])


class Results(NamedTuple):
    """Runs that are done, in a file."""

    path: Path
    done: dict[str, dict[str, Any]]


def open_results(path: Path) -> Results:
    """Those of a file, if there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return Results(path, json.loads(path.read_text()) if path.exists() else {})


def complete(
    results: Results, task: str, variants: Mapping[str, Variant], seeds: Sequence[int]
) -> None:
    """Does what is not done yet, one run after the other."""
    for seed in seeds:
        for name, variant in variants.items():
            key = f"{task}/{name}/{seed}"
            if key in results.done:
                continue
            found = run(task, variant, seed)
            results.done[key] = found
            replace_json(results.path, results.done)
            if "failed" in found:
                print(f"{key}: {found['failed']}", file=sys.stderr, flush=True)
                continue
            sent = sum(found["up"]) + sum(found["down"])
            print(
                f"{key}: test {found['test']:.4f}, {sent / 1e6:,.2f} MB, "
                f"{found['seconds']:.0f} s",
                file=sys.stderr, flush=True,
            )  # fmt: skip


def of(results: Results, task: str, name: str) -> list[dict[str, Any]]:
    """The runs of a line, by seed."""
    keys = (key for key in results.done if key.startswith(f"{task}/{name}/"))
    return [results.done[key] for key in sorted(keys)]


def mean_curve(runs: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean bytes sent so far, and mean accuracy by validation, after each round."""
    sent = np.mean([np.cumsum(np.add(run["up"], run["down"])) for run in runs], axis=0)
    return sent, np.mean([run["validation"] for run in runs], axis=0)


def bytes_to(runs: Sequence[dict[str, Any]], target: float) -> float | None:
    """Bytes sent until the mean accuracy over seeds is first there; None if it never is."""
    sent, accuracy = mean_curve(runs)
    there = np.flatnonzero(accuracy >= target)
    return float(sent[there[0]]) if there.size else None


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, in percent.

    Example:
      >>> spread([0.95, 0.97])
      '96.00 +- 1.41'
    """
    percent = [100 * v for v in values]
    more = f" +- {statistics.stdev(percent):.2f}" if len(percent) > 1 else ""
    return f"{statistics.mean(percent):.2f}{more}"


def megabytes(number: float | None) -> str:
    """Bytes as megabytes, three digits."""
    if number is None:
        return "never"
    return f"{number / 1e6:,.0f}" if number >= 1e8 else f"{number / 1e6:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# Bytes.

SMALL = {"upload": "step:2", "download": "grid:2"}
NARROW: dict[str, dict[str, Any]] = {
    "mnist": {"hidden": (24,)},
    "cwru": {"hidden": (8,), "learning_rate": 0.3},
}
LEARNT: dict[str, dict[str, Any]] = {
    "mnist": {"method": "low-rank", "rank": 16, "learning_rate": 0.005},
    "cwru": {"method": "low-rank", "rank": 4, "learning_rate": 0.03},
}
DELTA: dict[str, dict[str, Any]] = {
    "mnist": {"learning_rate": 0.005}, "cwru": {"learning_rate": 0.1},
}  # fmt: skip


def bytes_variants(task: str) -> dict[str, Variant]:
    """Dense FedAvg, what compression alone does for it, and models whose updates are small."""
    ours, own = {**TASKS[task].ours, "method": "seeded"}, TASKS[task].clients
    learnt = LEARNT[task]
    return {
        "dense": _variant("dense, float32 (FedAvg)", {}, {}),
        "dense-coded": _variant("dense, updates coded", {}, {**SMALL, "wire": False}),
        "narrow": _variant("narrow dense net, updates coded", NARROW[task], SMALL),
        "seeded-floats": _variant("seeded cores, float32", ours, own),
        "seeded": _variant("seeded cores, updates coded", ours, {**own, **SMALL}),
        "low-rank": _variant("learnt factors C R, updates coded", learnt, {**own, **SMALL}),
        "delta": _variant(
            "2,000 shared numbers (seeded delta), coded", DELTA[task],
            {**own, **SMALL, "delta": 2000},
        ),
        "fetchsgd": _variant(
            "dense, count sketch of 10 % (FetchSGD)",
            {"learning_rate": 0.03 if task == "mnist" else 0.01},
            {"exchange": "count-sketch:0.1", "upload": "float32", "download": "grid:2",
             "wire": False},
        ),
    }  # fmt: skip


def bytes_section(results: Results, task: str) -> str:
    """The table: what each ends at, and sends to come within a point of the dense net's end."""
    lines = bytes_variants(task)
    dense = of(results, task, "dense")
    if not dense:
        return ""
    end = statistics.mean(run["validation"][-1] for run in dense)
    target = end - MARGIN
    base = bytes_to(dense, target)
    rows = []
    for name, variant in lines.items():
        runs = [run for run in of(results, task, name) if "failed" not in run]
        if not runs:
            continue
        sent = statistics.mean(sum(run["up"]) + sum(run["down"]) for run in runs)
        needed = bytes_to(runs, target)
        fewer = "-" if needed is None or base is None else f"{base / needed:,.0f}x"
        asked = sum(len(run["up"]) for run in runs)
        up = sum(sum(run["up"]) for run in runs) / asked / TASKS[task].federated.asked
        rows.append([
            variant.what, f"{runs[0]['numbers']:,}", f"{up:,.0f}",
            spread([run["test"] for run in runs]), megabytes(sent), megabytes(needed), fewer,
        ])  # fmt: skip
    head = [
        "what clients train and send", "numbers", "bytes an update", "test accuracy %",
        "MB in all rounds", f"MB to {100 * target:.1f} % (validation)", "fewer",
    ]  # fmt: skip
    return table(head, rows)


# Faults.

CLEAN = {"aggregate": "mean"}


def robust_variants(task: str) -> dict[str, Variant]:
    """The run of few bytes, clean, and with clients that drop and garble."""
    ours, own = {**TASKS[task].ours, "method": "seeded"}, TASKS[task].clients
    hows = ("mean", "trimmed-mean:0.2", "median", "krum:0.2", "clipped-mean:1")
    lines = {"clean": _variant("clean, mean", ours, {**own, **SMALL})}
    for how in hows:
        faults = {**own, **SMALL, **GARBLED, "aggregate": how}
        lines[how] = _variant(f"30 % drop, 10 % garbage, {how}", ours, faults)
    told = {**own, **SMALL, **GARBLED, "garbage": "nan"}
    lines["nan"] = _variant("30 % drop, 10 % NaN alone, all of it refused, mean", ours, told)
    lines["banned"] = _variant(
        "30 % drop, 10 % garbage, mean, a client banned after 2 broken messages",
        ours,
        {**own, **SMALL, **GARBLED, "ban_after": 2},
    )
    bare = {**own, **SMALL, **GARBLED, "reject_norm": 0.0}
    lines["bare"] = _variant("the same, mean, no message refused for its norm", ours, bare)
    return lines


def robust_section(results: Results, task: str) -> str:
    """The table: accuracy at the end, and how many messages were refused."""
    rows = []
    for name, variant in robust_variants(task).items():
        runs = of(results, task, f"robust-{name}")
        if any("failed" in run for run in runs):
            rows.append([variant.what, "does not end: a weight outgrows its grid", "0", "-"])
        elif runs:
            refused = statistics.mean(run["refused"] for run in runs)
            sent = statistics.mean(sum(run["up"]) + sum(run["down"]) for run in runs)
            last = [run["test_final"] for run in runs]
            rows.append([variant.what, spread(last), f"{refused:,.0f}", megabytes(sent)])
    return table(["run", "test accuracy %, last round", "messages refused", "MB"], rows)


# What is averaged.


MEANS = {"parameters": "factors", "sketches:8": "weights by sketches"}


def factor_variants(task: str) -> dict[str, Variant]:
    """Learnt factors, averaged as factors or through sketches of their weights."""
    lines = {}
    for method in ("low-rank", "chain"):
        for epochs in (1, 5, 20):
            for how in ("parameters", "sketches:8"):
                config = {**LEARNT[task], "method": method}
                federated = {
                    **TASKS[task].clients, "exchange": how, "local_epochs": epochs, "rounds": 30,
                    "wire": False,
                }  # fmt: skip
                name = f"factors-{method}-{epochs}-{how}"
                what = f"{method}, {epochs} local epochs, mean of {MEANS[how]}"
                lines[name] = _variant(what, config, federated)
    return lines


def factors_section(results: Results, task: str) -> str:
    """The table: accuracy of either mean after 40 rounds, by local epochs."""
    rows = []
    for name, variant in factor_variants(task).items():
        runs = of(results, task, name)
        if runs:
            last = spread([run["test_final"] for run in runs])
            rows.append([variant.what, f"{runs[0]['numbers']:,}", last])
    return table(["run", "numbers in a message", "test accuracy %, last round"], rows)


# The commands.


def draw_bytes(path: Path, results: Results, task: str) -> None:
    """Accuracy by validation against megabytes sent, mean over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, variant in bytes_variants(task).items():
        runs = [run for run in of(results, task, name) if "failed" not in run]
        if runs:
            sent, accuracy = mean_curve(runs)
            axes.plot(sent / 1e6, accuracy, label=variant.what)
    axes.set_xscale("log")
    axes.set_xlabel("megabytes sent, up and down, all clients")
    axes.set_ylabel("validation accuracy")
    axes.legend(fontsize="small")
    axes.set_title(f"{task}: {TASKS[task].federated.split}")
    replace_file(path, lambda p: figure.savefig(p, dpi=120, format="png"))


Section = tuple[Callable[[str], dict[str, Variant]], Callable[[Results, str], str], str, str]
SECTIONS: dict[str, Section] = {
    "bytes": (bytes_variants, bytes_section, "", "accuracy against bytes sent"),
    "robust": (robust_variants, robust_section, "robust-", "clients that drop and garble"),
    "factors": (factor_variants, factors_section, "", "a mean of factors, or of weights"),
}
"""Every section by name: its lines, its table, what its runs' names begin with, and help."""


def section(name: str, out: Path, tasks: Sequence[str], seeds: Sequence[int]) -> str:
    """Does a section's runs, and gives its tables; a plot beside them."""
    variants, tabled, prefix, _ = SECTIONS[name]
    results = open_results(out / f"{name}.json")
    text = []
    for task in tasks:
        lines = {f"{prefix}{key}": variant for key, variant in variants(task).items()}
        complete(results, task, lines, seeds)
        text += [f"### {task}\n", tabled(results, task), ""]
        if name == "bytes":
            draw_bytes(out / f"bytes-{task}.png", results, task)
    found = "\n".join(text)
    replace_text(out / f"{name}.md", found)
    return found
