"""Random projections against their baselines: time, share of the memory floor, right results.

    scripts/bench_kernels --out runs/kernels
    scripts/bench_kernels --out runs/kernels --specs gpu --implementation mosaic_gpu,xla

For every spec of rosler_kernels.specs the results are checked against float64 first; a wrong one is
named, not timed, and the exit code is 1. Then all candidates take turns in one process, after a
warm-up, over three inputs in rotation: every implementation that can run here, and the baselines

    stored   the matrix product with an Omega that lies in memory
    fresh    x @ jax.random.normal(...), made anew in every call
    torch    both of them, as "torch stored" and "torch fresh", where torch is installed

The floor is the time to read x and write y once, at the bandwidth that a copy reaches in the same
run. On an NVIDIA GPU, times are those of the device's kernels alone, by CUPTI, and kernels.json has
those of the wall, which hold the launches, beside them. On a CPU the specs are small, and the
output says so. Each spec is on disk before the next begins: the same command goes on where an
interrupted one stopped.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clocks import fitting, on_device, seconds, wall

import rosler_kernels as rk
from rosler_kernels.specs import TABLES, Spec, matching, tolerance

INPUTS = 3
CHECKED_ROWS = 8
OPTIONS = ("implementation", "repeats", "torch")  # that a run which goes on must share
TILE = 2**13


def wanted(spec: Spec, x: np.ndarray, sketch: rk.Sketch) -> np.ndarray:
    """The float64 result for some rows of x, a tile of Omega at a time."""
    x = x.astype(np.float64)
    parts = []
    for start in range(0, spec.rows, TILE):
        size = min(TILE, spec.rows - start)
        omega = np.asarray(rk.tile(sketch, start, size), np.float64)
        parts.append(x @ omega.T if spec.transpose else x[:, start : start + size] @ omega)
    return np.concatenate(parts, axis=1) if spec.transpose else np.sum(parts, axis=0)


def error(spec: Spec, got: jax.Array, x: jax.Array, sketch: rk.Sketch) -> float:
    """The largest error over what is allowed, on the first and the last rows; above 1 is wrong."""
    rows = np.r_[0 : min(CHECKED_ROWS, spec.batch), max(0, spec.batch - CHECKED_ROWS) : spec.batch]
    want = wanted(spec, np.asarray(x[rows], np.float32), sketch)
    rtol, atol = tolerance(spec)
    difference = np.abs(np.asarray(got[rows], np.float64) - want)
    return float((difference / (atol + rtol * np.abs(want))).max())


def implementations(spec: Spec, asked: list[str] | None) -> list[str]:
    """Those asked for, or all that can run here; interpreters only when asked for."""
    found = []
    for name, backend in rk.IMPLEMENTATIONS.items():
        if asked is None and (backend.interpret or name == "reference"):
            continue
        if asked is not None and name not in asked:
            continue
        shape = (spec.batch, spec.cols if spec.transpose else spec.rows)
        try:
            rk.explain(
                spec.sketch(0),
                shape,
                spec.dtype,
                transpose=spec.transpose,
                implementation=name,
            )
        except ValueError as reason:
            if asked is not None:
                print(f"  {reason}", file=sys.stderr)
            continue
        found.append(name)
    return found


def candidates(spec: Spec, asked: list[str] | None, torch: bool) -> dict[str, Callable[[int], Any]]:
    """What takes turns: from an input's number to a result that may not be ready yet."""
    xs = [spec.inputs(i) for i in range(INPUTS)]
    sketches = [spec.sketch(i) for i in range(INPUTS)]
    keys = [jax.random.key(i) for i in range(INPUTS)]
    project = rk.project_transpose if spec.transpose else rk.project
    shape, size = (spec.rows, spec.cols), np.float32(spec.cols**-0.5)

    @jax.jit
    def product(x: jax.Array, omega: jax.Array) -> jax.Array:
        return x @ (omega.T if spec.transpose else omega)

    @jax.jit
    def fresh(x: jax.Array, key: jax.Array) -> jax.Array:
        return product(x, (jax.random.normal(key, shape) * size).astype(x.dtype))

    omega = (jax.random.normal(keys[0], shape) * size).astype(spec.dtype)
    out: dict[str, Callable[[int], Any]] = {}
    for name in implementations(spec, asked):
        run = jax.jit(functools.partial(project, implementation=name))
        out[name] = lambda i, run=run: run(xs[i], sketches[i])  # type: ignore[misc]
    out["stored"] = lambda i: product(xs[i], omega)
    out["fresh"] = lambda i: fresh(xs[i], keys[i])
    if torch and importlib.util.find_spec("torch"):
        out |= torch_candidates(spec, xs)
    return out


