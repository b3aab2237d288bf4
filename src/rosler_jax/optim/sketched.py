"""Optimisers whose moments live in sketches of the gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import rosler_kernels as rk
from rosler_jax.optim import _bases, _moments, _subspaces
from rosler_jax.optim._checks import key_words, one_of, static_int, typed_key, whole_number
from rosler_jax.optim._matrices import select_matrices
from rosler_jax.optim.compact_state import as_dtypes_of, check_dtype, decode, encode

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key, UInt32

    from rosler_jax.optim._bases import Weight
    from rosler_jax.optim._matrices import Where
    from rosler_jax.views import View

    Arrays = dict[str, Array]

SCALINGS = ("channel", "tensor", "subspace", "combined")

# What a state holds of no weights: a leaf, so that `optax.tree.map_params`, which makes a state of
# no parameters to see where those of one lie, takes the weights' sketches for something else.
_NOTHING = functools.partial(jnp.zeros, 0)


class SketchedState(NamedTuple):
    """State of :func:`scale_by_sketched`; arrays of the sketched weights by their names.

    Example:
      >>> params = {"kernel": jnp.zeros((64, 256)), "bias": jnp.zeros(256)}
      >>> state = scale_by_sketched(optax.scale_by_adam(), 4).init(params)
      >>> int(state.count), state.sketched.mu["kernel"].shape, state.columns["kernel"].shape
      (0, (1, 256, 4), (1, 4))
    """

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=jnp.int32; updates done so far
    key: jax.Array  # shape=(2,), dtype=jnp.uint32; seed of the sketches, constant
    sketched: Any  # the inner optimiser's, of sketches (matrices, kept, rank)
    rest: Any  # the inner optimiser's, of the other parameters
    norms: Any  # (matrices,) each; of the last update, where growth is limited
    columns: Any  # (matrices, rank) each, int32; where columns are selected


class _Options(NamedTuple):
    """Checked options of :func:`scale_by_sketched`."""

    rank: int
    family: str
    scaling: str
    refresh: Any
    momentum: str
    along: str
    scale: float | None
    limit: float | None
    dtype: Any


def scale_by_sketched(
    inner: optax.GradientTransformation,
    rank: int,
    *,
    family: str = "dct_columns",
    scaling: str = "combined",
    refresh: int | Int[Array, ""] | str | None = "auto",
    momentum: str | None = None,
    along: str = "shorter",
    scale: float | None = None,
    limit: float | str | None = "auto",
    state_dtype: Any = None,
    view: View = None,
    where: Where | None = None,
    seed: int | Key[Array, ""] | UInt32[Array, "2"] = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Runs an elementwise optimiser on sketches of the gradients in place of the gradients.

    Of a weight's gradient ``G`` (m x n, m the shorter axis) the inner optimiser sees
    ``R = Omega^T G`` (r x n), and makes ``N`` of it. ``Omega`` (m x r) is made anew in every update
    and never stored: columns of the cosine transform, of which the state has the numbers, or
    random, a function of seed, weight's name and refresh count. So moments take ``r n`` numbers
    each in place of ``m n``. The update is, by ``scaling``,

    - ``"channel"``: ``G diag(s)``, ``s_j = c ||N_j|| / ||R_j||`` for each of the n columns;
    - ``"tensor"``: ``c ||N|| / ||R|| G``, one number a matrix, for ranks down to 1;
    - ``"subspace"``: ``c Omega N``: the update has rank r;
    - ``"combined"``: in the subspace as Adam would have it, and what of G lies beside it scaled as
      channels: ``c (P N' + (G - P P^T G) diag(s))``, P of the columns of Omega, orthonormal (those
      of ``srht`` and ``dct_columns`` are).

    The default is the best of those measured (BENCHMARKS.md, large models): of a small transformer
    it was ahead of AdamW with a tenth of its state.

    ``c`` is by default such that an update is as large as the inner optimiser's of the whole
    gradient would be: with Adam's learning rate where Adam was. ``E[Omega Omega^T] = I``.

    Every ``refresh`` updates the subspace changes, and the moments with it (``momentum``): they
    stay as they are (``"keep"``), start anew (``"restart"``), or are taken over as far as the
    old subspace reaches into the new (``"project"``, Adam's and momentum's).

    Matrices with ``min(m, n) > rank`` are sketched; all other parameters get the inner optimiser.
    Weights may be sharded: the sketch is summed over the mesh, and no gradient is gathered (but
    along its lost axis to select cosines, at a refresh).

    Args:
      inner: an optimiser that acts on every number alike and needs no parameters, as
        ``optax.scale_by_adam()``. Learning rate and decay come after it in a chain.
      rank: ``r``.
      family: of ``Omega``: ``gaussian``, ``rademacher``, ``sparse_sign``, ``block_perm``, ``srht``,
        ``rows_uniform``; or ``dct_columns``: the r columns of the cosine transform in which ``G``
        is largest at a refresh, whose indices the state holds.
      scaling: as above.
      refresh: updates from one subspace to the next, an int or an integer scalar array (not
        checked); None keeps the first. ``"auto"``: 20 of selected columns, else 200.
      momentum: as above. Default: ``"project"`` for subspaces, combined or not, else ``"keep"``.
      along: the axis that is lost: ``"shorter"`` or ``"longer"`` of the two, ``"inputs"`` or
        ``"outputs"``. The longer one leaves the smaller state, the shorter one the more channels.
      scale: ``c``.
      limit: the norm of an update is at most this times the last one's, matrix by matrix; None for
        no limit. ``"auto"``: 1.01, for subspaces None.
      state_dtype: ``bfloat16`` or ``int8``: of all moments between updates, see
        :func:`~rosler_jax.optim.compact_state.compact_state`. Default: as the inner one has them.
      view, where: which leaves are matrices and how, as of
        :func:`~rosler_jax.optim.restrict_rank.restrict_rank`.
      seed: an int, a PRNG key or two uint32 words. May be traced.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: if ``rank`` or ``refresh`` is no int.
      ValueError: if an option is none of those above; from ``init``, if nothing is a matrix, or the
        inner optimiser's moments are unknown to ``"project"``; from ``update``, if the gradients'
        matrices are not those of the state.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> params = {"kernel": jnp.zeros((64, 256)), "bias": jnp.zeros(256)}
      >>> tx = optax.chain(scale_by_sketched(optax.scale_by_adam(), 4), optax.scale(-1e-3))
      >>> state = tx.init(params)
      >>> state[0].sketched.mu["kernel"].shape, state[0].rest.mu["bias"].shape
      ((1, 256, 4), (256,))
      >>> updates, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), state)
      >>> updates["kernel"].shape
      (64, 256)

    Source: channel and tensor scaling with the limit: Zhu et al. (APOLLO), arXiv:2412.05270,
    algorithm 1; subspaces: Zhao et al. (GaLore), arXiv:2403.03507; combined: Chen et al. (Fira),
    arXiv:2410.01623; selected cosines: arXiv:2505.17967. That ``Omega`` is regenerated and how
    squares are taken over is ours.
    """
    options = _checked(rank, family, scaling, refresh, momentum, along, scale, limit, state_dtype)
    inner = optax.with_extra_args_support(inner)

    def weights_of(tree: Any) -> list[Weight]:
        leaves = jax.tree.leaves(tree)
        chosen = select_matrices(tree, options.rank, view, where, can_be_none=view is not None)
        return [_bases.weight_of(*found, leaves[found[1]], options.along) for found in chosen]

    def init_fn(params: optax.Params) -> SketchedState:
        key, weights, leaves = key_words(seed), weights_of(params), jax.tree.leaves(params)
        for weight in weights:
            _bases.check(options.family, weight)
        state = SketchedState(
            count=jnp.zeros([], jnp.int32),
            key=key,
            sketched=_NOTHING(),
            rest=inner.init(_without(params, weights)),
            norms=_NOTHING(),
            columns=_NOTHING(),
        )
        if not weights:
            return _stored(state, options)
        zeros = {
            w.name: w.zeros(options.rank, rk.accumulator(leaves[w.index].dtype)) for w in weights
        }
        sketched = inner.init(zeros)
        if options.momentum == "project":
            _moments.check(sketched, zeros)
        state = state._replace(
            sketched=sketched,
            norms={w.name: jnp.zeros(w.matrices) for w in weights if options.limit is not None},
            columns=_first_columns(options, weights),
        )
        return _stored(state, options)

    def update_fn(
        updates: optax.Updates,
        state: SketchedState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SketchedState]:
        leaves, treedef = jax.tree.flatten(updates)
        weights = weights_of(updates)
        _check_same(weights, state, options.rank)
        others = None if params is None else _without(params, weights)
        small = _without(updates, weights)
        rest, rest_state = inner.update(small, _read(state.rest, options), others, **extra_args)
        rest = rest if options.dtype is None else as_dtypes_of(rest, small)
        state = state._replace(rest=rest_state, sketched=_read(state.sketched, options))
        new: Arrays = {}
        if weights:
            gradients = {w.name: leaves[w.index] for w in weights}
            new, state = _update_sketched(gradients, state, weights, options, inner, extra_args)
        state = state._replace(count=optax.safe_increment(state.count))
        return _merged(treedef, rest, new, weights), _stored(state, options)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _update_sketched(
    gradients: Arrays,
    state: SketchedState,
    weights: list[Weight],
    options: _Options,
    inner: optax.GradientTransformationExtraArgs,
    extra_args: dict[str, Any],
) -> tuple[Arrays, SketchedState]:
    """Updates of the sketched weights, and the state after them."""
    selects = options.family == _bases.COSINES
    find = _subspaces.selected if selects else _subspaces.random
    bases, turns, columns = find(state, gradients, weights, options)
    r = {w.name: w.down(gradients[w.name], bases[w.name]) for w in weights}
    moments = _moments_now(state, turns, r, options, inner)
    n, sketched = inner.update(r, moments, None, **extra_args)
    new: Arrays = {}
    norms: Arrays = {}
    for w in weights:
        args = (w, gradients[w.name], r[w.name], n[w.name], bases[w.name])
        new[w.name], norm = _whole(*args, state.norms.get(w.name), options)
        norms |= {} if norm is None else {w.name: norm}
    return new, state._replace(sketched=sketched, norms=norms, columns=columns)


