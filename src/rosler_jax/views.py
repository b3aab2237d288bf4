"""How arrays are seen as matrices: the one place that says which axes are inputs and outputs.

A weight's shape does not tell: ``(32, 4, 8)`` may be 32 layers of ``4 x 8``, an attention kernel
from 32 features to 4 heads of 8, or one back. The type of its layer does
(:func:`rosler_jax.matrix_views`); else the user does, by a rule; and where neither is at hand, only
what is certain is taken for a matrix: a leaf named ``kernel`` of exactly two axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from rosler_jax import _table
from rosler_jax._paths import path_name, role_name

if TYPE_CHECKING:
    from jaxtyping import Array, Shaped

    Rule = Callable[[str, tuple[int, ...]], "MatrixView | None"]
    View: TypeAlias = "Views | Mapping[str, MatrixView | None] | Rule | None"

ROLES = ("matrix", "table", "factor", "bias", "scale", "flag", "unknown")
"""What a parameter can be. Only a ``matrix`` is restricted or sketched; a ``table`` (an embedding)
is looked up in, a ``factor`` is thin already, and the others are no matrices whatever their shape.
"""


@dataclasses.dataclass(frozen=True)
class MatrixView:
    """Which axes of an array are summed over, which are results, and which count matrices.

    Every axis is in exactly one of the three; the order within each is that of flattening.

    Attributes:
      inputs: axes that are summed over; together ``m``.
      outputs: axes of the result; together ``n`` of each group.
      stack: axes each index of which is a matrix of its own: layers, experts.
      groups: blocks of the outputs with inputs of their own, as in a grouped convolution; each is
        a matrix.

    Raises:
      ValueError: without inputs or outputs, or if an axis is named twice.

    Example:
      >>> heads = MatrixView(inputs=(0,), outputs=(1, 2))  # an attention query
      >>> heads.matrix_shape((32, 4, 8))
      (1, 32, 32)
      >>> MatrixView((1,), (2,), stack=(0,)).matrix_shape((6, 32, 8))
      (6, 32, 8)
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    stack: tuple[int, ...] = ()
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs", "stack"):
            object.__setattr__(self, name, tuple(int(axis) for axis in getattr(self, name)))
        if not self.inputs or not self.outputs or self.groups < 1:
            raise ValueError(f"{self}: a matrix has inputs, outputs and at least one group")
        if len({*self.axes}) < len(self.axes):
            raise ValueError(f"{self} names an axis twice")

    @property
    def axes(self) -> tuple[int, ...]:
        """All axes, in the order stack, inputs, outputs."""
        return (*self.stack, *self.inputs, *self.outputs)

    def check(self, shape: Sequence[int], name: str = "array") -> None:
        """Refuses a shape that does not have exactly these axes.

        Raises:
          ValueError: naming the array, its shape and the view.
        """
        n = len(shape)
        found = sorted(axis % n if -n <= axis < n else n for axis in self.axes)
        if found != list(range(n)):
            raise ValueError(
                f"{name} of shape {tuple(shape)} does not have the axes of {self}; name each of "
                f"its {n} axes once"
            )
        last = math.prod(shape[axis] for axis in self.outputs)
        if last % self.groups:
            raise ValueError(f"{name} of shape {tuple(shape)}: {self.groups} groups of {last}")

    def matrix_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """``(g, m, n)``: the number of matrices, and the shape of each."""
        stack, m, n = (
            math.prod(shape[axis] for axis in part)
            for part in (self.stack, self.inputs, self.outputs)
        )
        return stack * self.groups, m, n // self.groups

    def to_matrices(self, w: Shaped[Array, "..."]) -> Shaped[Array, "g m n"]:
        """The matrices that an array holds.

        Example:
          >>> MatrixView((0, 1), (2,)).to_matrices(jnp.ones((4, 8, 32))).shape
          (1, 32, 32)
        """
        g, m, n = self.matrix_shape(w.shape)
        split = jnp.transpose(w, self._order(w.ndim)).reshape(g // self.groups, m, self.groups, n)
        return split.transpose(0, 2, 1, 3).reshape(g, m, n)

    def from_matrices(
        self, matrices: Shaped[Array, "g m n"], shape: Sequence[int]
    ) -> Shaped[Array, "..."]:
        """The array of that shape that holds the matrices: the inverse of :meth:`to_matrices`."""
        g, m, n = self.matrix_shape(shape)
        split = matrices.reshape(g // self.groups, self.groups, m, n).transpose(0, 2, 1, 3)
        order = self._order(len(shape))
        inverse = sorted(range(len(shape)), key=order.__getitem__)
        return split.reshape([shape[axis] for axis in order]).transpose(inverse)

    def _order(self, ndim: int) -> list[int]:
        return [axis % ndim for axis in self.axes]

    def __str__(self) -> str:
        """``(0) -> (1, 2)``, the stack in front."""
        parts = [f"[{', '.join(map(str, self.stack))}] " if self.stack else ""]
        parts += [f"({', '.join(map(str, self.inputs))}) -> ({', '.join(map(str, self.outputs))})"]
        return "".join(parts) + (f" in {self.groups} groups" if self.groups > 1 else "")


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one parameter was taken for.

    Attributes:
      name: of the leaf, ``"layers/0/kernel"``.
      shape: of the leaf.
      layer: class of the layer that holds it.
      role: one of :data:`ROLES`.
      view: its matrices, for a matrix, a table or a factor.
      stack: how many layers lie in it, axis by axis; ``()`` for one.
      note: why it is what it is, where that is not plain.
    """

    name: str
    shape: tuple[int, ...]
    layer: str
    role: str
    view: MatrixView | None = None
    stack: tuple[int, ...] = ()
    note: str = ""


class Views(Mapping[str, Seen]):
    """What each parameter of a model was taken for, by name; prints as a table.

    Example:
      >>> from flax import nnx
      >>> from rosler_jax import matrix_views
      >>> views = matrix_views(nnx.MultiHeadAttention(4, 32, decode=False, rngs=nnx.Rngs(0)))
      >>> views["query/kernel"].view
      MatrixView(inputs=(0,), outputs=(1, 2), stack=(), groups=1)
    """

    def __init__(self, rows: Sequence[Seen]):
        self.rows = tuple(rows)
        self._by_name = {row.name: row for row in rows}

    def __getitem__(self, name: str) -> Seen:
        return self._by_name[name]

    def __iter__(self) -> Any:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __str__(self) -> str:
        """The table, as plain text."""
        head = ("parameter", "shape", "layer", "taken for", "inputs -> outputs", "matrices", "note")
        return _table.draw(head, [_cells(row) for row in self.rows], left=range(7))


def _cells(row: Seen) -> tuple[str, ...]:
    matrices = ""
    if row.view is not None:
        g, m, n = row.view.matrix_shape(row.shape)
        matrices = f"{g} of {m} x {n}" if g > 1 else f"{m} x {n}"
    shape = " x ".join(map(str, row.shape)) or "scalar"
    view = "" if row.view is None else str(row.view)
    return (row.name, shape, row.layer, row.role, view, matrices, row.note)


def plain(name: str, shape: Sequence[int]) -> MatrixView | None:
    """The view of a leaf of which only name and shape are known: kernels of two axes.

    Example:
      >>> plain("hidden/kernel", (8, 4))
      MatrixView(inputs=(0,), outputs=(1,), stack=(), groups=1)
      >>> plain("query/bias", (4, 8)) is plain("conv/kernel", (3, 3, 8, 16)) is None
      True
    """
    is_kernel = role_name(name) == "kernel" and len(shape) == 2
    return MatrixView((0,), (1,)) if is_kernel else None


def select(params: Any, view: View) -> list[tuple[str, int, MatrixView]]:
    """The leaves of a parameter tree that are seen as matrices.

    Args:
      params: any parameter tree: Linen dicts, ``nnx.State``, lists, dataclasses.
      view: what says so. ``None``: names and shapes alone, see :func:`plain`. A :class:`Views` of
        the model. A dict of glob patterns on leaves' names, the first that matches decides, to a
        :class:`MatrixView` or None for no matrix; leaves that none matches go by names and shapes.
        Or a function of name and shape.

    Returns:
      Name, position among the leaves of ``params``, and view; in order.

    Raises:
      TypeError: for any other ``view``.
      ValueError: if a view does not fit its leaf, a leaf is not among the model's, or a pattern
        matches no leaf.

    Example:
      >>> params = {"hidden": {"kernel": jnp.ones((8, 9)), "bias": jnp.ones(9)}}
      >>> [(name, index) for name, index, _ in select(params, None)]
      [('hidden/kernel', 1)]
    """
    leaves = [
        (path_name(path), index, leaf)
        for index, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(params))
    ]
    rule = _as_rule(view, [name for name, _, _ in leaves], whole=not _is_masked(params))
    found = []
    for name, index, leaf in leaves:
        shape = tuple(jnp.shape(leaf))
        seen = rule(name, shape) if is_real(leaf) else None
        if seen is not None:
            seen.check(shape, repr(name))
            found.append((name, index, seen))
    return found


def _is_masked(params: Any) -> bool:
    """Whether ``optax.masked`` or ``optax.partition`` hides parameters of the tree."""
    nodes = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    return any(isinstance(node, optax.MaskedNode) for node in nodes)


def is_real(leaf: Any) -> bool:
    """Whether a leaf is a real floating array."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _as_rule(view: Any, names: Sequence[str], whole: bool) -> Rule:
    if view is None:
        return plain
    if isinstance(view, Views):
        return _of_model(view, names)
    if isinstance(view, Mapping):
        return _of_patterns(view, names if whole else ())
    if not callable(view):
        raise TypeError(
            f"view {view!r} is none; pass matrix_views(model), a dict of patterns to MatrixView, "
            "or a function of name and shape"
        )
    return view


def _of_model(views: Views, names: Sequence[str]) -> Rule:
    unknown = [name for name in names if name not in views]
    if unknown:
        raise ValueError(
            f"no view of {', '.join(map(repr, unknown))}: these are not parameters of the model "
            f"that the views were made from ({', '.join(list(views)[:3])}, ...); make them of this"
        )
    return lambda name, shape: views[name].view if views[name].role == "matrix" else None


def _of_patterns(patterns: Mapping[str, MatrixView | None], names: Sequence[str]) -> Rule:
    idle = [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]
    if idle and names:
        raise ValueError(f"view {idle[0]!r} matches none of the parameters {list(names)}")

    def rule(name: str, shape: tuple[int, ...]) -> MatrixView | None:
        match = next((p for p in patterns if fnmatchcase(name, p)), None)
        return plain(name, shape) if match is None else patterns[match]

    return rule
