"""Exported C on emulated Cortex-M boards and on this machine: same bits, counts that repeat."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from rosler_jax.export import firmware
from rosler_jax.export.firmware import FirmwareError, ToolchainError, run_firmware, run_host

ROOT = Path(__file__).resolve().parents[2]
BOARDS = tuple(firmware.BOARDS)


def _why_no_firmware() -> str:
    try:
        firmware.find_toolchain()
    except ToolchainError as error:
        return str(error)
    return ""


needs_firmware = pytest.mark.skipif(bool(_why_no_firmware()), reason=_why_no_firmware())


def _sanitizes(compiler: str) -> bool:
    """Whether it links with the address sanitizer, which clang has in a package of its own."""
    if shutil.which(compiler) is None:
        return False
    command = [compiler, "-fsanitize=address", "-x", "c", "-", "-o", os.devnull]
    main = b"int main(void) { return 0; }"
    return subprocess.run(command, input=main, capture_output=True, timeout=60).returncode == 0


needs_gcc = pytest.mark.skipif(not _sanitizes("gcc"), reason="no gcc with its sanitizers")
needs_clang = pytest.mark.skipif(
    not _sanitizes("clang"), reason="no clang with its sanitizers (Debian: clang, libclang-rt-dev)"
)

HEADER = """\
#ifndef ROSLER_MODEL_H
#define ROSLER_MODEL_H
#include <stdint.h>
#define ROSLER_INPUT_SIZE {inputs}
#define ROSLER_OUTPUT_SIZE {outputs} /* classes */
#define ROSLER_ARENA_BYTES 64
#define ROSLER_MODEL_BYTES {bytes}
#define ROSLER_INPUT_TYPE "{type}"
#define ROSLER_OUTPUT_TYPE "{type}"
typedef {c_type} rosler_input;
typedef {c_type} rosler_output;
typedef struct {{ int64_t words[ROSLER_ARENA_BYTES / 8]; }} rosler_arena;
void rosler_predict(const rosler_input *x, rosler_output *y, rosler_arena *arena);
int rosler_argmax(const rosler_output *y);
#endif
"""

SOURCE = """\
#include "rosler_model.h"
{includes}
static const {c_type} weight[ROSLER_OUTPUT_SIZE][ROSLER_INPUT_SIZE] = {{{weight}}};
{extra}
int rosler_argmax(const rosler_output *y) {{
    int best = 0;
    for (int i = 1; i < ROSLER_OUTPUT_SIZE; i++)
        if (y[i] > y[best]) best = i;
    return best;
}}
static __attribute__((noinline)) {sum_type} product(const {c_type} *w, const rosler_input *x) {{
    {sum_type} sum = 0;
    for (int i = 0; i < ROSLER_INPUT_SIZE; i++) sum += ({sum_type})w[i] * x[i];
    return sum;
}}
void rosler_predict(const rosler_input *x, rosler_output *y, rosler_arena *arena) {{
    (void)arena;
    for (int i = 0; i < ROSLER_OUTPUT_SIZE; i++) y[i] = {finish}
}}
"""


def write_model(
    folder: Path, weight: np.ndarray, *, finish: str, includes: str = "", extra: str = ""
) -> Path:
    """A model of one layer in C, as an exporter would write it."""
    c_type, sum_type = {"int16": ("int16_t", "int32_t"), "float32": ("float", "float")}[
        weight.dtype.name
    ]
    names = {"type": weight.dtype.name, "c_type": c_type, "sum_type": sum_type}
    suffix = "f" if weight.dtype.kind == "f" else ""
    rows = ", ".join("{" + ", ".join(f"{v!s}{suffix}" for v in row) + "}" for row in weight)
    outputs, inputs = weight.shape
    folder.mkdir(parents=True, exist_ok=True)
    header = HEADER.format(inputs=inputs, outputs=outputs, bytes=weight.nbytes, **names)
    (folder / "rosler_model.h").write_text(header)
    body = {"weight": rows, "finish": finish, "includes": includes, "extra": extra}
    (folder / "rosler_model.c").write_text(SOURCE.format(**body, **names))
    return folder


def integer_model(folder: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """The model, inputs, and the outputs that NumPy computes."""
    generator = np.random.default_rng(0)
    weight = generator.integers(-900, 900, (5, 24), np.int16)
    x = generator.integers(-900, 900, (7, 24), np.int16)
    write_model(folder, weight, finish="(rosler_output)(product(weight[i], x) / 1024);")
    sums = x.astype(np.int64) @ weight.T.astype(np.int64)
    return folder, x, (np.sign(sums) * (np.abs(sums) // 1024)).astype(np.int16)


def float_model(folder: Path) -> tuple[Path, np.ndarray]:
    generator = np.random.default_rng(1)
    weight = generator.normal(size=(3, 10)).astype(np.float32)
    finish = "tanhf(product(weight[i], x));"
    write_model(folder, weight, finish=finish, includes="#include <math.h>")
    return folder, generator.normal(size=(6, 10)).astype(np.float32)


def program(folder: Path, body: str, before: str = "") -> Path:
    path = folder / "main.c"
    path.write_text(f'#include "firmware.h"\n{before}\nint main(void) {{ {body} }}\n')
    return path


# On this machine.


@needs_gcc
@pytest.mark.parametrize("compiler", ["gcc", pytest.param("clang", marks=needs_clang)])
@pytest.mark.parametrize("sanitize", [False, True])
def test_host_computes_what_numpy_does(tmp_path: Path, compiler: str, sanitize: bool) -> None:
    folder, x, expected = integer_model(tmp_path / "edge")
    got = run_host(folder, x, compiler=compiler, sanitize=sanitize)
    assert got.dtype == np.int16
    np.testing.assert_array_equal(got, expected)


@needs_gcc
def test_host_reports_what_a_sanitizer_finds(tmp_path: Path) -> None:
    weight = np.ones((2, 4), np.int16)
    folder = write_model(
        tmp_path / "edge", weight, finish="(rosler_output)product(weight[i], x + 1);"
    )
    with pytest.raises(FirmwareError, match="global-buffer-overflow"):
        run_host(folder, weight, sanitize=True)


@needs_gcc
def test_a_warning_of_the_compiler_is_an_error(tmp_path: Path) -> None:
    weight = np.ones((2, 4), np.int16)
    folder = write_model(tmp_path / "edge", weight, finish="product(weight[i], x);")
    with pytest.raises(FirmwareError, match="conversion"):
        run_host(folder, weight)


@needs_gcc
def test_a_model_that_hangs_on_the_host_is_stopped(tmp_path: Path) -> None:
    weight = np.ones((2, 4), np.int16)
    extra = "static int16_t hang(int32_t x) { for (volatile int i = 0; i < 1;) x++; return x < 0; }"
    finish = "hang(product(weight[i], x));"
    folder = write_model(tmp_path / "edge", weight, finish=finish, extra=extra)
    with pytest.raises(FirmwareError, match=r"did not end within 0\.2 s"):
        run_host(folder, weight, seconds=0.2)


def test_inputs_are_checked(tmp_path: Path) -> None:
    folder, x, _ = integer_model(tmp_path / "edge")
    for bad, message in (
        (x.astype(np.float32), "float32, the model takes int16"),
        (x[:, :5], r"shape \(7, 5\)"),
        (x[0], r"shape \(24,\)"),
        (x[:0], r"shape \(0, 24\)"),
        (x.astype(np.int32) * 100, "int16 takes -32768 to 32767"),
    ):
        with pytest.raises(ValueError, match=message):
            run_host(folder, bad)
    with pytest.raises(ValueError, match=r"rosler_model\.h: no such file"):
        run_host(tmp_path, x)


def test_a_header_without_a_size_is_refused(tmp_path: Path) -> None:
    folder, x, _ = integer_model(tmp_path / "edge")
    header = folder / "rosler_model.h"
    header.write_text(header.read_text().replace("ROSLER_ARENA_BYTES 64", "ROSLER_ARENA_BYTES X"))
    with pytest.raises(ValueError, match="ROSLER_ARENA_BYTES is 'X'"):
        run_host(folder, x)


# On the boards.


@needs_firmware
@pytest.mark.parametrize("board", BOARDS)
def test_integer_model_equals_the_host_on_every_board(tmp_path: Path, board: str) -> None:
    folder, x, expected = integer_model(tmp_path / "edge")
    run = run_firmware(folder, x, board=board)
    assert run.outputs.dtype == np.int16
    np.testing.assert_array_equal(run.outputs, expected)
    assert run.functions["rosler_predict"].calls == len(x)
    assert run.functions["product"].calls == 5 * len(x)
    # One load of a weight and one of an input for each product.
    assert run.functions["product"].loads >= 2 * 5 * 24 * len(x)
    assert run.least_instructions <= run.instructions <= run.most_instructions
    assert run.flash_data_bytes == 5 * 24 * 2
    assert 40 < run.flash_code_bytes < 400
    assert run.ram_bytes == 64
    assert 8 <= run.stack_bytes <= 128
    assert run.external == ()


@needs_firmware
@pytest.mark.parametrize("board", BOARDS)
def test_float_model_equals_the_host_but_for_the_math_library(tmp_path: Path, board: str) -> None:
    folder, x = float_model(tmp_path / "edge")
    run = run_firmware(folder, x, board=board)
    np.testing.assert_array_max_ulp(run.outputs, run_host(folder, x), maxulp=4)
    assert "tanhf" in run.functions
    soft = "__aeabi_fmul" in run.functions or "__mulsf3" in run.functions
    assert soft == (board == "cortex-m3")
    assert run.library_bytes > 0


@needs_firmware
def test_counts_repeat_exactly(tmp_path: Path) -> None:
    folder, x = float_model(tmp_path / "edge")
    first, second = run_firmware(folder, x), run_firmware(folder, x, workdir=tmp_path / "kept")
    assert first.functions == second.functions
    assert first._replace(outputs=None) == second._replace(outputs=None)  # type: ignore[arg-type]
    assert (tmp_path / "kept" / "image.elf").is_file()


@needs_firmware
def test_counts_are_those_of_the_instructions(tmp_path: Path) -> None:
    assembly = """
    __attribute__((naked, noinline)) void known(void);
    void known(void) {
        __asm__ volatile("push {r4, r5, lr}\\n\\tldr r4, [sp]\\n\\tstr r4, [sp]\\n\\t"
                         "movs r5, #10\\n1:\\n\\tsubs r5, #1\\n\\tbne 1b\\n\\t"
                         "pop {r4, r5, pc}");
    }"""
    body = "known(); firmware_begin(); known(); known(); firmware_end(); known(); return 0;"
    run = firmware.run_program([program(tmp_path, body, assembly)])
    once = firmware.Counts(1, 4 + 2 * 10 + 1, 1 + 3, 1 + 3)
    (window,) = run.profile.windows
    assert window["known"] == once + once
    assert run.profile.whole["known"] == once + once + once + once
    assert set(firmware.sum_tables([window])) == {"known"}


@needs_firmware
def test_stack_is_measured(tmp_path: Path) -> None:
    before = """
    static __attribute__((noinline)) void deep(void) {
        volatile char room[1000];
        for (int i = 0; i < 1000; i++) room[i] = 1;
    }"""
    body = "firmware_paint_stack(); deep(); firmware_print_number(firmware_stack_used()); return 3;"
    run = firmware.run_program([program(tmp_path, body, before)])
    assert run.exit_code == 3
    assert 1000 <= int(run.stdout) <= 1024


@needs_firmware
def test_files_printing_and_defines(tmp_path: Path) -> None:
    before = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>"
    body = """
    char *text = malloc(100);
    const int from = firmware_open_to_read("in.bin"), to = firmware_open_to_write("out.bin");
    const uint32_t length = firmware_read(from, text, 100);
    firmware_write(to, text, length);
    printf("%d bytes, %d\\n", (int)length, NUMBER);
    return 0;"""
    run = firmware.run_program(
        [program(tmp_path, body, before)],
        defines={"NUMBER": 42},
        files={"in.bin": b"\0\x1a\xffabc"},
        outputs=["out.bin"],
    )
    assert run.files == {"out.bin": b"\0\x1a\xffabc"}
    assert run.stdout == b"6 bytes, 42\n"
    with pytest.raises(ValueError, match="plain file name"):
        firmware.run_program([tmp_path / "main.c"], files={"../in.bin": b""})


@needs_firmware
@pytest.mark.parametrize("board", BOARDS)
def test_what_does_not_fit_on_the_chip_goes_beside_it(tmp_path: Path, board: str) -> None:
    before = """
    static const int large[1200000] = {1, 2, [1199999] = 7};
    static int room[1100000];
    volatile int at = 1199999;"""
    body = "room[at - 100000] = large[at]; return room[at - 100000];"
    run = firmware.run_program([program(tmp_path, body, before)], board=board)
    assert run.exit_code == 7
    assert set(run.external) == {"constants", "variables"}
    assert run.sizes["main.o"].constants == 4_800_000


@needs_firmware
def test_what_fits_nowhere_is_refused(tmp_path: Path) -> None:
    before = "static volatile int room[9000000]; volatile int at = 8999999;"
    with pytest.raises(FirmwareError, match="region `EXTERNAL' overflowed by"):
        firmware.run_program([program(tmp_path, "return room[at];", before)])


@needs_firmware
def test_hanging_firmware_is_stopped_and_named(tmp_path: Path) -> None:
    before = (
        'static __attribute__((noinline)) void hang(void) { for (;;) __asm__ volatile("nop"); }'
    )
    with pytest.raises(FirmwareError, match=r"did not end within 0\.5 s.*it was in hang"):
        firmware.run_program([program(tmp_path, "hang(); return 0;", before)], seconds=0.5)


@needs_firmware
@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("*(volatile int *)0x50000000u = 1", "faulted in wrong .*no memory"),
        ('__asm__ volatile("udf #0")', "faulted in wrong .*undefined instruction"),
        ("*(volatile int *)0x100u = 1", "faulted in wrong .*a write to constants"),
        ("volatile int zero = 0; zero = 7 / zero", "faulted in wrong .*division by zero"),
        ("((void (*)(void))0x100u)()", "not Thumb code"),
    ],
)
def test_a_fault_is_explained(tmp_path: Path, statement: str, message: str) -> None:
    before = f"static __attribute__((noinline)) void wrong(void) {{ {statement}; }}"
    with pytest.raises(FirmwareError, match=message):
        firmware.run_program([program(tmp_path, "wrong(); return 0;", before)])


@needs_firmware
@pytest.mark.parametrize("board", BOARDS)
def test_a_full_stack_is_an_error(tmp_path: Path, board: str) -> None:
    before = """
    static __attribute__((noinline)) void fill(void) {
        volatile char room[3000];
        for (int i = 0; i < 3000; i++) room[2999 - i] = 1;
    }"""
    with pytest.raises(FirmwareError, match=r"faulted in fill .*the stack is full"):
        source = program(tmp_path, "fill(); return 0;", before)
        firmware.run_program([source], board=board, stack_bytes=2048)


@needs_firmware
def test_what_the_compiler_says_is_shown(tmp_path: Path) -> None:
    with pytest.raises(FirmwareError, match="nonsense"):
        firmware.run_program([program(tmp_path, "nonsense")])


def test_missing_toolchain_names_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, x, _ = integer_model(tmp_path / "edge")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError) as caught:
        run_firmware(folder, x)
    for package in ("gcc-arm-none-eabi", "binutils-arm-none-eabi", "qemu-system-arm"):
        assert package in str(caught.value)
    with pytest.raises(ToolchainError, match="clang"):
        run_host(folder, x, compiler="clang")


def test_unknown_board_names_those_there_are(tmp_path: Path) -> None:
    folder, x, _ = integer_model(tmp_path / "edge")
    with pytest.raises(ValueError, match="cortex-m3, cortex-m4, cortex-m7"):
        run_firmware(folder, x, board="cortex-m0")


# The script.


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The script in this process: a new one takes its time to import JAX."""
    main = runpy.run_path(str(ROOT / "scripts" / "firmware.py"))["main"]

    def run(*arguments: object) -> Done:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            code = end.code
        return Done(code, *capsys.readouterr())

    return run


