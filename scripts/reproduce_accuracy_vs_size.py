"""Accuracy against bytes, multiplications and instructions: the paper's Fig. 3.

    scripts/reproduce accuracy-vs-size                      # everything; hours on two cores
    scripts/reproduce accuracy-vs-size --only mnist/,cwru   # of some tasks
    scripts/reproduce accuracy-vs-size --only cifar10/ --epochs-times 20   # for a GPU
    scripts/reproduce accuracy-vs-size --list

A line of ``accuracy_nets`` is one sweep over bits or prices and seeds. The epoch is chosen by
validation, and so is a line among several; the test split is read once. Bytes are those of the
model file; multiplications those of an inference; instructions are counted on an emulated
Cortex-M4 (of the integers of one seed: where the C compiler and the emulator are installed).
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import reproducing
from accuracy_nets import LINES, RATIOS, TASKS
from reproducing import Row, grouped, mean, once, plus_minus, table, wanted

from rosler_jax._files import replace_file
from rosler_jax.export.api import calibration_of, export
from rosler_jax.size import size_report
from rosler_jax.sweep.runner import model_folder

NAME = "accuracy-vs-size"
LARGEST = 3_000_000  # multiplications of a net that is still emulated
FUNCTIONS = ("cwru_unseen_load", "cats_dogs")  # of bench_data


def seeds_of(key: str, args: argparse.Namespace) -> list[int]:
    """As many as asked for, or as a line of dear nets has."""
    most = LINES[key].seeds if args.epochs_times <= 1 else args.seeds
    return list(range(min(args.seeds, most)))


def epochs_of(key: str, args: argparse.Namespace) -> int:
    """Of a line, so many times as long as it is here."""
    line = LINES[key]
    epochs = line.settings.get("epochs", TASKS[line.task].settings["epochs"])
    return round(args.epochs_times * epochs)


def spec_of(key: str, args: argparse.Namespace) -> dict[str, Any]:
    """The sweep of a line."""
    line, task = LINES[key], TASKS[LINES[key].task]
    spec = {**task.settings, **line.settings}
    spec["epochs"] = epochs_of(key, args)
    if task.data in FUNCTIONS:
        spec["data"] = f"scripts/bench_data.py:{task.data}"
        spec["data_options"] = [f"folder={args.data}"] if args.data else []
    else:
        spec["data"] = reproducing.source(task.data, args.data)
    if line.teacher is not None:
        spec["teacher"] = str(teacher_of(line.teacher, args))
    return {**spec, "axes": {**line.axes, "seed": seeds_of(key, args)}}


def teacher_of(key: str, args: argparse.Namespace) -> Path:
    """The first model of a line, trained here if only its published rows are."""
    model = model_folder(folder_of(key, args), 0)
    if not model.exists():
        reproducing.sweep(spec_of(key, args), folder_of(key, args))
    return model


def folder_of(key: str, args: argparse.Namespace) -> Path:
    """Of a line's sweep."""
    return Path(args.out) / "sweeps" / f"{named(key, args).replace('/', '-')}-{args.seeds}"


def named(key: str, args: argparse.Namespace) -> str:
    """A line in rows: of so many times its epochs."""
    return key if args.epochs_times == 1 else f"{key}*{args.epochs_times:g}"


def trained(key: str, args: argparse.Namespace) -> list[Row]:
    """The rows of a line: read if they are there, else those of its sweep."""
    name = named(key, args)
    done = [row for row in reproducing.rows_of(args.out) if row.get("line") == name]
    if len({row["seed"] for row in done}) >= len(seeds_of(key, args)):
        return done
    found = reproducing.sweep(spec_of(key, args), folder_of(key, args))
    return [_row(key, member, args) for member in found if member["status"] == "done"]


def _row(key: str, member: Mapping[str, Any], args: argparse.Namespace) -> Row:
    line, name = LINES[key], named(key, args)
    varied = ", ".join(f"{axis} {member[axis]:g}" for axis in line.axes)
    setting = varied or f"bits {line.settings.get('bits', 32)}"
    model = model_folder(folder_of(key, args), member["member"])

    def measure() -> Row:
        report = size_report(model)
        return {
            "line": name, "task": line.task, "net": line.net,
            "method": line.method + name.removeprefix(key),
            "ratio": line.ratio, "setting": setting, "seed": member["seed"],
            "test": 100 * member["test_accuracy"],
            "validation": 100 * member["validation_accuracy"],
            "bytes": member["file_bytes"], "numbers": member["parameters"],
            "multiplications": report.total("multiplications"),
            "epochs": epochs_of(key, args),
            "best_epoch": member["best_epoch"], "model": str(model.relative_to(args.out)),
        }  # fmt: skip

    return once(args.out, f"{name}/{setting}/seed {member['seed']}", measure)


