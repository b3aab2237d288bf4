"""aRes-BP, compress-while-training in three stages, as an optax transformation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from rosler_jax._verdict import verdict as verdict_of
from rosler_jax.factors import SketchFactors, balance, core_from_sketch
from rosler_jax.nn._layouts import column_matrices, fold_columns
from rosler_jax.optim import _landing
from rosler_jax.optim._groups import FACTORS, NAMES, ares_groups, flatten, map_groups
from rosler_jax.optim._linearity import check_keeps_sketches

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int, PyTree


class AresBpState(NamedTuple):
    """State of :func:`ares_bp`.

    Example:
      >>> params = {"bias": jnp.zeros(3)}
      >>> tx = ares_bp(optax.adam(1e-2), switch_step=3)
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> int(state.count), int(state.switch_step)
      (1, 3)
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # updates made so far
    switch_step: Int[Array, ""]  # length of the parallel stage, in updates
    parallel: optax.OptState  # of the parallel stage's optimiser
    successive: optax.OptState  # of the successive stage's; initialised anew at the switch
    landing: _landing.Landing  # where the switch took the factors: entries of them


def default_parallel(
    learning_rate: float = 0.1, momentum: float = 0.9, max_norm: float = 1.0
) -> optax.GradientTransformation:
    """SGD with momentum, clipped by one global norm: linear enough to keep sketches sketches.

    Args:
      learning_rate: of SGD.
      momentum: in [0, 1).
      max_norm: of all gradients together.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = default_parallel(0.1)
      >>> updates, _ = tx.update({"c": jnp.ones(4)}, tx.init({"c": jnp.ones(4)}))
      >>> float(updates["c"][0])
      -0.05
    """
    return optax.chain(
        optax.clip_by_global_norm(max_norm), optax.sgd(learning_rate, momentum=momentum)
    )


def solve_and_balance(group: Mapping[str, Array]) -> dict[str, Array]:
    """Ends the parallel stage of a layer, or of a stack: ``U = A^+``, balanced factors, flag down.

    Layers whose flag is down already stay as they are.
    """
    c, slot, r, flag = (group[name] for name in NAMES)
    stored, rows = (a.reshape(-1, *a.shape[-2:]) for a in (slot, r))
    core = jax.vmap(core_from_sketch)(jnp.swapaxes(stored, 1, 2)).astype(slot.dtype)
    even = jax.vmap(balance)(SketchFactors(c=column_matrices(c, slot), u=core, r=rows))
    new = {
        "c": fold_columns(even.c, c.shape, slot.shape),
        "u": even.u.reshape(slot.shape),
        "r": even.r.reshape(r.shape),
        "parallel": jnp.zeros_like(flag),
    }
    ends = {k: jnp.expand_dims(flag > 0.5, tuple(range(flag.ndim, v.ndim))) for k, v in new.items()}
    return {name: jnp.where(ends[name], value, group[name]) for name, value in new.items()}


def _claims(params: PyTree, state: AresBpState) -> list[tuple[str, Bool[Array, ""]]]:
    """What must hold of the layers if nobody but this transformation has moved them."""
    leaves, _ = flatten(params)
    claims = []
    for name, group in ares_groups(params).items():
        flag = leaves[group["parallel"]]
        open_stage = (flag == 1) & (state.count < state.switch_step)
        claims.append((_FLAG.format(name=name), jnp.all((flag == 0) | open_stage)))
    factors = _factors(params)
    landed = _landing.landed([w for _, w in factors], state.landing, or_dropped=False)
    for (name, _), arrived in zip(factors, landed, strict=True):
        claims.append((_SWITCH.format(name=name), arrived | (state.count != state.switch_step)))
    return claims


_REMEDY = (
    "Links that change updates (scale, weight decay, clipping, freezing) belong before ares_bp, or "
    "inside its parallel= and successive=, not after it"
)
_FLAG = (
    "the flag of the stage {name}/parallel is neither 0, nor 1 within the first switch_step "
    "updates: it was moved by something other than ares_bp. " + _REMEDY
)
_SWITCH = (
    "{name} is not where the switch to the successive stage has taken it: the update of the switch "
    "was changed before it was applied. " + _REMEDY
)


def _factors(params: PyTree) -> list[tuple[str, Array]]:
    """The factors of all layers, by name."""
    leaves, _ = flatten(params)
    return [
        (f"{path}/{name}", leaves[group[name]])
        for path, group in ares_groups(params).items()
        for name in FACTORS
    ]


