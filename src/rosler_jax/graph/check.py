"""Whether a graph makes sense: what each kind of operation may read, and what it then gives.

A file's graph is checked here before anything of it is computed, so a rule allocates nothing and
its time does not depend on the sizes that it looks at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from rosler_jax.graph.functions import FUNCTIONS, result_dtype
from rosler_jax.graph.graph import Graph, op_vectors
from rosler_jax.graph.kinds import (
    Affine,
    Concat,
    Conv,
    Convolve,
    Cumulative,
    Dense,
    Gather,
    KernelGrad,
    Map,
    MatMul,
    Norm,
    Op,
    PatchProject,
    Pool,
    Project,
    Reduce,
    Scan,
    Scatter,
    Slice,
    Softmax,
    Take,
    Transpose,
    Unpool,
    Window,
)
from rosler_jax.graph.weight import Layout, Shape, Weight

MAX_ELEMENTS = 2**31 - 1  # of one value: what a runtime's indices count
MAX_DEPTH = 8  # of scans within scans
DTYPES = ("float32", "int32", "bool")


class GraphError(ValueError):
    """A graph that no model has; the message says which operation, and what is wrong with it."""


def require(condition: bool, message: str) -> None:
    """Raises GraphError with the message unless the condition holds."""
    if not condition:
        raise GraphError(message)


def laid_shape(shape: Shape, layout: Layout) -> Shape:
    """The shape of an array after the steps of a layout, without the array.

    Raises:
      GraphError: for a step that does not fit.

    Example:
      >>> laid_shape((2, 3), (("transpose", (1, 0)), ("slice", 0, 1, 3)))
      (2, 2)
    """
    for step, *rest in layout:
        if step == "reshape":
            require(
                math.prod(rest[0]) == math.prod(shape) and min(rest[0], default=1) >= 0,
                f"a layout reshapes {shape} to {rest[0]}",
            )
            shape = tuple(rest[0])
        elif step == "transpose":
            require(sorted(rest[0]) == [*range(len(shape))], f"a layout orders {shape} {rest[0]}")
            shape = tuple(shape[k] for k in rest[0])
        elif step == "slice":
            axis, start, stop = rest
            fits = 0 <= axis < len(shape) and 0 <= start < stop <= shape[axis]
            require(fits, f"a layout takes {start}:{stop} of axis {axis} of {shape}")
            shape = (*shape[:axis], stop - start, *shape[axis + 1 :])
        else:
            known = step == "reverse" and all(0 <= k < len(shape) for k in rest[0])
            require(known, f"a layout has the step {(step, *rest)!r:.60} for the shape {shape}")
    return shape


def weight_shape(weight: Weight) -> Shape:
    """The laid out array's shape, without the array."""
    return laid_shape(tuple(map(int, weight.stored.shape)), weight.layout)


def _bias(bias: Weight | None, n: int) -> None:
    if bias is not None:
        require(weight_shape(bias) == (n,), f"a vector of {n} is wanted, not {weight_shape(bias)}")


def _window(window: Window, shape: Shape) -> tuple[Shape, int]:
    """Spatial sizes of a window's output, and the channels of its input."""
    *spatial, channels = shape
    each = (window.size, window.strides, window.dilation, window.input_dilation)
    require(
        all(len(sizes) == len(spatial) > 0 and min(sizes) >= 1 for sizes in each)
        and len(window.padding) == len(spatial)
        and all(len(pair) == 2 and min(pair) >= 0 for pair in window.padding),
        f"a window over {len(spatial)} axes has sizes of at least 1 each, and paddings of 0",
    )
    require(
        window.groups >= 1 and channels % window.groups == 0,
        f"{channels} channels in {window.groups} groups",
    )
    padded = math.prod(window.padded(tuple(spatial))) * channels
    require(padded <= MAX_ELEMENTS, f"{tuple(spatial)} padded to more than {MAX_ELEMENTS} numbers")
    out = window.outputs(tuple(spatial))
    require(min(out) >= 1, f"a window of {window.size} does not fit {tuple(spatial)}")
    return out, channels


