"""``rosler sweep``: many trainings in few compiled programs, and the best of them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rosler_jax.cli._command import Command, Outcome, UsageError, table
from rosler_jax.cli._progress import population_progress

TOP = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to sweep, or whose best to take."""
    parser.add_argument(
        "spec", nargs="?", metavar="SPEC.toml", help="what varies; or `best`, with DIR"
    )
    parser.add_argument("folder", nargs="?", metavar="DIR", help="of `best`: a sweep's folder")
    parser.add_argument("--out", metavar="DIR", help="folder of a new sweep, or of best's network")
    parser.add_argument("--resume", metavar="DIR", help="go on with the sweep in this folder")
    parser.add_argument("--data", metavar="DATA", help="data set, instead of the one in SPEC")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop there")
    parser.add_argument(
        "--devices", type=int, metavar="N", help="CPU: members side by side (default: the cores)"
    )
    parser.add_argument(
        "--min-accuracy",
        type=float,
        metavar="F",
        help="of `best`: the smallest file of at least this validation accuracy",
    )
    parser.add_argument("--tensorboard", metavar="DIR", help="write scalars for TensorBoard, too")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    hosts = parser.add_argument_group(
        "several hosts", "start the same command on each; the first one writes"
    )
    hosts.add_argument(
        "--distributed", action="store_true", help="find the others (Slurm, TPU pods, Open MPI)"
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, for all the same")
    hosts.add_argument("--processes", type=int, metavar="N", help="how many there are")
    hosts.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")


def run(args: argparse.Namespace) -> Outcome:
    """Sweeps, plans, or retrains the best."""
    if args.spec == "best":
        return _best(args)
    if args.folder is not None or args.min_accuracy is not None:
        raise UsageError("DIR and --min-accuracy belong to `rosler sweep best DIR`")
    if (args.spec is None) == (args.resume is None):
        raise UsageError("name SPEC.toml with --out DIR, or --resume DIR")
    if args.resume is None and args.out is None and not args.dry_run:
        raise UsageError("name a folder for the sweep: --out DIR")
    if args.resume is not None and (args.out or args.data or args.dry_run):
        raise UsageError("--resume goes on with the sweep as it is; leave the other options out")
    _use_devices(args.devices)
    _join(args)

    from rosler_jax import sweep

    if args.resume is None:
        spec = sweep.load(args.spec)
        if args.data is not None:
            spec = sweep.parse({**spec.source, "data": args.data})
    else:
        spec = sweep.parse(sweep.stored_spec(Path(args.resume)))
    if args.dry_run:
        return _plan(spec)
    folder = Path(args.resume or args.out)
    with population_progress(args.quiet) as report, _stdout_to_stderr():
        done = sweep.sweep(spec, folder, resume=args.resume is not None, report=report)
    if args.tensorboard is not None and sweep.hosts.is_first():
        sweep.write_scalars(Path(args.tensorboard), done.rows, [a.name for a in spec.axes])
    names = [axis.name for axis in spec.axes]
    text = (
        f"{top(done.rows, names)}\n\n{len(done.rows)} members, {done.failed} failed; wrote\n"
        f"{folder / 'table.parquet'}\n{folder / 'report.html'}"
    )
    data = {"members": len(done.rows), "failed": done.failed, "out": str(folder)}
    return Outcome(text, {**data, "best": _row(_ranked(done.rows)[:1])})


def interrupted(args: argparse.Namespace) -> str:
    """How to go on."""
    folder = Path(args.resume or args.out or ".")
    if not (folder / "sweep.json").exists():
        return "interrupted before the sweep began; nothing was written"
    return f"interrupted; go on with: rosler sweep --resume {folder}"


def _use_devices(count: int | None) -> None:
    """On a CPU one virtual device a core: side by side, members keep all cores busy."""
    import jax

    if os.environ.get("JAX_PLATFORMS", "cpu") != "cpu":
        return
    try:
        jax.config.update("jax_num_cpu_devices", count or os.cpu_count() or 1)
    except RuntimeError:  # JAX has its devices already
        if count is not None and count != jax.local_device_count():
            raise UsageError(f"--devices {count}: JAX runs on other devices already") from None


def _join(args: argparse.Namespace) -> None:
    """Joins the other hosts, if there are any."""
    named = (args.coordinator, args.processes, args.process)
    if any(value is not None for value in named) and None in named:
        raise UsageError("--coordinator, --processes and --process go together")
    if args.distributed or args.coordinator is not None:
        import jax

        jax.distributed.initialize(*named)


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """The library that connects the hosts prints to stdout, where the result belongs."""
    import jax

    if jax.process_count() == 1:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _plan(spec: Any) -> Outcome:
    from rosler_jax import sweep

    members = [spec.first()] if spec.search else spec.configs()
    sweep.runner.check(members)
    plan = sweep.make_schedule(members, sweep.load_examples(members[0]))
    count = spec.search.trials if spec.search else len(members)
    seconds = plan.seconds * sweep.halving.effort(spec)
    lines = [*plan.lines(), *sweep.halving.lines(spec)]
    lines.append(f"{count} members, about {seconds:.0f} s; nothing was run")
    data = {"members": count, "programs": len(plan.groups), "seconds": seconds}
    return Outcome("\n".join(lines), data)


def _ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    done = [row for row in rows if row["status"] == "done"]
    return sorted(done, key=lambda r: (-r["validation_accuracy"], r["file_bytes"], r["member"]))


def _row(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    return {k: v for k, v in rows[0].items() if k != "curve"} if rows else None


def top(rows: list[dict[str, Any]], names: list[str]) -> str:
    """The best members by validation accuracy, as a table."""
    columns = [*names, "validation_accuracy", "test_accuracy", "file_bytes"]
    cells = [["member", *columns]]
    for row in _ranked(rows)[:TOP]:
        shown = (row[c] for c in columns)
        cells.append(
            [str(row["member"]), *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in shown)]
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in cells
    )


def _best(args: argparse.Namespace) -> Outcome:
    """Retrains the smallest member that is accurate enough, as ``rosler train`` would."""
    if args.folder is None or args.out is None:
        raise UsageError("name the sweep and a new folder: rosler sweep best DIR --out DIR")
    from rosler_jax import config as configs
    from rosler_jax import run as runs
    from rosler_jax.sweep import table as tables

    rows = tables.read_rows(Path(args.folder) / tables.TABLE)
    least = args.min_accuracy
    found = _ranked(rows)
    if least is not None:
        found = [row for row in found if row["validation_accuracy"] >= least]
        found.sort(key=lambda r: (r["file_bytes"], -r["validation_accuracy"], r["member"]))
    if not found:
        raise RuntimeError(f"no member of {args.folder} has a validation accuracy of {least}")
    config = configs.from_dict(json.loads(found[0]["config"]))
    result = runs.train(config, args.out)
    shown = [
        ("member", found[0]["member"]),
        ("validation accuracy", f"{result['validation_accuracy']:.2%}"),
        ("in the sweep", f"{found[0]['validation_accuracy']:.2%}"),
        ("test accuracy", f"{result['test_accuracy']:.2%}"),
        ("file bytes", result["file_bytes"]),
        ("written to", args.out),
    ]
    return Outcome(table(shown), {**result, "member": found[0]["member"], "out": args.out})


COMMAND = Command(
    summary="train many configurations in few compiled programs",
    description=(
        "Trains every member of SPEC.toml's axes, in populations that share compiled programs, and "
        "writes one Parquet table, a row a member. Interrupted, it goes on with --resume. "
        "`rosler sweep best DIR` retrains the best, or the smallest that is accurate enough."
    ),
    examples=(
        "rosler sweep sweep.toml --data mnist5k --out runs/sweep",
        "rosler sweep sweep.toml --dry-run",
        "rosler sweep --resume runs/sweep",
        "rosler sweep best runs/sweep --min-accuracy 0.9 --out runs/best",
    ),
    add_arguments=add_arguments,
    run=run,
    interrupted=interrupted,
)
