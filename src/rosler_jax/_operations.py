"""Multiplications and additions of one layer, and of the dense layer that it stands for.

What is counted is the arithmetic of products, projections and biases. Not counted: activations,
pooling, normalisation, hashing, and constant scales (they fold into a stored factor).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from flax import nnx

import rosler_kernels as rk
from rosler_jax.nn import SketchConv, SketchLinear, TwoFactorLinear

SIGNED = ("rademacher",)
"""Families of dense entries that differ in sign alone: no multiplications."""


@dataclasses.dataclass(frozen=True)
class Operations:
    """Numbers of multiplications and additions.

    Example:
      >>> 2 * (Operations(3, 4) + Operations(0, 1))
      Operations(multiplications=6, additions=10)
    """

    multiplications: int
    additions: int

    def __add__(self, other: Operations) -> Operations:
        return Operations(
            self.multiplications + other.multiplications, self.additions + other.additions
        )

    def __rmul__(self, times: int) -> Operations:
        return Operations(times * self.multiplications, times * self.additions)


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """What a layer is and what it costs at one position of its output.

    Attributes:
      kind: the layer in words.
      outputs: numbers it gives a position; how often it is applied is its whole output over these.
      spatial: whether the number of positions depends on the input's size.
      weights: numbers that it holds in matrices and kernels.
      operations: at one position.
      dense_weights: weights of the dense layer of the same sizes.
      dense_operations: of that layer, at one position.
    """

    kind: str
    outputs: int
    spatial: bool
    weights: int
    operations: Operations
    dense_weights: int
    dense_operations: Operations


def product(m: int, n: int) -> Operations:
    """A vector of length ``m`` times a matrix ``(m, n)``.

    Example:
      >>> product(3, 2)
      Operations(multiplications=6, additions=4)
    """
    return Operations(m * n, (m - 1) * n)


def bias(n: int, used: bool) -> Operations:
    """Adding a bias of length ``n``, if there is one."""
    return Operations(0, n if used else 0)


def projection(kind: str, rows: int, cols: int, *, transpose: bool = False) -> Operations:
    r"""``x Omega`` (or ``y Omega^T``) for one vector, by the algorithm of the sketch's family.

    An SRHT takes one fast Walsh-Hadamard transform of order ``2^k >= rows``: ``k 2^k`` additions.

    Args:
      kind: a key of ``rosler_kernels.FAMILIES``.
      rows: the dimension projected away.
      cols: the embedding dimension.
      transpose: count ``y Omega^T``.

    Raises:
      ValueError: for an unknown kind.

    Example:
      >>> projection("srht", 784, 128)
      Operations(multiplications=0, additions=10240)
      >>> projection("rademacher", 100, 10, transpose=True)
      Operations(multiplications=0, additions=900)
    """
    structure = rk.family(kind).structure
    if structure == "hadamard":
        k = (rows - 1).bit_length()
        return Operations(0, k << k)
    if structure == "rows":  # a gather, or adding the samples to where they came from
        scales = cols if rk.family(kind).weighted else 0
        return Operations(scales, cols if transpose else 0)
    if structure == "sparse":
        entries = rows * math.prod(
            value for name, value in rk.make(kind, 0, rows, cols).params if name in ("nnz", "kappa")
        )
        return Operations(0, max(0, entries - (rows if transpose else cols)))
    whole = product(cols, rows) if transpose else product(rows, cols)
    return Operations(0, whole.additions) if kind in SIGNED else whole


def _filters(kind: str, rows: int, cols: int) -> Operations:
    """The input sketch of a convolution: formed as filters, since a window is small."""
    if rk.family(kind).structure == "hadamard":
        return Operations(0, product(rows, cols).additions)
    return projection(kind, rows, cols)


def _linear(layer: Any) -> LayerCost:
    m, n = layer.in_features, layer.out_features
    dense = product(m, n) + bias(n, layer.use_bias)
    return LayerCost(f"dense {m}->{n}", n, False, m * n, dense, m * n, dense)


def _linear_general(layer: Any) -> LayerCost | None:
    if layer.batch_axis:
        return None
    m, n = (
        math.prod(f if isinstance(f, tuple) else (f,))
        for f in (layer.in_features, layer.out_features)
    )
    dense = product(m, n) + bias(n, layer.use_bias)
    return LayerCost(f"dense {m}->{n}", n, False, m * n, dense, m * n, dense)


def _two_factor(layer: Any) -> LayerCost:
    m, n, s = layer.in_features, layer.out_features, layer.rank
    added = bias(n, layer.use_bias)
    return LayerCost(
        kind=f"two factors {m}->{s}->{n}",
        outputs=n,
        spatial=False,
        weights=(m + n) * s,
        operations=product(m, s) + product(s, n) + added,
        dense_weights=m * n,
        dense_operations=product(m, n) + added,
    )


def _sketched(layer: Any, m: int, n: int, groups: int, window: str) -> LayerCost:
    """A sketch layer of ``groups`` matrices ``(m, n)``; ``window`` is empty for a linear one."""
    s, spatial = layer.rank, bool(window)
    co_range = int(layer.u.shape[-1])
    if layer.mode == "seeded":
        inner = layer.inner
        psi = _filters if spatial else projection
        work = (
            psi(layer.sketch, m, inner)
            + product(inner, s)
            + projection(layer.sketch, n, s, transpose=True)
        )
        weights, kind = inner * s, f"seeded core {inner}x{s}, {layer.sketch}"
    else:
        work = product(m, s) + product(s, co_range) + product(co_range, n)
        weights, kind = m * s + s * co_range + co_range * n, f"chain of rank {s}"
    added = bias(groups * n, layer.use_bias)
    return LayerCost(
        kind=f"{window}{kind}, {layer.in_features}->{layer.out_features}",
        outputs=groups * n,
        spatial=spatial,
        weights=groups * weights,
        operations=groups * work + added,
        dense_weights=groups * m * n,
        dense_operations=groups * product(m, n) + added,
    )


def _sketch_linear(layer: Any) -> LayerCost:
    return _sketched(layer, layer.in_features, layer.out_features, 1, "")


def _sketch_conv(layer: Any) -> LayerCost:
    m, n = layer.matrix_shape
    return _sketched(layer, m, n, layer.feature_group_count, f"conv {_by(layer.kernel_size)} ")


def _conv(layer: Any) -> LayerCost:
    g, window = layer.feature_group_count, layer.kernel_size
    window = (window,) if isinstance(window, int) else tuple(window)
    m, n = math.prod(window) * layer.in_features // g, layer.out_features // g
    dense = g * product(m, n) + bias(g * n, layer.use_bias)
    kind = f"conv {_by(window)} dense, {layer.in_features}->{layer.out_features}"
    return LayerCost(kind, g * n, True, g * m * n, dense, g * m * n, dense)


def _embed(layer: Any) -> LayerCost:
    size, n = layer.num_embeddings, layer.features
    none = Operations(0, 0)
    return LayerCost(f"embedding {size}->{n}", n, False, size * n, none, size * n, none)


def _by(window: tuple[int, ...]) -> str:
    return "x".join(map(str, window))


LAYERS: dict[type, Callable[[Any], LayerCost | None]] = {
    nnx.Linear: _linear,
    nnx.LinearGeneral: _linear_general,
    nnx.Conv: _conv,
    nnx.Embed: _embed,
    TwoFactorLinear: _two_factor,
    SketchLinear: _sketch_linear,
    SketchConv: _sketch_conv,
}
"""Every class of layer whose work is known: a new one is one line here."""


def layer_cost(layer: Any) -> LayerCost | None:
    """The cost of a layer (its variables may be abstract); None if its class is not known.

    Example:
      >>> cost = layer_cost(TwoFactorLinear(20, 30, rank=4, rngs=nnx.Rngs(0)))
      >>> cost.weights, cost.dense_weights
      (200, 600)
    """
    count = LAYERS.get(type(layer))  # exactly: a subclass may compute otherwise
    return None if count is None else count(layer)