def _checked(
    rank: Any, family: Any, scaling: Any, refresh: Any, momentum: Any, along: Any, scale: Any,
    limit: Any, dtype: Any,
) -> _Options:  # fmt: skip
    if isinstance(refresh, str) and refresh == "auto":
        refresh = 20 if family == _bases.COSINES else 200
    is_subspace = one_of("scaling", scaling, SCALINGS) in ("subspace", "combined")
    momentum = momentum or ("project" if is_subspace else "keep")
    if limit == "auto":
        limit = None if scaling == "subspace" else 1.01
    return _Options(
        rank=static_int("rank", rank, 1),
        family=one_of("family", family, _bases.FAMILIES),
        scaling=scaling,
        refresh=None if refresh is None else whole_number("refresh", refresh, 1),
        momentum=one_of("momentum", momentum, _moments.MOMENTUM),
        along=one_of("along", along, _bases.ALONG),
        scale=scale,
        limit=limit,
        dtype=None if dtype is None else check_dtype(dtype),
    )


def _without(tree: Any, weights: list[Weight]) -> Any:
    """The tree with nothing where those weights were."""
    leaves, treedef = jax.tree.flatten(tree)
    for weight in weights:
        leaves[weight.index] = optax.MaskedNode()
    return jax.tree.unflatten(treedef, leaves)


