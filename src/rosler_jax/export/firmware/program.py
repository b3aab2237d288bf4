"""Builds any C program with our start-up code and runs it on an emulated board."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rosler_jax._files import replace_file
from rosler_jax.export.firmware.boards import STACK_BYTES, find_board
from rosler_jax.export.firmware.build import Image, build_image
from rosler_jax.export.firmware.emulate import emulate
from rosler_jax.export.firmware.linkmap import ObjectSize
from rosler_jax.export.firmware.profile import Profile
from rosler_jax.export.firmware.toolchain import find_toolchain, version

STDOUT = "stdout.bin"


class ProgramRun(NamedTuple):
    """What a program did.

    Attributes:
      exit_code: what ``main`` returned, 0 to 255.
      stdout: what it printed (``firmware_print`` and its like, or ``printf``).
      messages: what it wrote to standard error.
      files: what it wrote to files asked for in ``outputs``.
      profile: instructions, loads and stores by function.
      sizes: bytes of each object file in the image.
      external: what did not fit on the chip; see :class:`Image`.
      compiler, emulator: versions.

    Example:
      >>> import contextlib
      >>> from rosler_jax.export.firmware import ToolchainError
      >>> text = 'int puts(const char *); int main(void) { puts("hello"); return 0; }'
      >>> with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ToolchainError):
      ...     source = Path(folder) / "hello.c"
      ...     size = source.write_text(text)
      ...     run = run_program([source])
      ...     assert run.stdout.strip() == b"hello" and run.profile.whole["main"].calls == 1
    """

    exit_code: int
    stdout: bytes
    messages: str
    files: dict[str, bytes]
    profile: Profile
    sizes: dict[str, ObjectSize]
    external: tuple[str, ...]
    compiler: str
    emulator: str


@contextlib.contextmanager
def work_folder(workdir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """The folder asked for, made if need be; else one that is gone afterwards."""
    if workdir is not None:
        folder = Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="rosler-firmware-") as name:
            yield Path(name).resolve()


def check_name(name: str) -> str:
    """The name of a file for the program, which lies in its folder and nowhere else.

    Raises:
      ValueError: if it would lie elsewhere.
    """
    if name != Path(name).name or name in ("", ".", ".."):
        raise ValueError(f"{name!r}: expected a plain file name, without a folder")
    return name


def _put_files(folder: Path, files: Mapping[str, bytes], outputs: Sequence[str]) -> None:
    for name in (*outputs, STDOUT):
        (folder / check_name(name)).unlink(missing_ok=True)  # of an earlier run
    for name, data in files.items():

        def write(path: Path, data: bytes = data) -> None:
            path.write_bytes(data)

        replace_file(folder / check_name(name), write)


def _take(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def run_program(
    sources: Sequence[str | os.PathLike[str]],
    *,
    board: str = "cortex-m4",
    include_dirs: Sequence[str | os.PathLike[str]] = (),
    defines: Mapping[str, str | int] | None = None,
    flags: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    outputs: Sequence[str] = (),
    workdir: str | os.PathLike[str] | None = None,
    seconds: float = 120,
    stack_bytes: int = STACK_BYTES,
) -> ProgramRun:
    """Compiles C files with our start-up code and runs them on an emulated board.

    The sources may include ``firmware.h``: files, printing, marks for the profiler, stack use.

    Args:
      sources: C files, one of them with ``main``.
      board: a key of :data:`BOARDS`.
      include_dirs, defines, flags: for the compiler, after its ``-std=c99 -O2``.
      files: files that the program can read, by name.
      outputs: names of files that the program writes.
      workdir: keeps all files here; without it they are removed.
      seconds: after which the program is stopped.
      stack_bytes: room for the stack.

    Returns:
      What the program did. An exit code other than 0 is a result, no error.

    Raises:
      ToolchainError: if the compiler or the emulator is not installed.
      FirmwareError: if the program does not build, hangs or faults.
      ValueError: for a board or a file name that cannot be.

    Example:
      >>> import contextlib
      >>> from rosler_jax.export.firmware import ToolchainError
      >>> with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ToolchainError):
      ...     source = Path(folder) / "answer.c"
      ...     size = source.write_text("int main(void) { return 42; }")
      ...     assert run_program([source]).exit_code == 42
    """
    found = find_board(board)
    toolchain = find_toolchain()
    with work_folder(workdir) as folder:
        _put_files(folder, files or {}, outputs)
        image: Image = build_image(
            toolchain,
            [Path(source) for source in sources],
            found,
            folder,
            include_dirs=[Path(path) for path in include_dirs],
            defines=defines,
            flags=flags,
            stack_bytes=stack_bytes,
        )
        ended = emulate(toolchain, image, seconds=seconds)
        return ProgramRun(
            ended.exit_code,
            _take(folder / STDOUT),
            ended.messages,
            {name: _take(folder / name) for name in outputs},
            ended.profile,
            image.sizes,
            image.external,
            version(toolchain.compiler),
            version(toolchain.emulator),
        )
