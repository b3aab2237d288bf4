"""Integer programs as C: products, windows and rows; the steps of a program and what they read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rosler_jax.export import softmax
from rosler_jax.export.c import integer_loops as each
from rosler_jax.export.c import moves
from rosler_jax.export.c.arena import Use
from rosler_jax.export.c.bytes_kernels import is_single, single_step, takes_tiles, tile_step
from rosler_jax.export.c.coded import (
    Types,
    decoded,
    formed,
    formed_step,
    integer_matrix,
    vectors_of,
)
from rosler_jax.export.c.layout import PER_WORD, pack_rows
from rosler_jax.export.c.scans import scan_step
from rosler_jax.export.c.sketches import FILL, Call, filled_bytes, project_step
from rosler_jax.export.c.unit import BYTES, CTYPE, CTYPES, INTEGER, Numbers, Step, Unit
from rosler_jax.export.c.windows import is_disjoint, pool_step, window_step
from rosler_jax.export.c.wiring import Wiring, settled
from rosler_jax.export.cosines import Stages
from rosler_jax.export.intops import (
    HIGH,
    LIMITS,
    LOW,
    Accumulated,
    Chosen,
    Combined,
    Cosines,
    Gathered,
    IntOp,
    Joined,
    Limited,
    Lookup,
    Looped,
    Normed,
    PatchSigns,
    Pooled,
    Probabilities,
    Product,
    Products,
    Program,
    Reduced,
    Requant,
    Shifted,
    Signs,
    Sliced,
    Taken,
    Times,
    Transposed,
    Truncated,
    Whole,
)
from rosler_jax.graph.kinds import count

FUSED_SHIFT = 33  # from here on half a unit lies in the upper word of the product


def wire_integers(
    program: Program, unit: Unit, names: Sequence[str], label: str = "layer"
) -> Wiring:
    """The steps of a program, and the values that they work on.

    Args:
      program: the model, or the body of a loop.
      unit: of the file.
      names: C expressions of the inputs.
      label: what the names of functions and data begin with.
    """
    ctypes = {value: CTYPE[dtype] for value, dtype in program.dtypes().items()}
    outside = {value.id: x for value, x in zip(program.inputs, names, strict=True)}
    read = {k for op in program.ops for k in op.inputs} | {v.id for v in program.outputs}
    for value, array in program.constants.items():
        if value in read:
            name = f"{label}_constant{value}"
            outside[value] = unit.array(ctypes[value], name, array, "weights")
    uses = []
    for i, op in enumerate(program.ops):
        step = _loop(op, unit, f"{label}{i}") if isinstance(op, Looped) else EMIT[type(op)](
            op, unit, f"{label}{i}"
        )  # fmt: skip
        uses.append(Use(step, op.inputs, op.outputs))
    sizes = {v.id: count(v.shape) * CTYPES[ctypes[v.id]] for v in program.outputs}
    return settled(Wiring(uses, ctypes, outside, [v.id for v in program.outputs]), sizes)


def _loop(op: Looped, unit: Unit, label: str) -> Step:
    x = [CTYPE[dtype] for dtype in op.in_dtypes]
    y = [CTYPE[dtype] for dtype in op.dtypes]
    return scan_step(
        op, unit, label, (x, y), lambda names: wire_integers(op.body, unit, names, f"{label}_")
    )


def _limits(r: Requant) -> int:
    """How ``rosler_clip`` is told of the limits."""
    return {(LOW, HIGH): 0, (0, HIGH): 1, LIMITS["int8"]: 2}[r.low, r.high]


def _end(
    unit: Unit, label: str, r: Requant, bias: np.ndarray | None, wide: bool, groups: int
) -> Callable[[str], str]:
    """Adds what the end of a product reads; gives its value in C, of the group of an expression."""
    unit.use(f"finish_{'i64' if wide else 'i32'}")
    each = r.multiplier.ndim > 0
    multiplier = unit.array("int32_t", f"{label}_multiplier", r.multiplier, "scales")
    add = None
    if bias is not None and bias.any():
        ctype = "int64_t" if wide else "int32_t"
        add = unit.array(ctype, f"{label}_bias", bias, "biases")
    size = (bias.size if bias is not None else r.multiplier.size) // groups
    rest = f"{int(each)}, {r.shift}, {_limits(r)}, {r.zero}"
    if not wide:
        rest += f", {(1 << (r.shift - 1)) + (r.zero << r.shift)}LL"

    def of(group: str) -> str:
        offset = f" + {group} * {size}" if groups > 1 else ""
        return f"{{{f'{add}{offset}' if add else 0}, {multiplier}{offset if each else ''}, {rest}}}"

    return of


def _finish(
    unit: Unit,
    label: str,
    r: Requant,
    bias: np.ndarray | None = None,
    *,
    wide: bool = False,
    groups: int = 1,
) -> str:
    """Adds the end of a product; gives the expression of a pointer to it (of vector ``v``)."""
    end, name = _end(unit, label, r, bias, wide, groups), f"{label}_finish"
    entries = ", ".join(end(str(g)) for g in range(groups))
    unit.data.append(f"static const {_finish_type(wide)} {name}[{groups}] = {{{entries}}};")
    return f"{name} + v % {groups}" if groups > 1 else name


def _finish_type(wide: bool) -> str:
    return f"rosler_finish_{'i64' if wide else 'i32'}"


class _Kernel(NamedTuple):
    """A product as C.

    Attributes:
      name: of its function.
      sums: C type of the sums, if these go through memory; None if they stay in registers.
      finish: of the function that then finishes them.
      unit: weights in a word.
    """

    name: str
    sums: str | None
    finish: str
    unit: int

    def call(self, x: str, y: str, sizes: tuple[int, int], w: str, end: str, memory: str) -> str:
        """Statements for ``y = finish(W x)``; sums lie in ``memory``."""
        m, n = sizes
        if self.sums is None:
            return f"{self.name}({x}, {m}, {n}, {w}, {end}, {y});"
        sums = f"({self.sums} *)({memory})"
        product = f"{self.name}({x}, {m}, {n}, {w}, ({end})->bias, {sums});"
        return f"{product} {self.finish}({end}, {sums}, {n}, {y});"

    def sum_bytes(self, n: int) -> int:
        """Memory for the sums of n outputs."""
        size = 0 if self.sums is None else CTYPES[self.sums]
        return -(-n * size // 8) * 8


def _kernel(
    unit: Unit, bits: int, wide: bool, shift: int, dtype: str = "int16", small: bool = False
) -> _Kernel:
    """Adds the product with weights of so many bits, to values of a dtype; of ``small`` inputs."""
    kind = f"w{bits}_wide" if wide else f"w{bits}"
    suffix = "_i8" if dtype == "int8" else ""
    names = {
        "BITS": f"w{bits}", "KIND": kind, "ACC": "int64_t" if wide else "int32_t",
        "BLOCK": f"block_{kind}" if kind in ("w16", "w8") else "block", "UNIT": str(PER_WORD[bits]),
        "START": "rosler_start_w4(x, whole * 8)" if bits == 4 else "0",
        "Y": CTYPE[dtype], "T": suffix,
    }  # fmt: skip
    # Sums in memory take fewer instructions, but more memory than what small inputs leave.
    if not wide and (shift >= FUSED_SHIFT or small or dtype == "int8"):
        unit.use("fused", names)
        return _Kernel(f"rosler_fused_{kind}{suffix}", None, "", PER_WORD[bits])
    finish = "i64" if wide else "i32"
    unit.use("dense", names)
    unit.use(f"rows_{finish}", names)
    name = f"rosler_dense_{kind}"
    return _Kernel(name, names["ACC"], f"rosler_rows_{finish}{suffix}", PER_WORD[bits])


def _source(dtype: str, fill: int, made: str = "int16") -> Numbers:
    """How a window reads values of a dtype: as 16 bits."""
    if dtype == "int16":
        numbers = INTEGER
    elif dtype == "uint8":
        numbers = BYTES
    else:
        suffix = f"i8_{'m' if fill < 0 else ''}{abs(fill)}"
        numbers = Numbers(
            suffix, "int16_t", "int32_t", "i32", "uint32_t", 2, "int8_t", "copy_fill", str(fill)
        )
    return numbers if made == "int16" else dataclasses.replace(numbers, result=CTYPE[made])


def _product(op: Product, unit: Unit, label: str) -> Step:
    # There is no 64-bit sum of nibbles: such sums are rare, and bytes serve.
    bits = 8 if op.wide and op.bits == 4 else op.bits
    m, n = math.prod(op.weight.shape[:-1]), op.weight.shape[-1]
    groups = 1 if op.window is None else op.window.groups
    form = _formed(op, unit, label) if groups == 1 and not op.wide else None
    if form is not None:
        return form
    if takes_tiles(op) or is_single(op):
        many = dataclasses.replace(  # a multiplier for every channel
            op.requant, multiplier=np.broadcast_to(op.requant.multiplier, (n,))
        )
        finish = _finish(unit, label, many, op.bias)
        if is_single(op):
            return single_step(op, unit, label, finish, _limits(op.requant))
        return tile_step(op, unit, label, finish, _limits(op.requant))
    w, bits, offset = _weights(op, unit, label, bits, groups)
    small = op.in_dtypes[0] == "int8"
    kernel = _kernel(unit, bits, op.wide, op.requant.shift, op.dtypes[0], small)
    if groups == 1:
        before, finish = "", _finish(unit, label, op.requant, op.bias, wide=op.wide)
    else:  # known where it is used: a compiler then folds what all groups have in common
        end = _end(unit, label, op.requant, op.bias, op.wide, groups)("g")
        before, finish = f"const {_finish_type(op.wide)} end = {end}; ", "&end"
    if op.window is None:
        return _dense(op, unit, label, (m, n), kernel, (w, finish))
    numbers = _source(op.in_dtypes[0], op.fill, op.dtypes[0])
    return window_step(
        unit, numbers, label, (op.in_shape, op.out_shape), op.window,
        lambda x, y, pixels: before + kernel.call(
            x, y, (pixels, n // groups), w + offset, finish, "sums"
        ),
        align=kernel.unit, sum_bytes=kernel.sum_bytes(n // groups),
    )  # fmt: skip


def _weights(op: Product, unit: Unit, label: str, bits: int, groups: int) -> tuple[str, int, str]:
    """Adds the words of a weight; gives their name, bits, and the offset of group ``g``."""
    m, n = math.prod(op.weight.shape[:-1]), op.weight.shape[-1]
    if groups == 1:
        layout = "w4" if bits == 4 else "w8"
        name = decoded(unit, label, integer_matrix(op.weight, bits), layout)
        if name is not None:
            return name, min(bits, 8), ""
    rows = op.weight.reshape(m, n).T.reshape(groups, n // groups, m)
    words = [pack_rows(group, bits) for group in rows]
    w = unit.array("uint32_t", f"{label}_weights", np.concatenate(words), "weights")
    return w, bits, f" + g * {words[0].size}" if groups > 1 else ""


def _formed(op: Product, unit: Unit, label: str) -> Step | None:
    """A product that reads weights as they lie in flash, if they are not packed."""
    numbers, made = _source(op.in_dtypes[0], op.fill, op.dtypes[0]), CTYPE[op.dtypes[0]]
    vectors = vectors_of(op)
    form = formed(
        unit, label, integer_matrix(op.weight, op.bits),
        Types(numbers.element if vectors is None else CTYPE[op.in_dtypes[0]], made),
        lambda: _finish(unit, label, op.requant, op.bias), vectors,
    )  # fmt: skip
    return form and formed_step(form, unit, label, op, numbers, CTYPES[made])


def _dense(
    op: Product, unit: Unit, label: str, sizes: tuple[int, int], kernel: _Kernel,
    names: tuple[str, str],
) -> Step:  # fmt: skip
    """Rows through a matrix, each widened to 16 bits before if it has 8."""
    (m, n), rows, (w, finish) = sizes, op.in_shape[0], names
    room = kernel.sum_bytes(n)
    size = rows * n * CTYPES[CTYPE[op.dtypes[0]]]
    wide = op.in_dtypes[0] != "int16"
    name = _widening(unit, op.in_dtypes[0]) if wide else ""
    scratch = room + (-(-2 * m // 8) * 8 if wide else 0)

    def row(x: str, y: str, memory: str) -> str:
        if not wide:
            return kernel.call(x, y, sizes, w, finish, memory)
        copy = f"(int16_t *)({memory} + {room})"
        return f"{name}({x}, {m}, 0, {copy}); " + kernel.call(copy, y, sizes, w, finish, memory)

    if rows == 1:
        return Step(row, size, scratch)
    # A function of its own: in the middle of others its loop takes more instructions.
    taken = f"const {CTYPE[op.in_dtypes[0]]} *x, {CTYPE[op.dtypes[0]]} *y"
    taken += ", unsigned char *memory" if scratch else ""
    unit.functions.append(
        f"static void rosler_{label}({taken})\n{{\n    int v;\n"
        f"    for (v = 0; v < {rows}; ++v) {{\n"
        f"        {row(f'x + v * {m}', f'y + v * {n}', 'memory')}\n    }}\n}}"
    )

    def call(x: str, y: str, memory: str) -> str:
        return f"rosler_{label}({x}, {y}{f', {memory}' if scratch else ''});"

    return Step(call, size, scratch)


def _widening(unit: Unit, dtype: str) -> str:
    """Adds the copy of values of one byte as 16 bits; gives its name."""
    unit.use("widen", {"S": dtype, "X": CTYPE[dtype]})
    return f"rosler_widen_{dtype}"


def _signs(op: Signs, unit: Unit, label: str) -> Step:
    # Several vectors one behind the other, as the groups of a convolution, have their own biases.
    groups = op.bias.size // (op.sketch.rows if op.transpose else op.sketch.cols)
    finish = _finish(unit, label, op.requant, op.bias, groups=groups)
    stages = op.stages if isinstance(op, Cosines) else Stages()
    call = Call(unit, INTEGER, label, op.sketch, finish, stages)
    return project_step(call, op.transpose, op.vectors)


def _patch_signs(op: PatchSigns, unit: Unit, label: str) -> Step:
    finish = _finish(unit, label, op.requant)
    kernel = _kernel(unit, 8, False, op.requant.shift)
    cols = op.sketch.cols
    begin = FILL[op.sketch.kind](Call(unit, INTEGER, label, op.sketch, finish))
    return window_step(
        unit, _source(op.in_dtypes[0], 0), label, (op.in_shape, op.out_shape), op.window,
        lambda x, y, pixels: kernel.call(x, y, (pixels, cols), "w", finish, "sums"),
        align=kernel.unit, sum_bytes=kernel.sum_bytes(cols),
        begin=begin, begin_bytes=filled_bytes(op.sketch, INTEGER),
    )  # fmt: skip


def _shifted(op: Shifted, unit: Unit, label: str) -> Step:
    plain = (op.in_dtypes[0], op.dtypes[0]) == ("int16", "int16")
    if not plain or (op.requant.low, op.requant.high) != (LOW, HIGH):
        return each.shifted_step(op, unit, label)
    unit.use("shifted")
    size, channels = math.prod(op.in_shape), op.in_shape[-1] if op.in_shape else 1
    finish = _finish(unit, label, op.requant)
    many = channels if op.bias.size > 1 or op.requant.multiplier.ndim else 1
    bias = unit.array("int32_t", f"{label}_bias", np.broadcast_to(op.bias, (many,)), "biases")
    sizes = f"{size}, {many}, {op.left}, {bias}, {finish}"
    return Step(lambda x, y, _: f"rosler_shifted({x}, {sizes}, {y});", 2 * size, in_place=True)


def _limited(op: Limited, unit: Unit, label: str) -> Step:
    if (op.dtypes[0], op.low, op.high) != ("int16", 0, HIGH):
        return each.limited_step(op, unit, label)
    unit.use("relu_i16")
    size = math.prod(op.in_shape)
    return Step(lambda x, y, _: f"rosler_relu_i16({x}, {size}, {y});", 2 * size, in_place=True)


def _lookup(op: Lookup, unit: Unit, label: str) -> Step:
    size, made = math.prod(op.in_shape), CTYPE[op.dtypes[0]]
    table = unit.array(made, f"{label}_table", op.table, "tables")
    small = op.table.size == 256
    suffix = "" if (small, made) == (False, "int16_t") else f"_{op.in_dtypes[0]}_{op.dtypes[0]}"
    unit.use("lookup_bytes" if small else "lookup", {"S": suffix, "Y": made})
    return Step(
        lambda x, y, _: f"rosler_lookup{suffix}({x}, {size}, {table}, {y});",
        size * CTYPES[made], in_place=op.in_dtypes == op.dtypes,
    )  # fmt: skip


def _pooled(op: Pooled, unit: Unit, label: str) -> Step:
    if op.dtypes[0] != "int16" or op.zero or not is_disjoint(op.window) or op.window.groups > 1:
        return each.pool_step(op, unit, label)
    mean = op.function == "sum"
    finish = _finish(unit, label, op.requant) if op.requant is not None else "0"
    shapes = (op.in_shape, op.out_shape)
    return pool_step(unit, INTEGER, label, shapes, op.window.size, mean, finish)


def _probabilities(op: Probabilities, unit: Unit, label: str) -> Step:
    dtype = op.in_dtypes[0]
    table = unit.array("uint16_t", "rosler_exp", softmax.TABLE, "tables")
    unit.use("softmax_rows", {"S": dtype, "X": CTYPE[dtype]})
    rows, n = op.in_shape
    sizes = f"{rows}, {n}, {op.multiplier}u, {op.shift}, {table}"
    return Step(
        lambda x, y, _: f"rosler_softmax_rows_{dtype}({x}, {sizes}, {y});",
        2 * rows * n, in_place=dtype == "int16",
    )  # fmt: skip


def _normed(op: Normed, unit: Unit, label: str) -> Step:
    (rows, n), dtype, made = op.in_shape, op.in_dtypes[0], op.dtypes[0]
    names = {"S": f"{dtype}_{made}", "X": CTYPE[dtype], "Y": CTYPE[made]}
    unit.use("norm_rows", names)
    m = unit.array("int32_t", f"{label}_multiplier", op.multiplier, "scales")
    offset = unit.array("int64_t", f"{label}_offset", op.offset, "biases")
    sizes = (
        f"{rows}, {n}, {int(op.center)}, {op.zero}, INT64_C({op.epsilon}), {m}, {offset}, "
        f"{op.shift}, {op.low}, {op.high}"
    )
    return Step(
        lambda x, y, _: f"rosler_norm_rows_{names['S']}({x}, {sizes}, {y});",
        rows * n * CTYPES[CTYPE[made]], in_place=dtype == made,
    )  # fmt: skip


def _moved(move: Callable[..., Step], *more: Any) -> Callable[[Any, Unit, str], Step]:
    """A step that only moves numbers, of the first input's type."""

    def emit(op: Any, unit: Unit, label: str) -> Step:
        rest = [str(f(op)) for f in more]
        return move(op, unit, label, CTYPE[op.in_dtypes[0]], *rest)

    return emit


