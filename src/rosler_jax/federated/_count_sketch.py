r"""Updates in a count sketch, with momentum and error feedback inside it.

An update ``g`` of D numbers is hashed into rows of a table: of row j, number i adds ``s_j(i) g_i``
to the place ``h_j(i)``. The table ``S(g)`` is linear in g, so that tables of clients add, and so do
momentum and error, which the server keeps as tables alone::

    M <- momentum M + mean S(g_i),   E <- E + M,
    change = the k largest of the estimates of E,   E <- 0 and M <- 0 at the places of these

(``E - S(change)`` would keep the errors of the estimates, which grow from round to round where no
numbers stand out.) The estimate of a number is the median over the rows of
``s_j(i) S[j, h_j(i)]``. A client keeps nothing from round to round.

Source: Rothchild et al., "FetchSGD: communication-efficient federated learning with sketching",
arXiv:2007.07682; Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", 2002.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from rosler_jax.federated._exchange import Exchange
from rosler_kernels.hashing import threefry_2x32

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PyTree

    from rosler_jax.views import Views

ROWS = 3
MOMENTUM = 0.9
KEPT = 0.25  # of a row's places: how many numbers are read out of a table each round


class Places(NamedTuple):
    """Where numbers go.

    Attributes:
      where: ``h_j(i)``, ``(rows, size)``.
      sign: ``s_j(i)``, the same shape.
      columns: places of a row.
    """

    where: Int[Array, "rows size"]
    sign: Float[Array, "rows size"]
    columns: int


class Tables(NamedTuple):
    """What the server keeps."""

    momentum: Float[Array, "rows columns"]
    error: Float[Array, "rows columns"]


def places(size: int, columns: int, seed: int, rows: int = ROWS) -> Places:
    """Hashes of so many numbers: of the seed, the row and the number's index."""
    index = jax.lax.iota(jnp.uint32, size)
    words = [threefry_2x32((seed & 0xFFFFFFFF, row), (index, jnp.uint32(0))) for row in range(rows)]
    where = jnp.stack([first % np.uint32(columns) for first, _ in words]).astype(jnp.int32)
    sign = jnp.stack([1.0 - 2.0 * (second >> 31) for _, second in words]).astype(jnp.float32)
    return Places(where, sign, columns)


def sketched(v: Float[Array, " size"], at: Places) -> Float[Array, "rows columns"]:
    """The table of a vector.

    Example:
      >>> at = places(100, 16, seed=3)
      >>> v = jnp.zeros(100).at[7].set(5.0)
      >>> float(estimates(sketched(v, at), at)[7])
      5.0
    """
    zeros = jnp.zeros((len(at.where), at.columns), jnp.float32)
    rows = jnp.arange(len(at.where))[:, None]
    return zeros.at[rows, at.where].add(at.sign * v)


def estimates(table: Float[Array, "rows columns"], at: Places) -> Float[Array, " size"]:
    """What a table says of each number: the median over its rows."""
    return jnp.median(at.sign * jnp.take_along_axis(table, at.where, axis=1), axis=0)


def count_sketch_exchange(like: PyTree, views: Views, seed: int, number: float) -> Exchange:
    """The exchange of tables with ``number`` places for each number of the model, in all rows."""
    del views
    leaves = jax.tree.leaves(like)
    size = sum(int(np.prod(jnp.shape(leaf), dtype=int)) for leaf in leaves)
    columns = max(1, round(number * size / ROWS))
    kept = max(1, round(KEPT * columns))

    def flat(tree: PyTree) -> Array:
        return ravel_pytree(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree))[0]

    def init(params: PyTree) -> Tables:
        del params
        return Tables(*[jnp.zeros((ROWS, columns), jnp.float32)] * 2)

    def send(new: PyTree, old: PyTree) -> Any:
        at = places(size, columns, seed)
        return {"table": sketched(flat(new) - flat(old), at)}

    def receive(message: Any, old: PyTree, state: Tables) -> tuple[PyTree, Tables]:
        at = places(size, columns, seed)
        momentum = MOMENTUM * state.momentum + message["table"]
        error = state.error + momentum
        found = estimates(error, at)
        _, index = jax.lax.top_k(jnp.abs(found), min(kept, size))
        change = jnp.zeros_like(found).at[index].set(found[index])
        gone = sketched((change != 0).astype(jnp.float32), at) != 0
        state = Tables(jnp.where(gone, 0.0, momentum), jnp.where(gone, 0.0, error))
        return ravel_pytree(old)[1](change), state

    return Exchange(init, send, receive, steps=True)
