"""A graph as JSON types and named tensors, and back: what a model file of version 2 holds.

A graph is ``[inputs, operations, outputs, constants, structure]``, an operation ``[kind, reads,
*attributes]`` with its attributes in the order of its dataclass. Lists leave out what is as usual
at their end, and have null for it before. Values have no numbers: ``reads`` counts back from the
operation's first output to what it reads, 1 for the value before; a graph's values are its inputs,
its constants and then its operations' outputs. Shapes follow from what is read
(:func:`rosler_jax.graph.check.out_shapes`). What else is not as usual comes last, as an object:
``in`` (the shapes in which values are read), ``dtypes``, ``name``.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import rosler_kernels as rk
from rosler_jax._quantized import QuantizedTensor
from rosler_jax.graph.check import (
    MAX_DEPTH,
    MAX_ELEMENTS,
    GraphError,
    check,
    out_dtypes,
    out_shapes,
    require,
    weight_shape,
)
from rosler_jax.graph.graph import Graph, Value, op_vectors
from rosler_jax.graph.kinds import (
    KINDS,
    Affine,
    Conv,
    Dense,
    Map,
    MatMul,
    Norm,
    Op,
    PatchProject,
    Project,
    Scan,
    Softmax,
    Window,
)
from rosler_jax.graph.weight import Shape, Weight

Tensors = dict[str, Any]
_NAMED = (Dense, Conv, Project, PatchProject, MatMul, Scan)  # whose names are worth their bytes
_BEYOND = 2.0**128 - 2.0**103  # from here on float32 rounds to infinity
_FEW, _DIGITS = 16, 8.5  # more numbers than that, of more characters on average, are a tensor


def to_json(graph: Graph) -> tuple[list[Any], Tensors]:
    """A graph's operations as JSON types, and its tensors by name.

    Raises:
      GraphError: for a graph that makes no sense.

    Example:
      >>> from rosler_jax.graph.kinds import Map
      >>> shapes = {"in_shapes": ((2,),), "out_shapes": ((2,),)}
      >>> relu = Map(name="relu", function="relu", inputs=(0,), outputs=(1,), **shapes)
      >>> to_json(Graph((Value(0, "0", (2,)),), (relu,), (Value(1, "", (2,)),)))
      ([[[[2]]], [['Map', 1, 'relu']], [1]], {})
    """
    check(graph)
    tensors: Tensors = {}
    return _listed(_write_graph(graph, tensors)), tensors


def from_json(content: Any, tensors: Mapping[str, Any]) -> Graph:
    """The inverse of :func:`to_json`; the content may be anything that JSON can say.

    Raises:
      GraphError: for what is not a graph; says which operation and why.
    """
    reader = _Reader(tuple(tensors.items()), set(), 0)
    try:
        graph = _read_graph(content, reader)
        check(graph)
    except GraphError:
        raise
    except (RecursionError, OverflowError) as error:
        raise GraphError(f"nested too deep, or numbers too large: {error}") from None
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise GraphError(f"not a graph: {error}") from None
    unused = sorted(tensors.keys() - reader.used)
    require(not unused, f"tensors that no operation uses: {', '.join(unused):.200}")
    return graph


# Graphs and operations, written.


def trimmed(items: Sequence[Any]) -> list[Any]:
    """A list without the usual (None) at its end.

    Example:
      >>> trimmed([1, None, 2, None])
      [1, None, 2]
    """
    kept = list(items)
    while kept and kept[-1] is None:
        kept.pop()
    return kept


def _listed(value: Any) -> Any:
    """With lists for tuples, as JSON gives them back, and whole floats as short as they are."""
    if isinstance(value, float) and value.is_integer() and (value or math.copysign(1, value) > 0):
        return int(value) if abs(value) < 2**53 else value
    if isinstance(value, dict):
        return {key: _listed(inner) for key, inner in value.items()}
    return [_listed(inner) for inner in value] if isinstance(value, list | tuple) else value


def _write_graph(graph: Graph, tensors: Tensors) -> list[Any]:
    numbers: dict[int, int] = {}
    for k in (*(value.id for value in graph.inputs), *graph.constants):
        numbers[k] = len(numbers)
    shapes = {value.id: value.shape for value in graph.inputs}
    shapes |= {k: weight_shape(weight) for k, weight in graph.constants.items()}
    dtypes, taken, ops = graph.dtypes(), set[str](), []
    constants = [_write_weight(weight, tensors) for weight in graph.constants.values()]
    for op in graph.ops:
        back = [len(numbers) - numbers[k] for k in op.inputs]
        written = [shapes[k] for k in op.inputs], [dtypes[k] for k in op.inputs]
        extra = _unusual(op, *written, taken)
        attributes = trimmed([_write_field(op, field, tensors) for field in _fields(type(op))])
        reads = back[0] if len(back) == 1 else back
        ops.append([type(op).__name__, reads, *attributes, *([extra] if extra else [])])
        for k, shape in zip(op.outputs, op.out_shapes, strict=True):
            numbers[k], shapes[k] = len(numbers), shape
    inputs = [_write_value(value, str(k)) for k, value in enumerate(graph.inputs)]
    outputs = []
    for k, value in enumerate(graph.outputs):
        as_usual = [value.shape] == _squeezed([shapes[value.id]])
        name = None if value.name == _output_name(k, graph.outputs) else value.name
        more = trimmed([len(numbers) - numbers[value.id], None if as_usual else value.shape, name])
        outputs.append(more if len(more) > 1 else more[0])
    return trimmed([inputs, ops, outputs, constants or None, graph.structure])


def _write_value(value: Value, usual: str) -> list[Any]:
    dtype = None if value.dtype == "float32" else value.dtype
    return trimmed([list(value.shape), dtype, None if value.name == usual else value.name])


def _output_name(k: int, outputs: Sequence[Any]) -> str:
    return "" if len(outputs) == 1 else str(k)


def _write_field(op: Op, field: Any, tensors: Tensors) -> Any:
    value, usual = getattr(op, field.name), _usual(type(op), field, vars(op))
    is_usual = value is usual or (isinstance(value, type(usual)) and value == usual)
    return None if is_usual else CODECS[str(field.type)].write(value, tensors)


def _unusual(op: Op, shapes: list[Shape], dtypes: list[str], taken: set[str]) -> dict[str, Any]:
    """What of an operation does not follow from what it reads and holds."""
    usual = _usual_name(op, taken)
    name = op.name if isinstance(op, _NAMED) and op.name not in taken else usual
    taken.add(name)
    found = {
        "in": None if list(op.in_shapes) == _usual_reads(op, shapes) else op.in_shapes,
        "dtypes": None if op.dtypes == out_dtypes(op, dtypes) else op.dtypes,
        "name": None if name == usual else name,
    }
    return {key: value for key, value in found.items() if value is not None}


# What is usual.


def _fields(cls: type[Op]) -> list[Any]:
    """The fields of a kind's own."""
    base = {field.name for field in dataclasses.fields(Op)}
    return [field for field in dataclasses.fields(cls) if field.name not in base]


