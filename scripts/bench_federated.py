r"""Federated training: faults, what is averaged, and how fast it is simulated.

    python scripts/bench_federated.py robust --out runs/federated    # resumable, as the next one
    python scripts/bench_federated.py factors --out runs/federated
    python scripts/bench_federated.py speed --out runs/federated
    python scripts/bench_federated.py speed --out runs/federated --cases "mnist, low-rank, 32" \
        --without "ours, coded, every message as bytes"          # which takes seconds a round

``robust`` lets clients drop and send garbage. ``factors`` averages learnt factors as such, and
through sketches of the weights behind them. Accuracy against bytes is ``scripts/reproduce
federated``, of the same tasks (``federated_curves``).

``speed`` plays rounds of the same task by this library, by a loop over clients in Python, and by
Flower's simulation in this process (see ``federated_flower``; Flower need be installed), in turns.
All train the same model by the same compiled passes on the same split; it is scored at the end. The
first round of a turn, which may compile, is left out. Client-epochs a second are passes of one
client over its examples; ratios are of the medians of a turn: the median over turns (lowest to
highest).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from federated_curves import SECTIONS, TASKS, section
from federated_flower import FLOWER, Parts, Played, flower_rounds, parts_of, plain_rounds
from reproducing import source

from rosler_jax._files import replace_json, replace_text
from rosler_jax.config import TrainConfig
from rosler_jax.federated import Clients, FederatedConfig
from rosler_jax.federated.clients import as_clients
from rosler_jax.federated.prepare import (
    Prepared,
    Progress,
    begin_progress,
    prepare_federated,
    programs,
    scored_on,
)
from rosler_jax.federated.simulate import Row, play_round

FLOATS = {"upload": "float32", "download": "float32"}
OURS: dict[str, dict[str, Any]] = {
    "ours": {**FLOATS, "wire": False},
    "ours, every message as bytes": {**FLOATS, "wire": True},
    "ours, coded": {"wire": False},
    "ours, coded, every message as bytes": {"wire": True},
}
"""What differs: as Flower, float32 numbers both ways; or coded by default, which Flower is not."""


class Case(NamedTuple):
    """A task.

    Attributes:
      config: what a client trains.
      federated: how many there are, and who is asked.
      each: examples of a client, where not all are spread; 0 for all.
    """

    config: TrainConfig
    federated: FederatedConfig
    each: int = 0


def _mnist(clients: int, each: int, **config: Any) -> Case:
    given: dict[str, Any] = {
        "data": source("mnist"), "hidden": (300, 100), "batch_size": 32, "rank": 16,
        "schedule": "constant",
    }  # fmt: skip
    asked = min(100, clients)
    federated = FederatedConfig(clients=clients, participation=asked / clients, rounds=100)
    return Case(TrainConfig(**given | config), federated, each)


def _cwru(**config: Any) -> Case:
    given: dict[str, Any] = {
        "data": source("cwru"), "data_options": ("features=fft",),
        "hidden": (64,), "batch_size": 32, "rank": 8, "schedule": "constant",
    }  # fmt: skip
    federated = FederatedConfig(clients=40, participation=1.0, rounds=100, split="recording")
    return Case(TrainConfig(**given | config), federated)


CASES: dict[str, Case] = {
    "mnist, low-rank, 32": _mnist(1000, 32, method="low-rank"),
    "mnist, low-rank, 64": _mnist(800, 64, method="low-rank"),
    "mnist, low-rank, 540": _mnist(100, 540, method="low-rank"),
    "mnist, seeded, 32": _mnist(1000, 32, method="seeded"),
    "mnist, seeded, 64": _mnist(800, 64, method="seeded"),
    "mnist, dense, 32": _mnist(1000, 32, method="dense"),
    "mnist, dense, 64": _mnist(800, 64, method="dense"),
    "cwru, low-rank, 165": _cwru(method="low-rank"),
    "cwru, dense, 165": _cwru(method="dense"),
}
"""Every task by name, the last number examples of a client: a new one is one line here."""


def clients_of(case: Case, count: int) -> Clients | None:
    """Clients with so many examples each; None for the config's own split."""
    if not case.each:
        return None
    clients = case.federated.clients
    order = np.random.default_rng(case.federated.seed).permutation(count)[: clients * case.each]
    return as_clients(np.split(order, clients))


def prepared(case: Case, options: Mapping[str, Any]) -> Prepared:
    """A case's run, with options of the federated config replaced."""
    never = {"evaluate_every": 10**6}  # in no round: what is measured is training
    federated = FederatedConfig(**{**vars(case.federated), **never, **options})
    run = prepare_federated(case.config, federated)
    clients = clients_of(case, len(run.arrays.train_x))
    return run if clients is None else run._replace(clients=clients)


def our_rounds(run: Prepared) -> Callable[[int], Played]:
    """Plays rounds of a run from its start; compiles once."""
    parts = programs(run)

    def play(rounds: int) -> Played:
        progress, history = begin_progress(run), list[Row]()
        for _ in range(rounds):
            progress, row, _ = play_round(run, parts, progress, history)
            history.append(row)
        seconds = [row["seconds"] for row in history]
        return Played(seconds, [validated(run, progress)], progress.state.sent)

    return play


def validated(run: Prepared, progress: Progress) -> float:
    """Accuracy on validation of the model that clients have."""
    x, y = run.arrays.validation_x, run.arrays.validation_y
    return float(scored_on(run, *run.rounds.model(progress.state), x, y)[1]["accuracy"])


def players(case: Case) -> dict[str, Callable[[int], Played]]:
    """All that play the rounds of a case."""
    found = {name: our_rounds(prepared(case, options)) for name, options in OURS.items()}
    parts = parts_of(prepared(case, OURS["ours"]))
    found["a loop in Python"] = lambda rounds: plain_rounds(parts, rounds)
    return {**found, **{name: _flower(parts, setup) for name, setup in FLOWER.items()}}


