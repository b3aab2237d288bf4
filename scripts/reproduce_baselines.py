"""Methods of others on the same data, epochs and bytes as the library's; errors against bytes.

    scripts/reproduce baselines                        # LeNet-300-100 and LeNet-5, MNIST
    scripts/reproduce baselines --only SNIP,seeded --seeds 1
    scripts/reproduce baselines --epochs 20            # rows of their own

Pruning (lottery tickets, SNIP), Deep Compression, truncated SVD, learnt factors, dynamical low-rank
training, quantisation, narrower nets and a small CNN, beside the library's seeded sketches and
rate-coded weights. Every training has the same examples, epochs, batches, AdamW and one-cycle
schedule (DLRT: SGD, as published), and no augmentation; the epoch is chosen by validation; the
error is that of the file, read again, on the test images, once. Bytes are those of the file that
the library writes. Methods that train several times say how often.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import baselines  # noqa: F401, before NumPy
import reproducing as rp
from baselines import deep_compression, dlrt, imp, library, snip, svd
from baselines.files import Shipped, graph_of, measured
from baselines.training import Trained, initial, prepared, train_as_library

from rosler_jax.config import TrainConfig
from rosler_jax.run import Prepared

NAME = "baselines"
PRUNED_RATE = 1e-2  # of AdamW at its peak: by validation better than 3e-3 for 2 to 5 % of weights
DLRT_RATE = 0.2  # of SGD at its peak: by validation better than 0.05; 0.5 diverges
NETS: dict[str, dict[str, Any]] = {
    "LeNet-300-100": library.WIDE,
    "LeNet-5": {"model": "lenet5", "method": "dense"},
}
PRUNED_BITS = (8, 4)
IMP_KEEP, IMP_ROUNDS = {"LeNet-300-100": 1 / 3, "LeNet-5": 0.07}, {"LeNet-300-100": 3, "LeNet-5": 1}
SNIP_SPARSITIES = {"LeNet-300-100": (0.95, 0.98), "LeNet-5": (0.93,)}
DEEP: dict[str, tuple[tuple[dict[str, float], int], ...]] = {
    "LeNet-300-100": (
        ({"hidden/0": 0.08, "hidden/1": 0.09, "head": 0.26}, 64),
        ({"hidden/0": 0.03, "hidden/1": 0.05, "head": 0.2}, 16),
    ),
    "LeNet-5": (({"conv1": 0.66, "conv2": 0.12, "fc1": 0.08, "fc2": 0.12, "head": 0.3}, 32),),
}
RANKS = (8, 16, 32)
DLRT_RANKS, DLRT_TOLERANCES, DLRT_LARGEST = (8, 16), (0.15, 0.3), 32

Made = Iterator[tuple[str, Shipped, int, Prepared]]
"""Of each setting: its name, the file, how many trainings it took, its data and model."""


class Setup(NamedTuple):
    """What all trainings share: a source of data, epochs of dense-sized nets and of LeNet-5."""

    data: str
    epochs: int
    convolutional: int
    shift: int


class Job(NamedTuple):
    """Trainings that give rows, one for each setting: files of ``run(setup, seed)``."""

    net: str
    method: str
    settings: tuple[str, ...]
    run: Callable[[Setup, int], Made]


def config_of(setup: Setup, seed: int, net: str = "LeNet-300-100", **changes: Any) -> TrainConfig:
    """The run of a net, with changes."""
    fields = {**NETS[net], **changes} if "hidden" not in changes and "model" not in changes else {
        "method": "dense", **changes
    }  # fmt: skip
    epochs = setup.convolutional if net == "LeNet-5" else setup.epochs
    shared = {"data": setup.data, "epochs": epochs, "shift": setup.shift, "seed": seed}
    return TrainConfig(**{**shared, **fields})


@functools.lru_cache(maxsize=2)
def dense(setup: Setup, seed: int, net: str) -> tuple[Prepared, Trained]:
    """The whole net, trained once: where several methods begin."""
    problem = prepared(config_of(setup, seed, net))
    return problem, train_as_library(problem)


def with_rate(problem: Prepared, rate: float, epochs: int | None = None) -> Prepared:
    """The same with another learning rate, and perhaps other epochs."""
    config = dataclasses.replace(
        problem.config, learning_rate=rate, epochs=epochs or problem.config.epochs
    )
    return problem._replace(config=config, hyper=problem.hyper._replace(learning_rate=rate))


def quantised(setup: Setup, seed: int, net: str) -> Made:
    """The dense net at several bits, after training."""
    problem, found = dense(setup, seed, net)
    for bits, coded in ((32, False), (16, False), (8, False), (8, True), (4, False), (4, True)):
        shipped = library.shipped(problem, found, bits, coded)
        yield bits_of(bits) + (", coded" if coded else ""), shipped, 1, problem


def bits_of(bits: int) -> str:
    """As settings have it."""
    return f"{bits} bits"


def pruned_files(setting: str, problem: Prepared, params: Any, trainings: int) -> Made:
    """A pruned net at several bits, its zeros coded."""
    for bits in PRUNED_BITS:
        shipped = Shipped(graph_of(problem, params), bits, True)
        yield f"{setting}, {bits_of(bits)}", shipped, trainings, problem


def lottery(setup: Setup, seed: int, net: str) -> Made:
    """Files of every round."""
    problem, found = dense(setup, seed, net)
    lasting = imp.rounds(with_rate(problem, PRUNED_RATE), found, IMP_KEEP[net])
    for k, (_, trained) in enumerate(itertools.islice(lasting, IMP_ROUNDS[net]), 1):
        yield from pruned_files(f"round {k}", problem, trained.params, 1 + k)


def single_shot(setup: Setup, seed: int, net: str, sparsity: float) -> Made:
    """Files of one sparsity."""
    problem = with_rate(prepared(config_of(setup, seed, net)), PRUNED_RATE)
    _, trained = snip.pruned_at_start(problem, 1 - sparsity)
    yield from pruned_files(f"{100 * sparsity:g} % pruned", problem, trained.params, 1)


def deep(setup: Setup, seed: int, net: str, k: int) -> Made:
    """The file of one choice of what is kept."""
    problem, found = dense(setup, seed, net)
    keep, clusters = DEEP[net][k]
    half = max(1, problem.config.epochs // 2)
    finer = with_rate(problem, 1e-3, half)
    again = with_rate(problem, 3e-3)
    params, codes, books = deep_compression.compressed(again, finer, found, keep, clusters)
    shipped = deep_compression.shipped(problem, params, codes, books)
    yield deep_setting(net, k), shipped, 3, problem


def deep_setting(net: str, k: int) -> str:
    """Which fractions of the layers stay, and how many values they share."""
    keep, clusters = DEEP[net][k]
    return f"{'/'.join(f'{100 * f:g}' for f in keep.values())} % kept, {clusters} values"


def factors(setup: Setup, seed: int, rank: int, rate: float | None = None) -> Prepared:
    """Data, and the net with two factors in the place of its hidden layers."""
    more: dict[str, Any] = {} if rate is None else {"learning_rate": rate}
    return prepared(config_of(setup, seed, method="low-rank", rank=rank, **more))


def decomposed(setup: Setup, seed: int, rank: int) -> Made:
    """The dense net's best factors, trained on."""
    problem = factors(setup, seed, rank)
    found = svd.decomposed(problem, dense(setup, seed, "LeNet-300-100")[1], initial(problem))
    for bits in (16, 8, 4):
        yield f"rank {rank}, {bits_of(bits)}", library.shipped(problem, found, bits), 2, problem