def ares_bp(
    successive: optax.GradientTransformation,
    *,
    switch_step: int | Int[Array, ""],
    parallel: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Approximate rank-restricted back-propagation: parallel, then successive training.

    For the first ``switch_step`` updates the parameters of layers made with ``mode="ares"`` are the
    sketches ``C = W Omega``, ``R = Psi^T W``, ``A = Psi^T W Omega`` of one virtual W, their
    gradients are the same sketches of ``dL/dW``, and ``parallel`` updates them; since it acts
    linearly they stay sketches of one matrix. With update number ``switch_step`` each layer's core
    ``U = A^+`` is solved for and ``C U R`` balanced (QR of C and R^T, SVD of the small middle
    matrix, singular values split by cube roots), its ``parallel`` flag falls to 0, and from then on
    ``successive`` trains all parameters through the chain. Shapes never change, so that all of it
    can sit in one ``jit``, ``scan`` or ``vmap``. Layers of other kinds, and layers whose flag is 0
    from the start, are trained by the optimiser of the stage as they are. Layers may be stacked
    along leading axes (``nnx.vmap``, ``nn.scan``): the shape of ``parallel`` says how many.

    **What may stand where.** Inside ``successive=``: anything. Inside ``parallel=``: what is linear
    in the gradient and the same for all factors of a layer; ``init`` tries it on every layer.
    Around it: ``optax.MultiSteps``, ``apply_if_finite``, ``inject_hyperparams``, and
    ``partition`` or ``masked`` that label whole layers, flag included. Before it in a chain:
    clipping or scaling by one scalar for all of a layer's factors (``clip_by_global_norm``, not
    ``clip`` or ``adaptive_grad_clip``). After it: nothing that changes updates, since the switch is
    one. What breaks these rules is refused by ``init`` where it can be seen there. Else the run
    ends loudly: the updates become NaN (outside ``jit``, a ``ValueError`` tells why) once the flag
    is neither 0 nor 1, is still 1 after the switch, or the factors are not where the switch took
    them; and so do a layer's gradients once its sketches are no longer of one matrix
    (:func:`~rosler_jax.optim.check_sketches.check_sketches` names it).

    Args:
      successive: any optimiser; its state starts at the switch.
      switch_step: number of updates of the parallel stage, at least 1; may be traced.
      parallel: an optimiser that is linear in the gradient (SGD, momentum, weight decay, a
        schedule, clipping by one scalar for a whole layer). Default: SGD 0.1, momentum 0.9, global
        norm clipped to 1.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` whose ``update`` needs ``params``.

    Raises:
      ValueError: if ``switch_step < 1``; from ``init``, if ``parallel`` (Adam, say) would tear C, A
        and R apart, or a layer's factors come without its flag; from ``update``, if ``params`` is
        missing or another transformation has moved the flag or changed the switch.

    Example:
      >>> import jax, optax, rosler_jax
      >>> from flax import nnx
      >>> model = rosler_jax.SketchLinear(20, 30, rank=4, mode="ares", rngs=nnx.Rngs(0))
      >>> tx = ares_bp(optax.adamw(3e-3), switch_step=100)
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> grads = nnx.grad(lambda m: (m(jnp.ones((8, 20))) ** 2).mean())(model)
      >>> _ = optimizer.update(model, grads)
      >>> int(optimizer.opt_state.count[...])
      1

    Source: our reading of Li et al. (2021), doi 10.1038/s43588-021-00039-6.
    """
    if isinstance(switch_step, int) and switch_step < 1:
        raise ValueError(
            f"switch_step {switch_step} leaves no parallel stage; pass switch_step>=1, or layers "
            "of mode='chain' with the successive optimiser alone"
        )
    first = optax.with_extra_args_support(default_parallel() if parallel is None else parallel)
    second = optax.with_extra_args_support(successive)

    def init(params: PyTree) -> AresBpState:
        check_keeps_sketches(first, params)
        still = [w for _, w in _factors(params)]
        return AresBpState(
            count=jnp.zeros((), jnp.int32),
            switch_step=jnp.asarray(switch_step, jnp.int32),
            parallel=first.init(params),
            successive=second.init(params),
            landing=_landing.note(still, still),
        )

    def update(
        updates: PyTree, state: AresBpState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AresBpState]:
        if params is None:
            raise ValueError("ares_bp needs the parameters: call update(grads, state, params)")
        verdict = verdict_of(_claims(params, state))

        def parallel_stage() -> tuple[PyTree, optax.OptState, optax.OptState, _landing.Landing]:
            steps, inner = first.update(updates, state.parallel, params, **extra)
            steps = _like(steps, params)

            def switch() -> tuple[PyTree, optax.OptState, _landing.Landing]:
                new = map_groups(solve_and_balance, optax.apply_updates(params, steps))
                there = optax.tree.sub(new, params)
                weights, moves = ([w for _, w in _factors(t)] for t in (params, there))
                return there, second.init(new), _landing.note(weights, moves)

            def stay() -> tuple[PyTree, optax.OptState, _landing.Landing]:
                return steps, state.successive, state.landing

            last = state.count + 1 >= state.switch_step
            steps, other, landing = jax.lax.cond(last, switch, stay)
            return steps, inner, other, landing

        def successive_stage() -> tuple[PyTree, optax.OptState, optax.OptState, _landing.Landing]:
            steps, inner = second.update(updates, state.successive, params, **extra)
            return _like(steps, params), state.parallel, inner, state.landing

        steps, one, two, landing = jax.lax.cond(
            state.count < state.switch_step, parallel_stage, successive_stage
        )
        count = optax.safe_increment(state.count)
        new = AresBpState(count, state.switch_step, one, two, landing)
        return _landing.enforce(verdict, steps), new

    return optax.GradientTransformationExtraArgs(init, update)


def _like(updates: PyTree, params: PyTree) -> PyTree:
    """Gives updates the dtypes of the parameters, so that both stages agree under ``cond``.

    The ``parallel`` flags stay where they are: weight decay or gradient noise would move them.
    """
    chex.assert_trees_all_equal_structs(updates, params)
    steps = jax.tree.map(lambda u, p: u.astype(p.dtype), updates, params)
    leaves, treedef = flatten(steps)
    for group in ares_groups(params).values():
        leaves[group["parallel"]] = jnp.zeros_like(leaves[group["parallel"]])
    return jax.tree.unflatten(treedef, leaves)