def torch_candidates(spec: Spec, xs: list[jax.Array]) -> dict[str, Callable[[int], Any]]:
    """Both baselines in PyTorch, on its GPU if it has one."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, spec.dtype)
    inputs = [torch.tensor(np.asarray(x, np.float32), device=device).to(dtype) for x in xs]
    shape, size = (spec.rows, spec.cols), spec.cols**-0.5
    omega = (torch.randn(shape, device=device) * size).to(dtype)

    def finish(y: Any) -> Any:
        y.block_until_ready = torch.cuda.synchronize if device == "cuda" else (lambda: None)
        return y

    def product(x: Any, omega: Any) -> Any:
        return finish(x @ (omega.T if spec.transpose else omega))

    return {
        "torch stored": lambda i: product(inputs[i], omega),
        "torch fresh": lambda i: product(
            inputs[i], torch.randn(shape, device=device, dtype=dtype) * size
        ),
    }


def sound(spec: Spec, calls: dict[str, Callable[[int], Any]]) -> dict[str, str]:
    """Why implementations are left out: an error, or a wrong result."""
    found = {}
    for name in [name for name in calls if name in rk.IMPLEMENTATIONS]:
        try:
            ratio = error(spec, calls[name](0), spec.inputs(0), spec.sketch(0))
        except Exception as reason:  # of a compiler, or of the device: the table says it
            found[name] = f"{type(reason).__name__}: {str(reason)[:160]}"
            continue
        if not ratio <= 1.0:
            found[name] = f"wrong, {ratio:.3g} times the tolerance"
    return found


def timed(calls: dict[str, Callable[[int], Any]], repeats: int) -> dict[str, dict[str, Any]]:
    """Seconds of every candidate, all in turns: by the wall, and of the device's kernels."""
    counts = {name: fitting(call, INPUTS) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    device: dict[str, list[float]] = {name: [] for name in calls}
    # torch by itself: its idle threads spin for a while, and whatever came next would pay for that.
    for turn in ([n for n in calls if "torch" not in n], [n for n in calls if "torch" in n]):
        for k in range(repeats):
            for name in turn[:: -1 if k % 2 else 1]:
                times[name].append(wall(calls[name], counts[name], INPUTS))
                kernels = on_device(calls[name], min(counts[name], 4 * INPUTS), INPUTS)
                device[name] += [] if kernels is None else [kernels]
    return {"wall": times, "device": {n: t for n, t in device.items() if len(t) == repeats}}


def measure(
    spec: Spec, calls: dict[str, Callable[[int], Any]], repeats: int, bandwidth: float
) -> dict[str, Any]:
    """One spec: checked, then timed in turns."""
    wrong = sound(spec, calls)
    found = timed({name: call for name, call in calls.items() if name not in wrong}, repeats)
    # One row has one clock: the device's where it tells of all that JAX runs, else the wall's.
    told = all("torch" in name or name in found["device"] for name in found["wall"])
    clock = "device" if told else "wall"
    times, size = found[clock], jnp.dtype(spec.dtype).itemsize
    moved = spec.batch * (spec.rows + spec.cols) * size
    return {
        "name": spec.name,
        "kind": spec.kind,
        "shape": [spec.batch, spec.rows, spec.cols],
        "dtype": spec.dtype,
        "transpose": spec.transpose,
        "bytes": moved,
        "flops": 2 * spec.batch * spec.rows * spec.cols,
        "floor_seconds": moved / bandwidth,
        "wrong": wrong,
        "clock": clock,
        "seconds": {
            name: dict(zip(("q1", "median", "q3"), quartiles(t), strict=True))
            for name, t in times.items()
        },
        "wall_seconds": {name: statistics.median(t) for name, t in found["wall"].items()},
        # Over fresh, pair by pair: what stands side by side saw the same machine.
        "fresh_over": {
            name: statistics.median(f / a for f, a in zip(times["fresh"], t, strict=True))
            for name, t in times.items()
        },
    }


def quartiles(t: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    low, middle, high = (float(q) for q in np.quantile(t, (0.25, 0.5, 0.75)))
    return low, middle, high


def copy_bandwidth(size: int, repeats: int) -> float:
    """Bytes a second, read plus written, of the best of several copies."""
    x = jnp.zeros((size // 4,), jnp.float32)
    copy = jax.jit(lambda x, c: x + c)
    copy(x, 1.0).block_until_ready()
    best = min(seconds(lambda i: copy(x, float(i)), 3, INPUTS) for _ in range(repeats))
    return 2 * size / best


def matrix_rate(dtype: str, n: int, repeats: int) -> float:
    """Floating-point operations a second of a square matrix product."""
    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a, b: a @ b)
    product(a, a).block_until_ready()
    best = min(seconds(lambda i: product(a, a), 1, INPUTS) for _ in range(repeats))
    return 2 * n**3 / best


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    names = list(dict.fromkeys(n for row in rows for n in (*row["wrong"], *row["seconds"])))
    shown = [n for n in names if n in rk.IMPLEMENTATIONS]
    head = ["projection", "floor, ms", *(f"{n}, ms (quartiles)" for n in names)]
    head += [f"{n}: fresh / time" for n in shown] + [f"{n}: floor / time" for n in shown]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["name"], f"{1e3 * row['floor_seconds']:.3g}"]
        for n in names:
            t = row["seconds"].get(n)
            cells.append(
                f"{1e3 * t['median']:.3g} ({1e3 * t['q1']:.3g} to {1e3 * t['q3']:.3g})"
                if t
                else ("**wrong**" if n in row["wrong"] else "-")
            )
        cells += [f"{row['fresh_over'][n]:.2f}x" if n in row["seconds"] else "-" for n in shown]
        for n in shown:
            t = row["seconds"].get(n)
            cells.append(f"{100 * row['floor_seconds'] / t['median']:.0f} %" if t else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(path: Path, rows: list[dict[str, Any]], bandwidth: float, rate: float) -> None:
    """A roofline: operations a second over operations a byte."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    intensity = np.array([row["flops"] / row["bytes"] for row in rows])
    span = np.geomspace(intensity.min() / 2, intensity.max() * 2, 100)
    axes.loglog(span, np.minimum(span * bandwidth, rate), "k-", label="roof, measured here")
    for name in dict.fromkeys(name for row in rows for name in row["seconds"]):
        mine = [row for row in rows if name in row["seconds"]]
        axes.loglog(
            [row["flops"] / row["bytes"] for row in mine],
            [row["flops"] / row["seconds"][name]["median"] for row in mine],
            "o",
            alpha=0.6,
            label=name,
        )
    axes.set(xlabel="operations of the dense product a byte of x and y", ylabel="those a second")
    axes.legend(fontsize=7)
    scratch = path.with_suffix(".tmp.png")
    figure.savefig(scratch, dpi=120)
    os.replace(scratch, path)


def about(arguments: list[str]) -> dict[str, Any]:
    """Where and how the run was made."""
    versions = {"jax": jax.__version__, "jaxlib": jax.lib.__version__, "numpy": np.__version__}
    if importlib.util.find_spec("torch"):
        versions["torch"] = importlib.metadata.version("torch")
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["scripts/bench_kernels", *arguments]),
    }


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and plot")
    parser.add_argument(
        "--specs", choices=sorted(TABLES), help="which specs; by default those for this device"
    )
    parser.add_argument(
        "--filter",
        default="",
        metavar="A,B",
        help="only specs whose name holds one of these texts, in their order",
    )
    parser.add_argument(
        "--implementation", help="comma-separated; by default all that can run here"
    )
    parser.add_argument("--repeats", type=int, default=9, help="timings of each (default 9)")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args(arguments)


def save(out: Path, facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Table, numbers and plot."""
    out.mkdir(parents=True, exist_ok=True)
    write(out / "kernels.md", markdown(rows) + "\n")
    write(out / "kernels.json", json.dumps({"about": facts, "rows": rows}, indent=2))


def begun(out: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that an interrupted run of the same kind left; none of another device's."""
    path = out / "kernels.json"
    if not path.exists():
        return []
    held = json.loads(path.read_text(encoding="utf-8"))
    same = ("device", "jax", "jaxlib", *OPTIONS)
    if any(held["about"].get(key) != facts.get(key) for key in same):
        raise ValueError(f"{path} is of another device, version or options; pass another --out")
    return held["rows"]


def main(arguments: list[str]) -> int:
    """Measures and writes kernels.md, kernels.json and kernels.png."""
    options = parse(arguments)
    here = jax.default_backend()
    specs = matching(options.specs or ("cpu" if here == "cpu" else "gpu"), options.filter)
    asked = options.implementation.split(",") if options.implementation else None
    unknown = set(asked or ()) - set(rk.IMPLEMENTATIONS)
    if unknown or not specs:
        reason = f"unknown {sorted(unknown)}" if unknown else f"no spec holds {options.filter!r}"
        print(f"error: {reason}; see --help", file=sys.stderr)
        return 2
    if here == "cpu":
        print("On a CPU: small specs, and nothing here speaks for a GPU or a TPU.")
    bandwidth = copy_bandwidth(2**28 if here == "cpu" else 2**31, 5)
    rate = matrix_rate(specs[0].dtype, 2048 if here == "cpu" else 8192, 3)
    facts = {**about(arguments), "bandwidth_bytes_a_second": bandwidth, "flops_a_second": rate}
    facts |= {name: getattr(options, name) for name in OPTIONS}
    try:
        rows = begun(options.out, facts)
    except ValueError as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    known = {row["name"] for row in rows}
    for i, spec in enumerate(specs):
        if spec.name in known:
            continue
        calls = candidates(spec, asked, options.torch)
        row = measure(spec, calls, options.repeats, bandwidth)
        rows.append(row)
        save(options.out, facts, rows)
        times = ", ".join(f"{n} {1e3 * t['median']:.3g}" for n, t in row["seconds"].items())
        print(f"[{i + 1}/{len(specs)}] {spec.name}, ms: {times}", flush=True)
        for name, why in row["wrong"].items():
            print(f"error: {spec.name}: {name} is {why}", file=sys.stderr, flush=True)
    draw(options.out / "kernels.png", rows, bandwidth, rate)
    where = f"written to {options.out}/kernels.md, kernels.json, kernels.png"
    print(f"\n{facts}\n\n{markdown(rows)}\n\n{where}")
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
