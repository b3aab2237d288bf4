"""Compiles the kernels for devices that are not here, by the real compilers: what they say of each.

    scripts/compile_kernels --out runs/compiled                     # everything: an hour
    scripts/compile_kernels --out runs/compiled --device tpu-v5e,h100 --specs gpu
    scripts/compile_kernels --out runs/compiled --specs ops --implementation xla

Every program is compiled as a whole, forward and, where it says so, with its gradient. The table
tells whether it compiled, the temporaries that the compiler's own memory analysis counts, of
kernels for GPUs ptxas' registers and spills, of programs for TPUs the cycles that the compiler
estimates for its own fusions (none for kernels). It is compiler output; nothing is run or timed.

Of kernels for GPUs it also has what their machine code says, where ptxas and nvdisasm are on the
PATH (nvdisasm comes with CUDA, or with triton's wheel): shared memory, blocks that a multiprocessor
holds, instructions of the loop, and a bound of the time, see scripts/kernel_facts.py. The specs
"steps" and "sweep" are whole training steps and a whole sweep through XLA, "llama" and
"activations" those of scripts/large_shapes.py.

Each result is on disk before the next begins: interrupted, the same command goes on. The exit code
is 1 if a program did not compile or a kernel spills.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# What the compilers ask of their surroundings where no device is; read when JAX is imported.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
os.environ.update(TPU_ACCELERATOR_TYPE="v5litepod-4")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import kernel_facts
from jax.experimental import topologies

import rosler_kernels as rk
from rosler_kernels import tuning
from rosler_kernels.specs import KERNEL_FAMILIES, TABLES, Spec

SHOWN_ERROR = 160
FEW_BYTES = 4 << 20

Row = dict[str, Any]


class Target(NamedTuple):
    """A device to compile for.

    Attributes:
      platform: JAX's name of its compiler.
      kernels: the implementation by Pallas, or None where there is none.
      options: of ``get_topology_desc``.
    """

    platform: str
    kernels: str | None
    options: dict[str, str]


def _tpu(topology: str) -> Target:
    return Target("tpu", "mosaic_tpu", {"topology_name": topology})


def _gpu(
    name: str, capability: str, cores: int, shared: int, bandwidth: float, memory: float,
    kernels: str | None = None,
) -> Target:  # fmt: skip
    """An NVIDIA GPU by its data sheet: multiprocessors, bytes of shared memory, bytes a second."""
    config = f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared + 1024}
  shared_memory_per_block_optin: {shared} core_count: {cores} fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory:.0f}
  l2_cache_size: 50331648 clock_rate_ghz: 1.7
  cuda_compute_capability {{ {capability} }}
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 9 }}
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""
    options = {"topology_name": "one", "topology": "1x1x1", "target_config": config}
    return Target("cuda", kernels, options)


_FULL = "feature_extension: ACCELERATED_FEATURES"
TARGETS: dict[str, Target] = {
    "tpu-v4": _tpu("v4:2x2x1"),
    "tpu-v5e": _tpu("v5e:2x2"),
    "tpu-v5p": _tpu("v5p:2x2x1"),
    "tpu-v6e": _tpu("v6e:2x2"),
    "tpu-7x": _tpu("tpu7x:2x2x1"),
    "h100": _gpu(
        "NVIDIA H100 80GB HBM3", f"major: 9 minor: 0 {_FULL}", 132, 232448, 3.35e12, 85e9,
        "mosaic_gpu",
    ),
    "a100": _gpu("NVIDIA A100-SXM4-80GB", "major: 8 minor: 0", 108, 166912, 2.04e12, 85e9),
    "l4": _gpu("NVIDIA L4", "major: 8 minor: 9", 58, 101376, 3.0e11, 24e9),
    "b200": _gpu("NVIDIA B200", f"major: 10 minor: 0 {_FULL}", 148, 232448, 8.0e12, 192e9),
}  # fmt: skip
"""Every device by name: a new one is one line here."""


class Program(NamedTuple):
    """What is compiled.

    Attributes:
      operation: its name.
      what: sketch, shape, dtype, direction.
      function: of arrays, given an implementation.
      arguments: their shapes and dtypes.
      spec: of a projection alone.
    """

    operation: str
    what: str
    function: Callable[[str], Callable[..., Any]]
    arguments: tuple[Any, ...]
    spec: Spec | None = None


def _arrays(*given: tuple[tuple[int, ...], str]) -> tuple[Any, ...]:
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in given)


def projections(table: str) -> Iterator[Program]:
    """Those of a table of specs: forwards, and transposed, which is its own gradient."""
    for spec in TABLES[table]:
        project = rk.project_transpose if spec.transpose else rk.project

        def function(implementation: str, spec: Any = spec, project: Any = project) -> Any:
            return lambda x: project(x, spec.sketch(0), implementation=implementation)

        width = spec.cols if spec.transpose else spec.rows
        arguments = _arrays(((spec.batch, width), spec.dtype))
        yield Program("project", spec.name, function, arguments, spec)


def operations(_: str = "") -> Iterator[Program]:
    """All operations with their gradients, in bfloat16 and float32."""
    for dtype in ("bfloat16", "float32"):
        for kind in KERNEL_FAMILIES:
            yield _gradient(
                "project", f"{kind} 4096x4096->128", dtype, _project(kind), (4096, 4096)
            )
        for held in ("stored", "seeded", "parallel"):
            chain = _chain(held)
            weights = [(1024, 64), (64, 128), (128, 512)]
            yield _gradient("chain", f"{held} 256x1024->512", dtype, chain, (256, 1024), *weights)
        yield _gradient("hadamard", "4096x4096", dtype, _hadamard, (4096, 4096))
        yield _gradient("patches", "rademacher 3x3 of 32x32x64", dtype, _patches, (128, 32, 32, 64))


def _gradient(
    operation: str, what: str, dtype: str, of: Callable[..., Any], *shapes: tuple[int, ...]
) -> Program:
    def function(implementation: str) -> Callable[..., Any]:
        def loss(*args: Any) -> Any:
            return jnp.sum(jnp.square(of(implementation, *args).astype(jnp.float32)))

        return jax.value_and_grad(loss, tuple(range(len(shapes))))

    arguments = _arrays(*((shape, dtype) for shape in shapes))
    return Program(operation, f"{what} {dtype} + gradient", function, arguments)


def _project(kind: str) -> Callable[..., Any]:
    return lambda name, x: rk.project(x, rk.make(kind, 0, 4096, 128), implementation=name)


def _chain(held: str) -> Callable[..., Any]:
    def chain(name: str, x: Any, c: Any, u: Any, r: Any) -> Any:
        if held == "seeded":
            left, right = rk.srht(1, 1024, 64), rk.srht(2, 512, 128)
            return rk.sketch_matmul(x, left, u, right, implementation=name)
        psi, omega = rk.rademacher(1, 1024, 128), rk.rademacher(2, 512, 64)
        parallel = rk.Parallel(psi, omega) if held == "parallel" else None
        return rk.sketch_matmul(x, c, u, r, parallel=parallel, implementation=name)

    return chain


def _hadamard(name: str, x: Any) -> Any:
    return rk.hadamard_transform(x, implementation=name)


def _patches(name: str, x: Any) -> Any:
    sketch = rk.rademacher(0, 9 * x.shape[-1], 64)
    options = {"window": (3, 3), "strides": 1, "padding": "SAME", "implementation": name}
    return rk.project_patches(x, sketch, **options)  # type: ignore[arg-type]


def whole(table: str) -> Iterator[Program]:
    """Training steps, a sweep, updates and gradients of large models: of XLA alone."""
    import compile_steps
    import large_shapes

    made, name = {
        "steps": (compile_steps.steps, "step"),
        "sweep": (compile_steps.sweep, "sweep"),
        "llama": (large_shapes.llama_updates, "large"),
        "activations": (large_shapes.activations, "large"),
    }[table]
    for what, function, arguments in made():
        yield Program(name, what, _always(function), arguments)


WHOLE = ("step", "sweep", "large")
"""Operations that are programs through XLA alone."""


def _always(function: Callable[..., Any]) -> Callable[[str], Callable[..., Any]]:
    return lambda _: function


SPECS: dict[str, Callable[[str], Iterator[Program]]] = {
    **dict.fromkeys(TABLES, projections),
    "ops": operations,
    **dict.fromkeys(("steps", "sweep", "llama", "activations"), whole),
}


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """What the compilers print, which they do past Python."""
    text: list[str] = []
    with tempfile.TemporaryFile() as file:
        kept = [os.dup(1), os.dup(2)]
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            for k in (1, 2):
                os.dup2(file.fileno(), k)
            yield text
        finally:
            for k, old in zip((1, 2), kept, strict=True):
                os.dup2(old, k)
                os.close(old)
            file.seek(0)
            text.append(file.read().decode(errors="replace"))


def compiled(program: Program, target: Target, implementation: str) -> Row:
    """What the compiler says of a program."""
    topology = topologies.get_topology_desc(platform=target.platform, **target.options)
    device: Any = topology.devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    arguments = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), program.arguments
    )
    platform = "gpu" if target.platform == "cuda" else target.platform
    start = time.perf_counter()
    found: Row = {"temporaries": None}
    with heard(), dumped() as folder, rk.assume_device(platform, device.device_kind):
        try:
            done: Any = jax.jit(program.function(implementation)).lower(*arguments).compile()
            memory, text = done.memory_analysis(), done.as_text() or ""
            found["temporaries"] = memory.temp_size_in_bytes
            found["arguments"] = memory.argument_size_in_bytes
            found["outputs"] = memory.output_size_in_bytes
            found["flops"] = (done.cost_analysis() or {}).get("flops")
        except Exception as error:  # whatever a compiler raises is what the table says
            refused = isinstance(error, ValueError) and "cannot run" in str(error)
            why = f"{type(error).__name__}: {error}"[:SHOWN_ERROR]
            found["refused" if refused else "error"] = why
            text = ""
        found["seconds"] = round(time.perf_counter() - start, 2)
        cycles = [int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', text)]
        known = [n for n in cycles if n < 2**60]  # beyond: the compiler does not know
        found["cycles"] = sum(known) if known else None
        fast = re.findall(r'"memory_space":"1","offset":"\d+","size":"(\d+)"', text)
        found["vmem"] = max(map(int, fast), default=None)  # of one fusion or kernel
        if implementation == "mosaic_gpu":
            facts = kernel_facts.facts_of(folder)
            found |= facts | machine_code(program, folder, facts)
    return found


@contextlib.contextmanager
def dumped() -> Iterator[Path]:
    """A folder into which Mosaic GPU writes what it makes."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["MOSAIC_GPU_DUMP_TO"] = name
        try:
            yield Path(name)
        finally:
            del os.environ["MOSAIC_GPU_DUMP_TO"]


