"""Coded matrices in C: row by row what Python wrote, on this machine and on the emulated board."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rosler_jax._coding import encode
from rosler_jax.export import firmware
from rosler_jax.export.c.unit import Unit
from rosler_jax.export.firmware import ToolchainError, run_program

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
STATE = {7: 148, 127: 236}  # bytes of a reader on the board, by levels
MAIN = "int main(void)\n{\n    return run(stream, sizeof stream);\n}\n"
PROGRAM = """\
static int run(const uint8_t *bytes, uint32_t count)
{{
    static rosler_reader reader;
    static const int sides[{count}][2] = {{{sides}}};
    static uint16_t activity[{most}];
    static int32_t totals[{most}];
    static int8_t row[{most}];
    int before = 0, k, c, r;
    rosler_coded s = {{0}};
    s.reader = &reader;
    s.activity = activity;
    s.levels = {levels};
    rosler_reader_open(&reader, bytes, count);
    for (k = 0; k < {count}; ++k) {{
        s.columns = sides[k][1];
        for (c = 0; c < s.columns; ++c) {{
            const int32_t t = before && s.columns % before == 0 ? totals[c % before] : 0;
            activity[c] = (uint16_t)(t < 4095 ? t : 4095);
        }}
        if (!rosler_coded_start(&s)) {{
            return 1;
        }}
        before = sides[k][0];
        for (r = 0; r < before; ++r) {{
            BEGIN
            totals[r] = rosler_coded_row(&s, row);
            END
            PUT(row, (unsigned)s.columns);
        }}
    }}
    return 0;
}}
"""
HOST = """\
#include <stdint.h>
#include <stdio.h>
#define BEGIN
#define END
#define PUT(bytes, count) fwrite(bytes, 1, count, stdout)
"""
BOARD = """\
#include "firmware.h"
#define BEGIN firmware_begin();
#define END firmware_end();
#define PUT(bytes, count) firmware_print_bytes(bytes, count)
"""


def has_firmware() -> bool:
    try:
        firmware.find_toolchain()
    except ToolchainError:
        return False
    return True


def net(levels: int, sizes: tuple[int, ...] = (49, 30, 15, 4)) -> list[np.ndarray]:
    """Rows of weights that see images of 7 x 7, with dead units, and what reads them."""
    rng = np.random.default_rng(levels)
    width = 1.0 if levels == 7 else 20.0
    out = []
    for m, n in itertools.pairwise(sizes):
        weights = rng.laplace(size=(n, m)) * width
        if m == 49:
            weights = np.cumsum(weights, axis=1) * (rng.random((n, 1)) < 0.6) / 3
        out.append(np.clip(np.rint(weights), -levels, levels).astype(np.int8))
    return out


def source(head: str, stream: bytes, sides: list[tuple[int, int]], levels: int) -> str:
    unit = Unit()
    contexts = 43 if levels <= 7 else 73
    unit.macros = {"ROSLER_CONTEXTS": contexts, "ROSLER_SMOOTH": 1, "ROSLER_PLAIN": 1}
    unit.use("coded")
    unit.array("uint8_t", "stream", list(stream), "weights")
    listed = ", ".join(f"{{{rows}, {columns}}}" for rows, columns in sides)
    most = max(itertools.chain(*sides))
    text = PROGRAM.format(count=len(sides), sides=listed, most=most, levels=levels)
    return unit.text([head]) + text


def coded(matrices: list[np.ndarray], levels: int) -> bytes:
    stream, which = encode([(m, levels, 1 << 40) for m in matrices], transposed=False)
    assert all(which)
    return stream


def compiled(folder: Path, text: str) -> Path:
    (folder / "main.c").write_text(text)
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion"]
    checked = ["-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
    command = ["gcc", *flags, *checked, "main.c", "-o", "main"]
    subprocess.run(command, cwd=folder, check=True, timeout=100)
    return folder / "main"


@needs_gcc
@pytest.mark.parametrize("levels", [7, 127])
def test_rows_in_c_are_those_of_python(levels: int, tmp_path: Path) -> None:
    matrices = net(levels)
    text = source(HOST, coded(matrices, levels), [m.shape for m in matrices], levels) + MAIN
    done = subprocess.run([compiled(tmp_path, text)], capture_output=True, check=True, timeout=60)
    assert done.stdout == b"".join(m.tobytes() for m in matrices)


@needs_gcc
def test_no_stream_leads_out_of_its_memory(tmp_path: Path) -> None:
    # The sanitizers end the program where it reads or writes what is not its own.
    rng = np.random.default_rng(0)
    streams = [rng.bytes(60) for _ in range(60)] + [bytes(60), b"\x7f" + b"\xff" * 59]
    calls = "".join(f"    run(stream + {60 * k}, 60);\n" for k in range(len(streams)))
    text = source(HOST, b"".join(streams), [(20, 30), (9, 20)], 127)
    text += f"int main(void)\n{{\n{calls}    return 0;\n}}\n"
    subprocess.run([compiled(tmp_path, text)], capture_output=True, check=True, timeout=60)


@pytest.mark.skipif(not has_firmware(), reason="no compiler or emulator of the board")
@pytest.mark.parametrize("levels", [7, 127])
def test_rows_on_the_board_are_those_of_python(levels: int, tmp_path: Path) -> None:
    matrices = net(levels)
    sides = [m.shape for m in matrices]
    text = source(BOARD, coded(matrices, levels), sides, levels) + MAIN
    text += f"typedef char reader_takes[sizeof(rosler_reader) == {STATE[levels]} ? 1 : -1];\n"
    (tmp_path / "main.c").write_text(text)
    run = run_program([tmp_path / "main.c"])
    assert run.exit_code == 0
    assert run.stdout == b"".join(m.tobytes() for m in matrices)
    counts = firmware.sum_tables(run.profile.windows, without=())
    instructions = sum(each.instructions for each in counts.values())
    # Measured: 134 and 480 a value of such dense ones; 41 of a first layer with 1 % not zero.
    assert instructions < (150 if levels == 7 else 550) * sum(m.size for m in matrices)
