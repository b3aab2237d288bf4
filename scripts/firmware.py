"""Runs an exported model on emulated Cortex-M boards, with counts that repeat exactly.

    rosler export runs/compact --target c --out edge
    scripts/firmware edge --inputs test.npz --board cortex-m3,cortex-m4,cortex-m7 --count 20

Builds a bare-metal image (own start-up code and linker script) for each board, runs it in QEMU on
the inputs, compares its outputs with those of the same code on this machine, and prints what every
function did. Integer models must agree bit for bit. Of float models the largest difference is
printed; above a ten-thousandth of the largest output it is an error.

Counts are instructions, not cycles: QEMU knows no caches and no pipelines.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rosler_jax._files import replace_json
from rosler_jax.export import firmware
from rosler_jax.export.firmware import FirmwareError, FirmwareRun

KEYS = ("inputs", "x", "x_test")
TOLERANCE = 1e-4  # of the largest output: far above rounding, far below a wrong result
EPILOG = f"""\
inputs: real numbers are quantised with the scale in rosler_model.h where the model takes integers;
  integers of the model's own type are taken as they are. Of an .npz file the array named
  {", ".join(KEYS[:-1])} or {KEYS[-1]}, else its only one.
exit codes:
  0 done, 1 failed or the outputs differ, 2 wrong usage
"""


def read_inputs(path: Path, header: firmware.ModelHeader, count: int) -> np.ndarray:
    """The first inputs of a file, in the model's type.

    Raises:
      ValueError: that names the file and what is wrong.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            array = loaded
        else:
            names = [key for key in KEYS if key in loaded.files] or loaded.files
            if len(names) != 1 and names[0] not in KEYS:
                raise ValueError(f"expected an array named {', '.join(KEYS)}; has {loaded.files}")
            array = loaded[names[0]]
    except Exception as error:  # whatever NumPy and zipfile raise over a file that is none
        raise ValueError(f"{path}: {error}") from None
    if array.dtype.kind == "f":
        array = firmware.quantize_inputs(array[:count], header)
    return array[:count]


def ulps(a: np.ndarray, b: np.ndarray) -> int:
    """The largest distance between two float32 arrays in units in the last place."""

    def steps(x: np.ndarray) -> np.ndarray:
        bits = x.astype(np.float32).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(2**31) - bits, bits)

    return int(np.abs(steps(a) - steps(b)).max())


def compare(board: np.ndarray, host: np.ndarray) -> tuple[bool, str]:
    """Whether the outputs agree, and how far."""
    if board.dtype.kind != "f":
        wrong = int((board != host).any(axis=1).sum())
        return wrong == 0, (
            "equal to this machine's bit for bit"
            if wrong == 0
            else f"DIFFERENT from this machine's for {wrong} of {len(board)} inputs"
        )
    if not (np.isfinite(board).all() and np.isfinite(host).all()):
        return False, "NOT FINITE"
    difference = np.abs(board.astype(np.float64) - host).max()
    fine = bool(difference <= TOLERANCE * np.abs(host).max())
    text = f"largest difference from this machine's {ulps(board, host)} ulps ({difference:.2g})"
    return fine, text if fine else text.upper()


def table(run: FirmwareRun) -> str:
    """What each function did per inference; rows in the order of instructions."""
    count = len(run.outputs)
    rows: list[tuple[str, ...]] = [("function", "calls", "instructions", "loads", "stores")]
    by_work = sorted(run.functions.items(), key=lambda item: (-item[1].instructions, item[0]))
    for name, counts in by_work:
        rows.append((name, *(f"{n / count:,.10g}" for n in counts)))
    all_counts = (run.instructions, run.loads, run.stores)
    rows.append(("an inference", "", *(f"{n:,.10g}" for n in all_counts)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *numbers]))
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def report(run: FirmwareRun, agreement: str) -> str:
    """A board's part of what is printed."""
    machine = firmware.BOARDS[run.board].machine
    lines = [
        f"{run.board} ({machine}), {len(run.outputs)} inputs: {agreement}",
        table(run),
        f"from {run.least_instructions:,} to {run.most_instructions:,} instructions an inference",
        f"flash: code {run.flash_code_bytes:,}, constants {run.flash_data_bytes:,}, C library"
        f" {run.library_bytes:,} bytes; RAM: {run.ram_bytes:,} bytes, stack {run.stack_bytes:,}",
    ]
    if run.external:
        lines.append(f"too large for the chip, in memory beside it: {', '.join(run.external)}")
    return "\n".join(lines)


def as_json(run: FirmwareRun, agreement: str) -> dict[str, Any]:
    """A board's part of ``firmware.json``."""
    fields = run._asdict()
    del fields["outputs"]
    functions = {name: counts._asdict() for name, counts in run.functions.items()}
    return {**fields, "functions": functions, "inputs": len(run.outputs), "agreement": agreement}


def run_boards(arguments: argparse.Namespace) -> int:
    """Runs the model on every board asked for; 1 if one of them disagrees, else 0."""
    header = firmware.read_header(arguments.folder)
    inputs = read_inputs(arguments.inputs, header, arguments.count)
    out = arguments.out or arguments.folder / "firmware"
    firmware.find_toolchain()
    host = firmware.run_host(arguments.folder, inputs, seconds=arguments.seconds)
    results, all_agree = [], True
    for board in arguments.board:
        run = firmware.run_firmware(
            arguments.folder,
            inputs,
            board=board,
            workdir=out / board,
            seconds=arguments.seconds,
        )
        agree, agreement = compare(run.outputs, host)
        all_agree &= agree
        results.append(as_json(run, agreement))
        print(report(run, agreement), end="\n\n")
    replace_json(out / "firmware.json", results)
    print(f"{results[0]['compiler']}; {results[0]['emulator']}")
    print(f"{out / 'firmware.json'}; image, map and profile of each board in {out}/BOARD")
    return 0 if all_agree else 1


def boards(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        try:
            firmware.find_board(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return list(dict.fromkeys(names))


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="firmware",
        description=(__doc__ or "").strip(),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="EDGE", help="what `rosler export --target c` wrote")
    add("--inputs", type=Path, required=True, metavar="FILE", help="test inputs, .npy or .npz")
    add(
        "--board",
        type=boards,
        default=["cortex-m4"],
        metavar="NAMES",
        help=f"of {', '.join(firmware.BOARDS)}, separated by commas (default: cortex-m4)",
    )
    add("--count", type=positive, default=20, help="how many inputs, the first (default: 20)")
    add("--out", type=Path, metavar="DIR", help="where to write (default: EDGE/firmware)")
    add("--seconds", type=positive, default=120, help="time limit a board (default: 120)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    if not parsed.folder.is_dir():
        parser.error(f"{parsed.folder}: no such folder; expected one of `rosler export`")
    if not parsed.inputs.is_file():
        parser.error(f"{parsed.inputs}: no such file; --inputs names an .npy or .npz file")
    try:
        return run_boards(parsed)
    except (ValueError, OSError, FirmwareError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
