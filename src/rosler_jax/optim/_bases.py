"""The subspaces that gradients are sketched into: which there are, and products with them.

A basis is a matrix ``B``, ``(lost, rank)``, whose entries have a mean square of one; a sketch of
this library times the root of its rank. Then ``x B / sqrt(rank)`` has in expectation the norm of
``x``, and ``y B^T / sqrt(rank)``, of a ``y`` whose entries have some size, entries of that size.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import rosler_kernels as rk
from rosler_kernels.sketches.dct import LONGEST, cosines

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key

    from rosler_jax.views import MatrixView

COSINES = "dct_columns"
"""The columns of the cosine transform in which a gradient is largest; an index each is stored."""
FAMILIES = (
    *(name for name, row in rk.FAMILIES.items() if not (row.weighted or row.fixed)),
    COSINES,
)
ALONG = ("shorter", "longer", "inputs", "outputs")


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight whose gradient is sketched: which axis of its matrices is lost, and where it lies.

    Attributes:
      name: of the leaf.
      index: among the leaves.
      view: its matrices.
      shape: of the leaf.
      loses_inputs: whether the inputs are sketched away, or the outputs.
      lies: on which mesh and how, where that is known.
    """

    name: str
    index: int
    view: MatrixView
    shape: tuple[int, ...]
    loses_inputs: bool
    lies: NamedSharding | None

    @property
    def matrices(self) -> int:
        """How many of them the leaf holds."""
        return self.view.matrix_shape(self.shape)[0]

    @property
    def lost(self) -> int:
        """Length of the axis that is sketched away."""
        return self.view.matrix_shape(self.shape)[1 if self.loses_inputs else 2]

    @property
    def kept(self) -> int:
        """Length of the other axis."""
        return self.view.matrix_shape(self.shape)[2 if self.loses_inputs else 1]

    def down(self, g: Float[Array, "*shape"], basis: Float[Array, "..."]) -> Float[Array, "g k r"]:
        """``R = G B / sqrt(rank)``, the axes in the order kept, sketched; float32 at least."""
        equation = "gmn,mr->gnr" if self.loses_inputs else "gmn,nr->gmr"

        def product(g: Array, basis: Array) -> Array:
            matrices = self.view.to_matrices(g)
            wide = rk.accumulator(g.dtype)
            written = equation if basis.ndim == 2 else _batched(equation)
            r = jnp.einsum(written, matrices, basis, preferred_element_type=wide)
            return r / math.sqrt(basis.shape[-1])

        return rk.automatically(product, self.sketched_spec(), g, basis)

    def up(self, y: Float[Array, "g k r"], basis: Float[Array, "..."]) -> Float[Array, "*shape"]:
        """``Y B^T / sqrt(rank)``, of the weight's shape."""
        equation = "gnr,mr->gmn" if self.loses_inputs else "gmr,nr->gmn"

        def product(y: Array, basis: Array) -> Array:
            written = equation if basis.ndim == 2 else _batched(equation)
            whole = jnp.einsum(written, y, basis.astype(y.dtype)) / math.sqrt(basis.shape[-1])
            return self.view.from_matrices(whole, self.shape)

        return rk.automatically(product, self.spec(), y, basis)

    def scaled(
        self, g: Float[Array, "*shape"], factor: Float[Array, "g k"], limit: Float[Array, " g"]
    ) -> Float[Array, "*shape"]:
        """The weight's gradient, each of the kept axis's slices times a factor, then a matrix's."""

        def product(g: Array, factor: Array, limit: Array) -> Array:
            both = factor * limit[:, None]
            both = both[:, None, :] if self.loses_inputs else both[:, :, None]
            matrices = self.view.to_matrices(g).astype(both.dtype) * both
            return self.view.from_matrices(matrices, self.shape).astype(g.dtype)

        return rk.automatically(product, self.spec(), g, factor, limit)

    def norms(self, g: Float[Array, "*shape"], factor: Float[Array, "g k"]) -> Float[Array, " g"]:
        """Frobenius norm of each matrix of the gradient, its slices times a factor."""

        def product(g: Array, factor: Array) -> Array:
            wide = factor.dtype
            squares = jnp.square(self.view.to_matrices(g).astype(wide))
            slices = squares.sum(1 if self.loses_inputs else 2)
            return jnp.sqrt(jnp.sum(slices * factor**2, axis=-1))

        return rk.automatically(product, P(None), g, factor)

    def spec(self) -> P:
        """How the weight lies on a mesh."""
        return P() if self.lies is None else self.lies.spec

    def sketched_spec(self) -> P:
        """How its sketch does: along the kept axis as the weight, where that is one axis of it."""
        axes = self.view.outputs if self.loses_inputs else self.view.inputs
        if self.lies is None or len(axes) > 1 or self.view.groups > 1:
            return P(None, None, None)
        spec = (*self.lies.spec, *(None,) * (len(self.shape) - len(self.lies.spec)))
        return P(None, spec[axes[0]], None)

    def zeros(self, rank: int, dtype: Any) -> Float[Array, "g k r"]:
        """A sketch of nothing, lying as its sketches do."""
        shape = (self.matrices, self.kept, rank)
        if self.lies is None:
            return jnp.zeros(shape, dtype)
        device = NamedSharding(self.lies.mesh, self.sketched_spec())
        return jnp.zeros(shape, dtype, device=device)


