"""Finds the fastest block sizes of the Pallas kernels on the device at hand.

    python scripts/tune_kernels.py --out tuned.json
    python scripts/tune_kernels.py --quick --filter "rademacher 128x65536,gaussian 8192"
    python scripts/tune_kernels.py --dry-run --device-kind "NVIDIA H100 80GB HBM3"

Times every fitting candidate for every spec of rosler_kernels.specs.GPU, checks its result against
XLA's, and merges the fastest, with XLA's time over its own, into the table that OUT holds (by
default the one that the package ships, so that it can be committed). Times are those of the
device's kernels alone where it tells them. Needs a Hopper GPU or a TPU; --dry-run lists the
candidates anywhere. Every spec is saved as soon as it is measured: an interrupted run goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clocks
import jax
import numpy as np

import rosler_kernels as rk
from rosler_kernels import selection, tuning
from rosler_kernels.specs import TABLES, Spec, matching

INPUTS = 2
COMPILERS = 12  # at once
MULTIPROCESSORS = 132  # of an H100


def candidates(implementation: str, quick: bool) -> list[Any]:
    """Block sizes to try; None: those that the kernel chooses by itself."""
    if implementation == "mosaic_gpu":
        from rosler_kernels.projection.mosaic_gpu import Blocks

        quickly = ((64, 128), (64, 128, 256), (4,), (1, 8))
        sizes = itertools.product(
            *(quickly if quick else ((64, 128), (64, 128, 192, 256), (2, 3, 4), (1, 4, 8, 16)))
        )
        return [None, *(Blocks(*s) for s in sizes if s[0] * s[1] <= 128 * 128)]
    from rosler_kernels.projection import mosaic_tpu

    tpu = itertools.product((128, 256, 512), (256, 512, 1024), (128, 256))
    return [None, *(mosaic_tpu.Blocks(*s) for s in tpu)]


def sensible(spec: Spec, blocks: Any) -> bool:
    """Whether a candidate is worth compiling: no tile wider than the result, no idle splits."""
    if blocks is None or not hasattr(blocks, "splits"):
        return True
    width = spec.rows if spec.transpose else spec.cols
    tiles = -(-spec.batch // blocks.rows) * -(-width // blocks.cols)
    busy = tiles >= MULTIPROCESSORS / 2 if blocks.splits == 1 else tiles < 2 * MULTIPROCESSORS
    return blocks.cols <= max(64, width) and busy


def function(spec: Spec, implementation: str, blocks: Any) -> Any:
    """The jitted kernel with those block sizes."""
    if implementation == "mosaic_gpu":
        from rosler_kernels.projection import mosaic_gpu as gpu

        chosen = gpu.project_transpose if spec.transpose else gpu.project
        return jax.jit(functools.partial(chosen, blocks=blocks))
    from rosler_kernels.projection import mosaic_tpu as tpu

    other = tpu.project_transpose if spec.transpose else tpu.project
    return jax.jit(functools.partial(other, blocks=blocks or tpu.Blocks()))


def seconds(call: Callable[[int], Any], repeats: int) -> float:
    """Median seconds of a call."""
    count = min(clocks.fitting(call, INPUTS), 16)
    return statistics.median(clocks.seconds(call, count, INPUTS) for _ in range(repeats))


def compiled(run: Any, x: Any, sketch: Any) -> Any:
    """The program, or why there is none."""
    try:
        return run.lower(x, sketch).compile()
    except Exception as reason:  # of a compiler: too much shared memory, say
        return f"{type(reason).__name__}: {str(reason).splitlines()[0][:120]}"


def tune(spec: Spec, implementation: str, repeats: int, tried: list[Any]) -> dict[str, Any] | None:
    """The table's entry for a spec; None if no candidate ran."""
    xs, sketches = ([of(i) for i in range(INPUTS)] for of in (spec.inputs, spec.sketch))
    project = rk.project_transpose if spec.transpose else rk.project
    xla = jax.jit(functools.partial(project, implementation="xla"))
    want = np.asarray(xla(xs[0], sketches[0]), np.float32)
    tried = [blocks for blocks in tried if sensible(spec, blocks)]
    with concurrent.futures.ThreadPoolExecutor(COMPILERS) as pool:
        runs = [function(spec, implementation, blocks) for blocks in tried]
        programs = list(pool.map(lambda run: compiled(run, xs[0], sketches[0]), runs))
    base = seconds(lambda i: xla(xs[i], sketches[i]), repeats)
    best: tuple[float, Any] | None = None
    for blocks, program in zip(tried, programs, strict=True):
        if isinstance(program, str):
            print(f"  {blocks}: {program}", file=sys.stderr)
            continue
        got = np.asarray(program(xs[0], sketches[0]), np.float32)
        if not np.abs(got - want).max() <= 0.02 * np.abs(want).max():
            print(f"  {blocks}: wrong, left out", file=sys.stderr)
            continue
        call = lambda i, program=program: program(xs[i], sketches[i])  # noqa: E731
        taken = seconds(call, repeats)
        # The kernel's own choice stays unless another is clearly ahead: it serves all shapes.
        if best is None or taken < (0.97 if best[1] is None else 1.0) * best[0]:
            best = taken, blocks
    if best is None:
        return None
    return {
        "operation": "project_transpose" if spec.transpose else "project",
        "kind": spec.kind,
        "dtype": spec.dtype,
        "shape": shape(spec),
        "blocks": None if best[1] is None else best[1]._asdict(),
        "xla_over_kernel": round(base / best[0], 3),
        "kernel_microseconds": round(1e6 * best[0], 1),
    }


