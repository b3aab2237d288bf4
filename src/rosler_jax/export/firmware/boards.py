"""The emulated boards, one for each Cortex-M processor."""

from __future__ import annotations

from typing import NamedTuple

MEGABYTE = 2**20
FLASH = (0x0000_0000, 4 * MEGABYTE)
RAM = (0x2000_0000, 4 * MEGABYTE)
STACK_BYTES = 64 * 1024


class Board(NamedTuple):
    """An Arm MPS2 board as QEMU emulates it.

    Attributes:
      name: of the processor, and of the board here.
      machine: what QEMU calls the board.
      flags: the compiler's, for this processor.
      external: start and bytes of the memory outside the chip. What does not fit in flash or RAM
        goes there, so that a net too large for the processor can be counted as well.

    Example:
      >>> board = BOARDS["cortex-m7"]
      >>> board.machine, board.flags[0], board.external[1] // MEGABYTE
      ('mps2-an500', '-mcpu=cortex-m7', 16)
    """

    name: str
    machine: str
    flags: tuple[str, ...]
    external: tuple[int, int]


BOARDS = {
    board.name: board
    for board in (
        Board(
            "cortex-m3",
            "mps2-an385",
            ("-mcpu=cortex-m3", "-mthumb", "-mfloat-abi=soft"),
            (0x2100_0000, 16 * MEGABYTE),
        ),
        Board(
            "cortex-m4",
            "mps2-an386",
            ("-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"),
            (0x2100_0000, 16 * MEGABYTE),
        ),
        Board(
            "cortex-m7",
            "mps2-an500",
            ("-mcpu=cortex-m7", "-mthumb", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard"),
            (0x6000_0000, 16 * MEGABYTE),
        ),
    )
}


def find_board(name: str) -> Board:
    """The board of that name.

    Raises:
      ValueError: if there is none.

    Example:
      >>> find_board("cortex-m4").machine
      'mps2-an386'
    """
    if name not in BOARDS:
        raise ValueError(f"no board {name!r}; expected one of {', '.join(BOARDS)}")
    return BOARDS[name]
