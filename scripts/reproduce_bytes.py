"""Error against coded bytes: rate-coded nets of all kinds, several seeds; table and curves.

    scripts/reproduce bytes                              # everything, 5 seeds: hours on two cores
    scripts/reproduce bytes --nets conv,fc-64-32 --seeds 3
    scripts/reproduce bytes --list

Every curve is a sweep of lambda and seeds in one program (``rosler sweep``), in a folder of its own
under ``--out``; what is there already is not trained again, what was interrupted goes on. Bytes are
those of the files that it writes, everything counted; the epoch is chosen by validation among the
last 30 % of them; the test images are looked at once, at the end. Where a point of a curve is asked
for, as the smallest file of some error, the lambda is chosen by the mean error on validation.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import reproducing
from bench_coded_edge import accuracy

from rosler_jax.export.api import calibration_of
from rosler_jax.sweep.runner import model_folder


class Net(NamedTuple):
    """A curve: settings of its runs, and the prices of a kilobit along it."""

    group: str
    lambdas: tuple[float, ...]
    settings: dict[str, Any]


_MNIST = {
    "data": "mnist", "bits": 4, "batch_size": 256, "learning_rate": 3e-3, "epochs": 40,
    "shift": 1, "rotate": 4.0, "zoom": 0.05, "elastic": 0.3, "method": "dense",
}  # fmt: skip
_SMALL = {**_MNIST, "hidden": [64, 32]}
_WIDE = {**_MNIST, "hidden": [300, 100], "epochs": 25}
_CONV = {
    **_MNIST, "model": "scripts/bench_models.py:strided_conv", "epochs": 30, "rotate": 6.0,
    "zoom": 0.06, "elastic": 0.4,
}  # fmt: skip
_TEACHER = {
    **_CONV, "model": "scripts/bench_models.py:small_conv", "options": ["channels=(32,64)"],
    "bits": 8, "epochs": 12, "rotate": 8.0, "zoom": 0.08, "elastic": 0.6,
}  # fmt: skip
_FORMS = {**_WIDE, "epochs": 12}
_CWRU = {
    "data": "scripts/bench_data.py:cwru_spectra", "bits": 4, "batch_size": 64, "hidden": [24],
    "epochs": 60, "noise": 0.2, "method": "dense", "standardize": "all",
    "options": ["front=pool:128"],
}  # fmt: skip
_FASHION = {**_WIDE, "data": "fashion_mnist", "rotate": 0.0, "flip": True}
_CIFAR = {
    "data": "cifar10", "bits": 4, "batch_size": 128, "learning_rate": 3e-3, "epochs": 200,
    "shift": 4, "flip": True, "method": "dense",
}  # fmt: skip
_SURVIVE = "do random sketches survive entropy coding"
_FINE = (0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.014, 0.02)
_COARSE = (0.004, 0.006, 0.009, 0.012, 0.015, 0.018, 0.024, 0.032)
TAUGHT = {"teacher": "teacher"}

NETS: dict[str, Net] = {
    "fc-300-100": Net("mnist", _FINE, _WIDE),
    "fc-300-100-taught": Net("mnist", _FINE, {**_WIDE, **TAUGHT}),
    "fc-64-32": Net("mnist", _COARSE, _SMALL),
    "fc-64-32-taught": Net("mnist", _COARSE, {**_SMALL, **TAUGHT}),
    "dct-64-32": Net("mnist", _COARSE, {**_SMALL, "options": ["front=dct:144"]}),
    "pool-64-32": Net("mnist", _COARSE, {**_SMALL, "options": ["front=pool:196"]}),
    "conv": Net("mnist", (0.006, 0.010, 0.014), _CONV),
    "dense": Net(_SURVIVE, _COARSE, _FORMS),
    "low-rank": Net(_SURVIVE, _COARSE, {**_FORMS, "method": "low-rank"}),
    "chain": Net(_SURVIVE, _COARSE, {**_FORMS, "method": "chain"}),
    "seeded": Net(_SURVIVE, _COARSE, {**_FORMS, "method": "seeded", "rank": 48, "in_sketch": 256}),
    "srht-front": Net(_SURVIVE, _COARSE, {**_FORMS, "options": ["front=srht:196"]}),
    "dct-front": Net(_SURVIVE, _COARSE, {**_FORMS, "options": ["front=dct:144"]}),
    "fashion": Net("fashion", (0.0001, 0.00015, 0.0003, 0.0006, *_FINE[::2], 0.03, 0.05), _FASHION),
    "cwru": Net("cwru", (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15), _CWRU),
    "cifar-resnet8": Net("cifar10", (0.001, 0.003), {**_CIFAR, "model": "resnet8"}),
    "cifar-resnet20": Net("cifar10", (0.001, 0.003), {**_CIFAR, "model": "resnet20"}),
    "cifar-vgg16": Net("cifar10", (0.0005, 0.001), {**_CIFAR, "model": "vgg16"}),
    "cifar-vgg16-sketched": Net(
        "cifar10",
        (0.0005, 0.001),
        {**_CIFAR, "model": "vgg16", "method": "low-rank", "rules": ["*=0.125"]},
    ),
}
"""Every curve by name: a new one is one line here. Eight members share what batches cost."""


def spec(net: Net, seeds: int, out: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """The sweep of a curve."""
    settings = {**net.settings, **changes}
    if "teacher" in settings:
        settings["teacher"] = str(out / settings["teacher"] / "models" / "0")
    axes = {"rate_lambda": list(net.lambdas), "seed": list(range(seeds))}
    return {**settings, "data": reproducing.source(settings["data"]), "axes": axes}


class Point(NamedTuple):
    """A net at one price: means over seeds, percents and bytes."""

    net: str
    price: float
    seeds: int
    error: float
    error_std: float
    validation: float
    file_bytes: float
    bytes_std: float
    integer_error: float | None


def point(
    name: str, price: float, rows: Sequence[dict[str, Any]], integers: Sequence[float]
) -> Point:
    """Mean and deviation of several seeds; of the integers' accuracies where they are known."""
    errors = [100 * (1 - r["test_accuracy"]) for r in rows]
    sizes = [r["file_bytes"] for r in rows]
    held = [100 * (1 - r["validation_accuracy"]) for r in rows]
    mean, spread = reproducing.mean, reproducing.spread
    means = mean(errors), spread(errors), mean(held)
    whole = 100 - 100 * mean(integers) if integers else None
    return Point(name, price, len(rows), *means, mean(sizes), spread(sizes), whole)


