"""Convolutions of values of 8 bits as C: tiles of four pixels, and channels by themselves."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from rosler_jax.export.c.coded import decoded, integer_matrix
from rosler_jax.export.c.loops import nested
from rosler_jax.export.c.unit import CTYPE, CTYPES, Numbers, Step, Unit
from rosler_jax.export.c.windows import gather_call, image, is_depthwise, is_pointwise, window_sizes
from rosler_jax.export.intops import Product
from rosler_jax.graph.kinds import Window


def takes_tiles(op: Product) -> bool:
    """Whether a product goes by tiles of four pixels: several, with weights of a byte."""
    groups = 1 if op.window is None else op.window.groups
    positions = math.prod(op.out_shape[:-1])
    small = "int8" in (op.in_dtypes[0], op.dtypes[0])
    return small and _plain(op) and groups == 1 and positions > 1


def is_single(op: Product) -> bool:
    """Whether a product takes four channels of 8 bits at a time, each by itself, or two of 16."""
    dtypes = (op.in_dtypes[0], op.dtypes[0])
    width = {("int8", "int8"): 4, ("int16", "int16"): 2}.get(dtypes, 0)
    return (
        op.window is not None
        and width > 0
        and (width == 2 or op.bits == 8)
        and not op.wide
        and op.requant.shift > 32
        and is_depthwise(op.window, op.in_shape, op.out_shape)
        and op.out_shape[-1] % width == 0
    )


def _plain(op: Product) -> bool:
    return op.bits == 8 and not op.wide and op.requant.shift > 32


def _suffix(dtype: str, fill: int) -> str:
    return f"{dtype}_{'m' if fill < 0 else ''}{abs(fill)}"


def tile_step(op: Product, unit: Unit, label: str, finish: str, limits: int) -> Step:
    """A function that gathers four pixels after each other, then multiplies."""
    n, dtype, made = op.weight.shape[-1], op.in_dtypes[0], op.dtypes[0]
    m = math.prod(op.weight.shape[:-1])
    words = -(-m // 4)
    w = decoded(unit, label, integer_matrix(op.weight, 8), "tile")
    if w is None:
        rows = np.zeros((n, 4 * words), np.int8)
        rows[:, :m] = op.weight.reshape(m, n).T
        w = unit.array("uint32_t", f"{label}_weights", rows.view("<u4"), "weights")
    suffix = f"_{made}_{limits}"
    unit.use("tile", {"T": suffix, "Y": CTYPE[made], "LIMITS": str(limits)})
    shapes = (op.in_shape, op.out_shape)
    window = op.window or _one(op)
    gather, raw = _gather_tile(op, unit, label, window, words)
    flat = len(window.size) < 3
    height, width = image(op.out_shape)[:2] if flat else (1, math.prod(op.out_shape[:-1]))
    call = f"rosler_tile{suffix}(tile, {words}, {n}, {w}, {finish}, %s, y);"
    body = [
        "rosler_slot *slot = (rosler_slot *)((int16_t *)memory + 2 * p);",
        *gather,
        "if (++p == 4) {", f"    {call % 4}", f"    y += {4 * n};", "    p = 0;", "}",
    ]  # fmt: skip
    room = 32 * words
    left = height * width % 4
    lines = [
        f"static void rosler_{label}(const {CTYPE[dtype]} *x, {CTYPE[made]} *y, "
        "unsigned char *memory)",
        "{",
        "    const rosler_slot *tile = (const rosler_slot *)memory;",
        "    int i, j, p = 0;",
        f"    memset(memory, 0, {room + raw});",
        *nested([("i", height), ("j", width)], body),
        *([f"    {call % left}"] if left else []),
        "}",
    ]
    unit.functions.append("\n".join(lines))
    size = math.prod(shapes[1]) * CTYPES[CTYPE[made]]
    return Step(lambda x, y, memory: f"rosler_{label}({x}, {y}, {memory});", size, room + raw)


def _one(op: Product) -> Window:
    """Rows through a matrix as a signal of pixels."""
    return Window(size=(1,), strides=(1,), padding=((0, 0),), dilation=(1,), input_dilation=(1,))


def _gather_tile(
    op: Product, unit: Unit, label: str, window: Window, words: int
) -> tuple[list[str], int]:
    """Lines that fill a pixel's part of the tile, and the bytes beside it that they need."""
    dtype, channels = op.in_dtypes[0], op.in_shape[-1]
    shapes, suffix = (op.in_shape, op.out_shape), _suffix(dtype, op.fill)
    copy = "spread_i16" if dtype == "int16" else "spread_byte"
    numbers = Numbers(
        f"tile_{suffix}", "rosler_slot", "int32_t", "i32", "uint32_t", 8, CTYPE[dtype], copy,
        str(op.fill),
    )  # fmt: skip
    unit.use(copy, numbers.names())
    whole = 4 * words
    if channels % 4 == 0:
        if is_pointwise(window):
            at = f"(i * {image(op.out_shape)[1]} + j)"
            return [f"rosler_copy_tile_{suffix}(x + {at} * {channels}, {whole}, slot);"], 0
        return [gather_call(unit, numbers, label, shapes, window, patch="slot")], 0
    raw = dataclasses.replace(
        numbers, suffix=f"raw_{suffix}", element=CTYPE[dtype], source=None, copy="copy_fill"
    )
    text = gather_call(unit, raw, label, shapes, window)
    room = -(-whole * CTYPES[CTYPE[dtype]] // 8) * 8
    return [
        f"{CTYPE[dtype]} *patch = ({CTYPE[dtype]} *)(memory + {32 * words});",
        text,
        f"rosler_copy_tile_{suffix}(patch, {whole}, slot);",
    ], room


def _by_channels(weight: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Weights ``(taps, n)`` as words of two taps, for so many channels; then of the last tap."""
    (taps, n), wide = weight.shape, len(order)
    each = weight.reshape(taps, n // wide, wide)[:, :, list(order)].astype("<i2")
    both = each[: taps // 2 * 2].reshape(taps // 2, 2, n // wide, wide).transpose(2, 0, 3, 1)
    last = each[taps // 2 * 2 :].transpose(1, 0, 2)
    halves = np.concatenate([part.reshape(n // wide, -1) for part in (both, last)], 1)
    return np.ascontiguousarray(halves).view("<u4")


def single_step(op: Product, unit: Unit, label: str, finish: str, limits: int) -> Step:
    """A function that takes every channel by itself."""
    assert op.window is not None
    n, taps, dtype = op.out_shape[-1], math.prod(op.window.size), op.in_dtypes[0]
    ctype, small = CTYPE[dtype], dtype == "int8"
    # SXTB16 gives channels 0 and 2, then 1 and 3.
    words = _by_channels(op.weight.reshape(taps, n), (0, 2, 1, 3) if small else (0, 1))
    w = unit.array("uint32_t", f"{label}_weights", words, "weights")
    kind = "i8" if small else "i16"
    unit.use(f"depthwise_{kind}", {"TAPS": str(taps), "LIMITS": str(limits), "S": kind, "X": ctype})
    sizes = window_sizes((op.in_shape, op.out_shape), op.window)
    height, width, channels, out_height, out_width = sizes[:5]
    rows, cols, stride_y, stride_x, up, left, step_y, step_x = sizes[5:]
    kernel = f"rosler_depthwise_{kind}_{taps}{'' if small else f'_{limits}'}"
    body = [
        f"rosler_taps_{kind}(x, {height}, {width}, {channels}, i * {stride_y} - {up}, "
        f"j * {stride_x} - {left}, {rows}, {cols}, {step_y}, {step_x}, none, taps);",
        f"{kernel}(taps, {n}, {w}, {finish}, y);",
        f"y += {n};",
    ]
    room = n * CTYPES[ctype]
    lines = [
        f"static void rosler_{label}(const {ctype} *x, {ctype} *y, unsigned char *memory)",
        "{",
        f"    {ctype} *none = ({ctype} *)memory;",
        f"    const {ctype} *taps[{taps}];",
        "    int i, j;",
        f"    memset(none, {op.fill}, {room});",
        *nested([("i", out_height), ("j", out_width)], body),
        "}",
    ]
    unit.functions.append("\n".join(lines))
    size = math.prod(op.out_shape) * CTYPES[ctype]
    return Step(
        lambda x, y, memory: f"rosler_{label}({x}, {y}, {memory});", size, -(-room // 8) * 8
    )