def dynamical(setup: Setup, seed: int, rank: int, tolerance: float | None) -> Made:
    """Dynamical low-rank training of a fixed rank, or up to it."""
    problem = factors(setup, seed, rank, DLRT_RATE)
    found = dlrt.low_rank_trained(problem, initial(problem), tolerance)
    for bits in (16, 8, 4):
        shipped = Shipped(graph_of(problem, found.params), bits, False)
        yield f"{dlrt_setting(rank, tolerance)}, {bits_of(bits)}", shipped, 1, problem


def dlrt_setting(rank: int, tolerance: float | None) -> str:
    """Rank or tolerance."""
    return f"rank {rank}" if tolerance is None else f"tolerance {tolerance:g}"


def as_library(
    setup: Setup, seed: int, setting: str, changes: dict[str, Any], bits: tuple[int, ...]
) -> Made:
    """A line of :data:`baselines.library.LINES`."""
    problem = prepared(config_of(setup, seed, **changes))
    found = train_as_library(problem)
    for width in bits:
        name = ", ".join(filter(None, (setting, bits_of(width))))
        yield name, library.shipped(problem, found, width), 1, problem


def with_bits(setting: str, bits: Iterable[int]) -> tuple[str, ...]:
    """Settings of a net at several bits."""
    return tuple(", ".join(filter(None, (setting, bits_of(width)))) for width in bits)


