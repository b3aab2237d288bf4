"""Adam on sketches of the gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optax

from rosler_jax.optim._checks import with_options_of
from rosler_jax.optim.sketched import scale_by_sketched

if TYPE_CHECKING:
    from collections.abc import Callable


@with_options_of(scale_by_sketched)
def scale_by_sketched_adam(
    rank: int,
    *,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    mu_dtype: Any = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales gradients as Adam does, with moments of rank-r sketches of them.

    A weight of m x n, m <= n, takes ``2 r n`` numbers of state in place of ``2 m n``; see
    :func:`~rosler_jax.optim.sketched.scale_by_sketched`, of which this is the case
    ``inner=optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)``. ``scaling="channel"`` with a
    random family is APOLLO, rank 1 with ``"tensor"`` APOLLO-Mini, ``"subspace"`` GaLore without its
    singular values, ``"combined"``, the default, Fira without them.

    Args:
      rank: ``r``.
      b1, b2, eps, mu_dtype: Adam's.
      **options: of ``scale_by_sketched``: family, scaling, refresh, momentum, along, scale, limit,
        state_dtype, view, where, seed.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError, ValueError: as ``scale_by_sketched``.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> params = {"kernel": jnp.zeros((256, 1024))}
      >>> def size(tx):
      ...     leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
      ...     return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
      >>> (
      ...     size(optax.scale_by_adam()),
      ...     size(scale_by_sketched_adam(8)),
      ...     size(scale_by_sketched_adam(8, along="longer", state_dtype=jnp.int8)),
      ... )
      (2097156, 65592, 4664)

    Source: Zhu et al. (APOLLO), arXiv:2412.05270.
    """
    adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
    return scale_by_sketched(adam, rank, **options)


@with_options_of(scale_by_sketched_adam)
def sketched_adamw(
    learning_rate: optax.ScalarOrSchedule,
    rank: int,
    *,
    weight_decay: Any = 1e-4,
    mask: Any | Callable[[Any], Any] | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with moments of sketches: ``optax.adamw`` in a fraction of its state.

    Args:
      learning_rate: a number or a schedule; AdamW's serves.
      rank: of the sketches.
      weight_decay, mask: as of ``optax.adamw``.
      **options: of :func:`scale_by_sketched_adam`.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; its ``update`` needs ``params``.

    Raises:
      TypeError, ValueError: as ``scale_by_sketched_adam``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = {"kernel": jnp.ones((32, 64))}
      >>> tx = sketched_adamw(1e-3, rank=4)
      >>> updates, state = jax.jit(tx.update)(params, tx.init(params), params)
      >>> updates["kernel"].shape
      (32, 64)

    Source: as of :func:`scale_by_sketched_adam`; decay of Loshchilov and Hutter, arXiv:1711.05101.
    """
    return optax.chain(
        scale_by_sketched_adam(rank, **options),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