def _merged(treedef: Any, rest: Any, new: Arrays, weights: list[Weight]) -> Any:
    """The tree with those weights back in it."""
    by_index, others = {w.index: new[w.name] for w in weights}, iter(jax.tree.leaves(rest))
    whole = [by_index[i] if i in by_index else next(others) for i in range(treedef.num_leaves)]
    return jax.tree.unflatten(treedef, whole)


def _read(state: Any, options: _Options) -> Any:
    return state if options.dtype is None else decode(state)


def _stored(state: SketchedState, options: _Options) -> SketchedState:
    if options.dtype is None:
        return state
    key = jax.random.fold_in(typed_key(state.key), state.count)
    keys = [jax.random.fold_in(key, 2**31 + i) for i in range(2)]  # not those of the sketches
    sketched, rest = (
        encode(part, options.dtype, key)
        for part, key in zip((state.sketched, state.rest), keys, strict=True)
    )
    return state._replace(sketched=sketched, rest=rest)


def _first_columns(options: _Options, weights: list[Weight]) -> Arrays:
    if options.family != _bases.COSINES:
        return {}
    first = jnp.arange(options.rank, dtype=jnp.int32)
    return {w.name: jnp.tile(first, (w.matrices, 1)) for w in weights}


def _check_same(weights: list[Weight], state: SketchedState, rank: int) -> None:
    """Refuses gradients whose matrices are not those that the state was made for."""
    expected = {w.name: (w.matrices, w.kept, rank) for w in weights}
    held = {
        path[-1].key: leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.sketched)
        if path and isinstance(path[-1], jax.tree_util.DictKey)
    }
    for name in [*held, *(expected if isinstance(state.sketched, jax.Array) else ())]:
        if held.get(name) != expected.get(name):
            raise ValueError(
                f"of {name!r} the state holds sketches of {held.get(name, 'nothing')}, the "
                f"gradients make {expected.get(name, 'nothing')}; call init with these parameters"
            )


