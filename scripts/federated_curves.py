"""Federated runs and their tables: accuracy against bytes, under faults, by what is averaged.

A table is of runs ``task/name/seed``, each a row that is measured once (see ``reproducing``), so
that what was cut goes on where it was. Bytes are the experiment ``scripts/reproduce federated``;
the others are sections of ``bench_federated.py``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from reproducing import Row, mean, once, plus_minus, rows_of, source, table

from rosler_jax._files import replace_text
from rosler_jax.config import TrainConfig
from rosler_jax.data import DataError
from rosler_jax.federated import FederatedConfig, federated_fit
from rosler_jax.federated.prepare import scored_on
from rosler_jax.federated.simulate import Federated
from rosler_jax.run import RunError

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
            data="mnist", method="dense", hidden=(300, 100), batch_size=32,
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
            data="cwru", data_options=("features=fft",),
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


def run(
    task: str, variant: Variant, seed: int, folder: Path | None = None, rounds: int | None = None
) -> Row:
    """One run: its curve by validation, and the test score of the round that validation chose.

    Args:
      task, variant, seed: the run.
      folder: of the data sets, see ``reproducing.source``.
      rounds: in the place of the task's own, for a quick look.
    """
    base = TASKS[task]
    config = dataclasses.replace(variant.config(base.config), seed=seed)
    config = dataclasses.replace(config, data=source(config.data, folder))
    federated = dataclasses.replace(variant.federated(base.federated), seed=seed)
    floats = federated.upload == federated.download == "float32"  # whose bytes are no question
    federated = dataclasses.replace(
        federated, wire=federated.wire and not floats, rounds=rounds or federated.rounds
    )
    about = {"task": task, "what": variant.what, "seed": seed}
    try:
        found = federated_fit(config, federated)
    except DataError:  # is no result
        raise
    except (RunError, ValueError) as error:  # as a run may end that believes every message
        return {**about, "failed": str(error)}
    rows = found.history
    return {
        **about,
        "asked": federated.asked,
        "validation": [round(row["validation_accuracy"], 5) for row in rows],
        "up": [round(row["up_bytes"]) for row in rows],
        "down": [round(row["down_bytes"]) for row in rows],
        "refused": len(found.refused),
        "numbers": sum(leaf.size for leaf in jax.tree.leaves(found.prepared.rounds.up_like)),
        "wire": federated.wire,
        "test": score(found, final=False),
        "test_final": score(found, final=True),
    }


def score(found: Federated, *, final: bool) -> float:
    """Test accuracy of the model as the clients have it: after the last round, or the best."""
    run, progress = found.prepared, found.progress
    params, buffers = progress.best_params, progress.best_buffers
    if final:
        params, buffers = run.rounds.model(progress.state)

    x, y = map(jax.numpy.asarray, (run.dataset.test_x, run.dataset.test_y))
    return float(scored_on(run, params, buffers, x, y)[1]["accuracy"])


def of(rows: Iterable[Row], task: str, name: str) -> list[Row]:
    """The runs of a line, by seed."""
    return [row for row in rows if row["key"].startswith(f"{task}/{name}/")]


def not_failed(rows: Iterable[Row]) -> list[Row]:
    """Those that came to their end."""
    return [row for row in rows if "failed" not in row]


def sent(run: Row) -> int:
    """Bytes of all messages."""
    return sum(run["up"]) + sum(run["down"])


def mean_curve(runs: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Mean bytes sent so far, and mean accuracy by validation, after each round."""
    so_far = np.mean([np.cumsum(np.add(run["up"], run["down"])) for run in runs], axis=0)
    return so_far, np.mean([run["validation"] for run in runs], axis=0)


def bytes_to(runs: Sequence[Row], target: float) -> float | None:
    """Bytes sent until the mean accuracy over seeds is first there; None if it never is."""
    so_far, accuracy = mean_curve(runs)
    there = np.flatnonzero(accuracy >= target)
    return float(so_far[there[0]]) if there.size else None


