"""Runs exported C code: on emulated Cortex-M boards with counts, and on this machine.

    from rosler_jax.export.firmware import run_firmware, run_host
    run = run_firmware("EDGE", inputs, board="cortex-m4")
    run.instructions  # per inference
    (run.outputs == run_host("EDGE", inputs)).all()

QEMU counts instructions, not cycles: it knows no caches and no pipelines.
"""

from rosler_jax.export.firmware._errors import FirmwareError, ToolchainError
from rosler_jax.export.firmware.boards import BOARDS, STACK_BYTES, Board, find_board
from rosler_jax.export.firmware.header import ModelHeader, quantize_inputs, read_header
from rosler_jax.export.firmware.host import run_host
from rosler_jax.export.firmware.linkmap import ObjectSize
from rosler_jax.export.firmware.model import FirmwareRun, run_firmware
from rosler_jax.export.firmware.profile import DRIVER, Counts, Profile, Table, sum_tables, total
from rosler_jax.export.firmware.program import ProgramRun, run_program
from rosler_jax.export.firmware.toolchain import Toolchain, find_toolchain

__all__ = [
    "BOARDS",
    "DRIVER",
    "STACK_BYTES",
    "Board",
    "Counts",
    "FirmwareError",
    "FirmwareRun",
    "ModelHeader",
    "ObjectSize",
    "Profile",
    "ProgramRun",
    "Table",
    "Toolchain",
    "ToolchainError",
    "find_board",
    "find_toolchain",
    "quantize_inputs",
    "read_header",
    "run_firmware",
    "run_host",
    "run_program",
    "sum_tables",
    "total",
]
