"""Sizes of an image's parts, from the linker's map."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class ObjectSize(NamedTuple):
    """Bytes of one object file in an image.

    Attributes:
      code: instructions and the constants between them; flash.
      constants: flash.
      data: variables with an initial value; RAM, and as much flash.
      bss: variables that start as zero; RAM.

    Example:
      >>> whole = ObjectSize(code=400, constants=96) + ObjectSize(code=28, data=4, bss=8)
      >>> flash, ram = whole.code + whole.constants + whole.data, whole.data + whole.bss
      >>> flash, ram
      (528, 12)
    """

    code: int = 0
    constants: int = 0
    data: int = 0
    bss: int = 0

    def __add__(self, other: object) -> ObjectSize:
        """Both together."""
        if not isinstance(other, ObjectSize):
            return NotImplemented
        return ObjectSize(*(a + b for a, b in zip(self, other, strict=True)))


_KINDS = {".text": "code", ".rodata": "constants", ".data": "data", ".bss": "bss"}
# An output section starts in the first column, an input section in the second; a long name pushes
# the rest to the next line.
_OUTPUT = re.compile(r"^(\.[\w.]+)\b")
_INPUT = re.compile(r"^ (?:\.|COMMON)\S*\s+0x[0-9a-f]+\s+0x([0-9a-f]+)\s+(\S.*)$")


def parse_map(text: str) -> dict[str, ObjectSize]:
    """Bytes of each object file; a library's member goes by ``library.a(member.o)``.

    Example:
      >>> text = '''Linker script and memory map
      ... .text           0x00000000       0x20
      ...  .text.predict
      ...                 0x00000000       0x1c model.o
      ... .bss            0x20000000        0x8
      ...  COMMON         0x20000000        0x8 model.o'''
      >>> parse_map(text)
      {'model.o': ObjectSize(code=28, constants=0, data=0, bss=8)}
    """
    placed = text.partition("Linker script and memory map")[2]  # what was left out comes before
    joined = re.sub(r"^( ?\.\S+)\n\s+(?=0x)", r"\1 ", placed, flags=re.M)
    sizes: dict[str, ObjectSize] = {}
    kind = None
    for line in joined.splitlines():
        if output := _OUTPUT.match(line):
            kind = _KINDS.get(output[1])
        elif kind and (part := _INPUT.match(line)):
            name = Path(part[2]).name
            size = ObjectSize(**{kind: int(part[1], 16)})
            sizes[name] = sizes.get(name, ObjectSize()) + size
    return {name: size for name, size in sizes.items() if any(size)}


def library_size(sizes: Mapping[str, ObjectSize]) -> ObjectSize:
    """All that came out of libraries."""
    members = (size for name, size in sizes.items() if ".a(" in name)
    return sum(members, ObjectSize())
