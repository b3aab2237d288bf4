"""C calls that project by a sketch that is regenerated on the device, for integers and floats."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import rosler_kernels as rk
from rosler_jax.export.c.loops import over, row
from rosler_jax.export.c.unit import CTYPES, Numbers, Step, Unit
from rosler_jax.export.cosines import Stages
from rosler_kernels.hashing import Tag, domain_key
from rosler_kernels.sketches._separable import image_of
from rosler_kernels.sketches.dct import box_of
from rosler_kernels.sketches.pool import grid


class Call(NamedTuple):
    """A projection to be written: where it belongs, what ends it.

    Attributes:
      unit: of the file.
      numbers: types.
      label: a prefix for names, unique in the file.
      sketch: what projects.
      finish: expression for a pointer to the finish.
      stages: of cosines as integers.
    """

    unit: Unit
    numbers: Numbers
    label: str
    sketch: rk.Sketch
    finish: str
    stages: Stages = Stages()


def _key(call: Call, tag: Tag, name: str) -> str:
    words = [int(w) for w in domain_key(call.sketch.seed, tag)]
    return call.unit.array("uint32_t", f"{call.label}_{name}", words, "seeds")


def _accumulators(count: int, numbers: Numbers) -> int:
    return CTYPES[numbers.accumulator] * count


def _srht(call: Call, transpose: bool) -> tuple[str, int]:
    s, n = call.sketch, call.numbers
    bits = (s.rows - 1).bit_length()
    kernel = "srht_transpose" if transpose else "srht"
    call.unit.use(kernel, n.names())
    signs = _key(call, Tag.SRHT_SIGNS, "signs")
    columns = _key(call, Tag.SRHT_COLUMNS, "columns")
    text = (
        f"rosler_{kernel}_{n.suffix}({{x}}, {s.rows}, {s.cols}, {bits}, {signs}, {columns}, "
        f"({n.accumulator} *)({{scratch}}), {call.finish}, {{y}});"
    )
    return text, _accumulators(1 << bits, n)


def _rademacher(call: Call, transpose: bool) -> tuple[str, int]:
    s, n = call.sketch, call.numbers
    kernel = "rademacher_transpose" if transpose else "rademacher"
    call.unit.use(kernel, n.names())
    key = _key(call, Tag.RADEMACHER, "key")
    block = f"({n.accumulator} *)({{scratch}}), " if transpose else ""
    name = f"rosler_{kernel}_{n.suffix}"
    text = f"{name}({{x}}, {s.rows}, {s.cols}, {key}, {block}{call.finish}, {{y}});"
    return text, _accumulators(64, n) if transpose else 0


def _rows(call: Call, transpose: bool) -> tuple[str, int]:
    s, n = call.sketch, call.numbers
    kernel = "rows_transpose" if transpose else "rows"
    call.unit.use(kernel, n.names())
    key = _key(call, Tag.ROWS_UNIFORM, "key")
    buffer = f"({n.accumulator} *)({{scratch}}), " if transpose else ""
    name = f"rosler_{kernel}_{n.suffix}"
    text = f"{name}({{x}}, {s.rows}, {s.cols}, {key}, {buffer}{call.finish}, {{y}});"
    return text, _accumulators(s.rows, n) if transpose else 0


def _sparse_data(call: Call) -> tuple[str, str, int]:
    """Statements before the call, the pattern's expression, and entries a row."""
    s, label = call.sketch, call.label
    if s.kind == "sparse_sign":
        words = [int(w) for w in domain_key(s.seed, Tag.SPARSE_SIGN)]
        nnz = s.param("nnz")
        values = f"{{{{{words[0]}u, {words[1]}u}}, {s.cols}, {nnz}}}"
        call.unit.data.append(f"static const rosler_sparse_sign {label}_seed = {values};")
        _count(call, 8)
        return "", f"&{label}_seed", nnz
    tags = (
        Tag.BLOCK_PERM_ENTRIES, Tag.BLOCK_PERM_INPUT, Tag.BLOCK_PERM_OUTPUT, Tag.BLOCK_PERM_SHIFT
    )  # fmt: skip
    keys = ", ".join("{{{}u, {}u}}".format(*map(int, domain_key(s.seed, tag))) for tag in tags)
    blocks, kappa, nnz = (s.param(name) for name in ("blocks", "kappa", "nnz"))
    sizes = f"{s.rows}, {s.cols}, {blocks}, {kappa}, {nnz}, {blocks.bit_length() - 1}"
    call.unit.data.append(
        f"static const rosler_block_perm_seed {label}_seed = {{{keys}, {sizes}}};"
    )
    _count(call, 32)
    begin = f"rosler_block_perm p; rosler_block_perm_begin(&p, &{label}_seed); "
    return begin, "&p", kappa * nnz


def _count(call: Call, taken: int) -> None:
    totals = call.unit.constant_bytes
    totals["seeds"] = totals.get("seeds", 0) + taken


def _sparse(call: Call, transpose: bool) -> tuple[str, int]:
    s, n = call.sketch, call.numbers
    call.unit.use("gather" if transpose else "scatter", n.names(FAMILY=s.kind))
    begin, pattern, entries = _sparse_data(call)
    if transpose:
        name = f"rosler_gather_{s.kind}_{n.suffix}"
        text = f"{name}({{x}}, {s.rows}, {entries}, {pattern}, {call.finish}, {{y}});"
        return _braced(begin, text), 0
    name = f"rosler_scatter_{s.kind}_{n.suffix}"
    text = (
        f"{name}({{x}}, {s.rows}, {s.cols}, {entries}, {pattern}, "
        f"({n.accumulator} *)({{scratch}}), {call.finish}, {{y}});"
    )
    return _braced(begin, text), _accumulators(s.cols, n)


