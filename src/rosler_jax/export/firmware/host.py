"""Runs an exported model on this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from rosler_jax.export.firmware._errors import FirmwareError
from rosler_jax.export.firmware.build import C_FOLDER
from rosler_jax.export.firmware.header import as_inputs, as_outputs, read_header
from rosler_jax.export.firmware.program import work_folder
from rosler_jax.export.firmware.toolchain import find_programs, run_tool

# clang fuses a multiplication and an addition even with -std=c99, where the processor can.
FLAGS = (
    *("-std=c99", "-O2", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror"),
)
# Not optimised: nothing that they look for is optimised away, and it builds three times as fast.
SANITIZERS = ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def run_host(
    folder: str | os.PathLike[str],
    inputs: ArrayLike,
    *,
    compiler: str = "gcc",
    flags: Sequence[str] = FLAGS,
    sanitize: bool = False,
    seconds: float = 120,
) -> np.ndarray:
    """Compiles an exported model for this machine, runs it, and returns one row for each input.

    Args:
      folder: what ``rosler export --target c`` wrote.
      inputs: one input or more along the first axis, of the model's type.
      compiler: ``"gcc"``, ``"clang"`` or another with their options.
      flags: for the compiler.
      sanitize: with the address and the undefined-behaviour sanitizer; what they find is an error.
      seconds: after which the program is stopped.

    Raises:
      ToolchainError: if the compiler is not installed; names the package.
      FirmwareError: if the model does not build, fails or hangs.
      ValueError: if the folder holds no exported model, or the inputs are not the model's.

    Example:
      >>> import contextlib, tempfile
      >>> import jax.numpy as jnp
      >>> from rosler_jax.export import export
      >>> from rosler_jax.export.firmware import ToolchainError
      >>> from rosler_jax.graph import trace
      >>> graph = trace(jnp.negative, np.ones((1, 2)))
      >>> with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ToolchainError):
      ...     done = export(graph, folder, board=None)
      ...     assert run_host(folder, [[1.0, -2.0]]).tolist() == [[-1.0, 2.0]]
    """
    source = Path(folder).resolve()
    header = read_header(source)
    rows = as_inputs(inputs, header)
    (program,) = find_programs(compiler)
    with work_folder(None) as work:
        (work / "inputs.bin").write_bytes(rows.tobytes())
        macros = [f"-D{name}={value}" for name, value in header.defines.items()]
        options = [*flags, *(SANITIZERS if sanitize else ()), *macros, f"-I{source}"]
        sources = [str(source / header.source), str(C_FOLDER / "host_driver.c")]
        run_tool([program, *options, *sources, "-o", "model", "-lm"], folder=work)
        _run(work, seconds)
        return as_outputs((work / "outputs.bin").read_bytes(), len(rows), header)


def _run(folder: Path, seconds: float) -> None:
    # Leaks cannot be, without malloc; and the search for them needs rights that containers lack.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    try:
        done = subprocess.run(
            [str(folder / "model"), "inputs.bin", "outputs.bin"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise FirmwareError(
            f"the model did not end within {seconds:g} s on this machine; it hangs, or needs more"
            " `seconds`"
        ) from None
    if done.returncode != 0:
        raise FirmwareError(
            f"the model ended with {done.returncode} on this machine\n{done.stderr.strip()}"
        )
