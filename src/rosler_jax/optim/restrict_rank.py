"""Rank restriction of ordinary dense weights during training, around any optax optimiser."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import rosler_kernels as rk
from rosler_jax._linalg import low_rank_product
from rosler_jax._verdict import verdict as verdict_of
from rosler_jax.optim import _landing
from rosler_jax.optim._checks import key_words, static_int, typed_key, whole_number
from rosler_jax.optim._matrices import select_matrices, stacked_svd

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key, UInt32

    from rosler_jax.optim._matrices import Where
    from rosler_jax.views import MatrixView, View


class RestrictRankState(NamedTuple):
    """State of :func:`restrict_rank`, of ``k`` chosen weights."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=jnp.int32; updates done so far
    key: jax.Array  # shape=(2,), dtype=jnp.uint32; seed of the sketches, constant
    inner_state: optax.OptState
    moved: jax.Array  # shape=(k,), dtype=bool; has the inner optimiser ever moved the weight?
    restricted: jax.Array  # shape=(), dtype=bool; was the last update a restriction?
    landing: _landing.Landing  # where the last restriction took the weights: entries of them


def _restrict(
    w: Float[Array, "*shape"],
    update: Float[Array, "*shape"],
    view: MatrixView,
    key: Key[Array, ""],
    rank: int,
    power_iterations: int,
    oversampling: int,
) -> Float[Array, "*shape"]:
    """The update that takes ``w`` to the rank-restricted ``w + update``."""
    wide = rk.accumulator(w.dtype, update.dtype)
    target = view.to_matrices(w.astype(wide) + update.astype(wide))
    triplets = stacked_svd(target, rank, key, power_iterations, oversampling)
    low_rank = jax.vmap(low_rank_product)(*triplets)
    step = view.from_matrices(low_rank, w.shape) - w.astype(wide)
    return step.astype(_emitted(w, update))


def _emitted(w: Array, update: Array) -> jnp.dtype:
    return jnp.promote_types(w.dtype, update.dtype)


def _as_before(moved: Array, updates: list[Array]) -> Array:
    return moved


def _or_now(moved: Array, updates: list[Array]) -> Array:
    return moved | jnp.stack([jnp.any(u != 0) for u in updates])


Restriction = Callable[
    [RestrictRankState, list[Any], list[Any]], tuple[list[Any], _landing.Landing]
]


# One pair of functions for the same views: JAX caches branches by identity, so that updates
# outside jit compile the condition once.
@functools.lru_cache(maxsize=128)
def _branches(
    views: tuple[MatrixView, ...], rank: int, power_iterations: int, oversampling: int
) -> tuple[Restriction, Restriction]:
    """What weights and inner updates become where an update restricts, and elsewhere."""

    def restrict(
        state: RestrictRankState, weights: list[Array], updates: list[Array]
    ) -> tuple[list[Array], _landing.Landing]:
        key = jax.random.fold_in(typed_key(state.key), state.count)
        steps = []
        for i, (seen, w, u) in enumerate(zip(views, weights, updates, strict=True)):
            args = (jax.random.fold_in(key, i), rank, power_iterations, oversampling)
            there = _restrict(w, u, seen, *args)
            steps.append(jnp.where(state.moved[i], there, u.astype(there.dtype)))
        return steps, _landing.note(weights, steps)

    def leave(
        state: RestrictRankState, weights: list[Array], updates: list[Array]
    ) -> tuple[list[Array], _landing.Landing]:
        pairs = zip(weights, updates, strict=True)
        return [u.astype(_emitted(w, u)) for w, u in pairs], state.landing

    return restrict, leave


def _as_many(weights: list[Any], updates: list[Any]) -> list[Any]:
    if len(weights) != len(updates):
        raise ValueError(
            f"params have {len(weights)} leaves, updates {len(updates)}; "
            "expected trees of the same structure"
        )
    return weights


def _claim(name: str) -> str:
    return (
        f"{name!r} is not where restrict_rank's restriction has taken it, nor where it was before: "
        "its update was changed before it was applied, or the weight afterwards. Links that change "
        "updates (scale, weight decay, averaging) belong inside restrict_rank; after changing "
        "weights by hand call init again"
    )


