"""Runs an exported model on an emulated board: outputs, counts and sizes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rosler_jax.export.firmware._errors import FirmwareError
from rosler_jax.export.firmware.build import C_FOLDER
from rosler_jax.export.firmware.header import ModelHeader, as_inputs, as_outputs, read_header
from rosler_jax.export.firmware.linkmap import ObjectSize, library_size
from rosler_jax.export.firmware.profile import Table, sum_tables, total
from rosler_jax.export.firmware.program import ProgramRun, run_program

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")


class FirmwareRun(NamedTuple):
    """An exported model on a board.

    A count per inference is all that happens from the entry of ``rosler_predict`` to its return, in
    it and in all that it calls (the C library too), over the number of inputs.

    Attributes:
      board: the processor.
      outputs: one row for each input.
      instructions, loads, stores: per inference, the mean over the inputs.
      least_instructions, most_instructions: of any one inference.
      functions: each function's own counts, summed over all inputs.
      flash_code_bytes, flash_data_bytes: of the model's code and of its constants.
      library_bytes: flash for functions of the C library, those of the start-up code included.
      ram_bytes: the arena and the model's own variables; the stack comes on top.
      stack_bytes: the most that an inference used of the stack.
      external: what did not fit on the chip and lies beside it: "constants", "variables".
      compiler, emulator: versions.
      start_instructions: of decoding weights before the first inference.

    Example:
      >>> import contextlib, tempfile
      >>> import jax.numpy as jnp
      >>> from rosler_jax.export import export
      >>> from rosler_jax.export.firmware import ToolchainError
      >>> from rosler_jax.graph import trace
      >>> graph = trace(jnp.negative, np.ones((1, 2)))
      >>> with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ToolchainError):
      ...     done = export(graph, folder, board=None)
      ...     run = run_firmware(folder, [[1.0, -2.0]], board="cortex-m3")
      ...     assert run.board == "cortex-m3" and run.functions["rosler_predict"].calls == 1
    """

    board: str
    outputs: np.ndarray
    instructions: float
    loads: float
    stores: float
    least_instructions: int
    most_instructions: int
    functions: Table
    flash_code_bytes: int
    flash_data_bytes: int
    library_bytes: int
    ram_bytes: int
    stack_bytes: int
    external: tuple[str, ...]
    compiler: str
    emulator: str
    start_instructions: int = 0


def _summary(
    board: str, run: ProgramRun, outputs: np.ndarray, header: ModelHeader, stack_bytes: int
) -> FirmwareRun:
    count = len(outputs)
    windows = run.profile.windows
    start, windows = windows[:-count], windows[-count:]
    functions = sum_tables(windows)
    all_counts = total(functions)
    single = [total(sum_tables([window])).instructions for window in windows]
    model = run.sizes.get(f"{Path(header.source).stem}.o", ObjectSize())
    library = library_size(run.sizes)
    return FirmwareRun(
        board=board,
        outputs=outputs,
        instructions=all_counts.instructions / count,
        loads=all_counts.loads / count,
        stores=all_counts.stores / count,
        least_instructions=min(single),
        most_instructions=max(single),
        functions=functions,
        flash_code_bytes=model.code,
        flash_data_bytes=model.constants + model.data,
        library_bytes=library.code + library.constants + library.data,
        ram_bytes=header.arena_bytes + model.data + model.bss,
        stack_bytes=stack_bytes,
        external=run.external,
        compiler=run.compiler,
        emulator=run.emulator,
        start_instructions=total(sum_tables(start)).instructions,
    )


def run_firmware(
    folder: str | os.PathLike[str],
    inputs: ArrayLike,
    *,
    board: str = "cortex-m4",
    workdir: str | os.PathLike[str] | None = None,
    seconds: float = 120,
) -> FirmwareRun:
    """Builds an image from an exported model and runs it on an emulated board.

    Args:
      folder: what ``rosler export --target c`` wrote.
      inputs: one input or more along the first axis, of the model's type.
      board: a key of :data:`BOARDS`.
      workdir: keeps the image, its map and the profile here; without it they are removed.
      seconds: after which the program is stopped.

    Raises:
      ToolchainError: if the compiler or the emulator is not installed; names the packages.
      FirmwareError: if the model does not build, hangs or faults.
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
      ...     run = run_firmware(folder, [[1.0, -2.0]])
      ...     assert run.outputs.tolist() == [[-1.0, 2.0]] and 0 < run.instructions < 1000
    """
    source = Path(folder)
    header = read_header(source)
    rows = as_inputs(inputs, header)
    run = run_program(
        [source / header.source, C_FOLDER / "driver.c"],
        board=board,
        include_dirs=[source],
        defines=header.defines,
        flags=WARNINGS,
        files={"inputs.bin": rows.tobytes()},
        outputs=["outputs.bin"],
        workdir=workdir,
        seconds=seconds,
    )
    if run.exit_code != 0:
        raise FirmwareError(f"the firmware ended with {run.exit_code}: {run.messages.strip()}")
    outputs = as_outputs(run.files["outputs.bin"], len(rows), header)
    return _summary(board, run, outputs, header, int(run.stdout))
