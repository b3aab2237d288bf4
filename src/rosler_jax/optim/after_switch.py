"""The successive stage of aRes-BP as a program of its own: the state that it starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import optax

from rosler_jax._paths import path_name

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from rosler_jax.optim.ares_bp import AresBpState


def after_switch(
    state: AresBpState, successive: optax.GradientTransformation, params: PyTree
) -> optax.OptState:
    r"""The successive optimiser's state in :func:`ares_bp`'s, for chains without the surplus.

    One program for both stages keeps what the parallel one needs: a solve, seeds, and cores
    ``(s, l)`` with ``l - s`` columns that are zero after the switch. Once past it,
    ``finish(model, fold=False)`` makes plain chains of rank s, and this cuts the moments to them
    (``U[:, :s]``, ``R[:s]``; the flag's go), so that training goes on where it was, with
    ``successive`` alone and at the speed of a chain.

    Args:
      state: of ``ares_bp``, at or past its switch.
      successive: the transformation that ``ares_bp`` was given.
      params: the parameters to go on with, as ``successive.init`` takes them.

    Returns:
      The state of ``successive`` for these parameters; works traced.

    Raises:
      ValueError: if the switch is still to come, or the state is of other parameters.

    Example:
      >>> import jax, optax, rosler_jax
      >>> from flax import nnx
      >>> model = rosler_jax.SketchLinear(20, 30, rank=4, mode="ares", rngs=nnx.Rngs(0))
      >>> adam = optax.adam(3e-3)
      >>> tx, params = rosler_jax.ares_bp(adam, switch_step=1), nnx.state(model, nnx.Param)
      >>> updates, state = jax.jit(tx.update)(params, tx.init(params), params)
      >>> nnx.update(model, optax.apply_updates(params, updates))
      >>> chain = rosler_jax.finish(model, fold=False)
      >>> params = nnx.state(chain, nnx.Param)
      >>> adam_state = after_switch(state, adam, params)
      >>> updates, adam_state = adam.update(params, adam_state, params)
      >>> updates["r"].shape
      (4, 30)
    """
    to_come = state.count < state.switch_step
    if not isinstance(to_come, jax.core.Tracer) and bool(to_come):
        raise ValueError(
            f"the switch is still to come: {state.count} of {state.switch_step} updates are made; "
            "call after_switch after update number switch_step"
        )
    old = jax.tree_util.tree_leaves_with_path(state.successive)
    named = {path_name(path): leaf for path, leaf in old}
    like = jax.eval_shape(successive.init, params)
    return jax.tree_util.tree_map_with_path(
        lambda path, new: _cut(path_name(path), named, new), like
    )


def _cut(name: str, named: dict[str, Any], like: Any) -> Any:
    """The leading part of the leaf of that name."""
    leaf, shape = named.get(name), like.shape
    if leaf is None or leaf.ndim != len(shape) or tuple(map(min, leaf.shape, shape)) != shape:
        raise ValueError(
            f"the state of ares_bp has no {name} of shape {shape}; pass the optimiser that "
            "ares_bp was given, and the parameters of finish(model, fold=False)"
        )
    return leaf if leaf.shape == shape else leaf[tuple(map(slice, shape))]