def machine_code(program: Program, folder: Path, facts: Row) -> Row:
    """What the machine code of a kernel says, and bounds of a projection's time."""
    code = kernel_facts.machine_code(folder)
    if code is None or "registers" not in facts:
        return {}
    spec = program.spec
    if spec is None:
        return {"loop": kernel_facts.loop_of(code)._asdict()}
    from rosler_kernels._mosaic_gpu import NARROW
    from rosler_kernels.projection import mosaic_gpu as gpu

    inner, cols = (spec.cols, spec.rows) if spec.transpose else (spec.rows, spec.cols)
    parts = gpu.parts(jnp.dtype(spec.dtype), spec.kind)
    blocks = gpu.default_blocks(spec.batch, cols, inner, parts)
    pieces = gpu.DEPTH // gpu.PIECE * blocks.cols // (NARROW // 2)
    loop = kernel_facts.loop_of(code, pieces if spec.kind == "gaussian" else 1)
    transformed = loop.products != len(parts.pairs()) * gpu.DEPTH // 16 * blocks.rows // 64
    if transformed:  # another kernel than that of tiles
        return {"loop": loop._asdict()}
    steps = math.ceil(math.ceil(inner / gpu.DEPTH) / blocks.splits)
    moved = jnp.dtype(spec.dtype).itemsize * spec.batch * (spec.rows + spec.cols)
    products = 2 * spec.batch * spec.rows * spec.cols * len(parts.pairs())
    return {
        "loop": loop._asdict(),
        "bound": kernel_facts.bound(loop, facts, steps, moved, products),
    }


