"""On a microcontroller, an emulated Cortex-M4: inference, and training on the device.

    scripts/reproduce hardware                                # 3 seeds: hours on two cores
    scripts/reproduce hardware --only inference/CWRU,single --seeds 1
    scripts/reproduce hardware --scale 0.02 --seeds 1 --out runs/quick

Inference: dense and compact networks on digits and bearings (``bench_edge``). Training: a bearing
monitor that adapts to another load in C (``bench_edge_train``). A row is
``inference/TASK/NETWORK/SEED``, ``adapting/NETWORK AND PARTS/SEED``, ``single step/NETWORK`` or
``two ways/NETWORK``. Instructions are those that QEMU counts; energy is an estimate from them.
Needs arm-none-eabi-gcc and qemu-system-arm.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench_edge import NETS, Net, dataset_of, edge_table, measure, train
from bench_edge_train import (
    LARGEST,
    NETWORKS,
    VARIANTS,
    WINDOWS,
    Variant,
    adapt,
    adapting_table,
    both_ways,
    single_steps,
    single_table,
    splits,
    train_on_host,
    ways_table,
)
from reproducing import (
    Row,
    begin,
    figure,
    finish,
    grouped,
    mean,
    once,
    parser_of,
    provenance,
    rows_of,
    source,
    spread,
    wanted,
)

from rosler_jax.data import DataError
from rosler_jax.export.firmware import ToolchainError, find_toolchain
from rosler_jax.export.firmware.toolchain import version

NAME = "hardware"
BOARD = "cortex-m4"
EMULATED = 20  # inputs of which instructions are counted
TASKS = ("CWRU", "MNIST")  # as they are done: the quick one first
MARKS = {"MNIST": "o", "CWRU": "s"}


def inference(args: argparse.Namespace, task: str, net: Net, seed: int) -> Row:
    """A network that is trained, exported, scored, and counted."""
    path = args.out / "models" / f"{task}-{net.name}-{seed}.rosler".replace(" ", "_")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = dataset_of(task, args.data)
    found = train(data, net, seed, args.scale, path)
    return {
        "part": "inference",
        "task": task,
        "what": net.name,
        "seed": seed,
        "validation_accuracy": found,
        **measure(data, net, path, EMULATED, BOARD),
    }


def loads(args: argparse.Namespace) -> Any:
    """The windows of both loads."""
    return _loads(Path(source("cwru", args.data)))


def graph_of(args: argparse.Namespace, network: str, seed: int) -> Any:
    """A network trained at load 0; kept for the rows that adapt the same one."""
    return _graph(Path(source("cwru", args.data)), network, seed, args.scale)


_loads = functools.cache(splits)


@functools.lru_cache(maxsize=1)
def _graph(path: Path, network: str, seed: int, scale: float) -> Any:
    return train_on_host(network, _loads(path), seed, scale)


def with_tools(part: str, what: str, seed: int, found: Row) -> Row:
    """A row of training, with the programs that built and ran it."""
    tools = find_toolchain()
    programs = {"compiler": version(tools.compiler), "emulator": version(tools.emulator)}
    return {"part": part, "task": "CWRU", "what": what, "seed": seed, **found, **programs}


def adapting(args: argparse.Namespace, variant: Variant, seed: int) -> Row:
    """A network at load 0 that the C code adapts to load 3."""
    found = adapt(graph_of(args, variant.network, seed), variant, loads(args))
    return with_tools("adapting", variant.name, seed, {"network": variant.network, **found})


def single(args: argparse.Namespace, network: str) -> Row:
    """Steps on one example."""
    found = single_steps(graph_of(args, network, 0), loads(args))
    return with_tools("single step", network, 0, found)


def two_ways(args: argparse.Namespace, network: str) -> Row:
    """A step by either kind of code."""
    return with_tools("two ways", network, 0, both_ways(graph_of(args, network, 0), loads(args)))


def plan(args: argparse.Namespace) -> dict[str, Callable[[], Row]]:
    """All rows by key, and how each is measured: the first seed of everything comes first.

    A key has no commas, which are between those of ``--only``.
    """
    tail = "" if args.scale == 1 else f"/scale {args.scale:g}"
    found: dict[str, Callable[[], Row]] = {}

    def add(key: str, make: Callable[..., Row], *given: Any) -> None:
        found[key.replace(",", "") + tail] = functools.partial(make, args, *given)

    for seed in range(args.seeds):
        for network in NETWORKS:
            for variant in VARIANTS:
                if variant.network == network:
                    add(f"adapting/{variant.name}/{seed}", adapting, variant, seed)
            if seed == 0:
                add(f"single step/{network}", single, network)
            if seed == 0 and network != LARGEST:  # with a velocity it has no room on the board
                add(f"two ways/{network}", two_ways, network)
        for task in TASKS:
            for net in NETS[task]:
                add(f"inference/{task}/{net.name}/{seed}", inference, task, net, seed)
    return found


def measured(args: argparse.Namespace, rows: dict[str, Callable[[], Row]]) -> list[Row]:
    """Those that are wanted are measured; all of the plan that are there, in its order."""
    for key, make in rows.items():
        if wanted(key, args):
            once(args.out, key, make)
    return there(args, rows)


def there(args: argparse.Namespace, rows: dict[str, Callable[[], Row]]) -> list[Row]:
    """The rows of a plan that have been measured, in its order."""
    found = {row["key"]: row for row in rows_of(args.out)}
    return [found[key] for key in rows if key in found]


def section(rows: Sequence[Row]) -> str:
    """The text of BENCHMARKS.md: where the numbers are from, the tables."""
    tools = sorted({f"{row['compiler']}; {row['emulator']}" for row in rows})
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
    return "\n\n".join([
        provenance(f"scripts/reproduce {NAME}", rows),
        f"{'; '.join(tools)}. Seeds {seeds}: means, ± a standard deviation.",
        *inference_text(rows),
        *training_text(rows),
    ])  # fmt: skip


def inference_text(rows: Sequence[Row]) -> list[str]:
    """A table a task."""
    text = []
    for task in NETS:
        found = [row for row in of(rows, "inference") if row["task"] == task]
        if found:
            base = [row for row in found if row["what"] == NETS[task][0].name]
            text += [f"**Inference, {task}**", edge_table(found, base)]
    return text


def training_text(rows: Sequence[Row]) -> list[str]:
    """Three tables: adapting, a step on one example, a step by either kind of code."""
    text, ways = [], of(rows, "two ways")
    if found := of(rows, "adapting"):
        text += [
            f"**Training: accuracy at load 3** (nine classes, last 20 % of every recording) before "
            f"and after adapting on {WINDOWS} windows of each class; steps of {found[0]['batch']} "
            "examples, momentum 0.9. The dense networks adapted on this machine.",
            adapting_table(found),
        ]
    if found := of(rows, "single step"):
        text += [
            "**Plain SGD, one example a step**, no velocity (weights change at once), all parts, "
            "float32, seed 0:",
            single_table(found),
        ]
    if ways:
        text += [
            f"**In two ways**: steps of {ways[0]['batch']} examples, momentum 0.9, all parts, "
            "float32, seed 0:",
            ways_table(ways),
        ]
    return text


def of(rows: Sequence[Row], part: str) -> list[Row]:
    """The rows of a part."""
    return [row for row in rows if row["part"] == part]


def draw(rows: Sequence[Row]) -> Any:
    """Accuracy against instructions: of an inference, and of a training step an example."""
    made, (left, right) = figure(2, width=6.0, height=5.5)
    for i, ((task, what), some) in enumerate(
        grouped(of(rows, "inference"), "task", "what").items()
    ):
        accuracy = [100 * row["test_accuracy"] for row in some]
        counts = [row["instructions"] for row in some]
        point(left, counts, accuracy, label=f"{task}, {what}", color=f"C{i}", marker=MARKS[task])
    for i, ((what,), some) in enumerate(grouped(of(rows, "adapting"), "what").items()):
        counts, how = step_counts(rows, some)
        if counts:
            after = [row["after"] for row in some]
            point(right, counts, after, label=f"{what}{how}", color=f"C{i}", marker=MARKS["CWRU"])
    left.set(xlabel="instructions an inference", ylabel="test accuracy, %", title="inference")
    right.set(
        xlabel="instructions a training step, an example of it",
        ylabel="accuracy at load 3 after adapting, %",
        title="training on the device, CWRU",
    )
    for one in (left, right):
        one.set_xscale("log")
        one.grid(alpha=0.3)
        one.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return made


def step_counts(rows: Sequence[Row], some: Sequence[Row]) -> tuple[list[float], str]:
    """Instructions an example of a step; of those not emulated while they adapt, plain SGD's."""
    counted = [row["instructions a step"] / row["batch"] for row in some
               if row["instructions a step"] is not None]  # fmt: skip
    if counted:
        return counted, ""
    alone = [row for row in of(rows, "single step") if row["what"] == some[0]["network"]]
    return [row["instructions a step"] for row in alone], " (a step of plain SGD)"