def percent(values: Iterable[float]) -> str:
    """Mean and standard deviation, in percent.

    Example:
      >>> percent([0.95, 0.97])
      '96.00 ± 1.41'
    """
    return plus_minus(100 * value for value in values)


def megabytes(number: float | None) -> str:
    """Bytes as megabytes, three digits."""
    if number is None:
        return "never"
    return f"{number / 1e6:,.0f}" if number >= 1e8 else f"{number / 1e6:.3g}"


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


def bytes_section(rows: Sequence[Row], task: str) -> str:
    """The table: what each ends at, and sends to come within a point of the dense net's end."""
    dense = not_failed(of(rows, task, "dense"))
    target = mean(run["validation"][-1] for run in dense) - MARGIN if dense else None
    base = None if target is None else bytes_to(dense, target)
    lines = []
    for name, variant in bytes_variants(task).items():
        runs = not_failed(of(rows, task, name))
        if not runs:
            continue
        needed = None if target is None else bytes_to(runs, target)
        up = mean(sum(run["up"]) / len(run["up"]) / run["asked"] for run in runs)
        lines.append([
            variant.what, f"{runs[0]['numbers']:,}", f"{up:,.0f}",
            percent(run["test"] for run in runs), megabytes(mean(map(sent, runs))),
            "?" if target is None else megabytes(needed),
            "-" if needed is None or base is None else f"{base / needed:,.0f}x",
        ])  # fmt: skip
    accuracy = "the dense net's" if target is None else f"{100 * target:.1f} %"
    head = [
        "what clients train and send", "numbers", "bytes an update", "test accuracy %",
        "MB in all rounds", f"MB to {accuracy} (validation)", "fewer",
    ]  # fmt: skip
    return table(head, lines)


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


def robust_section(rows: Sequence[Row], task: str) -> str:
    """The table: accuracy at the end, and how many messages were refused."""
    lines = []
    for name, variant in robust_variants(task).items():
        runs = of(rows, task, f"robust-{name}")
        if any("failed" in run for run in runs):
            lines.append([variant.what, "does not end: a weight outgrows its grid", "0", "-"])
        elif runs:
            refused = mean(run["refused"] for run in runs)
            last = percent(run["test_final"] for run in runs)
            lines.append([variant.what, last, f"{refused:,.0f}", megabytes(mean(map(sent, runs)))])
    return table(["run", "test accuracy %, last round", "messages refused", "MB"], lines)


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


def factors_section(rows: Sequence[Row], task: str) -> str:
    """The table: accuracy of either mean after 30 rounds, by local epochs."""
    lines = []
    for name, variant in factor_variants(task).items():
        runs = of(rows, task, name)
        if runs:
            last = percent(run["test_final"] for run in runs)
            lines.append([variant.what, f"{runs[0]['numbers']:,}", last])
    return table(["run", "numbers in a message", "test accuracy %, last round"], lines)


# The sections of bench_federated.

Section = tuple[Callable[[str], dict[str, Variant]], Callable[[Sequence[Row], str], str], str, str]
SECTIONS: dict[str, Section] = {
    "robust": (robust_variants, robust_section, "robust-", "clients that drop and garble"),
    "factors": (factor_variants, factors_section, "", "a mean of factors, or of weights"),
}
"""Every section by name: its lines, its table, what its runs' names begin with, and help."""


def section(
    name: str, out: Path, tasks: Sequence[str], seeds: Sequence[int], data: Path | None
) -> str:
    """Does a section's runs, and gives its tables."""
    variants, tabled, prefix, _ = SECTIONS[name]
    text = []
    for task in tasks:
        for seed in seeds:
            for key, variant in variants(task).items():
                measure = functools.partial(run, task, variant, seed, data)
                once(out, f"{task}/{prefix}{key}/{seed}", measure)
        text += [f"### {task}\n", tabled(rows_of(out), task), ""]
    found = "\n".join(text)
    replace_text(out / f"{name}.md", found)
    return found
