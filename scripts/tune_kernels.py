"""Finds the fastest block sizes of the Pallas kernels on the device at hand.

    python scripts/tune_kernels.py --out tuned.json
    python scripts/tune_kernels.py --dry-run --device-kind "NVIDIA H100 80GB HBM3"

Times every fitting candidate for every spec of rosler_kernels.specs.GPU, checks its result against
XLA's, and merges the fastest, with XLA's time over its own, into the table that OUT holds (by
default the one that the package ships, so that it can be committed). Needs a Hopper GPU or a TPU;
--dry-run lists the candidates anywhere. Every spec is saved as soon as it is measured: an
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import rosler_kernels as rk
from rosler_kernels import selection, tuning
from rosler_kernels.specs import TABLES, Spec

SECONDS = 0.05


def candidates(implementation: str) -> list[Any]:
    """Block sizes to try."""
    if implementation == "mosaic_gpu":
        from rosler_kernels.projection.mosaic_gpu import Blocks

        sizes = itertools.product((64, 128), (64, 128, 192, 256), (2, 3, 4), (1, 4, 16))
        return [Blocks(*s) for s in sizes if s[0] * s[1] <= 128 * 128]
    from rosler_kernels.projection import mosaic_tpu

    tpu = itertools.product((128, 256, 512), (256, 512, 1024), (128, 256))
    return [mosaic_tpu.Blocks(*s) for s in tpu]


def function(spec: Spec, implementation: str, blocks: Any) -> Any:
    """The jitted kernel with those block sizes."""
    if implementation == "mosaic_gpu":
        from rosler_kernels.projection import mosaic_gpu as gpu

        chosen = gpu.project_transpose if spec.transpose else gpu.project
        return jax.jit(functools.partial(chosen, blocks=blocks))
    from rosler_kernels.projection import mosaic_tpu as tpu

    other = tpu.project_transpose if spec.transpose else tpu.project
    return jax.jit(functools.partial(other, blocks=blocks))


def seconds(run: Any, x: Any, sketch: Any, repeats: int) -> float:
    """Median seconds of a call, after a warm-up."""
    run(x, sketch).block_until_ready()
    start = time.perf_counter()
    run(x, sketch).block_until_ready()
    count = max(1, min(200, int(SECONDS / (time.perf_counter() - start))))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(count):
            y = run(x, sketch)
        y.block_until_ready()
        times.append((time.perf_counter() - start) / count)
    return statistics.median(times)


def tune(spec: Spec, implementation: str, repeats: int) -> dict[str, Any] | None:
    """The table's entry for a spec; None if no candidate ran."""
    x, sketch = spec.inputs(0), spec.sketch(0)
    project = rk.project_transpose if spec.transpose else rk.project
    xla = jax.jit(functools.partial(project, implementation="xla"))
    want, base = np.asarray(xla(x, sketch), np.float32), seconds(xla, x, sketch, repeats)
    best: tuple[float, Any] | None = None
    for blocks in candidates(implementation):
        run = function(spec, implementation, blocks)
        try:
            got = np.asarray(run(x, sketch), np.float32)
        except Exception as reason:
            print(f"  {blocks}: {str(reason).splitlines()[0][:120]}", file=sys.stderr)
            continue
        if np.abs(got - want).max() > 0.02 * np.abs(want).max():
            print(f"  {blocks}: wrong, left out", file=sys.stderr)
            continue
        taken = seconds(run, x, sketch, repeats)
        if best is None or taken < best[0]:
            best = taken, blocks
    if best is None:
        return None
    return {
        "operation": "project_transpose" if spec.transpose else "project",
        "kind": spec.kind,
        "dtype": spec.dtype,
        "shape": shape(spec),
        "blocks": best[1]._asdict(),
        "xla_over_kernel": base / best[0],
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


def main(arguments: list[str]) -> int:
    """Tunes, or lists what would be tried."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shipped = Path(tuning.__file__).with_name("tuned.json")
    parser.add_argument("--out", type=Path, default=shipped, help="table to merge into")
    parser.add_argument("--specs", choices=sorted(TABLES), default="gpu")
    parser.add_argument("--filter", default="", help="only specs whose name holds this text")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="also what the table has already")
    parser.add_argument("--dry-run", action="store_true", help="list candidates, run nothing")
    parser.add_argument("--device-kind", help="with --dry-run: another device than this one")
    options = parser.parse_args(arguments)
    here = selection.device()
    kind = options.device_kind or here.kind
    implementation = "mosaic_gpu" if tuning.is_hopper(kind) else "mosaic_tpu"
    specs = [spec for spec in TABLES[options.specs] if options.filter in spec.name]
    if options.dry_run:
        tried = candidates(implementation)
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
        entry = tune(spec, implementation, options.repeats)
        if entry is not None:
            save(options.out, implementation, kind, entry)
        said = f"{entry['xla_over_kernel']:.2f}x XLA, {entry['blocks']}" if entry else "none ran"
        print(f"[{i + 1}/{len(specs)}] {spec.name}: {said}", flush=True)
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
