"""What a graph computes: multiplications and additions, beside those of dense layers in its place.

What is counted is the arithmetic of products, projections and biases. Not counted, for it is the
same in both: what works element by element, pooling, normalisation; and hashing, and constant
scales (they fold into a stored factor).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import rosler_kernels as rk
from rosler_jax._paths import layer_name
from rosler_jax.graph.check import weight_shape
from rosler_jax.graph.graph import Graph, op_vectors
from rosler_jax.graph.kinds import (
    Conv,
    Convolve,
    Dense,
    KernelGrad,
    Map,
    MatMul,
    Op,
    PatchProject,
    Project,
    Scan,
    Transpose,
)
from rosler_jax.graph.weight import Weight
from rosler_kernels.sketches._separable import image_of
from rosler_kernels.sketches.dct import box_of


@dataclasses.dataclass(frozen=True)
class Operations:
    """Numbers of multiplications and additions.

    Example:
      >>> 2 * (Operations(3, 4) + Operations(0, 1))
      Operations(multiplications=6, additions=10)
    """

    multiplications: int = 0
    additions: int = 0

    def __add__(self, other: Operations) -> Operations:
        return Operations(
            self.multiplications + other.multiplications, self.additions + other.additions
        )

    def __rmul__(self, times: int) -> Operations:
        return Operations(times * self.multiplications, times * self.additions)


def product(m: int, n: int) -> Operations:
    """A vector of length ``m`` times a matrix ``(m, n)``.

    Example:
      >>> product(3, 2)
      Operations(multiplications=6, additions=4)
    """
    return Operations(m * n, (m - 1) * n)


def projection(
    kind: str, rows: int, cols: int, *, transpose: bool = False, params: Any = None
) -> Operations:
    r"""``x Omega`` (or ``y Omega^T``) for one vector, by the algorithm of the sketch's family.

    An SRHT takes one fast Walsh-Hadamard transform of order ``2^k >= rows``: ``k 2^k`` additions;
    cosines of an image a product along its rows, then one along its columns.

    Args:
      kind: a key of ``rosler_kernels.FAMILIES``.
      rows: the dimension projected away.
      cols: the embedding dimension.
      transpose: count ``y Omega^T``.
      params: of the sketch; None for what its family has by default.

    Raises:
      ValueError: for an unknown kind.

    Example:
      >>> projection("srht", 784, 128)
      Operations(multiplications=0, additions=10240)
      >>> projection("rademacher", 100, 10, transpose=True)
      Operations(multiplications=0, additions=900)
    """
    family = rk.family(kind)
    structure = family.structure
    if structure == "hadamard":
        k = (rows - 1).bit_length()
        return Operations(0, k << k)
    if structure == "rows":  # a gather, or adding the samples to where they came from
        scales = cols if family.weighted else 0
        return Operations(scales, cols if transpose else 0)
    if structure == "sparse":
        held = dict(rk.make(kind, 0, rows, cols).params if params is None else params)
        entries = rows * held["nnz"] * held.get("kappa", 1)
        return Operations(0, max(0, entries - (rows if transpose else cols)))
    if structure == "separable":
        return _along_axes(rk.make(kind, 0, rows, cols, **dict(params or ())), transpose)
    whole = product(cols, rows) if transpose else product(rows, cols)
    return Operations(0, whole.additions) if family.magnitude else whole


def _along_axes(sketch: rk.Sketch, transpose: bool) -> Operations:
    """Sums of windows, or cosines along one axis of an image after the other."""
    rows, cols = sketch.rows, sketch.cols
    if rk.family(sketch.kind).magnitude:
        return Operations(0, 0 if transpose else rows - cols)
    height, width, channels = image_of(sketch)
    if width == 1:
        return product(cols, rows) if transpose else product(rows, cols)
    lines = channels * box_of(sketch)[1]  # frequencies along the width
    if transpose:
        across = Operations(height * cols, height * (cols - lines))
        return across + (height * channels) * product(lines // channels, width)
    return (height * channels) * product(width, lines // channels) + cols * product(height, 1)


class Matrices(NamedTuple):
    """What a linear operation multiplies with: ``groups`` matrices ``(m, n)``, each so often."""

    groups: int
    times: int
    m: int
    n: int
    met: int | None = None  # entries of m that meet an input that is there, where not all do

    @property
    def size(self) -> int:
        """Numbers in the matrices."""
        return self.groups * self.m * self.n

    @property
    def operations(self) -> Operations:
        """Of all these products."""
        return self.groups * self.times * product(self.met or self.m, self.n)


def _conv(op: Conv | Convolve) -> Matrices:
    *window, channels, n = weight_shape(op.weight) if isinstance(op, Conv) else op.in_shapes[1]
    g, m = op.window.groups, math.prod(window) * channels
    spread = math.prod(op.window.input_dilation)  # of a transposed one, only one in so many meets
    return Matrices(g, math.prod(op.out_shape[:-1]), m, n // g, max(1, m // spread))


def _patches(op: PatchProject) -> Matrices:
    positions = math.prod(op.out_shape[:-1])
    return Matrices(op.window.groups, positions, op.sketch.rows, op.sketch.cols)


def _kernel_grad(op: KernelGrad) -> Matrices:
    *window, channels, n = op.out_shape
    positions, g = math.prod(op.in_shapes[1][:-1]), op.window.groups
    return Matrices(g, math.prod(window) * channels, positions, n // g)


MATRICES: dict[type[Op], Callable[[Any], Matrices]] = {
    Dense: lambda op: Matrices(1, op.in_shape[0], op.in_shape[1], op.out_shape[1]),
    Conv: _conv,
    Project: lambda op: Matrices(1, op.in_shape[0], op.in_shape[1], op.out_shape[1]),
    PatchProject: _patches,
    Convolve: _conv,
    KernelGrad: _kernel_grad,
    MatMul: lambda op: Matrices(op.in_shape[0], op.in_shape[1], op.in_shape[2], op.out_shape[2]),
}
"""What each kind of linear operation multiplies with."""


def _sketched(op: Project | PatchProject) -> Operations:
    of, sketch = MATRICES[type(op)](op), op.sketch
    times, size = of.groups * of.times, (sketch.rows, sketch.cols)
    if isinstance(op, PatchProject) and rk.family(sketch.kind).structure == "hadamard":
        return times * Operations(0, product(*size).additions)  # as filters: a window is small
    transpose = isinstance(op, Project) and op.transpose
    return times * projection(sketch.kind, *size, transpose=transpose, params=sketch.params)


COUNT: dict[type[Op], Callable[[Any], Operations]] = {
    **{cls: lambda op: MATRICES[type(op)](op).operations for cls in MATRICES},
    Project: _sketched,
    PatchProject: _sketched,
    Scan: lambda op: op.length * sum(map(operations, op.body.ops), Operations()),
}
"""What each kind costs; those that are not here work element by element."""


def operations(op: Op) -> Operations:
    """Multiplications and additions of one operation, the bias among them.

    Example:
      >>> import numpy as np
      >>> w = Weight("w", np.ones((20, 7), np.float32))
      >>> shapes = {"in_shapes": ((3, 20),), "out_shapes": ((3, 7),)}
      >>> operations(Dense(name="w", inputs=(0,), outputs=(1,), weight=w, **shapes))
      Operations(multiplications=420, additions=399)
    """
    count = COUNT.get(type(op))
    return Operations() if count is None else count(op) + Operations(0, _bias(op))


def _bias(op: Op) -> int:
    linear = type(op) in MATRICES and getattr(op, "bias", None) is not None
    return math.prod(op.out_shape) if linear else 0


class Part(NamedTuple):
    """Linear operations one after the other that one dense layer could be, or a single other one.

    Attributes:
      layer: the layer that it is of: the path of its tensors.
      kind: in words.
      weights: the stored arrays that it multiplies with, as laid out.
      held: names of these and of its biases.
      sketches: how many seeds it has.
      operations: for one example.
      dense: of the dense layer in its place.
      dense_weights: numbers in that layer's matrix.
    """

    layer: str
    kind: str
    weights: tuple[Weight, ...]
    held: tuple[str, ...]
    sketches: int
    operations: Operations
    dense: Operations
    dense_weights: int


ELSEWHERE = "(elsewhere)"


def parts(graph: Graph, known: Mapping[int, Weight] | None = None, times: int = 1) -> list[Part]:
    """What a graph computes, part by part; bodies of scans as often as they run.

    Args:
      graph: the model, or a body.
      known: stored arrays that are inputs of a body.
      times: how often it runs.
    """
    known = {**graph.constants, **(known or {})}
    found: list[Part] = []
    for chain in _chains(graph, known):
        each = [_oriented(op, known) for op in chain]
        work = times * sum(map(operations, chain), Operations())
        weights = tuple(w for op in chain for w in _matrices(op, known))
        kinds = [op.sketch.kind for op in chain if isinstance(op, Project | PatchProject)]
        if not weights and not kinds:
            found.append(Part(ELSEWHERE, "products of the model", (), (), 0, work, work, 0))
            continue
        whole = each[0]._replace(n=math.prod(chain[-1].out_shape) // math.prod(each[0][:2]))
        dense = times * (whole.operations + Operations(0, _bias(chain[-1])))
        stack = _stack(chain, each, known)
        words, size = _words(chain, each), stack * whole.size
        words = f"{stack} layers of {words}" if stack > 1 else words
        held = tuple(w.name for op in chain for w in (*_matrices(op, known), *op_vectors(op)))
        layer = _layer_of(chain, known)
        seeds = sum(not rk.family(kind).fixed for kind in kinds)
        found.append(Part(layer, words, weights, held, seeds, work, dense, size))
    for op in graph.ops:
        if isinstance(op, Map) and op.function == "add" and (added := _matrices(op, known)):
            bias = Operations(0, times * math.prod(op.out_shape))
            layer, held = layer_name(added[0].name), (added[0].name,)
            found.append(Part(layer, "", (), held, 0, bias, bias, 0))
        if isinstance(op, Scan):
            given = zip(op.body.inputs, op.inputs, strict=True)
            inner = {value.id: known[k] for value, k in given if k in known}
            found += parts(op.body, inner, times * op.length)
    return found


def _stack(chain: list[Op], each: list[Matrices], known: Mapping[int, Weight]) -> int:
    """How many layers the tensors of a chain hold, of which a run of a scan takes one."""
    sizes = (
        math.prod(weight_shape(weight)) // of.size
        for op, of in zip(chain, each, strict=True)
        for weight in _matrices(op, known)
    )
    return max(1, next(sizes, 1))


def _oriented(op: Op, known: Mapping[int, Weight]) -> Matrices:
    """What an operation multiplies with, also where the stored matrix comes first."""
    of = MATRICES[type(op)](op)
    first = isinstance(op, MatMul) and op.inputs[0] in known
    return of._replace(times=of.n, n=of.times) if first else of


def _chains(graph: Graph, known: Mapping[int, Weight]) -> Iterator[list[Op]]:
    """Linear operations that follow each other in one layer, transposes between them left out."""
    readers, producers = graph.consumers(), graph.producers()
    kept = {value.id for value in graph.outputs}
    chains: list[list[Op]] = []
    at: dict[str, list[Op]] = {}

    def before(op: Op) -> Op | None:
        """The linear operation whose outcome an operation alone reads."""
        values = [k for k in op.inputs if k not in known]
        while len(values) == 1 and len(readers[values[0]]) == 1 and values[0] not in kept:
            source = producers.get(values[0])
            if source is None or type(source) in MATRICES:
                return source
            values = list(source.inputs) if isinstance(source, Transpose) else []
        return None

    for op in graph.ops:
        if type(op) not in MATRICES:
            continue
        source = before(op)
        if source is not None and _follows(source, op, at[source.name], known):
            chain = at[source.name]
        else:
            chain = []
            chains.append(chain)
        chain.append(op)
        at[op.name] = chain
    yield from chains


def _follows(source: Op, op: Op, chain: list[Op], known: Mapping[int, Weight]) -> bool:
    """Whether an operation is of the same layer as the chain before it."""
    names = {weight.name for link in chain for weight in _matrices(link, known)}
    if any(weight.name in names for weight in _matrices(op, known)):
        return False  # the next layer of a stack
    if isinstance(source, MatMul) and not _matrices(source, known):
        return False
    layer, own = _layer_of(chain, known), _layer_of([op], known)
    if isinstance(op, Project) and own == op.name:  # a last factor, or another layer's first
        return op.transpose
    if isinstance(source, Project | PatchProject) and layer == chain[0].name:  # a first factor
        return True
    return layer == own


def _layer_of(chain: list[Op], known: Mapping[int, Weight]) -> str:
    for op in chain:
        for weight in (*_matrices(op, known), *op_vectors(op)):
            layer = layer_name(weight.name)
            if layer != op.name:  # not a name that tracing has made
                return layer
    return chain[0].name


def _matrices(op: Op, known: Mapping[int, Weight]) -> list[Weight]:
    """The stored arrays that an operation multiplies with, or adds."""
    if isinstance(op, Dense | Conv):
        return [op.weight]
    return [known[k] for k in op.inputs if k in known] if isinstance(op, MatMul | Map) else []


def _words(chain: list[Op], each: list[Matrices]) -> str:
    """As ``dense 20->7``, ``factors 20->3->7``, ``conv 3x3 seeded core 16x2, srht, 4->8``."""
    first, count = chain[0], each[0].groups
    window = first.window.size if isinstance(first, Conv | PatchProject) else ()
    sketches = [op.sketch.kind for op in chain if isinstance(op, Project | PatchProject)]
    cores = [m for op, m in zip(chain, each, strict=True) if not hasattr(op, "sketch")]
    ends = f"{each[0].m}->{each[-1].n}"
    if window:
        outputs = math.prod(chain[-1].out_shape) // each[0].times
        grouped = f" in {count} groups" if count > 1 else ""
        ends = f"{first.in_shape[-1]}->{outputs}{grouped}"
    if sketches:
        seeded = "" if all(rk.family(kind).fixed for kind in sketches) else "seeded "
        core = f"{seeded}core {cores[0].m}x{cores[0].n}" if cores else "sketch"
        words = f"{core}, {sketches[0]}, {ends}"
    elif window:
        words = f"dense, {ends}" if len(chain) == 1 else f"factors of rank {each[0].n}, {ends}"
    else:
        path = "->".join(str(n) for n in (*(m.m for m in each), each[-1].n))
        words = f"dense {path}" if len(chain) == 1 else f"factors {path}"
    if window:
        return f"conv {'x'.join(map(str, window))} {words}"
    return words if count == 1 else f"{count} {words}"
