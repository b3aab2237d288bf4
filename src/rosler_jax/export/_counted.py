"""What an emulator counted."""

from __future__ import annotations

from typing import NamedTuple


class Counted(NamedTuple):
    """What an emulated inference took on average.

    Attributes:
      board: the processor.
      instructions, loads, stores: per inference.
      code_bytes: flash of the model's code.
      stack_bytes: of an inference.
      start_instructions: of decoding weights, once.
    """

    board: str
    instructions: float
    loads: float
    stores: float
    code_bytes: int
    stack_bytes: int
    start_instructions: int = 0