@pytest.mark.slow
@needs_firmware
@needs_gcc
def test_script_compares_all_boards(tmp_path: Path, script: Callable[..., Done]) -> None:
    folder, x, _ = integer_model(tmp_path / "edge")
    np.savez(tmp_path / "test.npz", inputs=x, labels=np.zeros(len(x)))
    done = script(
        folder, "--inputs", tmp_path / "test.npz", "--board", ",".join(BOARDS), "--count", 3
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 inputs: equal to this machine's bit for bit") == 3
    assert "rosler_predict" in done.stdout
    results = json.loads((folder / "firmware" / "firmware.json").read_text())
    assert [result["board"] for result in results] == list(BOARDS)
    assert results[0]["functions"]["product"]["calls"] == 15
    assert (folder / "firmware" / "cortex-m7" / "image.elf").is_file()


@needs_firmware
@needs_gcc
def test_script_fails_where_the_board_computes_something_else(
    tmp_path: Path, script: Callable[..., Done]
) -> None:
    folder, x, _ = integer_model(tmp_path / "edge")
    source = folder / "rosler_model.c"
    wrong = "#ifdef __arm__\ny[0]++;\n#endif\n}\n"
    source.write_text(source.read_text().rstrip().removesuffix("}") + wrong)
    np.save(tmp_path / "test.npy", x)
    done = script(folder, "--inputs", tmp_path / "test.npy", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "DIFFERENT from this machine's for 7 of 7 inputs" in done.stdout


@needs_firmware
@needs_gcc
def test_script_states_the_difference_of_floats(
    tmp_path: Path, script: Callable[..., Done]
) -> None:
    folder, x = float_model(tmp_path / "edge")
    np.save(tmp_path / "test.npy", x.astype(np.float64))
    done = script(folder, "--inputs", tmp_path / "test.npy", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "ulps" in done.stdout


def test_script_says_what_is_wrong_with_its_arguments(
    tmp_path: Path, script: Callable[..., Done]
) -> None:
    folder, x, _ = integer_model(tmp_path / "edge")
    (tmp_path / "bad.npz").write_bytes(b"PK nonsense")
    np.savez(tmp_path / "two.npz", a=x, b=x)
    for arguments, code, message in (
        (["--help"], 0, ""),
        ([folder, "--inputs", tmp_path / "none.npy"], 2, "none.npy: no such file"),
        ([folder, "--inputs", tmp_path / "bad.npz", "--board", "z80"], 2, "no board 'z80'"),
        ([folder, "--inputs", tmp_path / "bad.npz"], 1, "bad.npz: "),
        ([folder, "--inputs", tmp_path / "two.npz"], 1, "expected an array named"),
    ):
        done = script(*arguments)
        assert done.returncode == code, done.stderr
        assert message in done.stderr
