"""Trains with exported C on this machine or on an emulated board: what the device would do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rosler_jax.export.c.train.header import HEADER, SOURCE
from rosler_jax.export.c.train.parameters import unpack
from rosler_jax.export.c.train.source import TrainSource
from rosler_jax.export.firmware import (
    FirmwareError,
    ObjectSize,
    run_program,
    sum_tables,
    total,
)
from rosler_jax.export.firmware.host import FLAGS, SANITIZERS
from rosler_jax.export.firmware.program import work_folder
from rosler_jax.export.firmware.toolchain import find_programs, run_tool

DRIVER = Path(__file__).parent / "driver" / "driver.c"
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")


class Trained(NamedTuple):
    """What training did.

    Attributes:
      losses: of every step, as :func:`rosler_train_step` returned them.
      weights: parameters by name, as the network has them.
      velocity: the same of their velocity, integers as they are; empty if there is none.
      flat: the weights as they lie in memory.
      outputs: of the inputs to predict from, afterwards.
      step_instructions, predict_instructions: of each call; empty on this machine.
      sizes: bytes of the object files; empty on this machine.
      external: what did not fit on the board's chip.
    """

    losses: np.ndarray
    weights: dict[str, np.ndarray]
    velocity: dict[str, np.ndarray]
    flat: np.ndarray
    outputs: np.ndarray
    step_instructions: tuple[int, ...]
    predict_instructions: tuple[int, ...]
    sizes: dict[str, ObjectSize]
    external: tuple[str, ...]


def train_in_c(
    source: TrainSource,
    x: Any,
    targets: Any,
    rate: float,
    *,
    predict: Any = (),
    weights: Any = None,
    switch: int = -1,
    board: str | None = None,
    compiler: str = "gcc",
    sanitize: bool = False,
    workdir: str | os.PathLike[str] | None = None,
    seconds: float = 600,
) -> Trained:
    """Takes training steps, then predicts, with the very code that a device runs.

    Args:
      source: from :func:`write_training`.
      x: inputs, shape ``(steps, examples, numbers)``, in the C code's type.
      targets: labels ``(steps, examples)``, or targets ``(steps, examples, outputs)``, in the
        C code's type.
      rate: learning rate; for fixed-point code the shift k of a rate of 2^-k.
      predict: inputs to predict from afterwards.
      weights: to start from, as they lie in memory (:attr:`Trained.flat` of a run before); None for
        those that were exported. The velocity starts from zero.
      switch: the step before which the parallel stage ends; -1 for none.
      board: an emulated board; None for this machine.
      compiler: of this machine.
      sanitize: with the address and the undefined-behaviour sanitizer, on this machine.
      workdir: keeps all files here.
      seconds: after which the program is stopped.

    Returns:
      Losses, weights, outputs, and counts of instructions on a board.

    Raises:
      ToolchainError: if a compiler or the emulator is not installed.
      FirmwareError: if the program does not build, fails or hangs.
      ValueError: for another number of weights than the program has.
    """
    number, given, element = _types(source)
    inputs = np.asarray(x)
    steps, count = inputs.shape[:2] if inputs.size else (0, 0)
    labels = np.asarray(targets)
    has_labels = source.training.loss == "cross_entropy"
    kind = np.int32 if has_labels else element
    labels = labels.astype(kind).reshape(steps, labels.size // max(steps, 1))
    inputs = inputs.astype(given).reshape(steps, inputs.size // max(steps, 1))
    asked = np.asarray(predict, given)
    start = b"" if weights is None else _start(source, weights, number)
    job = np.asarray([steps, count, len(asked), switch, weights is not None], np.int32).tobytes()
    job += np.asarray([rate]).astype(number).tobytes() + start
    for each, label in zip(inputs, labels, strict=True):
        job += each.tobytes() + label.tobytes()
    job += asked.tobytes()
    defines: dict[str, str | int] = {
        "ROSLER_TARGETS": 1
        if source.training.loss == "cross_entropy"
        else "ROSLER_TRAIN_OUTPUT_SIZE"
    }
    if source.training.stage == "parallel":
        defines["ROSLER_SWITCHES"] = 1
    with work_folder(workdir) as folder:
        (folder / HEADER).write_text(source.header)
        (folder / SOURCE).write_text(source.source)
        if board is None:
            _run_host(folder, job, defines, compiler, sanitize, seconds)
            result = (folder / "result.bin").read_bytes()
            windows: list[int] = []
            sizes: dict[str, ObjectSize] = {}
            external: tuple[str, ...] = ()
        else:
            run = run_program(
                [folder / SOURCE, DRIVER], board=board, include_dirs=[folder], defines=defines,
                flags=WARNINGS, files={"job.bin": job}, outputs=["result.bin"], workdir=folder,
                seconds=seconds,
            )  # fmt: skip
            if run.exit_code != 0:
                raise FirmwareError(f"training ended with {run.exit_code}: {run.messages.strip()}")
            result, sizes, external = run.files["result.bin"], run.sizes, run.external
            windows = [total(sum_tables([w])).instructions for w in run.profile.windows]
    return _trained(source, result, steps, len(asked), windows, sizes, external)


def _types(source: TrainSource) -> tuple[Any, Any, Any]:
    """Of a weight, of inputs, and of outputs."""
    number = np.int32 if source.training.dtype == "fixed" else np.float32
    return number, np.dtype(source.types[0]), np.dtype(source.types[1])


def _start(source: TrainSource, weights: Any, number: Any) -> bytes:
    found, wanted = np.asarray(weights), sum(field.size for field in source.fields)
    if found.shape != (wanted,):
        raise ValueError(
            f"weights of shape {found.shape}; this program trains {wanted} numbers, one behind the "
            "other as its fields say"
        )
    return found.astype(number).tobytes()


def _run_host(
    folder: Path, job: bytes, defines: dict[str, str | int], compiler: str, sanitize: bool,
    seconds: float,
) -> None:  # fmt: skip
    (folder / "job.bin").write_bytes(job)
    (program,) = find_programs(compiler)
    macros = [f"-D{name}={value}" for name, value in {**defines, "ROSLER_HOST": 1}.items()]
    options = [*FLAGS, *(SANITIZERS if sanitize else ()), *macros, f"-I{folder}"]
    run_tool([program, *options, SOURCE, str(DRIVER), "-o", "train", "-lm"], folder=folder)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    try:
        done = subprocess.run(
            [str(folder / "train")], cwd=folder, env=environment, capture_output=True, text=True,
            timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise FirmwareError(f"training did not end within {seconds:g} s on this machine") from None
    if done.returncode != 0:
        raise FirmwareError(f"training ended with {done.returncode}: {done.stderr.strip()[-3000:]}")


def _trained(
    source: TrainSource, result: bytes, steps: int, asked: int, windows: list[int],
    sizes: dict[str, ObjectSize], external: tuple[str, ...],
) -> Trained:  # fmt: skip
    number, _, element = _types(source)
    count, has_velocity = sum(field.size for field in source.fields), source.has_velocity
    numbers = steps + count * (1 + has_velocity)
    head = np.frombuffer(result, number, numbers)
    outputs = np.frombuffer(result, element, offset=4 * numbers)
    flat = head[steps : steps + count]
    velocity = unpack(source.fields, head[steps + count :], real=False) if has_velocity else {}
    return Trained(
        losses=head[:steps].copy(),
        weights=dict(unpack(source.fields, flat)),
        velocity=dict(velocity),
        flat=flat.copy(),
        outputs=outputs.reshape(asked, -1) if asked else outputs,
        step_instructions=tuple(windows[:steps]),
        predict_instructions=tuple(windows[steps:]),
        sizes=sizes,
        external=external,
    )