def jobs() -> list[Job]:
    """All trainings: methods of others on LeNet-300-100, the library's lines, LeNet-5."""
    one = "LeNet-300-100"
    partial = functools.partial
    found = [Job(one, "dense", quantised_settings(), partial(quantised, net=one))]
    found += pruning_jobs(one)
    for rank in RANKS:
        settings = with_bits(f"rank {rank}", (16, 8, 4))
        found.append(Job(one, "SVD, trained on", settings, partial(decomposed, rank=rank)))
    choices = [(rank, None) for rank in DLRT_RANKS]
    choices += [(DLRT_LARGEST, tolerance) for tolerance in DLRT_TOLERANCES]  # type: ignore[misc]
    for rank, tolerance in choices:
        settings = with_bits(dlrt_setting(rank, tolerance), (16, 8, 4))
        method = "DLRT" if tolerance is None else "DLRT, adaptive"
        run = partial(dynamical, rank=rank, tolerance=tolerance)
        found.append(Job(one, method, settings, run))
    for method, setting, changes, bits in library.LINES:
        run = partial(as_library, setting=setting, changes=changes, bits=bits)
        found.append(Job(one, method, with_bits(setting, bits), run))
    dense5 = Job("LeNet-5", "dense", quantised_settings(), partial(quantised, net="LeNet-5"))
    return [*found, dense5, *pruning_jobs("LeNet-5")]


def quantised_settings() -> tuple[str, ...]:
    """Those of :func:`quantised`."""
    return ("32 bits", "16 bits", "8 bits", "8 bits, coded", "4 bits", "4 bits, coded")


def pruning_jobs(net: str) -> list[Job]:
    """Lottery tickets, SNIP and Deep Compression of a net."""
    partial = functools.partial
    rounds = [f"round {k}" for k in range(1, IMP_ROUNDS[net] + 1)]
    settings = tuple(itertools.chain(*(with_bits(name, PRUNED_BITS) for name in rounds)))
    found = [Job(net, "lottery ticket", settings, partial(lottery, net=net))]
    for sparsity in SNIP_SPARSITIES[net]:
        settings = with_bits(f"{100 * sparsity:g} % pruned", PRUNED_BITS)
        found.append(Job(net, "SNIP", settings, partial(single_shot, net=net, sparsity=sparsity)))
    for k in range(len(DEEP[net])):
        run = partial(deep, net=net, k=k)
        found.append(Job(net, "Deep Compression", (deep_setting(net, k),), run))
    return found


def key_of(setup: Setup, job: Job, setting: str, seed: int) -> str:
    """Of a row; with epochs and shifts, so that others are rows of their own."""
    epochs = setup.convolutional if job.net == "LeNet-5" else setup.epochs
    how = f"{epochs} epochs" + (f", shift {setup.shift}" if setup.shift else "")
    return f"{job.net}: {job.method}: {setting}: {how}: seed {seed}"


def measure(args: argparse.Namespace, setup: Setup, job: Job, seed: int) -> None:
    """The rows of a job that are wanted and not there; trains for these alone."""
    keys = {setting: key_of(setup, job, setting, seed) for setting in job.settings}
    done = {row["key"] for row in rp.rows_of(args.out)}
    missing = {s for s, key in keys.items() if rp.wanted(key, args) and key not in done}
    start = time.perf_counter()
    for setting, shipped, trainings, problem in job.run(setup, seed) if missing else ():
        if setting in missing:
            fields = {
                "net": job.net, "method": job.method, "setting": setting, "seed": seed,
                "epochs": problem.config.epochs, "trainings": trainings,
                "train_seconds": round(time.perf_counter() - start, 1),
            }  # fmt: skip
            row = functools.partial(_row, fields, problem, shipped, args.out / "models")
            rp.once(args.out, keys[setting], row)
            start = time.perf_counter()


