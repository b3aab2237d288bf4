"""Dynamical low-rank training (KLS): Schotthöfer et al., arXiv:2205.13571.

A layer is ``W = U S V'``, U and V orthonormal. Each step takes the gradient's projections on both
bases apart (K and L), turns the bases towards them, and then trains S between the new ones. The
adaptive form keeps the old bases beside the new ones and cuts the singular values of S whose tail
is below a tolerance: ranks go down, and up to twice as far as they were.

Steps are explicit Euler steps, plain SGD, as in the paper's own experiments on MNIST: the moments
of Adam mean nothing once the bases have turned. Shapes stay those of the largest rank; columns
beyond the rank are zeros, and are left out of the file.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from baselines.training import Rule, Trained, loss_of, train
from rosler_jax.fit import make_schedule, steps_of
from rosler_jax.run import Prepared
from rosler_jax.units import Units

Layer = tuple[Any, Any, Any, Any]
"""U, S, V, and which of their columns are in use."""


def layer_of(c: Any, r: Any) -> Layer:
    """Two factors as bases and what is between them."""
    u, upper = jnp.linalg.qr(c)
    v, lower = jnp.linalg.qr(r.T)
    return u, upper @ lower.T, v, jnp.ones(c.shape[1], bool)


def turned(moved: Any, basis: Any) -> Any:
    """An orthonormal basis of what moved; of fixed rank."""
    del basis
    return jnp.linalg.qr(moved)[0]


def widened(moved: Any, basis: Any, live: Any) -> Any:
    """An orthonormal basis of what moved and of the basis before, then columns of zeros."""
    both = jnp.concatenate([moved * live, basis * live], 1)
    order = jnp.argsort(~jnp.concatenate([live, live]), stable=True)  # columns of zeros last
    inside = jnp.arange(2 * live.size) < 2 * live.sum()
    return jnp.linalg.qr(both[:, order])[0] * inside


def truncated(u: Any, s: Any, v: Any, tolerance: Any, largest: int) -> Layer:
    """The smallest rank whose missing singular values are within the tolerance of all of them."""
    p, sizes, qt = jnp.linalg.svd(s)
    tails = jnp.sqrt(jnp.cumsum(sizes[::-1] ** 2)[::-1])
    rank = jnp.maximum((tails > tolerance * tails[0]).sum(), 2)
    live = jnp.arange(largest) < rank
    return (
        u @ p[:, :largest] * live,
        jnp.diag(sizes[:largest] * live),
        v @ qt[:largest].T * live,
        live,
    )


def kls_step(
    loss: Any, layers: dict[Any, Layer], rest: Any, rate: Any, tolerance: Any = None
) -> tuple[dict[Any, Layer], Any]:
    """One step of all layers.

    Args:
      loss: of ``{name: (c, r)}``, the products ``c r`` being the layers, and of the rest.
      layers: by name.
      rest: all other parameters.
      rate: of learning.
      tolerance: of the cut, relative; None for ranks that stay.

    Returns:
      Layers and rest after it.
    """
    k = {name: u @ s for name, (u, s, _, _) in layers.items()}
    rows = {name: s @ v.T for name, (_, s, v, _) in layers.items()}
    us = {name: u for name, (u, _, _, _) in layers.items()}
    vs = {name: v for name, (_, _, v, _) in layers.items()}
    dk = jax.grad(lambda k: loss({n: (k[n], vs[n].T) for n in k}, rest))(k)
    dl = jax.grad(lambda rows: loss({n: (us[n], rows[n]) for n in rows}, rest))(rows)
    bases = {}
    for name, (u, _, v, live) in layers.items():
        moved = k[name] - rate * dk[name], (rows[name] - rate * dl[name]).T
        if tolerance is None:
            bases[name] = turned(moved[0], u), turned(moved[1], v)
        else:
            bases[name] = widened(moved[0], u, live), widened(moved[1], v, live)
    between = {
        n: (bases[n][0].T @ u) @ s @ (v.T @ bases[n][1]) for n, (u, s, v, _) in layers.items()
    }

    def final(between: Any, rest: Any) -> Any:
        return loss({n: (bases[n][0] @ s, bases[n][1].T) for n, s in between.items()}, rest)

    ds, drest = jax.grad(final, argnums=(0, 1))(between, rest)
    between, rest = jax.tree.map(lambda w, g: w - rate * g, (between, rest), (ds, drest))
    if tolerance is None:
        return {n: (*_around(bases[n], s), layers[n][3]) for n, s in between.items()}, rest
    new = {}
    for name, s in between.items():
        largest = layers[name][3].size
        new[name] = truncated(bases[name][0], s, bases[name][1], tolerance, largest)
    return new, rest


def _around(bases: tuple[Any, Any], s: Any) -> tuple[Any, Any, Any]:
    return bases[0], s, bases[1]


def taken_apart(params: Any) -> tuple[dict[Any, Layer], Any]:
    """Layers and all other parameters of a net with factors ``c`` and ``r`` in hidden layers."""
    hidden = params["hidden"]
    layers = {name: layer_of(part["c"], part["r"]) for name, part in hidden.items()}
    return layers, {
        "biases": {name: part["bias"] for name, part in hidden.items()},
        "head": params["head"],
    }


def put_together(products: dict[Any, tuple[Any, Any]], rest: Any) -> Any:
    """The inverse, of factors."""
    hidden = {
        name: {"c": c, "r": r, "bias": rest["biases"][name]} for name, (c, r) in products.items()
    }
    return {"hidden": hidden, "head": rest["head"]}


def _rule(problem: Prepared, adaptive: bool) -> Rule:
    steps = problem.config.epochs * steps_of(problem.config, len(problem.dataset.train_x))
    schedule = make_schedule(problem.config, problem.hyper.learning_rate, steps)
    loss = loss_of(problem)

    def step(state: Any, tolerance: Any, x: Any, y: Any, units: Units) -> Any:
        layers, rest, count = state
        along = lambda products, rest: loss(put_together(products, rest), x, y, units)  # noqa: E731
        cut = tolerance if adaptive else None
        return *kls_step(along, layers, rest, schedule(count), cut), count + 1

    def weights(state: Any, tolerance: Any) -> Any:
        layers, rest, _ = state
        return put_together({n: (u @ s, v.T) for n, (u, s, v, _) in layers.items()}, rest)

    begin = lambda params, tolerance: (*taken_apart(params), jnp.zeros((), jnp.int32))  # noqa: E731
    return Rule(begin, step, weights)


def fixed(problem: Prepared) -> Rule:
    """Ranks that stay."""
    return _rule(problem, adaptive=False)


def adaptive(problem: Prepared) -> Rule:
    """Ranks that follow a tolerance, up to the model's."""
    return _rule(problem, adaptive=True)


def low_rank_trained(problem: Prepared, start: Any, tolerance: float | None = None) -> Trained:
    """The net of factors, trained once.

    Args:
      problem: data and a model with two factors in the place of each large layer.
      start: its parameters.
      tolerance: of the adaptive form; None for fixed ranks.
    """
    if tolerance is None:
        return train(problem, fixed, start, 0.0)
    return train(problem, adaptive, start, tolerance)


def ranks(found: Trained) -> list[int]:
    """The ranks of a trained net's layers."""
    return [int(live.sum()) for _, _, _, live in found.state[0].values()]
