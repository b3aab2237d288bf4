"""Random graphs of all kinds, by a seed: DAGs whose values are read again and again."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from hand_made import Maker

import rosler_kernels as rk
from rosler_jax.graph import Graph, Weight, Window
from rosler_jax.graph.kinds import (
    Affine,
    Concat,
    Conv,
    Cumulative,
    Dense,
    Gather,
    Map,
    MatMul,
    Norm,
    PatchProject,
    Pool,
    Project,
    Reduce,
    Scan,
    Slice,
    Softmax,
    Take,
    Transpose,
    count,
)

SMOOTH = (
    "gelu", "gelu_exact", "tanh", "sigmoid", "silu", "softplus", "elu", "relu", "hard_sigmoid",
    "hard_swish", "neg", "abs", "sin", "cos", "erf", "erfc", "cbrt",
)  # fmt: skip
POSITIVE = ("log", "log1p", "sqrt", "rsqrt")
STEPS = ("floor", "ceil", "round", "sign")
"""Functions that jump: for inputs of the graph only, which all targets have to the last bit."""
SKETCHES = ("srht", "rademacher", "sparse_sign", "block_perm", "rows_uniform", "pool")


class Random:
    """A graph in the making, and the dice."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.m = Maker()
        self.exact: list[int] = []
        self.floats: list[int] = []
        self.names = 0

    def number(self, low: int, high: int) -> int:
        """From low to high, both among them."""
        return int(self.rng.integers(low, high + 1))

    def of(self, choices: Any) -> Any:
        """One of several."""
        return choices[self.number(0, len(choices) - 1)]

    def value(self) -> int:
        """A value of floats, rather a late one."""
        return self.floats[-min(len(self.floats), self.number(1, 4))]

    def weight(self, *shape: int, scale: float = 1.0) -> Weight:
        """A new stored array."""
        self.names += 1
        values = (self.rng.normal(size=shape) * scale).astype(np.float32)
        return Weight(f"w{self.names}", values)

    def view(self, x: int, axes: int) -> tuple[int, ...]:
        """The numbers of a value in so many axes."""
        shape, rest = list[int](), count(self.m.shapes[x])
        for _ in range(axes - 1):
            shape.append(self.of([d for d in range(1, 9) if rest % d == 0]))
            rest //= shape[-1]
        shape.insert(self.number(0, axes - 1), rest)
        return tuple(shape)

    def bias(self, n: int) -> Weight | None:
        """Perhaps a bias."""
        return self.weight(n) if self.number(0, 2) else None


def _dense(r: Random) -> int:
    rows, m = r.view(x := r.value(), 2)
    n = r.number(1, 9)
    weight = r.weight(m, n, scale=m**-0.5)
    return r.m.add(Dense, x, shapes=[(rows, m)], weight=weight, bias=r.bias(n))


