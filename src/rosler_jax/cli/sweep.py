"""``rosler sweep``: many trainings in few compiled programs, and the best of them."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rosler_jax.cli._command import Command, Outcome, UsageError, table
from rosler_jax.cli._progress import population_progress

TOP = 10
TRIES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to sweep, or whose best to take."""
    parser.add_argument(
        "spec", nargs="?", metavar="SPEC.toml", help="what varies; or `best`, with DIR"
    )
    parser.add_argument("folder", nargs="?", metavar="DIR", help="of `best`: a sweep's folder")
    parser.add_argument(
        "--out", metavar="DIR", help="folder of a new sweep, or of the best (default: DIR/best)"
    )
    parser.add_argument(
        "--resume",
        metavar="DIR",
        help="go on with the sweep in this folder; with SPEC.toml: if it is the same",
    )
    parser.add_argument("--data", metavar="DATA", help="data set, instead of the one in SPEC")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop there")
    parser.add_argument(
        "--devices", type=int, metavar="N", help="CPU: members side by side (default: the cores)"
    )
    parser.add_argument(
        "--at-least",
        "--min-accuracy",
        type=float,
        metavar="F",
        help="of `best`: the smallest file whose followed metric in validation is as good as this",
    )
    parser.add_argument("--tensorboard", metavar="DIR", help="write scalars for TensorBoard, too")
    parser.add_argument(
        "--models", action="store_true", help="write every member's model, too, to DIR/models"
    )
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
    if args.folder is not None or args.at_least is not None:
        raise UsageError("DIR and --at-least belong to `rosler sweep best DIR`")
    if args.spec is None and args.resume is None:
        raise UsageError("name SPEC.toml with --out DIR, or --resume DIR")
    if args.resume is None and args.out is None and not args.dry_run:
        raise UsageError("name a folder for the sweep: --out DIR")
    if args.resume is not None and (args.out or args.dry_run or (args.data and not args.spec)):
        raise UsageError("--resume goes on with the sweep as it is; leave the other options out")
    if args.tensorboard is not None and importlib.util.find_spec("tensorboardX") is None:
        raise RuntimeError(
            "--tensorboard needs tensorboardX: pip install 'rosler-jax[tensorboard]'"
        )
    _use_devices(args.devices)
    _join(args)
    with _stdout_to_stderr():
        return _run(args)


def _run(args: argparse.Namespace) -> Outcome:
    from rosler_jax import sweep

    if args.spec is not None:
        spec = sweep.as_spec(args.spec, args.data)
    else:
        stored = sweep.hosts.on_first(lambda: sweep.stored_spec(Path(args.resume)))
        spec = sweep.parse(stored)
    if args.dry_run:
        return _plan(spec)
    folder = Path(args.resume or args.out)
    resume = args.resume is not None
    told = None if args.quiet else _tell
    with population_progress(args.quiet) as report:
        done = sweep.sweep(
            spec, out=folder, resume=resume, report=report, planned=told, models=args.models
        )
    names, followed = [axis.name for axis in spec.axes], spec.followed()
    if args.tensorboard is not None and sweep.hosts.is_first():
        sweep.write_scalars(Path(args.tensorboard), done.rows, names, followed[0])
    why = sweep.runner.reasons(done.rows, names)
    if done.failed == len(done.rows):
        raise RuntimeError(f"all members failed: {'; '.join(why)}")
    text = f"{top(done.rows, names, *followed)}\n\n{len(done.rows)} members, "
    text += f"{done.failed} failed; wrote\n{folder / 'table.parquet'}\n{folder / 'report.html'}"
    text += "".join(f"\nfailed: {line}" for line in why)
    data = {"members": len(done.rows), "failed": done.failed, "out": str(folder), "reasons": why}
    return Outcome(text, {**data, "best": _row(_ranked(done.rows, *followed)[:1])})


def interrupted(args: argparse.Namespace) -> str:
    """How to go on."""
    if args.spec == "best":
        return "interrupted; nothing was written"
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
        jax.config.update("jax_num_cpu_devices", count or _cores())
    except RuntimeError:  # JAX has its devices already
        if count is not None and count != jax.local_device_count():
            raise UsageError(f"--devices {count}: JAX runs on other devices already") from None


