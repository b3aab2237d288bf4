"""The two C files of an export, put together: what inference and training have alike."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rosler_jax._version import __version__
from rosler_jax.export.c.unit import CTYPE, Unit, filled, float32_literal

ABOUT = f"/* Written by rosler-jax {__version__}; do not edit. */"
ABOUT_CONST = """\
/* The model's data is `static ROSLER_CONST`, which is const unless the compiler is told otherwise,
   as by -D'ROSLER_CONST=const __attribute__((section(".weights")))': for memory that is read as any
   other, which AVR's PROGMEM is not. */"""
INTEGERS = ("int16", "uint8")
"""Types of real numbers in integers, which have a scale."""


class Port(NamedTuple):
    """An input or an output of a C function.

    Attributes:
      name: where it is in the model's arguments or results.
      dtype: of its numbers.
      size: how many.
      scale: what real inputs are divided and outputs multiplied by.
    """

    name: str
    dtype: str
    size: int
    scale: float = 1.0


class Ports(NamedTuple):
    """Inputs and outputs, and what names in C begin with.

    Attributes:
      prefix: ``"rosler_"``, or with what these go on with.
      inputs, outputs: in order.
    """

    prefix: str
    inputs: Sequence[Port]
    outputs: Sequence[Port]

    @property
    def named(self) -> list[tuple[str, Port]]:
        """Each with its name: ``rosler_input``, or ``rosler_input_0`` if there are several."""
        return [
            (name, port)
            for kind, ports in (("input", self.inputs), ("output", self.outputs))
            for name, port in zip(numbered(f"{self.prefix}{kind}", ports), ports, strict=True)
        ]

    @property
    def has_scales(self) -> bool:
        """Whether any of them are integers that stand for real numbers."""
        return any(port.dtype in INTEGERS for _, port in self.named)

    def macros(self) -> str:
        """Sizes and types of all."""
        lines = [f"#define {name.upper()}_SIZE {port.size}" for name, port in self.named]
        lines += [f'#define {name.upper()}_TYPE "{port.dtype}"' for name, port in self.named]
        return "\n".join(lines)

    def scales(self) -> str:
        """Macros of the scales, and what they are for."""
        about = "/* Inputs and outputs are real numbers as they are. */"
        if self.has_scales:
            about = (
                f"/* {self.prefix}quantize divides real inputs by the first, rounds them and cuts "
                "them off;\n   outputs are multiplied by the second. */"
            )
        lines = [f"#define {name.upper()}_SCALE {port.scale!r}" for name, port in self.named]
        return "\n".join([about, *lines])

    def types(self) -> str:
        """A name for the type of each."""
        return "\n".join(f"typedef {CTYPE[port.dtype]} {name};" for name, port in self.named)

    def quantizers(self) -> str:
        """Inline functions that make integers of real inputs, one for each."""
        names = numbered("", self.inputs)
        texts = [
            _quantizer(self.prefix, name, port)
            for name, port in zip(names, self.inputs, strict=True)
            if port.dtype in INTEGERS
        ]
        return "\n".join(texts)


def numbered(name: str, ports: Sequence[Port]) -> list[str]:
    """How C code calls inputs or outputs: ``x``, or ``x_0``, ``x_1`` if there are several."""
    return [name] if len(ports) == 1 else [f"{name}_{i}" for i in range(len(ports))]


def _quantizer(prefix: str, number: str, port: Port) -> str:
    """A scale is a power of two, so that its inverse is exact."""
    limits = np.iinfo(port.dtype)
    return filled("quantize", {
        "N": number, "M": number.upper(), "NAME": prefix, "MACRO": prefix.upper(),
        "INVERSE": float32_literal(1.0 / port.scale), "LOW": str(limits.min),
        "HIGH": str(limits.max),
    })  # fmt: skip


def prototype(name: str, parameters: Sequence[str]) -> str:
    """A function's head, in lines of at most 100 characters."""
    line = f"{name}({', '.join(parameters)})"
    return "\n".join(textwrap.wrap(line, 100, subsequent_indent=" " * (len(name) + 1)))


def arena_type(prefix: str) -> str:
    """The type of a call's working memory."""
    return f"""/* Working memory of a call; may be used for other things between calls. */
typedef struct {{
    int64_t words[{prefix.upper()}ARENA_BYTES / 8];
}} {prefix}arena;"""


def header_file(name: str, parts: Sequence[str]) -> str:
    """A header: its parts between guards, for C and C++."""
    guard = name.upper().replace(".", "_")
    head = f"{ABOUT}\n#ifndef {guard}\n#define {guard}\n\n#include <stdint.h>"
    begin = '#ifdef __cplusplus\nextern "C" {\n#endif'
    end = "#ifdef __cplusplus\n}\n#endif\n\n#endif\n"
    return "\n\n".join([head, begin, *(part.strip("\n") for part in parts if part), end])


def source_file(header: str, includes: Sequence[str], unit: Unit) -> str:
    """A source: what it includes, then kernels, data and functions."""
    lines = [f'#include "{header}"', *(f"#include <{name}.h>" for name in includes)]
    return unit.text([ABOUT, "\n".join(lines)])