def _flower(parts: Parts, setup: Any) -> Callable[[int], Played]:
    return lambda rounds: flower_rounds(parts, rounds, setup)


class Timed(NamedTuple):
    """A player's turns: seconds of rounds, and the accuracy at the end of the first."""

    turns: list[list[float]]
    accuracy: float

    @property
    def medians(self) -> list[float]:
        """Of each turn."""
        return [statistics.median(turn) for turn in self.turns]


def in_turns(
    play: Mapping[str, Callable[[int], Played]], rounds: int, turns: int
) -> dict[str, Timed]:
    """Every player once a turn, so that what else the machine does meets all alike."""
    found: dict[str, Timed] = {}
    for i in range(turns):
        for name, one in play.items():
            print(f"\r  turn {i + 1}/{turns}: {name:44}", end="", file=sys.stderr, flush=True)
            played = one(rounds + 1)
            before = found.get(name, Timed([], played.accuracies[-1]))
            found[name] = before._replace(turns=[*before.turns, played.seconds[1:]])
    print(file=sys.stderr)
    return found


def ratio(ours: Timed, other: Timed) -> list[float]:
    """How many times as long another takes: lowest, median and highest of the turns."""
    all_ = [b / a for a, b in zip(ours.medians, other.medians, strict=True)]
    return [min(all_), statistics.median(all_), max(all_)]


def fastest_flower(timed: Mapping[str, Timed]) -> str:
    """Of those that are Flower's whole simulation."""
    whole = [name for name, setup in FLOWER.items() if setup.workers]
    return min(whole, key=lambda name: statistics.median(timed[name].medians))


def speed_rows(case: Case, timed: Mapping[str, Timed]) -> list[dict[str, Any]]:
    """What is to be said of each player."""
    passes = case.federated.asked * case.federated.local_epochs
    base, fastest = timed["ours"], fastest_flower(timed)
    return [
        {
            "player": name + (" (its fastest)" if name == fastest else ""),
            "rates": sorted(passes / seconds for seconds in one.medians),
            "accuracy": one.accuracy,
            "times": ratio(base, one),
            "turns": one.turns,
        }
        for name, one in timed.items()
    ]


def speed_table(rows: list[dict[str, Any]]) -> str:
    """As text."""
    lines = [
        "| player | client-epochs a second | ours is faster | accuracy |",
        "|---|---:|---:|---:|",
    ]
    for row in rows:
        rates, (low, middle, high) = row["rates"], row["times"]
        lines.append(
            f"| {row['player']} | {statistics.median(rates):,.0f} ({rates[0]:,.0f} to "
            f"{rates[-1]:,.0f}) | {middle:.1f}x ({low:.1f} to {high:.1f}) | "
            f"{row['accuracy']:.4f} |"
        )
    return "\n".join(lines)


def speed(options: argparse.Namespace) -> None:
    """Measures every case and writes speed.md and speed.json."""
    options.out.mkdir(parents=True, exist_ok=True)
    results, texts = {}, list[str]()
    for name in options.cases or CASES:
        play = {k: v for k, v in players(CASES[name]).items() if k not in options.without}
        timed = in_turns(play, options.rounds, options.turns)
        results[name] = speed_rows(CASES[name], timed)
        asked = CASES[name].federated.asked
        texts.append(f"{name} examples a client, {asked} asked:\n\n{speed_table(results[name])}\n")
        print(texts[-1], flush=True)
        replace_json(options.out / "speed.json", {"about": about(options), "results": results})
    replace_text(options.out / "speed.md", "\n".join(texts))
    print(f"{about(options)}\nwritten to {options.out}/speed.md, speed.json")


def curves(options: argparse.Namespace) -> None:
    """Does a section of ``federated_curves``, and writes its tables."""
    seeds = range(options.seeds)
    text = section(options.section, options.out, options.tasks, seeds, options.data)
    print(f"{text}\nwritten to {options.out}/{options.section}.md; rows are in {options.out}/rows")


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Of the machine, the versions and the options."""
    kept = {k: v for k, v in vars(options).items() if isinstance(v, int | float)}
    return {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
        "flwr": importlib.metadata.version("flwr"),
        "python": platform.python_version(),
        **kept,
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("speed", help="client-epochs a second, against Flower")
    command.add_argument("--out", type=Path, required=True, help="folder for the tables")
    command.add_argument(
        "--cases", type=lambda s: [name.strip() for name in s.split(";")],
        help=f"of {'; '.join(CASES)}",
    )  # fmt: skip
    command.add_argument(
        "--without", type=lambda s: [name.strip() for name in s.split(";")], default=[],
        help=f"players to leave out, of {'; '.join(list(OURS)[1:])}",
    )  # fmt: skip
    command.add_argument("--rounds", type=int, default=4, help="of a turn that are timed")
    command.add_argument("--turns", type=int, default=5)
    command.set_defaults(run=speed)
    for name, (*_, said) in SECTIONS.items():
        command = commands.add_parser(name, help=said)
        command.add_argument("--out", type=Path, required=True, help="folder for rows and tables")
        command.add_argument("--data", type=Path, help="folder of the data sets")
        command.add_argument("--tasks", type=lambda s: s.split(","), default=list(TASKS))
        command.add_argument("--seeds", type=int, default=3, help="how many, from 0")
        command.set_defaults(run=curves, section=name)
    options = parser.parse_args(arguments)
    unknown = set(getattr(options, "cases", None) or ()) - set(CASES)
    if unknown:
        parser.error(f"unknown cases {sorted(unknown)}; expected of {'; '.join(CASES)}")
    options.run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