def _dense(op: Dense) -> list[Shape]:
    (rows, m), shape = op.in_shape, weight_shape(op.weight)
    require(len(shape) == 2 and shape[0] == m, f"rows of {m} with a matrix {shape}")
    _bias(op.bias, shape[1])
    return [(rows, shape[1])]


def _conv(op: Conv) -> list[Shape]:
    shape = weight_shape(op.weight)
    out, channels = _window(op.window, op.in_shape)
    n, g = shape[-1] if shape else 0, op.window.groups
    require(
        shape == (*op.window.size, channels // g, n) and n % g == 0,
        f"a kernel {shape} for {channels} channels in {g} groups and a window {op.window.size}",
    )
    _bias(op.bias, n)
    return [(*out, n)]


def _project(op: Project) -> list[Shape]:
    vectors, inner = op.in_shape
    m, n = op.sketch.rows, op.sketch.cols
    m, n = (n, m) if op.transpose else (m, n)
    require(inner == m, f"vectors of {inner} with a sketch of {m}")
    if op.bias is not None:
        size = math.prod(weight_shape(op.bias))
        require(size % n == 0 and vectors * n % size == 0, f"a bias of {size} for {vectors} x {n}")
    return [(vectors, n)]


def _patch_project(op: PatchProject) -> list[Shape]:
    out, channels = _window(op.window, op.in_shape)
    patch = math.prod(op.window.size) * channels // op.window.groups
    require(op.sketch.rows == patch, f"patches of {patch} with a sketch of {op.sketch.rows}")
    require(patch * op.sketch.cols <= MAX_ELEMENTS, f"a sketch {patch} x {op.sketch.cols}")
    return [(*out, op.window.groups * op.sketch.cols)]


def _matmul(op: MatMul) -> list[Shape]:
    (b, m, k), (c, *rest) = op.in_shapes
    n, l = rest if op.transpose else rest[::-1]
    require((b, k) == (c, l), f"matrices {op.in_shapes[0]} with {op.in_shapes[1]}")
    return [(b, m, n)]


def _affine(op: Affine) -> list[Shape]:
    for numbers in (op.center, op.factor):
        fits = np.shape(numbers) in ((), (1,), op.in_shape[-1:])
        require(fits, f"numbers of shape {np.shape(numbers)} for {op.in_shape}")
    return [op.in_shape]


def _map(op: Map) -> list[Shape]:
    require(op.function in FUNCTIONS, f"there is no function {op.function!r:.40}")
    function, given = FUNCTIONS[op.function], len(op.numbers)
    arity, wanted = function.arity, function.numbers
    require(len(op.inputs) == arity, f"{op.function} takes {arity} values")
    require(given == wanted, f"{op.function} takes {wanted} numbers, not {given}")
    try:
        return [np.broadcast_shapes(*op.in_shapes)]
    except ValueError:
        raise GraphError(f"{op.in_shapes} do not broadcast") from None


def _axes(axes: Sequence[int], rank: int) -> None:
    fits = len({*axes}) == len(axes) > 0 and all(0 <= k < rank for k in axes)
    require(fits, f"axes {tuple(axes)} of {rank}")


_ARITHMETIC = ("sum", "prod", "max", "min")


def _reduce(op: Reduce) -> list[Shape]:
    known = (*_ARITHMETIC, "all", "any", "argmax", "argmin")
    require(op.function in known, f"there is no reduction {op.function!r:.40}")
    _axes(op.axes, len(op.in_shape))
    require(not op.function.startswith("arg") or len(op.axes) == 1, f"{op.function} has one axis")
    return [tuple(n for k, n in enumerate(op.in_shape) if k not in op.axes)]


def _pool(op: Pool) -> list[Shape]:
    require(op.function in ("max", "sum"), f"there is no pooling {op.function!r:.40}")
    require(op.window.groups == 1, "a pool has no groups")
    out, channels = _window(op.window, op.in_shape)
    return [(*out, channels)]


def _take(op: Take) -> list[Shape]:
    require(len(op.index) == len(op.in_shape), f"{len(op.index)} axes of {op.in_shape}")
    shape = []
    for runs, size in zip(op.index, op.in_shape, strict=True):
        for start, step, count in runs or ():
            ends = (start, start + (count - 1) * step)
            inside = start == -1 or all(0 <= end < size for end in ends)
            require(count >= 1 and inside, f"positions {(start, step, count)} of {size}")
        shape.append(size if runs is None else sum(count for _, _, count in runs))
    return [tuple(shape)]


def _transpose(op: Transpose) -> list[Shape]:
    require(len(op.axes) == len(op.in_shape), f"axes {op.axes} of {op.in_shape}")
    if op.axes:
        _axes(op.axes, len(op.in_shape))
    return [tuple(op.in_shape[k] for k in op.axes)]


def _concat(op: Concat) -> list[Shape]:
    first = op.in_shape
    require(0 <= op.axis < len(first), f"axis {op.axis} of {first}")
    cut = [(*s[: op.axis], *s[op.axis + 1 :]) for s in op.in_shapes]
    alike = all(
        len(s) == len(first) and c == cut[0] for s, c in zip(op.in_shapes, cut, strict=True)
    )
    require(alike, f"{op.in_shapes} one behind the other")
    whole = sum(shape[op.axis] for shape in op.in_shapes)
    return [(*first[: op.axis], whole, *first[op.axis + 1 :])]


def _norm(op: Norm) -> list[Shape]:
    rows, n = op.in_shape
    _bias(op.scale, n)
    _bias(op.bias, n)
    return [(rows, n)]


def _gather(op: Gather) -> list[Shape]:
    (_, d), (n,) = op.in_shapes
    return [(n, d)]


def _cumulative(op: Cumulative) -> list[Shape]:
    require(op.function in _ARITHMETIC, f"there is no running {op.function!r:.40}")
    return [op.in_shape]


def _slice(op: Slice) -> list[Shape]:
    (outer, n, inner), start = op.in_shapes
    require(1 <= op.size <= n and math.prod(start) == 1, f"{op.size} of {n} from {start}")
    return [(outer, op.size, inner)]


def _scan(op: Scan) -> list[Shape]:
    body, held = op.body, op.shared + op.carries
    require(
        min(op.shared, op.carries) >= 0 and held <= len(op.inputs) == len(body.inputs)
        and op.carries <= len(body.outputs) and op.length >= 1,
        f"{op.shared} shared values and {op.carries} carries of {len(op.inputs)} for a body of "
        f"{len(body.inputs)}, {op.length} times",
    )  # fmt: skip
    for k, (value, shape) in enumerate(zip(body.inputs, op.in_shapes, strict=True)):
        wanted = value.shape if k < held else (op.length, *value.shape)
        require(shape == wanted, f"input {k} of shape {shape}, and the body takes {wanted}")
    for first, last in zip(body.inputs[op.shared : held], body.outputs, strict=False):
        same = (first.shape, first.dtype) == (last.shape, last.dtype)
        require(same, f"a carry of {first.shape} {first.dtype} becomes {last.shape} {last.dtype}")
    shapes = [value.shape for value in body.outputs]
    return [*shapes[: op.carries], *((op.length, *shape) for shape in shapes[op.carries :])]


def _convolve(op: Convolve) -> list[Shape]:
    shape = op.in_shapes[1]
    out, channels = _window(op.window, op.in_shape)
    g = op.window.groups
    wanted = (*op.window.size, channels // g, shape[-1] if shape else 0)
    require(shape == wanted and shape[-1] % g == 0, f"a kernel {shape} for {wanted}")
    return [(*out, shape[-1])]


def _kernel_grad(op: KernelGrad) -> list[Shape]:
    out, channels = _window(op.window, op.in_shape)
    given, g = op.in_shapes[1], op.window.groups
    fits = given[:-1] == out and given[-1] % g == 0
    require(fits, f"a cotangent {given} for outputs {out}")
    return [(*op.window.size, channels // g, given[-1])]


def _unpool(op: Unpool) -> list[Shape]:
    out, channels = _window(op.window, op.in_shape)
    wanted = (*out, channels)
    require(op.in_shapes[1] == wanted, f"a cotangent {op.in_shapes[1]} for outputs {wanted}")
    return [op.in_shape]


def _scatter(op: Scatter) -> list[Shape]:
    (n,), (m, d) = op.in_shapes
    require(n == m and op.size >= 1, f"{n} positions for {m} rows among {op.size}")
    return [(op.size, d)]


SHAPES: dict[type[Op], tuple[tuple[int | None, ...] | None, Callable[[Any], list[Shape]]]] = {
    Dense: ((2,), _dense),
    Conv: ((None,), _conv),
    Project: ((2,), _project),
    PatchProject: ((None,), _patch_project),
    MatMul: ((3, 3), _matmul),
    Affine: ((None,), _affine),
    Map: (None, _map),
    Reduce: ((None,), _reduce),
    Pool: ((None,), _pool),
    Take: ((None,), _take),
    Transpose: ((None,), _transpose),
    Concat: (None, _concat),
    Softmax: ((2,), lambda op: [op.in_shape]),
    Norm: ((2,), _norm),
    Gather: ((2, 1), _gather),
    Cumulative: ((3,), _cumulative),
    Slice: ((3, None), _slice),
    Scan: (None, _scan),
    Convolve: ((None, None), _convolve),
    KernelGrad: ((None, None), _kernel_grad),
    Unpool: ((None, None), _unpool),
    Scatter: ((1, 2), _scatter),
}
"""Of each kind, how many axes its inputs have (None: any; for all: any number of inputs), and the
shapes of its outputs."""

_SAME = (Pool, Take, Transpose, Concat, Gather, Cumulative, Slice, MatMul)
_WHOLE: dict[type[Op], int] = {Gather: 1, Slice: 1, Scatter: 0}  # the input that is a whole number


def out_shapes(op: Op) -> list[Shape]:
    """The shapes of an operation's outputs, from those that it reads and what it holds.

    Raises:
      GraphError: for inputs that it does not take.
    """
    ranks, rule = SHAPES[type(op)]
    require(len(op.in_shapes) == len(op.inputs) > 0, "an operation reads at least one value")
    if ranks is not None:
        require(len(op.inputs) == len(ranks), f"it reads {len(ranks)} values")
        for rank, shape in zip(ranks, op.in_shapes, strict=True):
            require(rank in (None, len(shape)), f"a value in shape {shape}, not of {rank} axes")
    windowed = (Conv, PatchProject, Pool, Convolve, KernelGrad, Unpool)
    require(type(op) not in windowed or len(op.in_shape) > 1, "no spatial axes")
    return rule(op)


def out_dtypes(op: Op, given: Sequence[str]) -> tuple[str, ...]:
    """The dtypes of an operation's outputs for inputs of those dtypes, unless it says otherwise."""
    if isinstance(op, Scan):
        return tuple(value.dtype for value in op.body.outputs)
    if isinstance(op, Map):
        return (result_dtype(op.function, tuple(given)),)
    if isinstance(op, Reduce) and op.function in ("argmax", "argmin", "all", "any"):
        return ("int32" if op.function.startswith("arg") else "bool",)
    if isinstance(op, Scatter):
        return (given[1],)
    return (given[0] if isinstance(op, (*_SAME, Reduce)) else "float32",)


def check(graph: Graph, depth: int = 0) -> None:
    """Refuses a graph that makes no sense.

    Raises:
      GraphError: for values that nothing has made, shapes that do not fit, arrays of more than
        2^31 - 1 numbers, names that are not unique, or scans too deep; names the operation.

    Example:
      >>> from rosler_jax.graph import Value
      >>> check(Graph((Value(0, "0", (2,)),), (), (Value(1, "0", (2,)),)))
      Traceback (most recent call last):
      rosler_jax.graph.check.GraphError: output '0' is value 1, which nothing makes
    """
    require(depth <= MAX_DEPTH, f"scans within scans, more than {MAX_DEPTH} deep")
    sizes: dict[int, int] = {}
    dtypes: dict[int, str] = {}

    def make(k: int, shape: Shape, dtype: str) -> None:
        require(k not in sizes, f"value {k} is made twice")
        require(dtype in (*DTYPES, "uint32"), f"value {k} has the dtype {dtype!r:.40}")
        require(all(n >= 1 for n in shape), f"value {k} of shape {shape} has no numbers")
        sizes[k], dtypes[k] = math.prod(shape), dtype
        require(sizes[k] <= MAX_ELEMENTS, f"{shape} has more than {MAX_ELEMENTS} numbers")

    for value in graph.inputs:
        make(value.id, value.shape, value.dtype)
    for k, weight in graph.constants.items():
        make(k, weight_shape(weight), weight.dtype)
    _unique(op.name for op in graph.ops)
    for number, op in enumerate(graph.ops):
        try:
            _check_op(op, sizes, dtypes, depth)
            for k, shape, dtype in zip(op.outputs, op.out_shapes, op.dtypes, strict=True):
                make(k, shape, dtype)
        except GraphError as error:
            raise GraphError(f"operation {number}, {type(op).__name__}: {error}") from None
    for value in graph.outputs:
        require(
            value.id in sizes, f"output {value.name!r} is value {value.id}, which nothing makes"
        )
        fits = math.prod(value.shape) == sizes[value.id] and value.dtype == dtypes[value.id]
        require(
            fits, f"output {value.name!r} of shape {value.shape} {value.dtype} is not its value"
        )
    if depth == 0:
        _check_structure(graph.structure, len(graph.outputs))


def _check_op(op: Op, sizes: dict[int, int], dtypes: dict[int, str], depth: int) -> None:
    for k, shape in zip(op.inputs, op.in_shapes, strict=True):
        require(k in sizes, f"it reads value {k}, which nothing before it makes")
        fits = math.prod(shape) == sizes[k] and all(n >= 1 for n in shape)
        require(fits, f"it reads value {k} of {sizes[k]} numbers in shape {shape}")
    at = _WHOLE.get(type(op))
    if at is not None and at < len(op.inputs):
        dtype = dtypes[op.inputs[at]]
        require(dtype in ("int32", "uint32"), f"input {at} is {dtype}, not whole numbers")
    if isinstance(op, Scan):
        check(op.body, depth + 1)
    for weight in op_vectors(op):
        require(weight.dtype == "float32", f"{weight.name!r} holds no float32")
    shapes = out_shapes(op)
    require(list(op.out_shapes) == shapes, f"it gives {shapes}, not {op.out_shapes}")
    known = len(op.dtypes) == len(shapes) and all(dtype in DTYPES for dtype in op.dtypes)
    require(known, f"dtypes {op.dtypes} of {len(shapes)} outputs")


def _unique(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        require(name not in seen, f"two operations are named {name!r:.80}")
        seen.add(name)


def _check_structure(node: Any, outputs: int) -> None:
    """Nested lists and dicts (of strings) of the outputs' places."""
    if node is None:
        return require(outputs == 1, f"{outputs} outputs have no structure")
    if isinstance(node, dict):
        require(all(isinstance(key, str) for key in node), "a structure's keys are strings")
    if isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            if inner is not None:
                _check_structure(inner, outputs)
    else:
        place = isinstance(node, int) and not isinstance(node, bool) and 0 <= node < outputs
        require(place, f"a structure with {node!r:.40} for {outputs} outputs")