def _cores() -> int:
    """Those that this process may use: under Slurm and the like not all that there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _tell(lines: Sequence[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


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
    built = sweep.Built(sweep.load_examples(members[0]))
    plan = sweep.make_schedule(members, built, always=True)
    count = spec.search.trials if spec.search else len(members)
    seconds = plan.seconds * sweep.halving.effort(spec) * count / len(members)
    data = {"members": count, "programs": len(plan.groups), "seconds": seconds}
    return Outcome("\n".join([*sweep.runner.plan_lines(spec, plan), "nothing was run"]), data)


def _ranked(rows: list[dict[str, Any]], metric: str, larger: bool) -> list[dict[str, Any]]:
    from rosler_jax.sweep import report

    return [row for row in report.best(rows, metric, larger) if row["status"] == "done"]


def _row(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    return {k: v for k, v in rows[0].items() if not k.endswith("curve")} if rows else None


def top(
    rows: list[dict[str, Any]], names: list[str], metric: str = "accuracy", larger: bool = True
) -> str:
    """The best members by a metric in validation, as a table."""
    columns = [*names, f"validation_{metric}", f"test_{metric}", "file_bytes"]
    cells = [["member", *columns]]
    for row in _ranked(rows, metric, larger)[:TOP]:
        shown = (row[c] for c in columns)
        cells.append(
            [str(row["member"]), *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in shown)]
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in cells
    )


def _best(args: argparse.Namespace) -> Outcome:
    """Retrains the smallest member that is good enough, as ``rosler train`` would.

    Trained by itself a member ends a little elsewhere: sums in another order, over thousands of
    updates. The next smallest follows where it then falls short.
    """
    if args.folder is None:
        raise UsageError("name the sweep: rosler sweep best DIR")
    from rosler_jax import config as configs
    from rosler_jax import run as runs
    from rosler_jax import sweep
    from rosler_jax.sweep import table as tables

    rows = tables.rows_so_far(Path(args.folder))
    out = Path(args.out or Path(args.folder) / "best")
    spec = sweep.parse(sweep.stored_spec(Path(args.folder)))
    metric, larger = spec.followed()
    name, least = f"validation_{metric}", args.at_least

    def enough(found: dict[str, Any]) -> bool:
        return least is None or (found[name] >= least if larger else found[name] <= least)

    found = [row for row in _ranked(rows, metric, larger) if enough(row)]
    if least is not None:
        found.sort(key=lambda row: row["file_bytes"])  # of equals the best comes first as it does
    if not found:
        bound = f"has a validation {metric} of {least}"
        raise RuntimeError(f"no member of {args.folder} {'is done' if least is None else bound}")
    if out.exists():
        raise FileExistsError(f"{out} is there already; choose another folder with --out")
    examples = sweep.load_examples(configs.from_dict(json.loads(found[0]["config"])))
    sweep.folder.check_examples(Path(args.folder), examples)
    out.parent.mkdir(parents=True, exist_ok=True)
    for row in found[:TRIES]:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".best-") as temporary:
            trained = Path(temporary) / "run"
            result = runs.train(configs.from_dict(json.loads(row["config"])), trained)
            if enough(result):
                trained.rename(out)
                break
    else:
        tried = len(found[:TRIES])
        raise RuntimeError(f"trained alone, the {tried} smallest members fall short of {least}")
    shown = [
        ("member", row["member"]),
        (f"validation {metric}", f"{result[name]:.4g}"),
        ("in the sweep", f"{row[name]:.4g}"),
        (f"test {metric}", f"{result[f'test_{metric}']:.4g}"),
        ("file bytes", result["file_bytes"]),
        ("written to", out),
    ]
    return Outcome(table(shown), {**result, "member": row["member"], "out": str(out)})


COMMAND = Command(
    summary="train many configurations in few compiled programs",
    description=(
        "Trains every member of SPEC.toml's axes, in populations that share compiled programs, and "
        "writes one Parquet table, a row a member. Interrupted, it goes on with --resume. "
        "`rosler sweep best DIR` retrains the best, or the smallest that is good enough."
    ),
    examples=(
        "rosler sweep sweep.toml --data mnist5k --out runs/sweep",
        "rosler sweep sweep.toml --dry-run",
        "rosler sweep --resume runs/sweep",
        "rosler sweep best runs/sweep --at-least 0.9",
        "srun rosler sweep sweep.toml --out runs/sweep --distributed",
    ),
    add_arguments=add_arguments,
    run=run,
    interrupted=interrupted,
)