def _row(fields: rp.Row, problem: Prepared, shipped: Shipped, folder: Path) -> rp.Row:
    words = " ".join(str(fields[name]) for name in ("net", "method", "setting", "seed"))
    path = folder / f"{re.sub('[^a-zA-Z0-9.]+', '-', words)}.rosler"
    return {**fields, **measured(problem, shipped, path)}


class Published(NamedTuple):
    """What a paper says of a setting: percents (None: as its whole net), the rest in words."""

    error: float | None
    words: str


_HAN, _LEE = "Han et al., arXiv:1510.00149, table 1", "Lee et al., arXiv:1810.02340, table 1"
_DLRT = "LeNet-5-Caffe, 5 runs, results of COMPiLELab/DLRT-Net"
PUBLISHED: dict[tuple[str, str, str], Published] = {
    ("LeNet-300-100", "dense", "32 bits"): Published(1.64, f"{_HAN}; 1.7: {_LEE}"),
    ("LeNet-300-100", "lottery ticket", "round 3"): Published(
        None, "3.6 % kept, 20 % a round: Frankle, Carbin, arXiv:1803.03635, section 2"
    ),
    ("LeNet-300-100", "SNIP", "95 % pruned"): Published(1.6, _LEE),
    ("LeNet-300-100", "SNIP", "98 % pruned"): Published(2.4, _LEE),
    ("LeNet-300-100", "Deep Compression", "8/9/26 % kept, 64 values"): Published(
        1.58, f"27 KB, 40x: {_HAN}"
    ),
    ("LeNet-300-100", "DLRT, adaptive", "tolerance 0.15"): Published(
        1.86, f"20,033 numbers: {_DLRT}"
    ),
    ("LeNet-300-100", "DLRT, adaptive", "tolerance 0.3"): Published(
        2.55, f"9,398 numbers: {_DLRT}"
    ),
    ("LeNet-5", "dense", "32 bits"): Published(0.80, f"LeNet-5-Caffe, 431 k: {_HAN}; 0.9: {_LEE}"),
    ("LeNet-5", "SNIP", "93 % pruned"): Published(
        1.1, f"LeNet-5-Caffe, 99 %: as many weights, 4.3 k: {_LEE}"
    ),
    ("LeNet-5", "Deep Compression", deep_setting("LeNet-5", 0)): Published(
        0.74, f"LeNet-5-Caffe, 44 KB, 39x: {_HAN}"
    ),
}
"""By net, method and setting, whatever the bits."""


class Point(NamedTuple):
    """A setting over its seeds; means, percents."""

    net: str
    method: str
    setting: str
    rows: list[rp.Row]

    @property
    def error(self) -> float:
        """Of the test images."""
        return rp.mean(row["test_error"] for row in self.rows)

    @property
    def size(self) -> float:
        """Bytes of the file."""
        return rp.mean(row["bytes"] for row in self.rows)

    @property
    def published(self) -> Published | None:
        """What a paper has for it, if its net is stored finely enough to be compared."""
        setting = self.setting.removesuffix(", 8 bits").removesuffix(", 16 bits")
        return PUBLISHED.get((self.net, self.method, setting))


def line(point: Point, whole: Point | None) -> list[str]:
    """A line of the table; the whole net's float32 file is what sizes and errors are against."""
    rows, known = point.rows, point.published
    published, apart = "", ""
    if known is not None:
        reference = known.error if known.error is not None else whole and whole.error
        published = f"{'the whole net' if known.error is None else known.error} ({known.words})"
        apart = "" if reference is None else f"{point.error - reference:+.2f}"
    return [
        point.method,
        point.setting,
        rp.plus_minus((row["bytes"] for row in rows), 0),
        f"{whole.size / point.size:.1f}" if whole else "",
        rp.plus_minus(row["test_error"] for row in rows),
        f"{rp.mean(row['validation_error'] for row in rows):.2f}",
        f"{rp.mean(row['weights'] for row in rows):,.0f}",
        f"{rows[0]['trainings']} x {rows[0]['epochs']}",
        apart,
        published,
    ]


HEAD = (
    "method", "setting", "bytes", "x", "test error, %", "validation, %", "weights",
    "trainings x epochs", "against published", "published error, %",
)  # fmt: skip