def weight_of(name: str, index: int, view: MatrixView, leaf: Any, along: str) -> Weight:
    """A leaf as a weight that loses the axis ``along`` says."""
    shape = tuple(jnp.shape(leaf))
    _, m, n = view.matrix_shape(shape)
    loses_inputs = {"shorter": m <= n, "longer": m > n}.get(along, along == "inputs")
    return Weight(name, index, view, shape, loses_inputs, _sharding(leaf))


def random(kind: str, key: Key[Array, ""], lost: int, rank: int, dtype: Any) -> Float[Array, "m r"]:
    """A basis of a random family: signs of it are exact in any dtype.

    One product with it as a matrix is what a weight's many rows cost least; it lives for that.
    """
    omega = rk.materialize(rk.make(kind, key, lost, rank))
    return (omega * math.sqrt(rank)).astype(dtype)


def cosine_columns(index: Int[Array, "g r"], lost: int, dtype: Any) -> Float[Array, "g m r"]:
    """The cosines of those frequencies, a basis for each matrix."""
    rows = jnp.arange(lost, dtype=jnp.uint32)[None, :, None]
    return (cosines(lost, rows, index.astype(jnp.uint32)[:, None, :]) * math.sqrt(2)).astype(dtype)


def largest_columns(weight: Weight, g: Float[Array, "*shape"], rank: int) -> Int[Array, "g r"]:
    """The frequencies in which each matrix of a gradient has most of its norm, ascending."""
    frequencies = jnp.arange(weight.lost, dtype=jnp.int32)[None, :]
    whole = cosine_columns(frequencies, weight.lost, g.dtype)[0]
    equation = "mn,mr->nr" if weight.loses_inputs else "mn,nr->mr"

    def squares(g: Array, whole: Array) -> Array:
        def one(matrix: Array) -> Array:
            wide = rk.accumulator(matrix.dtype)
            found = jnp.einsum(equation, matrix, whole, preferred_element_type=wide)
            return jnp.sum(jnp.square(found), axis=0)

        # One after the other: a transform takes as much memory as its matrix.
        return jax.lax.map(one, weight.view.to_matrices(g))

    parts = rk.automatically(squares, P(None, None), g, whole)
    return jnp.sort(jax.lax.top_k(parts, rank)[1], axis=-1).astype(jnp.int32)


def check(kind: str, weight: Weight) -> None:
    """Refuses a weight that the family cannot sketch.

    Raises:
      ValueError: cosines of an axis that is too long.
    """
    if kind == COSINES and weight.lost > LONGEST:
        raise ValueError(
            f"{weight.name!r}: {COSINES} of an axis of {weight.lost}; expected at most {LONGEST}: "
            "pass along= the other axis, or a random family"
        )


def _batched(equation: str) -> str:
    """The equation with a basis for each matrix."""
    first, second = equation.split(",")
    return f"{first},g{second}"


def _sharding(leaf: Any) -> NamedSharding | None:
    """How a leaf lies on a mesh, where its type or, outside a trace, the array says so."""
    lies = jax.typeof(leaf).sharding
    if isinstance(lies, NamedSharding) and not lies.mesh.empty and any(lies.spec):
        return lies
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
        lies = leaf.sharding
        return lies if isinstance(lies, NamedSharding) else None
    return None
