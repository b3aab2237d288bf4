"""Elementwise operations as C: chains of them in one loop."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rosler_jax.export._errors import ExportError
from rosler_jax.export.c.loops import (
    declared,
    dense_strides,
    function,
    loops,
    merged,
    nested,
    offset,
)
from rosler_jax.export.c.unit import CTYPE, CTYPES, Step, Unit, literal
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.kinds import Map, Op, count
from rosler_jax.graph.weight import Shape, Weight

_TWICE = "(int32_t)((uint32_t){0} %s (uint32_t){1})"
FLOAT: dict[str, str] = {
    "relu": "{0} <= 0.0f ? 0.0f : {0}",
    "gelu": "0.5f * {0} * (1.0f + tanhf(0.7978845608f * ({0} + 0.044715f * ({0} * {0} * {0}))))",
    "gelu_exact": "0.5f * {0} * erfcf(-{0} * 0.70710678f)",
    "tanh": "tanhf({0})",
    "sigmoid": "1.0f / (1.0f + expf(-{0}))",
    "silu": "{0} * (1.0f / (1.0f + expf(-{0})))",
    "hard_sigmoid": "rosler_clamp_f32({0} + 3.0f, 0.0f, 6.0f) / 6.0f",
    "hard_swish": "{0} * (rosler_clamp_f32({0} + 3.0f, 0.0f, 6.0f) / 6.0f)",
    "softplus": "({0} < 0.0f ? 0.0f : {0}) + log1pf(expf(-fabsf({0})))",
    "elu": "{0} > 0.0f ? {0} : expm1f({0})",
    "clamp": "rosler_clamp_f32({0}, {n0}, {n1})",
    "neg": "-{0}",
    "abs": "fabsf({0})",
    "sign": "{0} > 0.0f ? 1.0f : {0} < 0.0f ? -1.0f : {0}",
    "floor": "floorf({0})",
    "ceil": "ceilf({0})",
    "round": "rintf({0})",
    "exp": "expf({0})",
    "expm1": "expm1f({0})",
    "log": "logf({0})",
    "log1p": "log1pf({0})",
    "sqrt": "sqrtf({0})",
    "rsqrt": "1.0f / sqrtf({0})",
    "cbrt": "cbrtf({0})",
    "sin": "sinf({0})",
    "cos": "cosf({0})",
    "erf": "erff({0})",
    "erfc": "erfcf({0})",
    "not": "{0} == 0.0f",
    "isfinite": "isfinite({0}) != 0",
    "float32": "{0}",
    "int32": "rosler_whole_f32({0})",
    "bool": "{0} != 0.0f",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "rem": "fmodf({0}, {1})",
    "pow": "powf({0}, {1})",
    "max": "rosler_larger_f32({0}, {1})",
    "min": "rosler_smaller_f32({0}, {1})",
    "atan2": "atan2f({0}, {1})",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "select": "{0} ? {1} : {2}",
}
"""Each function of floats as a C expression: operands are names or literals."""
WHOLE: dict[str, str] = {
    **{k: FLOAT[k] for k in ("eq", "ne", "lt", "le", "gt", "ge", "select")},
    "relu": "{0} < 0 ? 0 : {0}",
    "clamp": "{0} < {n0} ? {n0} : {0} > {n1} ? {n1} : {0}",
    "neg": "(int32_t)(0u - (uint32_t){0})",
    "abs": "{0} < 0 ? (int32_t)(0u - (uint32_t){0}) : {0}",
    "sign": "({0} > 0) - ({0} < 0)",
    **dict.fromkeys(("floor", "ceil", "round", "int32"), "{0}"),
    "float32": "(float){0}",
    "bool": "{0} != 0",
    "not": "!{0}",
    "isfinite": "1",
    "add": _TWICE % "+",
    "sub": _TWICE % "-",
    "mul": _TWICE % "*",
    "div": "rosler_div_i32({0}, {1})",
    "rem": "rosler_rem_i32({0}, {1})",
    "pow": "rosler_pow_i32({0}, {1})",
    "max": "{0} < {1} ? {1} : {0}",
    "min": "{1} < {0} ? {1} : {0}",
    "and": "{0} && {1}",
    "or": "{0} || {1}",
    "xor": "!{0} != !{1}",
}
"""The same of whole numbers and truth values."""
_KERNELS = {
    "rosler_clamp_f32": "clamp_f32",
    "rosler_larger_f32": "larger_f32",
    "rosler_smaller_f32": "smaller_f32",
    "rosler_whole_f32": "whole_f32",
    "rosler_div_i32": "whole_division",
    "rosler_rem_i32": "whole_division",
    "rosler_pow_i32": "whole_power",
}


def use_kernels(unit: Unit, text: str) -> None:
    """Adds the small functions that C code calls."""
    for name in sorted(set(re.findall(r"rosler_\w+", text)) & set(_KERNELS)):
        unit.use(_KERNELS[name])


def _power(x: str, n: int, one: str) -> str:
    """Products of ``x``, by squares as XLA does; ``one`` of its type."""
    if n < 0:
        return f"{one} / ({_power(x, -n, one)})"
    half = f"({_power(x, n // 2, one)})" if n > 3 else x
    parts = [half] * (2 if n > 3 else n) + [x] * (n % 2 if n > 3 else 0)
    return " * ".join(parts) or one


def expression(op: Map, operands: Sequence[str], ctypes: Sequence[str]) -> str:
    """What a function gives, as C.

    Args:
      op: the operation.
      operands: names or literals of the operands.
      ctypes: of the operands.

    Raises:
      ExportError: for a function that C code does not have for these types.

    Example:
      >>> shapes = {"in_shapes": ((2,),), "out_shapes": ((2,),), "inputs": (0,), "outputs": (1,)}
      >>> op = Map(name="f", function="power", numbers=(5.0,), **shapes)
      >>> expression(op, ["v"], ["float"])
      '(v * v) * (v * v) * v'
    """
    ctype, made = ctypes[-1], CTYPE[op.dtypes[0]]
    if op.function == "power":
        n = int(op.numbers[0])
        if ctype == "float":
            return _power(operands[0], n, "1.0f")
        return f"rosler_pow_i32({operands[0]}, {n})"
    table = FLOAT if ctype == "float" else WHOLE
    if op.function not in table:
        raise ExportError(
            f"{op.name}: {op.function} of {ctype} has no C code; it has {', '.join(sorted(table))}"
        )
    numbers = {f"n{k}": literal(ctype, v) for k, v in enumerate(op.numbers)}
    text = table[op.function].format(*operands, **numbers)
    whole = made != "float" and made != ("int32_t" if ctype != "uint8_t" else "")
    return f"({made})({text})" if whole or (ctype != "float") == (made == "float") else text


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Fused(Op):
    """Maps in one loop, the last of which gives the output; some operands are numbers."""

    maps: tuple[Map, ...]
    numbers: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)


class _Given(NamedTuple):
    """An operand in the loop: its shape, whether that is the loop's, its text and C type."""

    shape: Shape
    whole: bool
    text: str
    ctype: str


