"""Finds the compilers and the emulator, and runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rosler_jax.export.firmware._errors import FirmwareError, ToolchainError

# Program: the Debian and Ubuntu package that has it.
PACKAGES = {
    "arm-none-eabi-gcc": "gcc-arm-none-eabi",
    "arm-none-eabi-nm": "binutils-arm-none-eabi",
    "qemu-system-arm": "qemu-system-arm",
    "gcc": "gcc",
    "clang": "clang",
}
C_LIBRARY, C_LIBRARY_PACKAGE = "nano.specs", "libnewlib-arm-none-eabi"
COMPILE_SECONDS = 300


class Toolchain(NamedTuple):
    """Where the programs for firmware are.

    Attributes:
      compiler: for the boards.
      nm: lists an image's symbols.
      emulator: QEMU.
      host_compiler: for the profiler, which QEMU loads.

    Example:
      >>> tools = Toolchain("arm-none-eabi-gcc", "arm-none-eabi-nm", "qemu-system-arm", "gcc")
      >>> tools._replace(host_compiler="clang").host_compiler
      'clang'
    """

    compiler: str
    nm: str
    emulator: str
    host_compiler: str


def _advice(missing: Sequence[str], packages: Sequence[str]) -> str:
    install = f"apt-get install --no-install-recommends {' '.join(sorted(set(packages)))}"
    return f"{', '.join(missing)} not found; on Debian or Ubuntu: {install}"


def find_programs(*names: str) -> tuple[str, ...]:
    """Paths of programs.

    Raises:
      ToolchainError: if some are missing; names them and their packages.
    """
    found = {name: shutil.which(name) for name in names}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise ToolchainError(_advice(missing, [PACKAGES.get(name, name) for name in missing]))
    return tuple(path for path in found.values() if path is not None)


def find_toolchain() -> Toolchain:
    """The programs for firmware.

    Raises:
      ToolchainError: if some are missing; names them and their packages.

    Example:
      >>> import contextlib
      >>> with contextlib.suppress(ToolchainError):
      ...     assert Path(find_toolchain().emulator).stem == "qemu-system-arm"
    """
    host = "gcc" if shutil.which("gcc") or not shutil.which("clang") else "clang"
    names = ("arm-none-eabi-gcc", "arm-none-eabi-nm", "qemu-system-arm", host)
    toolchain = Toolchain(*find_programs(*names))
    # The compiler answers with a path where it has the file, else with the bare name.
    answer = run_tool([toolchain.compiler, f"-print-file-name={C_LIBRARY}"]).strip()
    if not os.path.isabs(answer):
        missing = [f"{C_LIBRARY} (the C library newlib)"]
        raise ToolchainError(_advice(missing, [C_LIBRARY_PACKAGE]))
    return toolchain


def run_tool(command: Sequence[str], *, folder: Path | None = None) -> str:
    """Runs a compiler or the like and returns its standard output.

    Raises:
      FirmwareError: with what it wrote, if it fails.
    """
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMPILE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        message = f"not done after {COMPILE_SECONDS} s: {' '.join(command)}"
        raise FirmwareError(message) from None
    if done.returncode != 0:
        raise FirmwareError(
            f"{Path(command[0]).name} ended with {done.returncode}\n"
            f"{done.stderr.strip()}\nThe command was: {' '.join(command)}"
        )
    return done.stdout


def version(program: str) -> str:
    """The first line that a program says about its version."""
    return run_tool([program, "--version"]).partition("\n")[0].strip()