def restrict_rank(
    inner: optax.GradientTransformation,
    rank: int,
    every: int | Int[Array, ""] = 10,
    *,
    power_iterations: int = 1,
    oversampling: int = 8,
    view: View = None,
    where: Where | None = None,
    seed: int | Key[Array, ""] | UInt32[Array, "2"] = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps dense weights near rank ``s`` by restricting them every few steps of an optimiser.

    With ``W' = W + inner update``, every ``every``-th update emits ``W'_s - W`` in place of the
    inner update, ``W'_s = Q (Q^T W')_s`` being the randomised rank-s approximation of ``W'``:
    range finder ``Q = orth((W' W'^T)^q W' Omega)``, then a small truncated SVD. So
    ``optax.apply_updates`` lands on a matrix of rank ``s``, up to rounding, after updates
    ``every, 2 every, ...``; in between the rank grows again. Neither the model nor the inner
    optimiser changes. Finish on a multiple of ``every`` and take the factors out with
    :func:`~rosler_jax.optim.extract_factors.extract_factors`.

    Which axes of a weight are inputs and which outputs, ``view`` says; every layer of a stack and
    every group of a convolution has a rank of its own. A weight that the inner optimiser has never
    moved, since it is frozen there, is not moved by a restriction either. The updates have the
    wider dtype of weight and inner update, and the rank holds up to the rounding of that addition:
    where both are bfloat16, up to half a unit in the last place of ``W'_s`` and of ``W'_s - W``.

    **What may stand where.** Inside: anything. Around it or before it in a chain:
    ``optax.MultiSteps``, ``apply_if_finite`` (where gradients have the dtype of their weights),
    ``inject_hyperparams``, ``masked``, ``partition``, clipping; and whole weights may be frozen
    after it. After it in a chain: nothing that changes updates (a learning rate, weight decay),
    since a restriction is one. The first update after a restriction finds out: then updates become
    NaN (outside ``jit``, a ``ValueError`` names the weight).

    Vmap the whole training loop rather than a single step: then ``count`` stays unbatched and the
    SVDs run at the steps that need them alone. With a batched ``count`` or ``every`` (a vmapped
    ``init``), XLA computes both branches at every step: right, but slow.

    Args:
      inner: any optax transformation whose updates are to be added to the parameters.
      rank: ``s``, a Python int.
      every: updates from one restriction to the next, at least 1; an int, or an integer scalar
        array (not checked), so that ``optax.inject_hyperparams`` may schedule it.
      power_iterations: ``q``; more is closer to the best rank-s matrix, each costs two products.
      oversampling: extra range directions, cut off again by the small SVD.
      view: which leaves are matrices and how: ``rosler_jax.matrix_views(model)`` (for Linen
        ``rosler_jax.linen.matrix_views``), a dict of patterns on leaves' names to
        :class:`~rosler_jax.views.MatrixView` or None, or a function of name and shape. Default:
        leaves named ``kernel`` of exactly two axes, ``(in, out)``. Of these all with
        ``min(m, n) > rank`` are restricted.
      where: predicate on a leaf's name, such as ``"hidden/kernel"`` (the same for Linen and NNX),
        which narrows ``view``; without one it picks among all leaves of two axes.
      seed: seed of the Gaussian sketches: an int, a PRNG key or two uint32 words. May be traced.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; its ``update`` needs ``params``.

    Raises:
      TypeError: if ``rank`` or another static option is no int.
      ValueError: if an option is out of range; from ``init`` and ``update``, if nothing is known
        to be a matrix, or ``where`` picks nothing, a leaf of more axes without a view, or a weight
        that has no rank ``s``; from ``update``, if a weight is not where it was taken.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
      >>> optimizer = restrict_rank(optax.sgd(0.1), rank=2, every=1)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> int(jnp.linalg.matrix_rank(params["kernel"], rtol=1e-5))
      2

      Under ``optax.inject_hyperparams`` what fixes shapes is static:

      >>> static = ("rank", "power_iterations", "oversampling", "view", "where")
      >>> factory = optax.inject_hyperparams(restrict_rank, static_args=static)
      >>> factory(optax.sgd(0.1), rank=2, every=5).init(params).hyperparams["every"].item()
      5

    Source: Halko, Martinsson, Tropp (2011), algorithms 4.4 and 5.1, applied in our reading of the
    rank-restricted training of Li et al. (2021), doi 10.1038/s43588-021-00039-6.
    """
    rank = static_int("rank", rank, 1)
    every = whole_number("every", every, 1)
    power_iterations = static_int("power_iterations", power_iterations, 0)
    oversampling = static_int("oversampling", oversampling, 0)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> RestrictRankState:
        leaves = jax.tree.leaves(params)
        chosen = [leaves[i] for _, i, _ in select_matrices(params, rank, view, where)]
        return RestrictRankState(
            count=jnp.zeros([], jnp.int32),
            key=key_words(seed),
            inner_state=inner.init(params),
            moved=jnp.zeros(len(chosen), bool),
            restricted=jnp.asarray(False),
            landing=_landing.note(chosen, chosen),
        )

    def update_fn(
        updates: optax.Updates,
        state: RestrictRankState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RestrictRankState]:
        if params is None:
            raise ValueError("restrict_rank needs params: call update(updates, state, params)")
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        leaves, treedef = jax.tree.flatten(updates)
        weights = _as_many(jax.tree.leaves(params), leaves)
        picked = select_matrices(params, rank, view, where)
        new = state._replace(count=optax.safe_increment(state.count), inner_state=inner_state)
        if not picked:
            return updates, new
        held, moves = [weights[i] for _, i, _ in picked], [leaves[i] for _, i, _ in picked]
        arrived = _landing.landed(held, state.landing, or_dropped=True)
        verdict = verdict_of(
            (_claim(name), here | ~(state.restricted & state.moved[k]))
            for k, ((name, _, _), here) in enumerate(zip(picked, arrived, strict=True))
        )
        # Once all have moved, nobody has to read the updates for that.
        moved = jax.lax.cond(jnp.all(state.moved), _as_before, _or_now, state.moved, moves)
        new = new._replace(moved=moved, restricted=new.count % every == 0)
        restrict, leave = _branches(
            tuple(seen for _, _, seen in picked), rank, power_iterations, oversampling
        )
        steps, landing = jax.lax.cond(
            new.restricted, restrict, leave, new._replace(inner_state=()), held, moves
        )
        for (_, i, _), step in zip(picked, steps, strict=True):
            leaves[i] = step
        emitted = _landing.enforce(verdict, jax.tree.unflatten(treedef, leaves))
        return emitted, new._replace(landing=landing)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