def _window(r: Random, spatial: tuple[int, ...], groups: int = 1, gaps: bool = True) -> Window:
    def each(high: int) -> tuple[int, ...]:
        return tuple(r.number(1, high) for _ in spatial)

    size = tuple(r.number(1, min(3, n)) for n in spatial)
    reach = [(k - 1) // 2 for k in size]
    dilation = tuple(
        d if (k - 1) * d < n else 1 for k, d, n in zip(size, each(2), spatial, strict=True)
    )
    return Window(
        size=size, strides=each(2), dilation=dilation, groups=groups,
        padding=tuple((r.number(0, k), r.number(0, k)) for k in reach),
        input_dilation=each(2) if gaps and not r.number(0, 3) else (1,) * len(spatial),
    )  # fmt: skip


def _conv(r: Random) -> int:
    *spatial, c = r.view(x := r.value(), r.number(2, 4))
    groups = r.of([g for g in range(1, c + 1) if c % g == 0 and g <= 8])
    groups = c if c <= 12 and not r.number(0, 2) else groups
    window = _window(r, tuple(spatial), groups)
    n = groups * r.of([1, 1, 2])
    taps = math.prod(window.size) * c // groups
    weight = r.weight(*window.size, c // groups, n, scale=taps**-0.5)
    return r.m.add(Conv, x, shapes=[(*spatial, c)], weight=weight, bias=r.bias(n), window=window)


def _project(r: Random) -> int:
    vectors, m = r.view(x := r.value(), 2)
    transpose = bool(r.number(0, 1))
    n = r.number(m, m + 6) if transpose else r.number(1, m)
    sketch = rk.make(r.of((*SKETCHES, "dct")), r.number(0, 999), *((n, m) if transpose else (m, n)))
    bias = r.weight(n) if transpose and r.number(0, 1) else None
    return r.m.add(
        Project, x, shapes=[(vectors, m)], sketch=sketch, transpose=transpose, scale=0.7, bias=bias
    )


def _patch_project(r: Random) -> int:
    *spatial, c = r.view(x := r.value(), r.number(2, 4))
    groups = r.of([g for g in range(1, c + 1) if c % g == 0 and g <= 4])
    window = _window(r, tuple(spatial), groups)
    taps = math.prod(window.size) * c // groups
    sketch = rk.make(r.of(SKETCHES), r.number(0, 999), taps, r.number(1, min(taps, 5)))
    return r.m.add(PatchProject, x, shapes=[(*spatial, c)], sketch=sketch, scale=0.6, window=window)


def _matmul(r: Random) -> int:
    b, m, k = r.view(x := r.value(), 3)
    n = r.number(1, 6)
    transpose = bool(r.number(0, 1))
    y = r.value()
    shape = (b, n, k) if transpose else (b, k, n)
    if count(r.m.shapes[y]) != count(shape):
        y = r.m.constant(r.weight(*shape, scale=k**-0.5))
    return r.m.add(MatMul, x, y, shapes=[(b, m, k), shape], transpose=transpose)


def _affine(r: Random) -> int:
    shape = r.view(x := r.value(), r.number(1, 3))
    center, factor = (
        r.rng.normal(size=r.of([(), (shape[-1],)])).astype(np.float32) for _ in range(2)
    )
    return r.m.add(Affine, x, shapes=[shape], center=center, factor=factor)


def _function(r: Random) -> int:
    x = r.value()
    kind = r.number(0, 4)
    if kind == 0:
        x = r.m.add(Map, r.m.add(Map, x, function="abs"), _one(r, 0.5), function="add")
        return r.m.add(Map, x, function=r.of(POSITIVE))
    if kind == 1:
        x = r.m.add(Map, x, function="clamp", numbers=(-1.5, 1.25))
        if r.number(0, 1):
            return r.m.add(Map, x, function="power", numbers=(float(r.number(2, 7)),))
        return r.m.add(Map, x, function=r.of(["exp", "expm1"]))
    if kind == 2:
        return r.m.add(Map, r.of(r.exact), function=r.of(STEPS))
    return r.m.add(Map, x, function=r.of(SMOOTH))


def _one(r: Random, value: float) -> int:
    r.names += 1
    return r.m.constant(Weight(f"w{r.names}", np.array(value, np.float32)))


def _two(r: Random) -> int:
    shape = r.view(x := r.value(), r.number(1, 3))
    others = [y for y in r.floats if count(r.m.shapes[y]) == count(shape)]
    y, other = r.of(others), shape
    function = r.of(["add", "sub", "mul", "max", "min", "atan2", "div", "pow", "rem"])
    if r.number(0, 1):
        other = tuple(r.of([1, n]) for n in shape)
        if function not in ("div", "atan2"):  # of the same number of axes
            other = other[r.number(0, len(shape) - 1) :]
        y = r.m.constant(r.weight(*other))
    if function in ("div", "pow"):  # by a number from 1/2 on; of a number from 1/2 on
        least = r.m.add(Map, r.m.add(Map, y, function="abs"), _one(r, 0.5), function="add")
        pair = [x, least] if function == "div" else [least, x]
        shapes = [shape, other] if function == "div" else [other, shape]
        if function == "pow":
            pair[1] = r.m.add(Map, x, function="clamp", numbers=(-2.0, 2.0))
        return r.m.add(Map, *pair, shapes=shapes, function=function)
    if function == "rem":  # jumps
        x = r.of(r.exact)
        return r.m.add(Map, x, _one(r, 0.75), function=function)
    pair, shapes = [x, y], [shape, other]
    if r.number(0, 1):
        pair, shapes = pair[::-1], shapes[::-1]
    return r.m.add(Map, *pair, shapes=shapes, function=function)


def _whole(r: Random) -> int:
    """Whole numbers and truth values, and back to floats."""
    x = r.of(r.exact)
    shape = r.m.shapes[x]
    a = r.m.add(Map, r.m.add(Map, x, _one(r, 4.0), function="mul"), function="int32")
    whole = Weight(f"i{r.names}", r.rng.integers(-5, 6, shape).astype(np.int32))
    b = r.m.constant(whole)
    r.names += 1
    if r.number(0, 1):
        function = r.of(["add", "sub", "mul", "div", "rem", "max", "min"])
        y = r.m.add(Map, a, b, function=function)
        y = r.m.add(Map, y, function=r.of(["neg", "abs", "sign", "relu", "int32"]))
        return r.m.add(Map, y, function="float32")
    first = r.m.add(Map, a, b, function=r.of(["eq", "ne", "lt", "le", "gt", "ge"]))
    second = r.m.add(Map, x, function=r.of(["isfinite", "bool"]))
    test = r.m.add(Map, first, second, function=r.of(["and", "or", "xor"]))
    if r.number(0, 1):
        test = r.m.add(Map, test, function="not")
    return r.m.add(Map, test, x, _one(r, 0.5), function="select")


def _reduce(r: Random) -> int:
    shape = r.view(x := r.value(), r.number(1, 4))
    axes = tuple(k for k in range(len(shape)) if r.number(0, 1)) or (0,)
    function = r.of(["sum", "max", "min", "prod", "argmax", "argmin", "all", "any"])
    if function == "sum":
        scale = 1.0 / math.prod(shape[k] for k in axes)
        return r.m.add(Reduce, x, shapes=[shape], function=function, axes=axes, scale=scale)
    if function == "prod":
        x = r.m.add(Map, x, function="tanh")
    if function in ("argmax", "argmin"):
        shape = r.m.shapes[x := r.of(r.exact)]
        x = r.m.add(Reduce, x, function=function, axes=(r.number(0, len(shape) - 1),))
        return r.m.add(Map, x, function="float32")
    if function in ("all", "any"):
        shape = r.m.shapes[x := r.of(r.exact)]
        x = r.m.add(Map, x, _one(r, -1.0 if function == "all" else 1.0), function="gt")
        x = r.m.add(Reduce, x, function=function, axes=(r.number(0, len(shape) - 1),))
        return r.m.add(Map, x, function="float32")
    return r.m.add(Reduce, x, shapes=[shape], function=function, axes=axes)


def _pool(r: Random) -> int:
    *spatial, c = r.view(x := r.value(), r.number(2, 4))
    window = _window(r, tuple(spatial), gaps=False)
    if r.number(0, 1):  # side by side
        ones, none = (1,) * len(spatial), ((0, 0),) * len(spatial)
        window = Window(
            size=window.size, strides=window.size, padding=none, dilation=ones, input_dilation=ones
        )
    function = r.of(["max", "sum"])
    scale = 1.0 / math.prod(window.size) if function == "sum" else 1.0
    return r.m.add(Pool, x, shapes=[(*spatial, c)], function=function, window=window, scale=scale)


def _take(r: Random) -> int:
    shape = r.view(x := r.value(), r.number(1, 3))
    index: list[Any] = []
    for n in shape:
        kind = r.number(0, 5)
        start = r.number(0, n - 1)
        if kind == 0:
            index.append(((start, 1, r.number(1, n - start)),))
        elif kind == 1:
            index.append(((start, -1, r.number(1, start + 1)),))
        elif kind == 2:
            index.append(((-1, 0, r.number(1, 2)), (0, 1, n), (-1, 0, 1)))
        elif kind == 3:
            index.append(tuple((r.number(0, n - 1), 1, 1) for _ in range(r.number(1, 5))))
        elif kind == 4:
            index.append(((0, 2, (n + 1) // 2), (start, 0, 2)))
        else:
            index.append(None)
    return r.m.add(Take, x, shapes=[shape], index=tuple(index), fill=0.25)


def _transpose(r: Random) -> int:
    shape = r.view(x := r.value(), r.number(2, 4))
    axes = tuple(int(k) for k in r.rng.permutation(len(shape)))
    return r.m.add(Transpose, x, shapes=[shape], axes=axes)


def _concat(r: Random) -> int:
    outer, inner = r.view(x := r.value(), 2)
    values, shapes = [x], [(outer, inner)]
    for y in r.floats[-4:]:
        if count(r.m.shapes[y]) % outer == 0 and count(r.m.shapes[y]) < 300:
            values.append(y)
            shapes.append((outer, count(r.m.shapes[y]) // outer))
    return r.m.add(Concat, *values, shapes=shapes, axis=1)


def _softmax(r: Random) -> int:
    return r.m.add(Softmax, x := r.value(), shapes=[r.view(x, 2)], log=bool(r.number(0, 1)))


def _norm(r: Random) -> int:
    shape = r.view(x := r.value(), 2)
    scale, bias = (r.weight(shape[1]) if r.number(0, 1) else None for _ in range(2))
    return r.m.add(
        Norm, x, shapes=[shape], center=bool(r.number(0, 1)), epsilon=1e-2, scale=scale, bias=bias
    )


def _gather(r: Random) -> int:
    ids = r.m.add(Map, r.of(r.exact), function="abs")
    ids = r.m.add(Map, r.m.add(Map, ids, _one(r, 2.0), function="mul"), function="int32")
    ids = r.m.add(Map, ids, function="clamp", numbers=(0.0, 4.0))
    n = count(r.m.shapes[ids])
    table = r.m.constant(r.weight(5, r.number(1, 4)))
    return r.m.add(Gather, table, ids, shapes=[r.m.shapes[table], (n,)], wrap=bool(r.number(0, 1)))


def _cumulative(r: Random) -> int:
    shape = r.view(x := r.value(), 3)
    function = r.of(["sum", "max", "min", "prod"])
    if function == "prod":
        x = r.m.add(Map, x, function="tanh")
    return r.m.add(Cumulative, x, shapes=[shape], function=function, reverse=bool(r.number(0, 1)))


def _slice(r: Random) -> int:
    shape = r.view(x := r.value(), 3)
    start = r.m.add(Reduce, r.of(r.exact), function="argmax", axes=(0,))
    start = r.m.add(Take, start, shapes=[(count(r.m.shapes[start]),)], index=(((0, 1, 1),),))
    return r.m.add(Slice, x, start, shapes=[shape, ()], size=r.number(1, shape[1]))


def _scan(r: Random, depth: int = 1) -> int:
    length, width = r.view(x := r.value(), 2)
    state = r.number(1, 5)
    first = r.m.constant(r.weight(state))
    cell = r.m.constant(r.weight(state, state, scale=state**-0.5))
    inner = Random(r.number(0, 10**6))
    shared, carry, kept, row = (
        inner.m.input(state, state), inner.m.input(state), inner.m.input(2), inner.m.input(width)
    )  # fmt: skip
    inner.names, inner.floats, inner.exact = 1000 * depth + r.names, [row], [row]
    r.names += 50
    moved = inner.m.add(
        MatMul, carry, shared, shapes=[(1, 1, state), (1, state, state)], transpose=False
    )
    given = inner.m.add(
        Dense, row, shapes=[(1, width)], weight=inner.weight(width, state, scale=width**-0.5)
    )
    if depth < 2 and r.number(0, 1):
        inner.floats = [given]
        given = _scan(inner, 2)
        n = count(inner.m.shapes[given])
        given = inner.m.add(
            Dense, given, shapes=[(1, n)], weight=inner.weight(n, state, scale=n**-0.5)
        )
    new = inner.m.add(Map, moved, given, shapes=[(state,), (state,)], function="add")
    new = inner.m.add(Map, new, function="tanh")
    two = r.m.constant(r.weight(2))
    last, same, said, again = r.m.add(
        Scan, cell, first, two, x, shapes=[(state, state), (state,), (2,), (length, width)],
        shared=1, carries=2, length=length, reverse=bool(r.number(0, 1)),
        body=inner.m.graph(new, kept, given, row),
    )  # fmt: skip
    r.floats += [last, same, again]
    return said


MAKERS: dict[str, Callable[[Random], int]] = {
    "Dense": _dense, "Conv": _conv, "Project": _project, "PatchProject": _patch_project,
    "MatMul": _matmul, "Affine": _affine, "Map": _function, "Broadcast": _two, "Whole": _whole,
    "Reduce": _reduce, "Pool": _pool, "Take": _take, "Transpose": _transpose, "Concat": _concat,
    "Softmax": _softmax, "Norm": _norm, "Gather": _gather, "Cumulative": _cumulative,
    "Slice": _slice, "Scan": _scan,
}  # fmt: skip
"""What adds an operation of each kind, or a few."""


def random_graph(
    seed: int, kinds: Collection[str] = tuple(MAKERS), ops: int = 8
) -> tuple[Graph, list[np.ndarray]]:
    """A random graph, and inputs for it.

    Args:
      seed: of everything.
      kinds: keys of ``MAKERS``.
      ops: how often one of them is called.
    """
    r = Random(seed)
    r.floats = [r.m.input(r.number(1, 7), r.of([1, 2, 3, 4, 6, 12])) for _ in range(2)]
    r.exact = list(r.floats)
    for _ in range(ops):
        x = MAKERS[r.of(sorted(kinds))](r)
        size = count(r.m.shapes[x])
        if size > 600:
            x = r.m.add(Take, x, shapes=[(size,)], index=(((0, size // 500, 500),),))
        if r.m.dtypes[x] == "float32":
            r.floats.append(x)
    outputs = [r.floats[-1], *(r.of(r.floats) for _ in range(r.number(0, 2)))]
    graph = r.m.graph(*outputs)
    return graph, [r.rng.normal(size=v.shape).astype(np.float32) for v in graph.inputs]
