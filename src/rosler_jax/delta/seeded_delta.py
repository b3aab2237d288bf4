"""A fine-tuned model as a base model, a seed and a few numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

import jax
import jax.numpy as jnp
from flax import nnx

import rosler_kernels as rk
from rosler_jax._layer_views import matrix_views
from rosler_jax._paths import path_name
from rosler_jax.delta._forms import FORMS, change
from rosler_jax.delta._graph import as_base
from rosler_jax.optim._checks import one_of, static_int
from rosler_jax.optim._matrices import select_matrices
from rosler_kernels.hashing import bounded, threefry_2x32

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, UInt32

    from rosler_jax.views import MatrixView, View

    Wrt = str | Sequence[str] | Callable[[str], bool]

NUMBERS, SIDES = 0, 1  # streams of a weight's seed


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A weight that a delta changes.

    Attributes:
      name: of the leaf, ``"hidden/kernel"``.
      view: its matrices.
      shape: of the leaf.
      start: where its own numbers begin among those of all, where none is shared.
      size: how many its form takes.
    """

    name: str
    view: MatrixView
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def matrices(self) -> tuple[int, int, int]:
        """``(g, m, n)``."""
        return self.view.matrix_shape(self.shape)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is static of a delta.

    Attributes:
      form: a key of :data:`~rosler_jax.delta.FORMS`.
      rank: of its factors; 0 where it has none.
      k: numbers of the whole delta.
      seed: in 0 .. 2^32 - 1.
      wrt: the patterns that chose the weights, where patterns did.
      weights: by name.
    """

    form: str
    rank: int
    k: int
    seed: int
    wrt: tuple[str, ...] | None
    weights: tuple[Tuned, ...]

    @property
    def size(self) -> int:
        """Numbers of all weights' forms, of which ``k`` make theirs."""
        return sum(weight.size for weight in self.weights)

    def fingerprint(self) -> int:
        """Of what the base model must have: names, shapes and views."""
        return crc32(repr([(w.name, w.shape, str(w.view)) for w in self.weights]).encode())


