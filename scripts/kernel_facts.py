"""What a Mosaic GPU kernel's own machine code says: its launch, its loop, a bound of its time.

Mosaic writes a kernel's PTX and its launch where ``MOSAIC_GPU_DUMP_TO`` says; ptxas and nvdisasm
make machine code of it. Nothing is run.

The bound is the largest of three times. *Memory*: the bytes of the input and the output, once.
*Products*: the operations of all tiles, at the tensor cores' rate. *Issue*: every warp executes the
loop's instructions once a step and the rest once, and a scheduler issues one instruction a cycle.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SCHEDULERS = 4  # of a multiprocessor

_LAUNCH = re.compile(
    r"gpu\.launch .*? in \((.*?)\) threads\(.*?\) in \((.*?)\) dynamic_shared_memory_size %c(\d+)"
)
_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z0-9_.]+)([^;]*);")
_LABEL = re.compile(r"^\.(L_\w+):", re.MULTILINE)


class Chip(NamedTuple):
    """Rates of a GPU: multiprocessors, cycles, bytes and 16-bit operations a second."""

    multiprocessors: int
    clock: float
    bandwidth: float
    operations: float


H100 = Chip(132, 1.755e9, 3.03e12, 0.92e15)
"""As measured on one: a copy, and a square bfloat16 product (BENCHMARKS.md); NVIDIA's clock."""


class Loop(NamedTuple):
    """The loop over steps: instructions of a warp in a turn, by what they are, and outside it."""

    outside: int
    instructions: int
    products: int
    waits: int
    barriers: int


def tools() -> tuple[str, str] | None:
    """ptxas and nvdisasm, where both are."""
    found = [shutil.which(name) for name in ("ptxas", "nvdisasm")]
    return (found[0], found[1]) if found[0] and found[1] else None


def facts_of(folder: Path) -> dict[str, Any]:
    """Blocks, threads of each, bytes of shared memory of the first kernel; registers of all."""
    found = _launch(folder)
    said = "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.ptxas")))
    used = [int(n) for n in re.findall(r"Used (\d+) registers", said)]
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    if found and used:
        found |= {"registers": max(used), "spills": max(int(a) + int(b) for a, b in spills)}
        found["injected"] = said.count("C7519")
    return found


def _launch(folder: Path) -> dict[str, Any]:
    for log in sorted(folder.glob("*.mlir-passes.log")):
        with log.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                found = _LAUNCH.search(line)
                if found is not None:
                    sizes = [math.prod(_numbers(found[k])) for k in (1, 2)]
                    return {"blocks": sizes[0], "threads": sizes[1], "shared": int(found[3])}
    return {}


def _numbers(text: str) -> Iterator[int]:
    return (int(n) for n in re.findall(r"= %c(\d+)", text))


def machine_code(folder: Path) -> str | None:
    """SASS of the first kernel dumped; None without the tools or a kernel."""
    made, programs = tools(), sorted(folder.glob("*.ptx"))
    if made is None or not programs:
        return None
    cubin = folder / "kernel.cubin"
    assemble = [made[0], "-arch=sm_90a", "-O3", str(programs[0]), "-o", str(cubin)]
    if subprocess.run(assemble, capture_output=True, check=False).returncode:
        return None
    done = subprocess.run([made[1], "-c", str(cubin)], capture_output=True, text=True, check=False)
    return done.stdout or None


def loop_of(code: str, inner: int = 1) -> Loop:
    """The outermost loop that multiplies; all of a program without one.

    Args:
      code: SASS with labels.
      inner: turns that each loop inside takes in a step; loops that wait for memory take none.
    """
    lines: list[tuple[str, str]] = []
    places: dict[str, int] = {}
    for line in code.splitlines():
        label, found = _LABEL.match(line), _LINE.search(line)
        if label is not None:
            places[label[1]] = len(lines)
        elif found is not None:
            lines.append((found[2], found[3]))
    back = [
        (places[target], i)
        for i, (name, rest) in enumerate(lines)
        if name == "BRA"
        for target in re.findall(r"\(\.(L_\w+)\)", rest)
        if target in places and places[target] < i
    ]
    products = {i for i, (name, _) in enumerate(lines) if name.startswith("HGMMA")}
    around = [(a, b) for a, b in back if any(a <= i <= b for i in products)]
    if not around:  # of a single step: no loop
        around = [(0, len(lines) - 1)]
    start, end = max(around, key=lambda pair: pair[1] - pair[0])
    body = [name for name, _ in lines[start : end + 1]]
    inside = [(a, b) for a, b in back if start < a and b < end]
    waiting = lambda a, b: any("SYNCS" in name for name, _ in lines[a : b + 1])  # noqa: E731
    more = sum((inner - 1) * (b - a + 1) for a, b in inside if not waiting(a, b))
    count = lambda *names: sum(name.startswith(names) for name in body)  # noqa: E731
    kinds = [count(name) for name in ("HGMMA", "WARPGROUP.DEPBAR", "BAR.")]
    return Loop(len(lines) - len(body), len(body) + more, *kinds)


def resident(registers: int, threads: int, shared: int) -> int:
    """Blocks that a Hopper multiprocessor holds at a time."""
    each = math.ceil(registers * threads / 256) * 256
    return max(1, min(65536 // each, 233_472 // (shared + 1024), 2048 // threads, 32))


def bound(
    loop: Loop, facts: dict[str, Any], steps: int, moved: int, operations: int, chip: Chip = H100
) -> dict[str, float]:
    """Microseconds at least, by what: memory, products, issue.

    Args:
      loop, facts: of the kernel; facts as of ``facts_of``.
      steps: turns of the loop in a block.
      moved: bytes of the input and the output.
      operations: multiplications and additions of all tiles.
      chip: where it would run.
    """
    held = resident(facts["registers"], facts["threads"], facts["shared"])
    warps = facts["threads"] / 32 / SCHEDULERS * held
    waves = math.ceil(facts["blocks"] / (chip.multiprocessors * held))
    cycles = waves * (steps * loop.instructions + loop.outside) * max(1.0, warps)
    return {
        "memory": 1e6 * moved / chip.bandwidth,
        "products": 1e6 * operations / chip.operations,
        "issue": 1e6 * cycles / chip.clock,
    }
