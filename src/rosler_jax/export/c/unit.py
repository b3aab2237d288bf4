"""A C file as it is put together: kernels, constant data, functions, and what they take."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rosler_jax.delta import SeededDelta

FOLDERS = tuple(Path(__file__).parent / name for name in ("kernels", "train/kernels"))
"""Where templates lie; a name is unique in all of them."""
_REQUIRES = re.compile(r"^/\* requires: ([^\n*]*?)\s*(?:\n\s*|\*/\n)")
_LINE = 96
CONST = """\
/* What a model's data is; the header says why one may define it. */
#ifndef ROSLER_CONST
#define ROSLER_CONST const
#endif"""


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The types that a kernel is written out for.

    Attributes:
      suffix: of its name.
      element: C type of an activation.
      accumulator: C type of a sum.
      finish: which finish function ends it.
      weight: C type of regenerated weights.
      size: bytes of an activation.
      source: C type that a window reads, if another.
      copy: kernel that copies from there.
      fill: what a window reads beyond its input.
      result: C type of what is made, if another.
    """

    suffix: str
    element: str
    accumulator: str
    finish: str
    weight: str
    size: int
    source: str | None = None
    copy: str = "copy"
    fill: str = "0"
    result: str | None = None

    def names(self, **more: str) -> dict[str, str]:
        """What stands for the templates' placeholders."""
        return {
            "S": self.suffix,
            "X": self.element,
            "ACC": self.accumulator,
            "FINISH": self.finish,
            "W": self.weight,
            "SOURCE": self.source or self.element,
            "COPY": self.copy,
            "FILL": self.fill,
            "EXTEND": "sxtb16" if self.source == "int8_t" else "uxtb16",
            **more,
        }


INTEGER = Numbers("i16", "int16_t", "int32_t", "i32", "uint32_t", 2)
BYTES = Numbers("u8", "int16_t", "int32_t", "i32", "uint32_t", 2, "uint8_t", "copy_fill")
FLOAT = Numbers("f32", "float", "float", "f32", "float", 4)

CTYPE = {
    "float32": "float", "int32": "int32_t", "int16": "int16_t", "int8": "int8_t",
    "uint8": "uint8_t", "bool": "uint8_t",
}  # fmt: skip
"""C type of values by their dtype."""
CTYPES = {
    "uint32_t": 4, "int32_t": 4, "int64_t": 8, "int16_t": 2, "uint16_t": 2, "float": 4,
    "uint8_t": 1, "int8_t": 1,
}  # fmt: skip
"""Bytes of the types that constant data has."""


@functools.lru_cache(maxsize=128)
def template(name: str) -> str:
    """The text of a kernel, its placeholders open."""
    paths = (folder / f"{name}.c" for folder in FOLDERS)
    return next(path for path in paths if path.is_file()).read_text(encoding="ascii")


def filled(name: str, names: Mapping[str, str]) -> str:
    """The text of a kernel, its placeholders filled in."""
    text = template(name)
    for key, value in names.items():
        text = text.replace(f"@{key}@", value)
    return text


