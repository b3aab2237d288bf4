"""Compiles and links C files with the start-up code to an image for a board."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rosler_jax._files import replace_text
from rosler_jax.export.firmware._errors import FirmwareError
from rosler_jax.export.firmware.boards import FLASH, RAM, Board
from rosler_jax.export.firmware.linkmap import ObjectSize, parse_map
from rosler_jax.export.firmware.symbols import Symbol, read_symbols
from rosler_jax.export.firmware.toolchain import Toolchain, run_tool

C_FOLDER = Path(__file__).parent / "c"
OWN_SOURCES = ("startup.c", "semihosting.c", "syscalls.c")
# -std=c99 also keeps GCC from contracting a multiplication and an addition to one rounding, which
# -std=gnu99 allows: results then equal those of other machines.
FLAGS = ("-std=c99", "-O2", "-ffunction-sections", "-fdata-sections")
LINK_FLAGS = ("-nostartfiles", "--specs=nano.specs", "-Wl,--gc-sections", "-Wl,-Map=image.map")
_OVERFLOW = re.compile(r"region `(\w+)' overflowed")


class Image(NamedTuple):
    """A linked program.

    Attributes:
      path: of the ELF file.
      board: that it is for.
      sizes: bytes of each object file in it.
      symbols: its functions.
      external: what did not fit on the chip and lies in the board's memory beside it: "constants",
        "variables", both or nothing.
    """

    path: Path
    board: Board
    sizes: dict[str, ObjectSize]
    symbols: list[Symbol]
    external: tuple[str, ...]


def object_names(sources: Sequence[Path]) -> list[str]:
    """Names of the object files, one for each source; a number tells equal ones apart.

    Example:
      >>> object_names([Path("a/net.c"), Path("b/net.c"), Path("main.c")])
      ['net.o', 'net_2.o', 'main.o']
    """
    seen: Counter[str] = Counter()
    names = []
    for source in sources:
        seen[source.stem] += 1
        nth = seen[source.stem]
        names.append(f"{source.stem}.o" if nth == 1 else f"{source.stem}_{nth}.o")
    return names


def memory_script(board: Board, external: Sequence[str]) -> str:
    """The part of the linker script that differs from board to board and image to image."""
    regions = {"FLASH": ("rx", FLASH), "RAM": ("rwx", RAM), "EXTERNAL": ("rwx", board.external)}
    lines = ["MEMORY", "{"]
    for name, (mode, (start, size)) in regions.items():
        lines.append(f"    {name} ({mode}) : ORIGIN = 0x{start:08X}, LENGTH = 0x{size:X}")
    constants = "EXTERNAL" if "constants" in external else "FLASH"
    variables = "EXTERNAL" if "variables" in external else "RAM"
    lines += [
        "}",
        f'REGION_ALIAS("CONSTANTS", {constants})',
        f'REGION_ALIAS("VARIABLES", {variables})',
        "INCLUDE sections.ld",
        "",
    ]
    return "\n".join(lines)


def compile_sources(
    toolchain: Toolchain,
    sources: Sequence[Path],
    board: Board,
    folder: Path,
    *,
    include_dirs: Sequence[Path] = (),
    defines: Mapping[str, str | int] | None = None,
    flags: Sequence[str] = (),
) -> list[str]:
    """Compiles every source in ``folder`` and returns the names of the object files."""
    includes = [f"-I{path.resolve()}" for path in (*include_dirs, C_FOLDER)]
    macros = [f"-D{name}={value}" for name, value in (defines or {}).items()]
    options = [*board.flags, *FLAGS, *flags, *macros, *includes]
    names = object_names(sources)
    for source, name in zip(sources, names, strict=True):
        command = [toolchain.compiler, *options, "-c", str(source.resolve()), "-o", name]
        run_tool(command, folder=folder)
    return names


def link(
    toolchain: Toolchain, objects: Sequence[str], board: Board, folder: Path, *, stack_bytes: int
) -> tuple[str, ...]:
    """Links to ``image.elf``; returns what had to go to the external memory.

    Raises:
      FirmwareError: if it does not link, or does not even fit there.
    """
    command = [toolchain.compiler, *board.flags, *LINK_FLAGS, *objects, "-lm"]
    command += ["-T", "memory.ld", f"-L{C_FOLDER}", f"-Wl,--defsym=STACK_BYTES={stack_bytes}"]
    external: tuple[str, ...] = ()
    for attempt in range(3):
        replace_text(folder / "memory.ld", memory_script(board, external))
        try:
            run_tool([*command, "-o", "image.elf"], folder=folder)
            break
        except FirmwareError as error:
            full = set(_OVERFLOW.findall(str(error)))
            moved = {"FLASH": "constants", "RAM": "variables"}
            wanted = tuple(what for region, what in moved.items() if region in full)
            if attempt == 2 or not wanted or "EXTERNAL" in full or set(wanted) & set(external):
                raise
            external = (*external, *wanted)
    return external


def build_image(
    toolchain: Toolchain,
    sources: Sequence[Path],
    board: Board,
    folder: Path,
    *,
    include_dirs: Sequence[Path] = (),
    defines: Mapping[str, str | int] | None = None,
    flags: Sequence[str] = (),
    stack_bytes: int,
) -> Image:
    """Compiles and links C files with the start-up code.

    Args:
      toolchain: from :func:`find_toolchain`.
      sources: C files, one of them with ``main``.
      board: to build for.
      folder: for all that is written; ``image.elf`` and ``image.map`` among it.
      include_dirs, defines, flags: for the compiler.
      stack_bytes: room for the stack; a larger one than this faults.

    Raises:
      FirmwareError: if it does not build; with what the compiler says.
    """
    own = [C_FOLDER / name for name in OWN_SOURCES]
    objects = compile_sources(
        toolchain,
        [*sources, *own],
        board,
        folder,
        include_dirs=include_dirs,
        defines=defines,
        flags=flags,
    )
    external = link(toolchain, objects, board, folder, stack_bytes=stack_bytes)
    sizes = parse_map((folder / "image.map").read_text(encoding="utf-8", errors="replace"))
    path = folder / "image.elf"
    return Image(path, board, sizes, read_symbols(toolchain.nm, path), external)
