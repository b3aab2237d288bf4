"""C functions that slide a window: gather the pixels under it, multiply, go on."""

from __future__ import annotations

import math
from collections.abc import Callable

from rosler_jax.export.c.loops import nested
from rosler_jax.export.c.unit import CTYPES, Numbers, Step, Unit
from rosler_jax.graph.kinds import Window
from rosler_jax.graph.weight import Shape

Multiply = Callable[[str, str, int], str]
"""C call that multiplies: given the input's and the output's expression, and numbers under it."""


def image(shape: Shape) -> tuple[int, int, int]:
    """Height, width and channels of the two inner axes; a signal is an image of height one.

    Example:
      >>> image((28, 28, 3)), image((100, 1)), image((5, 28, 28, 3))
      ((28, 28, 3), (1, 100, 1), (28, 28, 3))
    """
    height, width = _two(shape[:-1], 1)
    return height, width, shape[-1]


def _two(values: tuple[int, ...], fill: int) -> tuple[int, int]:
    return (fill, values[0]) if len(values) == 1 else (values[-2], values[-1])


def is_pointwise(window: Window) -> bool:
    """Whether a window is one pixel that visits all: a plain product over every pixel."""
    return (
        all(k == 1 for k in window.size)
        and all(s == 1 for s in window.strides)
        and all(pair == (0, 0) for pair in window.padding)
        and all(d == 1 for d in window.input_dilation)
    )


def is_disjoint(window: Window) -> bool:
    """Whether windows lie side by side, on nothing but the input."""
    ones = (1,) * len(window.size)
    return (
        window.strides == window.size
        and not any(map(any, window.padding))
        and (window.dilation, window.input_dilation) == (ones, ones)
    )


def is_depthwise(window: Window, in_shape: Shape, out_shape: Shape) -> bool:
    """Whether a convolution of a signal or an image takes every channel by itself, once."""
    return (
        len(window.size) < 3
        and window.groups == in_shape[-1] == out_shape[-1]
        and window.groups > 1
        and all(d == 1 for d in window.input_dilation)
    )


def window_sizes(shapes: tuple[Shape, Shape], window: Window) -> list[int]:
    """What kernels of windows take: sizes of input, output and window, strides, padding, steps."""
    height, width, channels = image(shapes[0])
    low = _two(tuple(pair[0] for pair in window.padding), 0)
    steps = (*_two(window.size, 1), *_two(window.strides, 1), *low, *_two(window.dilation, 1))
    return [height, width, channels, *image(shapes[1])[:2], *steps]


def _gather_flat(
    unit: Unit, numbers: Numbers, shapes: tuple[Shape, Shape], window: Window, group: str,
    patch: str,
) -> str:  # fmt: skip
    """The call for output (i, j) of a signal or an image."""
    height, width, channels = image(shapes[0])
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
            f"{rows}, {cols}, {patch});"
        )
    unit.use("patch_any", numbers.names())
    count = channels // window.groups
    return (
        f"rosler_patch_any_{numbers.suffix}(x, {height}, {width}, {channels}, "
        f"{group} * {count}, {count}, {corner}, {rows}, {cols}, {step_y}, {step_x}, {gap_y}, "
        f"{gap_x}, {patch});"
    )


def axes_table(unit: Unit, label: str, shapes: tuple[Shape, Shape], window: Window) -> str:
    """Adds what ``rosler_pixel`` takes: how a window slides, axis by axis; gives its name."""
    low = tuple(pair[0] for pair in window.padding)
    sizes = (shapes[0][:-1], shapes[1][:-1], window.size, window.strides, low, window.dilation)
    rows = zip(*sizes, window.input_dilation, strict=True)
    return unit.array("int32_t", f"{label}_axes", list(rows), "tables")


def gather_call(
    unit: Unit, numbers: Numbers, label: str, shapes: tuple[Shape, Shape], window: Window,
    group: str = "0", patch: str = "patch",
) -> str:  # fmt: skip
    """C call that gathers the pixels of a group under a window, for output (i, j).

    Of three axes or more j counts all outputs.
    """
    if len(window.size) < 3:
        return _gather_flat(unit, numbers, shapes, window, group, patch)
    unit.use("patch_axes", numbers.names())
    table = axes_table(unit, label, shapes, window)
    channels = shapes[0][-1]
    count = channels // window.groups
    return (
        f"rosler_patch_axes_{numbers.suffix}(x, {table}, {len(window.size)}, {channels}, "
        f"{group} * {count}, {count}, j, {patch});"
    )