def counted(row: Row, args: argparse.Namespace) -> Row | None:
    """Instructions, flash and RAM of a row's net on the emulated board; None where it is not."""
    model, work = args.out / row["model"], row["multiplications"]
    if row["seed"] or work is None or work > LARGEST or not (model / "model.rosler").exists():
        return None
    dtype = {"bits 32": "float32", "bits 16": "int16", "bits 4": "int4"}.get(row["setting"], "int8")

    def measure() -> Row:
        inputs = None if dtype == "float32" else calibration_of(model)
        with tempfile.TemporaryDirectory() as folder:
            done = export(model, folder, dtype=dtype, calibration=inputs, board="cortex-m4")
        found = done.report
        if found["emulated"] is None:
            raise RuntimeError(f"instructions are not counted: {found['not_emulated']}")
        return {
            "of": row["key"], "dtype": dtype, "instructions": found["emulated"]["instructions"],
            "flash": found["flash"]["bytes"],
            "ram": found["ram"]["arena_bytes"] + found["ram"]["decoded_bytes"]
            + found["emulated"]["stack_bytes"],
        }  # fmt: skip

    return once(args.out, f"board/{row['key']}", measure)


class Point(NamedTuple):
    """A setting of a line: its seeds, and the instructions of one."""

    rows: list[Row]
    instructions: float | None

    def mean(self, field: str) -> float:
        """Over the seeds."""
        return mean(row[field] for row in self.rows)

    @property
    def label(self) -> str:
        """Method and setting."""
        row = self.rows[0]
        net = "" if row["method"].startswith(row["net"]) else f"{row['net']}, "
        ratio = f", for {row['ratio']}x" if row["ratio"] else ""
        return f"{net}{row['method']}{ratio}; {row['setting']}"


def points_of(rows: list[Row]) -> dict[str, list[Point]]:
    """All points by task."""
    counts = {row["of"]: row["instructions"] for row in rows if "of" in row}
    found: dict[str, list[Point]] = {task: [] for task in TASKS}
    nets = [row for row in rows if "line" in row]
    for (_, _), group in grouped(nets, "line", "setting").items():
        ordered = sorted(group, key=lambda row: row["seed"])
        point = Point(ordered, counts.get(ordered[0]["key"]))
        found[ordered[0]["task"]].append(point)
    return {task: points for task, points in found.items() if points}


def ratio_table(points: list[Point]) -> str:
    """Accuracy at a 50th, 70th and 90th of the bytes and less, and how far below the dense net."""
    dense = next((p for p in points if p.rows[0]["line"].split("*")[0].endswith("/dense")), None)
    chosen = [p for p in points if p.rows[0]["ratio"]]
    if dense is None or not chosen:
        return ""
    found = {tuple(p.rows[0][name] for name in ("method", "setting", "ratio")): p for p in chosen}
    best = {
        (setting, ratio): max(
            p.mean("validation") for key, p in found.items() if key[1:] == (setting, ratio)
        )
        for _, setting, ratio in found
    }
    lines = []
    methods, settings = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
    settings.sort(key=lambda setting: -int(setting.split()[-1]))
    for method, setting in itertools.product(methods, settings):
        cells = []
        for ratio in RATIOS:
            point = found.get((method, setting, ratio))
            wins = point is not None and point.mean("validation") == best[setting, ratio]
            cells.append("" if point is None else _cell(point, dense, wins))
        lines.append([f"{method}, {setting.split()[-1]} bits", *cells])
    base = plus_minus(row["test"] for row in dense.rows)
    header = [
        f"dense, float32, {dense.mean('bytes'):,.0f} bytes: {base} %",
        *(f"made for {ratio}x at 16 bits" for ratio in RATIOS),
    ]
    return table(header, lines)


def _cell(point: Point, dense: Point, wins: bool) -> str:
    """Test accuracy, points from the dense net, true ratio; bold if validation chose it."""
    above = point.mean("test") - dense.mean("test")
    ratio = dense.mean("bytes") / point.mean("bytes")
    test = plus_minus(row["test"] for row in point.rows)
    text = f"{test} ({above:+.2f}; {ratio:.0f}x)"
    return f"**{text}**" if wins else text