def shape(spec: Spec) -> list[int]:
    """(rows, contraction, columns), as the table is searched."""
    inner, outer = (spec.cols, spec.rows) if spec.transpose else (spec.rows, spec.cols)
    return [spec.batch, inner, outer]


def save(path: Path, implementation: str, kind: str, entry: dict[str, Any]) -> None:
    """Merges one entry into the table on disk; whole or not at all."""
    table = json.loads(path.read_text("utf-8")) if path.exists() else {}
    entries = table.setdefault(implementation, {}).setdefault(kind, [])
    same = ("operation", "kind", "dtype", "shape")
    entries[:] = [e for e in entries if any(e[k] != entry[k] for k in same)] + [entry]
    for name in ("mosaic_gpu", "mosaic_tpu"):
        table.setdefault(name, {})
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shipped = Path(tuning.__file__).with_name("tuned.json")
    parser.add_argument("--out", type=Path, default=shipped, help="table to merge into")
    parser.add_argument("--specs", choices=sorted(TABLES), default="gpu")
    parser.add_argument(
        "--filter", default="", metavar="A,B", help="only specs whose name holds one, in this order"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer candidates")
    parser.add_argument("--again", action="store_true", help="also what the table has already")
    parser.add_argument("--dry-run", action="store_true", help="list candidates, run nothing")
    parser.add_argument("--device-kind", help="with --dry-run: another device than this one")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Tunes, or lists what would be tried."""
    options = parse(arguments)
    here = selection.device()
    kind = options.device_kind or here.kind
    implementation = "mosaic_gpu" if tuning.is_hopper(kind) else "mosaic_tpu"
    specs = matching(options.specs, options.filter)
    tried = candidates(implementation, options.quick)
    if options.dry_run:
        print("\n".join(map(str, tried)))
        print(f"\n{len(tried)} candidates of {implementation} for {len(specs)} specs on {kind}")
        return 0
    if not (tuning.is_hopper(here.kind) or here.platform == "tpu"):
        print(
            f"error: no kernel runs on {here.kind} ({here.platform}); this needs a Hopper GPU or a "
            "TPU. --dry-run lists what would be tried",
            file=sys.stderr,
        )
        return 1
    held = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    known = held.get(implementation, {}).get(kind, [])
    for i, spec in enumerate(specs):
        operation = "project_transpose" if spec.transpose else "project"
        what = (operation, spec.kind, spec.dtype, shape(spec))
        if not options.again and any(
            (e["operation"], e["kind"], e["dtype"], e["shape"]) == what for e in known
        ):
            continue
        entry = tune(spec, implementation, options.repeats, tried)
        if entry is not None:
            save(options.out, implementation, kind, entry)
        said = f"{entry['xla_over_kernel']:.2f}x XLA, {entry['blocks']}" if entry else "none ran"
        print(f"[{i + 1}/{len(specs)}] {spec.name}: {said}", flush=True)
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