def window_step(
    unit: Unit,
    numbers: Numbers,
    label: str,
    shapes: tuple[Shape, Shape],
    window: Window,
    multiply: Multiply,
    *,
    align: int = 1,
    sum_bytes: int = 0,
    begin: str = "",
    begin_bytes: int = 0,
    pairs: bool = False,
) -> Step:
    """Adds a function that slides a window, and gives the step that calls it.

    Args:
      unit: of the file.
      numbers: types.
      label: the function's name after ``rosler_``.
      shapes: of input and output.
      window: how it slides.
      multiply: what happens to the gathered pixels of group ``g``.
      align: gathered pixels are filled up with zeros to a multiple of this.
      sum_bytes: of memory known to ``multiply`` as ``sums``.
      begin: statement at the start, with {w} for scratch memory that it fills.
      begin_bytes: of that memory, known to ``multiply`` as ``w``.
      pairs: whether ``multiply`` takes ``1 + j % 2`` gathered windows; for one group only.
    """
    height, width, channels = image(shapes[1])
    flat = len(window.size) < 3
    if not flat:  # all positions in one row
        height, width = 1, math.prod(shapes[1][:-1])
    groups, element = window.groups, numbers.element
    made = numbers.result or element
    inner = math.prod(window.size) * shapes[0][-1] // groups
    direct = is_pointwise(window) and numbers.source is None
    filled = inner if direct else -(-inner // align) * align
    room = 0 if direct else -(-filled * numbers.size * (1 + pairs) // 8) * 8
    source = f"x + (i * {width} + j) * {shapes[0][-1]} + g * {inner}" if direct else "patch"
    first = "j - j % 2" if pairs else "j"
    target = f"y + (i * {width} + {first}) * {channels} + g * {channels // groups}"
    body = [multiply(source, target, filled)]
    if not direct:
        patch = f"patch + j % 2 * {filled}" if pairs else "patch"
        gather = gather_call(unit, numbers, label, shapes, window, "g", patch)
        if pairs:
            body = [f"if (j % 2 || j + 1 == {width}) {{", *(f"    {s}" for s in body), "}"]
        body = [gather, *body]
    memory = [
        ("patch", f"({element} *)memory", not direct),
        ("sums", f"memory + {room}", sum_bytes > 0),
        ("w", f"({numbers.weight} *)(memory + {room + sum_bytes})", bool(begin)),
    ]
    types = {"patch": f"{element} *", "sums": "unsigned char *", "w": f"{numbers.weight} *"}
    used = [(types[kind] + kind, value) for kind, value, wanted in memory if wanted]
    lines = [
        f"static void rosler_{label}(const {numbers.source or element} *x, {made} *y"
        f"{', unsigned char *memory' if used else ''})",
        "{",
        *(f"    {declared} = {value};" for declared, value in used),
        "    int i, j, g;",
        *(f"    {text}" for text in _prologue(numbers, begin, inner, filled)),
        *nested([("i", height), ("j", width), ("g", groups)], body),
        "}",
    ]
    unit.functions.append("\n".join(lines))

    def call(x: str, y: str, scratch: str) -> str:
        return f"rosler_{label}({x}, {y}{f', {scratch}' if used else ''});"

    return Step(call, math.prod(shapes[1]) * CTYPES[made], room + sum_bytes + begin_bytes)


def _prologue(numbers: Numbers, begin: str, inner: int, filled: int) -> list[str]:
    """What comes before the loops: regenerated weights, zeros behind the gathered pixels."""
    lines = [begin.format(w="w")] if begin else []
    if filled > inner:
        lines.append(f"rosler_zero_{numbers.suffix}(patch + {inner}, {filled - inner});")
    return lines


def pool_step(
    unit: Unit, numbers: Numbers, label: str, shapes: tuple[Shape, Shape], sides: Shape, mean: bool,
    finish: str,
) -> Step:  # fmt: skip
    """A step that pools."""
    unit.use("pool", numbers.names())
    name = f"rosler_pool_{numbers.suffix}"
    channels = shapes[0][-1]
    if len(sides) > 2:  # gathered, a window is a signal of one output
        pixels = math.prod(sides)
        sizes = f"{pixels}, {channels}, 1, 1, 1, {pixels}, {int(mean)}"
        return window_step(
            unit, numbers, label, shapes, pool_window(sides),
            lambda x, y, _: f"{name}({x}, {sizes}, {finish}, {y});",
        )  # fmt: skip
    _, width, _ = image(shapes[0])
    rows, cols, _ = image(shapes[1])
    high, wide = _two(sides, 1)
    sizes = f"{width}, {channels}, {rows}, {cols}, {high}, {wide}, {int(mean)}"
    return Step(
        lambda x, y, _: f"{name}({x}, {sizes}, {finish}, {y});",
        math.prod(shapes[1]) * numbers.size,
    )


def pool_window(sides: Shape) -> Window:
    """The window of a pool: as far apart as it is large."""
    ones, none = (1,) * len(sides), ((0, 0),) * len(sides)
    return Window(
        size=sides, strides=sides, padding=none, dilation=ones, input_dilation=ones, groups=1
    )
