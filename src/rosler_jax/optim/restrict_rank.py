"""Rank restriction of ordinary dense weights during training, around any optax optimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rosler_jax._linalg import low_rank_product, randomized_svd
from rosler_jax.optim._checks import static_int
from rosler_jax.optim._matrices import as_matrix, select_matrices

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key, UInt32

    from rosler_jax.optim._matrices import Where

    # Seed words, count, and (weight, update) of each chosen leaf.
    _Operands = tuple[Array, Array, list[tuple[Array, Array]]]


class RestrictRankState(NamedTuple):
    """State of :func:`restrict_rank`."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=jnp.int32; updates done so far
    key: jax.Array  # shape=(2,), dtype=jnp.uint32; seed of the sketches, constant
    inner_state: optax.OptState


def _check_every(every: int | Int[Array, ""]) -> int | Int[Array, ""]:
    """Lets an integer scalar array through unchecked, since its value may not be known yet."""
    if isinstance(every, jax.Array):
        if every.ndim or not jnp.issubdtype(every.dtype, jnp.integer):
            raise TypeError(
                f"every must be an integer scalar, got {every.dtype}{list(every.shape)}"
            )
        return every
    return static_int("every", every, 1)


def _key_words(seed: int | Key[Array, ""] | UInt32[Array, "2"]) -> UInt32[Array, "2"]:
    """Two seed words: plain numbers, so that the state can be saved, compared and vmapped."""
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return jax.random.bits(seed, (2,), jnp.uint32)
    if jnp.shape(seed) == (2,):
        return jnp.asarray(seed, jnp.uint32)
    if jnp.ndim(seed):
        raise ValueError(
            f"seed has shape {jnp.shape(seed)}; pass an int, a PRNG key or two uint32 words"
        )
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def _wide(w: Array, update: Array) -> jnp.dtype:
    return jnp.promote_types(jnp.promote_types(w.dtype, update.dtype), jnp.float32)


def _restrict(
    w: Float[Array, "*lead n"],
    update: Float[Array, "*lead n"],
    key: Key[Array, ""],
    rank: int,
    power_iterations: int,
    oversampling: int,
) -> Float[Array, "*lead n"]:
    """The update that takes ``w`` to the rank-restricted ``w + update``."""
    wide = _wide(w, update)
    target = w.astype(wide) + update.astype(wide)
    triplets = randomized_svd(
        as_matrix(target), rank, key, power_iterations=power_iterations, oversampling=oversampling
    )
    return low_rank_product(*triplets).reshape(w.shape) - w.astype(wide)


def restrict_rank(
    inner: optax.GradientTransformation,
    rank: int,
    every: int | Int[Array, ""] = 10,
    *,
    power_iterations: int = 1,
    oversampling: int = 8,
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

    A weight of more than two dimensions is the matrix with its last axis out and the others
    flattened (convolution kernels: ``(kh kw c_in, c_out)``). Float16 and bfloat16 weights are
    restricted in float32, and their updates are emitted in float32 at all steps, so that adding
    one rounds once; the rank then holds up to the rounding of the weight's own dtype.

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
      where: predicate on a leaf's name, such as ``"hidden/kernel"`` (the same for Linen and NNX),
        choosing the weights. Default: every real floating leaf of at least two dimensions with
        ``min(m, n) > rank``. That includes embeddings and layers stacked along a leading axis.
      seed: seed of the Gaussian sketches: an int, a PRNG key or two uint32 words. May be traced.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; its ``update`` needs ``params``.

    Raises:
      TypeError: if ``rank`` or another static option is no int.
      ValueError: if an option is out of range; from ``init`` and ``update``, if ``where`` picks
        nothing, or a weight that has no rank ``s``.

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

      >>> static = ("rank", "power_iterations", "oversampling", "where")
      >>> factory = optax.inject_hyperparams(restrict_rank, static_args=static)
      >>> factory(optax.sgd(0.1), rank=2, every=5).init(params).hyperparams["every"].item()
      5

    Source: Halko, Martinsson, Tropp (2011), algorithms 4.4 and 5.1, applied in our reading of the
    rank-restricted training of Li et al. (2021), doi 10.1038/s43588-021-00039-6.
    """
    rank = static_int("rank", rank, 1)
    every = _check_every(every)
    power_iterations = static_int("power_iterations", power_iterations, 0)
    oversampling = static_int("oversampling", oversampling, 0)
    inner = optax.with_extra_args_support(inner)

    # Defined here, not in update_fn: JAX caches branches by identity, so that updates outside jit
    # compile the condition once.
    def restricted(operands: _Operands) -> list[Array]:
        words, count, pairs = operands
        key = jax.random.fold_in(jax.random.wrap_key_data(words, impl="threefry2x32"), count)
        return [
            _restrict(w, u, jax.random.fold_in(key, i), rank, power_iterations, oversampling)
            for i, (w, u) in enumerate(pairs)
        ]

    def unrestricted(operands: _Operands) -> list[Array]:
        return [u.astype(_wide(w, u)) for w, u in operands[2]]

    def init_fn(params: optax.Params) -> RestrictRankState:
        select_matrices(params, rank, where)  # a wrong `where` is an error here, not at step one
        return RestrictRankState(
            count=jnp.zeros([], jnp.int32), key=_key_words(seed), inner_state=inner.init(params)
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
        count = optax.safe_increment(state.count)
        leaves, treedef = jax.tree.flatten(updates)
        weights = jax.tree.leaves(params)
        if len(weights) != len(leaves):
            raise ValueError(
                f"params have {len(weights)} leaves, updates {len(leaves)}; "
                "expected trees of the same structure"
            )
        chosen = [index for _, index in select_matrices(params, rank, where)]
        if chosen:
            pairs = [(weights[i], leaves[i]) for i in chosen]
            emitted = jax.lax.cond(
                count % every == 0, restricted, unrestricted, (state.key, count, pairs)
            )
            for i, update in zip(chosen, emitted, strict=True):
                leaves[i] = update
        new_state = RestrictRankState(count=count, key=state.key, inner_state=inner_state)
        return jax.tree.unflatten(treedef, leaves), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