def rows_of(path: Path) -> list[Row]:
    """The results so far."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # behind the last end: a torn one
    return [json.loads(line) for line in lines]


def grouped(rows: Sequence[Row], *names: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows by what they have in common."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each device, implementation and operation; refusals do not count."""
    lines = [
        "| device | implementation | operation | compiled | most temporaries, MB | in | of at most "
        f"{FEW_BYTES >> 20} MB | most VMEM, MB | most cycles of XLA's fusions, millions |",
        "|---|---|---|---|---:|---|---:|---:|---:|",
    ]
    rows = [row for row in rows if "refused" not in row]
    for key, some in grouped(rows, "device", "implementation", "operation").items():
        done = [row for row in some if "error" not in row]
        cells = [*key, f"{len(done)} of {len(some)}"]
        if done:
            worst = max(done, key=lambda row: row["temporaries"])
            few = sum(row["temporaries"] <= FEW_BYTES for row in done)
            cells += [f"{worst['temporaries'] / 1e6:,.1f}", worst["what"], str(few)]
            cells += [_most(done, "vmem"), _most(done, "cycles")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _most(rows: Sequence[Row], name: str) -> str:
    """The largest of what some rows have, in millions."""
    values = [row[name] for row in rows if row.get(name)]
    return f"{max(values) / 1e6:,.1f}" if values else ""


def registers_table(rows: Sequence[Row]) -> str:
    """Markdown: what ptxas and the launch say of kernels, by operation, family and dtype."""
    lines = [
        "| device | operation | programs | registers | most spills, bytes | shared memory, KB "
        "| blocks a multiprocessor | loop: instructions a warp | waits | with C7519 |",
        "|---|---|---:|---|---:|---|---|---|---|---:|",
    ]
    known = [row | {"of": _kind(row["what"])} for row in rows if row.get("registers") is not None]
    for (device, operation, of), some in grouped(known, "device", "operation", "of").items():
        held = [kernel_facts.resident(r["registers"], r["threads"], r["shared"]) for r in some]
        loops = [row["loop"] for row in some if "loop" in row]
        spills, injected = (max(row["spills"] for row in some), sum(map(_injected, some)))
        cells = [device, f"{operation} {of}", str(len(some))]
        cells += [_range([row["registers"] for row in some]), str(spills)]
        cells += [_range([round(row["shared"] / 1e3) for row in some]), _range(held)]
        cells += [_range([loop[k] for loop in loops]) for k in ("instructions", "waits")]
        lines.append(f"| {' | '.join(cells)} | {injected} |")
    return "\n".join(lines)


def bounds_table(rows: Sequence[Row]) -> str:
    """Markdown: the static bounds of projections, and what was measured on an H100."""
    held = {
        (e["operation"], e["kind"], e["dtype"], tuple(e["shape"])): e
        for e in tuning.table()["mosaic_gpu"].get("NVIDIA H100 80GB HBM3", [])
        if e["blocks"] is None
    }
    specs = {spec.name: spec for table in TABLES.values() for spec in table}
    lines = [
        "| projection | memory, us | products | issue | measured, us | over the largest "
        "| cycles an instruction |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if "bound" not in row:
            continue
        spec, bound = specs[row["what"]], row["bound"]
        inner, outer = (spec.cols, spec.rows) if spec.transpose else (spec.rows, spec.cols)
        operation = "project_transpose" if spec.transpose else "project"
        entry = held.get((operation, spec.kind, spec.dtype, (spec.batch, inner, outer)))
        cells = [row["what"], *(f"{bound[k]:,.0f}" for k in ("memory", "products", "issue"))]
        if entry is None:
            cells += ["", "", ""]
        else:
            taken = entry["kernel_microseconds"]
            cells += [f"{taken:,.0f}", f"{taken / max(bound.values()):.2f}"]
            cells += [f"{taken / bound['issue']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(values: list[int]) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _kind(what: str) -> str:
    """Family (or how a chain is held) and dtype."""
    words = what.replace(" + gradient", "").split()
    return f"{words[0]} {words[-1]}" if words[0][0].isalpha() else words[-1]


def _injected(row: Row) -> bool:
    return bool(row.get("injected"))


def report(rows: list[Row]) -> str:
    """All tables of which there is something."""
    parts = [f"JAX {jax.__version__}"]
    parts += [table([r for r in rows if r["operation"] not in WHOLE])]
    parts += [registers_table(rows), bounds_table(rows)]
    large = [row for row in rows if row["operation"] == "large"]
    if large:
        import large_shapes

        parts += [large_shapes.table(large)]
    if any(row["operation"] in ("step", "sweep") for row in rows):
        import compile_steps

        parts += [compile_steps.step_table(rows)]
        sweeps = [r for r in rows if r["operation"] == "sweep" and "error" not in r]
        parts += [compile_steps.sweep_line(row) for row in sweeps]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Compiles what is not known yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names, specs = ",".join(TARGETS), ",".join(SPECS)
    parser.add_argument("--device", default=names, metavar="A,B", help=f"of {names} (default: all)")
    parser.add_argument("--specs", default="gpu,ops", metavar="A,B", help=f"of {specs}")
    parser.add_argument(
        "--implementation", default="kernels,xla", metavar="A,B", help="kernels, xla or both"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/compiled"), metavar="DIR")
    args = parser.parse_args()
    for value, of in ((args.device, TARGETS), (args.specs, SPECS)):
        unknown = [name for name in value.split(",") if name not in of]
        if unknown:
            parser.error(f"{unknown[0]!r} is none of {', '.join(of)}")
    for platform, module in (("tpu", "libtpu"), ("cuda", "jax_cuda12_plugin")):
        needed = any(TARGETS[name].platform == platform for name in args.device.split(","))
        if needed and importlib.util.find_spec(module) is None:
            parser.error(f"{module} is not installed; scripts/compile_kernels installs compilers")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "compiled.jsonl"
    rows = rows_of(path)
    whole = path.with_suffix(".tmp")  # without the line that an interruption tore
    whole.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    whole.replace(path)
    known = {(r["device"], r["implementation"], r["operation"], r["what"]) for r in rows}
    programs = [p for name in args.specs.split(",") for p in SPECS[name](name)]
    wanted = [
        (device, "xla" if kind == "xla" else TARGETS[device].kernels, program)
        for device in args.device.split(",")
        for kind in args.implementation.split(",")
        for program in programs
    ]
    asked = [
        (d, i, p)
        for d, i, p in wanted
        if i and (d, i, p.operation, p.what) not in known
        if i == "xla" or p.operation not in WHOLE
    ]
    with path.open("a", encoding="utf-8") as file:
        for k, (device, implementation, program) in enumerate(asked):
            print(f"\r{k}/{len(asked)} {device} {program.what:<60}", end="", file=sys.stderr)
            key = {"device": device, "implementation": implementation}
            key |= {"operation": program.operation, "what": program.what}
            row = {**key, **compiled(program, TARGETS[device], str(implementation))}
            file.write(json.dumps(row) + "\n")
            file.flush()
            rows.append(row)
    print(file=sys.stderr)
    text = report(rows)
    bad = [r for r in rows if "error" in r or r.get("spills")]
    for r in bad:
        why = r.get("error") or f"{r['spills']} bytes of spills"
        text += f"\n{r['device']}, {r['implementation']}, {r['operation']} {r['what']}: {why}"
    (args.out / "compiled.md").write_text(text + "\n", encoding="utf-8")
    print(f"{text}\n\nwrote compiled.jsonl and compiled.md into {args.out}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