def best(points: Iterable[Point]) -> list[Point]:
    """The points of a curve that none of it beats in size and error, by size."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.size, p.error)):
        if not found or point.error < found[-1].error:
            found.append(point)
    return found


def picture(points: Sequence[Point]) -> Any:
    """A panel a net, a curve a method, of its best settings."""
    nets = list(dict.fromkeys(point.net for point in points))
    made, axes = rp.figure(len(nets), width=7.0, height=5.0)
    for ax, net in zip(axes, nets, strict=True):
        for k, method in enumerate(dict.fromkeys(p.method for p in points if p.net == net)):
            curve = best(p for p in points if (p.net, p.method) == (net, method))
            ax.errorbar(
                [p.size for p in curve], [p.error for p in curve],
                [rp.spread(row["test_error"] for row in p.rows) for p in curve],
                marker="os^vDPX*"[k % 8], linestyle=("-", "--")[k // 10], capsize=3, label=method,
            )  # fmt: skip
        ax.set(xscale="log", xlabel="bytes of the file", ylabel="test error, %", title=net)
        ax.set_ylim(0.5, 5.5)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    return made


NOTES = """\
Every file was written by the library and read again before it was scored: structure, scales,
biases, codes and codebook are in its bytes. `x` is against the whole net's float32 file. Pruned
nets are entropy-coded, as is Deep Compression, whose codebook is in the file; nets of factors and
narrower nets are packed. Learning rates at the peak: 1e-3 for dense nets and centroids, 3e-3 for
rate-coded nets, factors and Deep Compression after its cut, 1e-2 for lottery tickets and SNIP, 0.2
(SGD) for DLRT. No augmentation, as in the papers, unless a shift is asked for. The figure has, of
each method, the settings that none of its own beats in both bytes and error.

What differs from the papers, and so what the differences to their numbers hold: they train longer
(lottery tickets 50,000 steps of 60 examples in each of 16 trainings; SNIP's rate falls every 25,000
steps of 100) and with optimisers of their own; here lottery tickets lose two thirds a round, not a
fifth; Deep Compression prunes once, not again and again; pruned weights are stored at 8 or 4 bits,
those of the papers at 32. The LeNet-5 of SNIP, Deep Compression and DLRT is Caffe's, of 431,000
weights; ours is LeCun's, of 61,706, and is trained for fewer epochs, since it costs most. DLRT's
numbers are therefore of another net. The dense nets' lines say what the shared training is worth
against the papers'."""


def text_of(args: argparse.Namespace, points: Sequence[Point]) -> str:
    """The section: a table for each net."""
    parts = [rp.provenance(f"scripts/reproduce {NAME}", rp.rows_of(args.out)), NOTES]
    for net in dict.fromkeys(point.net for point in points):
        found = [point for point in points if point.net == net]
        whole = next((p for p in found if (p.method, p.setting) == ("dense", "32 bits")), None)
        parts += [f"{net}:", rp.table(HEAD, [line(point, whole) for point in found])]
    return "\n\n".join(parts)


def points_of(setup: Setup, rows: Iterable[rp.Row]) -> list[Point]:
    """The settings of these epochs, in the order of the jobs."""
    found = rp.grouped(rows, "net", "method", "setting", "epochs")
    epochs = {"LeNet-300-100": setup.epochs, "LeNet-5": setup.convolutional}
    wanted = [(j.net, j.method, s, epochs[j.net]) for j in jobs() for s in j.settings]
    return [Point(*key[:3], found[key]) for key in wanted if key in found]


def main() -> int:
    """Trains what is missing, and shows all."""
    parser = rp.parser_of(NAME, __doc__)
    parser.add_argument("--epochs", type=int, default=12, metavar="N", help="of each training")
    parser.add_argument("--conv-epochs", type=int, default=4, metavar="N", help="the same, LeNet-5")
    parser.add_argument("--shift", type=int, default=0, metavar="N", help="augmentation, pixels")
    args = parser.parse_args()
    setup = Setup(rp.source("mnist", args.data), args.epochs, args.conv_epochs, args.shift)
    wanted = [(job, seed) for seed in range(args.seeds) for job in jobs()]
    keys = [key_of(setup, job, s, seed) for job, seed in wanted for s in job.settings]
    if not rp.begin(NAME, args, (key for key in keys if rp.wanted(key, args))):
        return 0
    for job, seed in wanted:
        measure(args, setup, job, seed)
    points = points_of(setup, rp.rows_of(args.out))
    rp.finish(NAME, args, text_of(args, points), picture(points))
    return 0


if __name__ == "__main__":
    sys.exit(main())