@dataclasses.dataclass
class Unit:
    """A C source in the making; kernels are added once each, after what they require.

    Attributes:
      kernels: texts of the kernels, in order.
      data: definitions of constant arrays.
      functions: definitions that come after the data.
      constant_bytes: of the arrays, by what they are for.
      poison: for tests: a byte that is written over memory when nobody needs it.
      arrays: names of arrays and functions by what they hold.
      weights: how they lie in flash: a key of :data:`rosler_jax.export.c.coded.FORMS`.
      macros: numbers that kernels are compiled for, by their names.
      start: statements that come before the first call; ``a`` points to the arena.
      start_bytes: of the arena that they need.
      ram_bytes: of variables that they fill, beside the arena.
      delta: changes weights on the device.
      tuned: names of the weights that it has met.
      tunes: statements that change them, of its numbers ``z``.
    """

    kernels: list[str] = dataclasses.field(default_factory=list)
    data: list[str] = dataclasses.field(default_factory=list)
    functions: list[str] = dataclasses.field(default_factory=list)
    constant_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    poison: int | None = None
    arrays: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    weights: str = "packed"
    macros: dict[str, int] = dataclasses.field(default_factory=dict)
    start: list[str] = dataclasses.field(default_factory=list)
    start_bytes: int = 0
    ram_bytes: int = 0
    delta: SeededDelta | None = None
    tuned: list[str] = dataclasses.field(default_factory=list)
    tunes: list[str] = dataclasses.field(default_factory=list)

    def use(self, name: str, names: dict[str, str] | None = None) -> None:
        """Adds a kernel, its placeholders filled in."""
        text = filled(name, names or {})
        found = _REQUIRES.match(text)
        if found:
            for required in found.group(1).split(","):
                self.use(required.strip(), names)
            rest = text[found.end() :]
            text = rest if found.group(0).endswith("*/\n") else "/* " + rest.lstrip()
        if text not in self.kernels:
            self.kernels.append(text)

    def array(self, ctype: str, name: str, values: Any, purpose: str) -> str:
        """Adds constant data, once if it is the same; gives its name."""
        flat = np.asarray(values).ravel()
        literals = [literal(ctype, v) for v in flat.tolist()]
        key = ctype, ",".join(literals)
        if key in self.arrays:
            return self.arrays[key]
        self.arrays[key] = name
        body = _lines(literals)
        self.data.append(f"static ROSLER_CONST {ctype} {name}[{flat.size}] = {{\n{body}\n}};")
        taken = flat.size * CTYPES[ctype]
        self.constant_bytes[purpose] = self.constant_bytes.get(purpose, 0) + taken
        return name

    def function(self, name: str, text: str) -> str:
        """Adds a function, once if it is the same: ``@NAME@`` in its text; gives its name."""
        key = "function", text
        if key not in self.arrays:
            names, wanted = set(self.arrays.values()), name
            while wanted in names:
                wanted += "_"
            self.arrays[key] = wanted
            self.functions.append(text.replace("@NAME@", wanted))
        return self.arrays[key]

    def text(self, head: Sequence[str]) -> str:
        """The whole source after its head."""
        kernels = (kernel.strip() for kernel in self.kernels)
        macros = "\n".join(f"#define {name} {value}" for name, value in self.macros.items())
        before = [*head, *([macros] if macros else []), CONST]
        return "\n\n".join([*before, *kernels, *self.data, *self.functions]) + "\n"


def literal(ctype: str, value: Any) -> str:
    """A number of a C type."""
    if ctype == "float":
        return float32_literal(value)
    if ctype == "uint32_t":
        return f"0x{value:X}u"
    if ctype == "int64_t":
        return f"INT64_C({value})"
    if ctype == "int32_t" and value == -(2**31):
        return "(-2147483647 - 1)"
    return str(int(value))


def float32_literal(value: float) -> str:
    """A float as C reads it back exactly.

    Example:
      >>> float32_literal(0.1), float32_literal(2.0)
      ('0.1f', '2.0f')
    """
    if not np.isfinite(value):
        return "NAN" if np.isnan(value) else "INFINITY" if value > 0 else "-INFINITY"
    text = np.format_float_scientific(np.float32(value), unique=True, trim="0")
    short = repr(float(text))
    return f"{short if np.float32(short) == np.float32(value) else text}f"


def _lines(literals: list[str]) -> str:
    lines, line = [], "   "
    for text in literals:
        if len(line) + len(text) + 2 > _LINE:
            lines.append(line)
            line = "   "
        line += f" {text},"
    return "\n".join([*lines, line])


@dataclasses.dataclass(frozen=True)
class Step:
    """One call of the generated predict function.

    Attributes:
      call: C statement, given expressions for all inputs, all outputs and scratch memory, in this
        order.
      out_bytes: of its output; of the first of several.
      scratch_bytes: it needs beside inputs and outputs.
      in_place: whether the first output may lie where any input of as many bytes does.
      alias: if the output is a part of the first input as it is: bytes from its start. ``call``
        copies it where it has to lie elsewhere.
      more_out_bytes: of further outputs.
    """

    call: Callable[..., str]
    out_bytes: int
    scratch_bytes: int = 0
    in_place: bool = False
    alias: int | None = None
    more_out_bytes: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each output."""
        return self.out_bytes, *self.more_out_bytes
