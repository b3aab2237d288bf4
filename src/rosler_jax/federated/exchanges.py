r"""What of an update travels: all of it, sketches of the weights behind factors, or a count sketch.

Everything that clients send is linear in their weights, so that a mean of messages is the message
of the mean. Of *which* mean is the question:

- ``parameters``: the mean of what is stored. Of dense weights, of seeded cores (``W = Psi U
  Omega^T`` is linear in U) and of C and R in aRes-BP's parallel stage (``C = W Omega`` and ``R =
  Psi^T W`` are linear in W) that *is* the mean of the weights. Of learnt factors it is not:
  ``mean(C_i R_i) - mean(C_i) mean(R_i) = cov(C_i, R_i)``, small while clients stay close together.
- ``sketches``: the mean of the weights behind learnt factors. Clients send ``Y_i = W_i Omega`` and
  ``Z_i = Psi^T W_i``, two thin products of their factors; the server has ``Y`` and ``Z`` of the
  mean weight, of which generalised Nystroem makes factors again. No W is formed anywhere.
  It is right where factors of one weight differ: turned, balanced or refactored by themselves.
  Clients that begin a round with the same factors, as they do here, do as well or better with the
  mean of factors, which has nothing to cut off (BENCHMARKS.md).
- ``count-sketch``: of an update of any kind, hashed into a table that is smaller; see
  :mod:`rosler_jax.federated._count_sketch`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from rosler_jax.federated._count_sketch import count_sketch_exchange
from rosler_jax.federated._exchange import Exchange
from rosler_jax.federated._spec import Spec, choose
from rosler_jax.federated._weight_sketches import factored_layers, rebuilt, sketches_of

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from rosler_jax.views import Views

__all__ = ["EXCHANGES", "Exchange", "exchange"]


def exchange(spec: str, like: PyTree, views: Views, seed: int = 0) -> Exchange:
    """What travels of a model.

    Args:
      spec: of :data:`EXCHANGES`; ``"sketches:8"`` with so many more columns than the rank,
        ``"count-sketch:0.1"`` with a table of so many numbers for each that it holds.
      like: shapes of the parameters.
      views: what they are.
      seed: of the sketches, which all clients share.

    Raises:
      ValueError: for an unknown one, or ``sketches`` of a model without learnt factors.

    Example:
      >>> params = {"kernel": jnp.ones((40, 10))}
      >>> traded = exchange("count-sketch:0.1", params, {})
      >>> jax.tree.map(jnp.shape, jax.eval_shape(traded.send, params, params))
      {'table': (3, 13)}
    """
    make, number = choose("exchange", spec, EXCHANGES)
    return make(like, views, seed, number)


def _parameters(like: PyTree, views: Views, seed: int, number: float) -> Exchange:
    del like, views, seed, number
    return Exchange(
        init=lambda params: (),
        send=lambda new, old: jax.tree.map(jnp.subtract, new, old),
        receive=lambda message, old, state: (message, state),
    )


def _sketches(like: PyTree, views: Views, seed: int, number: float) -> Exchange:
    layers = factored_layers(like, views, seed, round(number))
    if not layers:
        raise ValueError(
            "exchange 'sketches' is of layers with learnt factors c and r; this model has none: "
            "pass 'parameters', whose mean is that of the weights here"
        )

    def send(new: PyTree, old: PyTree) -> PyTree:
        mine, theirs = sketches_of(layers, new), sketches_of(layers, old)
        return jax.tree.map(jnp.subtract, mine, theirs)

    def receive(message: PyTree, old: PyTree, state: Any) -> tuple[PyTree, Any]:
        mean = jax.tree.map(jnp.add, sketches_of(layers, old), message)
        change = jax.tree.map(jnp.subtract, rebuilt(layers, mean, old), old)
        return change, state

    return Exchange(lambda params: (), send, receive)


EXCHANGES: dict[str, Spec[Callable[..., Exchange]]] = {
    "parameters": Spec(_parameters),
    "sketches": Spec(_sketches, 4, least=0),
    "count-sketch": Spec(count_sketch_exchange, 0.25, least=1e-4, most=1.0),
}
"""Every exchange by name: a new one is one line here."""
