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
from rosler_jax._layer_views import parts_of
from rosler_jax.nn import (
    SketchConv,
    SketchEinsum,
    SketchLinear,
    SketchLinearGeneral,
    TwoFactorLinear,
)


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
    family = rk.family(kind)
    structure = family.structure
    if structure == "hadamard":
        k = (rows - 1).bit_length()
        return Operations(0, k << k)
    if structure == "rows":  # a gather, or adding the samples to where they came from
        scales = cols if family.weighted else 0
        return Operations(scales, cols if transpose else 0)
    if structure == "sparse":
        entries = rows * math.prod(
            value for name, value in rk.make(kind, 0, rows, cols).params if name in ("nnz", "kappa")
        )
        return Operations(0, max(0, entries - (rows if transpose else cols)))
    whole = product(cols, rows) if transpose else product(rows, cols)
    return Operations(0, whole.additions) if family.magnitude else whole


def _filters(kind: str, rows: int, cols: int) -> Operations:
    """The input sketch of a convolution: formed as filters, since a window is small."""
    if rk.family(kind).structure == "hadamard":
        return Operations(0, product(rows, cols).additions)
    return projection(kind, rows, cols)


def _dense(layer: Any) -> LayerCost | None:
    """A dense layer of any axes: ``g`` matrices ``(m, n)``, each applied at every position."""
    part = parts_of(layer)["kernel"]
    if part.view is None:
        return None
    g, m, n = part.view.matrix_shape(part.shape)
    work = g * product(m, n) + bias(g * n, layer.bias is not None)
    kind = f"dense {m}->{n}" if g == 1 else f"{g} dense {m}->{n}"
    return LayerCost(kind, g * n, False, g * m * n, work, g * m * n, work)


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


def _sketched(layer: Any, groups: int, label: str, window: str = "") -> LayerCost:
    """A sketch layer of ``groups`` matrices; ``window`` is empty unless it is a convolution."""
    plan, spatial = layer.plan, bool(window)
    m, n, s, inner = plan.m, plan.n, plan.rank, plan.inner
    if plan.mode == "seeded":
        psi = _filters if spatial else projection
        work = (
            psi(plan.sketch, m, inner)
            + product(inner, s)
            + projection(plan.sketch, n, s, transpose=True)
        )
        kind = f"seeded core {inner}x{s}, {plan.sketch}"
    else:
        steps = list(plan.shapes().values())
        work = sum((product(*shape) for shape in steps[1:]), product(*steps[0]))
        kind = f"two factors of rank {s}" if "u" not in plan.shapes() else f"chain of rank {s}"
    weights = sum(math.prod(shape) for shape in plan.shapes().values())
    added = bias(groups * n, layer.bias is not None)
    return LayerCost(
        kind=f"{window}{kind}, {label}",
        outputs=groups * n,
        spatial=spatial,
        weights=groups * weights,
        operations=groups * work + added,
        dense_weights=groups * m * n,
        dense_operations=groups * product(m, n) + added,
    )


def _sketch_linear(layer: Any) -> LayerCost:
    return _sketched(layer, 1, f"{layer.in_features}->{layer.out_features}")


def _sketch_general(layer: Any) -> LayerCost:
    g = math.prod(layer.batch_shape)
    return _sketched(layer, g, f"{layer.plan.m}->{layer.plan.n}")


def _sketch_einsum(layer: Any) -> LayerCost:
    return _sketched(layer, layer.view.matrix_shape()[0], layer.einsum_str)


def _sketch_conv(layer: Any) -> LayerCost:
    label = f"{layer.in_features}->{layer.out_features}"
    window = f"conv {_by(layer.kernel_size)} "
    return _sketched(layer, layer.feature_group_count, label, window)


def _conv(layer: Any) -> LayerCost:
    """A convolution; of a transposed one, each output meets one in ``strides`` of the window."""
    part = parts_of(layer)["kernel"]
    assert part.view is not None
    g, m, n = part.view.matrix_shape(part.shape)
    met = m
    if isinstance(layer, nnx.ConvTranspose):
        strides = layer.strides or 1
        spread = (
            strides ** len(layer.kernel_size) if isinstance(strides, int) else math.prod(strides)
        )
        met = max(1, m // spread)
    work = g * product(met, n) + bias(g * n, layer.use_bias)
    kind = f"conv {_by(layer.kernel_size)} dense, {layer.in_features}->{layer.out_features}"
    return LayerCost(kind, g * n, True, g * m * n, work, g * m * n, work)


def _embed(layer: Any) -> LayerCost:
    size, n = layer.num_embeddings, layer.features
    none = Operations(0, 0)
    return LayerCost(f"embedding {size}->{n}", n, False, size * n, none, size * n, none)


def _by(window: int | tuple[int, ...]) -> str:
    return str(window) if isinstance(window, int) else "x".join(map(str, window))


LAYERS: dict[type, Callable[[Any], LayerCost | None]] = {
    nnx.Linear: _dense,
    nnx.LinearGeneral: _dense,
    nnx.Einsum: _dense,
    nnx.Conv: _conv,
    nnx.ConvTranspose: _conv,
    nnx.Embed: _embed,
    TwoFactorLinear: _two_factor,
    SketchLinear: _sketch_linear,
    SketchLinearGeneral: _sketch_general,
    SketchEinsum: _sketch_einsum,
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