def points_of(name: str, folder: Path, rows: list[dict[str, Any]], integers: bool) -> list[Point]:
    """The points of a curve."""
    points = []
    for price in sorted({row["rate_lambda"] for row in rows}):
        found = [row for row in rows if row["rate_lambda"] == price and row["status"] == "done"]
        models = [model_folder(folder, row["member"]) for row in found]
        right = [accuracy(m, calibration_of(m), "int8", 16) for m in models if integers]
        points += [point(name, price, found, right)] if found else []
    return points


def table_of(points: Sequence[Point]) -> str:
    """Markdown, as in BENCHMARKS.md."""
    lines = [
        "| net | lambda | bytes | test error, % | with integers, % | validation, % | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for p in points:
        size = f"{p.file_bytes:,.0f} ± {p.bytes_std:.0f}"
        whole = "" if p.integer_error is None else f"{p.integer_error:.2f}"
        lines.append(
            f"| {p.net} | {p.price:g} | {size} | {p.error:.2f} ± {p.error_std:.2f} "
            f"| {whole} | {p.validation:.2f} | {p.seeds} |"
        )
    return "\n".join(lines)


def draw(path: Path, points: Sequence[Point]) -> None:
    """Curves of error against bytes, one a net."""
    figure, (axes,) = reproducing.figure(width=8, height=5)
    for name in dict.fromkeys(p.net for p in points):
        curve = sorted((p.file_bytes, p.error, p.error_std) for p in points if p.net == name)
        sizes, errors, spreads = zip(*curve, strict=True)
        axes.errorbar(sizes, errors, yerr=spreads, marker="o", capsize=3, label=name)
    axes.set(xscale="log", xlabel="bytes of the file", ylabel="test error, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, format="png")


def main() -> int:
    """Trains what is missing, and shows all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bytes"), metavar="DIR")
    parser.add_argument("--nets", default=",".join(NETS), metavar="A,B", help="of --list")
    parser.add_argument("--lambdas", metavar="F,F", help="in the place of each net's own")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--epochs", type=int, metavar="N", help="in the place of each net's own")
    parser.add_argument("--data", metavar="PATH", help="in the place of each net's own")
    parser.add_argument("--integers", action="store_true", help="score int8 exports, too")
    parser.add_argument("--list", action="store_true", help="the nets, and what they are")
    args = parser.parse_args()
    if args.list:
        for name, net in NETS.items():
            print(f"{name} ({net.group}), lambda {net.lambdas}: {net.settings}")
        return 0
    changes = {k: getattr(args, k) for k in ("epochs", "data") if getattr(args, k) is not None}
    points, failed = [], False
    for name in args.nets.split(","):
        net, folder = NETS[name], args.out / name
        if args.lambdas:
            net = net._replace(lambdas=tuple(map(float, args.lambdas.split(","))))
        try:
            if "teacher" in net.settings:
                data = {k: v for k, v in changes.items() if k == "data"}
                first = spec(Net("", (0.0,), _TEACHER), 1, args.out, data)
                reproducing.sweep(first, args.out / "teacher")
            rows = reproducing.sweep(spec(net, args.seeds, args.out, changes), folder)
        except RuntimeError as error:
            print(f"{name} left out: {error}", file=sys.stderr)
            failed = True
            continue
        points += points_of(name, folder, rows, args.integers)
    if not points:
        return 1
    with (args.out / "bytes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Point._fields)
        writer.writerows(points)
    draw(args.out / "bytes.png", points)
    print(f"{table_of(points)}\n\nwrote bytes.csv and bytes.png into {args.out}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
