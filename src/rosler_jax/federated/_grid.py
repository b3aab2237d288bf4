"""The way down: what the server sends, and what clients that missed rounds can add up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from rosler_jax.federated.compress import Compression, Packed, grid_scales, pack, unpack

if TYPE_CHECKING:
    from jaxtyping import PyTree


class Grid(NamedTuple):
    """The parameters that clients have, in whole steps: ``start + steps * scales``."""

    start: PyTree
    steps: tuple[Any, ...]
    scales: tuple[Any, ...]


def begin_grid(down: Compression, params: PyTree) -> Any:
    """The grid of a run, at its start; () where there is none."""
    if not down.grid:
        return ()
    steps = tuple(jnp.zeros(x.shape, jnp.int32) for x in jax.tree.leaves(params))
    return Grid(params, steps, grid_scales(down, params))


def sent_down(
    down: Compression, sent: PyTree, grid: Any, weights: PyTree, floats: int
) -> tuple[Packed, PyTree, Any]:
    """The server's message, what the clients then have, and the grid that it is on.

    Statistics are sent as they are; of parameters, unless these are floats as well, what changed.

    Args:
      down: compression of the way down.
      sent: what the clients have.
      grid: that it is on, or ().
      weights: what the server has.
      floats: how many statistics there are.
    """
    if not down.levels:  # as they are: the difference of two floats need not be exact
        return pack(down, weights), weights, ()
    params = jax.tree.map(jnp.subtract, weights["params"], sent["params"])
    message = {"params": params, "statistics": weights["statistics"]}
    scales = grid.scales if down.grid else ()
    packed = pack(down, message, scales, floats)
    if not down.grid:
        moved = unpack(packed, weights)["params"]
        new = jax.tree.map(jnp.add, sent["params"], moved)
        return packed, {"params": new, "statistics": weights["statistics"]}, ()
    most = down.levels  # the sum is a message, too
    steps = tuple(
        jnp.clip(n + q, -most, most)
        for n, q in zip(grid.steps, packed.values[: len(scales)], strict=True)
    )
    new = {"params": on_grid(grid, steps), "statistics": weights["statistics"]}
    return packed, new, grid._replace(steps=steps)


def on_grid(grid: Grid, steps: Any) -> PyTree:
    """Anew from the start: who missed rounds adds their steps at once, and comes to the same."""
    moved = unpack(Packed(tuple(steps), grid.scales), grid.start)
    return jax.tree.map(jnp.add, grid.start, moved)
