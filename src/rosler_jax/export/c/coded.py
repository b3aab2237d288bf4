"""Weights that lie in flash in fewer bytes than packed: coded, or without their zeros.

Each product takes its form of the weights where that is smaller in flash, and else they are packed:

- ``coded``: as :mod:`rosler_jax._coding` has it, a stream for each matrix, whose rows are outputs.
  ``rosler_init`` decodes them to RAM, and the products are those of packed weights.
- ``streamed``: matrices that one vector goes through are decoded while they are multiplied, a row
  at a time: rows are inputs, or outputs where there are more of these. In a loop they are decoded
  anew at every position. All others are as ``coded``.
- ``sparse``: an entry for each weight that is not zero; see ``kernels/sparse.c``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rosler_jax._coding import coding_of, encode
from rosler_jax.export.c.arena import aligned
from rosler_jax.export.c.unit import CTYPES, Numbers, Step, Unit
from rosler_jax.export.c.windows import is_pointwise, window_step

if TYPE_CHECKING:
    from jaxtyping import Float32, Integer

    from rosler_jax.graph.weight import Weight

_LEVELS, _FEW = 127, 7  # sizes of weights: the largest; those with fewer contexts
_LONGEST, _MANY = 1 << 16, 1 << 20  # columns of a stream; weights that a device may hold
_CODE = {"ROSLER_SMOOTH": 400, "ROSLER_PLAIN": 140}
"""Bytes that code of a kind takes in a file that has the other kind (GCC, a Cortex-M4)."""


class Matrix(NamedTuple):
    """The weights of a product.

    Attributes:
      values: as integers.
      bits: of a weight where it is packed.
      scale: of floats: one number, or one for each input or output; None for integers.
      axis: which: 0 for inputs, 1 for outputs.
    """

    values: Integer[np.ndarray, "m n"]
    bits: int
    scale: Float32[np.ndarray, "..."] | None = None
    axis: int | None = None

    @property
    def levels(self) -> int:
        """The largest size of a weight, at least 1."""
        return max(1, int(np.abs(self.values).max(initial=0)))


class Types(NamedTuple):
    """C types of what a product reads and makes."""

    x: str
    y: str


FLOATS = Types("float", "float")

Multiply = Callable[[str, str, str], str]
"""C statement of a product: given the input, the output, and scratch memory."""

Finish = Callable[[], str]
"""Adds the end of a product; gives its name."""


class Form(NamedTuple):
    """A product with weights of some form.

    Attributes:
      call: its statement.
      scratch_bytes: of memory.
    """

    call: Multiply
    scratch_bytes: int = 0


def integer_matrix(weight: Integer[np.ndarray, "*window m n"], bits: int) -> Matrix:
    """The weights of a product of integers."""
    return Matrix(weight.reshape(-1, weight.shape[-1]), bits)


def float_matrix(weight: Weight) -> Matrix | None:
    """The weights of a product of floats, if they are integers with scales of rows or columns."""
    integers = weight.integers
    if integers is None or weight.axis not in (None, -1, -2):
        return None
    if weight.axis == -2 and integers.ndim > 2:
        return None
    axis = None if weight.axis is None else weight.axis + 2
    return Matrix(integers.reshape(-1, integers.shape[-1]), 32, weight.scale, axis)


def _stream(unit: Unit, label: str, matrix: Matrix, by_input: bool) -> tuple[str, int] | None:
    """Adds a matrix, coded; gives its name and bytes, or None where it is larger than packed."""
    m, n = matrix.values.shape
    if matrix.levels > _LEVELS or max(m, n) > _LONGEST:
        return None
    packed = matrix.bits * matrix.values.size
    given = [(matrix.values.astype(np.int8), matrix.levels, packed)]
    stream, (coded,) = encode(given, transposed=not by_input)
    if not coded or 8 * len(stream) >= packed:
        return None
    smooth = coding_of(stream).smooth
    kinds = dict(zip(_CODE, (smooth, not smooth), strict=True))
    kind = next(name for name, wanted in kinds.items() if wanted)
    if unit.macros and not unit.macros[kind]:  # with the code that is there already
        other, (coded,) = encode(given, transposed=not by_input, smooth=not smooth)
        if coded and len(other) < len(stream) + _CODE[kind]:
            stream, kinds = other, {name: not wanted for name, wanted in kinds.items()}
    contexts = {"ROSLER_CONTEXTS": 43 if matrix.levels <= _FEW else 73}
    for name, value in (contexts | kinds).items():
        unit.macros[name] = max(unit.macros.get(name, 0), int(value))
    return unit.array("uint8_t", f"{label}_stream", list(stream), "weights"), len(stream)


def _scales(unit: Unit, label: str, matrix: Matrix) -> str:
    """What calls of kernels in floats have more: the scales, and how they follow."""
    if matrix.scale is None:
        return ""
    name = unit.array("float", f"{label}_scale", matrix.scale, "scales")
    return f"{name}, {int(matrix.axis == 0)}, {int(matrix.axis == 1)}, "


def _names(matrix: Matrix, types: Types, weight: str, i: str, j: str) -> dict[str, str]:
    """What stands for the placeholders of kernels in integers or floats."""
    names = {"X": types.x, "Y": types.y, "S": f"{types.x}_{types.y}", "WEIGHT": weight}
    if matrix.scale is None:
        return names | {"ACC": "int32_t", "FINISH": "i32", "MORE": ""}
    scaled = f"((float){weight} * scale[{i} * by_input + {j} * by_output])"
    more = "const float *scale, int by_input, int by_output, "
    return names | {"S": "f32", "WEIGHT": scaled, "ACC": "float", "FINISH": "f32", "MORE": more}


# Decoded at the start.


class Layout(NamedTuple):
    """How words of decoded weights lie: see ``kernels/unpack.c``."""

    bits: int
    place: str
    blocked: str
    empty: str = "0"


LAYOUTS = {
    "w8": Layout(8, "k % 2 * 2 + k / 2", "n - n % 4"),
    "w4": Layout(4, "k % 2 * 4 + k / 2", "n - n % 4", "0x88888888u"),
    "tile": Layout(8, "k", "0"),
}


def decoded(unit: Unit, label: str, matrix: Matrix, layout: str) -> str | None:
    """Adds weights that are decoded at the start; gives their name, or None where packed.

    Args:
      unit: of the file.
      label: of the product.
      matrix: its weights.
      layout: a key of :data:`LAYOUTS`, or ``"f32"``.
    """
    if unit.weights not in ("coded", "streamed"):
        return None
    found = _stream(unit, label, matrix, by_input=False)
    if found is None:
        return None
    (stream, size), (m, n) = found, matrix.values.shape
    ctype, count, more = "float", m * n, _scales(unit, label, matrix)
    key = f"decoded {layout} {m} {n} {matrix.levels} {more}", stream
    if key in unit.arrays:
        return unit.arrays[key]
    name = unit.arrays[key] = f"{label}_decoded"
    if layout == "f32":
        unit.use("unpack_f32")
    else:
        how = LAYOUTS[layout]
        each = 32 // how.bits
        ctype, count = "uint32_t", n * -(-m // each)
        names = {"S": layout, "BITS": how.bits, "UNIT": each, "PLACE": how.place}
        names |= {"BLOCKED": how.blocked, "EMPTY": how.empty, "MASK": f"{2**how.bits - 1}u"}
        unit.use("unpack", {k: str(v) for k, v in names.items()})
    unit.data.append(f"static {ctype} {name}[{count}]; /* decoded by rosler_init */")
    unit.ram_bytes += CTYPES[ctype] * count
    unit.start_bytes = max(unit.start_bytes, aligned(3 * m))
    sizes = f"{stream}, {size}, {n}, {m}, {matrix.levels}"
    unit.start.append(f"rosler_unpack_{layout}({sizes}, a, {more}{name});")
    return name


# Decoded while multiplied.


def _streamed(
    unit: Unit, label: str, matrix: Matrix, types: Types, finish: Finish, vectors: int | None
) -> Form | None:
    if vectors != 1:
        return None
    m, n = matrix.values.shape
    by_input = n <= m
    found = _stream(unit, label, matrix, by_input)
    if found is None:
        return None
    kind = "inputs" if by_input else "outputs"
    names = _names(matrix, types, "row[j]" if by_input else "row[i]", "i", "j")
    unit.use(f"stream_{kind}", names)
    more = f"{found[1]}, {matrix.levels}, {_scales(unit, label, matrix)}{finish()}"
    name = f"rosler_stream_{kind}_{names['S']}"
    return Form(
        lambda x, y, memory: f"{name}({x}, {m}, {n}, {found[0]}, {more}, {memory}, {y});",
        aligned(7 * n if by_input else 3 * m),
    )


# Without zeros.


def entries(
    values: Integer[np.ndarray, "m n"], bits: int, gap: int
) -> tuple[Integer[np.ndarray, "entries"], Integer[np.ndarray, "n"]]:
    """Weights that are not zero, output by output, and how many entries each output has.

    Args:
      values: the weights.
      bits: of an entry for the weight.
      gap: most inputs that an entry passes over.

    Example:
      >>> entries(np.array([[0], [0], [3], [0], [0], [0], [-1]]), 3, 2)
      (array([19, 16,  7]), array([3]))
    """
    mask = 2**bits - 1
    found: list[int] = []
    counts: list[int] = []
    for column in np.asarray(values).T:
        before, start = -1, len(found)
        for k in np.flatnonzero(column).tolist():
            skipped = k - before - 1
            while skipped > gap:  # a weight of zero
                found.append(gap << bits)
                skipped -= gap + 1
            found.append(skipped << bits | int(column[k]) & mask)
            before = k
        counts.append(len(found) - start)
    return np.array(found, np.int64), np.array(counts, np.int64)


def _sparse(
    unit: Unit, label: str, matrix: Matrix, types: Types, finish: Finish, vectors: int | None
) -> Form | None:
    if matrix.levels > _LEVELS:
        return None
    (m, n), least, most = matrix.values.shape, matrix.values.min(), matrix.values.max()
    bits = 1 + max(1, int(most).bit_length(), max(0, int(-least - 1)).bit_length())
    wide = 16 if bits > 6 else 8
    found, counts = entries(matrix.values, bits, 2 ** (wide - bits) - 1)
    count = "uint8_t" if counts.max() < 256 else "uint16_t"
    taken = wide * found.size + 8 * CTYPES[count] * n
    if taken >= matrix.bits * matrix.values.size or counts.max() >= 2**16:
        return None
    entry = f"uint{wide}_t"
    names = _names(matrix, types, "((int32_t)(e << up) >> up)", "(at - x)", "j")
    names |= {"S": f"{names['S']}_{entry}_{count}", "ENTRY": entry, "COUNT": count}
    passed = "" if matrix.scale is None else "scale, by_input, by_output, "
    kernel = "sparse" if vectors == 1 else "sparse_rows"
    unit.use(kernel, names | {"PASSED": passed})
    e = unit.array(entry, f"{label}_entries", found if found.size else [0], "weights")
    c = unit.array(count, f"{label}_counts", counts, "weights")
    sizes = f"{n}, {e}, {c}, {bits}, {_scales(unit, label, matrix)}{finish()}"
    rows = "1 + j % 2" if vectors is None else str(vectors)
    sizes = sizes if vectors == 1 else f"{rows}, {m}, {sizes}"
    return Form(lambda x, y, _: f"rosler_{kernel}_{names['S']}({x}, {sizes}, {y});")


Make = Callable[[Unit, str, Matrix, Types, Finish, int | None], Form | None]

FORMS: dict[str, Make | None] = {
    "packed": None,
    "coded": None,
    "streamed": _streamed,
    "sparse": _sparse,
}
"""Every form, and the product that reads it; None where it reads words from flash or RAM."""


def formed(
    unit: Unit, label: str, matrix: Matrix | None, types: Types, finish: Finish, vectors: int | None
) -> Form | None:
    """Adds a product that reads the file's form of weights; None where it reads words.

    Args:
      unit: of the file.
      label: of the product.
      matrix: its weights; None where they have no such form.
      types: of what it reads and makes.
      finish: adds its end and gives the name, if it is added.
      vectors: that go through it; None for windows of a convolution, ``1 + j % 2`` at a time.
    """
    make = FORMS[unit.weights]
    if make is None or matrix is None:
        return None
    return make(unit, label, matrix, types, finish, vectors)


def formed_step(
    form: Form, unit: Unit, label: str, op: Any, numbers: Numbers, element: int
) -> Step:
    """The step of a product of some form; its outputs have so many bytes."""
    if vectors_of(op) is not None:
        return Step(form.call, math.prod(op.out_shape) * element, form.scratch_bytes)
    return window_step(
        unit, numbers, label, (op.in_shape, op.out_shape), op.window,
        lambda x, y, _: form.call(x, y, ""), pairs=True,
    )  # fmt: skip


def vectors_of(op: Any) -> int | None:
    """How many vectors go through a product; None for the windows of a convolution."""
    window = getattr(op, "window", None)
    plain = window is None or is_pointwise(window)
    return math.prod(op.out_shape[:-1]) if plain else None


def mostly_zeros(model: Any) -> bool:
    """Whether most weights of a graph or an integer program of a device's size are zero."""
    zeros = total = 0
    for op in model.ops:
        weight = getattr(op, "weight", None)
        if weight is not None:
            values = weight if isinstance(weight, np.ndarray) else weight.integers
            total += math.prod(weight.shape)
            zeros += 0 if values is None else int((values == 0).sum())
    return 2 * zeros > total and total <= _MANY