def frontier(points: list[Point]) -> list[Point]:
    """What no other point beats in validation with fewer bytes, or with fewer multiplications."""
    kept = []
    for p in points:
        beaten = {
            by: any(
                q.mean("validation") >= p.mean("validation") and q.mean(by) < p.mean(by)
                for q in points
            )
            for by in ("bytes", "multiplications")
        }
        if not all(beaten.values()):
            kept.append(p)
    return sorted(kept, key=lambda p: p.mean("bytes"))


def frontier_table(points: list[Point]) -> str:
    """The frontier of a task."""
    header = [
        "net",
        "bytes",
        "test error, %",
        "validation, %",
        "multiplications",
        "M4 instructions",
    ]
    return table(
        header,
        [
            [
                p.label, plus_minus((row["bytes"] for row in p.rows), 0),
                plus_minus(100 - row["test"] for row in p.rows),
                f"{100 - p.mean('validation'):.2f}", f"{p.mean('multiplications'):,.0f}",
                "" if p.instructions is None else f"{p.instructions:,.0f}",
            ]
            for p in frontier(points)
        ],
    )  # fmt: skip


def _errors(ax: Any, points: list[Point], by: str) -> None:
    """Test errors against something, a colour a method, both axes logarithmic."""
    for i, method in enumerate(dict.fromkeys(p.rows[0]["method"] for p in points)):
        own = sorted((p for p in points if p.rows[0]["method"] == method), key=lambda p: p.mean(by))
        ax.errorbar(
            [p.mean(by) for p in own], [100 - p.mean("test") for p in own],
            [reproducing.spread(row["test"] for row in p.rows) for p in own],
            fmt="o", markersize=4, capsize=2, color=f"C{i}", label=method,
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel=by, ylabel="test error, %")
    ax.grid(alpha=0.3, which="both")


def draw(found: Mapping[str, list[Point]]) -> Any:
    """Error against bytes and against multiplications, a row a task, a colour a method."""
    made, axes = reproducing.figure(2, len(found), width=6.5, height=4.2)
    for i, (task, points) in enumerate(found.items()):
        for ax, by in zip(axes[2 * i : 2 * i + 2], ("bytes", "multiplications"), strict=True):
            _errors(ax, points, by)
            ax.set(title=TASKS[task].what)
        axes[2 * i].legend(fontsize=6)
    return made


def draw_first(points: list[Point]) -> Any:
    """The README's: test error against bytes, a line a method, on one set of data."""
    made, (ax,) = reproducing.figure(width=8, height=4.2)
    _errors(ax, points, "bytes")
    ax.set(xlabel="bytes of the file", ylabel="MNIST: test error, %")
    ax.set_yticks([0.8, 1, 1.5, 2, 3, 5], ["0.8", "1", "1.5", "2", "3", "5"], minor=False)
    ax.yaxis.set_minor_formatter("")
    ax.legend(fontsize=8, ncols=2)
    return made


def section(found: Mapping[str, list[Point]], args: argparse.Namespace) -> tuple[str, Any]:
    """The text and the figure."""
    rows = reproducing.rows_of(args.out)
    parts = [reproducing.provenance("scripts/reproduce accuracy-vs-size", rows)]
    for task, points in found.items():
        seeds = sorted({len(p.rows) for p in points})
        parts.append(f"#### {TASKS[task].what}\n\nSeeds: {', '.join(map(str, seeds))}.")
        parts += [text for text in (ratio_table(points), frontier_table(points)) if text]
    return "\n\n".join(parts), draw(found)


def main() -> int:
    """Measures what is missing and writes the section."""
    parser = reproducing.parser_of(NAME, __doc__)
    parser.add_argument(
        "--epochs-times", type=float, default=1.0, metavar="F", help="as many epochs as a line has"
    )
    parser.add_argument("--no-board", action="store_true", help="count no instructions")
    args = parser.parse_args()
    keys = [key for key in LINES if wanted(key, args) and seeds_of(key, args)]
    if not reproducing.begin(NAME, args, (f"{key}: {LINES[key]}" for key in keys)):
        return 0
    failed = []
    for key in keys:
        try:
            rows = trained(key, args)
            for row in rows if not args.no_board else []:
                counted(row, args)
        except RuntimeError as error:
            print(f"{key} left out: {error}", file=sys.stderr)
            failed.append(key)
    if not reproducing.rows_of(args.out):
        return 1
    found = points_of(reproducing.rows_of(args.out))
    reproducing.finish(NAME, args, *section(found, args))
    first = found.get("mnist")
    if args.publish and first:
        where = reproducing.RESULTS / "first.svg"
        replace_file(where, lambda path: reproducing.save_svg(draw_first(first), path))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