class _Read(NamedTuple):
    """How an input is read: the value, and its shape against the loop's."""

    value: int
    shape: Shape


def _flat(op: Map) -> bool:
    """Whether every operand is a whole one or one number: shapes do not matter."""
    return all(count(s) in (1, count(op.out_shape)) for s in op.in_shapes)


def fuse(graph: Graph) -> list[Op]:
    """Operations with chains of maps as one where only they read what is between.

    Example:
      >>> shapes = {"in_shapes": ((2,),), "out_shapes": ((2,),)}
      >>> ops = [
      ...     Map(name=f, function=f, inputs=(k,), outputs=(k + 1,), **shapes)
      ...     for k, f in enumerate(("neg", "exp"))
      ... ]
      >>> from rosler_jax.graph import Value
      >>> graph = Graph((Value(0, "0", (2,)),), tuple(ops), (Value(2, "0", (2,)),))
      >>> [[op.function for op in fused.maps] for fused in fuse(graph)]
      [['neg', 'exp']]
    """
    position = {op.output: i for i, op in enumerate(graph.ops)}
    fused: dict[int, Fused] = {}
    absorbed: set[int] = set()
    for op in reversed(graph.ops):
        if isinstance(op, Map) and op.output not in absorbed:
            group, base = [op], None if _flat(op) else op.out_shape
            while before := _absorbable(graph, group, base, position):
                group.append(before)
                base = base if _flat(before) else before.out_shape
                absorbed.add(before.output)
            group.sort(key=lambda member: position[member.output])
            fused[op.output] = _fused(group, base, graph.constants)
    return [fused.get(op.output, op) for op in graph.ops if op.output not in absorbed]


def _absorbable(
    graph: Graph, group: Sequence[Map], base: Shape | None, position: Mapping[int, int]
) -> Map | None:
    """A map that only the group reads, and that fits its loop."""
    op, consumers = group[0], graph.consumers()
    kept = {value.id for value in graph.outputs}
    for value in {value for member in group for value in member.inputs if value in position}:
        before = graph.ops[position[value]]
        if (
            isinstance(before, Map)
            and before not in group
            and value not in kept
            and all(reader in group for reader in consumers[value])
            and count(before.out_shape) == count(op.out_shape)
            and (_flat(before) or base in (None, before.out_shape))
        ):
            # Of several operands none shall have to live longer for it.
            between = graph.ops[position[value] + 1 : position[op.output]]
            several = sum(count(shape) > 1 for shape in before.in_shapes) > 1
            if not several or all(other in group for other in between):
                return before
    return None


