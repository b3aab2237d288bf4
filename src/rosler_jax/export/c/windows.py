"""C functions that slide a window: gather the pixels under it, multiply, go on."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from rosler_jax.export._errors import ExportError
from rosler_jax.export.c.unit import Numbers, Step, Unit
from rosler_jax.export.graph import Shape, Window

Multiply = Callable[[str, str, int], str]
"""C call that multiplies: given the input's and the output's expression, and numbers under it."""


def image(name: str, shape: Shape) -> tuple[int, int, int]:
    """Height, width and channels; a signal is an image of height one.

    Raises:
      ExportError: for more than two spatial axes.
    """
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    raise ExportError(
        f"{name}: {len(shape) - 1} spatial axes; C code has 1 and 2, export onnx or stablehlo"
    )


def _two(values: tuple[int, ...], fill: int) -> tuple[int, int]:
    return (fill, values[0]) if len(values) == 1 else (values[0], values[1])


def is_pointwise(window: Window) -> bool:
    """Whether a window is one pixel that visits all: a plain product over every pixel."""
    return (
        all(k == 1 for k in window.size)
        and all(s == 1 for s in window.strides)
        and all(pair == (0, 0) for pair in window.padding)
        and all(d == 1 for d in window.input_dilation)
    )


def _gather(unit: Unit, numbers: Numbers, name: str, shape: Shape, window: Window) -> str:
    """C call that gathers the pixels for output (i, j) and group g."""
    height, width, channels = image(name, shape)
    rows, cols = _two(window.size, 1)
    stride_y, stride_x = _two(window.strides, 1)
    step_y, step_x = _two(window.dilation, 1)
    gap_y, gap_x = _two(window.input_dilation, 1)
    up, left = _two(tuple(low for low, _ in window.padding), 0)
    corner = f"i * {stride_y} - {up}, j * {stride_x} - {left}"
    if (step_y, step_x, gap_y, gap_x, window.groups) == (1, 1, 1, 1, 1):
        unit.use("patch", numbers.names())
        return (
            f"rosler_patch_{numbers.suffix}(x, {height}, {width}, {channels}, {corner}, "
            f"{rows}, {cols}, patch);"
        )
    unit.use("patch_any", numbers.names())
    count = channels // window.groups
    return (
        f"rosler_patch_any_{numbers.suffix}(x, {height}, {width}, {channels}, g * {count}, "
        f"{count}, {corner}, {rows}, {cols}, {step_y}, {step_x}, {gap_y}, {gap_x}, patch);"
    )


def window_step(
    unit: Unit,
    numbers: Numbers,
    label: str,
    name: str,
    shapes: tuple[Shape, Shape],
    window: Window,
    multiply: Multiply,
    *,
    align: int = 1,
    sum_bytes: int = 0,
    begin: str = "",
    begin_bytes: int = 0,
) -> Step:
    """Adds a function that slides a window, and gives the step that calls it.

    Args:
      unit: of the file.
      numbers: types.
      label: the function's name after ``rosler_``.
      name: of the layer, for errors.
      shapes: of input and output.
      window: how it slides.
      multiply: what happens to the gathered pixels of group ``g``.
      align: gathered pixels are filled up with zeros to a multiple of this.
      sum_bytes: of memory known to ``multiply`` as ``sums``.
      begin: statement at the start, with {w} for scratch memory that it fills.
      begin_bytes: of that memory, known to ``multiply`` as ``w``.
    """
    height, width, channels = image(name, shapes[1])
    groups, element = window.groups, numbers.element
    inner = math.prod(window.size) * shapes[0][-1] // groups
    direct = is_pointwise(window)
    filled = inner if direct else -(-inner // align) * align
    room = 0 if direct else -(-filled * numbers.size // 8) * 8
    source = f"x + (i * {width} + j) * {shapes[0][-1]} + g * {inner}" if direct else "patch"
    target = f"y + (i * {width} + j) * {channels} + g * {channels // groups}"
    memory = [
        ("patch", f"({element} *)memory", not direct),
        ("sums", f"memory + {room}", sum_bytes > 0),
        ("w", f"({numbers.weight} *)(memory + {room + sum_bytes})", bool(begin)),
    ]
    types = {"patch": f"{element} *", "sums": "unsigned char *", "w": f"{numbers.weight} *"}
    used = [(types[kind] + kind, value) for kind, value, wanted in memory if wanted]
    lines = [
        f"static void rosler_{label}(const {numbers.source or element} *x, {element} *y"
        f"{', unsigned char *memory' if used else ''})",
        "{",
        *(f"    {declared} = {value};" for declared, value in used),
        "    int i, j, g;",
        *(f"    {text}" for text in _prologue(numbers, begin, inner, filled)),
        f"    for (i = 0; i < {height}; ++i) {{",
        f"        for (j = 0; j < {width}; ++j) {{",
        f"            for (g = 0; g < {groups}; ++g) {{",
        *([] if direct else [f"                {_gather(unit, numbers, name, shapes[0], window)}"]),
        f"                {multiply(source, target, filled)}",
        "            }",
        "        }",
        "    }",
        "}",
    ]
    unit.functions.append("\n".join(lines))

    def call(x: str, y: str, scratch: str) -> str:
        return f"rosler_{label}({x}, {y}{f', {scratch}' if used else ''});"

    return Step(call, math.prod(shapes[1]) * numbers.size, room + sum_bytes + begin_bytes)


def _prologue(numbers: Numbers, begin: str, inner: int, filled: int) -> list[str]:
    """What comes before the loops: regenerated weights, zeros behind the gathered pixels."""
    lines = [begin.format(w="w")] if begin else []
    if filled > inner:
        lines.append(f"rosler_zero_{numbers.suffix}(patch + {inner}, {filled - inner});")
    return lines


def pool_step(
    unit: Unit, numbers: Numbers, name: str, shapes: tuple[Shape, Shape], window: int, mean: bool,
    finish: str,
) -> Step:  # fmt: skip
    """A step that pools."""
    unit.use("pool", numbers.names())
    _, width, channels = image(name, shapes[0])
    rows, cols, _ = image(name, shapes[1])
    high = 1 if len(shapes[0]) == 2 else window
    sizes = f"{width}, {channels}, {rows}, {cols}, {high}, {window}, {int(mean)}"
    return Step(
        lambda x, y, _: f"rosler_pool_{numbers.suffix}({x}, {sizes}, {finish}, {y});",
        math.prod(shapes[1]) * numbers.size,
    )


def pad_step(
    unit: Unit, numbers: Numbers, label: str, name: str, shapes: tuple[Shape, Shape],
    widths: tuple[tuple[int, int], ...], mode: str,
) -> Step:  # fmt: skip
    """A step that pads by copies of the input."""
    unit.use("pad", numbers.names())
    height, width, channels = image(name, shapes[0])
    rows, cols, _ = image(name, shapes[1])
    both = ((0, 0), widths[0]) if len(widths) == 1 else (widths[0], widths[1])
    index = [np.pad(np.arange(n), w, mode=mode) for n, w in zip((height, width), both, strict=True)]  # type: ignore[call-overload]
    names = [
        unit.array("uint16_t", f"{label}_{side}", i, "tables")
        for side, i in zip(("row", "col"), index, strict=True)
    ]
    sizes = f"{width}, {channels}, {rows}, {cols}, {names[0]}, {names[1]}"
    return Step(
        lambda x, y, _: f"rosler_pad_{numbers.suffix}({x}, {sizes}, {y});",
        math.prod(shapes[1]) * numbers.size,
    )