def _braced(begin: str, text: str) -> str:
    return f"{{{{ {begin}{text} }}}}" if begin else text


def _dct(call: Call, transpose: bool) -> tuple[str, int]:
    s, n, image = call.sketch, call.numbers, image_of(call.sketch)
    high, wide = box_of(s)
    kernel = "dct_transpose" if transpose else "dct"
    call.unit.use(kernel, n.names())
    sizes = ", ".join(map(str, (*image, high, wide, s.cols, *call.stages)))
    text = f"rosler_{kernel}_{n.suffix}({{x}}, {sizes}, {{scratch}}, {call.finish}, {{y}});"
    lines = wide * image.channels
    if transpose:  # sums and numbers of one line; quarters of both axes; frequencies of a pixel
        numbers = lines + (image.height + 2) + (image.width + 2) + max(high, wide)
        return text, (8 if n.suffix == "i16" else 4) * lines + n.size * numbers
    longest = max(image.height, image.width)  # a quarter of its wave, half of a frequency, lines
    quarters = (longest + 2) + (longest + 1) // 2
    return text, n.size * (quarters + (image.height * lines if image.width > 1 else 0))


def _pooled(call: Call, transpose: bool) -> tuple[str, int]:
    kernel = "pooled_transpose" if transpose else "pooled"
    call.unit.use(kernel, call.numbers.names())
    sizes = ", ".join(map(str, (*image_of(call.sketch), *grid(call.sketch))))
    return f"rosler_{kernel}_{call.numbers.suffix}({{x}}, {sizes}, {call.finish}, {{y}});", 0


PROJECT: dict[str, Callable[[Call, bool], tuple[str, int]]] = {
    "srht": _srht,
    "rademacher": _rademacher,
    "sparse_sign": _sparse,
    "block_perm": _sparse,
    "rows_uniform": _rows,
    "dct": _dct,
    "pool": _pooled,
}
"""By the family's name: a call with {x}, {y} and {scratch} in it, and the bytes of scratch."""


def project_step(call: Call, transpose: bool, vectors: int) -> Step:
    """A step that projects one vector, or several that lie one behind the other."""
    text, scratch = PROJECT[call.sketch.kind](call, transpose)
    rows, cols = call.sketch.rows, call.sketch.cols
    inner, outer = (cols, rows) if transpose else (rows, cols)
    size = call.numbers.size

    def one(x: str, y: str, memory: str) -> str:
        x, y = row(x, vectors, inner), row(y, vectors, outer)
        return over(vectors, text.format(x=x, y=y, scratch=memory))

    return Step(one, vectors * outer * size, scratch)


def _fill_srht(call: Call) -> str:
    s, n = call.sketch, call.numbers
    call.unit.use("fill_srht", n.names())
    signs = _key(call, Tag.SRHT_SIGNS, "signs")
    columns = _key(call, Tag.SRHT_COLUMNS, "columns")
    bits = (s.rows - 1).bit_length()
    return f"rosler_fill_srht_{n.suffix}({signs}, {columns}, {bits}, {s.rows}, {s.cols}, {{w}});"


def _fill_keyed(kernel: str, tag: Tag) -> Callable[[Call], str]:
    def fill(call: Call) -> str:
        s, n = call.sketch, call.numbers
        call.unit.use(kernel, n.names())
        key = _key(call, tag, "key")
        return f"rosler_{kernel}_{n.suffix}({key}, {s.rows}, {s.cols}, {{w}});"

    return fill


def _fill_sparse(call: Call) -> str:
    s, n = call.sketch, call.numbers
    call.unit.use("fill_sparse", n.names(FAMILY=s.kind))
    begin, pattern, entries = _sparse_data(call)
    name = f"rosler_fill_{s.kind}_{n.suffix}"
    return _braced(begin, f"{name}({pattern}, {entries}, {s.rows}, {s.cols}, {{w}});")


def _fill_pooled(call: Call) -> str:
    s, n = call.sketch, call.numbers
    call.unit.use("fill_pooled", n.names())
    sizes = ", ".join(map(str, (*image_of(s), *grid(s))))
    return f"rosler_fill_pooled_{n.suffix}({sizes}, {s.rows}, {s.cols}, {{w}});"


FILL: dict[str, Callable[[Call], str]] = {
    "srht": _fill_srht,
    "rademacher": _fill_keyed("fill_rademacher", Tag.RADEMACHER),
    "sparse_sign": _fill_sparse,
    "block_perm": _fill_sparse,
    "rows_uniform": _fill_keyed("fill_rows", Tag.ROWS_UNIFORM),
    "pool": _fill_pooled,
}
"""Calls that write a sketch's signs as weights to {w}, by the family's name."""


def filled_bytes(sketch: rk.Sketch, numbers: Numbers) -> int:
    """Bytes that these weights take."""
    per_word = 4 if numbers.suffix == "i16" else 1
    return 4 * math.ceil(sketch.rows / per_word) * sketch.cols


def entry_scale(sketch: rk.Sketch) -> float:
    """What multiplies the entries that a kernel makes: signs, or cosines."""
    scale = rk.family(sketch.kind).scale
    assert scale is not None  # of every family that has a kernel
    return float(scale(sketch))