def _usual(cls: type[Op], field: Any, fields: Mapping[str, Any]) -> Any:
    """What a field is unless the file says, of a kind whose fields before it are known."""
    if field.name == "scale" and field.type == "float":
        sketch = fields.get("sketch")
        return math.sqrt(sketch.cols / sketch.rows) if cls is PatchProject and sketch else 1.0
    return False if field.type == "bool" else field.default


def _usual_reads(op: Op, shapes: list[Shape]) -> list[Shape]:
    """In rows, where there are rows; elementwise without axes of 1; else as they were written."""
    if isinstance(op, Dense):
        width = weight_shape(op.weight)[0]
    elif isinstance(op, Project):
        width = op.sketch.cols if op.transpose else op.sketch.rows
    elif isinstance(op, Softmax | Norm):
        width = shapes[0][-1] if shapes and shapes[0] else 1
    else:
        return _squeezed(shapes) if isinstance(op, Map | Affine) else shapes
    return [(math.prod(shape) // max(width, 1), width) for shape in shapes]


def _squeezed(shapes: list[Shape]) -> list[Shape]:
    """Shapes of the same rank without the axes on which all are 1."""
    if len({len(shape) for shape in shapes}) != 1:
        return shapes
    kept = [k for k in range(len(shapes[0])) if any(shape[k] != 1 for shape in shapes)]
    return [tuple(shape[k] for k in kept) for shape in shapes]


def _usual_name(op: Op, taken: set[str]) -> str:
    weights = op_vectors(op)
    name = weights[0].name if weights else type(op).__name__.lower()
    return next(each for each in _numbered(name, len(taken)) if each not in taken)


def _numbered(name: str, start: int) -> Iterator[str]:
    """The name, and then with numbers."""
    yield name
    yield from (f"{name}.{k}" for k in itertools.count(start))


# Graphs and operations, read.


class _Reader(NamedTuple):
    """The file's tensors, which of them have been used, and in how many scans this is."""

    tensors: tuple[tuple[str, Any], ...]
    used: set[str]
    depth: int

    def tensor(self, k: Any) -> tuple[str, Any]:
        """A tensor by its place in the table."""
        require(_int(k) < len(self.tensors), f"there is no tensor {k}")
        self.used.add(self.tensors[k][0])
        return self.tensors[k]


def _read_graph(content: Any, reader: _Reader) -> Graph:
    require(reader.depth <= MAX_DEPTH, f"scans within scans, more than {MAX_DEPTH} deep")
    inputs_, ops_, outputs_, constants_, structure = _filled(content, 5, "a graph")
    shapes: list[Shape] = []
    dtypes: list[str] = []

    def make(shape: Shape, dtype: str) -> int:
        require(math.prod(shape) <= MAX_ELEMENTS, f"{shape} has more than {MAX_ELEMENTS} numbers")
        shapes.append(shape)
        dtypes.append(dtype)
        return len(shapes) - 1

    inputs = []
    for k, value in enumerate(_list(inputs_)):
        shape, dtype, name = _filled(value, 3, "an input")
        shape, dtype = _ints(shape), _text(dtype or "float32")
        inputs.append(Value(make(shape, dtype), _text(name or str(k)), shape, dtype))
    constants = {}
    for value in _list(constants_ or []):
        weight = _read_weight(value, reader)
        constants[make(weight_shape(weight), weight.dtype)] = weight
    ops, taken = [], set[str]()
    for number, row in enumerate(_list(ops_)):
        try:
            op = _read_op(row, shapes, dtypes, taken, reader)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise GraphError(f"operation {number}, {row!r:.60}: {error}") from None
        ops.append(op)
        for shape, dtype in zip(op.out_shapes, op.dtypes, strict=True):
            make(shape, dtype)
    outputs = []
    for k, row in enumerate(_list(outputs_)):
        back, shape, name = _filled(row if isinstance(row, list) else [row], 3, "an output")
        at = _place(back, len(shapes))
        shape = _squeezed([shapes[at]])[0] if shape is None else _ints(shape)
        usual = _output_name(k, _list(outputs_))
        outputs.append(Value(at, usual if name is None else _text(name), shape, dtypes[at]))
    return Graph(tuple(inputs), tuple(ops), tuple(outputs), constants, structure)


def _read_op(
    row: Any, shapes: list[Shape], dtypes: list[str], taken: set[str], reader: _Reader
) -> Op:
    kind, reads, *rest = _list(row)
    require(isinstance(kind, str) and kind in KINDS, f"there is no kind {kind!r:.40}")
    cls, here = KINDS[kind], len(shapes)
    extra = rest.pop() if rest and isinstance(rest[-1], dict) else {}
    require(extra.keys() <= {"in", "dtypes", "name"}, f"unknown {sorted(extra)!r:.80}")
    places = [_place(k, here) for k in (reads if isinstance(reads, list) else [reads])]
    given = [shapes[k] for k in places]
    fields: dict[str, Any] = {}
    names = _fields(cls)
    for field, value in zip(names, _filled(rest, len(names), "attributes"), strict=True):
        usual = _usual(cls, field, fields) if value is None else None
        require(usual is not dataclasses.MISSING, f"{field.name} is missing")
        fields[field.name] = usual if value is None else CODECS[str(field.type)].read(value, reader)
    op = cls(
        name="", inputs=tuple(places), outputs=(), in_shapes=(), out_shapes=(), dtypes=(), **fields
    )
    asked = extra.get("in")
    read = _usual_reads(op, given) if asked is None else [_ints(shape) for shape in _list(asked)]
    op = dataclasses.replace(op, in_shapes=tuple(read))
    made = out_shapes(op)
    asked = extra.get("dtypes")
    gives = out_dtypes(op, [dtypes[k] for k in places]) if asked is None else _list(asked)
    name = _text(extra.get("name", _usual_name(op, taken)))
    taken.add(name)
    require(len(gives) == len(made), f"{len(gives)} dtypes of {len(made)} outputs")
    return dataclasses.replace(
        op, name=name, outputs=tuple(range(here, here + len(made))), out_shapes=tuple(made),
        dtypes=tuple(map(_text, gives)),
    )  # fmt: skip


# JSON values, checked.


def _list(value: Any) -> list[Any]:
    require(isinstance(value, list), f"{value!r:.60} is not a list")
    return value


def _filled(value: Any, length: int, what: str) -> list[Any]:
    """A list with null for what it leaves out."""
    require(len(_list(value)) <= length, f"{what} of {len(value)} entries, not {length}")
    return [*value, *[None] * (length - len(value))]


def _int(value: Any) -> int:
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32
    require(fits, f"{value!r:.60} is not a whole number from 0 to 2^32 - 1")
    return int(value)


def _signed(value: Any) -> int:
    return -_int(-value) if isinstance(value, int) and value < 0 else _int(value)


def _ints(value: Any) -> Shape:
    return tuple(map(_int, _list(value)))


def _float(value: Any) -> float:
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    require(fits and abs(value) < _BEYOND, f"{value!r:.60} is not a finite number of float32")
    return float(value)


def _text(value: Any) -> str:
    require(isinstance(value, str), f"{value!r:.60} is not a string")
    return str(value)


def _bool(value: Any) -> bool:
    require(isinstance(value, bool), f"{value!r:.60} is not true or false")
    return bool(value)


def _place(back: Any, here: int) -> int:
    require(1 <= _int(back) <= here, f"it reads {back} values back, and there are {here}")
    return here - int(back)


# Attributes.


class Codec(NamedTuple):
    """How attributes of one type are written, with the tensors so far, and read."""

    write: Callable[[Any, Tensors], Any]
    read: Callable[[Any, _Reader], Any]


_STEPS = {"reshape": "r", "transpose": "t", "slice": "s", "reverse": "v"}
_NAMES = {letter: step for step, letter in _STEPS.items()}


def put(name: str, tensor: Any, tensors: Tensors) -> str:
    """Adds a tensor under its name, or another if a different one has it; gives the name."""
    base, _, number = name.rpartition(".")
    names = _numbered(name, len(tensors))
    if number.isdigit() and base in tensors:  # maybe a copy of tracing's
        names = itertools.chain([base], names)
    unique = next(k for k in names if k not in tensors or alike(tensors[k], tensor))
    tensors.setdefault(unique, tensor)
    return unique


def _place_of(name: str, tensor: Any, tensors: Tensors) -> int:
    """The place of a tensor in the table."""
    unique = put(name, tensor, tensors)
    return list(tensors).index(unique)


def alike(a: Any, b: Any) -> bool:
    """Whether two stored arrays are the same: tracing may copy one."""
    if a is b or type(a) is not type(b):
        return a is b
    if isinstance(a, QuantizedTensor):
        same = (a.bits, a.axis) == (b.bits, b.axis)
        return same and alike(*map(np.asarray, (a.values, b.values))) and alike(a.scale, b.scale)
    return a.dtype == b.dtype and np.array_equal(a, b)


def _write_weight(weight: Weight | None, tensors: Tensors) -> Any:
    if weight is None:
        return None
    steps = [
        [_STEPS[step], *(rest if step == "slice" else rest[0])] for step, *rest in weight.layout
    ]
    k = _place_of(weight.name, weight.stored, tensors)
    return [k, *steps] if steps else k


def _read_weight(value: Any, reader: _Reader) -> Weight:
    k, *steps = value if isinstance(value, list) else [value]
    layout: list[tuple[Any, ...]] = []
    for row in steps:
        letter, *numbers = _list(row)
        require(isinstance(letter, str) and letter in _NAMES, f"no step {letter!r:.20}")
        step, sizes = _NAMES[letter], _ints(numbers)
        require(step != "slice" or len(sizes) == 3, f"a slice of {sizes}")
        layout.append((step, *sizes) if step == "slice" else (step, sizes))
    return Weight(*reader.tensor(k), tuple(layout))


def _write_window(window: Window, tensors: Tensors) -> list[Any]:
    ones = (1,) * len(window.size)
    sizes = (window.strides, window.padding, window.dilation, window.input_dilation)
    usual = (ones, ((0, 0),) * len(ones), ones, ones)
    kept = [None if a == b else a for a, b in zip(sizes, usual, strict=True)]
    return trimmed([window.size, *kept, None if window.groups == 1 else window.groups])


def _read_window(value: Any, reader: _Reader) -> Window:
    size_, strides, padding, dilation, gaps, groups = _filled(value, 6, "a window")
    size = _ints(size_)
    ones = (1,) * len(size)
    pairs = [(0, 0)] * len(size) if padding is None else map(_ints, _list(padding))
    each = (ones if sizes is None else _ints(sizes) for sizes in (strides, dilation, gaps))
    strides, dilation, gaps = each
    return Window(
        size=size, strides=strides, padding=tuple(pairs), dilation=dilation,  # type: ignore[arg-type]
        input_dilation=gaps, groups=1 if groups is None else _int(groups),
    )  # fmt: skip


def _write_sketch(sketch: rk.Sketch, tensors: Tensors) -> list[Any]:
    seed = np.asarray(sketch.seed, np.uint32).tolist()
    data = None
    if sketch.data is not None:
        arrays = (np.asarray(sketch.data[name]) for name in _DATA)
        data = [_place_of(f"sketch.{len(tensors)}", array, tensors) for array in arrays]
    listed = [[name, value] for name, value in sketch.params]
    return trimmed([sketch.kind, sketch.rows, sketch.cols, *seed, listed or None, data])


_DATA = {"indices": "int32", "scales": "float32"}


def _read_sketch(value: Any, reader: _Reader) -> rk.Sketch:
    kind, *sizes, listed, data = _filled(value, 7, "a sketch")
    rows, cols, low, high = map(_int, sizes)
    seed: Any = np.array([low, high], np.uint32)
    family = rk.family(_text(kind))
    params = {_text(name): _int(number) for name, number in map(_list, _list(listed or []))}
    if not family.weighted:
        made = family.make(0, rows, cols, **params)
        require(data is None, f"a sketch of kind {kind} has no data")
        require(dict(made.params) == params, f"a sketch of kind {kind} has {dict(made.params)}")
        return dataclasses.replace(made, seed=seed)
    require(1 <= rows < 2**31 and 1 <= cols < 2**31 and not params, f"a sketch {rows} x {cols}")
    arrays = {name: reader.tensor(k)[1] for name, k in zip(_DATA, _list(data), strict=True)}
    for name, array in arrays.items():
        fits = isinstance(array, np.ndarray) and (array.shape, array.dtype.name) == (
            (cols,), _DATA[name],
        )  # fmt: skip
        require(fits, f"{name} of a sketch of {cols} columns")
    inside = (arrays["indices"] >= 0) & (arrays["indices"] < rows)
    require(bool(inside.all()), f"a sketch takes rows beyond its {rows}")
    return rk.Sketch(str(kind), rows, cols, seed, (), arrays)


def _write_numbers(array: np.ndarray, tensors: Tensors) -> Any:
    """Floats as short decimals, or as what they divide 1 by; many long ones as a tensor."""
    values = np.asarray(array, np.float32)
    shortest = [float(str(v)) for v in values.ravel()]
    ways: list[list[Any]] = [shortest] if _same_floats(shortest, values) else []
    for digits in (4, 5, 6, 7):
        divisors = [float(f"{1 / v:.{digits}g}") if v else 0.0 for v in shortest]
        if all(divisors) and _same_floats([1 / d for d in divisors], values):
            ways.append(["/", *divisors])
            break
    best = min(ways, key=lambda way: len(json.dumps(way)), default=None)
    if best is None or (len(best) > _FEW and len(json.dumps(best)) > _DIGITS * len(best)):
        return [None, _place_of(f"numbers.{len(tensors)}", values, tensors)]
    if values.ndim == 0:
        return best[0] if len(best) == 1 else f"/{best[1]!r}"
    return best


def _same_floats(values: list[float], expected: np.ndarray) -> bool:
    with np.errstate(over="ignore"):  # of the largest, the inverse of a short divisor may be beyond
        return np.asarray(values, np.float32).tobytes() == expected.tobytes()


def _read_numbers(value: Any, reader: _Reader) -> np.ndarray:
    if isinstance(value, str):
        require(value[:1] == "/", f"{value!r:.40} is not a number")
        return np.asarray(_inverse(float(value[1:])), np.float32)
    if not isinstance(value, list):
        return np.asarray(_float(value), np.float32)
    if value[:1] == [None]:
        array = reader.tensor(value[1] if len(value) == 2 else None)[1]
        plain = isinstance(array, np.ndarray) and array.dtype == np.float32
        require(plain, "numbers are a tensor of float32")
        return array
    if value[:1] == ["/"]:
        return np.asarray([_inverse(v) for v in value[1:]], np.float32)
    return np.asarray([_float(v) for v in value], np.float32)


def _inverse(divisor: Any) -> float:
    require(_float(divisor) != 0.0, "a number divided by 0")
    return _float(1 / divisor)


def _write_index(index: Any, tensors: Tensors) -> list[Any]:
    return [None if runs is None else [n for run in runs for n in run] for runs in index]


def _read_index(value: Any, reader: _Reader) -> Any:
    def runs(flat: Any) -> Any:
        numbers = [_signed(n) for n in _list(flat)]
        require(len(numbers) % 3 == 0 and numbers != [], "runs of a start, a step and a count")
        return tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))

    return tuple(None if flat is None else runs(flat) for flat in _list(value))


def _read_body(value: Any, reader: _Reader) -> Graph:
    return _read_graph(value, reader._replace(depth=reader.depth + 1))


def _plain(read: Callable[[Any], Any]) -> Codec:
    return Codec(lambda value, tensors: value, lambda value, reader: read(value))


CODECS: dict[str, Codec] = {
    "bool": _plain(_bool),
    "int": _plain(_int),
    "float": _plain(_float),
    "str": _plain(_text),
    "tuple[int, ...]": _plain(_ints),
    "tuple[float, ...]": _plain(lambda value: tuple(map(_float, _list(value)))),
    "tuple[tuple[Run, ...] | None, ...]": Codec(_write_index, _read_index),
    "Weight": Codec(_write_weight, _read_weight),
    "Weight | None": Codec(_write_weight, _read_weight),
    "Window": Codec(_write_window, _read_window),
    "rk.Sketch": Codec(_write_sketch, _read_sketch),
    "Float32[np.ndarray, '...']": Codec(_write_numbers, _read_numbers),
    "Graph": Codec(_write_graph, _read_body),
}
"""Every type that an attribute has: a new one is one line here."""