def _moments_now(
    state: SketchedState,
    turns: Callable[[], Arrays],
    r: Arrays,
    options: _Options,
    inner: optax.GradientTransformation,
) -> Any:
    """The inner state, in this update's subspaces."""
    if options.refresh is None or options.momentum == "keep":
        return state.sketched

    def changed(old: Any) -> Any:
        if options.momentum == "project":
            return _moments.turned(old, turns())
        return inner.init(jax.tree.map(jnp.zeros_like, r))

    begins = (state.count % options.refresh == 0) & (state.count > 0)
    return jax.lax.cond(begins, changed, lambda old: old, state.sketched)


def _whole(
    w: Weight,
    g: Float[Array, "*shape"],
    r: Float[Array, "g k r"],
    n: Float[Array, "g k r"],
    basis: Float[Array, "..."],
    last: Float[Array, " g"] | None,
    options: _Options,
) -> tuple[Float[Array, "*shape"], Float[Array, " g"] | None]:
    """A weight's update, and the norm of each of its matrices where growth is limited."""
    share, scale = options.rank / w.lost, 1.0 if options.scale is None else options.scale
    factor = jnp.full(r.shape[:2], scale, r.dtype)
    if options.scaling == "subspace":
        g = w.up(n, basis).astype(g.dtype)
    elif options.scaling == "combined":
        # P N' + (G - P P^T G) diag(s) with one product: the subspace's part of both, and G diag(s).
        ratio = _ratios(r, n, -1) / math.sqrt(share)
        inside = n * math.sqrt(share) - r * (ratio * share)[..., None]
        beside = w.scaled(g, ratio, jnp.ones(w.matrices, ratio.dtype))
        g = (w.up(inside, basis) + beside).astype(g.dtype)
    else:
        scale = math.sqrt(1 / share) if options.scale is None else options.scale
        over = -1 if options.scaling == "channel" else (-2, -1)
        factor = jnp.broadcast_to(scale * _ratios(r, n, over), r.shape[:2])
    if last is None or options.limit is None:
        return w.scaled(g, factor, jnp.ones(w.matrices, factor.dtype)), None
    norm, most = w.norms(g, factor), last * options.limit
    limited = jnp.where((last > 0) & (norm > most), most / jnp.where(norm > 0, norm, 1), 1)
    return w.scaled(g, factor, limited.astype(factor.dtype)), (norm * limited).astype(last.dtype)


def _ratios(r: Float[Array, "g k r"], n: Float[Array, "g k r"], over: Any) -> Float[Array, "g _"]:
    """``||N|| / ||R||`` of each slice, 0 where nothing came in."""
    before, after = (jnp.linalg.norm(a, axis=over, keepdims=True)[..., 0] for a in (r, n))
    return jnp.where(before > 0, after / jnp.where(before > 0, before, 1), 0)
