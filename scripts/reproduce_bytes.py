"""Error against coded bytes: rate-coded nets of all kinds, several seeds; table and curves.

    scripts/reproduce bytes                          # everything, 5 seeds: many hours on two cores
    scripts/reproduce bytes --nets conv,fc-64-32 --seeds 3
    scripts/reproduce bytes --list

Every run is ``rosler train``'s, in a folder of its own under ``--out``; what is there already is
not trained again, what was interrupted goes on. Bytes are those of the file on disk, everything
counted; the epoch is chosen by validation among the last 30 % of them; the test images are looked
at once, at the end. Where a point of a curve is asked for, as the smallest file of some error, the
lambda is chosen by the mean error on validation.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rosler_jax import run
from rosler_jax.config import TrainConfig, command_line

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


class Net(NamedTuple):
    """A curve: settings of a run, and the prices of a kilobit along it."""

    group: str
    lambdas: tuple[float, ...]
    settings: dict[str, Any]


_MNIST = {
    "data": "mnist", "bits": 4, "batch_size": 256, "learning_rate": 3e-3, "epochs": 40,
    "shift": 1, "rotate": 4.0, "zoom": 0.05, "elastic": 0.3, "method": "dense",
}  # fmt: skip
_SMALL = {**_MNIST, "hidden": (64, 32)}
_WIDE = {**_MNIST, "hidden": (300, 100), "epochs": 30}
_CONV = {
    **_MNIST, "model": "scripts/bench_models.py:strided_conv", "epochs": 30, "rotate": 6.0,
    "zoom": 0.06, "elastic": 0.4,
}  # fmt: skip
_FORMS = {**_WIDE, "epochs": 12}
_CWRU = {
    "data": "scripts/bench_data.py:cwru_spectra", "bits": 4, "batch_size": 64, "hidden": (24,),
    "epochs": 60, "noise": 0.2, "method": "dense", "standardize": "all",
    "options": ("front=pool:128",),
}  # fmt: skip
_FASHION = {**_WIDE, "data": "fashion_mnist", "rotate": 0.0}
_CIFAR = {
    "data": "cifar10", "bits": 4, "batch_size": 128, "learning_rate": 3e-3, "epochs": 200,
    "shift": 4, "flip": True, "method": "dense", "noise": 0.0,
}  # fmt: skip
_SURVIVE = "do random sketches survive entropy coding"

NETS: dict[str, Net] = {
    "fc-300-100": Net("mnist", (0.004, 0.006, 0.008, 0.012), _WIDE),
    "fc-64-32": Net("mnist", (0.006, 0.009, 0.013, 0.018), _SMALL),
    "dct-64-32": Net("mnist", (0.006, 0.009, 0.013), {**_SMALL, "options": ("front=dct:144",)}),
    "pool-64-32": Net("mnist", (0.006, 0.009, 0.013), {**_SMALL, "options": ("front=pool:196",)}),
    "conv": Net("mnist", (0.006, 0.010, 0.014), _CONV),
    "dense": Net(_SURVIVE, (0.008,), _FORMS),
    "low-rank": Net(_SURVIVE, (0.008,), {**_FORMS, "method": "low-rank"}),
    "chain": Net(_SURVIVE, (0.008,), {**_FORMS, "method": "chain"}),
    "seeded": Net(_SURVIVE, (0.008,), {**_FORMS, "method": "seeded", "rules": ("*=0.5",)}),
    "ares-bp": Net(_SURVIVE, (0.008,), {**_FORMS, "method": "ares-bp"}),
    "srht-front": Net(_SURVIVE, (0.008,), {**_FORMS, "options": ("front=srht:196",)}),
    "dct-front": Net(_SURVIVE, (0.008,), {**_FORMS, "options": ("front=dct:144",)}),
    "fashion": Net("fashion", (0.003, 0.01, 0.03), _FASHION),
    "cwru": Net("cwru", (0.03, 0.06, 0.1), _CWRU),
    "cifar-resnet8": Net("cifar10", (0.001, 0.003), {**_CIFAR, "model": "resnet8"}),
    "cifar-resnet20": Net("cifar10", (0.001, 0.003), {**_CIFAR, "model": "resnet20"}),
}
"""Every curve by name: a new one is one line here."""


def source(name: str) -> str:
    """Where a data set lies: beside the checkout where it does, else its name."""
    beside = SHARED / {"cifar10": "cifar10_jpeg.npz"}.get(name, name)
    return str(beside) if beside.exists() else name


def configs(net: Net, seeds: int, changes: dict[str, Any]) -> Iterator[TrainConfig]:
    """All runs of a curve, seed by seed."""
    settings = {**net.settings, **changes, "data": source(net.settings["data"])}
    for seed in range(seeds):
        for price in net.lambdas:
            yield TrainConfig(**settings, rate_lambda=price, seed=seed)


def result_of(config: TrainConfig, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """What a run ends with, which may be known."""
    known = folder / run.RESULT
    if not known.exists():
        begun = (folder / run.CONFIG).exists()
        tell(f"{folder}: {command_line(config)}{' (goes on)' if begun else ''}")
        run.train(None if begun else config, folder, resume=begun)
    found: dict[str, Any] = json.loads(known.read_text(encoding="utf-8"))
    return found


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


def point(name: str, price: float, results: Sequence[dict[str, Any]]) -> Point:
    """Mean and deviation of several seeds."""
    errors = [100 * (1 - r["test_accuracy"]) for r in results]
    sizes = [r["file_bytes"] for r in results]
    held = [100 * (1 - r["validation_accuracy"]) for r in results]

    def spread(values: Sequence[float]) -> float:
        return statistics.stdev(values) if len(values) > 1 else 0.0

    means = statistics.mean(errors), spread(errors), statistics.mean(held)
    return Point(name, price, len(results), *means, statistics.mean(sizes), spread(sizes))


def table(points: Sequence[Point]) -> str:
    """Markdown, as in BENCHMARKS.md."""
    lines = [
        "| net | lambda | bytes | test error, % | validation, % | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for p in points:
        size = f"{p.file_bytes:,.0f} ± {p.bytes_std:.0f}"
        lines.append(
            f"| {p.net} | {p.price:g} | {size} | {p.error:.2f} ± {p.error_std:.2f} "
            f"| {p.validation:.2f} | {p.seeds} |"
        )
    return "\n".join(lines)


def draw(path: Path, points: Sequence[Point]) -> None:
    """Curves of error against bytes, one a net."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
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
    parser.add_argument("--out", default="runs/bytes", metavar="DIR")
    parser.add_argument("--nets", default=",".join(NETS), metavar="A,B", help="of --list")
    parser.add_argument("--lambdas", metavar="F,F", help="in the place of each net's own")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--epochs", type=int, metavar="N", help="in the place of each net's own")
    parser.add_argument("--teacher", metavar="DIR", help="a run to imitate as well")
    parser.add_argument("--list", action="store_true", help="the nets, and what they are")
    args = parser.parse_args()
    if args.list:
        for name, net in NETS.items():
            first = dataclasses.replace(next(configs(net, 1, {})), rate_lambda=net.lambdas[0])
            print(f"{name} ({net.group}): {command_line(first)}")
        return 0
    changes = {k: getattr(args, k) for k in ("epochs", "teacher") if getattr(args, k) is not None}
    points = []
    for name in args.nets.split(","):
        net = NETS[name]
        if args.lambdas:
            net = net._replace(lambdas=tuple(map(float, args.lambdas.split(","))))
        results: dict[float, list[dict[str, Any]]] = {}
        for config in configs(net, args.seeds, changes):
            folder = Path(args.out) / name / f"{config.rate_lambda:g}-{config.seed}"
            try:
                found = result_of(config, folder, lambda text: print(text, file=sys.stderr))
            except (OSError, ImportError) as error:
                print(f"{name} left out: {error}", file=sys.stderr)
                break
            results.setdefault(config.rate_lambda, []).append(found)
        points += [point(name, price, some) for price, some in sorted(results.items())]
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "bytes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Point._fields)
        writer.writerows(points)
    draw(out / "bytes.png", points)
    print(f"{table(points)}\n\nwrote bytes.csv and bytes.png into {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
