"""Data, networks and methods of ``scripts/reproduce accuracy-vs-size``: a line of a curve each.

A :class:`Line` is one sweep: its axes, crossed with the seeds. The lines of a ratio are made for
files of a 50th, 70th and 90th of the dense net's float32 bytes with weights of 16 bits: ranks and
widths follow from the numbers that this leaves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Settings = Mapping[str, Any]
RATIOS = (50, 70, 90)
FILE = 600  # bytes of a file that are no weights: names, shapes, scales


class Line(NamedTuple):
    """One method at one shape.

    Attributes:
      task: of :data:`TASKS`.
      net: that it is, or stands for.
      method: the name of its curve.
      settings: of its runs, over the task's.
      axes: what else varies, by field.
      teacher: the line whose first model it imitates.
      ratio: of the dense net's bytes to its own; 0 where none was aimed at.
      seeds: at most so many, of what is dear; where epochs are multiplied, as many as asked for.
    """

    task: str
    net: str
    method: str
    settings: Settings
    axes: Mapping[str, Sequence[Any]] = {}
    teacher: str | None = None
    ratio: int = 0
    seeds: int = 1000


class Task(NamedTuple):
    """A data set, in words, by name, and what all of its runs share."""

    what: str
    data: str
    settings: Settings


TASKS: dict[str, Task] = {
    "mnist": Task("MNIST", "mnist", {"label_smoothing": 0.1, "epochs": 30, "shift": 1}),
    "cwru": Task(
        "CWRU bearings, split in time", "cwru",
        {"data_options": ["features=fft"], "batch_size": 64, "epochs": 30, "standardize": "all"},
    ),
    "cwru-load-3": Task(
        "CWRU bearings, trained at loads 0 to 2, tested at load 3", "cwru_unseen_load",
        {"batch_size": 64, "epochs": 30, "standardize": "all", "noise": 0.2},
    ),
    "cats-dogs": Task(
        "cats and dogs, 1,600 images of 64 x 64", "cats_dogs",
        {"batch_size": 64, "epochs": 30, "flip": True, "shift": 4, "validation": 0.2},
    ),
    "cifar10": Task(
        "CIFAR-10 (JPEG re-encoding)", "cifar10", {"epochs": 10, "flip": True, "shift": 4}
    ),
}  # fmt: skip


def mlp_numbers(sizes: Sequence[int]) -> int:
    """Weights and biases of a fully connected net."""
    return sum(m * n + n for m, n in itertools.pairwise(sizes))


def widest(fits: Callable[[int], bool]) -> int:
    """The largest whole number that fits."""
    found = 1
    while fits(found + 1):
        found += 1
    return found


def budget(dense: int, ratio: int) -> int:
    """Numbers of 16 bits in a file that is so many times smaller than dense float32."""
    return (4 * dense // ratio - FILE) // 2


def mlp_lines(
    task: str,
    m: int,
    outputs: int,
    sketch: str,
    in_sketch: int,
    dense: Settings,
    sketched: Settings,
    bits: Sequence[int] = (16, 8, 4),
) -> dict[str, Line]:
    """Of a net m-1024-1024-outputs: dense, narrower, learnt factors, seeded cores."""
    h, net = 1024, f"{m}-1024-1024-{outputs}"
    whole = mlp_numbers((m, h, h, outputs))
    kept = 2 * h + h * outputs + outputs  # biases and the head, dense
    wide = {"hidden": [h, h]}
    lines = {"dense": Line(task, net, "dense", {**wide, "method": "dense", "bits": 32, **dense})}
    for ratio in RATIOS:
        room = budget(whole, ratio)

        def narrow_fits(n: int, room: int = room) -> bool:
            return mlp_numbers((m, n, n, outputs)) <= room

        def rank_fits(s: int, room: int = room) -> bool:
            return kept + s * (m + h + 2 * h) <= room

        n, s, cores = widest(narrow_fits), widest(rank_fits), (room - kept) // in_sketch
        rules = [f"hidden.0={cores - cores // 2}", f"hidden.1={cores // 2}", "*=skip"]
        seeded = {"method": "seeded", "rules": rules, "in_sketch": in_sketch, "sketch": sketch}
        for method, made in (
            ("narrower dense", {"method": "dense", "hidden": [n, n], "learning_rate": 3e-3}),
            ("learnt factors", {**wide, "method": "low-rank", "rank": s}),
            ("seeded cores", {**wide, **seeded}),
        ):
            name = f"{method.split()[0]}-{ratio}"
            axes = {"bits": list(bits)}
            lines[name] = Line(task, net, method, {**sketched, **made}, axes, ratio=ratio)
    return lines


def _mnist() -> dict[str, Line]:
    shared = mlp_lines(
        "mnist", 784, 10, "dct:28x28/srht", 256, {"epochs": 15}, {}
    )  # fmt: skip
    taught = {
        f"taught-{ratio}": shared[f"seeded-{ratio}"]._replace(
            method="seeded cores, taught by the dense net", teacher="mnist/dense"
        )
        for ratio in RATIOS
    }
    conv = Line(
        "mnist", "5x5x8 of stride 2, 3x3x16, 3x3x16, head", "plain convolutions",
        {
            "method": "dense", "model": "scripts/bench_models.py:strided_conv", "epochs": 15,
            "learning_rate": 3e-3,
        },
        {"bits": [16, 8, 4]},
    )  # fmt: skip
    coded = Line(
        "mnist", "784-300-100-10", "dense, rate-coded",
        {"method": "dense", "hidden": [300, 100], "bits": 4, "epochs": 25, "learning_rate": 3e-3,
         "batch_size": 256, "label_smoothing": 0.0},
        {"rate_lambda": [0.002, 0.006, 0.02]},
    )  # fmt: skip
    lenet = {"model": "lenet5", "epochs": 6, "learning_rate": 2e-3}
    found = {**shared, **taught, "conv": conv, "coded": coded}
    net = "LeNet-5"
    found["lenet-dense"] = Line(
        "mnist", net, "LeNet-5, dense", {**lenet, "method": "dense"}, {"bits": [32, 8, 4]}
    )
    for fraction in (0.125, 0.25):
        for method, mode in (("learnt factors", "low-rank"), ("seeded cores", "seeded")):
            rules = ["head=skip", "conv1=skip", f"*={fraction}"]
            found[f"lenet-{mode}-{fraction}"] = Line(
                "mnist", net, f"LeNet-5, {method}", {**lenet, "method": mode, "rules": rules},
                {"bits": [8, 4]},
            )  # fmt: skip
    found["lenet-coded"] = Line(
        "mnist", net, "LeNet-5, dense, rate-coded", {**lenet, "method": "dense", "bits": 4},
        {"rate_lambda": [0.003, 0.01, 0.03]},
    )  # fmt: skip
    return found


def _cwru(task: str) -> dict[str, Line]:
    lines = mlp_lines(
        task, 513, 10, "dct/srht", 256, {"epochs": 15}, {"learning_rate": 3e-3}
    )  # fmt: skip
    coded = {"method": "dense", "hidden": [24], "bits": 4, "epochs": 60, "learning_rate": 3e-3}
    lines["coded"] = Line(
        task, "513-24-10", "dense, rate-coded", coded, {"rate_lambda": [0.002, 0.01, 0.05]}
    )
    return lines


def _cats_dogs() -> dict[str, Line]:
    task, net, model = "cats-dogs", "LeNet-5 of 64 x 64", {"model": "lenet5"}
    lines = {"dense": Line(task, net, "dense", {**model, "method": "dense", "bits": 32})}
    ranks = {50: (3, 8), 70: (2, 3), 90: (1, 6)}  # of both dense layers, as the bytes allow
    cores = {50: (64, 40), 70: (40, 24), 90: (24, 18)}
    channels = {50: (24, 32), 70: (20, 28), 90: (16, 24)}

    def rules(first: int, second: int) -> list[str]:
        return [f"fc1={first}", f"fc2={second}", "*=skip"]

    for ratio in RATIOS:
        conv = {
            "method": "dense", "model": "scripts/bench_models.py:small_conv", "learning_rate": 3e-3,
            "options": [f"channels={channels[ratio]}".replace(" ", "")],
        }  # fmt: skip
        learnt = {**model, "method": "low-rank", "rules": rules(*ranks[ratio])}
        seeded = {**model, "method": "seeded", "in_sketch": 96, "rules": rules(*cores[ratio])}
        for name, method, made in (
            ("low", "learnt factors", learnt),
            ("seeded", "seeded cores", seeded),
            ("conv", "plain convolutions", conv),
        ):
            axes = {"bits": [16, 4]}
            lines[f"{name}-{ratio}"] = Line(task, net, method, made, axes, ratio=ratio)
    return lines


def _cifar10() -> dict[str, Line]:
    """Shortened: ``--epochs-times`` makes the lines longer. Dense VGG-16 is for a GPU alone."""
    task = "cifar10"
    lines = mlp_lines(task, 3072, 10, "srht", 512, {}, {}, bits=(16, 4))
    few = {"bits": [8, 4]}
    small: dict[str, Any] = {"model": "lenet5", "learning_rate": 2e-3}
    rules = ["head=skip", "conv1=skip", "*=0.25"]
    for name, method, made in (
        ("lenet", "LeNet-5, dense", {"method": "dense"}),
        ("lenet-low", "LeNet-5, learnt factors", {"method": "low-rank", "rules": rules}),
    ):
        lines[name] = Line(task, "LeNet-5", method, {**small, **made}, few)
    narrow: Settings = {"method": "dense", "options": ["width=8"]}
    for net, model, first, rank, epochs in (
        ("ResNet-8", "resnet8", "stem*", 0.25, 5), ("ResNet-20", "resnet20", "stem*", 0.25, 3),
        ("VGG-16", "vgg16", "stages.0.0*", 0.125, 10),
    ):  # fmt: skip
        deep: Settings = {"model": model, "learning_rate": 2e-3, "epochs": epochs, "bits": 8}
        low: Settings = {"method": "low-rank", "rules": [f"{first}=skip", "head=skip", f"*={rank}"]}
        for end, method, how, seeds in (
            ("", "dense", {"method": "dense"}, int(net != "VGG-16")),
            ("-low", "learnt factors", low, 1),
            ("-narrow", "narrower", narrow, 1),
        ):
            settings = {**deep, **how}
            lines[model + end] = Line(task, net, f"{net}, {method}", settings, seeds=seeds)
    return lines


LINES: dict[str, Line] = {
    f"{task}/{name}": line
    for task, lines in (
        ("mnist", _mnist()), ("cwru", _cwru("cwru")), ("cwru-load-3", _cwru("cwru-load-3")),
        ("cats-dogs", _cats_dogs()), ("cifar10", _cifar10()),
    )
    for name, line in lines.items()
}  # fmt: skip
"""Every line by key: a new one is one entry of its task's function."""