@partial(jax.tree_util.register_dataclass, data_fields=["bases"], meta_fields=["plan"])
@dataclasses.dataclass(frozen=True)
class SeededDelta:
    """A change of some weights of a model as a function of ``k`` numbers; a pytree.

    Attributes:
      plan: what it is.
      bases: by weight's name, what seed (and base model) make; in no file.

    Example:
      >>> base = {"kernel": jnp.ones((3, 3)), "bias": jnp.zeros(3)}
      >>> delta = seeded_delta(base, form="lora-xs", rank=1)
      >>> tuned = delta.apply(base, jnp.ones(1))
      >>> delta.start().shape, tuned["kernel"][0].round(2).tolist(), tuned["bias"].tolist()
      ((1,), [1.33, 1.33, 1.33], [0.0, 0.0, 0.0])
    """

    plan: Plan
    bases: dict[str, Any]

    def start(self) -> Float[Array, " k"]:
        """Zeros: the numbers of the base model itself."""
        return jnp.zeros(self.plan.k)

    def numbers(self, weight: Tuned, z: Float[Array, " k"]) -> Float[Array, " d"]:
        """The numbers of one weight's form: ``P z``, or its part of ``z``."""
        if self.plan.k == self.plan.size:
            return z[weight.start : weight.start + weight.size]
        plan = self.plan
        column, sign = shared(plan.seed, weight.start, weight.size, plan.size, plan.k)
        scale = jnp.sqrt(jnp.float32(self.plan.k) / jnp.float32(self.plan.size))
        return z[column] * (sign * scale).astype(z.dtype)

    def factors(self, weight: Tuned, z: Float[Array, " k"]) -> tuple[Array, Array, Array] | None:
        """``C (g, m, s)``, ``U (g, s, l)``, ``R (g, l, n)`` of a weight, where its form has any."""
        form = FORMS[self.plan.form]
        if form.factors is None:
            return None
        args = (self.bases[weight.name], weight.matrices, self.plan.rank)
        return form.factors(self.numbers(weight, z), *args)

    def change(self, weight: Tuned, z: Float[Array, " k"]) -> Float[Array, "..."]:
        """The change of one weight, of its shape."""
        form = FORMS[self.plan.form]
        args = (self.bases[weight.name], weight.matrices, self.plan.rank)
        whole = change(form, self.numbers(weight, z), *args)
        return weight.view.from_matrices(whole, weight.shape)

    def apply(self, base: Any, z: Float[Array, " k"]) -> Any:
        """The model with its weights changed: ``W + D W``.

        Args:
          base: the parameter tree, or the NNX model, that the delta was made for.
          z: its numbers; differentiable.

        Returns:
          A tree, or a model, like ``base``.

        Raises:
          ValueError: if a weight is not there, or has another shape.
        """
        if isinstance(base, nnx.Module):
            graphdef, params, rest = nnx.split(base, nnx.Param, ...)  # type: ignore[misc]
            return nnx.merge(graphdef, self.apply(params, z), rest)
        tuned, found = {weight.name: weight for weight in self.plan.weights}, set()

        def one(path: Any, leaf: Any) -> Any:
            weight = tuned.get(path_name(path))
            if weight is None:
                return leaf
            if jnp.shape(leaf) != weight.shape:
                raise ValueError(
                    f"{weight.name!r} has shape {jnp.shape(leaf)}; the delta is of {weight.shape}"
                )
            found.add(weight.name)
            wide = leaf.astype(rk.accumulator(leaf.dtype))
            return (wide + self.change(weight, z).astype(wide.dtype)).astype(leaf.dtype)

        new = jax.tree_util.tree_map_with_path(one, base)
        if missing := set(tuned) - found:
            raise ValueError(
                f"the base model has no {sorted(missing)[0]!r}, which the delta changes"
            )
        return new


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def shared(
    seed: int, start: int, size: int, total: int, k: int
) -> tuple[Int[Array, " d"], Float[Array, " d"]]:
    """Which of ``k`` numbers each of ``size`` from ``start`` of ``total`` is, and its sign.

    Every k of the total in a row are all k, rotated by a random offset, each with a random sign: an
    isometry. So no number of a delta is without use, and all have use alike.
    """
    first, second, *_ = seeds_of(seed, "", NUMBERS)
    row = jnp.uint32(start) + jnp.arange(size, dtype=jnp.uint32)
    offset = bounded(threefry_2x32((first[0], first[1]), (row // k, jnp.uint32(0)))[0], k)
    sign = rk.tile(rk.rademacher(second, total, 1), start, size)[:, 0]
    return ((row + offset) % k).astype(jnp.int32), sign


def seeds_of(seed: int, name: str, stream: int) -> UInt32[Array, "4 2"]:
    """Seeds of one weight's randomness: by its name, so that other weights do not change them."""
    words = (jnp.uint32(seed), jnp.uint32(crc32(name.encode())))
    counters = jnp.arange(4, dtype=jnp.uint32)
    return jnp.stack(threefry_2x32(words, (counters, jnp.uint32(stream))), axis=-1)


def seeded_delta(
    base: Any,
    k: int | None = None,
    seed: int = 0,
    *,
    form: str = "full",
    rank: int = 4,
    wrt: Wrt = "*",
    view: View = None,
) -> SeededDelta:
    r"""Makes the changes of a model's weights a function of ``k`` numbers and a seed.

    Each chosen weight ``W`` (m x n) becomes ``W + D W(v)``, ``v`` the numbers of its form:

    ============= ===================================================== ============
    form          ``D W``                                               numbers
    ============= ===================================================== ============
    full          ``v``                                                 ``m n``
    lora          ``(A + v_1) v_2``, A random                           ``r (m + n)``
    seeded-side   ``A v``, A random                                     ``r n``
    vera          ``A diag(0.1 + v_1) B diag(v_2)``, A and B random     ``r + n``
    seeded        ``A v B``, A and B random                             ``r^2``
    lora-xs       ``U S v V^T`` of the r leading singular vectors of W  ``r^2``
    sketched      ``(W Omega) v (Psi^T W)``, normalised                 ``r^2``
    ============= ===================================================== ============

    With ``k`` given, these numbers of all weights together, D of them, are ``P z`` of k numbers
    ``z``: ``P`` has one entry a row, ``+-sqrt(k / D)``, and is an isometry but for a block cut
    short: each k rows are the identity, rotated, with random signs, functions of the seed and the
    row. What is random is made again from the seed: the same bits on every device.

    Measured (BENCHMARKS.md, adaptation in few bytes): ``"full"`` with some hundred shared numbers,
    rate-coded, is the most accurate within 100 bytes. It forms a weight's change; for weights too
    large for that the others are, beside their layers (:func:`~rosler_jax.delta.inject`).

    Args:
      base: the model: an NNX module, any tree of parameters, a graph, or a loaded model.
      k: numbers of the delta; None for D.
      seed: 0 to 2^32 - 1.
      form, rank: as above.
      wrt: which weights: patterns on leaves' names (``"decoder/*/kernel"``), or a predicate, of
        those that ``view`` takes for matrices.
      view: which leaves are matrices, as of :func:`~rosler_jax.optim.restrict_rank.restrict_rank`;
        of an NNX module :func:`~rosler_jax.matrix_views` says so.

    Returns:
      The delta. ``delta.apply(base, z)`` is the tuned model; ``z = delta.start()`` is trained.

    Raises:
      TypeError: if a number is no int.
      ValueError: for an unknown form, no weights, a rank above a weight's, or a k that is not
        smaller than D.

    Example:
      >>> import optax
      >>> from flax import nnx
      >>> base = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
      >>> delta = seeded_delta(base, k=20, form="full", seed=7)
      >>> x, y = jnp.eye(16), jnp.ones((16, 8))
      >>> loss = lambda z: ((delta.apply(base, z)(x) - y) ** 2).mean()
      >>> z = delta.start()
      >>> z = z - 20 * jax.grad(loss)(z)
      >>> bool(loss(z) < loss(delta.start())), z.shape
      (True, (20,))

    Source: one entry a row: Li et al. (Uni-LoRA), arXiv:2506.00799; Hu et al. (LoRA),
    arXiv:2106.09685; Kopiczko et al. (VeRA), arXiv:2310.11454; Balazy et al. (LoRA-XS),
    arXiv:2405.17604. ``sketched`` is generalised Nystroem's C and R with a learnt core: ours.
    """
    plan, params = make_plan(base, k, seed, form=form, rank=rank, wrt=wrt, view=view)
    return SeededDelta(plan, bases_of(plan, params))


def make_plan(
    base: Any, k: int | None, seed: int, *, form: str, rank: int, wrt: Wrt, view: View
) -> tuple[Plan, Any]:
    """The plan of a delta, arguments as of :func:`seeded_delta`, and the base's parameters."""
    rule = FORMS[one_of("form", form, tuple(FORMS))]
    seed = static_int("seed", seed, 0)
    if seed >= 2**32:
        raise ValueError(f"seed {seed} is outside [0, 2^32); pass a 32-bit integer")
    rank = 0 if rule.factors is None else static_int("rank", rank, 1)
    base, view = as_base(base, view)
    if isinstance(base, nnx.Module):
        view = matrix_views(base) if view is None else view
        base = nnx.state(base, nnx.Param)
    if callable(wrt):
        patterns, where = None, wrt
    else:
        patterns = (wrt,) if isinstance(wrt, str) else tuple(wrt)
        where = _matching(patterns)
    weights = _weights(base, rule, rank, where, view)
    size = sum(weight.size for weight in weights)
    k = size if k is None else static_int("k", k, 1)
    if k > size:
        raise ValueError(f"k {k} exceeds the {size} numbers of {form!r} here; pass k<{size}")
    return Plan(form, rank, k, seed, patterns, weights), base


def _matching(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


def _weights(
    base: Any, rule: Any, rank: int, where: Callable[[str], bool], view: View
) -> tuple[Tuned, ...]:
    leaves = jax.tree.leaves(base)
    chosen = [row for row in select_matrices(base, 0, view) if where(row[0])]
    if not chosen:
        raise ValueError("wrt chooses none of the weights that are matrices")
    weights: list[Tuned] = []
    for name, index, seen in sorted(chosen):
        shape = tuple(jnp.shape(leaves[index]))
        g, m, n = seen.matrix_shape(shape)
        if rank > min(m, n):
            raise ValueError(
                f"rank {rank} exceeds min(in={m}, out={n})={min(m, n)} of {name!r}; pass "
                f"rank<={min(m, n)}, or leave it out of wrt"
            )
        start = weights[-1].start + weights[-1].size if weights else 0
        weights.append(Tuned(name, seen, shape, start, rule.size((g, m, n), rank)))
    return tuple(weights)


def bases_of(plan: Plan, base: Any) -> dict[str, Any]:
    """What seed and base model make of each weight, by name."""
    rule = FORMS[plan.form]
    leaves = {path_name(path): w for path, w in jax.tree_util.tree_leaves_with_path(base)}
    return {
        weight.name: rule.bases(
            seeds_of(plan.seed, weight.name, SIDES),
            weight.view.to_matrices(leaves[weight.name]),
            weight.matrices,
            plan.rank,
        )
        for weight in plan.weights
    }