def _joined(op: Joined, unit: Unit, label: str) -> Step:
    if all(r is None for r in op.requants):
        return moves.concat_step(op, CTYPE[op.dtypes[0]])  # type: ignore[arg-type]
    return each.join_step(op, unit, label)


EMIT: dict[type[IntOp], Callable[[Any, Unit, str], Step]] = {
    Product: _product,
    Signs: _signs,
    Cosines: _signs,
    PatchSigns: _patch_signs,
    Products: each.products_step,
    Shifted: _shifted,
    Limited: _limited,
    Lookup: _lookup,
    Combined: each.combined_step,
    Chosen: each.chosen_step,
    Times: each.times_step,
    Truncated: each.truncated_step,
    Whole: each.whole_step,
    Reduced: each.reduce_step,
    Pooled: _pooled,
    Taken: _moved(moves.take_step, lambda op: op.fill),
    Transposed: _moved(moves.transpose_step),
    Joined: _joined,
    Probabilities: _probabilities,
    Normed: _normed,
    Gathered: _moved(moves.gather_step, lambda op: op.zero),
    Accumulated: each.cumulative_step,
    Sliced: lambda op, unit, label: moves.slice_step(op, CTYPE[op.in_dtypes[0]]),
}
"""Each integer operation as a step: a new one is one line here; loops have a function of theirs."""