def point(axes: Any, counts: Sequence[float], accuracy: Sequence[float], **style: Any) -> None:
    """The mean of some seeds, with a bar of one deviation."""
    axes.errorbar(
        mean(counts), mean(accuracy), yerr=spread(accuracy), linestyle="none", capsize=3, **style
    )


def missing_tools() -> str:
    """What is not installed, and the packages that have it; empty if nothing is missing."""
    try:
        find_toolchain()
    except ToolchainError as error:
        return str(error)
    return ""


def main() -> int:
    """Measures what is missing, and shows all."""
    parser = parser_of(NAME, __doc__)
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="F", help="of epochs, for a quick look"
    )
    args = parser.parse_args()
    rows_by_key = plan(args)
    if not begin(NAME, args, rows_by_key):
        return 0
    done = {row["key"] for row in rows_of(args.out)}
    refused = [key for key in rows_by_key if wanted(key, args) and key not in done]
    lacking = missing_tools() if refused else ""
    if lacking:
        print(f"error: {len(refused)} rows refused: {lacking}", file=sys.stderr)
    try:
        rows = there(args, rows_by_key) if lacking else measured(args, rows_by_key)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not rows:
        print("no row is measured", file=sys.stderr)
        return 1
    finish(NAME, args, section(rows), draw(rows))
    return int(bool(lacking))


if __name__ == "__main__":
    sys.exit(main())
