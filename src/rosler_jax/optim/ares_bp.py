"""aRes-BP, compress-while-training in three stages, as an optax transformation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from rosler_jax.factors import core_from_sketch
from rosler_jax.optim._groups import ares_groups, balance_leaves, map_groups
from rosler_jax.optim._linearity import check_keeps_sketches

if TYPE_CHECKING:
    from jaxtyping import Array, Int, PyTree


class AresBpState(NamedTuple):
    """State of :func:`ares_bp`."""

    count: Int[Array, ""]  # type: ignore[assignment]  # updates made so far
    switch_step: Int[Array, ""]  # length of the parallel stage, in updates
    parallel: optax.OptState  # of the parallel stage's optimiser
    successive: optax.OptState  # of the successive stage's; initialised anew at the switch


def default_parallel(
    learning_rate: float = 0.1, momentum: float = 0.9, max_norm: float = 1.0
) -> optax.GradientTransformation:
    """SGD with momentum, clipped by one global norm: linear enough to keep sketches sketches."""
    return optax.chain(
        optax.clip_by_global_norm(max_norm), optax.sgd(learning_rate, momentum=momentum)
    )


def solve_and_balance(group: Mapping[str, Array]) -> dict[str, Array]:
    """Ends the parallel stage of one layer: ``U = A^+``, balanced factors, flag down."""
    slot = group["u"]
    solve = core_from_sketch if slot.ndim == 2 else jax.vmap(core_from_sketch)
    core = solve(jnp.swapaxes(slot, -1, -2)).astype(slot.dtype)
    c, u, r = balance_leaves(group["c"], core, group["r"])
    return {"c": c, "u": u, "r": r, "parallel": jnp.zeros_like(group["parallel"])}


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
    can sit in one ``jit``, ``scan`` or ``vmap``. Layers of other kinds are trained by the optimiser
    of the stage.

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
        and R apart; from ``update``, if ``params`` is missing.

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
        return AresBpState(
            count=jnp.zeros((), jnp.int32),
            switch_step=jnp.asarray(switch_step, jnp.int32),
            parallel=first.init(params),
            successive=second.init(params),
        )

    def update(
        updates: PyTree, state: AresBpState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AresBpState]:
        if params is None:
            raise ValueError("ares_bp needs the parameters: call update(grads, state, params)")

        def parallel_stage() -> tuple[PyTree, optax.OptState, optax.OptState]:
            steps, inner = first.update(updates, state.parallel, params, **extra)
            steps = _like(steps, params)

            def switch() -> tuple[PyTree, optax.OptState]:
                new = map_groups(solve_and_balance, optax.apply_updates(params, steps))
                return optax.tree.sub(new, params), second.init(new)

            last = state.count + 1 >= state.switch_step
            steps, other = jax.lax.cond(last, switch, lambda: (steps, state.successive))
            return steps, inner, other

        def successive_stage() -> tuple[PyTree, optax.OptState, optax.OptState]:
            steps, inner = second.update(updates, state.successive, params, **extra)
            return _like(steps, params), state.parallel, inner

        steps, one, two = jax.lax.cond(
            state.count < state.switch_step, parallel_stage, successive_stage
        )
        count = optax.safe_increment(state.count)
        return steps, AresBpState(count, state.switch_step, one, two)

    return optax.GradientTransformationExtraArgs(init, update)


def _like(updates: PyTree, params: PyTree) -> PyTree:
    """Gives updates the dtypes of the parameters, so that both stages agree under ``cond``.

    The ``parallel`` flags stay where they are: weight decay or gradient noise would move them.
    """
    chex.assert_trees_all_equal_structs(updates, params)
    steps = jax.tree.map(lambda u, p: u.astype(p.dtype), updates, params)
    leaves, treedef = jax.tree.flatten(steps)
    for group in ares_groups(params).values():
        leaves[group["parallel"]] = jnp.zeros_like(leaves[group["parallel"]])
    return jax.tree.unflatten(treedef, leaves)