def _fused(group: Sequence[Map], base: Shape | None, constants: Mapping[int, Weight]) -> Fused:
    made = {member.output for member in group}
    last = group[-1]
    shape_of_all = base or last.out_shape
    reads: list[_Read] = []
    numbers: dict[int, np.ndarray] = {}
    for member in group:
        for value, shape in zip(member.inputs, member.in_shapes, strict=True):
            whole = count(shape) == count(member.out_shape)
            read = _Read(value, shape_of_all if whole else shape)
            if value in constants and count(shape) == 1:
                numbers[value] = constants[value].values
            elif value not in made and read not in reads:
                reads.append(read)
    return Fused(
        name=last.name, inputs=tuple(read.value for read in reads), outputs=last.outputs,
        in_shapes=tuple(read.shape for read in reads), out_shapes=(shape_of_all,),
        dtypes=last.dtypes, maps=tuple(group), numbers=numbers,
    )  # fmt: skip


def fused_step(op: Fused, unit: Unit, label: str, ctypes: Sequence[str]) -> Step:
    """A step that computes maps in one loop.

    Args:
      op: the maps.
      unit: of the file.
      label: for names.
      ctypes: of its inputs.
    """
    size = count(op.out_shape)
    given: dict[int, list[_Given]] = {}
    for value, number in op.numbers.items():
        ctype = CTYPE[number.dtype.name]
        text = literal(ctype, number.item())
        text = f"({text})" if text.startswith("-") else text
        given[value] = [_Given((), size == 1, text, ctype)]
    lines: list[str] = []
    for k, (value, shape) in enumerate(zip(op.inputs, op.in_shapes, strict=True)):
        found = _Given(shape, count(shape) == size, f"v{k}", ctypes[k])
        given.setdefault(value, []).append(found)
    axes = merged(op.out_shape, [dense_strides(shape, op.out_shape) for shape in op.in_shapes])
    counted = loops(axes)
    names = [name for name, _ in counted]
    for k, ctype in enumerate(ctypes):
        index = offset(names, [axis.strides[k] for axis in axes])
        lines.append(f"const {ctype} v{k} = x{k}[{index}];")
    lines += _body(op, given, "y[i]" if len(axes) == 1 else "*y++")
    return _loop_step(op, unit, label, counted, lines, ctypes)


def _body(op: Fused, given: dict[int, list[_Given]], target: str) -> list[str]:
    """Lines that compute the maps in order; the last writes."""
    lines, size = [], count(op.out_shape)
    for k, member in enumerate(op.maps):
        texts, types = [], []
        for value, shape in zip(member.inputs, member.in_shapes, strict=True):
            whole = count(shape) == size
            found = next(g for g in given[value] if g.shape in (shape, ()) or (g.whole and whole))
            texts.append(found.text)
            types.append(found.ctype)
        text, made = expression(member, texts, types), CTYPE[member.dtypes[0]]
        if k < len(op.maps) - 1:
            lines.append(f"const {made} t{k} = {text};")
            given[member.output] = [_Given(member.out_shape, True, f"t{k}", made)]
    return [*lines, f"{target} = {text};"]


def _loop_step(
    op: Fused, unit: Unit, label: str, counted: list[tuple[str, int]], lines: list[str],
    ctypes: Sequence[str],
) -> Step:  # fmt: skip
    """The function around the lines: of any count if there is one loop."""
    made, size, one = CTYPE[op.dtypes[0]], count(op.out_shape), len(counted) == 1
    given = [f"const {ctype} *x{k}" for k, ctype in enumerate(ctypes)]
    signature = ", ".join([*given, *(["int count"] if one else []), f"{made} *y"])
    loop = [("i", "count")] if one else counted
    text = function(signature, *declared(loop), *nested(loop, lines))
    use_kernels(unit, text)
    first = op.maps[0]
    plain = one and len(op.maps) == 1 and len(first.inputs) == 1 and not first.numbers
    name = unit.function(
        f"rosler_{first.function}_{made[0]}32" if plain else f"rosler_{label}", text
    )

    def call(*given: str) -> str:
        *x, y, _ = given
        return f"{name}({', '.join([*x, *([str(size)] if one else []), y])});"

    same = all(c == made for c, s in zip(ctypes, op.in_shapes, strict=True) if count(s) == size)
    return Step(call, size * CTYPES[made], in_place=same)
